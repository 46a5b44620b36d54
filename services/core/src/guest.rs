//! What host and guest say to each other outside D-Bus: vsock ports, the configuration that the
//! agent asks for when it starts, and the status lines it answers with.
//!
//! The agent opens one connection to the host (context id 2) at [`CONFIG_PORT`] as soon as its
//! vsock driver is up. The host writes one line of JSON, a [`GuestConfig`]; from then on the
//! agent writes status lines in the form of sd_notify(3): `STATUS=…`, [`STAGE_KEY`]`=…` and
//! finally `READY=1`. A configuration therefore never passes through the kernel command line,
//! which every process in the guest can read, and has no length limit of note.
//!
//! From then on the agent keeps a connection to [`STATUS_PORT`], and makes it anew when it breaks off, as
//! snapshots have it. It says there that it lives, [`ALIVE_KEY`], at once and every [`crate::health::BEAT`], and
//! in the end how the guest goes down, [`GOODBYE_KEY`]. Every process of the guest can call either port, so
//! the configuration is given once, before any other runs, and nothing that matters beyond the guest hangs on the status.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// The version of everything in this module and of the `org.banger.Agent1` interface.
/// Host and agent refuse each other when it differs.
pub const PROTOCOL: u32 = 4;

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
///
/// The host's ports are far up because vhost-device-vsock 0.3.0 numbers its own connections from 0:
/// when it comes to a port that a guest has a connection to, it takes no new ones ever after.
pub const CONFIG_PORT: u32 = 4_000_000_000;

/// Host port that hears of the guest for as long as it lives.
pub const STATUS_PORT: u32 = 4_000_000_001;

/// The longest configuration line the agent reads, in bytes. The guest holds it in memory, with the
/// files in it twice, until they are written.
pub const MAX_CONFIG: usize = 16 << 20;

/// Status key that names the stage the guest has reached, one of [`STAGES`].
pub const STAGE_KEY: &str = "X_BANGER_STAGE";

/// The stages of a guest's start in the order in which they are reported, when each begins:
/// the agent has its configuration; it mounts the disks; it gives its network interface the address; it hands over to
/// the image's init, if there is one, and serves. `READY=1` follows.
pub const STAGES: [&str; 4] = ["agent", "disks", "address", "init"];

/// Status key that gives the guest's uptime in microseconds when the line was written.
pub const UPTIME_KEY: &str = "X_BANGER_UPTIME_USEC";

/// Status key that gives the reason when the guest cannot come up.
pub const FAILURE_KEY: &str = "X_BANGER_FAILURE";

/// Status key of the guest's last word when it goes down in order, one of
/// [`crate::ending::Goodbye`].
pub const GOODBYE_KEY: &str = "X_BANGER_GOODBYE";

/// Status key of a sign of life; its value is `1`.
pub const ALIVE_KEY: &str = "X_BANGER_ALIVE";

/// Status key that says, with `1`, that the VMM would see a panic of the guest's kernel.
pub const PANIC_SEEN_KEY: &str = "X_BANGER_PANIC_SEEN";

/// Status key that names something the guest was to have and comes up without.
pub const WARNING_KEY: &str = "X_BANGER_WARNING";

/// Everything a guest has to know to become its VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// What goes to `/etc/machine-id`: 32 hexadecimal digits in lower case. Empty leaves the
    /// image's.
    #[serde(default)]
    pub machine_id: String,
    pub rootfs: Rootfs,
    /// Block device (ext4) of the work disk, mounted read-write at [`WORK`].
    #[serde(default)]
    pub work: Option<String>,
    /// Other disks, mounted in this order. One that cannot be mounted ends the start.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// `None`: the guest has no network.
    #[serde(default)]
    pub network: Option<Network>,
    #[serde(default)]
    pub init: Init,
    /// How the machine is switched off from inside.
    #[serde(default)]
    pub power_off: PowerOff,
    /// What the image says about the processes started in it.
    pub process: ProcessDefaults,
    /// Variables of this VM for all processes, laid over the image's.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Files written into the root filesystem before the guest is ready.
    #[serde(default)]
    pub files: Vec<File>,
    /// Public keys that may log in over SSH as the image's user, one line each. They stand in a
    /// block of their own in `~/.ssh/authorized_keys`; other keys stay.
    #[serde(default)]
    pub authorized_keys: Vec<String>,
    /// Who commits in the guest, for its `/etc/gitconfig` unless that says so already.
    #[serde(default)]
    pub git: Option<GitIdentity>,
    /// Certificates of authorities to trust, each in PEM.
    #[serde(default)]
    pub ca_certificates: Vec<String>,
    /// Name of a time zone, such as `Europe/Berlin`. Empty leaves the image's.
    #[serde(default)]
    pub timezone: String,
}

