//! From the initramfs to the image's root filesystem.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, bail};
use banger_core::guest::{GuestConfig, Init, Rootfs};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::set_cad_enabled;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use nix::unistd::{ForkResult, chdir, chroot, fork, sethostname, setsid};

use crate::host::Host;
use crate::{etc, net, sys};

/// What imaged lists the initramfs's modules in: one path a line, in the order of loading.
const MODULES: &str = "/modules.load";

/// How long a disk may take to appear after its driver.
const DISK: Duration = Duration::from_secs(20);

/// Where the filesystems meet, below the initramfs: nobody in the guest sees these mounts.
const IMAGE: &str = "/mnt/image";
const OVERLAY: &str = "/mnt/overlay";
const ROOT: &str = "/mnt/root";

/// The image's own init.
const INIT: &CStr = c"/sbin/init";

/// The outcome of the boot.
pub struct Booted {
    pub disk: File,
    hand_over: bool,
}

/// What the serving part has to know of the boot.
pub struct Context {
    /// We are PID 1.
    pub is_init: bool,
    /// The root directory of the overlay disk, to be able to make it read-only at the end.
    pub disk: File,
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
        make_directory(at)?;
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
pub fn boot(host: &mut Host) -> anyhow::Result<Booted> {
    host.stage("agent");
    let config = host.config.clone();
    identify(&config)?;
    host.stage("disks");
    mount_root(&config.rootfs)?;
    let disk = File::open(OVERLAY)?;
    host.stage("network");
    net::up_loopback()?;
    if let Some(network) = &config.network {
        net::set_up_network(network)?;
    }
    switch_root()?;
    let hand_over = match config.init {
        Init::Agent => false,
        Init::Image if has_init() => true,
        Init::Image => bail!("the image has no /sbin/init; use another one or --init=agent"),
        Init::Auto => has_init() && !is_bare_busybox(),
    };
    mount_api(hand_over);
    if let Err(error) = etc::manage(&config, &disk, hand_over) {
        sys::log!(sys::WARNING, "cannot write to /etc: {error:#}");
    }
    Ok(Booted { disk, hand_over })
}

/// Name, clock and entropy.
fn identify(config: &GuestConfig) -> anyhow::Result<()> {
    let usec = i64::try_from(config.realtime_usec).unwrap_or(0);
    let now = TimeSpec::new(usec / 1_000_000, usec % 1_000_000 * 1000);
    clock_settime(ClockId::CLOCK_REALTIME, now).context("cannot set the clock")?;
    let seed = sys::from_hex(&config.seed).context("the seed is not hexadecimal")?;
    sys::add_entropy(&seed).context("cannot add entropy")?;
    sethostname(&config.hostname).context("cannot set the host name")
}

fn mount_root(rootfs: &Rootfs) -> anyhow::Result<()> {
    for directory in ["/mnt", IMAGE, OVERLAY, ROOT] {
        make_directory(directory)?;
    }
    mount_disk(&rootfs.image, IMAGE, &rootfs.fstype, MsFlags::MS_RDONLY, "")?;
    mount_disk(&rootfs.overlay, OVERLAY, "ext4", MsFlags::MS_RELATIME, "")?;
    let (upper, work) = (format!("{OVERLAY}/upper"), format!("{OVERLAY}/work"));
    make_directory(&work)?;
    if !Path::new(&upper).exists() {
        // The root directory's owner and mode are the upper layer's.
        let image = fs::metadata(IMAGE)?;
        let fresh = format!("{OVERLAY}/upper.new");
        make_directory(&fresh)?;
        chown(&fresh, Some(image.uid()), Some(image.gid()))?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(image.mode() & 0o7777))?;
        fs::rename(&fresh, &upper)?;
    }
    let data = format!("lowerdir={IMAGE},upperdir={upper},workdir={work}");
    mount(Some("overlay"), ROOT, Some("overlay"), MsFlags::empty(), Some(data.as_str()))
        .context("cannot lay the overlay over the image")
}

fn mount_disk(disk: &str, at: &str, fs: &str, flags: MsFlags, data: &str) -> anyhow::Result<()> {
    let deadline = sys::uptime() + DISK;
    while !Path::new(disk).exists() {
        if sys::uptime() >= deadline {
            bail!("no disk {disk} after {DISK:?}; does the kernel have its driver?");
        }
        sleep(Duration::from_millis(5));
    }
    mount(Some(disk), at, Some(fs), flags, Some(data)).with_context(|| format!("cannot mount {disk} as {fs}"))
}

fn switch_root() -> anyhow::Result<()> {
    for at in ["/dev", "/proc", "/sys", "/run"] {
        let to = format!("{ROOT}{at}");
        make_directory(&to)?;
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
        let mounted = make_directory(at).and_then(|()| Ok(mount(Some(fs), at, Some(fs), flags, Some(data))?));
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

fn make_directory(path: &str) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
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
pub fn hand_over(booted: Booted, host: &mut Host) -> anyhow::Result<Context> {
    let Booted { disk, hand_over } = booted;
    if !hand_over {
        // Ctrl-Alt-Del is a signal to us, not a reset.
        let _ = set_cad_enabled(false);
        return Ok(Context { is_init: true, disk });
    }
    host.stage("init");
    // SAFETY: there is only this thread.
    match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Child => {
            let _ = setsid();
            Ok(Context { is_init: false, disk })
        }
        ForkResult::Parent { .. } => {
            let _ = fs::write("/proc/self/oom_score_adj", "0");
            give_console();
            // SAFETY: no handler is installed.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
            let Err(error) = nix::unistd::execve(INIT, &[INIT], &[c"TERM=linux"]);
            // The agent sees to the rest: PID 1 may not end.
            sys::log!(sys::ERR, "cannot start /sbin/init: {error}");
            host.failed(&format!("cannot start the image's /sbin/init: {error}"));
            crate::power::cut(Some(&disk), host.config.power_off)
        }
    }
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
