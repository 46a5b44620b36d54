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