impl GuestConfig {
    /// What processes started in the guest get: the image's defaults with the VM's environment.
    pub fn process_defaults(&self) -> ProcessDefaults {
        let mut defaults = self.process.clone();
        defaults.env.extend(self.environment.clone());
        defaults
    }
}

/// Where the work disk is mounted.
pub const WORK: &str = "/work";

/// A disk besides the ones of the root filesystem.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Block device, such as `/dev/vdd`.
    pub device: String,
    /// Directory in the guest, absolute; made if it is missing.
    pub path: String,
    /// Filesystem type; empty has the agent look (ext4, xfs, squashfs, erofs).
    #[serde(default)]
    pub fstype: String,
    #[serde(default)]
    pub read_only: bool,
}

/// A file of the host's choice in the guest. What is at its place is replaced; missing directories
/// above it are made, for root with mode 0755.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Absolute, without `.` and `..`.
    pub path: String,
    /// In JSON as base64.
    #[serde(with = "base64_text")]
    pub content: Vec<u8>,
    /// The permission bits, such as `0o600`.
    pub mode: u32,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty is root.
    #[serde(default)]
    pub owner: String,
}

/// The author of commits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitIdentity {
    pub name: String,
    pub email: String,
}

/// Bytes as base64 in a string.
mod base64_text {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)
    }
}

/// The disks the root filesystem is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// MAC address, such as `02:ba:0a:d1:00:02`, for a guest that woke up with another VM's. Empty
    /// leaves the interface's own.
    #[serde(default)]
    pub mac: String,
    /// The largest packet, in bytes; 0 leaves the interface's own.
    #[serde(default)]
    pub mtu: u32,
    /// `None`: the guest has no IPv6 beyond its link.
    #[serde(default)]
    pub ipv6: Option<Network6>,
}

/// The interface's address of IPv6.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network6 {
    pub address: Ipv6Addr,
    pub prefix: u8,
    pub gateway: Ipv6Addr,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_has_a_default() {
        let config: GuestConfig = serde_json::from_str(
            r#"{"protocol": 3, "hostname": "web", "realtime_usec": 0, "seed": "",
                "rootfs": {"image": "/dev/vda", "fstype": "squashfs", "overlay": "/dev/vdb"},
                "process": {}}"#,
        )
        .unwrap();
        assert_eq!(
            config,
            GuestConfig {
                protocol: 3,
                hostname: "web".into(),
                rootfs: Rootfs {
                    image: "/dev/vda".into(),
                    fstype: "squashfs".into(),
                    overlay: "/dev/vdb".into()
                },
                ..GuestConfig::default()
            }
        );
    }

    #[test]
    fn any_bytes_can_be_a_files_content() {
        let file = File { path: "/a".into(), content: (0..=255).collect(), mode: 0o600, owner: "web".into() };
        let text = serde_json::to_string(&file).unwrap();
        assert_eq!(serde_json::from_str::<File>(&text).unwrap(), file);
        assert!(serde_json::from_str::<File>(r#"{"path": "/a", "content": "!", "mode": 0}"#).is_err());
    }

    #[test]
    fn the_vms_environment_wins_over_the_images() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
        };
        let config = GuestConfig {
            process: ProcessDefaults { env: map(&[("A", "image"), ("B", "image")]), ..Default::default() },
            environment: map(&[("B", "vm"), ("C", "vm")]),
            ..GuestConfig::default()
        };
        assert_eq!(config.process_defaults().env, map(&[("A", "image"), ("B", "vm"), ("C", "vm")]));
    }
}
