use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use banger_core::tar;
use tempfile::TempDir;

use super::*;
use crate::listing;
use crate::pack::{Packer, Times, locate};

/// An archive in the making.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn entry(mut self, kind: tar::Kind, path: &str, link: &str, mode: u32, content: &[u8]) -> Self {
        let header = tar::Header {
            path: path.as_bytes(),
            link: link.as_bytes(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: 1_000_000_000,
            mtime_nsec: 5,
            xattrs: &[],
        };
        self.0.extend(tar::head(&header, content.len() as u64).expect("fits"));
        self.0.extend(content);
        self.0.extend(tar::padding(content.len() as u64));
        self
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.entry(tar::Kind::File, path, "", 0o644, content.as_bytes())
    }

    fn directory(self, path: &str) -> Self {
        self.entry(tar::Kind::Directory, path, "", 0o755, b"")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(tar::Kind::Symlink, path, target, 0o777, b"")
    }

    fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(tar::Kind::HardLink, path, target, 0o644, b"")
    }

    fn whole(mut self) -> Vec<u8> {
        self.0.extend(tar::END);
        self.0
    }
}

fn rules() -> Rules {
    Rules { owner: Owner::Caller, devices: false, name: None }
}

fn unpack_at(directory: &Path, archive: &[u8], rules: Rules) -> Result<Unpacked> {
    unpack(archive, target(directory)?, rules).map(|(unpacked, _)| unpacked)
}

/// A directory `in` to unpack into, beside a file `victim`.
fn scene() -> (TempDir, PathBuf) {
    let scene = tempfile::tempdir().expect("a directory");
    fs::write(scene.path().join("victim"), "safe").expect("writes");
    let inside = scene.path().join("in");
    fs::create_dir(&inside).expect("makes");
    (scene, inside)
}

#[track_caller]
fn unharmed(scene: &TempDir) {
    let victim = scene.path().join("victim");
    assert_eq!(fs::read_to_string(&victim).expect("reads"), "safe");
    assert_eq!(fs::metadata(victim).expect("stats").nlink(), 1);
    let names = fs::read_dir(scene.path()).expect("lists").count();
    assert_eq!(names, 2, "nothing is made beside it");
    let left = fs::read_dir(scene.path().join("in")).expect("lists").flatten();
    assert!(left.filter(|entry| entry.file_name().to_string_lossy().ends_with(".part")).count() == 0);
}

#[test]
fn names_lead_down() {
    for (name, path) in
        [("a", "a"), ("./a//b/", "a/b"), (".", ""), ("", ""), ("...", "..."), ("a/./b", "a/b")]
    {
        assert_eq!(relative(name.as_bytes()).expect("good"), Path::new(path));
    }
    for name in ["/", "/a", "..", "a/..", "../a", "a/../../b", "//a"] {
        assert_eq!(relative(name.as_bytes()).expect_err("bad").kind(), ErrorKind::InvalidArchive, "{name}");
    }
}

#[test]
fn nothing_is_written_outside() {
    let absolute = std::env::temp_dir().join("banger-files-absolute");
    let hostile: [(&str, Archive); 9] = [
        ("upwards", Archive::default().file("../victim", "x")),
        ("upwards later", Archive::default().directory("a").file("a/../../victim", "x")),
        ("absolute", Archive::default().file(absolute.to_str().expect("UTF-8"), "x")),
        ("through a link of its own", Archive::default().symlink("out", "..").file("out/victim", "x")),
        ("a directory through it", Archive::default().symlink("out", "..").directory("out/made")),
        ("a directory in its place", Archive::default().symlink("out", "..").directory("out")),
        ("a link through it", Archive::default().symlink("out", "..").symlink("out/victim", "x")),
        ("a hard link through it", Archive::default().symlink("out", "..").hard_link("x", "out/victim")),
        ("a hard link upwards", Archive::default().hard_link("x", "../victim").file("x", "y")),
    ];
    for (what, archive) in hostile {
        let (scene, inside) = scene();
        let refused = unpack_at(&inside, &archive.whole(), rules()).expect_err(what);
        assert!(
            matches!(
                refused.kind(),
                ErrorKind::InvalidArchive | ErrorKind::FileInTheWay | ErrorKind::NoSuchDirectory
            ),
            "{what}: {refused:?}"
        );
        unharmed(&scene);
    }
    assert!(!absolute.exists());
}

