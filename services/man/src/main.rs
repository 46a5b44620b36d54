//! The manual of what is no command: of the D-Bus interfaces (banger-dbus(7), and a page for each name on the bus, such as
//! org.banger.Vm1(5)), of files, such as banger-netd.conf(5), and of the events, banger-events(7), with the message catalog.
//!
//! `banger-man DBUS FORMATS DIR` writes into DIR `banger.catalog`, a page for each file of FORMATS (see `format`; what is a page
//! already is copied), and one for each frame `DBUS/man/PAGE.in`: what people wrote, in the language of man(7), with lines that
//! stand for what is known elsewhere:
//!
//! | line | stands for | from |
//! |---|---|---|
//! | `@interface NAME@` | methods, properties and signals | `DBUS/interfaces/NAME.xml`, and the access tables |
//! | `@actions@` | polkit's actions and their defaults | `DBUS/polkit` |
//! | `@access@` | who may use each member | the access tables, `DBUS/polkit` |
//! | `@errors@` | all errors and what they mean | `banger_api::ErrorKind` |
//! | `@events@` | all events, their ids and fields | `banger_core::event` |
//!
//! `banger-man members DBUS` prints what there is, for `dbus/released`.
//!
//! It is part of the build and not installed.

mod format;
mod interface;
mod promise;
mod roff;

use std::error::Error;
use std::fs;
use std::path::Path;

use banger_api::{Access, ErrorKind};
use banger_core::event::{self, By, journal_field};
use interface::Interface;
use roxmltree::{Document, Node, ParsingOptions};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if let [verb, dbus] = arguments.as_slice()
        && verb == "members"
    {
        print!("{}", promise::lines(&interfaces(&Path::new(dbus).join("interfaces"))?));
        return Ok(());
    }
    let [dbus, formats, out] = arguments.as_slice() else {
        return Err("usage: banger-man DBUS FORMATS DIR | members DBUS".into());
    };
    let (dbus, formats, out) = (Path::new(dbus), Path::new(formats), Path::new(out));
    fs::write(out.join("banger.catalog"), event::catalog())?;
    for entry in fs::read_dir(formats)? {
        let path = entry?.path();
        let (name, page) = file(&path)?;
        fs::write(out.join(name), page)?;
    }
    for entry in fs::read_dir(dbus.join("man"))? {
        let path = entry?.path();
        if let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".in")) {
            let page = page(dbus, &fs::read_to_string(&path)?);
            fs::write(out.join(name), page.map_err(|error| format!("{}: {error}", path.display()))?)?;
        }
    }
    Ok(())
}

/// The page of a kind of files, and its name.
fn file(path: &Path) -> Result<(String, String)> {
    let text = fs::read_to_string(path)?;
    match path.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".5")) {
        Some(page) => Ok((page.to_owned(), text)),
        None => {
            Ok(format::page(&text)
                .ok_or_else(|| format!("{}: its head is not NAME: WHAT", path.display()))?)
        }
    }
}

/// A frame with what its lines stand for.
fn page(dbus: &Path, frame: &str) -> Result<String> {
    let mut page = String::new();
    for line in frame.lines() {
        match line.strip_prefix('@').and_then(|line| line.strip_suffix('@')) {
            None => page.push_str(&format!("{line}\n")),
            Some("actions") => page.push_str(&actions(dbus)?),
            Some("access") => page.push_str(&access(dbus)?),
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
    let interfaces = interfaces(&dbus.join("interfaces"))?;
    let interface = interfaces.iter().find(|interface| interface.name == name);
    Ok(roff::interface(interface.ok_or_else(|| format!("there is no {name}"))?))
}

/// Those of a directory, by their names.
fn interfaces(directory: &Path) -> Result<Vec<Interface>> {
    let mut interfaces = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "xml") {
            let text = fs::read_to_string(&path)?;
            let interface = interface::read(&parse(&text)?);
            interfaces.push(interface.ok_or_else(|| format!("no interface in {}", path.display()))?);
        }
    }
    interfaces.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(interfaces)
}

/// An action of polkit's.
struct Action {
    id: String,
    description: String,
    /// Who may do it without a rule: in the session at the seat, in others there, elsewhere.
    defaults: [String; 3],
}

fn policy(dbus: &Path) -> Result<Vec<Action>> {
    let text = fs::read_to_string(dbus.join("polkit/org.banger.policy"))?;
    let document = parse(&text)?;
    let actions = document.descendants().filter(|node| node.has_tag_name("action"));
    let read = actions.map(|action| {
        let text = |tag| {
            let node = action.descendants().find(|node| node.has_tag_name(tag));
            node.and_then(|node: Node<'_, '_>| node.text()).unwrap_or_default().to_owned()
        };
        Action {
            id: action.attribute("id").unwrap_or_default().to_owned(),
            description: text("description"),
            defaults: ["allow_active", "allow_inactive", "allow_any"].map(text),
        }
    });
    Ok(read.collect())
}

/// polkit's actions, each with who may do it at once: whoever is in the group, and whoever is asked for a password.
fn actions(dbus: &Path) -> Result<String> {
    let shown = policy(dbus)?.into_iter().map(|Action { id, description, defaults: [active, inactive, any] }| {
        let says = format!(
            "{description}. Without a rule: `{active}` in the session at the seat, `{inactive}` in others there, `{any}` elsewhere."
        );
        roff::item(&id, &[says])
    });
    Ok(shown.collect())
}

