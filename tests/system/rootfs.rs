//! Root filesystems: what layers merge to, beside what umoci makes of the same; reproducible, and
//! verified.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use banger_api::IMAGED;
use banger_tests::tar::{Entry, Tar};
use banger_tests::{DEBIAN, Vm, Way, banger, json, oci, run, sh};
use sha2::{Digest, Sha256};

/// The file of an image's root filesystem.
fn rootfs(reference: &str) -> PathBuf {
    let id = json(&["image", "show", reference])["id"].as_str().expect("an id").to_owned();
    format!("/var/lib/banger/imaged/images/{id}/rootfs.squashfs").into()
}

/// A root filesystem as the kernel shows it.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(image: &str) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let (file, at) = (rootfs(image).display().to_string(), dir.path().display().to_string());
        run("mount", &["-o", "loop,ro", "-t", "squashfs", &file, &at]).ok();
        Self(dir)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run("umount", &[&self.0.path().display().to_string()]);
    }
}

/// An image as umoci unpacks it.
fn unpacked(reference: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("tempdir");
    let at = dir.path().display();
    let copy = format!("skopeo copy -q --src-tls-verify=false docker://{reference} oci:{at}/oci:x");
    sh(&copy).ok();
    sh(&format!("umoci unpack --image {at}/oci:x {at}/bundle")).ok();
    let root = dir.path().join("bundle/rootfs");
    (dir, root)
}

/// Every entry at and below a directory with all that a filesystem says of it. Squashfs keeps whole
/// seconds; the size of a directory is the filesystem's own business.
fn entries(root: &Path) -> BTreeMap<OsString, String> {
    let mut found = BTreeMap::new();
    let mut linked: HashMap<u64, OsString> = HashMap::new();
    let mut attributes = attributes(root);
    let mut below = vec![root.to_owned()];
    while let Some(path) = below.pop() {
        let name = path.strip_prefix(root).expect("below").as_os_str().to_owned();
        let data = fs::symlink_metadata(&path).expect("is there");
        let kind = data.file_type();
        let what = if kind.is_dir() {
            let mut inside: Vec<PathBuf> =
                fs::read_dir(&path).expect("reads").map(|entry| entry.expect("an entry").path()).collect();
            // So that the same one of several names comes first.
            inside.sort_by(|one, other| other.cmp(one));
            below.extend(inside);
            "directory".to_owned()
        } else if kind.is_symlink() {
            format!("link to {:?}", fs::read_link(&path).expect("a target"))
        } else if kind.is_file() {
            let first = linked.entry(data.ino()).or_insert_with(|| name.clone());
            format!("file of {} bytes, {}, same as {first:?} x{}", data.len(), digest(&path), data.nlink())
        } else {
            let form = if kind.is_block_device() { "block" } else { "other" };
            format!("{form} {:?} {:x}", kind, data.rdev())
        };
        let (mode, uid, gid) = (data.mode() & 0o7777, data.uid(), data.gid());
        let xattrs = attributes.remove(&name).unwrap_or_default();
        found.insert(name, format!("{what} {mode:o} {uid}:{gid} at {} {xattrs:?}", data.mtime()));
    }
    assert!(attributes.is_empty(), "{attributes:?}");
    found
}

fn digest(path: &Path) -> String {
    let (mut file, mut hash, mut buffer) =
        (File::open(path).expect("opens"), Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).expect("reads") {
            0 => return hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            got => hash.update(&buffer[..got]),
        }
    }
}

/// Extended attributes by name of the file.
fn attributes(root: &Path) -> BTreeMap<OsString, Vec<String>> {
    let at = root.display();
    let listed = sh(&format!("cd {at} && getfattr -R -h -P -d -m - -e hex ."));
    // A squashfs without any attributes says that it knows none.
    let known = |line: &str| line.ends_with("Operation not supported");
    assert!(listed.stderr.lines().all(known), "{}", listed.stderr);
    let listed = listed.text();
    let mut found = BTreeMap::new();
    for file in listed.split("\n\n").filter(|file| !file.trim().is_empty()) {
        let mut lines = file.trim().lines();
        let name = lines.next().and_then(|line| line.strip_prefix("# file: ")).expect("a name");
        let name = name.strip_prefix("./").unwrap_or(name);
        let name = if name == "." { Vec::new() } else { unescaped(name) };
        let mut values: Vec<String> = lines.map(str::to_owned).collect();
        values.sort();
        found.insert(OsString::from_vec(name), values);
    }
    found
}

/// `getfattr` writes bytes that cannot be shown as three octal digits.
fn unescaped(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = name.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => (bytes.push(byte), rest = &tail[3..]).1,
            None => (bytes.push(*first), rest = tail).1,
        }
    }
    bytes
}

