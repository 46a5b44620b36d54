//! Firecracker, configured by one JSON file.
//!
//! The format is that of Firecracker's `--config-file` (docs/getting-started.md and
//! src/firecracker/swagger/firecracker.yaml of its source), version 1.7 and later.

use std::path::PathBuf;

use serde::Serialize;

use banger_core::guest::PowerOff;

use crate::{COMMAND_LINE, Machine, Plan, Vmm, command_line, text};

/// Firecracker on this host.
#[derive(Debug, Clone)]
pub struct Firecracker {
    pub program: PathBuf,
}

/// Name of the configuration file in the runtime directory.
const CONFIG: &str = "firecracker.json";

impl Vmm for Firecracker {
    fn name(&self) -> &'static str {
        "firecracker"
    }

    fn power_off(&self) -> PowerOff {
        PowerOff::Reset
    }

    fn plan(&self, machine: &Machine) -> Plan {
        let config =
            serde_json::to_string_pretty(&Config::of(machine)).expect("strings and numbers serialize");
        let main = [
            text(&self.program),
            "--id".into(),
            machine.name.clone(),
            "--config-file".into(),
            text(&machine.runtime_dir.join(CONFIG)),
            "--api-sock".into(),
            text(&machine.runtime_dir.join("firecracker.sock")),
        ];
        Plan { files: vec![(CONFIG.into(), config)], helpers: vec![], main: main.into() }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Config {
    boot_source: BootSource,
    machine_config: MachineConfig,
    drives: Vec<Drive>,
    network_interfaces: Vec<NetworkInterface>,
    vsock: Vsock,
    entropy: Entropy,
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

impl Config {
    fn of(machine: &Machine) -> Self {
        let drive = |disk: &crate::Disk| Drive {
            drive_id: disk.id.clone(),
            path_on_host: text(&disk.path),
            // The root is found by the initramfs, not named to the kernel.
            is_root_device: false,
            is_read_only: disk.read_only,
        };
        let interface = |nic: &crate::Nic| NetworkInterface {
            iface_id: "network".into(),
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
            vsock: Vsock { guest_cid: machine.context_id, uds_path: text(&machine.vsock_socket) },
            entropy: Entropy {},
        }
    }
}
