//! `org.banger.Agent1`: what the agent in a guest offers to the host, over vsock.
//!
//! The connection is peer to peer and anonymous: whoever reaches the vsock port has been let
//! through by the permissions of the VM's vsock socket on the host.

use std::collections::BTreeMap;

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

/// A port that something in the guest listens on: protocol (`tcp`, `udp`, `tcp6`, `udp6`),
/// address, port, and the process's name and id, empty and 0 if it could not be found.
pub type Port = (String, String, u16, String, u32);

#[proxy(
    interface = "org.banger.Agent1",
    default_service = "org.banger.Agent1",
    default_path = "/org/banger/Agent1"
)]
pub trait Agent {
    /// Starts a command. An empty `argv` stands for the user's login shell.
    ///
    /// `environment` is laid over the image's environment; empty `user` and `directory` stand for
    /// the image's own. With `terminal` the command gets a pseudo-terminal of `rows` by `columns`
    /// and there is the one stream `pty`; without it the streams are `stdin`, `stdout` and
    /// `stderr`. What the command writes before its streams are connected waits for them; it is
    /// killed if one still is not after 30 s.
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

    /// Unpacks a stream of tar, uncompressed, into a directory that exists. Nothing is written outside, and
    /// through no link. The files are `user`'s (`user`, `uid`, `user:group`, `uid:gid`; root's if it is
    /// empty), without set-user-ID bits and capabilities; with `archive` all is as the archive says.
    ///
    /// Returns an id for [`Self::wait_transfer`] and the stream's token.
    fn unpack(&self, directory: &str, user: &str, archive: bool) -> zbus::Result<(String, String)>;

    /// Waits for the end of what [`Self::pack`] or [`Self::unpack`] began. It is remembered for ten minutes.
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
