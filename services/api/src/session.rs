//! `org.banger.Session1`: commands and shells in guests.
//!
//! A session is a command that was started in a guest. Its input and output are file descriptors
//! that lead straight into the guest: they belong to whoever called, no service stands in
//! between, and none can interrupt them.
//!
//! One that was started with a name hangs on no descriptor. The guest keeps what it puts out until the
//! service has copied it into the session's log; see [`banger_core::spool`] for the form, and
//! [`banger_core::session`] for its states.

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
    (MANAGER, "OpenList", Access::Action(SESSION_OPEN)),
    (MANAGER, "RemoveFiles", Access::Action(SESSION_OPEN)),
    (MANAGER, "LockWorkspace", Access::Action(SESSION_OPEN)),
    (MANAGER, "StartSession", Access::Action(SESSION_OPEN)),
    (MANAGER, "AttachSession", Access::Action(SESSION_OPEN)),
    (MANAGER, "SendSession", Access::Action(SESSION_OPEN)),
    (MANAGER, "StopSession", Access::Action(SESSION_OPEN)),
    (MANAGER, "RemoveSession", Access::Action(SESSION_OPEN)),
    // Output and command lines are nobody else's business.
    (MANAGER, "ReadLog", Access::Action(SESSION_OPEN)),
    (MANAGER, "DescribeSession", Access::Action(SESSION_OPEN)),
    (MANAGER, "ListSessions", Access::Action(SESSION_OPEN)),
    (MANAGER, "RecoverSessions", Access::Internal),
    (SESSION, "Kill", Access::Action(SESSION_OPEN)),
    (SESSION, "Resize", Access::Action(SESSION_OPEN)),
    (SESSION, "Wait", Access::Action(SESSION_OPEN)),
];

/// One session as `ListSessions` returns it: VM, id or name, state (a word of `banger_core::session::State`; without a
/// name only `running` and `exited`), command line, start time (microseconds since 1970), path.
pub type SessionRow = (String, String, String, Vec<String>, u64, OwnedObjectPath);

