//! What a VM is to be, and what it is.
//!
//! ```text
//!              start            guest ready          stop / guest powers off
//!   created ─────────▶ starting ─────────▶ running ─────────▶ stopping ─────────▶ stopped
//!                         │                   │                                      │
//!                         └──── failed ◀──────┘            start ◀───────────────────┘
//! ```
//!
//! A VM's state is never stored: [`State::of`] derives it from its unit.

use serde::{Deserialize, Serialize};

use crate::guest::Init;

pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// What was asked for when the VM was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spec {
    /// Virtual CPUs, 1 to 64.
    pub cpus: u32,
    /// Memory in bytes, a multiple of 1 MiB.
    pub memory: u64,
    /// Size of the disk that takes the writes, in bytes. The file is sparse.
    pub disk: u64,
    pub vmm: VmmChoice,
    pub network: bool,
    /// Whether the guest reaches addresses beyond the host.
    pub nat: bool,
    pub init: Init,
    /// Words added to the kernel command line.
    pub kernel_arguments: String,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: 512 * MIB,
            disk: 8 * GIB,
            vmm: VmmChoice::Auto,
            network: true,
            nat: true,
            init: Init::Auto,
            kernel_arguments: String::new(),
        }
    }
}

/// Which virtual machine monitor runs the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmmChoice {
    /// Firecracker where it is installed and KVM works, else QEMU.
    #[default]
    Auto,
    Qemu,
    Firecracker,
}

/// Why a specification cannot be met anywhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpec {
    #[error("{0} is not a number of CPUs: use 1 to {MAX_CPUS}")]
    Cpus(u32),
    #[error("{0} bytes of memory: use at least 64 MiB and whole MiB")]
    Memory(u64),
    #[error("a disk of {0} bytes: use at least 64 MiB and at most 64 TiB")]
    Disk(u64),
    #[error("kernel arguments must be printable ASCII of at most {MAX_KERNEL_ARGUMENTS} characters")]
    KernelArguments,
    #[error("{0:?} is not a VMM: use auto, qemu or firecracker")]
    Vmm(String),
    #[error("{0:?} is not an init: use auto, agent or image")]
    Init(String),
}

const MAX_CPUS: u32 = 64;
const MAX_KERNEL_ARGUMENTS: usize = 1024;

impl Spec {
    /// # Errors
    /// The first thing that cannot be met on any host.
    pub fn check(&self) -> Result<(), InvalidSpec> {
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(InvalidSpec::Cpus(self.cpus));
        }
        if self.memory < 64 * MIB || !self.memory.is_multiple_of(MIB) {
            return Err(InvalidSpec::Memory(self.memory));
        }
        if !(64 * MIB..=64 << 40).contains(&self.disk) {
            return Err(InvalidSpec::Disk(self.disk));
        }
        let printable = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
        if self.kernel_arguments.len() > MAX_KERNEL_ARGUMENTS || !self.kernel_arguments.bytes().all(printable)
        {
            return Err(InvalidSpec::KernelArguments);
        }
        Ok(())
    }
}

macro_rules! words {
    ($type:ident, $error:expr, $($word:literal = $variant:ident),*) => {
        impl $type {
            pub fn as_str(self) -> &'static str {
                match self { $($type::$variant => $word,)* }
            }
        }

        impl std::str::FromStr for $type {
            type Err = InvalidSpec;

            fn from_str(word: &str) -> Result<Self, InvalidSpec> {
                match word {
                    $($word => Ok($type::$variant),)*
                    _ => Err($error(word.to_owned())),
                }
            }
        }
    };
}

words!(VmmChoice, InvalidSpec::Vmm, "auto" = Auto, "qemu" = Qemu, "firecracker" = Firecracker);
words!(Init, InvalidSpec::Init, "auto" = Auto, "agent" = Agent, "image" = Image);

/// What a VM is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Never started.
    Created,
    Starting,
    /// The guest has said that it is ready.
    Running,
    Stopping,
    Stopped,
    /// The guest did not come up, or its VMM died.
    Failed,
}

impl State {
    /// From the unit's `ActiveState`; `started` tells whether the VM was ever started.
    pub fn of(active_state: &str, started: bool) -> Self {
        match active_state {
            "active" | "reloading" | "refreshing" => State::Running,
            "activating" => State::Starting,
            "deactivating" => State::Stopping,
            "failed" => State::Failed,
            _ if started => State::Stopped,
            _ => State::Created,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Starting => "starting",
            State::Running => "running",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
            State::Failed => "failed",
        }
    }

    /// Whether the VM has a VMM process.
    pub fn is_up(self) -> bool {
        matches!(self, State::Starting | State::Running | State::Stopping)
    }
}

/// The host's stages of creating and starting a VM, in their order. Between [`Stage::Kernel`] and
/// [`Stage::Ready`] come the guest's own, [`crate::guest::STAGES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Find the image and the kernel.
    Resolve,
    /// Fetch the image.
    Pull,
    /// Take name and address.
    Reserve,
    /// Make the disk.
    Disk,
    /// systemd starts the unit.
    Start,
    /// TAP and address on the host.
    Network,
    /// The VMM runs and the guest's kernel boots.
    Kernel,
    /// The guest is ready.
    Ready,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Resolve => "resolve",
            Stage::Pull => "pull",
            Stage::Reserve => "reserve",
            Stage::Disk => "disk",
            Stage::Start => "start",
            Stage::Network => "network",
            Stage::Kernel => "kernel",
            Stage::Ready => "ready",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert_eq!(Spec::default().check(), Ok(()));
    }

    #[test]
    fn refuses_what_no_host_has() {
        let spec = Spec::default;
        assert_eq!(Spec { cpus: 0, ..spec() }.check(), Err(InvalidSpec::Cpus(0)));
        assert_eq!(Spec { memory: MIB, ..spec() }.check(), Err(InvalidSpec::Memory(MIB)));
        assert_eq!(Spec { memory: GIB + 1, ..spec() }.check(), Err(InvalidSpec::Memory(GIB + 1)));
        assert_eq!(Spec { disk: 1, ..spec() }.check(), Err(InvalidSpec::Disk(1)));
        let kernel_arguments = "a\nb".to_owned();
        assert_eq!(Spec { kernel_arguments, ..spec() }.check(), Err(InvalidSpec::KernelArguments));
    }

    #[test]
    fn states_follow_the_unit() {
        assert_eq!(State::of("inactive", false), State::Created);
        assert_eq!(State::of("inactive", true), State::Stopped);
        assert_eq!(State::of("active", true), State::Running);
        assert_eq!(State::of("failed", true), State::Failed);
    }

    #[test]
    fn words_come_back() {
        assert_eq!("qemu".parse(), Ok(VmmChoice::Qemu));
        assert_eq!(VmmChoice::Firecracker.as_str(), "firecracker");
        assert_eq!("x".parse::<Init>(), Err(InvalidSpec::Init("x".into())));
    }

    #[test]
    fn specs_survive_storage() {
        let text = serde_json::to_string(&Spec::default()).expect("serializes");
        assert_eq!(serde_json::from_str::<Spec>(&text).expect("parses"), Spec::default());
        // A row written before a field existed.
        assert_eq!(serde_json::from_str::<Spec>("{}").expect("parses"), Spec::default());
    }
}
