//! The journal of this boot.

use serde_json::Value;

use super::super::checks::journal::{OUT_OF_MEMORY, UNIT_PROCESS_EXIT};
use super::super::facts::{Entry, Seen, Unseen};
use crate::journal;

/// What is read of each line.
const FIELDS: &str = "MESSAGE,MESSAGE_ID,UNIT,EXIT_CODE,EXIT_STATUS,_TRANSPORT";

/// The ends of processes that systemd tells of, and the words of the kernel.
pub async fn entries() -> Seen<Vec<Entry>> {
    if !journal::is_readable() {
        return Err(unseen(
            "only root and the groups adm and systemd-journal read the journal of the system",
        ));
    }
    let process_exit = format!("MESSAGE_ID={UNIT_PROCESS_EXIT}");
    let out_of_memory = format!("MESSAGE_ID={OUT_OF_MEMORY}");
    let output = journal::reader(FIELDS)
        .args([
            "--boot",
            "_PID=1",
            &process_exit,
            "+",
            "_PID=1",
            &out_of_memory,
            "+",
            "_TRANSPORT=kernel",
            "+",
            "_TRANSPORT=audit",
        ])
        .output()
        .await
        .map_err(|error| unseen(&format!("cannot run journalctl: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(unseen(&format!("journalctl failed: {}", said.trim())));
    }
    let lines = output.stdout.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).map(|line| entry(&line)).collect())
}

fn unseen(what: &str) -> Unseen {
    Unseen { what: what.to_owned(), remedy: "sudo banger doctor".into() }
}

/// A line; a field that is no text is not looked at.
fn entry(line: &Value) -> Entry {
    let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
    Entry {
        message: text("MESSAGE"),
        message_id: text("MESSAGE_ID"),
        unit: text("UNIT"),
        exit_code: text("EXIT_CODE"),
        exit_status: text("EXIT_STATUS"),
        transport: text("_TRANSPORT"),
    }
}
