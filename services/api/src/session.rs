//! `org.banger.Session1`: commands and shells in guests.
//!
//! A session is a command that was started in a guest. Its input and output are file descriptors
//! that lead straight into the guest: they belong to whoever called, no service stands in
//! between, and none can interrupt them.

use std::collections::{BTreeMap, HashMap};

use zbus::wire::OwnedFd;
use zbus::{OwnedObjectPath, Variant, proxy};

use crate::access::{Access, Entry, SESSION_OPEN};
use crate::files::{Copied, Stat};

/// Prefix of the objects of sessions.
pub const SESSION_PREFIX: &str = "/org/banger/Session1/session";
pub const MANAGER: &str = "org.banger.Session1.Manager";
pub const SESSION: &str = "org.banger.Session1.Session";

pub const ACCESS: &[Entry] = &[
    (MANAGER, "Exec", Access::Action(SESSION_OPEN)),
    (MANAGER, "OpenShell", Access::Action(SESSION_OPEN)),
    (MANAGER, "WaitSession", Access::Action(SESSION_OPEN)),
    (MANAGER, "KillSession", Access::Action(SESSION_OPEN)),
    (MANAGER, "ResizeSession", Access::Action(SESSION_OPEN)),
    (MANAGER, "StatFile", Access::Action(SESSION_OPEN)),
    (MANAGER, "OpenRead", Access::Action(SESSION_OPEN)),
    (MANAGER, "OpenWrite", Access::Action(SESSION_OPEN)),
    (MANAGER, "WaitTransfer", Access::Action(SESSION_OPEN)),
    // Command lines are nobody else's business.
    (MANAGER, "ListSessions", Access::Action(SESSION_OPEN)),
    (SESSION, "Kill", Access::Action(SESSION_OPEN)),
    (SESSION, "Resize", Access::Action(SESSION_OPEN)),
    (SESSION, "Wait", Access::Action(SESSION_OPEN)),
];

/// One session as `ListSessions` returns it: VM, id, state (`running`, `exited`), command line,
/// start time (microseconds since 1970), path.
pub type SessionRow = (String, String, String, Vec<String>, u64, OwnedObjectPath);

/// The object path of a session.
pub fn session_path(vm: &str, id: &str) -> OwnedObjectPath {
    crate::path::encode(SESSION_PREFIX, &format!("{vm}/{id}"))
}

