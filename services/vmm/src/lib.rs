//! Virtual machine monitors behind one trait.
//!
//! A [`Vmm`] turns a [`Machine`] into a [`Plan`]: the programs to execute and the files to write
//! first. That is a pure function, tested against golden files; who executes the plan is
//! `banger-launch`, inside the VM's unit. [`probe`] finds out what the host can do, and [`control`]
//! speaks to a VMM that runs.

pub mod control;
mod firecracker;
pub mod probe;
mod qemu;

use std::path::{Path, PathBuf};

use banger_core::guest::PowerOff;
use banger_core::spec::{Rates, VmmChoice};

pub use firecracker::{Features, Firecracker};
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
    /// Whether the guest can be asked to give memory back.
    pub balloon: bool,
    /// The directory of a snapshot to start from, see [`control`]. The machine has to be like the one
    /// that the snapshot is of; names, paths, context id and TAP may differ.
    pub restore: Option<PathBuf>,
}

impl Machine {
    /// What `banger-launch` needs to know to load the snapshot.
    fn restore_file(&self) -> Option<(String, String)> {
        let restore = control::Restore {
            dir: self.restore.clone()?,
            tap: self.network.as_ref().map(|nic| nic.tap.clone()),
        };
        Some((control::RESTORE.into(), serde_json::to_string(&restore).expect("strings serialize")))
    }

    /// The vsock socket's name in the runtime directory.
    fn vsock_name(&self) -> String {
        text(self.vsock_socket.strip_prefix(&self.runtime_dir).unwrap_or(&self.vsock_socket))
    }
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
    pub limit: Option<RateLimit>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    pub tap: String,
    pub mac: String,
}

/// The most that a disk may transfer; `None` is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Bytes per second.
    pub bytes: Option<u64>,
    /// Operations per second.
    pub operations: Option<u64>,
}

impl RateLimit {
    #[must_use]
    pub fn of(rates: &Rates) -> Self {
        Self { bytes: rates.disk_bandwidth, operations: rates.disk_iops }
    }

    /// `None` if nothing is limited.
    #[must_use]
    pub fn any(self) -> Option<Self> {
        Some(self).filter(|limit| *limit != Self::default())
    }
}

/// What to execute, in which order: write `files`, make `links` and `pipes`, start `helpers` and wait for each
/// one's socket, then become `main`, with the runtime directory as its working directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Names in the runtime directory, and contents.
    pub files: Vec<(String, String)>,
    /// Names in the runtime directory, and what they point to.
    pub links: Vec<(String, PathBuf)>,
    /// Named pipes in the runtime directory, by which the VMM tells of itself: [`LOG_PIPE`],
    /// [`METRICS_PIPE`].
    pub pipes: Vec<String>,
    pub helpers: Vec<Helper>,
    /// Program and arguments of the VMM.
    pub main: Vec<String>,
}

/// Firecracker's log, a line each: time, `[id:thread:LEVEL]`, message.
pub const LOG_PIPE: &str = "log.pipe";

/// Firecracker's counters, a JSON object a line. Each counts since the line before, once a minute.
pub const METRICS_PIPE: &str = "metrics.pipe";

/// A process the VMM needs beside itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helper {
    pub command: Vec<String>,
    /// The socket that exists once it is ready.
    pub ready: PathBuf,
}

/// A virtual machine monitor on this host.
pub trait Vmm {
    /// The choice that means it.
    fn choice(&self) -> VmmChoice;

    /// `firecracker` or `qemu`.
    fn name(&self) -> &'static str {
        self.choice().as_str()
    }

    /// How a guest ends its machine.
    fn power_off(&self) -> PowerOff;

    /// What to execute for `machine`.
    fn plan(&self, machine: &Machine) -> Plan;
}

/// What the host has to run VMs with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    pub firecracker: Option<Program>,
    pub qemu: Option<Program>,
    /// `vhost-device-vsock`, which QEMU needs for vsock.
    pub vhost_device_vsock: Option<PathBuf>,
    /// Whether KVM can run ordinary guests: /dev/kvm is there and the CPU has vmx or svm. A
    /// /dev/kvm without them (some nested hosts) opens, but hangs guests.
    pub kvm: bool,
    /// Rate of the time stamp counter, which an emulated guest cannot measure on a busy host.
    pub tsc_khz: Option<u32>,
}

/// A VMM's program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub path: PathBuf,
    /// `None` if it does not say.
    pub version: Option<Version>,
}

impl Program {
    /// Its path, if it is not older than `oldest`.
    fn at_least(&self, oldest: Version) -> Result<PathBuf, TooOld> {
        match self.version {
            Some(version) if version >= oldest => Ok(self.path.clone()),
            found => Err(TooOld { program: self.path.clone(), found, oldest }),
        }
    }
}

/// A version of a program: major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// The first version in a text, such as `Firecracker v1.7.0` or `1.17.0-dev`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(|word| {
            let digits = |part: &str| part.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
            let mut parts = word.trim_start_matches('v').split('.').map(digits);
            Some(Version(parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)))
        })
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// A program of a version that will not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooOld {
    program: PathBuf,
    found: Option<Version>,
    oldest: Version,
}

impl std::fmt::Display for TooOld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { program, found, oldest } = self;
        match found {
            Some(found) => write!(f, "{} is version {found}", program.display())?,
            None => write!(f, "{} does not say its version", program.display())?,
        }
        write!(f, ", but {oldest} or later is needed")
    }
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
    #[error("{0}: install a newer one")]
    TooOld(TooOld),
}

