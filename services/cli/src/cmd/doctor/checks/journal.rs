//! What the journal has of this boot. A line is taken for what it says only if it is of banger for sure. What happened may
//! be over, so nothing here fails.

use std::collections::BTreeMap;

use super::super::check::{Finding, or_ok};
use super::super::facts::Entry;

/// systemd.journal-fields(7): a process of a unit was killed as memory ran out.
pub const OUT_OF_MEMORY: &str = "fe6faa94e7774663a0da52717891d8ef";
/// A process of a unit ended.
pub const UNIT_PROCESS_EXIT: &str = "98e322203f7a4ed290d09fe03c09fe15";

/// SIGSYS, by which seccomp ends a process.
const BAD_SYSTEM_CALL: &str = "31";

/// What the security modules call the programs of ours; names end after 15 characters there.
const PROGRAMS: [&str; 3] = ["comm=\"banger-", "comm=\"firecracker\"", "comm=\"vhost-device-vs\""];

pub fn denials(entries: &[Entry]) -> Vec<Finding> {
    let seccomp = count(entries, |entry| {
        let denied = entry.message_id == UNIT_PROCESS_EXIT && entry.exit_status == BAD_SYSTEM_CALL;
        (denied && entry.exit_code != "exited").then(|| entry.unit.clone())
    });
    let modules = count(entries, denial);
    let seccomp = seccomp.into_iter().map(|(unit, times)| {
        Finding::warn(
            format!("{unit} was ended for a system call that its sandbox forbids{}", often(times)),
            format!("coredumpctl info {unit} says which; allow it by systemctl edit {unit}: [Service] SystemCallFilter=NAME"),
        )
    });
    let modules = modules.into_iter().map(|(message, times)| {
        Finding::warn(
            format!("a security module of the kernel denied: {message}{}", often(times)),
            "allow it in the policy or profile that is named (SELinux: ausearch -m avc; AppArmor: aa-logprof)",
        )
    });
    or_ok(seccomp.chain(modules).collect(), "nothing of banger's was denied since the host's boot")
}

/// What SELinux or AppArmor says of a program or file of ours, without what differs from time to time.
fn denial(entry: &Entry) -> Option<String> {
    let Entry { message, transport, .. } = entry;
    let of_kernel = matches!(transport.as_str(), "kernel" | "audit");
    let is_ours = PROGRAMS.iter().any(|program| message.contains(program)) || message.contains("/banger/");
    let begin = ["apparmor=\"DENIED\"", "avc:  denied"].into_iter().find_map(|begin| message.find(begin))?;
    let words = message[begin..].split_whitespace().filter(|word| !word.starts_with("pid="));
    (of_kernel && is_ours).then(|| words.collect::<Vec<_>>().join(" "))
}

pub fn memory(entries: &[Entry]) -> Vec<Finding> {
    let killed = count(entries, |entry| (entry.message_id == OUT_OF_MEMORY).then(|| entry.unit.clone()));
    let findings = killed.into_iter().map(|(unit, times)| {
        Finding::warn(
            format!("the kernel killed processes of {unit} as memory ran out{}", often(times)),
            format!("give VMs less memory (banger set NAME --memory), or a higher limit: systemctl show -p MemoryMax {unit}"),
        )
    });
    or_ok(findings.collect(), "memory never ran out for banger since the host's boot")
}

/// How often each was said, of units of banger's.
fn count(entries: &[Entry], what: impl Fn(&Entry) -> Option<String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for said in entries
        .iter()
        .filter(|entry| entry.unit.is_empty() || entry.unit.starts_with("banger-"))
        .filter_map(what)
    {
        *counts.entry(said).or_default() += 1;
    }
    counts
}

fn often(times: usize) -> String {
    if times > 1 { format!(" ({times} times)") } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::super::super::check::Verdict::{self, Ok, Warn};
    use super::*;

    fn verdicts(findings: &[Finding]) -> Vec<Verdict> {
        findings.iter().map(|finding| finding.verdict).collect()
    }

    fn ended(unit: &str, code: &str, status: &str) -> Entry {
        Entry {
            message_id: UNIT_PROCESS_EXIT.into(),
            unit: unit.into(),
            exit_code: code.into(),
            exit_status: status.into(),
            ..Entry::default()
        }
    }

    fn kernel(message: &str) -> Entry {
        Entry { message: message.into(), transport: "kernel".into(), ..Entry::default() }
    }

    #[test]
    fn only_a_signal_is_seccomps() {
        let bad = ended("banger-vm@web.service", "dumped", "31");
        let found = denials(&[bad.clone(), bad.clone()]);
        assert!(verdicts(&found) == [Warn] && found[0].what.ends_with("(2 times)"), "{found:?}");
        let others = [
            ended("banger-vm@web.service", "exited", "31"),
            ended("banger-vm@web.service", "killed", "9"),
            ended("sshd.service", "dumped", "31"),
        ];
        assert_eq!(verdicts(&denials(&others)), [Ok]);
    }

    #[test]
    fn denials_of_others_are_none_of_ours() {
        for (message, verdict) in [
            (
                r#"audit: type=1400 apparmor="DENIED" operation="open" profile="x" name="/a" comm="banger-vmd""#,
                Warn,
            ),
            (
                r#"audit: type=1400 apparmor="DENIED" name="/var/lib/banger/imaged/x" comm="qemu-system-x86""#,
                Warn,
            ),
            (r#"audit: type=1400 apparmor="ALLOWED" comm="banger-vmd""#, Ok),
            (
                r#"audit: type=1400 audit(1:2): avc:  denied  { read } for  pid=1 comm="firecracker" name="x""#,
                Warn,
            ),
            (r#"audit: type=1400 audit(1:2): avc:  denied  { read } for  pid=1 comm="httpd" name="x""#, Ok),
        ] {
            assert_eq!(verdicts(&denials(&[kernel(message)])), [verdict], "{message}");
            let (one, other) = (format!("{message} pid=1"), format!("{message} pid=2"));
            assert_eq!(denials(&[kernel(&one), kernel(&other)]).len(), 1, "{message}");
            let forged = Entry { transport: "syslog".into(), ..kernel(message) };
            assert_eq!(verdicts(&denials(&[forged])), [Ok], "{message}");
        }
    }

    #[test]
    fn memory_that_ran_out_is_told_by_unit() {
        let killed =
            |unit: &str| Entry { message_id: OUT_OF_MEMORY.into(), unit: unit.into(), ..Entry::default() };
        assert_eq!(verdicts(&memory(&[killed("cron.service")])), [Ok]);
        assert_eq!(
            verdicts(&memory(&[killed("banger-vm@a.service"), killed("banger-vm@b.service")])),
            [Warn, Warn]
        );
    }
}
