//! What belongs to nobody.

use super::super::check::{Finding, or_ok};
use super::super::facts::Leavings;
use super::super::fix::Fix;

/// What vmd finds, and can do away with.
pub fn orphans(orphans: &[String]) -> Vec<Finding> {
    let findings = orphans.iter().map(|orphan| Finding::warn(orphan, Fix::Reconcile));
    or_ok(findings.collect(), "no disk, lease, port or unit is without its VM")
}

pub fn enabled(leavings: &Leavings) -> Vec<Finding> {
    let gone = leavings.enabled.iter().filter(|(vm, _)| !leavings.vms.contains(vm));
    let findings = gone.map(|(vm, link)| {
        Finding::warn(
            format!("{link} enables a VM that is not there"),
            format!("systemctl disable banger-vm@{vm}"),
        )
    });
    or_ok(findings.collect(), "every VM that is enabled is there")
}

pub fn runtime(leavings: &Leavings, up: &[String]) -> Vec<Finding> {
    let stale = leavings.running.iter().filter(|vm| !up.contains(vm));
    let findings = stale.map(|vm| {
        Finding::warn(
            format!("/run/banger/vm/{vm} is of a VM that does not run"),
            format!("rm -r /run/banger/vm/{vm}"),
        )
    });
    or_ok(findings.collect(), "every runtime directory is of a VM that runs")
}

#[cfg(test)]
mod tests {
    use super::super::super::check::Verdict::{Ok, Warn};
    use super::*;

    #[test]
    fn what_has_its_vm_is_no_leftover() {
        let leavings = Leavings {
            vms: vec!["web".into()],
            enabled: ["web", "old"].map(|vm| (vm.into(), format!("/wants/{vm}"))).into(),
            running: vec!["web".into(), "dead".into()],
        };
        let found = enabled(&leavings);
        assert_eq!(
            found,
            [Finding::warn("/wants/old enables a VM that is not there", "systemctl disable banger-vm@old")]
        );
        let found = runtime(&leavings, &["web".into()]);
        assert!(found.len() == 1 && found[0].what.contains("vm/dead"), "{found:?}");
        let none = Leavings::default();
        for found in [enabled(&none), runtime(&none, &[]), orphans(&[])] {
            assert_eq!(found[0].verdict, Ok);
        }
        assert_eq!(
            orphans(&["web: x".into()]),
            [Finding { verdict: Warn, what: "web: x".into(), remedy: Fix::Reconcile.into() }]
        );
    }
}