#[test]
fn links_are_replaced_and_not_written_through() {
    let (scene, inside) = scene();
    // One that was there, and one of the archive's.
    symlink("../victim", inside.join("old")).expect("links");
    let archive = Archive::default()
        .file("old", "x")
        .symlink("new", "../victim")
        .file("new", "y")
        .symlink("mode", "../victim")
        .hard_link("mode2", "mode")
        .whole();
    unpack_at(&inside, &archive, rules()).expect("unpacks");
    assert_eq!(fs::read_to_string(inside.join("old")).expect("reads"), "x");
    assert_eq!(fs::read_to_string(inside.join("new")).expect("reads"), "y");
    assert!(fs::symlink_metadata(inside.join("mode2")).expect("stats").is_symlink());
    unharmed(&scene);
}

#[test]
fn only_the_name_asked_for_is_made() {
    let (scene, inside) = scene();
    let named = Rules { name: Some(b"web".to_vec()), ..rules() };
    for archive in [
        Archive::default().file("other", "x"),
        Archive::default().directory("web").file("webs", "x"),
        Archive::default().directory("web").file(".ssh/authorized_keys", "x"),
        Archive::default().directory("."),
        Archive::default().directory("web").hard_link("web/x", "mine"),
    ] {
        fs::write(inside.join("mine"), "mine").expect("writes");
        let refused = unpack_at(&inside, &archive.whole(), named.clone()).expect_err("refused");
        assert_eq!(refused.kind(), ErrorKind::InvalidArchive);
    }
    let names: Vec<_> =
        fs::read_dir(&inside).expect("lists").flatten().map(|entry| entry.file_name()).collect();
    assert!(names.iter().all(|name| name == "web" || name == "mine"), "{names:?}");
    let good = Archive::default().directory("./web/").file("./web/a", "x").whole();
    assert_eq!(unpack_at(&inside, &good, named).expect("unpacks").entries, 2);
    unharmed(&scene);
}

#[test]
fn rights_come_with_owners_alone() {
    let (_scene, inside) = scene();
    let archive = Archive::default()
        .entry(tar::Kind::File, "su", "", 0o6755, b"x")
        .entry(tar::Kind::Directory, "shared", "", 0o3777, b"")
        .entry(tar::Kind::CharDevice(1, 3), "null", "", 0o666, b"")
        .entry(tar::Kind::Fifo, "fifo", "", 0o600, b"")
        .whole();
    let unpacked = unpack_at(&inside, &archive, rules()).expect("unpacks");
    let mode = |name: &str| fs::metadata(inside.join(name)).expect("stats").permissions().mode() & 0o7777;
    assert_eq!((mode("su"), mode("shared")), (0o755, 0o1777));
    assert!(!inside.join("null").exists());
    assert!(fs::metadata(inside.join("fifo")).expect("stats").file_type().is_fifo());
    assert_eq!(unpacked.remarks.len(), 1, "{unpacked:?}");
}