/// Compares an image's root filesystem with what umoci unpacks, which is in everything the same but
/// for one thing: to a directory that no archive has an entry of, and to the root, umoci gives the
/// time at which it unpacks; ours is 1970, or what the entry says, for the result to be the same
/// every time. `unnamed` are the directories that no entry names.
#[track_caller]
fn compare(reference: &str, umoci: &str, unnamed: &[&str]) {
    banger(&["pull", reference]).ok();
    let mounted = Mounted::new(reference);
    let (_dir, theirs) = unpacked(umoci);
    let (mut ours, mut theirs) = (entries(mounted.0.path()), entries(&theirs));
    for name in unnamed.iter().chain(&[""]) {
        for side in [&mut ours, &mut theirs] {
            let entry = side.get_mut(&OsString::from(name)).expect("is there");
            let (before, rest) = entry.split_once(" at ").expect("a time");
            *entry = format!("{before} {}", rest.split_once(' ').expect("attributes").1);
        }
    }
    let names = ours.keys().chain(theirs.keys());
    let mut different: Vec<_> = names
        .filter(|name| ours.get(*name) != theirs.get(*name))
        .map(|name| {
            format!("{name:?}\n    ours:   {:?}\n    umoci's: {:?}", ours.get(name), theirs.get(name))
        })
        .collect();
    different.dedup();
    assert!(different.is_empty(), "{reference}: {}\n{}", different.len(), different.join("\n"));
    assert!(ours.len() > 20, "{}", ours.len());
}

#[test]
fn layers_merge_as_umoci_merges_them() {
    // umoci 0.4 knows no zstd: both tags have the same content.
    for tag in ["latest", "zstd"] {
        let layers = "localhost:5000/layers:";
        compare(&format!("{layers}{tag}"), &format!("{layers}latest"), &[]);
    }
}

#[test]
fn debian_is_as_umoci_unpacks_it() {
    compare(DEBIAN, DEBIAN, &[]);
}

fn owned(kind: u8, mode: u32, uid: u32, gid: u32) -> Entry {
    Entry { mode, uid, gid, mtime: 1_000_000_000, ..Entry::new(kind) }
}

