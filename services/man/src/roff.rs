//! Text in the language of man(7).

use banger_api::access::Access;

use crate::interface::{Argument, Interface, Member};

/// An interface: its methods, properties and signals, as sections below one of its own.
pub fn interface(interface: &Interface) -> String {
    let mut text = format!(".SH {}\n", escape(&interface.name));
    for (title, members) in [
        ("Methods", &interface.methods),
        ("Properties", &interface.properties),
        ("Signals", &interface.signals),
    ] {
        if !members.is_empty() {
            text.push_str(&format!(".SS {title}\n"));
            text.extend(members.iter().map(|member| item_of(title, member)));
        }
    }
    text
}

fn item_of(title: &str, member: &Member) -> String {
    let head = match (title, member.arguments.as_slice()) {
        ("Properties", [argument]) => format!("{} {}", bold(&member.name), escape(&argument.signature)),
        (_, arguments) => {
            let arguments: Vec<_> = arguments.iter().map(argument).collect();
            format!("{}({})", bold(&member.name), arguments.join(", "))
        }
    };
    let mut says: Vec<String> = member.says.clone();
    says.extend(needs(&member.access));
    entry(&head, &says)
}

fn argument(argument: &Argument) -> String {
    let direction = argument.direction.as_ref().map(|direction| format!("{direction} ")).unwrap_or_default();
    format!("{direction}{} \\fI{}\\fR", escape(&argument.signature), escape(&argument.name))
}

/// What is said of who may use a member, where not everybody may.
fn needs(access: &[Access]) -> Option<String> {
    let whom: Vec<_> = access.iter().filter_map(|access| whom(*access)).collect();
    if whom.is_empty() { None } else { Some(format!("For {}.", whom.join(" or "))) }
}

fn whom(access: Access) -> Option<String> {
    match access {
        Access::Read => None,
        Access::Action(action) => Some(format!("callers with `{action}`")),
        Access::Internal => Some("the services of banger, and root".into()),
        Access::Root => Some("root".into()),
        Access::Own => Some("those whom the service itself lets in".into()),
    }
}

/// A table with a title, for tbl(1).
pub fn table<const COLUMNS: usize>(title: &str, rows: &[[String; COLUMNS]]) -> String {
    let line = |row: &[String; COLUMNS]| format!("{}\n", row.each_ref().map(|cell| escape(cell)).join("\t"));
    let rows: String = rows.iter().map(line).collect();
    format!(".PP\n{}\n.TS\n{}.\n{rows}.TE\n", bold(title), ["l"; COLUMNS].join(" "))
}

/// A term and paragraphs about it.
pub fn item(term: &str, says: &[String]) -> String {
    entry(&bold(term), says)
}

fn entry(head: &str, says: &[String]) -> String {
    let paragraphs: Vec<_> = says.iter().map(|text| prose(text)).collect();
    // A term that nothing is said of still needs a line.
    let text = if paragraphs.is_empty() { "\\&".to_owned() } else { paragraphs.join("\n.sp\n") };
    format!(".TP\n{head}\n{text}\n")
}

pub fn bold(text: &str) -> String {
    format!("\\fB{}\\fR", escape(text))
}

/// What is between backticks is bold.
pub fn prose(text: &str) -> String {
    let parts = text.split('`').enumerate();
    let text: String =
        parts.map(|(number, part)| if number % 2 == 1 { bold(part) } else { escape(part) }).collect();
    // A line that begins like a request is none.
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

pub fn escape(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_look_as_they_are_called() {
        let argument = |direction: Option<&str>, signature: &str, name: &str| Argument {
            direction: direction.map(str::to_owned),
            signature: signature.into(),
            name: name.into(),
        };
        let member = |name: &str, arguments| Member {
            name: name.into(),
            arguments,
            says: vec!["One.".into(), ".two `a-b`".into()],
            access: vec![Access::Root],
            writable: false,
            emits: "true".into(),
        };
        let shown = interface(&Interface {
            name: "org.banger.X1".into(),
            methods: vec![member(
                "Do",
                vec![argument(Some("in"), "a{sv}", "options"), argument(Some("out"), "s", "name")],
            )],
            properties: vec![Member { access: vec![], ..member("Is", vec![argument(None, "b", "Is")]) }],
            signals: vec![],
        });
        assert_eq!(
            shown,
            ".SH org.banger.X1\n.SS Methods\n.TP\n\\fBDo\\fR(in a{sv} \\fIoptions\\fR, out s \\fIname\\fR)\n\
             One.\n.sp\n\\&.two \\fBa\\-b\\fR\n.sp\nFor root.\n\
             .SS Properties\n.TP\n\\fBIs\\fR b\nOne.\n.sp\n\\&.two \\fBa\\-b\\fR\n"
        );
    }
}