/// Who may use a member, in words; the id of the action if it is one.
fn who(interface: &str, member: &str) -> String {
    let words = interface::access(interface, member).into_iter().map(|access| match access {
        Access::Read => "everybody",
        Access::Action(action) => action,
        Access::Internal => "services of banger, root",
        Access::Root => "root",
        Access::Own => "whom the service knows",
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Who may use each member, a table for each interface, with what polkit says at the seat where no rule does.
fn access(dbus: &Path) -> Result<String> {
    let policy = policy(dbus)?;
    let row = |interface: &str, member: &str| {
        let who = who(interface, member);
        let action = policy.iter().find(|action| who.split(", ").any(|word| word == action.id));
        let default = match (action, who.as_str()) {
            (Some(action), _) => &action.defaults[0],
            (None, "everybody") => "yes",
            (None, _) => "no",
        };
        [member.to_owned(), who.clone(), default.to_owned()]
    };
    let members = interface::guarded();
    let tables = members.chunk_by(|one, next| one.0 == next.0).map(|members| {
        let interface = members[0].0;
        let rows: Vec<_> = members.iter().map(|(_, member)| row(interface, member)).collect();
        roff::table(interface, &rows)
    });
    Ok(tables.collect())
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

    pub fn dbus() -> std::path::PathBuf {
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
            assert!(
                page.trim_start_matches("'\\\" t\n").starts_with(".TH ") && !page.contains("\n@"),
                "{page}"
            );
        }
    }

    #[test]
    fn every_member_stands_in_the_table() {
        let table = access(&dbus()).expect("is made");
        for line in [
            "CreateVm\torg.banger.vm.manage\tauth_admin_keep",
            "ListVms\teverybody\tyes",
            "Release\tservices of banger, root\tno",
        ] {
            assert!(table.lines().any(|shown| shown == line), "{line}: {table}");
        }
        let lines = promise::lines(&interfaces(&dbus().join("interfaces")).expect("reads"));
        let columns: Vec<Vec<_>> = lines.lines().map(|line| line.split('\t').collect()).collect();
        for member in &columns {
            assert!(member[1] != "method" || !member[3].is_empty(), "{member:?}");
        }
        let actions: BTreeSet<_> =
            policy(&dbus()).expect("reads").into_iter().map(|action| action.id).collect();
        let used: BTreeSet<String> = columns
            .iter()
            .flat_map(|member| member[3].split(", "))
            .filter(|word| word.starts_with("org."))
            .map(str::to_owned)
            .collect();
        assert_eq!(actions, used);
    }

    #[test]
    fn what_polkit_asks_can_be_translated() {
        let text = fs::read_to_string(dbus().join("polkit/org.banger.policy")).expect("reads");
        let document = parse(&text).expect("parses");
        let shown = document
            .descendants()
            .filter(|node| node.has_tag_name("description") || node.has_tag_name("message"));
        let domains: Vec<_> = shown.map(|node| node.attribute("gettext-domain")).collect();
        assert!(domains.len() >= 6 && domains.iter().all(|domain| *domain == Some("banger")), "{domains:?}");
    }

    /// `busctl call … INTERFACE MEMBER SIGNATURE` and the like in what people read.
    #[test]
    fn examples_fit_the_interfaces() {
        let top = dbus().join("..");
        let listed = [top.clone(), top.join("docs"), dbus().join("man")]
            .map(|path| fs::read_dir(path).expect("lists"));
        let paths = listed.into_iter().flatten().map(|entry| entry.expect("lists").path());
        let all = interfaces(&dbus().join("interfaces")).expect("reads");
        let mut count = 0;
        for path in paths.filter(|path| path.extension().is_some_and(|end| end == "md" || end == "in")) {
            let text = fs::read_to_string(&path).expect("reads").replace("\\-", "-").replace("\\(aq", "'");
            let text = text.replace("\\\\\n", " ").replace("\\\n", " ");
            for line in text.lines().filter_map(|line| line.split_once("busctl ").map(|(_, rest)| rest)) {
                let words: Vec<_> = line
                    .split(['`', ' ', '|'])
                    .filter(|word| !word.is_empty() && !word.starts_with("--"))
                    .collect();
                let [verb @ ("call" | "get-property"), _, _, name, member, rest @ ..] = words.as_slice()
                else {
                    continue;
                };
                let Some(interface) = all.iter().find(|interface| interface.name == *name) else {
                    assert!(!name.starts_with("org.banger."), "{}: {line}", path.display());
                    continue;
                };
                let members = if *verb == "call" { &interface.methods } else { &interface.properties };
                let member = member.trim_end_matches([';', '.', ',']);
                let member = members.iter().find(|one| one.name == member);
                let member = member.unwrap_or_else(|| panic!("{}: {line}", path.display()));
                let takes =
                    member.arguments.iter().filter(|argument| argument.direction.as_deref() == Some("in"));
                let takes: String = takes.map(|argument| argument.signature.as_str()).collect();
                let given = rest.first().map_or("", |word| word.trim_matches('\''));
                assert!(
                    *verb != "call" || given == takes || takes.is_empty(),
                    "{}: {line}: {takes}",
                    path.display()
                );
                count += 1;
            }
        }
        assert!(count >= 10, "{count}");
    }

    #[test]
    fn every_kind_of_files_has_a_page() {
        let formats = dbus().join("../docs/formats");
        for entry in fs::read_dir(formats).expect("lists") {
            let path = entry.expect("lists").path();
            let (name, page) = file(&path).expect("is made");
            assert!(name.starts_with("banger") && name.ends_with(".5"), "{name}");
            assert!(page.starts_with(".TH banger") && page.contains("\n.SH SEE ALSO\n"), "{page}");
            // Nothing was taken for something else.
            assert!(!page.contains("\n#") && !page.contains('`'), "{page}");
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
