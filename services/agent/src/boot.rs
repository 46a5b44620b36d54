//! From the initramfs to the image's root filesystem.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context as _, bail};
use banger_core::guest::{GuestConfig, Init, PowerOff, ProcessDefaults};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::set_cad_enabled;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use nix::unistd::{ForkResult, chdir, chroot, fork, sethostname, setsid};

use crate::disks::{Disks, ROOT};
use crate::host::Host;
use crate::provision::provision;
use crate::{etc, net, sys};

/// What imaged lists the initramfs's modules in: one path a line, in the order of loading.
const MODULES: &str = "/modules.load";

/// The image's own init.
const INIT: &CStr = c"/sbin/init";

/// The outcome of the boot.
pub struct Booted {
    disks: Disks,
    hand_over: bool,
}

/// What the serving part has to know of the boot.
pub struct Context {
    /// We are PID 1.
    pub is_init: bool,
    pub disks: Disks,
    pub power_off: PowerOff,
    pub process: ProcessDefaults,
}

/// What has to be there before anything can be said or asked.
pub fn early() -> anyhow::Result<()> {
    // A closed pipe is an error like any other.
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    for (fs, at, flags, data) in [
        ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755"),
        ("proc", "/proc", MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, ""),
        ("sysfs", "/sys", MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, ""),
        ("tmpfs", "/run", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755"),
    ] {
        sys::make_directory(at)?;
        mount(Some(fs), at, Some(fs), flags, Some(data)).with_context(|| format!("cannot mount {at}"))?;
    }
    sys::open_log();
    occupy_standard_fds();
    // Nobody started by us is to outlive its own bugs at our cost.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    load_modules();
    Ok(())
}

/// Descriptors 0 to 2 must be something, or the next files opened become standard streams.
fn occupy_standard_fds() {
    while let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        if null.as_raw_fd() > 2 {
            return;
        }
        std::mem::forget(null);
    }
}

fn load_modules() {
    let list = match sys::read_bounded(MODULES, 1 << 20) {
        Ok(list) => list,
        Err(error) => return sys::log!(sys::INFO, "no {MODULES}: {error}"),
    };
    // What fails may only have come before a module it needs: it gets another chance as long as
    // others come in.
    let mut missing = modules(&list);
    loop {
        let mut failed = Vec::new();
        for &path in &missing {
            if let Err(error) = load_module(path) {
                failed.push((path, error));
            }
        }
        if failed.is_empty() || failed.len() == missing.len() {
            for (path, error) in failed {
                sys::log!(sys::WARNING, "cannot load {path}: {error}");
            }
            return;
        }
        missing = failed.into_iter().map(|(path, _)| path).collect();
    }
}

fn load_module(path: &str) -> io::Result<()> {
    match finit_module(&File::open(path)?, c"", ModuleInitFlags::empty()) {
        // Built in, or loaded by the kernel itself.
        Err(nix::Error::EEXIST) => Ok(()),
        result => Ok(result?),
    }
}

