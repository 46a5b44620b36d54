//! What a release of banger serves, later ones serve as well: what has become of that.
//!
//! `dbus/released` is what the last release had: its interfaces, and who might use them. Members may come, and be
//! open to more callers; what clients could do must not go.

use crate::interface::{Interface, Member};

/// What a client of the interfaces before would miss in those after.
pub fn broken(before: &[Interface], after: &[Interface]) -> Vec<String> {
    let mut broken = Vec::new();
    for old in before {
        let Some(new) = after.iter().find(|new| new.name == old.name) else {
            broken.push(format!("{} is gone", old.name));
            continue;
        };
        for (old_members, new_members) in
            [(&old.methods, &new.methods), (&old.properties, &new.properties), (&old.signals, &new.signals)]
        {
            for member in old_members {
                let counterpart = new_members.iter().find(|other| other.name == member.name);
                let reason = counterpart.map_or(Some("is gone".into()), |other| changed(member, other));
                broken.extend(reason.map(|reason| format!("{}.{} {reason}", old.name, member.name)));
            }
        }
    }
    broken
}

fn changed(old: &Member, new: &Member) -> Option<String> {
    if old.arguments != new.arguments {
        let show = |member: &Member| {
            let arguments = member.arguments.iter().map(|argument| {
                let direction = argument.direction.as_deref().unwrap_or_default();
                format!("{direction} {} {}", argument.signature, argument.name).trim().to_owned()
            });
            arguments.collect::<Vec<_>>().join(", ")
        };
        return Some(format!("was ({}) and is ({})", show(old), show(new)));
    }
    if old.writable && !new.writable {
        return Some("can no longer be written".into());
    }
    // Nobody waits for what was not told, and whoever asks again when told of a change needs no value.
    match (old.emits.as_str(), new.emits.as_str()) {
        ("false", _) | ("invalidates", "true") => None,
        (before, after) if before == after => None,
        (before, after) => Some(format!("told of its changes as \"{before}\" and does as \"{after}\"")),
    }
}

/// What fewer callers may use than before, by lines of MEMBER WHO with a tab between.
pub fn closed(before: &str, after: &str) -> Vec<String> {
    let now = |member: &str| {
        after
            .lines()
            .find_map(|line| line.split_once('\t').filter(|(name, _)| *name == member))
            .map(|(_, who)| who)
    };
    let promised = before.lines().filter_map(|line| line.split_once('\t'));
    let promised = promised.filter(|(_, who)| *who == "everybody" || who.starts_with("org."));
    promised
        .filter_map(|(member, who)| match now(member) {
            Some(new) if new == who || new == "everybody" => None,
            new => Some(format!("{member} was for {who} and is for {}", new.unwrap_or("nobody"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::dbus;
    use crate::{interface, interfaces, parse, table};

    const XML: &str = r#"<node><interface name="org.banger.X1">
        <method name="Do"><arg name="what" type="s" direction="in"/><arg name="job" type="o" direction="out"/></method>
        <property name="Is" type="b" access="readwrite"/>
        <property name="Id" type="u" access="read">
          <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="const"/></property>
        <signal name="Done"><arg name="what" type="s"/></signal>
        </interface></node>"#;

    fn read(xml: &str) -> Vec<Interface> {
        vec![interface::read(&parse(xml).expect("parses")).expect("is there")]
    }

    /// What is found if this is put into the place of that.
    fn after(that: &str, this: &str) -> String {
        assert!(XML.contains(that), "{that}");
        broken(&read(XML), &read(&XML.replace(that, this))).join("\n")
    }

    #[test]
    fn what_clients_would_miss_is_found() {
        assert_eq!(after("X1", "X2"), "org.banger.X1 is gone");
        assert_eq!(after("\"Do\"", "\"DoIt\""), "org.banger.X1.Do is gone");
        assert_eq!(after("\"Is\"", "\"Was\""), "org.banger.X1.Is is gone");
        assert_eq!(after("\"Done\"", "\"Over\""), "org.banger.X1.Done is gone");
        for (that, this) in [
            (r#"type="o""#, r#"type="s""#),
            (r#"name="what" type="s" direction="in""#, r#"name="whom" type="s" direction="in""#),
            ("</method>", r#"<arg name="more" type="s" direction="in"/></method>"#),
        ] {
            assert!(
                after(that, this).starts_with("org.banger.X1.Do was (in s what, out o job) and is ("),
                "{this}"
            );
        }
        assert!(after(r#"<arg name="what" type="s"/>"#, "").contains("Done was (s what)"));
        assert!(after(r#"type="b""#, r#"type="u""#).contains("X1.Is was (b Is)"));
        assert_eq!(after("readwrite", "read"), "org.banger.X1.Is can no longer be written");
        assert!(after(r#"value="const""#, r#"value="true""#).contains("X1.Id told of its changes"));
    }

    #[test]
    fn what_comes_breaks_nobody() {
        assert_eq!(after("X1", "X1"), "");
        let more = r#"<method name="Redo"/><property name="New" type="s" access="read"/><signal name="Undone"/></interface>"#;
        assert_eq!(after("</interface>", more), "");
        assert_eq!(after(r#"access="read""#, r#"access="readwrite""#), "");
        let both = [read(XML), read(&XML.replace("X1", "X2"))].concat();
        assert_eq!(broken(&read(XML), &both), [] as [String; 0]);
    }

    #[test]
    fn what_fewer_may_use_is_found() {
        let before = "X1.List\teverybody\nX1.Do\torg.banger.do\nX1.Help\tservices of banger\n";
        assert_eq!(closed(before, before), [] as [String; 0]);
        assert_eq!(closed(before, "X1.Do\teverybody\nX1.List\teverybody\n"), [] as [String; 0]);
        assert_eq!(
            closed(before, "X1.List\torg.banger.look\nX1.Do\torg.banger.else\n"),
            [
                "X1.List was for everybody and is for org.banger.look",
                "X1.Do was for org.banger.do and is for org.banger.else"
            ]
        );
        assert_eq!(
            closed(before, ""),
            ["X1.List was for everybody and is for nobody", "X1.Do was for org.banger.do and is for nobody"]
        );
    }

    #[test]
    fn what_was_released_is_kept() {
        let released = dbus().join("released");
        let before = interfaces(&released).expect("reads");
        assert!(before.len() >= 11, "{before:?}");
        let mut broken = broken(&before, &interfaces(&dbus().join("interfaces")).expect("reads"));
        let access = std::fs::read_to_string(released.join("access")).expect("reads");
        assert!(access.lines().count() > 100, "{access}");
        broken.extend(closed(&access, &table()));
        let advice = "a promise of banger-dbus(7); while the version is 0.x, tell of it in CHANGELOG.md, then make release-interfaces";
        assert!(broken.is_empty(), "{}\n{advice}", broken.join("\n"));
    }
}
