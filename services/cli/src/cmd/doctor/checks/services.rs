//! The services themselves, and the units that systemd has of them.

use std::collections::BTreeSet;

use banger_api::SERVICES;

use super::super::check::{Finding, Judged, or_ok};
use super::super::facts::{Facts, Program, Seen, Systemd, Unit};
use super::super::fix::Fix;
use super::super::units::{OPTIONAL, UNITS, Wanted};

/// Whether the bus knows the names, and so starts the services.
pub fn names(names: &[String]) -> Vec<Finding> {
    let missing = SERVICES.iter().filter(|service| !names.iter().any(|name| name == service.bus_name));
    let findings = missing.map(|service| {
        let remedy = "systemctl reload dbus, and if that does not help install banger again";
        Finding::fail(format!("the bus knows no {}", service.bus_name), remedy)
    });
    or_ok(findings.collect(), "the bus starts all four services")
}

/// Whether what is to be called is there to be.
pub fn units(systemd: &Systemd) -> Vec<Finding> {
    let findings = UNITS.iter().filter_map(|wanted| unit(wanted, &systemd.unit(wanted.name)));
    or_ok(findings.collect(), "all units are there, enabled, and listening")
}

fn unit(wanted: &Wanted, unit: &Unit) -> Option<Finding> {
    let Wanted { name, enabled, active } = *wanted;
    // What failed is told of with all that did.
    let is_down = active && matches!(unit.active.as_str(), "inactive" | "deactivating");
    let (what, fix) = match unit.load.as_str() {
        "loaded" if enabled && unit.file == "disabled" => {
            (format!("{name} is disabled"), Fix::Enable { unit: name.to_owned(), now: active })
        }
        "loaded" if is_down => (format!("{name} is {}", unit.active), Fix::Start(name.to_owned())),
        "loaded" => return None,
        "not-found" => return Some(Finding::fail(format!("there is no {name}"), "install banger again")),
        "masked" if OPTIONAL.contains(&name) => return None,
        "masked" => {
            return Some(Finding::fail(format!("{name} is masked"), format!("systemctl unmask {name}")));
        }
        load => {
            let remedy = format!("systemd-analyze verify {name}, and systemctl cat {name}");
            return Some(Finding::fail(format!("{name} cannot be loaded ({load})"), remedy));
        }
    };
    // That may be the admin's will.
    let or_mask = || format!("{}; or systemctl mask {name}, to do without", fix.command());
    Some(if OPTIONAL.contains(&name) { Finding::warn(what, or_mask()) } else { Finding::fail(what, fix) })
}

/// Units that ended as they should not have.
pub fn failed(systemd: &Systemd) -> Vec<Finding> {
    let findings = systemd.failed.iter().map(|(name, result)| {
        let what = format!("{name} failed ({result}); journalctl -b -u {name} says why");
        match vm_of(name) {
            // Its failure says how the VM ended, until it is started again.
            Some(vm) => Finding::warn(what, format!("banger start {vm}")),
            None if waits(name) => Finding::fail(what, Fix::Revive(name.clone())),
            None => Finding::fail(what, Fix::Forget(name.clone())),
        }
    });
    or_ok(findings.collect(), "no unit of banger's has failed")
}

/// Whether a unit is there to wait for something, rather than to come when it is called. Forwards are vmd's to open.
fn waits(unit: &str) -> bool {
    (unit.ends_with(".socket") || unit.ends_with(".timer")) && !unit.contains('@')
}

fn vm_of(unit: &str) -> Option<&str> {
    unit.strip_prefix("banger-vm@")?.strip_suffix(".service")
}

/// Unit files that changed since systemd read them.
pub fn reload(systemd: &Systemd) -> Vec<Finding> {
    let stale = systemd.units.iter().filter(|(_, unit)| unit.needs_reload).map(|(name, _)| name);
    let stale: Vec<&str> = stale.chain(&systemd.outdated).map(String::as_str).collect();
    if !stale.is_empty() {
        let what = format!("changed since systemd read it: {}", stale.join(", "));
        return vec![Finding::warn(what, Fix::Reload)];
    }
    let drop_ins: BTreeSet<&str> =
        systemd.units.values().flat_map(|unit| &unit.drop_ins).map(String::as_str).collect();
    let drop_ins = Vec::from_iter(drop_ins).join(", ");
    vec![Finding::ok(match drop_ins.as_str() {
        "" => "units are as they were installed".to_owned(),
        all => format!("systemd has read all changes of units: {all}"),
    })]
}

/// Whether the services answer, which starts them.
pub fn answers(versions: &[(&str, Seen<String>)]) -> Vec<Finding> {
    let findings = versions.iter().filter_map(|(id, version)| {
        let unseen = version.as_ref().err()?;
        let remedy = format!("systemctl status banger-{id}; journalctl -b -u banger-{id} -n 50");
        Some(Finding::fail(&unseen.what, remedy))
    });
    or_ok(findings.collect(), "all four services answer")
}

/// Whether what runs is what is installed.
pub fn versions(facts: &Facts) -> Judged {
    let systemd = facts.systemd.as_ref().map_err(Clone::clone)?;
    let ours = env!("CARGO_PKG_VERSION");
    let mut findings = Vec::new();
    for (id, version) in &facts.versions {
        let unit = systemd.unit(&format!("banger-{id}.service"));
        let restart = || format!("systemctl restart banger-{id}; VMs do not notice");
        match version {
            Ok(version) if version != ours => {
                let what = format!("banger-{id} is version {version}, and this program {ours}");
                findings.push(Finding::warn(what, format!("{}; else install the same of both", restart())));
            }
            Ok(_) if is_outdated(&unit) => {
                let what = format!("banger-{id} runs from before its program was installed");
                findings.push(Finding::warn(what, restart()));
            }
            _ => {}
        }
    }
    Ok(or_ok(findings, format!("services and program are version {ours}")))
}