#[test]
fn what_is_there_is_replaced_or_kept() {
    let (_scene, inside) = scene();
    fs::create_dir(inside.join("dir")).expect("makes");
    fs::set_permissions(inside.join("dir"), fs::Permissions::from_mode(0o711)).expect("sets");
    fs::write(inside.join("dir/kept"), "kept").expect("writes");
    fs::write(inside.join("file"), "a longer content").expect("writes");
    fs::hard_link(inside.join("file"), inside.join("twin")).expect("links");
    let archive = Archive::default().directory("dir").file("dir/new", "new").file("file", "short").whole();
    unpack_at(&inside, &archive, rules()).expect("unpacks");
    let read = |name: &str| fs::read_to_string(inside.join(name)).expect("reads");
    assert_eq!(
        (read("dir/kept"), read("dir/new"), read("file")),
        ("kept".into(), "new".into(), "short".into())
    );
    assert_eq!(read("twin"), "a longer content", "another name of the old file");
    assert_eq!(fs::metadata(inside.join("dir")).expect("stats").permissions().mode() & 0o777, 0o711);

    for archive in [
        Archive::default().directory("file"),
        Archive::default().file("dir", "x"),
        Archive::default().symlink("dir", "x"),
    ] {
        let refused = unpack_at(&inside, &archive.whole(), rules()).expect_err("refused");
        assert_eq!(refused.kind(), ErrorKind::FileInTheWay, "{refused}");
    }
    assert_eq!(read("file"), "short");
}

#[test]
fn half_an_archive_is_an_error() {
    let (_scene, inside) = scene();
    fs::write(inside.join("b"), "old").expect("writes");
    let whole = Archive::default().file("a", "complete").file("b", &"new".repeat(1000)).whole();
    for end in [0, 100, 512, 1024, 1536 + 100, 1536 + 512 + 1000, whole.len() - 1024] {
        let refused = unpack_at(&inside, &whole[..end], rules()).expect_err("refused");
        assert_eq!(refused.kind(), ErrorKind::InvalidArchive, "{end}: {refused}");
        if end < whole.len() - 1024 {
            assert_eq!(fs::read_to_string(inside.join("b")).expect("reads"), "old", "{end}");
        }
    }
    assert!(fs::read_dir(&inside).expect("lists").flatten().all(|entry| entry.file_name().len() == 1));
    let refused =
        unpack_at(&inside, b"\x1f\x8b no tar at all".repeat(40).as_slice(), rules()).expect_err("refused");
    assert_eq!(refused.kind(), ErrorKind::InvalidArchive);
}

