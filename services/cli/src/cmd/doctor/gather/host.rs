//! The kernel and the files of the host.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use banger_api::{Result, SERVICES};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Group, User};
use zbus::proxy;

use super::super::facts::{Account, Clock, Directory, Machine, Owned, Seen, Storage, System, Unseen};
use crate::Context;

/// What is below it is banger's.
const STATE: &str = "/var/lib/banger";

pub fn machine() -> Machine {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Machine {
        flags: flags(&cpuinfo),
        kvm: owned("/dev/kvm"),
        tun: owned("/dev/net/tun"),
        kvm_group: group("kvm"),
    }
}

/// Of the first CPU; all are alike.
fn flags(cpuinfo: &str) -> Vec<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let (_, flags) = line.split_once(':').unwrap_or_default();
    flags.split_whitespace().map(str::to_owned).collect()
}

pub fn owned(path: &str) -> Option<Owned> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(Owned { uid: metadata.uid(), gid: metadata.gid(), mode: metadata.mode() & 0o7777 })
}

fn user(name: &str) -> Option<u32> {
    User::from_name(name).ok().flatten().map(|user| user.uid.as_raw())
}

fn group(name: &str) -> Option<u32> {
    Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw())
}

pub fn system() -> System {
    let release = nix::sys::utsname::uname().map(|uname| uname.release().to_string_lossy().into_owned());
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    System {
        release: release.unwrap_or_default(),
        controllers: controllers.ok().map(|all| all.split_whitespace().map(str::to_owned).collect()),
        accounts: accounts(),
        directories: directories(),
    }
}

fn accounts() -> Vec<Account> {
    let groups = ["banger", "banger-vm", "kvm"].map(str::to_owned);
    let users = SERVICES.map(|service| format!("banger-{}", service.id));
    let groups = groups.into_iter().map(|name| Account { kind: "group", id: group(&name), name });
    groups.chain(users.into_iter().map(|name| Account { kind: "user", id: user(&name), name })).collect()
}

/// Those of tmpfiles.d, and those that the services' units name.
fn directories() -> Vec<Directory> {
    let roots =
        ["/run/banger", "/run/banger/vm", STATE].map(|path| directory(path.into(), "root", 0o755, true));
    let states = SERVICES.map(|service| {
        // Images and kernels are for the VMs to read.
        let mode = if service == banger_api::IMAGED { 0o750 } else { 0o700 };
        directory(format!("{STATE}/{}", service.id), &format!("banger-{}", service.id), mode, false)
    });
    roots.into_iter().chain(states).collect()
}

fn directory(path: String, owner: &str, mode: u32, always: bool) -> Directory {
    Directory { owner: owner.to_owned(), owner_id: user(owner), mode, always, found: owned(&path), path }
}

pub fn storage() -> Seen<Storage> {
    let failed = |error: &dyn std::fmt::Display| Unseen {
        what: format!("cannot look at the filesystem of {STATE}: {error}"),
        remedy: "sudo banger doctor".into(),
    };
    let space = statvfs(STATE).map_err(|error| failed(&error))?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(|error| failed(&error))?;
    let (mounted_at, kind) = mount(&mounts, STATE).ok_or_else(|| failed(&"it is mounted nowhere"))?;
    let block = space.fragment_size();
    Ok(Storage {
        kind,
        mounted_at,
        read_only: space.flags().contains(FsFlags::ST_RDONLY),
        has_acls: has_acls(STATE),
        free: space.blocks_available() * block,
        size: space.blocks() * block,
        free_inodes: space.files_available(),
        inodes: space.files(),
    })
}

/// Where the filesystem of a path is mounted and of what type it is, by proc_pid_mountinfo(5). Later mounts hide
/// earlier ones.
fn mount(mountinfo: &str, path: &str) -> Option<(String, String)> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        Some((before.split(' ').nth(4)?, after.split(' ').next()?))
    });
    let holds = mounts.filter(|(at, _)| Path::new(path).starts_with(at));
    holds.max_by_key(|(at, _)| at.len()).map(|(at, kind)| (at.to_owned(), kind.to_owned()))
}

/// Whether there can be access lists: without one there is no such attribute, or no such thing.
fn has_acls(path: &str) -> bool {
    let mut nothing = [0u8; 0];
    !matches!(
        rustix::fs::getxattr(path, "system.posix_acl_access", &mut nothing),
        Err(rustix::io::Errno::NOTSUP)
    )
}

#[proxy(
    interface = "org.freedesktop.timedate1",
    default_service = "org.freedesktop.timedate1",
    default_path = "/org/freedesktop/timedate1"
)]
trait TimeDate {
    #[zbus(name = "NTPSynchronized", property(emits_changed_signal = "false"))]
    fn ntp_synchronized(&self) -> zbus::Result<bool>;
    /// Whether a service for it is installed.
    #[zbus(name = "CanNTP", property(emits_changed_signal = "false"))]
    fn can_ntp(&self) -> zbus::Result<bool>;
}

pub async fn clock(context: &Context) -> Result<Clock> {
    let time = TimeDateProxy::new(&context.bus.system().await?).await?;
    Ok(Clock { synchronised: time.ntp_synchronized().await?, has_service: time.can_ntp().await? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_words() {
        let cpuinfo =
            "processor\t: 0\nflags\t\t: fpu vme svm\nbugs\t\t:\n\nprocessor\t: 1\nflags\t\t: other\n";
        assert_eq!(flags(cpuinfo), ["fpu", "vme", "svm"]);
        assert!(flags("").is_empty());
    }

    #[test]
    fn the_nearest_and_last_mount_counts() {
        let mounts = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            30 22 8:2 / /var/lib rw - xfs /dev/sdb rw\n\
            31 22 8:2 / /var/lib/bang rw - vfat /dev/sdc rw\n\
            32 22 8:2 / /var/lib rw shared:9 master:2 - btrfs /dev/sdd rw\n";
        assert_eq!(mount(mounts, STATE), Some(("/var/lib".into(), "btrfs".into())));
        assert_eq!(mount("", STATE), None);
    }
}
