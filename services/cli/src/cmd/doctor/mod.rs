//! `banger doctor`: what is wrong on this host, why it matters, and what to do about it.
//!
//! Facts are gathered first ([`gather`], the I/O), then judged by the checks of a [`table`], each a pure function
//! from facts to findings ([`checks`]). What a service of banger knows is asked of it. `--fix` does what is safe
//! ([`fix`]), and looks again.

mod check;
mod checks;
mod facts;
mod fix;
mod gather;
mod report;
mod systemd;
mod table;
mod units;

use std::collections::BTreeSet;

use banger_api::Result;

use self::check::{Check, Finding, Remedy, Verdict};
use self::facts::Facts;
use self::fix::Fix;
use self::report::{Done, Report};
use self::table::CHECKS;
use crate::Context;
use crate::args::Doctor;
use crate::exit::{SUCCESS, UNWELL};

/// Tells how the host is, and with `--fix` does what is safe to be done first.
pub async fn doctor(context: &Context, arguments: Doctor) -> Result<u8> {
    let mut findings = judge(&gather::facts(context).await);
    let mut done = Vec::new();
    if arguments.fix {
        let fixes = fixes(&findings);
        for fix in &fixes {
            done.push(Done { command: fix.command(), error: fix.apply(context).await.err() });
        }
        if !fixes.is_empty() {
            findings = judge(&gather::facts(context).await);
        }
    }
    let report = Report { findings, done };
    report.print(&context.output, arguments.verbose)?;
    Ok(if report.verdict() == Verdict::Fail { UNWELL } else { SUCCESS })
}

fn judge(facts: &Facts) -> Vec<(&'static Check, Finding)> {
    CHECKS
        .iter()
        .flat_map(|check| check.findings(facts).into_iter().map(move |finding| (check, finding)))
        .collect()
}

/// What can be done about them, each once, in order.
fn fixes(findings: &[(&Check, Finding)]) -> BTreeSet<Fix> {
    let remedies = findings.iter().map(|(_, finding)| &finding.remedy);
    remedies
        .filter_map(|remedy| match remedy {
            Remedy::Fix(fix) => Some(fix.clone()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use super::facts::Seen;

    fn nothing() -> Facts {
        fn unseen<T>() -> Seen<T> {
            Err(facts::Unseen { what: "no answer".into(), remedy: "sudo banger doctor".into() })
        }
        Facts {
            you: unseen(),
            machine: facts::Machine::default(),
            system: facts::System::default(),
            storage: unseen(),
            clock: unseen(),
            names: unseen(),
            systemd: unseen(),
            versions: vec![("vmd", unseen())],
            host: unseen(),
            kernels: unseen(),
            network: unseen(),
            orphans: unseen(),
            leavings: unseen(),
            journal: unseen(),
        }
    }

    #[test]
    fn every_check_says_something_whatever_is_known() {
        let facts = nothing();
        for check in CHECKS {
            let findings = check.findings(&facts);
            assert!(!findings.is_empty(), "{}", check.name);
            for finding in findings.iter().filter(|finding| finding.verdict != Verdict::Ok) {
                assert!(!finding.what.is_empty() && !finding.remedy.to_string().is_empty(), "{finding:?}");
            }
        }
    }

    #[test]
    fn checks_have_names_of_their_own_and_stand_by_group() {
        let names: BTreeSet<&str> = CHECKS.iter().map(|check| check.name).collect();
        assert_eq!(names.len(), CHECKS.len());
        let mut groups: Vec<&str> = CHECKS.iter().map(|check| check.group).collect();
        groups.dedup();
        assert_eq!(groups.len(), groups.iter().collect::<BTreeSet<_>>().len(), "{groups:?}");
    }

    #[test]
    fn what_is_to_be_fixed_is_fixed_once() {
        let finding = |fix| (&CHECKS[0], Finding::warn("x", fix));
        let (socket, service) = (Fix::Revive("a.socket".into()), Fix::Forget("b.service".into()));
        let findings = [
            finding(Fix::Reconcile),
            finding(socket.clone()),
            finding(Fix::Reconcile),
            finding(service.clone()),
            (&CHECKS[0], Finding::warn("x", "y")),
        ];
        // A socket whose service cannot start fails again.
        assert_eq!(Vec::from_iter(fixes(&findings)), [service, socket, Fix::Reconcile]);
    }
}