/// Picks the VMM for a choice: `auto` is Firecracker where it is installed and KVM works, else
/// QEMU.
///
/// # Errors
/// What is missing.
pub fn choose(choice: VmmChoice, host: &Host) -> Result<Box<dyn Vmm + Send>, Missing> {
    let firecracker = host.firecracker.as_ref().map(|program| program.at_least(firecracker::OLDEST));
    match (choice, firecracker) {
        (VmmChoice::Firecracker, None) => Err(Missing::Firecracker),
        // An explicit choice is tried even where the CPU flags say no: some hosts run kernels
        // made for them.
        (VmmChoice::Firecracker, Some(program)) => {
            Ok(Box::new(Firecracker { program: program.map_err(Missing::TooOld)? }))
        }
        (VmmChoice::Auto, Some(Ok(program))) if host.kvm => Ok(Box::new(Firecracker { program })),
        (VmmChoice::Auto | VmmChoice::Qemu, _) => {
            let qemu = host.qemu.as_ref().ok_or(Missing::Qemu)?;
            let program = qemu.at_least(qemu::OLDEST).map_err(Missing::TooOld)?;
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
                Disk { id: "image".into(), path: "/i/rootfs.squashfs".into(), read_only: true, limit: None },
                Disk {
                    id: "disk".into(),
                    path: "/d/disk,1.img".into(),
                    read_only: false,
                    limit: Some(RateLimit { bytes: Some(50_000_000), operations: None }),
                },
            ],
            network: Some(Nic { tap: "bg-0002".into(), mac: "02:ba:0a:d1:00:02".into() }),
            context_id: 0x0ad1_0002,
            runtime_dir: "/run/banger/vm/web".into(),
            vsock_socket: "/run/banger/vm/web/vsock.sock".into(),
            balloon: true,
            restore: None,
        }
    }

    fn host() -> Host {
        Host {
            firecracker: Some(program("/usr/bin/firecracker", Version(1, 7, 0))),
            qemu: Some(program("/usr/bin/qemu-system-x86_64", Version(7, 2, 22))),
            vhost_device_vsock: Some("/usr/bin/vhost-device-vsock".into()),
            kvm: true,
            tsc_khz: Some(2_596_000),
        }
    }

    fn program(path: &str, version: Version) -> Program {
        Program { path: path.into(), version: Some(version) }
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
    fn an_old_program_is_told_from_a_missing_one() {
        let old = Some(program("/usr/bin/firecracker", Version(1, 6, 9)));
        let host = Host { firecracker: old, ..host() };
        assert_eq!(chosen(VmmChoice::Auto, &host), Ok("qemu"));
        let error = chosen(VmmChoice::Firecracker, &host).expect_err("too old").to_string();
        assert!(error.starts_with("/usr/bin/firecracker is version 1.6.9, but 1.7.0 or later"), "{error}");
    }

    #[test]
    fn finds_versions() {
        assert_eq!(Version::parse("Firecracker v1.17.0-dev\n\nbye"), Some(Version(1, 17, 0)));
        let qemu = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)";
        assert_eq!(Version::parse(qemu), Some(Version(7, 2, 22)));
        assert_eq!(Version::parse("10.0"), Some(Version(10, 0, 0)));
        assert_eq!(Version::parse("a b. v .1 7"), None);
    }

    #[test]
    fn features_come_with_versions() {
        let of = |minor| Features::of(Version(1, minor, 1));
        assert_eq!(of(7), Features::default());
        assert_eq!(of(12), Features { network_overrides: true, sparse_snapshots: false });
        assert_eq!(of(13), Features { network_overrides: true, sparse_snapshots: true });
    }

    #[test]
    fn qemu_golden() {
        for (name, kvm) in [("qemu-tcg", false), ("qemu-kvm", true)] {
            insta::assert_snapshot!(name, golden(VmmChoice::Qemu, &Host { kvm, ..host() }, &machine()));
        }
    }

    #[test]
    fn firecracker_golden() {
        insta::assert_snapshot!("firecracker", golden(VmmChoice::Firecracker, &host(), &machine()));
    }

    #[test]
    fn restore_golden() {
        let machine = Machine { restore: Some("/s/web".into()), ..machine() };
        insta::assert_snapshot!("qemu-restore", golden(VmmChoice::Qemu, &host(), &machine));
        insta::assert_snapshot!("firecracker-restore", golden(VmmChoice::Firecracker, &host(), &machine));
    }

    fn golden(choice: VmmChoice, host: &Host, machine: &Machine) -> String {
        render(&choose(choice, host).expect("there").plan(machine))
    }

    fn render(plan: &Plan) -> String {
        let mut text = String::new();
        for (name, content) in &plan.files {
            text += &format!("{name}:\n{content}\n\n");
        }
        for (name, target) in &plan.links {
            text += &format!("{name} -> {}\n\n", target.display());
        }
        for pipe in &plan.pipes {
            text += &format!("{pipe} (pipe)\n\n");
        }
        for helper in &plan.helpers {
            text +=
                &format!("helper (ready: {}):\n{}\n\n", helper.ready.display(), helper.command.join("\n  "));
        }
        text + &format!("main:\n{}\n", plan.main.join("\n  "))
    }
}
