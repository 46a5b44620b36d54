//! `org.banger.Agent1`: what the agent in a guest offers to the host, over vsock.
//!
//! The connection is peer to peer and anonymous: whoever reaches the vsock port has been let
//! through by the permissions of the VM's vsock socket on the host.

use std::collections::BTreeMap;

use banger_core::resource::Limits;

use serde::{Deserialize, Serialize};
use zbus::{DeserializeDict, SerializeDict, Type, proxy};

use crate::files::{Copied, Stat};

/// Object path of the agent.
pub const PATH: &str = "/org/banger/Agent1";

/// What a guest says of itself. Counters count since its boot.
#[derive(Debug, Clone, Default, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "dict")]
pub struct Stats {
    /// Averages over 1, 5 and 15 minutes.
    pub load: (f64, f64, f64),
    pub uptime_usec: u64,
    /// CPU time of all processors together, in microseconds; `user` with nice, `system` with
    /// interrupts.
    pub cpu_user_usec: u64,
    pub cpu_system_usec: u64,
    pub cpu_idle_usec: u64,
    pub cpu_iowait_usec: u64,
    /// Time in which the host let the guest wait.
    pub cpu_steal_usec: u64,
    /// Memory in bytes, as in `/proc/meminfo`.
    pub memory_total: u64,
    pub memory_available: u64,
    pub memory_free: u64,
    pub memory_cached: u64,
    /// Of the total, what the balloon has given back to the host. Unknown to older agents and kernels.
    pub memory_balloon: Option<u64>,
    pub swap_total: u64,
    pub swap_free: u64,
    pub processes: u32,
    pub filesystems: Vec<Filesystem>,
    pub disks: Vec<DiskCounters>,
    pub networks: Vec<NetworkCounters>,
}

/// A disk's filesystem; sizes in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Filesystem {
    pub mount_point: String,
    pub device: String,
    pub total: u64,
    /// Free for everybody, not only for root.
    pub available: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// What went to and from a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct DiskCounters {
    /// Such as `vda`.
    pub device: String,
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub discarded_bytes: u64,
}

/// What went through a network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct NetworkCounters {
    pub interface: String,
    pub received_bytes: u64,
    pub received_packets: u64,
    pub sent_bytes: u64,
    pub sent_packets: u64,
}

/// What became of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "dict")]
pub struct SessionStatus {
    /// A word of `banger_core::session::State`, of which `lost` is not the agent's to say.
    pub state: String,
    /// Of the last command that ended, of which one is 0.
    pub exit_status: i32,
    pub exit_signal: i32,
    /// Microseconds since 1970; `ended_usec` is 0 until then.
    pub started_usec: u64,
    pub ended_usec: u64,
    /// How often the command was started again.
    pub restarts: u32,
    /// The offset at which the output stood when the session ended; 0 until then. What the command left behind in the
    /// guest may write more.
    pub end: u64,
    /// Up to where the host has said that it keeps the output; in a guest that went on from a snapshot, up to
    /// where it had said so then. Unknown to older agents.
    pub kept: Option<u64>,
}

/// A port that something in the guest listens on: protocol (`tcp`, `udp`, `tcp6`, `udp6`),
/// address, port, and the process's name and id, empty and 0 if it could not be found.
pub type Port = (String, String, u16, String, u32);

#[proxy(
    interface = "org.banger.Agent1",
    default_service = "org.banger.Agent1",
    default_path = "/org/banger/Agent1"
)]
pub trait Agent {
    /// Starts a command. An empty `argv` stands for the user's login shell, and `@sftp` and `@connect` for programs of the
    /// agent's own: a server of SFTP on standard input and output, and a connection to HOST and PORT or to the PATH of
    /// a Unix socket.
    ///
    /// `environment` is laid over the image's environment; empty `user` and `directory` stand for
    /// the image's own. With `terminal` the command gets a pseudo-terminal of `rows` by `columns`
    /// and there is the one stream `pty`; without it the streams are `stdin`, `stdout` and
    /// `stderr`. What the command writes before its streams are connected waits for them; it is
    /// killed if one still is not after 30 s.
    ///
    /// `limits` are those of [`banger_core::resource`].
    ///
    /// Returns the id of the process and the token of each stream by name.
    ///
    /// Errors: `NoSuchUser`, `NoSuchDirectory`, `CommandNotFound`, `NotExecutable`, `InvalidArgs`.
    #[allow(clippy::too_many_arguments)]
    fn start(
        &self,
        argv: &[&str],
        environment: &BTreeMap<String, String>,
        user: &str,
        directory: &str,
        terminal: bool,
        rows: u16,
        columns: u16,
        limits: &Limits,
    ) -> zbus::Result<(String, BTreeMap<String, String>)>;

