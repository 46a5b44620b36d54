//! When a VM's start reached which stage.
//!
//! Of a start, `banger-launch` writes a file [`FILE`] into the VM's runtime directory: one line per
//! stage when it begins, `MICROSECONDS STAGE`, with the time since 1970. The VMM could write it,
//! too, so whoever reads it takes nothing for granted.

use crate::guest;

/// Name of the file.
pub const FILE: &str = "timeline";

/// The longest file that is read, in bytes.
pub const MAX_FILE: u64 = 4096;

/// vmd is asked to start the VM. Missing when somebody else starts the unit.
pub const REQUEST: &str = "request";
/// systemd has set up the unit, and its first process runs.
pub const UNIT: &str = "unit";
/// vmd looks whether the VM can start, leases its image, and opens its disks.
pub const PREPARE: &str = "prepare";
/// netd makes the TAP.
pub const NETWORK: &str = "network";
/// What the VMM needs beside itself is written and started.
pub const HELPERS: &str = "helpers";
/// The VMM is executed.
pub const VMM: &str = "vmm";
/// The VMM loads a snapshot.
pub const RESTORE: &str = "restore";
/// The guest's kernel runs.
pub const KERNEL: &str = "kernel";
/// The guest is ready: the end.
pub const READY: &str = "ready";

/// All stages in their order; between the kernel and the end come the guest's own. A start goes
/// through the snapshot, or through the kernel and what follows it.
pub const STAGES: [&str; 13] = [
    REQUEST,
    UNIT,
    PREPARE,
    NETWORK,
    HELPERS,
    VMM,
    RESTORE,
    KERNEL,
    guest::STAGES[0],
    guest::STAGES[1],
    guest::STAGES[2],
    guest::STAGES[3],
    READY,
];

/// The line of a stage that begins at `usec`.
pub fn line(stage: &str, usec: u64) -> String {
    format!("{usec} {stage}\n")
}

/// The known stages of a file in their order, each once, none before an earlier one.
pub fn parse(text: &str) -> Vec<(&'static str, u64)> {
    let lines: Vec<(u64, &str)> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(usec, stage)| Some((usec.parse().ok()?, stage)))
        .collect();
    let mut latest = 0;
    let mut timeline = Vec::new();
    for stage in STAGES {
        if let Some((usec, _)) = lines.iter().find(|(_, found)| *found == stage) {
            latest = latest.max(*usec);
            timeline.push((stage, latest));
        }
    }
    timeline
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let written: Vec<(&str, u64)> = STAGES.into_iter().zip(10..).collect();
        let text: String = written.iter().map(|(stage, usec)| line(stage, *usec)).collect();
        assert_eq!(parse(&text), written);
        assert!(text.len() as u64 * 4 < MAX_FILE);
    }

    #[test]
    fn nonsense_does_no_harm() {
        // The kernel's time is worked out from what the guest says, and comes after the agent's.
        let text = "5 unit\n20 agent\n1 kernel\n99 agent\nx vmm\n7\n7 rm -rf\n8 vmm\n30 ready";
        assert_eq!(parse(text), [("unit", 5), ("vmm", 8), ("kernel", 8), ("agent", 20), ("ready", 30)]);
        assert_eq!(parse("\0\n \n-1 unit\n"), []);
    }
}
