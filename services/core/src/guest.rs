//! What host and guest say to each other outside D-Bus: vsock ports, the configuration that the
//! agent asks for when it starts, and the status lines it answers with.
//!
//! The agent opens one connection to the host (context id 2) at [`CONFIG_PORT`] as soon as its
//! vsock driver is up. The host writes one line of JSON, a [`GuestConfig`]; from then on the
//! agent writes status lines in the form of sd_notify(3): `STATUS=…`, [`STAGE_KEY`]`=…` and
//! finally `READY=1`. A configuration therefore never passes through the kernel command line,
//! which every process in the guest can read, and has no length limit of note.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// The version of everything in this module and of the `org.banger.Agent1` interface.
/// Host and agent refuse each other when it differs.
pub const PROTOCOL: u32 = 1;

/// Guest port on which the agent serves `org.banger.Agent1` (D-Bus, peer to peer).
pub const AGENT_PORT: u32 = 1024;

/// Guest port on which the agent accepts byte streams.
///
/// A client writes the stream's token (see `Agent1.Start`) and a newline; the agent answers
/// `OK\n`, or `ERR reason\n` and closes. After `OK\n` the connection carries the raw bytes of that
/// one stream.
///
/// The guest's end of a stream stays open until the host has taken every byte, however slowly it
/// reads. Neither VMM passes a half-close on, so a connection lives and dies as a whole: a client
/// ends `stdin` by closing it (or `shutdown(2)` for writing), and hangs up on an output stream or
/// a terminal the same way.
pub const STREAM_PORT: u32 = 1025;

/// Host port at which a starting agent asks for its [`GuestConfig`].
pub const CONFIG_PORT: u32 = 1026;

/// The longest configuration line the agent reads, in bytes.
pub const MAX_CONFIG: usize = 1 << 20;

/// Status key that names the stage the guest has reached, one of [`STAGES`].
pub const STAGE_KEY: &str = "X_BANGER_STAGE";

/// The stages of a guest's start in the order in which they are reported, when each begins:
/// the agent has its configuration; it mounts the disks; it sets up the network; it hands over to
/// the image's init, if there is one, and serves. `READY=1` follows.
pub const STAGES: [&str; 4] = ["agent", "disks", "network", "init"];

/// Status key that gives the guest's uptime in microseconds when the line was written.
pub const UPTIME_KEY: &str = "X_BANGER_UPTIME_USEC";

/// Status key that gives the reason when the guest cannot come up.
pub const FAILURE_KEY: &str = "X_BANGER_FAILURE";

/// Status key of the guest's last word when it goes down in order, one of
/// [`crate::ending::Goodbye`].
pub const GOODBYE_KEY: &str = "X_BANGER_GOODBYE";

/// Everything a guest has to know to become its VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestConfig {
    /// [`PROTOCOL`] of the host.
    pub protocol: u32,
    /// Host name, and the VM's name.
    pub hostname: String,
    /// The host's clock when the configuration was sent, microseconds since 1970.
    pub realtime_usec: u64,
    /// Random bytes from the host, credited to the guest's entropy pool; hexadecimal.
    pub seed: String,
    pub rootfs: Rootfs,
    /// `None`: the guest has no network.
    pub network: Option<Network>,
    pub init: Init,
    /// How the machine is switched off from inside.
    #[serde(default)]
    pub power_off: PowerOff,
    /// What the image says about the processes started in it.
    pub process: ProcessDefaults,
}

/// The disks the root filesystem is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rootfs {
    /// Block device with the image, mounted read-only, such as `/dev/vda`.
    pub image: String,
    /// Filesystem type of the image, such as `squashfs`.
    pub fstype: String,
    /// Block device (ext4) that takes the VM's writes, such as `/dev/vdb`.
    pub overlay: String,
}

/// The guest's one network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    pub dns: Vec<Ipv4Addr>,
    /// Search domain, empty for none.
    pub domain: String,
}

/// Who is PID 1 once the root filesystem is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// The image's `/sbin/init` if it has one, else the agent.
    #[default]
    Auto,
    /// Always the agent.
    Agent,
    /// Always the image's init; without one the start fails.
    Image,
}

/// How a guest ends its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PowerOff {
    /// The machine has a power switch (ACPI), as QEMU's has.
    #[default]
    Acpi,
    /// It has none and ends when it is reset, as Firecracker does.
    Reset,
}

/// Defaults of processes started in the guest, from the image's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessDefaults {
    pub env: BTreeMap<String, String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty is root.
    pub user: String,
    /// Empty is `/`.
    pub working_directory: String,
}
