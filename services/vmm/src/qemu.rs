//! QEMU's `microvm` machine: no firmware, no PCI, virtio over MMIO, with KVM or emulation (TCG).

use std::path::{Path, PathBuf};

use banger_core::guest::PowerOff;

use crate::{COMMAND_LINE, Helper, Machine, Plan, Vmm, command_line, text};

/// QEMU on this host.
#[derive(Debug, Clone)]
pub struct Qemu {
    pub program: PathBuf,
    /// The vhost-user device that gives QEMU guests vsock over a Unix socket, by Firecracker's
    /// convention, without a kernel module.
    pub vhost_device_vsock: PathBuf,
    pub kvm: bool,
    pub tsc_khz: Option<u32>,
}

impl Vmm for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn power_off(&self) -> PowerOff {
        PowerOff::Acpi
    }

    fn plan(&self, machine: &Machine) -> Plan {
        let device = machine.runtime_dir.join("vhost-vsock.sock");
        Plan { files: vec![], helpers: vec![self.vsock(machine, &device)], main: self.main(machine, &device) }
    }
}

impl Qemu {
    fn vsock(&self, machine: &Machine, device: &Path) -> Helper {
        let vm = format!(
            "guest-cid={},socket={},uds-path={}",
            machine.context_id,
            device.display(),
            machine.vsock_socket.display()
        );
        Helper { command: vec![text(&self.vhost_device_vsock), "--vm".into(), vm], ready: device.to_owned() }
    }

    fn main(&self, machine: &Machine, vsock: &Path) -> Vec<String> {
        let mut words: Vec<String> = vec![text(&self.program)];
        let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
        let accel = if self.kvm { "kvm" } else { "tcg" };
        add("-name", format!("guest={}", machine.name));
        // The VM's memory is shared with the vsock device, a process of its own.
        add("-machine", format!("microvm,acpi=on,accel={accel},memory-backend=memory"));
        add("-cpu", if self.kvm { "host" } else { "max" }.into());
        add("-smp", machine.cpus.to_string());
        let mib = machine.memory >> 20;
        add("-m", format!("{mib}M"));
        add("-object", format!("memory-backend-memfd,id=memory,size={mib}M,share=on"));
        add("-kernel", text(&machine.kernel.vmlinuz));
        add("-initrd", text(&machine.kernel.initramfs));
        add("-append", self.command_line(machine));
        // Standard output is the journal of the VM's unit.
        add("-chardev", "stdio,id=console,signal=off".into());
        add("-serial", "chardev:console".into());
        // The guest numbers its disks in the order in which they stand here. No slots by hand: the
        // lowest share interrupts with the machine's own devices, and guests hang on them.
        for disk in &machine.disks {
            let read_only = if disk.read_only { "on" } else { "off" };
            let path = escape(&text(&disk.path));
            let discard = if disk.read_only { "" } else { ",discard=unmap" };
            add(
                "-blockdev",
                format!(
                    "driver=raw,node-name={},read-only={read_only}{discard},file.driver=file,file.filename={path}",
                    disk.id
                ),
            );
            add("-device", format!("virtio-blk-device,drive={}", disk.id));
        }
        if let Some(nic) = &machine.network {
            add("-netdev", format!("tap,id=network,ifname={},script=no,downscript=no", nic.tap));
            add("-device", format!("virtio-net-device,netdev=network,mac={}", nic.mac));
        }
        add("-chardev", format!("socket,id=vsock,path={}", escape(&text(vsock))));
        add("-device", "vhost-user-vsock-device,chardev=vsock".into());
        add("-object", "rng-random,id=rng,filename=/dev/urandom".into());
        add("-device", "virtio-rng-device,rng=rng".into());
        let monitor = machine.runtime_dir.join("qmp.sock");
        add("-qmp", format!("unix:{},server=on,wait=off", escape(&text(&monitor))));
        add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into());
        words.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(String::from));
        words.extend(["-display", "none"].map(String::from));
        words
    }

    fn command_line(&self, machine: &Machine) -> String {
        // Without these an emulated guest on a busy host hangs while it measures its clocks.
        let clocks = match self.tsc_khz {
            Some(khz) if !self.kvm => format!("tsc_early_khz={khz} no_timer_check"),
            _ => String::new(),
        };
        // A triple fault ends the machine at once; what Linux tries first can take half a minute
        // on a busy host.
        command_line(&[COMMAND_LINE, "reboot=t", &clocks, &machine.kernel.arguments])
    }
}

/// QEMU's option lists take a doubled comma for a comma.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}
