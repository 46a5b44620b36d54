//! Who may call what. Every method and every property setter of every interface stands in one
//! of these tables; a service refuses whatever does not, and a test compares the tables with the
//! introspection of the running services.

/// What a caller needs in order to use a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone who can reach the service.
    Read,
    /// This polkit action; over a peer socket, membership of the group `banger`.
    Action(&'static str),
    /// Only the other services of banger, and root.
    Internal,
    /// Only root.
    Root,
    /// The service itself decides, by an identity that no table can name (such as "the unit of
    /// that VM").
    Own,
}

/// Interface, member, access.
pub type Entry = (&'static str, &'static str, Access);

/// Manage VMs: create, start, stop, delete.
pub const VM_MANAGE: &str = "org.banger.vm.manage";
/// Pull, import and remove images and kernels.
pub const IMAGE_MANAGE: &str = "org.banger.image.manage";
/// Run commands in guests.
pub const SESSION_OPEN: &str = "org.banger.session.open";

/// Members that all services have.
pub const COMMON: &[Entry] = &[
    ("org.freedesktop.LogControl1", "LogLevel", Access::Root),
    ("org.freedesktop.LogControl1", "LogTarget", Access::Root),
    (crate::job::INTERFACE, "Wait", Access::Read),
    (crate::service::INTERFACE, "Subscribe", Access::Read),
    (crate::service::INTERFACE, "Unsubscribe", Access::Read),
];

#[cfg(test)]
mod tests {
    use super::Access;

    /// The calls of proxies let polkit ask for a password, wherever one may be needed.
    #[test]
    fn whatever_takes_rights_may_ask_for_them() {
        let sources = [
            (crate::vm::ACCESS, include_str!("vm.rs")),
            (crate::image::ACCESS, include_str!("image.rs")),
            (crate::network::ACCESS, include_str!("network.rs")),
            (crate::session::ACCESS, include_str!("session.rs")),
        ];
        let job = include_str!("job.rs");
        for (access, source) in sources {
            let guarded = access.iter().filter(|(_, _, access)| matches!(access, Access::Action(_)));
            for (interface, member, _) in guarded {
                let source = if *interface == crate::job::INTERFACE { job } else { source };
                let mut name = String::new();
                for c in member.chars() {
                    if c.is_uppercase() && !name.is_empty() {
                        name.push('_');
                    }
                    name.extend(c.to_lowercase());
                }
                let mut before = "";
                let mut found = 0;
                for line in source.lines().map(str::trim) {
                    if line.starts_with(&format!("fn {name}(")) {
                        assert_eq!(before, "#[zbus(allow_interactive_auth)]", "{interface}.{member}");
                        found += 1;
                    }
                    before = line;
                }
                assert!(found > 0, "{interface}.{member} has no proxy");
            }
        }
    }
}
