//! `banger events`: what has happened, and what happens, as the journal has it.
//!
//! The services note each event there once (`banger_core::event`). So there is one source for the past and for what
//! comes, nothing is missing while a service is away, and none has to stay for whoever listens.

use std::collections::BTreeMap;

use banger_api::{Error, Result};
use banger_core::event::{KINDS, Kind, journal_field};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::output::utc;
use crate::{Context, args, journal};

/// Fields that are numbers.
const NUMBERS: [&str; 4] = ["bytes", "job", "signal", "status"];

pub async fn events(context: &Context, arguments: args::Events) -> Result<()> {
    let show = |entry: &Map<String, Value>| {
        if let Some(event) = Noted::read(entry) {
            context.output.line(&match context.output.json {
                true => serde_json::to_string(&event).map_err(Error::internal)?,
                false => event.line(),
            });
        }
        Ok(())
    };
    journal::read(&fields(), &selection(&arguments), show).await
}

/// All fields that are read.
fn fields() -> String {
    let mut fields: Vec<String> =
        KINDS.iter().flat_map(|kind| kind.fields).map(|field| journal_field(field)).collect();
    fields.push(journal_field("job"));
    fields.sort_unstable();
    fields.dedup();
    fields.extend(["MESSAGE", "MESSAGE_ID", "_SYSTEMD_UNIT"].map(str::to_owned));
    fields.join(",")
}

/// What of the journal is wanted, for journalctl(1).
fn selection(arguments: &args::Events) -> Vec<String> {
    let mut selection = journal::options(&arguments.range);
    let wanted = |kind: &&Kind| {
        arguments.events.is_empty() || arguments.events.iter().any(|event| kind.is_called(event))
    };
    // Several of one field are alternatives.
    selection.extend(KINDS.iter().filter(wanted).map(|kind| format!("MESSAGE_ID={}", kind.id)));
    selection.extend(arguments.vms.iter().map(|vm| format!("BANGER_VM={vm}")));
    selection
}

/// An event, as `--json` shows it.
#[derive(Debug, PartialEq, Serialize)]
struct Noted {
    time: String,
    time_usec: u64,
    /// Of the host, which tells of one that ended without a word.
    boot: String,
    event: &'static str,
    message: String,
    #[serde(flatten)]
    fields: BTreeMap<&'static str, Value>,
}

impl Noted {
    /// From an entry in the journal. Nothing, if it is not of banger's.
    fn read(entry: &Map<String, Value>) -> Option<Self> {
        // What is there twice, or no text, is no string here.
        let text = |field: &str| entry.get(field).and_then(Value::as_str).unwrap_or_default();
        let kind = Kind::of_id(text("MESSAGE_ID"))?;
        let named = |field: &str| text(&journal_field(field));
        if !kind.is_noted_by(text("_SYSTEMD_UNIT"), named) {
            return None;
        }
        let value = |field: &&'static str| {
            let text = named(field);
            let number = NUMBERS.contains(field).then(|| text.parse().ok()).flatten();
            let value = number.map_or_else(|| Value::from(text), |number: u64| Value::from(number));
            (!text.is_empty()).then_some((*field, value))
        };
        let time_usec = text("__REALTIME_TIMESTAMP").parse().ok()?;
        Some(Self {
            time: utc(time_usec),
            time_usec,
            boot: text("_BOOT_ID").to_owned(),
            event: kind.name,
            message: text("MESSAGE").to_owned(),
            fields: kind.fields.iter().chain(&["job"]).filter_map(value).collect(),
        })
    }

    /// Time, what, whom it is about, and the rest.
    fn line(&self) -> String {
        let shown = |field: &str| match self.fields.get(field) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        // What it happens to is what its name begins with; within a VM the VM is told first.
        let about = self.event.split('-').next().unwrap_or_default();
        let subject: &[&str] = match about {
            "lease" => &["vm"],
            "job" => &["service", "job"],
            "image" if !self.fields.contains_key("image") => &["id"],
            "session" | "snapshot" => &["vm", about],
            _ => &[about],
        };
        let parts: Vec<String> = subject.iter().map(|field| shown(field)).collect();
        let details: Vec<String> = self
            .fields
            .keys()
            .filter(|field| !subject.contains(field))
            .map(|field| format!("{field}={}", quoted(&shown(field))))
            .collect();
        let line = format!("{}  {:17}  {:20}  {}", self.time, self.event, parts.join("/"), details.join(" "));
        line.trim_end().to_owned()
    }
}

