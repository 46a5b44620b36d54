//! What an interface has, as the XML of its introspection says, and who may use it.

use banger_api::access::{Access, COMMON, Entry};
use banger_api::{image, network, session, vm};
use roxmltree::{Document, Node};

const EMITS: &str = "org.freedesktop.DBus.Property.EmitsChangedSignal";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub methods: Vec<Member>,
    pub properties: Vec<Member>,
    pub signals: Vec<Member>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    /// Of a property the one that it is.
    pub arguments: Vec<Argument>,
    /// Paragraphs.
    pub says: Vec<String>,
    /// Who may call it; of a property that can be written, who may do that. Services differ where all have it.
    pub access: Vec<Access>,
    /// Of a property, whether it can be written.
    pub writable: bool,
    /// Of a property, how clients hear of its changes: `true`, `invalidates`, `const` or `false`.
    pub emits: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    pub direction: Option<String>,
    /// A D-Bus signature.
    pub signature: String,
    pub name: String,
}

/// The one interface of a document.
pub fn read(document: &Document<'_>) -> Option<Interface> {
    let interface = document.descendants().find(|node| node.has_tag_name("interface"))?;
    let name = interface.attribute("name")?;
    let of = |tag: &str| {
        let members = interface.children().filter(|node| node.has_tag_name(tag));
        members.map(|node| member(name, node)).collect()
    };
    Some(Interface {
        name: name.to_owned(),
        methods: of("method"),
        properties: of("property"),
        signals: of("signal"),
    })
}

fn member(interface: &str, node: Node<'_, '_>) -> Member {
    let name = attribute(node, "name");
    let arguments = match node.attribute("type") {
        Some(signature) => {
            vec![Argument { direction: None, signature: signature.to_owned(), name: name.clone() }]
        }
        None => node.children().filter(|child| child.has_tag_name("arg")).map(argument).collect(),
    };
    let writable = node.attribute("access").is_some_and(|access| access.contains("write"));
    let access = if node.has_tag_name("method") || writable { access(interface, &name) } else { Vec::new() };
    let emits = node.children().find(|child| child.attribute("name") == Some(EMITS));
    let emits = emits.map_or("true".to_owned(), |annotation| attribute(annotation, "value"));
    Member { arguments, says: comment(node), access, writable, emits, name }
}

fn argument(node: Node<'_, '_>) -> Argument {
    Argument {
        direction: node.attribute("direction").map(str::to_owned),
        signature: attribute(node, "type"),
        name: attribute(node, "name"),
    }
}

fn attribute(node: Node<'_, '_>, name: &str) -> String {
    node.attribute(name).unwrap_or_default().to_owned()
}

/// The paragraphs of the comment that comes right before.
fn comment(node: Node<'_, '_>) -> Vec<String> {
    let before = node.prev_siblings().skip(1).find(|node| !node.is_text());
    let text = before.filter(Node::is_comment).and_then(|comment| comment.text()).unwrap_or_default();
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    lines
        .split(|line| line.is_empty())
        .map(|lines| lines.join(" "))
        .filter(|lines| !lines.is_empty())
        .collect()
}

/// All members that have an access, each once, those of an interface together.
pub fn guarded() -> Vec<(&'static str, &'static str)> {
    let mut members = Vec::new();
    for (interface, member, _) in entries() {
        if !members.contains(&(*interface, *member)) {
            members.push((*interface, *member));
        }
    }
    members.sort_by_key(|(interface, _)| *interface);
    members
}

pub fn access(interface: &str, member: &str) -> Vec<Access> {
    let entries = entries().filter(|(of, name, _)| (*of, *name) == (interface, member));
    let mut access: Vec<_> = entries.map(|(.., access)| *access).collect();
    access.dedup();
    access
}

fn entries() -> impl Iterator<Item = &'static Entry> {
    let tables: [&[Entry]; 5] = [vm::ACCESS, image::ACCESS, network::ACCESS, session::ACCESS, COMMON];
    tables.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = r#"<node><interface name="org.banger.Vm1.Manager">
        <!--
         Creates
         a VM.

         Options: none.
         -->
        <method name="CreateVm">
          <arg name="name" type="s" direction="in"/>
          <arg name="job" type="o" direction="out"/>
        </method>
        <!-- Not of this. -->
        <property name="Version" type="s" access="read"/>
        <signal name="VmNew"><arg name="name" type="s"/></signal>
    </interface></node>"#;

    #[test]
    fn members_are_read_with_what_is_said_of_them() {
        let interface = read(&Document::parse(XML).expect("parses")).expect("is there");
        let argument = |direction: Option<&str>, signature: &str, name: &str| Argument {
            direction: direction.map(str::to_owned),
            signature: signature.into(),
            name: name.into(),
        };
        let [create] = interface.methods.as_slice() else { panic!("{interface:?}") };
        assert_eq!(create.says, ["Creates a VM.", "Options: none."]);
        assert_eq!(create.arguments, [argument(Some("in"), "s", "name"), argument(Some("out"), "o", "job")]);
        assert_eq!(create.access, [Access::Action("org.banger.vm.manage")]);
        assert_eq!(interface.properties[0].says, ["Not of this."]);
        assert_eq!(interface.properties[0].access, []);
        assert_eq!(interface.signals[0].arguments, [argument(None, "s", "name")]);
        assert!(interface.signals[0].says.is_empty());
    }
}
