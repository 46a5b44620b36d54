//! The journal, by journalctl(1): it has no interface on the bus.

use std::process::Stdio;

use banger_api::{Error, ErrorKind, Result};
use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

use crate::args::Range;

/// Whether there is a journal of the system, and it can be read.
pub fn is_readable() -> bool {
    ["/var/log/journal", "/run/log/journal"].into_iter().any(|root| {
        let machines = std::fs::read_dir(root).into_iter().flatten().flatten();
        machines.into_iter().any(|machine| std::fs::File::open(machine.path().join("system.journal")).is_ok())
    })
}

/// The options of journalctl(1) for a range.
pub fn options(range: &Range) -> Vec<String> {
    let Range { follow, since, until, lines } = range;
    let lines = lines.map(|lines| lines.to_string());
    let values = [("since", since), ("until", until), ("lines", &lines)];
    let values =
        values.into_iter().filter_map(|(option, value)| Some(format!("--{option}={}", value.as_ref()?)));
    follow.then(|| "--follow".to_owned()).into_iter().chain(values).collect()
}

/// Reads the entries that are selected, with these fields, one after the other.
///
/// # Errors
/// `AccessDenied` if the journal cannot be read, `InvalidArgs` if journalctl does not take the selection, and what `take` says.
pub async fn read(
    fields: &str,
    selection: &[String],
    mut take: impl FnMut(&Map<String, Value>) -> Result<()>,
) -> Result<()> {
    if !is_readable() {
        return Err(unreadable());
    }
    let mut child = reader(fields)
        .args(selection)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Error::internal(format!("cannot run journalctl: {error}")))?;
    let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(Error::internal("journalctl has no output"));
    };
    let mut lines = BufReader::new(stdout).split(b'\n');
    while let Some(line) = lines.next_segment().await? {
        if let Ok(entry) = serde_json::from_slice(&line) {
            take(&entry)?;
        }
    }
    let mut said = String::new();
    stderr.read_to_string(&mut said).await?;
    match child.wait().await?.success() {
        true => Ok(()),
        false => Err(ErrorKind::InvalidArgs.error(format!("journalctl failed: {}", said.trim()))),
    }
}

/// A field's value: a string, or the bytes of what journald takes for none.
pub fn text(value: &Value) -> Option<String> {
    if let Value::Array(bytes) = value {
        let bytes: Option<Vec<u8>> = bytes.iter().map(|byte| byte.as_u64()?.try_into().ok()).collect();
        return Some(String::from_utf8_lossy(&bytes?).into_owned());
    }
    value.as_str().map(str::to_owned)
}

/// journalctl(1), giving entries as JSON without remarks on standard error, each with these fields.
pub fn reader(fields: &str) -> Command {
    let mut command = Command::new("journalctl");
    command.args(["--quiet", "--all", "--output=json", "--output-fields", fields]);
    command
}

pub fn unreadable() -> banger_api::Error {
    ErrorKind::AccessDenied.error(
        "only root and the groups systemd-journal and adm read the journal of the system: use sudo, or let an admin \
         add you to one of them (usermod -aG systemd-journal)",
    )
}
