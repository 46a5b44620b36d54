//! On a disk without room what adds is refused, what removes is not, and guests wait.

use std::collections::BTreeSet;

use banger_api::IMAGED;
use banger_tests::{BUSYBOX, Vm, banger, eventually, job_error, json, oci, run, sh};

use crate::image_faults::{Source, blobs, files, whole};

/// A service with this little room for everything it stores.
struct Small {
    service: &'static str,
}

impl Small {
    fn new(service: &'static str, group: &str, kib: u32) -> Self {
        let small = Self { service };
        // Its directory is made with its first start.
        let unit = format!("banger-{service}.service");
        sh(&format!("test -d {} || systemctl start {unit}; systemctl stop {unit}", small.state())).ok();
        let options = format!("size={kib}k,mode=0750,uid=banger-{service},gid={group}");
        run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", &small.state()]).ok();
        small
    }

    fn state(&self) -> String {
        format!("/var/lib/banger/{}", self.service)
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let _ = sh(&format!("cat /dev/zero >>{}/filled", self.state()));
        sh(&format!("test $(stat -fc %f {}) = 0", self.state())).ok();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let service = self.service;
        let _ = sh(&format!("systemctl stop banger-{service}.service; umount {}", self.state()));
        // It has begun more often than a service may that nobody stops.
        let _ = sh(&format!(
            "systemctl reset-failed banger-{service}.service banger-{service}.socket; systemctl start banger-{service}.socket"
        ));
    }
}

/// A disk that somebody else fills, at once again after whatever was removed. What adds something is refused,
/// what removes something is not.
#[test]
fn on_a_full_disk_images_can_be_removed() {
    let small = Small::new("imaged", "banger-vm", 8 << 10);
    banger(&["image", "import", "--name", "t-full-a", &Source::new(b"a").path()]).ok();
    banger(&["image", "import", "--name", "t-full-b", &Source::new(b"b").path()]).ok();
    small.fill();
    let name = |n: u32| format!("t-full-{n}-{}", "x".repeat(80));
    // Until the database would have to grow: what was promised to the log is not what gives way.
    let refused = (0..200).find_map(|n| {
        let tag = banger(&["image", "tag", "t-full-a", &name(n)]);
        (tag.status != 0).then_some((n, tag))
    });
    let (tagged, refused) = refused.expect("a disk without room has no room for names");
    refused.refused(&["the disk is full", "free some space"]);
    assert_eq!(files("staging"), BTreeSet::new());
    // The next instance begins with nothing but the log to read.
    sh("systemctl stop banger-imaged.service").ok();
    for n in 0..tagged {
        banger(&["image", "rm", &name(n)]).ok();
        small.fill();
    }
    banger(&["image", "rm", "t-full-a"]).ok();
    small.fill();
    banger(&["image", "prune", "--all"]).ok();
    assert_eq!(whole("a full disk"), BTreeSet::new());
    assert_eq!(blobs(), BTreeSet::new());
}

#[test]
fn on_a_full_disk_vms_can_be_removed() {
    let small = Small::new("vmd", "banger-vmd", 32 << 10);
    let (vm, other) = (Vm::named("t-full-vm"), Vm::named("t-full-other"));
    let create = |name: &str| banger(&["vm", "create", "--name", name, BUSYBOX]);
    create(vm.name()).ok();
    banger(&["volume", "create", "t-full-volume"]).ok();
    small.fill();
    create(other.name()).refused(&["No space left on device", "free some space and try again"]);
    assert_eq!(sh(&format!("ls {}/vms", small.state())).ok(), format!("{}\n", vm.name()));
    banger(&["reset", vm.name()]).ok();
    small.fill();
    sh("systemctl stop banger-vmd.service").ok();
    banger(&["volume", "rm", "t-full-volume"]).ok();
    small.fill();
    banger(&["rm", vm.name()]).ok();
    assert_eq!(sh(&format!("ls {}/vms", small.state())).ok(), "");
}

/// Its VMM keeps what the guest has written until it can be.
#[test]
fn a_guest_without_room_stands_still_until_there_is() {
    // A VM does not start with less than half of it.
    let small = Small::new("vmd", "banger-vmd", 256 << 10);
    let begun = sh("date +%s").ok().trim().to_owned();
    let vm = Vm::running("t-full-guest", BUSYBOX);
    let health = || json(&["vm", "show", vm.name()])["health"].clone();
    vm.sh("seq 1000000 >/tmp/much; sha256sum </tmp/much >/tmp/sum; sync").ok();
    small.fill();
    vm.sh("(cat /tmp/much /tmp/much >/written; sync; touch /tmp/done) >/dev/null 2>&1 &").ok();
    eventually("it stands still", || health() == "stalled");
    assert!(banger(&["ps"]).ok().contains("stalled"));
    run("rm", &[&format!("{}/filled", small.state())]).ok();
    eventually("it goes on", || health() == "healthy");
    eventually("all is written", || vm.sh("test -e /tmp/done").status == 0);
    for half in ["head", "tail"] {
        vm.sh(&format!("{half} -n 1000000 /written | sha256sum | cmp - /tmp/sum")).ok();
    }
    let told = banger(&["events", &format!("--since=@{begun}"), "--vm", vm.name()]).ok();
    for event in ["vm-stalled", "vm-healthy"] {
        assert!(told.contains(event), "no {event} in {told}");
    }
}

/// Wherever the room ends: in a blob, in what is noted of a layer, in the root filesystem, in the
/// database.
#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    const KIB: u32 = 1024;
    let content: Vec<u8> = (0..400 * KIB / 4).flat_map(|n: u32| n.to_le_bytes()).collect();
    let crafted = oci::push_layers("t-full", &[&oci::tar(&[("a", &content)]), &oci::tar(&[("b", &content)])]);
    let (mut refused, mut done) = (0, 0);
    // Two layers of 400 KiB, and the same again as a root filesystem; the database wants 1 MiB and some.
    for kib in (1200..=3600).step_by(120) {
        let small = Small::new("imaged", "banger-vm", kib);
        if banger(&["image", "ls"]).status != 0 {
            // Not even the database has room.
            continue;
        }
        let before = files("images").len() + blobs().len();
        let pull = banger(&["pull", &crafted.reference]);
        match pull.status {
            0 => {
                done += 1;
                banger(&["image", "verify", &crafted.reference]).ok();
                banger(&["image", "rm", &crafted.reference]).ok();
            }
            _ => {
                refused += 1;
                pull.refused(&["free some space and try again"]);
                let name = job_error(IMAGED, "Pull", &["sa{sv}", &crafted.reference, "0"]);
                assert_eq!(name, "org.banger.Error.NoSpace", "with {kib} KiB");
            }
        }
        assert_eq!(whole(&format!("{kib} KiB")), BTreeSet::new());
        assert_eq!(files("images").len() + blobs().len(), before, "with {kib} KiB");
        drop(small);
    }
    assert!(refused > 5 && done > 2, "{refused} refused, {done} done");
}