fn is_outdated(unit: &Unit) -> bool {
    let installed = unit.program.as_ref().and_then(|program| program.installed);
    unit.active == "active" && installed.is_some_and(|installed| installed > unit.started)
}

/// Whether what the units execute is there.
pub fn programs(systemd: &Systemd) -> Vec<Finding> {
    let missing = systemd.units.iter().filter_map(|(name, unit)| match &unit.program {
        Some(Program { path, installed: None }) => {
            Some(Finding::fail(format!("there is no {path}, which {name} executes"), "install banger again"))
        }
        _ => None,
    });
    or_ok(missing.collect(), "all programs of the units are there")
}

#[cfg(test)]
mod tests {
    use super::super::super::check::Verdict::{self, Fail, Ok, Warn};
    use super::*;

    fn verdicts(findings: &[Finding]) -> Vec<Verdict> {
        findings.iter().map(|finding| finding.verdict).collect()
    }

    fn well() -> Systemd {
        let unit = |wanted: &Wanted| {
            let word = |is: bool, yes: &str, no: &str| if is { yes } else { no }.to_owned();
            let unit = Unit {
                load: "loaded".into(),
                active: word(wanted.active, "active", "inactive"),
                file: word(wanted.enabled, "enabled", "static"),
                ..Unit::default()
            };
            (wanted.name.to_owned(), unit)
        };
        Systemd { units: UNITS.iter().map(unit).collect(), ..Systemd::default() }
    }

    fn with(name: &str, change: impl Fn(&mut Unit)) -> Systemd {
        let mut systemd = well();
        change(systemd.units.get_mut(name).expect("known"));
        systemd
    }

    #[test]
    fn sockets_are_enabled_and_listen() {
        assert_eq!(verdicts(&units(&well())), [Ok]);
        let socket = "banger-vmd.socket";
        let down = |unit: &mut Unit| unit.active = "inactive".into();
        assert_eq!(units(&with(socket, down))[0].remedy, Fix::Start(socket.into()).into());
        let off = |unit: &mut Unit| {
            unit.file = "disabled".into();
            unit.active = "inactive".into();
        };
        let enable = |unit: &str, now| Fix::Enable { unit: unit.into(), now }.into();
        assert_eq!(units(&with(socket, off))[0].remedy, enable(socket, true));
        assert_eq!(units(&with("banger-vmd.service", off))[0].remedy, enable("banger-vmd.service", false));
    }

    #[test]
    fn only_the_admin_unmasks_and_some_may_be_masked() {
        let mask = |unit: &mut Unit| unit.load = "masked".into();
        let optional = "banger-netd-dns.socket";
        assert_eq!(verdicts(&units(&with(optional, mask))), [Ok]);
        let found = units(&with(optional, |unit| unit.active = "inactive".into()));
        assert_eq!(verdicts(&found), [Warn]);
        assert!(found[0].remedy.to_string().contains("systemctl mask"), "{found:?}");
        let found = units(&with("banger-vmd.socket", mask));
        assert_eq!(found[0].remedy, "systemctl unmask banger-vmd.socket".into());
        assert_eq!(verdicts(&units(&Systemd::default())), [Fail; UNITS.len()]);
    }

    #[test]
    fn what_failed_is_told_once() {
        let mut systemd = with("banger-netd.socket", |unit| unit.active = "failed".into());
        assert_eq!(verdicts(&units(&systemd)), [Ok]);
        systemd.failed = ["banger-netd.socket", "banger-vm@web.service"]
            .map(|name| (name.into(), "exit-code".into()))
            .into();
        let found = failed(&systemd);
        assert_eq!(verdicts(&found), [Fail, Warn]);
        assert_eq!(found[0].remedy, Fix::Revive("banger-netd.socket".into()).into());
        assert!(found[1].remedy.to_string().ends_with("banger start web"));
    }

    #[test]
    fn drop_ins_are_named_once_they_are_read() {
        let drop_in = |unit: &mut Unit| unit.drop_ins = vec!["/etc/systemd/system/x.d/override.conf".into()];
        assert!(reload(&with("banger-vmd.service", drop_in))[0].what.ends_with("override.conf"));
        let found = reload(&with("banger-vmd.service", |unit| unit.needs_reload = true));
        assert_eq!((found[0].verdict, &found[0].remedy), (Warn, &Fix::Reload.into()));
    }

    #[test]
    fn a_program_that_was_replaced_is_still_the_old_one() {
        let unit = |active: &str, installed, started| Unit {
            active: active.into(),
            program: Some(Program { path: "/p".into(), installed }),
            started,
            ..Unit::default()
        };
        assert!(is_outdated(&unit("active", Some(20), 10)));
        assert!(!is_outdated(&unit("active", Some(10), 20)));
        assert!(!is_outdated(&unit("inactive", Some(20), 10)));
        let gone = with("banger-vmd.service", |known| *known = unit("inactive", None, 0));
        assert_eq!(verdicts(&programs(&gone)), [Fail]);
    }
}
