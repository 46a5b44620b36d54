//! What the VMM tells of itself by named pipes, brought to the journal of the VM's unit: its log
//! with the levels, and of its counters those that tell of trouble, whenever there is some.
//!
//! A VMM may have been taken over by its guest: lines are short, and what has not their form is
//! cleaned or dropped.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::thread;

use banger_vmm::{LOG_PIPE, METRICS_PIPE};
use libsystemd::logging::Priority;
use serde_json::Value;

/// The longest line that is read, in bytes. A VM with many disks has some thousands of counters.
const MAX_LINE: u64 = 256 << 10;

/// How much of a message, or of a list of counters, is passed on.
const MAX_TEXT: usize = 2000;

/// Words in the names of counters that nobody wants to see counting.
const TROUBLE: &[&str] = &[
    "denied",
    "dropped",
    "err",
    "error",
    "errors",
    "fail",
    "failed",
    "fails",
    "failures",
    "fault",
    "faults",
    "invalid",
    "malformed",
    "missed",
    "panic",
    "spoofed",
    "throttled",
];

/// What is passed on.
type Line = (Priority, String);

/// Follows the pipes that there are, for as long as this process lives.
pub fn follow(runtime_dir: &Path) {
    follow_lines(runtime_dir.join(LOG_PIPE), entry);
    follow_lines(runtime_dir.join(METRICS_PIPE), troubles);
}

fn follow_lines(pipe: PathBuf, told: fn(&str) -> Option<Line>) {
    if !pipe.exists() {
        return;
    }
    thread::spawn(move || {
        let followed = open(&pipe).and_then(|pipe| print_lines(pipe, told));
        if let Err(error) = followed {
            crate::warn(&format!("{} is not followed any longer: {error}", pipe.display()));
        }
    });
}

/// For writing as well, so that there is no end to read before the VMM has opened it.
fn open(pipe: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(pipe)
}

fn print_lines(pipe: impl Read, told: fn(&str) -> Option<Line>) -> std::io::Result<()> {
    let mut lines = BufReader::new(pipe);
    loop {
        let mut line = Vec::new();
        if lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if let Some((priority, text)) = told(String::from_utf8_lossy(&line).trim_end()) {
            crate::log(priority, &text, []);
        }
    }
}

/// An entry of the log, with the level of syslog(3). The journal has a clock of its own.
fn entry(line: &str) -> Option<Line> {
    let known = || {
        let (origin, message) = line.split_once(" [")?.1.split_once("] ")?;
        let level = match origin.rsplit(':').next()? {
            "ERROR" => Priority::Error,
            "WARN" => Priority::Warning,
            "INFO" => Priority::Info,
            "DEBUG" | "TRACE" => Priority::Debug,
            _ => return None,
        };
        Some((level, message))
    };
    // More lines of a message have none of this in front.
    let (level, message) = known().unwrap_or((Priority::Notice, line));
    let message = clean(message, MAX_TEXT);
    (!message.is_empty()).then(|| (level, format!("vmm: {message}")))
}

/// The counters of the last minute that tell of trouble, if any does.
fn troubles(line: &str) -> Option<Line> {
    let metrics: Value = serde_json::from_str(line).ok()?;
    let mut found = Vec::new();
    collect("", &metrics, &mut found);
    let list = clean(&found.join(" "), MAX_TEXT);
    (!list.is_empty()).then(|| (Priority::Warning, format!("vmm: trouble in the last minute: {list}")))
}

fn collect(path: &str, metrics: &Value, found: &mut Vec<String>) {
    for (name, value) in metrics.as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match value.as_u64() {
            None => collect(&path, value, found),
            Some(0) => {}
            Some(count) if name.split('_').any(|word| TROUBLE.contains(&word)) => {
                found.push(format!("{path}={count}"));
            }
            Some(_) => {}
        }
    }
}

/// What can be printed of a text, but no more than `limit` characters.
pub fn clean(text: &str, limit: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the level as syslog(3) counts it.
    fn shown(line: Option<Line>) -> Option<String> {
        line.map(|(level, text)| format!("<{}>{text}", u8::from(level)))
    }

    #[test]
    fn entries_have_the_level_of_the_log() {
        let entry = |line| shown(super::entry(line)).expect("an entry");
        let line = "2026-01-02T03:04:05.678901234 [web:fc_vcpu 0:WARN] a [b:c] d";
        assert_eq!(entry(line), "<4>vmm: a [b:c] d");
        assert_eq!(entry("2026 [web:main:ERROR] no\u{1b}[31m disk"), "<3>vmm: no[31m disk");
        assert_eq!(entry("   at src/lib.rs:3"), "<5>vmm:    at src/lib.rs:3");
        assert_eq!(shown(super::entry("")), None);
    }

    #[test]
    fn a_line_cannot_choose_its_level_or_length() {
        assert_eq!(shown(entry("<0>emergency")), Some("<5>vmm: <0>emergency".into()));
        assert!(entry(&"x".repeat(5000)).is_some_and(|(_, text)| text.len() < 2100));
    }

    #[test]
    fn counters_are_told_if_they_tell_of_trouble() {
        let line = r#"{"utc_timestamp_ms": 1, "net_network": {"tx_fails": 2, "tx_count": 9, "rx_fails": 0},
            "vcpu": {"failures": 1, "exit_io_in_agg": {"max_us": 7}}, "uart": {"interrupt_count": 5}}"#;
        assert_eq!(
            shown(troubles(line)).as_deref(),
            Some("<4>vmm: trouble in the last minute: net_network.tx_fails=2 vcpu.failures=1")
        );
        assert_eq!(shown(troubles(r#"{"vcpu": {"failures": 0}}"#)), None);
        for line in ["", "[]", "7", "{\"fails\": "] {
            assert_eq!(shown(troubles(line)), None, "{line}");
        }
    }
}
