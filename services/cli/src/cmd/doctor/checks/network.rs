//! The guests' network, mostly in the words of netd.

use super::super::check::Judged;
use super::super::check::{Finding, or_ok};
use super::super::facts::{Network, Unseen};
use super::super::fix::Fix;

/// netd's warnings of a kind.
fn warnings<'a>(network: &'a Network, kind: &'a str) -> impl Iterator<Item = (&'a String, &'a String)> {
    network.warnings.iter().filter(move |(of, ..)| of == kind).map(|(_, what, remedy)| (what, remedy))
}

/// What netd could not look at, nobody knows.
fn look(network: &Network) -> Result<(), Unseen> {
    match warnings(network, "unknown").next() {
        Some((what, remedy)) => Err(Unseen { what: what.clone(), remedy: remedy.clone() }),
        None => Ok(()),
    }
}

pub fn range(network: &Network) -> Judged {
    look(network)?;
    let findings = warnings(network, "range").map(|(what, remedy)| Finding::fail(what, remedy));
    Ok(or_ok(findings.collect(), "the host has no other way to the guests' addresses"))
}

pub fn firewall(network: &Network) -> Judged {
    look(network)?;
    let findings = warnings(network, "filter").map(|(what, remedy)| Finding::warn(what, remedy));
    Ok(or_ok(findings.collect(), "no rules of others are in the way of guests"))
}

pub fn rules(network: &Network) -> Judged {
    look(network)?;
    let findings = warnings(network, "rules").map(|(what, _)| Finding::fail(what, Fix::Network));
    let well = match network.leases {
        0 => "no VM needs rules now",
        _ => "banger's own rules are there",
    };
    Ok(or_ok(findings.collect(), well))
}

pub fn taps(network: &Network) -> Judged {
    look(network)?;
    let findings = warnings(network, "tap").map(|(what, _)| Finding::warn(what, Fix::Network));
    Ok(or_ok(findings.collect(), "every TAP of banger's is a lease's, or waits for one"))
}

/// Only where VMs have leases netd has switched it on.
pub fn forwarding(network: &Network) -> Vec<Finding> {
    if network.leases == 0 {
        return vec![Finding::ok("no VM needs it now; netd switches it on for the first")];
    }
    let off = network.forwarding.iter().filter(|(_, on)| !on);
    let findings = off.map(|(link, _)| {
        Finding::fail(format!("packets that come in by {link} are not forwarded"), Fix::Network)
    });
    or_ok(findings.collect(), "packets are forwarded between guests and the links that lead out")
}

pub fn names(network: &Network) -> Vec<Finding> {
    let findings = network.problems.iter().map(|(what, remedy)| Finding::warn(what, remedy));
    let well = match network.resolved.as_str() {
        "routed" => "systemd-resolved asks netd for the names of VMs",
        _ => "no VM has a name now; netd tells systemd-resolved of the first",
    };
    or_ok(findings.collect(), well)
}

/// Whether those who manage the host's links leave banger's alone.
pub fn managers(network: &Network) -> Vec<Finding> {
    let bridge = &network.bridge;
    let findings = network.managers.iter().filter(|(_, takes)| *takes).map(|(manager, _)| {
        let remedy = match *manager {
            "NetworkManager" => "install 50-banger.conf in /usr/lib/NetworkManager/conf.d again, then systemctl reload NetworkManager",
            _ => "install 50-banger.network in /usr/lib/systemd/network again, then networkctl reload",
        };
        Finding::warn(format!("{manager} takes {bridge} for its own"), remedy)
    });
    let known: Vec<&str> = network.managers.iter().map(|(manager, _)| *manager).collect();
    let well = match known.as_slice() {
        _ if !network.has_bridge => "there is no bridge yet to be left alone".to_owned(),
        [] => "neither NetworkManager nor systemd-networkd runs".to_owned(),
        all => format!("{bridge} is left alone by {}", all.join(" and ")),
    };
    or_ok(findings.collect(), well)
}

#[cfg(test)]
mod tests {
    use super::super::super::check::Verdict::{self, Fail, Ok, Warn};
    use super::*;

    fn verdicts(findings: &[Finding]) -> Vec<Verdict> {
        findings.iter().map(|finding| finding.verdict).collect()
    }

    fn warned(kind: &str) -> Network {
        Network {
            warnings: vec![(kind.into(), "what".into(), "remedy".into())],
            leases: 1,
            ..Network::default()
        }
    }

    #[test]
    fn each_kind_of_netds_warnings_has_its_check() {
        type Judge = fn(&Network) -> Judged;
        let judges: [(Judge, &str, Verdict); 4] =
            [(range, "range", Fail), (firewall, "filter", Warn), (rules, "rules", Fail), (taps, "tap", Warn)];
        for (judge, kind, verdict) in judges {
            for (of, ..) in judges.map(|(_, of, _)| (of,)) {
                let expected = if of == kind { verdict } else { Ok };
                assert_eq!(verdicts(&judge(&warned(of)).expect("seen")), [expected], "{kind} of {of}");
            }
            assert_eq!(judge(&warned("unknown")).expect_err("unseen").remedy, "remedy");
        }
    }

    #[test]
    fn rules_of_others_are_the_admins_and_ours_are_made_again() {
        assert_eq!(firewall(&warned("filter")).expect("seen")[0].remedy, "remedy".into());
        assert_eq!(rules(&warned("rules")).expect("seen")[0].remedy, Fix::Network.into());
    }

    #[test]
    fn forwarding_matters_to_those_who_have_leases() {
        let network = |leases| Network {
            leases,
            forwarding: vec![("eth0".into(), false), ("br".into(), true)],
            ..Network::default()
        };
        assert_eq!(verdicts(&forwarding(&network(0))), [Ok]);
        let found = forwarding(&network(1));
        assert!(verdicts(&found) == [Fail] && found[0].what.contains("eth0"), "{found:?}");
    }

    #[test]
    fn a_manager_that_takes_the_bridge_is_told_apart() {
        let network = Network {
            managers: vec![("NetworkManager", true), ("systemd-networkd", false)],
            ..Network::default()
        };
        let found = managers(&network);
        assert!(
            verdicts(&found) == [Warn] && found[0].remedy.to_string().contains("NetworkManager"),
            "{found:?}"
        );
    }
}