/// What is in a tree, as far as it can be compared: kind, mode, time, size, blocks, content or target.
fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut ahead = vec![root.to_owned()];
    while let Some(path) = ahead.pop() {
        let stat = fs::symlink_metadata(&path).expect("stats");
        let content = if stat.is_symlink() {
            format!("{:?}", fs::read_link(&path).expect("reads"))
        } else if stat.is_file() {
            format!("{} {} {:?}", stat.size(), stat.nlink(), fs::read(&path).expect("reads"))
        } else {
            String::new()
        };
        if stat.is_dir() {
            ahead.extend(fs::read_dir(&path).expect("lists").flatten().map(|entry| entry.path()));
        }
        let key = path.strip_prefix(root).expect("below").to_owned();
        found.insert(key, format!("{:o} {}.{} {content}", stat.mode(), stat.mtime(), stat.mtime_nsec()));
    }
    found
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    let (_scene, inside) = scene();
    let tree = inside.join("tree");
    let deep = tree.join("a").join("d".repeat(200)).join("e".repeat(200));
    fs::create_dir_all(&deep).expect("makes");
    fs::create_dir(tree.join("empty")).expect("makes");
    fs::write(deep.join("f".repeat(200)), "deep").expect("writes");
    fs::write(tree.join(OsStr::from_bytes(b"odd \xff\n\"name")), "odd").expect("writes");
    fs::hard_link(tree.join(OsStr::from_bytes(b"odd \xff\n\"name")), tree.join("twin")).expect("links");
    symlink("no/where", tree.join("dangling")).expect("links");
    symlink("../../victim", tree.join("out")).expect("links");
    symlink("l".repeat(300), tree.join("long")).expect("links");
    let sparse = File::create(tree.join("sparse")).expect("makes");
    sparse.set_len(32 << 20).expect("grows");
    sparse.write_all_at(b"data", 16 << 20).expect("writes");
    let marked = xattr::set(&tree.join("sparse"), b"user.mark", b"\0=\n").expect("sets");
    fs::set_permissions(tree.join("empty"), fs::Permissions::from_mode(0o500)).expect("sets");
    fs::set_permissions(tree.join("twin"), fs::Permissions::from_mode(0o640)).expect("sets");

    let (at, name) = locate(&tree, false).expect("finds");
    let mut archive = Vec::new();
    let mut packer = Packer::new(&mut archive, Times::Nanoseconds);
    packer.add_tree(&at, &name, Path::new("copy")).expect("packs");
    let packed = packer.finish().expect("ends");
    assert!(archive.len() < 1 << 20, "holes are not stored");
    let named = Rules { name: Some(b"copy".to_vec()), ..rules() };
    let unpacked = unpack_at(&inside, &archive, named).expect("unpacks");
    assert_eq!((unpacked.entries, unpacked.bytes), (packed.entries, packed.bytes));
    assert_eq!(describe(&inside.join("copy")), describe(&tree));
    assert!(fs::metadata(inside.join("copy/sparse")).expect("stats").blocks() < 2048, "it has holes");
    if marked {
        let xattrs = xattr::get(&inside.join("copy/sparse")).expect("reads");
        assert!(xattrs.contains(&(b"user.mark".to_vec(), b"\0=\n".to_vec())), "{xattrs:?}");
    }

    // What is in it, into a directory that is there.
    let mut archive = Vec::new();
    let mut packer = Packer::new(&mut archive, Times::Nanoseconds);
    packer.add_tree(&at, &name, Path::new(".")).expect("packs");
    packer.finish().expect("ends");
    let into = inside.join("into");
    fs::create_dir(&into).expect("makes");
    unpack_at(&into, &archive, rules()).expect("unpacks");
    let (mut is, mut was) = (describe(&into), describe(&tree));
    assert!(is.remove(Path::new("")).is_some() && was.remove(Path::new("")).is_some());
    assert_eq!(is, was);
    // What is there already is left out, but directories.
    fs::write(into.join("sparse"), "changed").expect("writes");
    fs::remove_file(into.join("long")).expect("removes");
    let there = listing::collect(&target(&into).expect("opens")).expect("lists");
    let mut archive = Vec::new();
    let mut packer = Packer::new(&mut archive, Times::Nanoseconds).but(Path::new("copy"), there);
    packer.add_tree(&at, &name, Path::new("copy")).expect("packs");
    assert_eq!(packer.finish().expect("ends").entries, 2 + 5);
    fs::set_permissions(tree.join("empty"), fs::Permissions::from_mode(0o700)).expect("sets");
}

#[test]
fn what_broke_off_leaves_directories_that_are_usable() {
    let (_scene, inside) = scene();
    let archive = Archive::default().directory("made").file("made/file", "whole").file("made/other", "half");
    unpack_at(&inside, &archive.0[..archive.0.len() - 512], rules()).expect_err("breaks off");
    let mode = fs::metadata(inside.join("made")).expect("stats").mode();
    assert_eq!((mode & 0o7777, inside.join("made/file").exists()), (0o755, true));
}

/// Whatever the bytes are: no panic, and nothing outside.
#[test]
fn damaged_archives_do_no_harm() {
    let whole = Archive::default()
        .directory("d")
        .file("d/file", "content")
        .symlink("d/link", "../../victim")
        .hard_link("d/twin", "d/file")
        .entry(tar::Kind::File, &"long/".repeat(60), "", 0o644, b"x")
        .whole();
    for at in (0..whole.len()).step_by(37) {
        let (scene, inside) = scene();
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        let _ = unpack_at(&inside, &damaged, rules());
        unharmed(&scene);
    }
}
