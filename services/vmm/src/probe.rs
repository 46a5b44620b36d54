//! What this host has to run VMs with.

use std::path::{Path, PathBuf};

use crate::Host;

/// Where programs of packages and of the admin live; a service's `$PATH` is not asked.
const PATH: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/usr/libexec", "/usr/local/libexec"];

/// Looks at the host. Takes a few milliseconds, and [`TSC_SAMPLE`] more on the first call where
/// guests will be emulated.
pub fn host() -> Host {
    let kvm = Path::new("/dev/kvm").exists() && cpu_virtualises();
    Host {
        firecracker: program("firecracker"),
        qemu: program(&format!("qemu-system-{}", std::env::consts::ARCH)),
        vhost_device_vsock: program("vhost-device-vsock"),
        kvm,
        tsc_khz: if kvm { None } else { tsc_khz() },
    }
}

fn program(name: &str) -> Option<PathBuf> {
    PATH.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file())
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

/// How long the time stamp counter is watched to find its rate.
#[cfg(target_arch = "x86_64")]
const TSC_SAMPLE: std::time::Duration = std::time::Duration::from_millis(20);

/// Rate of the time stamp counter, measured once per process against the monotonic clock.
#[cfg(target_arch = "x86_64")]
fn tsc_khz() -> Option<u32> {
    static RATE: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    // SAFETY: every x86-64 CPU has the instruction, and Linux leaves it enabled in user mode.
    let now = || (std::time::Instant::now(), unsafe { std::arch::x86_64::_rdtsc() });
    let measure = || {
        let (start, first) = now();
        std::thread::sleep(TSC_SAMPLE);
        let (end, last) = now();
        let nanoseconds = (end - start).as_nanos().max(1);
        let khz = u128::from(last.wrapping_sub(first)) * 1_000_000 / nanoseconds;
        u32::try_from(khz).unwrap_or(0)
    };
    let khz = *RATE.get_or_init(measure);
    (khz > 0).then_some(khz)
}

#[cfg(not(target_arch = "x86_64"))]
fn tsc_khz() -> Option<u32> {
    None
}
