//! Virtual machine monitors behind one trait.
//!
//! A [`Vmm`] turns a [`Machine`] into a [`Plan`]: the programs to execute and the files to write
//! first. That is a pure function, tested against golden files; who executes the plan is
//! `banger-launch`, inside the VM's unit. [`probe`] finds out what the host can do.

mod firecracker;
pub mod probe;
mod qemu;

use std::path::{Path, PathBuf};

use banger_core::guest::PowerOff;
use banger_core::spec::VmmChoice;

pub use firecracker::Firecracker;
pub use qemu::Qemu;

/// A machine to run, with everything on the host that it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub name: String,
    pub cpus: u32,
    /// Bytes, a multiple of 1 MiB.
    pub memory: u64,
    pub kernel: Kernel,
    /// In the order in which the guest sees them: `/dev/vda`, `/dev/vdb`, …
    pub disks: Vec<Disk>,
    pub network: Option<Nic>,
    /// The guest's vsock context id.
    pub context_id: u32,
    /// A directory of the VM's own for sockets and files.
    pub runtime_dir: PathBuf,
    /// The socket by which the host reaches the guest's vsock ports, in Firecracker's convention.
    pub vsock_socket: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The compressed image (x86: bzImage).
    pub vmlinuz: PathBuf,
    /// The uncompressed ELF image.
    pub vmlinux: PathBuf,
    pub initramfs: PathBuf,
    /// Words added to the command line.
    pub arguments: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Name by which the VMM knows it.
    pub id: String,
    /// A raw image.
    pub path: PathBuf,
    pub read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    pub tap: String,
    pub mac: String,
}

/// What to execute, in which order: write `files`, start `helpers` and wait for each one's
/// socket, then become `main`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Names in the runtime directory, and contents.
    pub files: Vec<(String, String)>,
    pub helpers: Vec<Helper>,
    /// Program and arguments of the VMM.
    pub main: Vec<String>,
}

/// A process the VMM needs beside itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helper {
    pub command: Vec<String>,
    /// The socket that exists once it is ready.
    pub ready: PathBuf,
}

/// A virtual machine monitor on this host.
pub trait Vmm {
    /// `firecracker` or `qemu`.
    fn name(&self) -> &'static str;

    /// How a guest ends its machine.
    fn power_off(&self) -> PowerOff;

    /// What to execute for `machine`.
    fn plan(&self, machine: &Machine) -> Plan;
}

/// What the host has to run VMs with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    pub firecracker: Option<PathBuf>,
    pub qemu: Option<PathBuf>,
    /// `vhost-device-vsock`, which QEMU needs for vsock.
    pub vhost_device_vsock: Option<PathBuf>,
    /// Whether KVM can run ordinary guests: /dev/kvm is there and the CPU has vmx or svm. A
    /// /dev/kvm without them (some nested hosts) opens, but hangs guests.
    pub kvm: bool,
    /// Rate of the time stamp counter, which an emulated guest cannot measure on a busy host.
    pub tsc_khz: Option<u32>,
}

/// Why no VMM can run a machine here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    #[error(
        "Firecracker is not installed: put the program firecracker into /usr/bin or /usr/local/bin, or use --vmm qemu"
    )]
    Firecracker,
    #[error(
        "no VMM is installed: install QEMU (Debian: qemu-system-x86, Fedora: qemu-system-x86-core) or Firecracker"
    )]
    Qemu,
    #[error(
        "QEMU needs the program vhost-device-vsock to reach guests: install it (cargo install vhost-device-vsock) into /usr/bin or /usr/local/bin"
    )]
    VhostDeviceVsock,
}