/// What archivers write that the lab's images do not have: GNU headers, names that are no text,
/// entries twice, kinds that replace each other, links from one layer into another.
#[test]
fn odd_archives_merge_as_umoci_merges_them() {
    let long = [b"gnu/".as_slice(), &[b'n'; 180]].concat();
    let target = vec![b't'; 250];
    let lower = Tar::default()
        .entry(b"./", &owned(b'5', 0o711, 7, 8), b"")
        .entry(b"gnu", &owned(b'5', 0o755, 0, 0), b"")
        .gnu_long(b'L', &long)
        .entry(b"cut", &owned(b'0', 0o600, 70_000, 3_000_000_000), b"named by GNU")
        .gnu_long(b'K', &target)
        .entry(b"gnu/link", &owned(b'2', 0o777, 5, 6), b"")
        .entry(
            &[b"bytes/".as_slice(), &[0xff, 0xfe, b' ', b'\\', 0x07]].concat(),
            &owned(b'0', 0o644, 0, 0),
            b"no text",
        )
        .pax(&[
            ("path", &[b"pax/".as_slice(), &[0xe9; 200]].concat()),
            ("uid", b"4000000000"),
            ("mtime", b"12.75"),
        ])
        .entry(b"cut", &owned(b'0', 0o4755, 0, 0), b"named by PAX")
        .pax(&[
            ("SCHILY.xattr.user.binary", &[0, 1, 255]),
            ("SCHILY.xattr.user.text", b"a=b\nc"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        ])
        .file("attributed", b"x")
        .pax(&[("SCHILY.xattr.user.directory", b"yes")])
        .dir("attributed-too")
        .file("twice", b"first")
        .entry(b"twice", &owned(b'0', 0o6711, 1, 2), b"second")
        .dir("becomes-file")
        .file("becomes-file/inside", b"gone")
        .file("becomes-directory", b"gone")
        .file("linked/original", b"the same")
        .link(b'1', "linked/again", "linked/original")
        .link(b'2', "to-linked", "linked")
        .link(b'2', "absolute", "/linked")
        .entry(b"devices/char", &Entry { device: (300, 70_000), ..owned(b'3', 0o620, 0, 5) }, b"")
        .entry(b"devices/block", &Entry { device: (8, 1), ..owned(b'4', 0o660, 0, 6) }, b"")
        .entry(b"devices/fifo", &owned(b'6', 0o600, 0, 0), b"")
        .entry(b"sticky", &owned(b'5', 0o1777, 0, 0), b"")
        .dir("opaque")
        .file("opaque/lower", b"x")
        .dir("opaque/below")
        .file("opaque/below/lower", b"x")
        .finish();
    let upper = Tar::default()
        .file("becomes-file", b"a file now")
        .dir("becomes-directory")
        .file("becomes-directory/inside", b"in it")
        .link(b'1', "across", "linked/again")
        .file("linked/original", b"another one")
        .file("to-linked/through", b"by way of a link")
        .dir("opaque")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/upper", b"y")
        .file(".wh.twice", b"")
        .finish();
    let crafted = oci::push_layers("t-odd", &[&lower, &upper]);
    compare(&crafted.reference, &crafted.reference, &["bytes", "devices", "linked", "pax"]);
    banger(&["image", "rm", &crafted.reference]).ok();
}

/// umoci writes holes out as zeros, for which no lab has the space: this one is compared with what
/// went into it.
#[test]
fn files_with_holes_may_be_huge() {
    const MARK: u64 = 9 << 30;
    let dir = tempfile::tempdir().expect("tempdir");
    let mut file = File::create(dir.path().join("huge")).expect("creates");
    file.write_all(b"begin").expect("writes");
    file.seek(SeekFrom::Start(MARK)).expect("seeks");
    file.write_all(b"end").expect("writes");
    for (name, format) in [("t-huge-pax", "posix"), ("t-huge-gnu", "gnu")] {
        let at = dir.path().display();
        sh(&format!("cd {at} && tar --sparse --format={format} -cf {format}.tar huge")).ok();
        let _ = banger(&["image", "rm", name]);
        banger(&["image", "import", "--name", name, &format!("{at}/{format}.tar")]).ok();
        let mounted = Mounted::new(name);
        let mut ours = File::open(mounted.0.path().join("huge")).expect("opens");
        let data = ours.metadata().expect("metadata");
        assert_eq!(data.len(), MARK + 3);
        assert!(data.blocks() * 512 < 1 << 20, "{}", data.blocks());
        let mut begin = [0; 8];
        ours.read_exact(&mut begin).expect("reads");
        assert_eq!(&begin, b"begin\0\0\0");
        ours.seek(SeekFrom::Start(MARK - 3)).expect("seeks");
        let mut end = Vec::new();
        ours.read_to_end(&mut end).expect("reads");
        assert_eq!(end, b"\0\0\0end");
        drop((ours, mounted));
        banger(&["image", "rm", name]).ok();
    }
}

/// Whatever the surroundings of the run, and in whichever order layers arrive.
#[test]
fn the_same_image_is_the_same_file() {
    const DROP_IN: &str = "/run/systemd/system/banger-imaged.service.d";
    let layer = |name: &str, size: usize| Tar::default().dir("d").file(name, &vec![b'r'; size]).finish();
    let crafted =
        oci::push_layers("t-same", &[&layer("d/a", 3 << 20), &layer("d/b", 5), &layer("d/c", 70_000)]);
    let file = |reference: &str| {
        let _ = banger(&["image", "rm", reference]);
        banger(&["pull", reference]).ok();
        digest(&rootfs(reference))
    };
    let references = [DEBIAN, &crafted.reference];
    let before = references.map(file);
    fs::create_dir_all(DROP_IN).expect("creates");
    let other = "[Service]\nEnvironment=TZ=Asia/Kolkata LANG=tr_TR.UTF-8\nUMask=0077\nCPUAffinity=0\n";
    fs::write(format!("{DROP_IN}/other.conf"), other).expect("writes");
    sh("systemctl daemon-reload && systemctl restart banger-imaged.service").ok();
    let after = references.map(file);
    fs::remove_file(format!("{DROP_IN}/other.conf")).expect("removes");
    sh("systemctl daemon-reload && systemctl restart banger-imaged.service").ok();
    assert_eq!(before, after);
    for reference in references {
        file(reference);
    }
    banger(&["image", "verify", DEBIAN, &crafted.reference]).ok();
    banger(&["image", "rm", &crafted.reference]).ok();
}

#[test]
fn a_damaged_image_is_found() {
    let content: Vec<u8> = (0..200_000u32).flat_map(|n| n.to_le_bytes()).collect();
    let crafted = oci::push("t-damaged", &oci::tar(&[("data", &content)]));
    banger(&["pull", &crafted.reference]).ok();
    assert_eq!(banger(&["image", "verify", &crafted.reference]).ok().trim(), crafted.reference);
    let vm = Vm::named("t-damaged-user");
    banger(&["vm", "create", "--name", vm.name(), &crafted.reference]).ok();

    let path = rootfs(&crafted.reference);
    let mut bytes = fs::read(&path).expect("reads");
    bytes[100_000] ^= 1;
    fs::write(&path, &bytes).expect("writes");
    let words = ["t-damaged:latest is damaged", "t-damaged-user", "banger image rm"];
    banger(&["image", "verify", &crafted.reference]).refused(&words);
    banger(&["image", "verify", "--all"]).failed(&["t-damaged:latest is damaged"]);
    // It is told, not touched.
    assert_eq!(fs::read(&path).expect("reads"), bytes);

    let image = Way::Bus.call(IMAGED, "GetImage", &["s", &crafted.reference]).ok();
    let image = image.split('"').nth(1).expect("a path");
    for way in Way::BOTH {
        let started = way.call_at(IMAGED, image, banger_api::image::IMAGE, "Verify", &[]);
        way.wait(IMAGED, started).failed(&["is damaged"]);
    }
    banger(&["rm", vm.name()]).ok();
    banger(&["image", "rm", &crafted.reference]).ok();
    banger(&["pull", &crafted.reference]).ok();
    banger(&["image", "verify", &crafted.reference]).ok();
    fs::remove_file(rootfs(&crafted.reference)).expect("removes");
    banger(&["image", "verify", &crafted.reference]).refused(&["is damaged", "cannot be read"]);
    banger(&["image", "rm", &crafted.reference]).ok();
    banger(&["image", "verify", &crafted.reference]).refused(&["t-damaged"]);
}
