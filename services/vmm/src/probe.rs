//! What this host has to run VMs with.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::{Host, Program, Version};

/// Where programs of packages and of the admin live; a service's `$PATH` is not asked.
const PATH: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/usr/libexec", "/usr/local/libexec"];

/// Looks at the host. Takes a few milliseconds; on the first call the VMMs are asked for their
/// versions, and where guests will be emulated it takes [`TSC_SAMPLE`] more.
pub fn host() -> Host {
    let kvm = Path::new("/dev/kvm").exists() && cpu_virtualises();
    Host {
        firecracker: program("firecracker").map(versioned),
        qemu: program(&format!("qemu-system-{}", std::env::consts::ARCH)).map(versioned),
        vhost_device_vsock: program("vhost-device-vsock"),
        kvm,
        tsc_khz: if kvm { None } else { tsc_khz() },
    }
}

fn program(name: &str) -> Option<PathBuf> {
    PATH.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file())
}

/// Asks a program for its version, once for as long as its file does not change.
fn versioned(path: PathBuf) -> Program {
    type Known = HashMap<(PathBuf, Option<SystemTime>), Option<Version>>;
    static KNOWN: Mutex<Option<Known>> = Mutex::new(None);
    let modified = path.metadata().and_then(|metadata| metadata.modified()).ok();
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let version =
        *known.get_or_insert_default().entry((path.clone(), modified)).or_insert_with(|| version(&path));
    Program { path, version }
}

fn version(program: &Path) -> Option<Version> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    Version::parse(&String::from_utf8_lossy(&output.stdout))
}

/// Whether the CPU can run guests: Intel's `vmx`, AMD's `svm`; other architectures need no flag.
fn cpu_virtualises() -> bool {
    if !cfg!(target_arch = "x86_64") {
        return true;
    }
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

/// The host's CPU as `/proc/cpuinfo` names it.
pub fn cpu() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim()).unwrap_or("?")
    };
    let numbers = [field("cpu family"), field("model"), field("stepping")].join("-");
    format!("{} {} ({numbers})", field("vendor_id"), field("model name"))
}

/// How long the time stamp counter is watched to find its rate.
#[cfg(target_arch = "x86_64")]
const TSC_SAMPLE: std::time::Duration = std::time::Duration::from_millis(20);

/// Rate of the time stamp counter, measured once per process against the monotonic clock.
#[cfg(target_arch = "x86_64")]
fn tsc_khz() -> Option<u32> {
    static RATE: std::sync::OnceLock<Option<u32>> = std::sync::OnceLock::new();
    // Both clocks at one instant, or nearly: on a busy host the CPU may be taken away between them.
    let now = || {
        let read = || {
            let time = std::time::Instant::now();
            // SAFETY: every x86-64 CPU has the instruction, and Linux leaves it enabled in user mode.
            let stamp = unsafe { std::arch::x86_64::_rdtsc() };
            (time.elapsed(), time, stamp)
        };
        let (_, time, stamp) = std::array::from_fn::<_, 8, _>(|_| read()).into_iter().min()?;
        Some((time, stamp))
    };
    let measure = || {
        let (start, first) = now()?;
        std::thread::sleep(TSC_SAMPLE);
        let (end, last) = now()?;
        let nanoseconds = (end - start).as_nanos().max(1);
        let khz = u128::from(last.wrapping_sub(first)) * 1_000_000 / nanoseconds;
        u32::try_from(khz).ok().filter(|khz| *khz > 0)
    };
    *RATE.get_or_init(measure)
}

#[cfg(not(target_arch = "x86_64"))]
fn tsc_khz() -> Option<u32> {
    None
}
