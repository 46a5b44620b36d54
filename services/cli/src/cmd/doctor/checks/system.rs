//! What the services run on.

use super::super::check::{Finding, Remedy, or_ok};
use super::super::facts::{Account, Answer, Clock, Directory, Storage, System, You};
use super::super::fix::Fix;
use crate::output::size;

/// openat2(2), by which files are copied.
const OLDEST_LINUX: (u32, u32) = (5, 6);
const OLDEST_SYSTEMD: u32 = 252;

/// What limits of VMs are enforced by.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];

/// No VM starts with less; as vmd has it.
const NO_ROOM: u64 = 128 << 20;
/// Room for an image or two.
const LITTLE_ROOM: u64 = 2 << 30;
const FEW_INODES: u64 = 10_000;

pub fn linux(system: &System) -> Vec<Finding> {
    let release = &system.release;
    let (major, minor) = OLDEST_LINUX;
    vec![match two_numbers(release) {
        Some(version) if version >= OLDEST_LINUX => Finding::ok(format!("Linux {release}")),
        _ => Finding::fail(
            format!("Linux {release} is too old"),
            format!("install Linux {major}.{minor} or later"),
        ),
    }]
}

/// `6.1` of `6.1.0-56-cloud-amd64`.
fn two_numbers(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+', '~']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// `252` of `252.39-1~deb12u1` or `v257`.
fn major(version: &str) -> Option<u32> {
    let digits = version.trim_start_matches('v').split(|c: char| !c.is_ascii_digit()).next();
    digits?.parse().ok()
}

pub fn systemd(version: &str) -> Vec<Finding> {
    vec![match major(version) {
        Some(major) if major < OLDEST_SYSTEMD => Finding::fail(
            format!("systemd {version} is too old"),
            format!("install systemd {OLDEST_SYSTEMD} or later"),
        ),
        Some(major) if major < 255 => Finding::ok(format!(
            "systemd {version}; from 255 on `banger stats` shows the most memory that a VM took"
        )),
        _ => Finding::ok(format!("systemd {version}")),
    }]
}

pub fn cgroups(system: &System) -> Vec<Finding> {
    let Some(controllers) = &system.controllers else {
        let remedy = "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line";
        return vec![Finding::fail("control groups are not unified (version 2)", remedy)];
    };
    let missing: Vec<&str> =
        CONTROLLERS.into_iter().filter(|name| !controllers.iter().any(|known| known == name)).collect();
    if missing.is_empty() {
        return vec![Finding::ok("limits of VMs can be enforced")];
    }
    let what = format!(
        "controllers are missing ({}): limits of VMs by them are set, but not enforced",
        missing.join(", ")
    );
    let remedy =
        "take cgroup_disable= off the kernel's command line; in a container, have its manager delegate them";
    vec![Finding::warn(what, remedy)]
}

pub fn clock(clock: Clock) -> Vec<Finding> {
    vec![match clock {
        Clock { synchronised: true, .. } => Finding::ok("the clock is synchronised"),
        Clock { has_service: true, .. } => Finding::warn(
            "the clock is not synchronised",
            "timedatectl set-ntp true, and look at timedatectl timesync-status",
        ),
        _ => Finding::warn(
            "the clock is not synchronised, and no service sees to it",
            "install chrony or systemd-timesyncd",
        ),
    }]
}

pub fn accounts(accounts: &[Account]) -> Vec<Finding> {
    let missing = accounts.iter().filter(|account| account.id.is_none());
    let findings = missing
        .map(|Account { kind, name, .. }| Finding::fail(format!("there is no {kind} {name}"), Fix::Users));
    or_ok(findings.collect(), "banger's users and groups are there")
}

pub fn directories(directories: &[Directory]) -> Vec<Finding> {
    let findings = directories.iter().filter_map(|directory| {
        let Directory { path, owner, mode, .. } = directory;
        let remedy = || match directory.always {
            true => Remedy::Fix(Fix::Directories),
            // systemd sets owner and mode when it starts the service.
            false => format!("systemctl restart {owner}").into(),
        };
        match directory.found {
            None if directory.always => Some(Finding::fail(format!("there is no {path}"), remedy())),
            None => None,
            Some(found) if Some(found.uid) != directory.owner_id => {
                Some(Finding::fail(format!("{path} belongs to user {}, not to {owner}", found.uid), remedy()))
            }
            Some(found) if found.mode != *mode => {
                Some(Finding::warn(format!("{path} has mode {:04o}, not {mode:04o}", found.mode), remedy()))
            }
            Some(_) => None,
        }
    });
    or_ok(findings.collect(), "banger's directories are there, with their owners and modes")
}

pub fn space(storage: &Storage) -> Vec<Finding> {
    let Storage { mounted_at, free, size: all, .. } = storage;
    let room = format!("{} of {} free at {mounted_at}", size(*free), size(*all));
    let mut findings = Vec::new();
    let remedy = "banger image prune --all (banger image df says what takes how much), or banger rm, snapshot rm and volume rm, which work on a full disk, too; or more disk at /var/lib/banger";
    if storage.read_only {
        findings.push(Finding::fail(
            format!("{mounted_at} is read-only"),
            format!("mount -o remount,rw {mounted_at}"),
        ));
    }
    if *free < NO_ROOM {
        findings.push(Finding::fail(format!("{room}: no VM starts"), remedy));
    } else if *free < LITTLE_ROOM {
        findings.push(Finding::warn(room.clone(), remedy));
    }
    if storage.inodes > 0 && storage.free_inodes < FEW_INODES {
        let few = format!("{} of {} inodes free at {mounted_at}", storage.free_inodes, storage.inodes);
        findings.push(Finding::warn(few, "remove files: df -i says where they are"));
    }
    or_ok(findings, room)
}

pub fn filesystem(storage: &Storage) -> Vec<Finding> {
    let Storage { kind, mounted_at, .. } = storage;
    let elsewhere = format!("mount ext4, xfs or btrfs at /var/lib/banger (now {kind})");
    vec![if !storage.has_acls {
        Finding::fail(
            format!("{mounted_at} ({kind}) has no access lists, by which VMs are let into their disks"),
            elsewhere,
        )
    } else if matches!(kind.as_str(), "tmpfs" | "ramfs") {
        Finding::warn(
            format!("{mounted_at} is a {kind}: all VMs and images are gone with the next boot"),
            elsewhere,
        )
    } else if matches!(kind.as_str(), "btrfs" | "xfs" | "bcachefs") {
        Finding::ok(format!("{kind}, which copies of disks share blocks on"))
    } else {
        Finding::ok(format!(
            "{kind}; copies of disks take their own space, which they would share on btrfs or xfs"
        ))
    }]
}

/// Whether whoever asks may use banger.
pub fn access(you: &You) -> Vec<Finding> {
    let name = &you.name;
    let join = || format!("usermod -aG banger {name}, then log in again");
    vec![match you.polkit {
        Some(Answer::Unheard) => Finding::fail(
            "polkit knows no actions of banger",
            "install banger again, then systemctl restart polkit",
        ),
        None => Finding::fail(
            "polkit does not answer, so nobody but root may manage VMs over the bus",
            "systemctl status polkit; its package is polkitd or polkit",
        ),
        _ if you.is_root => Finding::ok("you are root, who may do everything"),
        Some(Answer::Yes) if you.in_group => {
            Finding::ok(format!("{name} may manage VMs, by the group banger"))
        }
        Some(Answer::Yes) => Finding::ok(format!("{name} may manage VMs")),
        _ if you.in_group => Finding::fail(
            format!("{name} is in the group banger, but polkit does not let it manage VMs"),
            "install banger's polkit rules (50-banger.rules) again, or look for rules that overrule them",
        ),
        _ if you.in_group_from_login => Finding::warn(
            format!("{name} is in the group banger only from the next login on"),
            "log in again, or newgrp banger",
        ),
        Some(Answer::WithPassword) => {
            Finding::warn(format!("{name} manages VMs only with an administrator's password"), join())
        }
        _ => Finding::warn(format!("{name} may not manage VMs"), join()),
    }]
}

#[cfg(test)]
mod tests {
    use super::super::super::check::Verdict::{self, Fail, Ok, Warn};
    use super::super::super::facts::Owned;
    use super::*;

    fn verdicts(findings: &[Finding]) -> Vec<Verdict> {
        findings.iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (release, verdict) in
            [("6.1.0-56-cloud-amd64", Ok), ("5.6+rc1", Ok), ("5.4.0", Fail), ("4.19.0", Fail), ("odd", Fail)]
        {
            let system = System { release: release.into(), ..System::default() };
            assert_eq!(verdicts(&linux(&system)), [verdict], "{release}");
        }
        for (version, verdict) in [("252.39-1~deb12u1", Ok), ("v257", Ok), ("1000", Ok), ("247.3-7", Fail)] {
            assert_eq!(verdicts(&systemd(version)), [verdict], "{version}");
        }
    }

    #[test]
    fn controllers_that_are_missing_are_named() {
        let system = |controllers: Option<&str>| System {
            controllers: controllers.map(|all| all.split_whitespace().map(str::to_owned).collect()),
            ..System::default()
        };
        assert_eq!(verdicts(&cgroups(&system(Some("cpuset cpu io memory pids")))), [Ok]);
        assert_eq!(verdicts(&cgroups(&system(None))), [Fail]);
        let found = cgroups(&system(Some("cpu memory")));
        assert!(found[0].verdict == Warn && found[0].what.contains("missing (io, pids)"), "{found:?}");
    }

    #[test]
    fn only_what_tmpfiles_makes_is_fixed_by_it() {
        let directory = |always, found| Directory {
            path: "/run/banger".into(),
            owner: "banger-vmd".into(),
            owner_id: Some(7),
            mode: 0o700,
            always,
            found,
        };
        let owned = |uid, mode| Some(Owned { uid, gid: 0, mode });
        for (always, found, verdict, remedy) in [
            (true, owned(7, 0o700), Ok, Remedy::Nothing),
            (true, owned(7, 0o755), Warn, Remedy::Fix(Fix::Directories)),
            (true, None, Fail, Remedy::Fix(Fix::Directories)),
            (false, None, Ok, Remedy::Nothing),
            (false, owned(0, 0o700), Fail, "systemctl restart banger-vmd".into()),
        ] {
            let findings = directories(&[directory(always, found)]);
            assert_eq!((verdicts(&findings), &findings[0].remedy), (vec![verdict], &remedy));
        }
    }

    #[test]
    fn disks_run_full_by_bytes_or_inodes() {
        let storage = |free, free_inodes, inodes| Storage { free, free_inodes, inodes, ..Storage::default() };
        assert_eq!(verdicts(&space(&storage(100 << 30, 0, 0))), [Ok]);
        assert_eq!(verdicts(&space(&storage(1 << 30, 1 << 20, 1 << 20))), [Warn]);
        assert_eq!(verdicts(&space(&storage(1 << 20, 5, 1 << 20))), [Fail, Warn]);
    }

    #[test]
    fn filesystems_need_access_lists_and_last() {
        let storage = |kind: &str, has_acls| Storage { kind: kind.into(), has_acls, ..Storage::default() };
        for (kind, has_acls, verdict) in
            [("ext4", true, Ok), ("xfs", true, Ok), ("tmpfs", true, Warn), ("vfat", false, Fail)]
        {
            assert_eq!(verdicts(&filesystem(&storage(kind, has_acls))), [verdict], "{kind}");
        }
    }

    #[test]
    fn members_of_the_group_may_and_others_hear_how() {
        let you = |is_root, in_group, in_group_from_login, polkit| You {
            name: "alice".into(),
            is_root,
            in_group,
            in_group_from_login,
            polkit,
        };
        for (you, verdict, remedy) in [
            (you(true, false, false, Some(Answer::Yes)), Ok, ""),
            (you(false, true, true, Some(Answer::Yes)), Ok, ""),
            (you(false, true, true, Some(Answer::No)), Fail, "50-banger.rules"),
            (you(false, false, true, Some(Answer::No)), Warn, "newgrp"),
            (you(false, false, false, Some(Answer::WithPassword)), Warn, "usermod -aG banger alice"),
            (you(false, false, false, None), Fail, "polkit"),
            (you(true, false, false, Some(Answer::Unheard)), Fail, "install banger again"),
        ] {
            let found = access(&you);
            assert_eq!(verdicts(&found), [verdict], "{you:?}");
            assert!(found[0].remedy.to_string().contains(remedy), "{found:?}");
        }
    }
}