fn modules(list: &[u8]) -> Vec<&str> {
    let text = std::str::from_utf8(list).unwrap_or_default();
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// Makes the machine what its configuration says, up to and including the new root.
pub fn boot(host: &mut Host, config: &mut GuestConfig) -> anyhow::Result<Booted> {
    host.stage("agent");
    identify(config)?;
    host.stage("disks");
    let mut disks = Disks::mount_root(&config.rootfs)?;
    switch_root()?;
    disks.mount_others(config)?;
    for (device, grown) in disks.grow() {
        if let Err(error) = grown {
            host.warning(&format!("cannot grow {device}: {error:#}"));
        }
    }
    host.stage("address");
    net::up_loopback()?;
    if let Some(network) = &config.network {
        net::set_up_network(network)?;
    }
    let hand_over = match config.init {
        Init::Agent => false,
        Init::Image if has_init() => true,
        Init::Image => bail!("the image has no /sbin/init; use another one or --init=agent"),
        Init::Auto => has_init() && !is_bare_busybox(),
    };
    mount_api(hand_over);
    for warning in write_files(config, &disks, hand_over) {
        host.warning(&warning);
    }
    Ok(Booted { disks, hand_over })
}

/// Makes the machine, in which a snapshot of perhaps another one has woken up, what its
/// configuration says. Returns what could not be done.
pub fn reconfigure(config: &mut GuestConfig, context: &Context) -> anyhow::Result<Vec<String>> {
    identify(config)?;
    sys::reseed().context("cannot renew the random numbers")?;
    net::take_down()?;
    if let Some(network) = &config.network {
        net::set_mac(&network.mac)?;
        net::set_up_network(network)?;
    }
    Ok(write_files(config, &context.disks, !context.is_init))
}

/// Puts into the root filesystem what is this VM's. Returns what could not be done.
fn write_files(config: &mut GuestConfig, disks: &Disks, foreign_init: bool) -> Vec<String> {
    let mut warnings = etc::manage(config, disks, foreign_init);
    warnings.extend(provision(config, disks));
    warnings
}

/// Name, clock and entropy.
fn identify(config: &GuestConfig) -> anyhow::Result<()> {
    if config.realtime_usec > 0 {
        let usec = i64::try_from(config.realtime_usec).context("no such time")?;
        let now = TimeSpec::new(usec / 1_000_000, usec % 1_000_000 * 1000);
        clock_settime(ClockId::CLOCK_REALTIME, now).context("cannot set the clock")?;
    }
    let seed = sys::from_hex(&config.seed).context("the seed is not hexadecimal")?;
    sys::add_entropy(&seed).context("cannot add entropy")?;
    sethostname(&config.hostname).context("cannot set the host name")
}

fn switch_root() -> anyhow::Result<()> {
    for at in ["/dev", "/proc", "/sys", "/run"] {
        let to = format!("{ROOT}{at}");
        sys::make_directory(&to)?;
        mount::<str, str, str, str>(Some(at), &to, None, MsFlags::MS_MOVE, None)
            .with_context(|| format!("cannot move {at}"))?;
    }
    // The initramfs stays below the new root; give its memory back.
    let _ = fs::remove_dir_all("/lib");
    for file in ["/init", MODULES] {
        let _ = fs::remove_file(file);
    }
    chdir(ROOT)?;
    mount::<str, str, str, str>(Some("."), "/", None, MsFlags::MS_MOVE, None)
        .context("cannot move the root")?;
    chroot(".")?;
    chdir("/").context("cannot enter the new root")
}

/// The rest of what programs expect to find, for the commands we start and for any init.
fn mount_api(foreign_init: bool) {
    let nodev = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mut mounts = vec![
        ("devpts", "/dev/pts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"),
        ("tmpfs", "/dev/shm", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777"),
    ];
    if !foreign_init {
        mounts.push(("cgroup2", "/sys/fs/cgroup", nodev, "nsdelegate"));
    }
    for (fs, at, flags, data) in mounts {
        let mounted =
            sys::make_directory(at).and_then(|()| Ok(mount(Some(fs), at, Some(fs), flags, Some(data))?));
        if let Err(error) = mounted {
            sys::log!(sys::WARNING, "cannot mount {at}: {error}");
        }
    }
    for (link, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "fd/0"),
        ("/dev/stdout", "fd/1"),
        ("/dev/stderr", "fd/2"),
    ] {
        let _ = std::os::unix::fs::symlink(to, link);
    }
    for at in ["/tmp", "/run/lock"] {
        if fs::DirBuilder::new().create(at).is_ok() {
            let _ = fs::set_permissions(at, fs::Permissions::from_mode(0o1777));
        }
    }
}

fn has_init() -> bool {
    fs::metadata("/sbin/init").is_ok_and(|init| init.is_file() && init.mode() & 0o111 != 0)
}

/// An `/sbin/init` that is only one of busybox's many names, in an image that was not set up to
/// be booted: container images of Alpine have it, and there it starts nothing but complaints.
fn is_bare_busybox() -> bool {
    let busybox = fs::canonicalize("/sbin/init")
        .is_ok_and(|init| init.file_name().is_some_and(|name| name == "busybox"));
    busybox && !Path::new("/sbin/openrc").exists() && !Path::new("/etc/init.d/rcS").exists()
}

/// Starts the image's init, if it is to be PID 1. Returns in the process that serves.
///
/// PID 1 itself has to become the init, so it is the child that goes on as the agent.
pub fn hand_over(booted: Booted, host: &mut Host, config: &GuestConfig) -> anyhow::Result<Context> {
    let Booted { disks, hand_over } = booted;
    let serving = |is_init: bool, disks: Disks| Context {
        is_init,
        disks,
        power_off: config.power_off,
        process: config.process_defaults(),
    };
    if !hand_over {
        // Ctrl-Alt-Del is a signal to us, not a reset.
        let _ = set_cad_enabled(false);
        return Ok(serving(true, disks));
    }
    host.stage("init");
    // SAFETY: there is only this thread.
    match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Child => {
            let _ = setsid();
            Ok(serving(false, disks))
        }
        ForkResult::Parent { .. } => {
            let _ = fs::write("/proc/self/oom_score_adj", "0");
            give_console();
            // SAFETY: no handler is installed.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
            let Err(error) = nix::unistd::execve(INIT, &[INIT], &init_environment(config));
            // The agent sees to the rest: PID 1 may not end.
            sys::log!(sys::ERR, "cannot start /sbin/init: {error}");
            host.failed(&format!("cannot start the image's /sbin/init: {error}"));
            crate::power::cut(Some(&disks), config.power_off)
        }
    }
}

/// What an init is started with: the VM's environment, for the services it starts. The image's is
/// not for an init: there are images whose `container=` tells systemd that it runs in one.
fn init_environment(config: &GuestConfig) -> Vec<CString> {
    let mut variables = BTreeMap::from([("TERM", "linux")]);
    variables.extend(config.environment.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    variables.iter().filter_map(|(key, value)| CString::new(format!("{key}={value}")).ok()).collect()
}

/// An init wants its standard streams on the console.
fn give_console() {
    let console = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/console");
    if let Ok(console) = console {
        let _ = nix::unistd::dup2_stdin(&console);
        let _ = nix::unistd::dup2_stdout(&console);
        let _ = nix::unistd::dup2_stderr(&console);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_lists() {
        assert_eq!(modules(b"# order matters\n/a.ko\n\n  /b.ko \n"), ["/a.ko", "/b.ko"]);
        assert!(modules(b"\xff\xfe").is_empty());
    }
}