/// Picks the VMM for a choice: `auto` is Firecracker where it is installed and KVM works, else
/// QEMU.
///
/// # Errors
/// What is missing.
pub fn choose(choice: VmmChoice, host: &Host) -> Result<Box<dyn Vmm + Send>, Missing> {
    match (choice, &host.firecracker) {
        (VmmChoice::Firecracker, None) => Err(Missing::Firecracker),
        // An explicit choice is tried even where the CPU flags say no: some hosts run kernels
        // made for them.
        (VmmChoice::Firecracker, Some(program)) => Ok(Box::new(Firecracker { program: program.clone() })),
        (VmmChoice::Auto, Some(program)) if host.kvm => {
            Ok(Box::new(Firecracker { program: program.clone() }))
        }
        (VmmChoice::Auto | VmmChoice::Qemu, _) => {
            let program = host.qemu.clone().ok_or(Missing::Qemu)?;
            let vhost_device_vsock = host.vhost_device_vsock.clone().ok_or(Missing::VhostDeviceVsock)?;
            Ok(Box::new(Qemu { program, vhost_device_vsock, kvm: host.kvm, tsc_khz: host.tsc_khz }))
        }
    }
}

/// Words both VMMs' guests get: the serial console, and an end instead of a hang after a panic.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 quiet";

/// Joins words of a kernel command line, leaving out empty ones.
fn command_line(words: &[&str]) -> String {
    words.iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>().join(" ")
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn machine() -> Machine {
        Machine {
            name: "web".into(),
            cpus: 2,
            memory: 512 << 20,
            kernel: Kernel {
                vmlinuz: "/k/vmlinuz".into(),
                vmlinux: "/k/vmlinux".into(),
                initramfs: "/k/initramfs.img".into(),
                arguments: "debug".into(),
            },
            disks: vec![
                Disk { id: "image".into(), path: "/i/rootfs.squashfs".into(), read_only: true },
                Disk { id: "disk".into(), path: "/d/disk,1.img".into(), read_only: false },
            ],
            network: Some(Nic { tap: "bg-0002".into(), mac: "02:ba:0a:d1:00:02".into() }),
            context_id: 0x0ad1_0002,
            runtime_dir: "/run/banger/vm/web".into(),
            vsock_socket: "/run/banger/vm/web/vsock.sock".into(),
        }
    }

    fn host() -> Host {
        Host {
            firecracker: Some("/usr/bin/firecracker".into()),
            qemu: Some("/usr/bin/qemu-system-x86_64".into()),
            vhost_device_vsock: Some("/usr/bin/vhost-device-vsock".into()),
            kvm: true,
            tsc_khz: Some(2_596_000),
        }
    }

    fn chosen(choice: VmmChoice, host: &Host) -> Result<&'static str, Missing> {
        choose(choice, host).map(|vmm| vmm.name())
    }

    #[test]
    fn auto_prefers_firecracker_where_kvm_works() {
        assert_eq!(chosen(VmmChoice::Auto, &host()), Ok("firecracker"));
        assert_eq!(chosen(VmmChoice::Auto, &Host { kvm: false, ..host() }), Ok("qemu"));
        assert_eq!(chosen(VmmChoice::Auto, &Host { firecracker: None, ..host() }), Ok("qemu"));
        assert_eq!(chosen(VmmChoice::Qemu, &host()), Ok("qemu"));
    }

    #[test]
    fn says_what_is_missing() {
        let none = Host::default();
        assert_eq!(chosen(VmmChoice::Auto, &none), Err(Missing::Qemu));
        assert_eq!(chosen(VmmChoice::Firecracker, &none), Err(Missing::Firecracker));
        let host = Host { vhost_device_vsock: None, ..host() };
        assert_eq!(chosen(VmmChoice::Qemu, &host), Err(Missing::VhostDeviceVsock));
    }

    #[test]
    fn qemu_golden() {
        for (name, kvm) in [("qemu-tcg", false), ("qemu-kvm", true)] {
            let plan = choose(VmmChoice::Qemu, &Host { kvm, ..host() }).expect("there").plan(&machine());
            insta::assert_snapshot!(name, render(&plan));
        }
    }

    #[test]
    fn firecracker_golden() {
        let plan = choose(VmmChoice::Firecracker, &host()).expect("there").plan(&machine());
        insta::assert_snapshot!("firecracker", render(&plan));
    }

    fn render(plan: &Plan) -> String {
        let mut text = String::new();
        for (name, content) in &plan.files {
            text += &format!("{name}:\n{content}\n\n");
        }
        for helper in &plan.helpers {
            text +=
                &format!("helper (ready: {}):\n{}\n\n", helper.ready.display(), helper.command.join("\n  "));
        }
        text + &format!("main:\n{}\n", plan.main.join("\n  "))
    }
}