    /// Waits for the end of a process: `(exit status, signal)`, of which one is 0. Output that it
    /// wrote may still be on its way, and what it started may live on and write more: a stream
    /// ends with its end of file.
    ///
    /// What ended is remembered for ten minutes, so that a host service which was restarted can
    /// still ask.
    fn wait(&self, id: &str) -> zbus::Result<(i32, i32)>;

    /// Sends a signal to the process group of a process. `NoSuchProcess` once it has ended.
    fn kill(&self, id: &str, signal: i32) -> zbus::Result<()>;

    /// Sets the size of a process's terminal.
    fn resize(&self, id: &str, rows: u16, columns: u16) -> zbus::Result<()>;

    /// The processes started by the host, as long as they are remembered: id, state (`running`,
    /// `exited`; treat an unknown one as `running`), command line, start time in microseconds
    /// since 1970.
    fn list(&self) -> zbus::Result<Vec<(String, String, Vec<String>, u64)>>;

    /// Starts a command that does not hang on any connection; its output is spooled in the guest.
    ///
    /// `id` (1 to 20 letters and digits) is the host's choice; if there is a session with it, this does nothing more.
    /// `restart` is `no`, `on-failure` or `always`. Other arguments and errors are those of [`Self::start`];
    /// `NotSupported` if there are 64 sessions.
    #[allow(clippy::too_many_arguments)]
    fn start_session(
        &self,
        id: &str,
        argv: &[&str],
        environment: &BTreeMap<String, String>,
        user: &str,
        directory: &str,
        terminal: bool,
        rows: u16,
        columns: u16,
        limits: &Limits,
        restart: &str,
    ) -> zbus::Result<()>;

    /// What a session is doing, once its serial number is not `serial` any more. `NoSuchProcess` if there is none with
    /// this id, as for all that follow.
    fn watch_session(&self, id: &str, serial: u32) -> zbus::Result<(u32, SessionStatus)>;

    /// Writes to a session's input, at most 64 KiB at once, and with `end` ends it. `NotReady` if the command
    /// does not read it, and then nothing was sent.
    fn send_session(&self, id: &str, data: &[u8], end: bool) -> zbus::Result<()>;

    /// Ends a session for good: `signal` at once, `SIGKILL` after `grace_usec`.
    fn stop_session(&self, id: &str, signal: i32, grace_usec: u64) -> zbus::Result<()>;

    fn kill_session(&self, id: &str, signal: i32) -> zbus::Result<()>;
    fn resize_session(&self, id: &str, rows: u16, columns: u16) -> zbus::Result<()>;

    /// Gives the token of a stream of a session's output, in records of [`banger_core::spool`], from the last
    /// `scrollback` bytes on. It ends when nothing can come any more. What is written to it goes to the command's
    /// input, unless `read_only`. A reader who takes nothing for 30 s misses what the ring cannot hold.
    fn attach_session(&self, id: &str, scrollback: u64, read_only: bool) -> zbus::Result<String>;

    /// As [`Self::attach_session`], from an offset on.
    fn resume_session(&self, id: &str, from: u64, read_only: bool) -> zbus::Result<String>;

    /// The same for the one who keeps the output, and takes the place of the one before. To the stream it writes, as
    /// numbers of 64 bits, little-endian, the offsets up to which it has everything; `from` is the first.
    /// `InvalidArgs` if `from` is higher than all there is.
    fn drain_session(&self, id: &str, from: u64) -> zbus::Result<String>;

    /// Forgets a session that has ended; `NotReady` before that.
    fn forget_session(&self, id: &str) -> zbus::Result<()>;

    /// Stops all processes, writes everything to disk and powers the machine off.
    /// Returns when the shutdown has begun.
    fn power_off(&self) -> zbus::Result<()>;

    /// Answers with the guest's uptime in microseconds.
    fn ping(&self) -> zbus::Result<u64>;

    fn stats(&self) -> zbus::Result<Stats>;

    /// What listens in the guest's network, by protocol, port and address; at most 1024.
    fn listening_ports(&self) -> zbus::Result<Vec<Port>>;

    /// Grows the filesystems of the overlay and the work disk to the size of their devices, after
    /// the host has grown those. Returns each one's device, and its size in bytes before and
    /// after; a filesystem that fills its device already keeps its size.
    fn grow_disks(&self) -> zbus::Result<Vec<(String, u64, u64)>>;

