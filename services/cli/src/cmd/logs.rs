//! `banger logs`: what the unit of a VM has said, its guest's console and its VMM, as the journal has it.

use std::fmt::Write;

use banger_api::{Error, ErrorKind, Result};
use banger_core::name::VmName;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::output::{print, utc};
use crate::{Context, args, journal};

pub async fn logs(context: &Context, arguments: args::Logs) -> Result<()> {
    let vm = VmName::new(&arguments.vm).map_err(|error| ErrorKind::InvalidArgs.error(error.to_string()))?;
    let (follow, timestamps) = (arguments.range.follow, arguments.timestamps);
    if follow {
        exists(context, &vm).await?;
    }
    let mut silent = true;
    let show = |entry: &Map<String, Value>| {
        let Some(said) = Said::read(entry) else { return Ok(()) };
        silent = false;
        match context.output.json {
            true => context.output.line(&serde_json::to_string(&said).map_err(Error::internal)?),
            false => print(&said.text(timestamps)),
        }
        Ok(())
    };
    journal::read("MESSAGE", &selection(&arguments, &vm), show).await?;
    // The journal knows VMs that are gone, too; of one that never was it says nothing.
    if silent && !follow { exists(context, &vm).await } else { Ok(()) }
}

async fn exists(context: &Context, vm: &VmName) -> Result<()> {
    Ok(context.bus.vms().await?.get_vm(vm.as_str()).await.map(drop)?)
}

/// What of the journal is wanted, for journalctl(1).
fn selection(arguments: &args::Logs, vm: &VmName) -> Vec<String> {
    [journal::options(&arguments.range), vec![format!("_SYSTEMD_UNIT={}", vm.unit())]].concat()
}

/// An entry, as `--json` shows it.
#[derive(Debug, PartialEq, Serialize)]
struct Said {
    time: String,
    time_usec: u64,
    message: String,
}

impl Said {
    fn read(entry: &Map<String, Value>) -> Option<Self> {
        let time_usec = entry.get("__REALTIME_TIMESTAMP")?.as_str()?.parse().ok()?;
        Some(Self {
            time: utc(time_usec),
            time_usec,
            message: printable(&journal::text(entry.get("MESSAGE")?)?),
        })
    }

    fn text(&self, timestamps: bool) -> String {
        let mut text = String::new();
        for line in self.message.split('\n') {
            // Writing to a string cannot fail.
            let _ = match timestamps {
                true => writeln!(text, "{} {line}", self.time),
                false => writeln!(text, "{line}"),
            };
        }
        text
    }
}

/// A guest may write what it likes to its console, and a terminal would do it.
fn printable(text: &str) -> String {
    let lines = text.lines().map(|line| {
        line.trim_end().chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c }).collect()
    });
    lines.collect::<Vec<String>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::args::Range;

    fn said(message: Value) -> Said {
        let entry = json!({"__REALTIME_TIMESTAMP": "1709251199500000", "MESSAGE": message});
        Said::read(entry.as_object().expect("an object")).expect("said")
    }

    #[test]
    fn guests_do_not_write_to_terminals() {
        assert_eq!(said(json!("[  OK  ]\tReached\r")).text(false), "[  OK  ]\tReached\n");
        // What is no text to journald is a list of bytes.
        let escape = said(json!([27, b'[', b'2', b'J', b'h', b'i', 255]));
        assert_eq!(escape.text(false), " [2Jhi\u{fffd}\n");
        assert_eq!(
            said(json!("a\nb")).text(true),
            "2024-02-29T23:59:59.500000Z a\n2024-02-29T23:59:59.500000Z b\n"
        );
        assert_eq!(said(json!("")).text(false), "\n");
        assert_eq!(Said::read(&Map::new()), None);
    }

    #[test]
    fn journalctl_selects_the_unit() {
        let arguments = args::Logs {
            range: Range { follow: true, since: Some("-1h".into()), until: None, lines: Some(3) },
            timestamps: false,
            vm: "web".into(),
        };
        let vm = VmName::new("web").expect("valid");
        assert_eq!(
            selection(&arguments, &vm),
            ["--follow", "--since=-1h", "--lines=3", "_SYSTEMD_UNIT=banger-vm@web.service"]
        );
    }
}