#[proxy(
    interface = "org.banger.Session1.Manager",
    default_service = "org.banger.Session1",
    default_path = "/org/banger/Session1"
)]
pub trait Manager {
    /// Starts a command in a running VM, with its three standard streams apart.
    ///
    /// `environment` is laid over the image's. Options: `user s` (`user`, `uid`, `user:group` or
    /// `uid:gid`; default: the image's, else root), `directory s` (default: the image's, else
    /// `/`).
    ///
    /// Each descriptor is a socket. Closing `stdin`, or shutting it down for writing, is the
    /// command's end of input; closing `stdout` or `stderr` is a broken pipe to it. The outputs
    /// end when everything that holds them in the guest has ended, which may be before or after
    /// the command itself does. Do not shut down an output for writing.
    #[zbus(allow_interactive_auth)]
    fn exec(
        &self,
        vm: &str,
        argv: &[&str],
        environment: &BTreeMap<String, String>,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(String, OwnedObjectPath, OwnedFd, OwnedFd, OwnedFd)>;

    /// Starts a command on a terminal; with an empty `argv` the user's login shell.
    ///
    /// Options as for `Exec`, and `rows q`, `columns q` (default 24 by 80). The descriptor is the
    /// terminal's other side: closing it hangs up.
    #[zbus(allow_interactive_auth)]
    fn open_shell(
        &self,
        vm: &str,
        argv: &[&str],
        environment: &BTreeMap<String, String>,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(String, OwnedObjectPath, OwnedFd)>;

    /// Waits for a session's command to end: `(exit status, signal)`, of which one is 0. It can
    /// be asked again for ten minutes, by anybody who may, whatever became of the services
    /// meanwhile.
    #[zbus(allow_interactive_auth)]
    fn wait_session(&self, vm: &str, id: &str) -> zbus::Result<(i32, i32)>;

    /// Sends a signal to all processes of a session's foreground: its process group.
    #[zbus(allow_interactive_auth)]
    fn kill_session(&self, vm: &str, id: &str, signal: i32) -> zbus::Result<()>;

    /// Tells a session's terminal its size.
    #[zbus(allow_interactive_auth)]
    fn resize_session(&self, vm: &str, id: &str, rows: u16, columns: u16) -> zbus::Result<()>;

    /// All sessions of all running VMs that answer.
    #[zbus(allow_interactive_auth)]
    fn list_sessions(&self) -> zbus::Result<Vec<SessionRow>>;

    /// What is at an absolute path in a running VM; with `follow` what a link there leads to.
    ///
    /// Errors: `NoSuchFile`, `NoSuchDirectory`, `FileFailed`.
    #[zbus(allow_interactive_auth)]
    fn stat_file(&self, vm: &str, path: &str, follow: bool) -> zbus::Result<Stat>;

    /// Opens a file, or a directory and all in it, for reading, as a stream of tar (PAX): with
    /// owners, modes, times, links, holes and extended attributes. Two blocks of zeros are its end; without
    /// them it is not whole, and [`Self::wait_transfer`] tells why.
    ///
    /// Options: `name s`, what it is called in the archive (default: as it is; `.` for a directory leaves the names in
    /// it without one before), `follow b`, to follow a link at `path` (none below it is).
    #[zbus(allow_interactive_auth)]
    fn open_read(
        &self,
        vm: &str,
        path: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(String, OwnedFd)>;

    /// Opens a directory for writing: what is written to the stream, a tar without compression, is
    /// unpacked into it, replacing files of the same names, never outside of it and through no
    /// link. Shut the stream down for writing at the end, and ask [`Self::wait_transfer`] what became of it.
    ///
    /// Options: `user s`, whose the files are to be (`user`, `uid`, `user:group` or `uid:gid`; default:
    /// root), `archive b`, to keep owners and with them set-user-ID bits, capabilities, access
    /// lists and devices.
    #[zbus(allow_interactive_auth)]
    fn open_write(
        &self,
        vm: &str,
        directory: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(String, OwnedFd)>;

    /// Waits for the end of what `OpenRead` or `OpenWrite` began: entries, bytes of files, and what was left
    /// out. It can be asked again for ten minutes.
    ///
    /// Errors: `NoSuchFile`, `NoSuchDirectory`, `FileInTheWay`, `FileFailed`, `NoSpace`, `InvalidArchive`,
    /// `Interrupted`, `NoSuchTransfer`.
    #[zbus(allow_interactive_auth)]
    fn wait_transfer(&self, vm: &str, id: &str) -> zbus::Result<Copied>;

    #[zbus(signal)]
    fn session_new(&self, vm: String, id: String, session: OwnedObjectPath) -> zbus::Result<()>;
    #[zbus(signal)]
    fn session_removed(&self, vm: String, id: String, session: OwnedObjectPath) -> zbus::Result<()>;
}

/// A session. The object is there while the command runs and for a minute after its end.
#[proxy(
    interface = "org.banger.Session1.Session",
    default_service = "org.banger.Session1",
    assume_defaults = false
)]
pub trait Session {
    #[zbus(allow_interactive_auth)]
    fn kill(&self, signal: i32) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn resize(&self, rows: u16, columns: u16) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn wait(&self) -> zbus::Result<(i32, i32)>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn vm(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> zbus::Result<String>;
    /// `running` or `exited`; treat an unknown one as `running`.
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// Exit status, 0 until it has exited.
    #[zbus(property)]
    fn exit_status(&self) -> zbus::Result<i32>;
    /// The signal that ended it, or 0.
    #[zbus(property)]
    fn exit_signal(&self) -> zbus::Result<i32>;
}
