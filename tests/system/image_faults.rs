//! imaged dies at every place that has a name in its sources, comes back, and an image is whole or
//! was never there: no file without a row, no row without files, no lease lost.

use std::collections::BTreeSet;

use banger_api::IMAGED;
use banger_tests::faults::{Mortal, failpoints};
use banger_tests::tar::{Entry, Tar};
use banger_tests::{BUSYBOX, Vm, Way, banger, json, oci, run, sh};

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

pub fn files(directory: &str) -> BTreeSet<String> {
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
pub fn whole(point: &str) -> BTreeSet<String> {
    let names = column(&["image", "ls"], "name");
    assert_eq!(files("images"), column(&["image", "ls"], "id"), "after {point}");
    assert_eq!(files("kernels"), column(&["kernel", "ls"], "name"), "after {point}");
    assert_eq!(files("staging"), BTreeSet::new(), "after {point}");
    names
}

pub fn blobs() -> BTreeSet<String> {
    files("blobs/sha256")
}

fn leases() -> String {
    Way::Bus.call(IMAGED, "ListLeases", &[]).ok()
}

/// The archive of an OCI layout with two layers that no other image has.
pub struct Source {
    dir: tempfile::TempDir,
}

impl Source {
    pub fn new(content: &[u8]) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let layer = |name: &str| Tar::default().file(name, content).finish();
        let layout = dir.path().join("oci");
        oci::layout_of(&layout, &[&layer("lower"), &layer("upper")]);
        sh(&format!("tar -C {} -cf {}/oci.tar .", layout.display(), dir.path().display())).ok();
        Self { dir }
    }

    pub fn path(&self) -> String {
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
