//! What a release of banger serves, later ones serve as well: what has become of that.
//!
//! `dbus/released` is what the last release had, a line for each member: its name, its kind, its shape, and who might use
//! it, with tabs between. The shape is what it takes and gives; of a property its signature, `read` or `readwrite`, and how
//! its changes are told. Members may come, and be open to more callers; what clients could do must not go.

use crate::interface::{Interface, Member};
use crate::who;

/// The lines of these interfaces.
pub fn lines(interfaces: &[Interface]) -> String {
    let mut lines = String::new();
    for interface in interfaces {
        let kinds = [
            ("method", &interface.methods),
            ("property", &interface.properties),
            ("signal", &interface.signals),
        ];
        let members =
            kinds.into_iter().flat_map(|(kind, members)| members.iter().map(move |one| (kind, one)));
        for (kind, member) in members {
            let shape = if kind == "property" { of_property(member) } else { of_call(member) };
            let who = who(&interface.name, &member.name);
            lines.push_str(&format!("{}.{}\t{kind}\t{shape}\t{who}\n", interface.name, member.name));
        }
    }
    lines
}

fn of_call(member: &Member) -> String {
    let arguments = member.arguments.iter().map(|argument| {
        let direction = argument.direction.as_deref().unwrap_or("out");
        format!("{direction} {} {}", argument.signature, argument.name)
    });
    arguments.collect::<Vec<_>>().join(", ")
}

fn of_property(member: &Member) -> String {
    let signature = member.arguments.first().map_or("", |argument| argument.signature.as_str());
    let access = if member.writable { "readwrite" } else { "read" };
    format!("{signature} {access} {}", member.emits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interfaces;
    use crate::tests::dbus;

    /// What a client of the members before would miss in those after.
    fn broken(before: &str, after: &str) -> Vec<String> {
        let name = |line: &str| line.split('\t').next().unwrap_or_default().to_owned();
        let reason = |old: &str| match after.lines().find(|new| name(new) == name(old)) {
            None => Some("is gone".to_owned()),
            Some(new) => changed(&old.split('\t').collect::<Vec<_>>(), &new.split('\t').collect::<Vec<_>>()),
        };
        before.lines().filter_map(|old| Some(format!("{} {}", name(old), reason(old)?))).collect()
    }

    fn changed(old: &[&str], new: &[&str]) -> Option<String> {
        let ([_, kind, shape, who], [_, new_kind, new_shape, new_who]) = (old, new) else {
            return Some("has a line of another form".into());
        };
        let promised = *who == "everybody" || who.starts_with("org.");
        if kind != new_kind {
            Some(format!("was a {kind} and is a {new_kind}"))
        } else if promised && who != new_who && *new_who != "everybody" {
            Some(format!("was for {who} and is for {new_who}"))
        } else if *kind == "property" {
            property_changed(shape, new_shape)
        } else {
            (shape != new_shape).then(|| format!("was ({shape}) and is ({new_shape})"))
        }
    }

    fn property_changed(old: &str, new: &str) -> Option<String> {
        let words = |shape: &str| shape.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let (old, new) = (words(old), words(new));
        if old[0] != new[0] {
            return Some(format!("was {} and is {}", old[0], new[0]));
        }
        if old[1] == "readwrite" && new[1] == "read" {
            return Some("can no longer be written".into());
        }
        // Nobody waits for what was not told, and whoever asks again when told of a change needs no value.
        match (old[2].as_str(), new[2].as_str()) {
            ("false", _) | ("invalidates", "true") => None,
            (before, after) if before == after => None,
            (before, after) => Some(format!("told of its changes as \"{before}\" and does as \"{after}\"")),
        }
    }

    const BEFORE: &str = "X1.Do\tmethod\tin s what, out o job\torg.banger.do\n\
                          X1.List\tmethod\tout as all\teverybody\n\
                          X1.Help\tmethod\t\tservices of banger, root\n\
                          X1.Is\tproperty\tb readwrite true\torg.banger.do\n\
                          X1.Id\tproperty\tu read const\t\n\
                          X1.Done\tsignal\tout s what\t\n";

    /// What is found if this is put into the place of that.
    fn after(that: &str, this: &str) -> String {
        assert!(BEFORE.contains(that), "{that}");
        broken(BEFORE, &BEFORE.replace(that, this)).join("\n")
    }

    #[test]
    fn what_clients_would_miss_is_found() {
        assert_eq!(after("X1.Do\t", "X1.DoIt\t"), "X1.Do is gone");
        assert_eq!(after("X1.Is", "X1.Was"), "X1.Is is gone");
        assert_eq!(after("X1.Done\tsignal", "X1.Done\tmethod"), "X1.Done was a signal and is a method");
        for this in ["in s what, out s job", "in s whom, out o job", "in s what, in s more, out o job"] {
            let found = after("in s what, out o job", this);
            assert_eq!(found, format!("X1.Do was (in s what, out o job) and is ({this})"));
        }
        assert_eq!(after("out s what", ""), "X1.Done was (out s what) and is ()");
        assert_eq!(after("b readwrite", "u readwrite"), "X1.Is was b and is u");
        assert_eq!(after("readwrite", "read"), "X1.Is can no longer be written");
        assert!(after("const", "true").starts_with("X1.Id told of its changes"));
        assert_eq!(
            after("everybody", "org.banger.look"),
            "X1.List was for everybody and is for org.banger.look"
        );
        assert_eq!(
            after("job\torg.banger.do", "job\torg.banger.else"),
            "X1.Do was for org.banger.do and is for org.banger.else"
        );
    }

    #[test]
    fn what_comes_breaks_nobody() {
        assert_eq!(broken(BEFORE, BEFORE), [] as [String; 0]);
        assert_eq!(broken(BEFORE, &format!("{BEFORE}X1.New\tmethod\t\teverybody\n")), [] as [String; 0]);
        for (that, this) in [
            ("u read const", "u readwrite const"),
            ("job\torg.banger.do", "job\teverybody"),
            // What is for services is promised to nobody.
            ("services of banger, root", "root"),
        ] {
            assert_eq!(after(that, this), "", "{this}");
        }
    }

    #[test]
    fn what_was_released_is_kept() {
        let released = std::fs::read_to_string(dbus().join("released")).expect("reads");
        assert!(released.lines().count() > 200, "{released}");
        let now = lines(&interfaces(&dbus().join("interfaces")).expect("reads"));
        let broken = broken(&released, &now);
        let advice = "a promise of banger-dbus(7); while the version is 0.x, tell of it in CHANGELOG.md, then make release-interfaces";
        assert!(broken.is_empty(), "{}\n{advice}", broken.join("\n"));
    }
}
