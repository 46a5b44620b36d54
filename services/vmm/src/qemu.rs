//! QEMU's `microvm` machine: no firmware, no PCI, virtio over MMIO, with KVM or emulation (TCG).

use std::path::{Path, PathBuf};

use banger_core::guest::PowerOff;
use banger_core::spec::VmmChoice;
use serde_json::json;

use crate::control::{QEMU_EVENTS, QEMU_SOCKET};
use crate::{COMMAND_LINE, Disk, Helper, Machine, Plan, Version, Vmm, command_line, text};

/// The oldest QEMU whose `microvm` has all that is used here.
pub(crate) const OLDEST: Version = Version(6, 2, 0);

/// The vsock device. It sits in a slot of its own on PCI, where everything else is virtio over
/// MMIO, because it has to be unplugged for a snapshot.
pub(crate) const VSOCK: &str = "vsock";
const VSOCK_BUS: &str = "vsock-slot";

/// The device as QEMU takes it, at its start or later.
///
/// Without `VIRTIO_F_EVENT_IDX`, so that the guest announces all that it sends: vhost-device-vsock
/// (0.3.0, by vhost-user-backend 0.20) drops what is announced to it in the instant in which it has a
/// queue's descriptor and not yet the word that the queue is enabled. Where the other side is to ask
/// for the next announcement, there is none ever after that.
pub(crate) fn vsock_device() -> serde_json::Value {
    json!({
        "driver": "vhost-user-vsock-pci",
        "id": VSOCK,
        "bus": VSOCK_BUS,
        "chardev": VSOCK,
        "event_idx": false,
    })
}

/// The socket of the process that is the vsock device.
pub(crate) fn vsock_device_socket(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("vhost-vsock.sock")
}

/// The object that holds the rate limits of a disk.
pub(crate) fn limits(disk: &str) -> String {
    format!("limits-{disk}")
}

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
    fn choice(&self) -> VmmChoice {
        VmmChoice::Qemu
    }

    fn power_off(&self) -> PowerOff {
        PowerOff::Acpi
    }

    fn plan(&self, machine: &Machine) -> Plan {
        let device = vsock_device_socket(&machine.runtime_dir);
        Plan {
            files: machine.restore_file().into_iter().collect(),
            links: vec![],
            pipes: vec![],
            helpers: vec![self.vsock(machine, &device)],
            main: self.main(machine, &device),
        }
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

    /// An emulator that has one CPU leaves memory barriers out, as if nobody else looked at the memory.
    /// The devices do, in threads and processes of their own, and then miss what is put into a queue:
    /// a guest or its caller waits for the other. One that may get a second CPU keeps them.
    fn cpus(&self, cpus: u32) -> String {
        if self.kvm || cpus > 1 { cpus.to_string() } else { format!("{cpus},maxcpus={}", cpus + 1) }
    }

    fn main(&self, machine: &Machine, vsock: &Path) -> Vec<String> {
        let mut words: Vec<String> = vec![text(&self.program)];
        let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
        let accel = if self.kvm { "kvm" } else { "tcg" };
        add("-name", format!("guest={}", machine.name));
        // The VM's memory is shared with the vsock device, a process of its own.
        add("-machine", format!("microvm,acpi=on,pcie=on,accel={accel},memory-backend=memory"));
        add("-cpu", if self.kvm { "host" } else { "max" }.into());
        add("-smp", self.cpus(machine.cpus));
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
            add("-object", limits_object(disk));
            add("-blockdev", block_device(disk));
            add("-device", format!("virtio-blk-device,drive={}", disk.id));
        }
        if let Some(nic) = &machine.network {
            add("-netdev", format!("tap,id=network,ifname={},script=no,downscript=no", nic.tap));
            add("-device", format!("virtio-net-device,netdev=network,mac={}", nic.mac));
        }
        add("-chardev", format!("socket,id={VSOCK},path={}", escape(&text(vsock))));
        add("-device", format!("pcie-root-port,id={VSOCK_BUS},chassis=1,slot=1"));
        match machine.restore {
            None => add("-device", vsock_device().to_string()),
            // Snapshots are without it: it is plugged in when the guest has been loaded.
            Some(_) => add("-incoming", "defer".into()),
        }
        add("-object", "rng-random,id=rng,filename=/dev/urandom".into());
        add("-device", "virtio-rng-device,rng=rng".into());
        if machine.balloon {
            add("-device", "virtio-balloon-device,deflate-on-oom=on,free-page-reporting=on".into());
        }
        // By it a kernel that panics is told from one that restarts.
        add("-device", "pvpanic-pci".into());
        // One client at a time each: who waits for the guest's end is not to keep others out.
        for monitor in [QEMU_SOCKET, QEMU_EVENTS] {
            let monitor = machine.runtime_dir.join(monitor);
            add("-qmp", format!("unix:{},server=on,wait=off", escape(&text(&monitor))));
        }
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
        // QEMU's ACPI tables do not hand the hotplug of PCI over, so the kernel has to take it.
        command_line(&[COMMAND_LINE, "reboot=t pcie_ports=native", &clocks, &machine.kernel.arguments])
    }
}

/// There even without a limit, so that one can be set while the VM runs.
fn limits_object(disk: &Disk) -> String {
    let limit = disk.limit.unwrap_or_default();
    let limits = json!({
        "qom-type": "throttle-group",
        "id": limits(&disk.id),
        "limits": {"bps-total": limit.bytes.unwrap_or(0), "iops-total": limit.operations.unwrap_or(0)},
    });
    limits.to_string()
}

/// The file below, the limits above; the upper one has the disk's id.
fn block_device(disk: &Disk) -> String {
    let file = json!({
        "driver": "raw",
        "read-only": disk.read_only,
        "discard": "unmap",
        "file": {"driver": "file", "filename": text(&disk.path)},
    });
    let limited = json!({
        "driver": "throttle",
        "node-name": disk.id,
        "throttle-group": limits(&disk.id),
        "read-only": disk.read_only,
        "discard": "unmap",
        "file": file,
    });
    limited.to_string()
}

/// QEMU's option lists take a doubled comma for a comma.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}
