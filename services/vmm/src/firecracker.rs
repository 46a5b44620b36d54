//! Firecracker, configured by one JSON file.
//!
//! The format is that of Firecracker's `--config-file` (docs/getting-started.md and
//! src/firecracker/swagger/firecracker.yaml of its source), version 1.7 and later.

use std::path::PathBuf;

use serde::Serialize;

use banger_core::guest::PowerOff;
use banger_core::spec::VmmChoice;

use crate::control::FIRECRACKER_SOCKET;
use crate::{
    COMMAND_LINE, LOG_PIPE, METRICS_PIPE, Machine, Plan, RateLimit, Version, Vmm, command_line, text,
};

/// The oldest Firecracker whose API and snapshots are as used here.
pub(crate) const OLDEST: Version = Version(1, 7, 0);

/// What only some versions can (CHANGELOG.md of Firecracker's source).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// A snapshot can be loaded with another TAP than it was made with, as forks need it.
    pub network_overrides: bool,
    /// Snapshots without the memory that was never touched, which does not have to be tracked for it.
    pub sparse_snapshots: bool,
}

impl Features {
    #[must_use]
    pub fn of(version: Version) -> Self {
        Self {
            network_overrides: version >= Version(1, 12, 0),
            sparse_snapshots: version >= Version(1, 13, 0),
        }
    }
}

/// Firecracker on this host.
#[derive(Debug, Clone)]
pub struct Firecracker {
    pub program: PathBuf,
}

/// Name of the configuration file in the runtime directory.
const CONFIG: &str = "firecracker.json";

impl Vmm for Firecracker {
    fn choice(&self) -> VmmChoice {
        VmmChoice::Firecracker
    }

    fn power_off(&self) -> PowerOff {
        PowerOff::Reset
    }

    fn plan(&self, machine: &Machine) -> Plan {
        let mut main = vec![
            text(&self.program),
            "--id".into(),
            machine.name.clone(),
            "--api-sock".into(),
            text(&machine.runtime_dir.join(FIRECRACKER_SOCKET)),
            "--log-path".into(),
            LOG_PIPE.into(),
            "--show-level".into(),
            // It would note every request.
            "--level".into(),
            "Warn".into(),
            "--metrics-path".into(),
            METRICS_PIPE.into(),
        ];
        // A snapshot brings its own configuration.
        let file = machine.restore_file().unwrap_or_else(|| {
            main.extend(["--config-file".into(), text(&machine.runtime_dir.join(CONFIG))]);
            let config = serde_json::to_string_pretty(&Config::of(machine));
            (CONFIG.into(), config.expect("strings and numbers serialize"))
        });
        let links = machine.disks.iter().map(|disk| (disk_link(&disk.id), disk.path.clone())).collect();
        Plan {
            files: vec![file],
            links,
            pipes: vec![LOG_PIPE.into(), METRICS_PIPE.into()],
            helpers: vec![],
            main,
        }
    }
}

/// How a disk is called in the runtime directory, in which Firecracker runs: snapshots hold paths, and
/// those of a fork are others.
pub(crate) fn disk_link(id: &str) -> String {
    format!("disk-{id}")
}

/// Firecracker's name for a disk: its API takes no hyphens, which names of ours have, and they have
/// no underscores.
pub(crate) fn drive_id(id: &str) -> String {
    id.replace('-', "_")
}

/// Firecracker's name for the network interface.
pub(crate) const INTERFACE: &str = "network";

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Config {
    boot_source: BootSource,
    machine_config: MachineConfig,
    drives: Vec<Drive>,
    network_interfaces: Vec<NetworkInterface>,
    vsock: Vsock,
    entropy: Entropy,
    #[serde(skip_serializing_if = "Option::is_none")]
    balloon: Option<Balloon>,
}

#[derive(Serialize)]
struct BootSource {
    kernel_image_path: String,
    initrd_path: String,
    boot_args: String,
}

#[derive(Serialize)]
struct MachineConfig {
    vcpu_count: u32,
    mem_size_mib: u64,
}

#[derive(Serialize)]
struct Drive {
    drive_id: String,
    path_on_host: String,
    is_root_device: bool,
    is_read_only: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_limiter: Option<RateLimiter>,
}

#[derive(Serialize)]
struct NetworkInterface {
    iface_id: String,
    guest_mac: String,
    host_dev_name: String,
}

#[derive(Serialize)]
struct Vsock {
    guest_cid: u32,
    uds_path: String,
}

#[derive(Serialize)]
struct Entropy {}

#[derive(Serialize)]
struct Balloon {
    amount_mib: u64,
    deflate_on_oom: bool,
}

/// Two token buckets; without one, that rate is unlimited.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct RateLimiter {
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth: Option<TokenBucket>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ops: Option<TokenBucket>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct TokenBucket {
    size: u64,
    /// Milliseconds in which an empty bucket is filled.
    refill_time: u64,
}

impl RateLimiter {
    fn at_start(limit: RateLimit) -> Self {
        Self {
            bandwidth: limit.bytes.map(TokenBucket::per_second),
            ops: limit.operations.map(TokenBucket::per_second),
        }
    }

    /// For a running VM, where a missing bucket means: as before, and an empty one: none.
    pub(crate) fn live(limit: RateLimit) -> Self {
        let none = TokenBucket { size: 0, refill_time: 0 };
        let bucket = |rate: Option<u64>| Some(rate.map_or(none, TokenBucket::per_second));
        Self { bandwidth: bucket(limit.bytes), ops: bucket(limit.operations) }
    }
}

impl TokenBucket {
    fn per_second(size: u64) -> Self {
        Self { size, refill_time: 1000 }
    }
}

impl Config {
    fn of(machine: &Machine) -> Self {
        let drive = |disk: &crate::Disk| Drive {
            drive_id: drive_id(&disk.id),
            path_on_host: disk_link(&disk.id),
            // The root is found by the initramfs, not named to the kernel.
            is_root_device: false,
            is_read_only: disk.read_only,
            rate_limiter: disk.limit.map(RateLimiter::at_start),
        };
        let interface = |nic: &crate::Nic| NetworkInterface {
            iface_id: INTERFACE.into(),
            guest_mac: nic.mac.clone(),
            host_dev_name: nic.tap.clone(),
        };
        Config {
            boot_source: BootSource {
                kernel_image_path: text(&machine.kernel.vmlinux),
                initrd_path: text(&machine.kernel.initramfs),
                // A reset through the keyboard controller is how a guest ends its Firecracker.
                boot_args: command_line(&[COMMAND_LINE, "reboot=k pci=off", &machine.kernel.arguments]),
            },
            machine_config: MachineConfig { vcpu_count: machine.cpus, mem_size_mib: machine.memory >> 20 },
            drives: machine.disks.iter().map(drive).collect(),
            network_interfaces: machine.network.iter().map(interface).collect(),
            vsock: Vsock { guest_cid: machine.context_id, uds_path: machine.vsock_name() },
            entropy: Entropy {},
            // It holds nothing until it is asked to.
            balloon: machine.balloon.then_some(Balloon { amount_mib: 0, deflate_on_oom: true }),
        }
    }
}
