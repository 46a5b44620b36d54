//! imaged dies at every place that has a name in its sources, comes back, and an image is whole or
//! was never there: no file without a row, no row without files, no lease lost.

use std::collections::BTreeSet;

use banger_api::IMAGED;
use banger_tests::faults::{Mortal, failpoints};
use banger_tests::tar::{Entry, Tar};
use banger_tests::{BUSYBOX, Vm, Way, banger, job_error, json, oci, run, sh};

const STATE: &str = "/var/lib/banger/imaged";

const IMPORT: &[&str] =
    &["layer.indexed", "build.begun", "build.written", "publish.synced", "publish.renamed", "publish.rows"];
/// From here on the image is there, whoever has been told.
const IMPORTED: &[&str] = &["publish.done"];
const LAYOUT: &[&str] = &["layout.unpacked"];
const REMOVE: &[&str] = &["remove.rows", "remove.files"];
const MOVE: &[&str] = &["name.moved", "remove.rows", "remove.files"];
const LEASE: &[&str] = &["lease.taken"];
const RELEASE: &[&str] = &["lease.released"];
const KERNEL: &[&str] = &["kernel.written", "kernel.renamed"];
const KERNEL_IMPORTED: &[&str] = &["kernel.done"];
const KERNEL_REMOVE: &[&str] = &["kernel.removed"];

/// Every place in the sources is in one of the lists above.
#[test]
fn no_failpoint_is_forgotten() {
    let images = [IMPORT, IMPORTED, LAYOUT, REMOVE, MOVE, LEASE, RELEASE].concat();
    let kernels = [KERNEL, KERNEL_IMPORTED, KERNEL_REMOVE].concat();
    let tried: BTreeSet<String> = images.into_iter().chain(kernels).map(str::to_owned).collect();
    assert_eq!(failpoints("imaged"), tried);
}

fn files(directory: &str) -> BTreeSet<String> {
    let listed = std::fs::read_dir(format!("{STATE}/{directory}")).expect("reads");
    listed.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
}

fn column(list: &[&str], key: &str) -> BTreeSet<String> {
    let listed = json(list);
    let rows = listed.as_array().expect("a list").iter();
    rows.map(|row| row[key].as_str().expect("text").to_owned()).collect()
}

/// Rows and files are of the same images and kernels, and nothing is unfinished. Returns the names
/// of the images.
#[track_caller]
fn whole(point: &str) -> BTreeSet<String> {
    let names = column(&["image", "ls"], "name");
    assert_eq!(files("images"), column(&["image", "ls"], "id"), "after {point}");
    assert_eq!(files("kernels"), column(&["kernel", "ls"], "name"), "after {point}");
    assert_eq!(files("staging"), BTreeSet::new(), "after {point}");
    names
}

fn blobs() -> BTreeSet<String> {
    files("blobs/sha256")
}

fn leases() -> String {
    Way::Bus.call(IMAGED, "ListLeases", &[]).ok()
}

/// The archive of an OCI layout with two layers that no other image has.
struct Source {
    dir: tempfile::TempDir,
}

impl Source {
    fn new(content: &[u8]) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let layer = |name: &str| Tar::default().file(name, content).finish();
        let layout = dir.path().join("oci");
        oci::layout_of(&layout, &[&layer("lower"), &layer("upper")]);
        sh(&format!("tar -C {} -cf {}/oci.tar .", layout.display(), dir.path().display())).ok();
        Self { dir }
    }

    fn path(&self) -> String {
        self.dir.path().join("oci.tar").display().to_string()
    }
}

#[test]
fn an_import_is_whole_or_nothing() {
    const NAME: &str = "t-fault-import";
    let (mortal, source) = (Mortal::new("imaged"), Source::new(&[b'x'; 300_000]));
    let path = source.path();
    let import = ["image", "import", "--name", NAME, path.as_str()];
    let _ = banger(&["image", "rm", NAME]);
    let before = blobs();
    for point in [LAYOUT, IMPORT].concat() {
        mortal.dies(point, &import).refused(&["banger-imaged ended", "run it again"]);
        assert!(!whole(point).contains(NAME), "after {point}");
        assert_eq!(blobs(), before, "after {point}");
    }
    for point in IMPORTED {
        mortal.dies(point, &import).refused(&["banger-imaged ended"]);
        assert!(whole(point).contains(NAME), "after {point}");
        banger(&["image", "verify", NAME]).ok();
        banger(&["image", "rm", NAME]).ok();
        assert_eq!(blobs(), before, "after {point}");
    }
    for point in REMOVE {
        banger(&import).ok();
        assert_ne!(blobs(), before);
        mortal.dies(point, &["image", "rm", NAME]).failed(&["banger"]);
        assert!(!whole(point).contains(NAME), "after {point}");
        assert_eq!(blobs(), before, "after {point}");
    }
}