/// In quotes if it is more than a word.
fn quoted(text: &str) -> String {
    let is_word = !text.is_empty() && text.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '"');
    if is_word { text.to_owned() } else { format!("{text:?}") }
}

#[cfg(test)]
mod tests {
    use banger_core::event::Event;
    use serde_json::json;

    use super::*;

    /// What journalctl would give of an event that this unit noted.
    fn entry(event: &Event<'_>, unit: &str) -> Map<String, Value> {
        let mut entry: Map<String, Value> =
            event.fields().into_iter().map(|(field, value)| (field, Value::from(value))).collect();
        entry.insert("MESSAGE".into(), event.message().into());
        entry.insert("__REALTIME_TIMESTAMP".into(), "1709251199500000".into());
        entry.insert("_BOOT_ID".into(), "b".into());
        entry.insert("_SYSTEMD_UNIT".into(), unit.into());
        entry
    }

    fn read(event: &Event<'_>, unit: &str) -> Noted {
        Noted::read(&entry(event, unit)).expect("an event")
    }

    const STOPPED: Event<'_> = Event::VmStopped { vm: "web", reason: "the guest rebooted" };

    #[test]
    fn events_are_lines_for_people() {
        let error = "no \"such\"\nimage";
        let lines = [
            read(&Event::VmReady { vm: "web" }, "banger-vm@web.service"),
            read(&STOPPED, "banger-vmd.service"),
            read(&Event::VmCreated { vm: "web2", image: "debian:12", from: "web" }, "banger-vmd.service"),
            read(&Event::ImageDeleted { id: "4d5e" }, "banger-imaged.service"),
            read(&Event::LeaseAcquired { vm: "web", address: "10.209.0.2" }, "banger-netd.service"),
            read(
                &Event::SessionEnded { vm: "web", session: "top", status: "", signal: "9" },
                "banger-sessiond.service",
            ),
            read(
                &Event::JobEnded {
                    job: "7",
                    service: "imaged",
                    work: "pull",
                    subject: "x",
                    result: "failed",
                    error,
                },
                "banger-imaged.service",
            ),
        ];
        insta::assert_snapshot!(lines.map(|event| event.line()).join("\n"));
    }

    #[test]
    fn events_are_objects_for_programs() {
        let event = Event::SessionEnded { vm: "web", session: "top", status: "7", signal: "" };
        let mut entry = entry(&event, "banger-sessiond.service");
        entry.insert("BANGER_JOB".into(), "12".into());
        let shown = serde_json::to_value(Noted::read(&entry)).expect("JSON");
        let expected = json!({
            "time": "2024-02-29T23:59:59.500000Z",
            "time_usec": 1_709_251_199_500_000_u64,
            "boot": "b",
            "event": "session-ended",
            "message": "Session top in VM web has ended",
            "vm": "web",
            "session": "top",
            "status": 7,
            "job": 12,
        });
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_others_write_is_no_event() {
        assert_eq!(Noted::read(&entry(&STOPPED, "user@1000.service")), None);
        assert_eq!(Noted::read(&entry(&STOPPED, "banger-vm@db.service")), None);
        // What a VMM says in its unit has the unit's own name as well.
        let mut twice = entry(&Event::VmReady { vm: "web" }, "banger-vm@web.service");
        twice.insert("BANGER_VM".into(), json!(["web", "db"]));
        assert_eq!(Noted::read(&twice), None);
        assert_eq!(Noted::read(&Map::new()), None);
    }

    #[test]
    fn journalctl_selects() {
        let all = selection(&args::Events::default());
        assert_eq!(all.len(), KINDS.len());
        let some = args::Events {
            range: args::Range { follow: true, lines: Some(3), ..args::Range::default() },
            vms: vec!["web".into()],
            events: vec!["snapshot".into(), "vm-ready".into()],
        };
        assert_eq!(
            selection(&some),
            [
                "--follow",
                "--lines=3",
                "MESSAGE_ID=0d9ac3c08b5d47eeb6b5b2c768fba3c5",
                "MESSAGE_ID=fadce6c0632648adba175e214780d421",
                "MESSAGE_ID=9fb012a804aa43c099842f4258bc5ce6",
                "BANGER_VM=web",
            ]
        );
    }
}