    /// Writes everything to the disks and has writers wait, for a snapshot. Ends with
    /// [`Self::thaw`], or by itself after 10 s.
    fn quiesce(&self) -> zbus::Result<()>;

    /// Has the root filesystem written to a stream as a tar (PAX), of which two blocks of zeros are
    /// the end; without them it is not whole. What is mounted in it is not part of it, nor is what banger puts
    /// into every root filesystem. Writers to it wait meanwhile, for at most 30 s after the host took the last bytes.
    ///
    /// Returns the stream's token. Errors: `NotReady` if another is being written.
    fn archive(&self) -> zbus::Result<String>;

    /// What is at an absolute path; with `follow` what a link there leads to.
    ///
    /// Errors: `NoSuchFile`, `NoSuchDirectory`, `FileFailed`.
    fn stat(&self, path: &str, follow: bool) -> zbus::Result<Stat>;

    /// Has a file, or a directory and all in it, written to a stream as a tar (PAX), of which two
    /// blocks of zeros are the end. It is called `name` in the archive: `.` for a directory leaves
    /// the names in it without one before, the empty one stands for its own. With `follow`, a link at `path` is followed; none below
    /// is. Sockets, and what is in `/proc` and `/sys`, are left out.
    ///
    /// Returns an id for [`Self::wait_transfer`] and the stream's token.
    fn pack(&self, path: &str, name: &str, follow: bool) -> zbus::Result<(String, String)>;

    /// Has what is at these paths below a directory, each by itself, written to a stream as [`Self::pack`] does. What is not
    /// there is left out, and so is what only a link leads to.
    ///
    /// Returns an id for [`Self::wait_transfer`] and the stream's token.
    fn pack_files(&self, directory: &str, paths: &[&[u8]]) -> zbus::Result<(String, String)>;

    /// Has what is in a directory listed, in the form of `banger_files::listing`. Of `/proc` and `/sys` nothing is.
    ///
    /// Returns an id for [`Self::wait_transfer`] and the stream's token.
    fn list_files(&self, directory: &str) -> zbus::Result<(String, String)>;

    /// Removes files by their paths below a directory, through no link, and directories that nothing is left in. What is
    /// not there is no error. Returns how many files that were.
    ///
    /// Errors: `NoSuchFile`, `NoSuchDirectory`, `InvalidArgs` for a path that leads out, `FileFailed`.
    fn remove_files(&self, directory: &str, paths: &[&[u8]]) -> zbus::Result<u64>;

    /// Unpacks a stream of tar, uncompressed, into a directory that exists. Nothing is written outside, and
    /// through no link. The files are `user`'s (`user`, `uid`, `user:group`, `uid:gid`; root's if it is
    /// empty), without set-user-ID bits and capabilities; with `archive` all is as the archive says.
    ///
    /// Returns an id for [`Self::wait_transfer`] and the stream's token.
    fn unpack(&self, directory: &str, user: &str, archive: bool) -> zbus::Result<(String, String)>;

    /// Waits for the end of what [`Self::pack`], [`Self::pack_files`], [`Self::list_files`] or [`Self::unpack`] began. It is remembered for ten minutes.
    ///
    /// Errors: `NoSuchFile`, `NoSuchDirectory`, `FileInTheWay`, `FileFailed`, `NoSpace`,
    /// `InvalidArchive`, `Interrupted`, `NoSuchTransfer`.
    fn wait_transfer(&self, id: &str) -> zbus::Result<Copied>;

    /// Ends [`Self::quiesce`]. Without it this does nothing.
    fn thaw(&self) -> zbus::Result<()>;

    /// Makes a guest that woke up from a snapshot what `config`, a
    /// [`banger_core::guest::GuestConfig`] in JSON, says: disks are thawed; name, clock,
    /// entropy, machine id, network, and all that is written into the root filesystem at the
    /// start are set anew, and the environment of what is started from now on. The disks, init and
    /// power switch in `config` are not looked at.
    ///
    /// Returns what could not be done. `InvalidArgs` if `config` is malformed; any other error
    /// leaves the guest half of what it was.
    fn reconfigure(&self, config: &str) -> zbus::Result<Vec<String>>;

    /// [`banger_core::guest::PROTOCOL`] of the agent.
    #[zbus(property(emits_changed_signal = "const"))]
    fn protocol(&self) -> zbus::Result<u32>;

    /// Version of the agent.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;
}