#[test]
fn a_pull_is_whole_or_nothing() {
    let mortal = Mortal::new("imaged");
    let lower = oci::tar(&[("pulled", &[b'x'; 200_000])]);
    let crafted = oci::push_layers("t-fault-pull", &[&lower, &oci::tar(&[("upper", b"upper")])]);
    let name = crafted.reference.as_str();
    let _ = banger(&["image", "rm", name]);
    let before = blobs();
    for point in IMPORT {
        mortal.dies(point, &["pull", name]).refused(&["banger-imaged ended", "run it again"]);
        assert!(!whole(point).contains(name), "after {point}");
        assert_eq!(blobs(), before, "after {point}");
    }
    banger(&["pull", name]).ok();
    let pulled = blobs();
    // The name goes to the one pulled, and the other image with its last name.
    for point in MOVE {
        let other = "t-fault-moved";
        banger(&["image", "import", "--name", other, &Source::new(point.as_bytes()).path()]).ok();
        mortal.dies(point, &["image", "tag", "--force", name, other]).failed(&["banger"]);
        let id = |name: &str| json(&["image", "show", name])["id"].clone();
        assert!(whole(point).contains(other), "after {point}");
        assert_eq!(id(other), id(name), "after {point}");
        assert_eq!(blobs(), pulled, "after {point}");
        banger(&["image", "rm", other]).ok();
    }
    banger(&["image", "rm", name]).ok();
    assert_eq!(blobs(), before);
}

#[test]
fn leases_outlive_the_service() {
    let mortal = Mortal::new("imaged");
    let (keeper, vm) = (Vm::named("t-fault-keeper"), Vm::named("t-fault-lessee"));
    let create = ["vm", "create", "--name", vm.name(), BUSYBOX];
    banger(&["vm", "create", "--name", keeper.name(), BUSYBOX]).ok();
    let before = leases();
    for point in LEASE {
        mortal.dies(point, &create).failed(&["banger"]);
        banger(&["vm", "reconcile"]).ok();
        assert_eq!(leases(), before, "after {point}");
    }
    for point in RELEASE {
        banger(&create).ok();
        assert_ne!(leases(), before);
        // Whether it has to be said again is vmd's business.
        let _ = mortal.dies(point, &["rm", vm.name()]);
        vm.delete();
        banger(&["vm", "reconcile"]).ok();
        assert_eq!(leases(), before, "after {point}");
    }
    whole("all");
}

#[test]
fn a_kernel_is_whole_or_nothing() {
    const NAME: &str = "t-fault-kernel";
    let import = ["kernel", "import", "--name", NAME];
    let mortal = Mortal::new("imaged");
    let _ = banger(&["kernel", "rm", NAME]);
    let is_there = || column(&["kernel", "ls"], "name").contains(NAME);
    for point in KERNEL {
        mortal.dies(point, &import).refused(&["banger-imaged ended", "run it again"]);
        assert!(!is_there(), "after {point}");
        whole(point);
    }
    for point in KERNEL_IMPORTED {
        mortal.dies(point, &import).refused(&["banger-imaged ended"]);
        assert!(is_there(), "after {point}");
        whole(point);
    }
    for point in KERNEL_REMOVE {
        mortal.dies(point, &["kernel", "rm", NAME]).failed(&["banger"]);
        assert!(!is_there(), "after {point}");
        whole(point);
    }
}

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

/// What imaged has had in memory at most since it began, KiB.
fn peak() -> u64 {
    let pid = run("systemctl", &["show", "-P", "MainPID", "banger-imaged.service"]).ok();
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Archives that would have a great deal in memory are refused before it is there.
#[test]
fn no_archive_takes_much_memory() {
    sh("systemctl restart banger-imaged.service").ok();
    let dir = tempfile::tempdir().expect("tempdir");
    let deep = "d/".repeat(40);
    let many = |name: &dyn Fn(u32) -> String, count: u32, kind: u8| {
        (0..count).fold(Tar::default(), |tar, n| tar.entry(name(n).as_bytes(), &Entry::new(kind), b""))
    };
    let long = "l".repeat(4000);
    let links = (0..25_000)
        .fold(Tar::default(), |tar, n| tar.gnu_long(b'K', long.as_bytes()).link(b'2', &n.to_string(), ""));
    let value = vec![b'v'; 60_000];
    let attributes = (0..600u32).fold(Tar::default(), |tar, n| {
        let value = [&n.to_le_bytes(), value.as_slice()].concat();
        tar.pax(&[("SCHILY.xattr.user.a", &value)]).file(&n.to_string(), b"")
    });
    let records = vec![("a", b"".as_slice()); 100_000];
    let archives = [
        ("directories", many(&|n| n.to_string(), 140_000, b'5')),
        ("implied", many(&|n| format!("{n}/{deep}f"), 4000, b'0')),
        ("links", links),
        ("attributes", attributes),
        ("records", Tar::default().pax(&records).file("x", b"")),
    ];
    for (name, archive) in archives {
        let path = dir.path().join(format!("{name}.tar")).display().to_string();
        std::fs::write(&path, archive.finish()).expect("writes");
        banger(&["image", "import", "--name", "t-memory", &path]).refused(&["invalid image"]);
        std::fs::remove_file(&path).expect("removes");
        assert!(peak() < 128 << 10, "{name}: {} KiB", peak());
        whole(name);
    }
}