/// A record of a log: offset, time (microseconds since 1970), stream (1 stdout, 2 stderr), bytes.
pub type LogRecord = (u64, u64, u8, Vec<u8>);

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
    /// Starts a command in a running VM, with its three standard streams apart. `@sftp` and `@connect HOST PORT` (or
    /// `@connect PATH`, of a Unix socket) are programs of the agent's own.
    ///
    /// `environment` is laid over the image's. Options: `user s` (`user`, `uid`, `user:group` or
    /// `uid:gid`; default: the image's, else root), `directory s` (default: the image's, else
    /// `/`), `limits a{st}` ([`banger_core::resource`]).
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

    /// Starts a command in a running VM that hangs on no connection, and keeps what it puts out.
    ///
    /// `name`: letters, digits, `.`, `_` and `-`, at most 64, with a letter or digit first; empty for one that is made up. Options: `user s`,
    /// `directory s`, `limits a{st}` as for `Exec`, `terminal b`, `rows q`, `columns q`, `restart s` (`no`, `on-failure`, `always`:
    /// whether the guest starts it again when it ends by itself).
    ///
    /// Returns the name and the session's path. Errors: `NameTaken`, `NotSupported` if the VM has 64 sessions, and those of `Exec`.
    #[zbus(allow_interactive_auth)]
    fn start_session(
        &self,
        vm: &str,
        name: &str,
        argv: &[&str],
        environment: &BTreeMap<String, String>,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(String, OwnedObjectPath)>;

    /// Connects to a named session, as many callers at once as like.
    ///
    /// The stream gives records of [`banger_core::spool`] until nothing can come any more, and takes input unless
    /// `read_only b`. Closing it, or shutting it down for writing, leaves the command alone. It begins
    /// `scrollback t` bytes ago (default 65536; the guest keeps 256 KiB), or at the offset `from t`, for one who was
    /// cut off. A reader who takes nothing holds the command back for 30 s; after that it misses what does not fit
    /// into the guest's memory, which shows in the offsets.
    ///
    /// Errors: `NoSuchSession`, `SessionEnded`.
    #[zbus(allow_interactive_auth)]
    fn attach_session(
        &self,
        vm: &str,
        name: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<OwnedFd>;

    /// Writes to the input of a named session, whoever is attached to it. Options: `end b`: nothing more will come;
    /// on a terminal that is Ctrl-D.
    ///
    /// Errors: `NotReady` if the command does not read its input, or its end was sent before; `SessionEnded`.
    #[zbus(allow_interactive_auth)]
    fn send_session(
        &self,
        vm: &str,
        name: &str,
        data: &[u8],
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<()>;

    /// Ends a named session for good, and returns when it has ended. Options: `signal i` (default `SIGTERM`),
    /// `timeout_usec t`: when it is killed (default 10 s).
    #[zbus(allow_interactive_auth)]
    fn stop_session(&self, vm: &str, name: &str, options: HashMap<&str, Variant<'_>>) -> zbus::Result<()>;

    /// Removes a named session that has ended, and its log. Options: `force b`: it is killed first.
    ///
    /// Errors: `SessionRunning`.
    #[zbus(allow_interactive_auth)]
    fn remove_session(&self, vm: &str, name: &str, options: HashMap<&str, Variant<'_>>) -> zbus::Result<()>;

    /// A part of a named session's log, of some 256 KiB, from the offset `from` on. Of the log the last 8 to 16 MiB
    /// are kept, until the session is removed or its VM deleted.
    ///
    /// Options: `since t`: from this time on, microseconds since 1970; `tail t`: only so many lines from the end;
    /// `wait b`: if there is nothing yet, wait for it up to 20 s.
    ///
    /// Returns the records, the offset to go on from, and whether nothing will follow. Bytes between two records'
    /// offsets are lost.
    #[zbus(allow_interactive_auth)]
    fn read_log(
        &self,
        vm: &str,
        name: &str,
        from: u64,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(Vec<LogRecord>, u64, bool)>;

    /// What is known of a named session, as JSON.
    #[zbus(allow_interactive_auth)]
    fn describe_session(&self, vm: &str, name: &str) -> zbus::Result<String>;

    /// All sessions of all running VMs that answer, and all with a name.
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
    /// it without one before), `follow b`, to follow a link at `path` (none below it is), `only aay`: of a directory what is at
    /// these paths in it, each by itself, and what is there of them (no more than 4096, without the options above).
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

    /// Opens a list of all that is in a directory, without contents. Each entry is a line and a path, both ended by a NUL:
    /// kind (`f`, `d`, `l` or `o`), mode (octal), size, and the times of the last change of the content and of the file (nanoseconds since 1970;
    /// 0 of a directory); of a symbolic link its target, as a third field. A NUL by itself is its end; without it the list is not
    /// whole, and [`Self::wait_transfer`] tells why.
    #[zbus(allow_interactive_auth)]
    fn open_list(&self, vm: &str, directory: &str) -> zbus::Result<(String, OwnedFd)>;

    /// Removes files by their paths in a directory, no more than 4096, through no link, and directories that nothing is left in. What is not
    /// there is no error. Returns how many files that were.
    ///
    /// Errors: `NoSuchFile`, `NoSuchDirectory`, `InvalidArgs` for a path that leads out, `FileFailed`.
    #[zbus(allow_interactive_auth)]
    fn remove_files(&self, vm: &str, directory: &str, paths: &[&[u8]]) -> zbus::Result<u64>;

    /// Takes the lock of a running VM's workspace, which is held until all copies of the descriptor are closed, whatever becomes of the service.
    /// It keeps out those alone who take it: nothing in the VM's life waits for it.
    ///
    /// Options: `shared b`: together with others who share it, for who only reads.
    ///
    /// Errors: `WorkspaceBusy`, saying who has it.
    #[zbus(allow_interactive_auth)]
    fn lock_workspace(&self, vm: &str, options: HashMap<&str, Variant<'_>>) -> zbus::Result<OwnedFd>;

    /// Waits for the end of what `OpenRead`, `OpenList` or `OpenWrite` began: entries, bytes of files, and what was left
    /// out. It can be asked again for ten minutes.
    ///
    /// Errors: `NoSuchFile`, `NoSuchDirectory`, `FileInTheWay`, `FileFailed`, `NoSpace`, `InvalidArchive`,
    /// `Interrupted`, `NoSuchTransfer`.
    #[zbus(allow_interactive_auth)]
    fn wait_transfer(&self, vm: &str, id: &str) -> zbus::Result<Copied>;

    /// For vmd, which has had a VM go on from a snapshot of itself: finds what has become of its named sessions. Those that ran
    /// at the snapshot run again, and their logs go back to it. Returns how many that are.
    fn recover_sessions(&self, vm: &str) -> zbus::Result<u32>;

    #[zbus(signal)]
    fn session_new(&self, vm: String, id: String, session: OwnedObjectPath) -> zbus::Result<()>;
    #[zbus(signal)]
    fn session_removed(&self, vm: String, id: String, session: OwnedObjectPath) -> zbus::Result<()>;
}

/// A session. The object is there while the command runs and for a minute after its end; that of one with a name
/// until it is removed.
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
    /// The name it was started under, or nothing; it is the id, too.
    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> zbus::Result<String>;
    /// A word of `banger_core::session::State`; treat an unknown one as `running`.
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// Exit status, 0 until it has exited.
    #[zbus(property)]
    fn exit_status(&self) -> zbus::Result<i32>;
    /// The signal that ended it, or 0.
    #[zbus(property)]
    fn exit_signal(&self) -> zbus::Result<i32>;
    /// Microseconds since 1970.
    #[zbus(property)]
    fn started_timestamp(&self) -> zbus::Result<u64>;
    /// Microseconds since 1970, 0 until then.
    #[zbus(property)]
    fn ended_timestamp(&self) -> zbus::Result<u64>;
    /// How often its command was started again.
    #[zbus(property)]
    fn restarts(&self) -> zbus::Result<u32>;
}
