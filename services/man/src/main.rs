//! The manual of the D-Bus interfaces: banger-dbus(7), and a page for each name on the bus, such as org.banger.Vm1(5); and
//! that of the events, banger-events(7), with the message catalog.
//!
//! `banger-man DBUS DIR` writes a page into DIR for each frame `DBUS/man/PAGE.in`: what people wrote, in the language of man(7), with
//! lines that stand for what is known elsewhere, and `banger.catalog`:
//!
//! | line | stands for | from |
//! |---|---|---|
//! | `@interface NAME@` | methods, properties and signals | `DBUS/interfaces/NAME.xml`, and the access tables |
//! | `@actions@` | polkit's actions and their defaults | `DBUS/polkit` |
//! | `@errors@` | all errors and what they mean | `banger_api::ErrorKind` |
//! | `@events@` | all events, their ids and fields | `banger_core::event` |
//!
//! It is part of the build and not installed.

mod interface;
mod roff;

use std::error::Error;
use std::fs;
use std::path::Path;

use banger_api::ErrorKind;
use banger_core::event::{self, By, journal_field};
use roxmltree::{Document, Node, ParsingOptions};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [dbus, out] = arguments.as_slice() else { return Err("usage: banger-man DBUS DIR".into()) };
    let (dbus, out) = (Path::new(dbus), Path::new(out));
    fs::write(out.join("banger.catalog"), event::catalog())?;
    for entry in fs::read_dir(dbus.join("man"))? {
        let path = entry?.path();
        if let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".in")) {
            let page = page(dbus, &fs::read_to_string(&path)?);
            fs::write(out.join(name), page.map_err(|error| format!("{}: {error}", path.display()))?)?;
        }
    }
    Ok(())
}

/// A frame with what its lines stand for.
fn page(dbus: &Path, frame: &str) -> Result<String> {
    let mut page = String::new();
    for line in frame.lines() {
        match line.strip_prefix('@').and_then(|line| line.strip_suffix('@')) {
            None => page.push_str(&format!("{line}\n")),
            Some("actions") => page.push_str(&actions(dbus)?),
            Some("errors") => page.push_str(&errors()),
            Some("events") => page.push_str(&events()),
            Some(word) => match word.strip_prefix("interface ") {
                Some(name) => page.push_str(&described(dbus, name)?),
                None => return Err(format!("@{word}@ stands for nothing").into()),
            },
        }
    }
    Ok(page)
}

fn described(dbus: &Path, name: &str) -> Result<String> {
    let text = fs::read_to_string(dbus.join("interfaces").join(format!("{name}.xml")))?;
    let document = parse(&text)?;
    let interface = interface::read(&document).ok_or_else(|| format!("{name} is not in its file"))?;
    Ok(roff::interface(&interface))
}

/// polkit's actions, each with who may do it at once: whoever is in the group, and whoever is asked for a password.
fn actions(dbus: &Path) -> Result<String> {
    let text = fs::read_to_string(dbus.join("polkit/org.banger.policy"))?;
    let document = parse(&text)?;
    let actions = document.descendants().filter(|node| node.has_tag_name("action"));
    let shown = actions.map(|action| {
        let text = |tag| {
            action
                .descendants()
                .find(|node| node.has_tag_name(tag))
                .and_then(|node: Node<'_, '_>| node.text())
        };
        let defaults =
            ["allow_active", "allow_inactive", "allow_any"].map(|tag| text(tag).unwrap_or_default());
        let says = format!(
            "{}. Without a rule: `{}` in the session at the seat, `{}` in others there, `{}` elsewhere.",
            text("description").unwrap_or_default(),
            defaults[0],
            defaults[1],
            defaults[2]
        );
        roff::item(action.attribute("id").unwrap_or_default(), &[says])
    });
    Ok(shown.collect())
}

fn errors() -> String {
    ErrorKind::ALL.iter().map(|kind| roff::item(kind.name(), &[kind.meaning().to_owned()])).collect()
}

fn events() -> String {
    let shown = event::KINDS.iter().map(|kind| {
        let fields: Vec<_> = kind.fields.iter().map(|field| format!("`{}=`", journal_field(field))).collect();
        let unit = match kind.by {
            By::Unit => "banger-vm@NAME.service".to_owned(),
            By::Release => {
                "banger-vmd.service, or banger-vm@NAME.service if that cannot be reached".to_owned()
            }
            By::Service(id) => format!("banger-{id}.service"),
            By::AnyService => "the service that it names".to_owned(),
        };
        let says = [
            kind.meaning.trim().to_owned(),
            format!("Fields: {}.", fields.join(", ")),
            format!("`MESSAGE_ID={}`, noted by {unit}.", kind.id),
        ];
        roff::item(kind.name, &says)
    });
    shown.collect()
}

/// D-Bus and polkit name their document types, without which these files mean the same.
fn parse(text: &str) -> Result<Document<'_>> {
    Ok(Document::parse_with_options(text, ParsingOptions { allow_dtd: true, ..ParsingOptions::default() })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn dbus() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dbus")
    }

    #[test]
    fn every_interface_is_on_a_page() {
        let frames = fs::read_dir(dbus().join("man")).expect("lists");
        let frames: Vec<_> =
            frames.map(|frame| fs::read_to_string(frame.expect("lists").path()).expect("reads")).collect();
        let interfaces = fs::read_dir(dbus().join("interfaces")).expect("lists");
        for interface in interfaces {
            let name =
                interface.expect("lists").file_name().into_string().expect("UTF-8").replace(".xml", "");
            let line = format!("@interface {name}@");
            assert_eq!(
                frames.iter().filter(|frame| frame.lines().any(|text| text == line)).count(),
                1,
                "{name}"
            );
        }
        for frame in &frames {
            let page = page(&dbus(), frame).expect("is made");
            assert!(page.starts_with(".TH ") && !page.contains("\n@"), "{page}");
        }
    }

    #[test]
    fn every_error_means_something() {
        let names: BTreeSet<_> = ErrorKind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), ErrorKind::ALL.len());
        for kind in ErrorKind::ALL {
            assert!(!kind.meaning().is_empty(), "{}", kind.name());
        }
    }

    #[test]
    fn frames_say_what_is_known() {
        assert!(page(&dbus(), "@what@").is_err());
        assert!(page(&dbus(), "@interface org.banger.None1@").is_err());
        assert_eq!(page(&dbus(), ".SH NAME\na@b\n").expect("is made"), ".SH NAME\na@b\n");
        assert!(actions(&dbus()).expect("reads").contains("org.banger.vm.manage"));
        let events = events();
        assert_eq!(events.matches("\n.TP\n").count() + 1, event::KINDS.len());
        assert!(events.contains("\\fBvm\\-stopped\\fR\n") && events.contains("\\fBBANGER_REASON=\\fR"));
    }
}
