//! Workspaces without a VM: the guest is a directory.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use banger_api::{ErrorKind, Result};
use banger_files::listing::{self, Listing};
use banger_files::pack::{Packer, Times};
use banger_files::unpack::{self, Owner, Rules};
use proptest::prelude::*;
use tempfile::TempDir;

use super::export::{Aim, Exported, export};
use super::git::Git;
use super::guest::{Guest, pack_files};
use super::prepare::{Prepared, Target, prepare};
use super::record::{Mode, Record};
use super::source::Wish;

struct Directory(PathBuf);

impl Guest for Directory {
    async fn list(&self) -> Result<Option<Listing>> {
        if !self.0.exists() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        listing::list(&unpack::target(&self.0)?, &mut bytes)?;
        listing::read(&mut bytes.as_slice(), 100_000).map(Some)
    }

    async fn write(&self, files: Vec<(PathBuf, PathBuf)>) -> Result<u64> {
        fs::create_dir_all(&self.0)?;
        let mut bytes = Vec::new();
        pack_files(Packer::new(&mut bytes, Times::Nanoseconds), &files, Path::new(""))?;
        let rules = Rules { owner: Owner::Caller, devices: false, name: None };
        Ok(unpack::unpack(bytes.as_slice(), unpack::target(&self.0)?, rules)?.0.bytes)
    }

    async fn read(&self, paths: &[PathBuf], into: &Path) -> Result<()> {
        let (root, mut bytes) = (unpack::target(&self.0)?, Vec::new());
        let mut packer = Packer::new(&mut bytes, Times::Nanoseconds);
        paths.iter().try_for_each(|path| packer.add_beneath(&root, path))?;
        packer.finish()?;
        let rules = Rules { owner: Owner::Caller, devices: false, name: None };
        unpack::unpack(bytes.as_slice(), unpack::target(into)?, rules).map(drop)
    }

    async fn remove(&self, paths: &[PathBuf]) -> Result<()> {
        let paths = paths.iter().map(|path| path.as_os_str().as_bytes());
        banger_files::remove::remove(&unpack::target(&self.0)?, paths).map(drop)
    }
}

/// A guest that sends other than it listed.
struct Liar<'a> {
    guest: Directory,
    /// Makes of a directory what it sends.
    sends: &'a dyn Fn(&Path),
}

impl Guest for Liar<'_> {
    async fn list(&self) -> Result<Option<Listing>> {
        self.guest.list().await
    }

    async fn write(&self, files: Vec<(PathBuf, PathBuf)>) -> Result<u64> {
        self.guest.write(files).await
    }

    async fn read(&self, _paths: &[PathBuf], into: &Path) -> Result<()> {
        (self.sends)(into);
        Ok(())
    }

    async fn remove(&self, paths: &[PathBuf]) -> Result<()> {
        self.guest.remove(paths).await
    }
}

/// A repository and a guest.
struct World {
    scratch: TempDir,
    runtime: tokio::runtime::Runtime,
}

impl World {
    fn new() -> Self {
        let world = Self {
            scratch: tempfile::tempdir().expect("makes"),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().expect("builds"),
        };
        world.sh(
            "git init -q -b main host && cd host && git config user.name Me && git config user.email me@host",
        );
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    #[track_caller]
    fn sh(&self, script: &str) -> String {
        sh(self.scratch.path(), script)
    }

    fn wish(&self, mode: Mode) -> Wish {
        Wish { directory: self.at("host"), mode, ..Wish::default() }
    }

    fn prepare(&self, wish: &Wish, force: bool) -> Result<Prepared> {
        self.prepare_in(&Directory(self.at("guest")), wish, force)
    }

    fn prepare_in(&self, guest: &impl Guest, wish: &Wish, force: bool) -> Result<Prepared> {
        let record = self.at("record");
        let target = Target { vm: "web", path: "/workspace", record: &record, force };
        self.runtime.block_on(prepare(guest, wish, &target))
    }

    fn export(&self, aim: &Aim<'_>) -> Result<Exported> {
        let record = Record::load(&self.at("record")).expect("loads").expect("a record");
        self.runtime.block_on(export(&Directory(self.at("guest")), &record, aim))
    }

    fn status(&self, of: &str) -> String {
        self.sh(&format!(
            "cd {of} && git --no-optional-locks status --porcelain -uall && git log --format=%H && git symbolic-ref HEAD"
        ))
    }
}

/// As a caller without settings of their own.
#[track_caller]
fn sh(directory: &Path, script: &str) -> String {
    let mut shell = Command::new("sh");
    shell.arg("-euc").arg(script).current_dir(directory).env("HOME", "/nonexistent");
    shell.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    let run = shell.output().expect("runs");
    assert!(run.status.success(), "{script}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8_lossy(&run.stdout).into_owned()
}

/// Files that git would see, with what it would keep of them.
fn files(directory: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let paths =
        Git::at(directory).paths(&["ls-files", "-z", "--cached", "--others", "--exclude-standard"], &[]);
    let paths: BTreeSet<_> = paths.expect("lists").into_iter().collect();
    let content = |path: PathBuf| {
        let place = directory.join(&path);
        let metadata = fs::symlink_metadata(&place).ok()?;
        if metadata.is_symlink() {
            return Some((path, 0, fs::read_link(place).ok()?.as_os_str().as_bytes().to_vec()));
        }
        let content = fs::read(place).ok()?;
        Some((path, metadata.permissions().mode() & 0o100, content))
    };
    paths.into_iter().filter_map(content).collect()
}

#[test]
fn a_guest_sees_what_the_host_has() {
    for mode in [Mode::Clone, Mode::Shallow, Mode::FullCopy] {
        let world = World::new();
        world.sh(
            "cd host; printf 'target/\\n*.o\\n' >.gitignore; mkdir -p src/deep; echo 1 >src/one; echo 2 >src/two; printf '\\0\\1' >bin
             ln -s one src/link; echo run >run; chmod 755 run; git add -A; git commit -qm first; git tag v1; echo more >>src/one; git commit -qam second
             echo staged >>src/two; git add src/two; echo unstaged >>src/two; echo new >src/deep/new; git rm -q --cached bin; git mv run ran
             mkdir target; echo built >target/out; echo x >x.o; printf odd >\"$(printf 'odd \\377')\"",
        );
        let before = world.status("host");
        let index = fs::read(world.at("host/.git/index")).expect("reads");
        let done = world.prepare(&world.wish(mode), false).expect("prepares");
        assert!(done.sent > 0);
        let log = if mode == Mode::Shallow { "second" } else { "second\nfirst" };
        assert_eq!(world.sh("cd guest && git log --format=%s").trim(), log, "{mode:?}");
        let lines =
            |text: &str| text.lines().filter(|line| line.len() != 40).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(lines(&world.status("guest")), lines(&before), "{mode:?}");
        world.sh("cd guest && git fsck --strict --no-dangling 2>&1 && git diff --cached >/dev/null");
        assert_eq!(files(&world.at("guest")), files(&world.at("host")));
        assert_eq!(world.at("guest/target/out").exists(), mode == Mode::FullCopy);
        assert_eq!(
            fs::read(world.at("host/.git/index")).expect("reads"),
            index,
            "the user's index is theirs"
        );
        assert_eq!(world.status("host"), before);
        if mode == Mode::Clone {
            assert_eq!(world.sh("cd guest && git describe --tags HEAD^").trim(), "v1");
        }

        // Nothing the second time; then what has changed alone.
        let done = world.prepare(&world.wish(mode), false).expect("prepares");
        assert_eq!((done.sent, done.removed, done.bytes), (0, 0, 0), "{mode:?}");
        world.sh("cd host; echo again >>src/one; rm src/deep/new; git status >/dev/null");
        let done = world.prepare(&world.wish(mode), false).expect("prepares");
        if mode == Mode::FullCopy {
            assert_eq!(world.sh("cd guest && ls -A src"), world.sh("cd host && ls -A src"));
        } else {
            assert_eq!((done.sent, done.removed), (1, 1));
            assert!(!world.at("guest/src/deep").exists(), "a directory goes with its last file");
        }
        world.sh("cd host; git add -A; git commit -qm third");
        world.prepare(&world.wish(mode), false).expect("prepares");
        assert_eq!(
            world.sh("cd guest; git log -1 --format=%s; git status --porcelain; git fsck --strict --no-dangling 2>&1"),
            "third\n"
        );
        assert!(world.export(&Aim::default()).expect("exports").patch.is_empty());
    }
}

#[test]
fn what_a_guest_did_is_not_overwritten() {
    let world = World::new();
    world.sh("cd host; echo '*.o' >.gitignore; echo 1 >one; echo 2 >two; git add -A; git commit -qm first");
    let wish = world.wish(Mode::Clone);
    world.prepare(&wish, false).expect("prepares");
    world.sh("cd guest; echo built >x.o; echo changed >one; echo new >three; rm two");
    let refused = world.prepare(&wish, false).expect_err("refused");
    assert_eq!(refused.kind(), ErrorKind::WorkspaceChanged);
    assert!(refused.message().contains("one, three, two;"), "{refused}");
    assert_eq!(world.sh("cd guest; cat one; ls"), "changed\none\nthree\nx.o\n");

    // What the host took over is no loss.
    let exported = world.export(&Aim::default()).expect("exports");
    fs::write(world.at("patch"), &exported.patch).expect("writes");
    world.sh("cd host; git apply ../patch");
    world.prepare(&wish, false).expect("prepares");
    assert!(world.export(&Aim::default()).expect("exports").patch.is_empty());

    // A commit that the guest made is a loss if its .git is replaced.
    world.sh("cd guest; git add -A; git commit -qm guest; cd ../host; git add -A; git commit -qm host");
    let refused = world.prepare(&wish, false).expect_err("refused");
    assert!(refused.message().contains(".git/refs/heads/main;"), "{refused}");
    world.sh("cd guest; echo mine >one; echo mine >four");
    world.prepare(&wish, true).expect("prepares");
    let after =
        world.sh("cd guest; git log -1 --format=%s; git status --porcelain; ls; git fsck --no-dangling 2>&1");
    assert_eq!(after, "host\none\nthree\nx.o\n");

    // Files of somebody else are left alone.
    fs::remove_file(world.at("record")).expect("removes");
    assert_eq!(world.prepare(&wish, false).expect_err("refused").kind(), ErrorKind::FileInTheWay);
    world.prepare(&wish, true).expect("prepares");
    assert!(world.at("guest/x.o").exists());
}

#[test]
fn branches_and_other_commits() {
    let world = World::new();
    world.sh("cd host; echo 1 >one; git add -A; git commit -qm first; echo 2 >two; git add -A; git commit -qm second; echo dirty >one");
    let wish = Wish { branch: Some("work".into()), from: Some("HEAD^".into()), ..world.wish(Mode::Clone) };
    world.prepare(&wish, false).expect("prepares");
    assert_eq!(
        world.sh("cd guest; git symbolic-ref HEAD; git log --format=%s; git status --porcelain; ls"),
        "refs/heads/work\nfirst\none\n"
    );
    let done = world.prepare(&wish, false).expect("prepares");
    assert_eq!(done.sent, 0);
    let later = Wish { from: Some("HEAD".into()), ..wish };
    let done = world.prepare(&later, false).expect("prepares");
    assert_eq!(
        (done.sent, world.sh("cd guest; git status --porcelain; cat one two").as_str()),
        (1, "1\n2\n")
    );

    world.sh("cd guest; echo 3 >three; git add -A; git commit -qm third; echo 4 >four; mv one moved; chmod 755 two");
    let made = world.export(&Aim { branch: Some("result"), ..Aim::default() }).expect("exports");
    assert_eq!(world.sh("cd host; git log --format=%s -2 result").trim(), "Changes made in a VM\nsecond");
    assert_eq!(world.sh("cd host; git rev-parse result").trim(), made.commit.expect("a commit"));
    let changes: Vec<_> =
        made.changes.iter().map(|change| format!("{} {}", change.status, change.path)).collect();
    assert_eq!(changes, ["A four", "R100 moved", "A three", "M two"]);
    assert_eq!(
        world.export(&Aim { branch: Some("result"), ..Aim::default() }).expect_err("taken").kind(),
        ErrorKind::NameTaken
    );
    let refused = world.export(&Aim { branch: Some("a..b"), ..Aim::default() }).expect_err("no name");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgs);
    assert_eq!(world.sh("cd host; cat one; git status --porcelain"), "dirty\n M one\n");
    let since = world.export(&Aim { base: Some("HEAD^"), ..Aim::default() }).expect("exports");
    assert!(
        since.changes.iter().any(|change| change.path == "two" && change.status == "A"),
        "{:?}",
        since.changes
    );
}

#[test]
fn submodules_and_worktrees() {
    for mode in [Mode::Clone, Mode::Shallow, Mode::FullCopy] {
        let world = World::new();
        world.sh(
            "git init -q inner; cd inner; echo in >file; git add -A; git -c user.name=I -c user.email=i@i commit -qm inner; cd ../host
             echo out >file; git -c protocol.file.allow=always submodule --quiet add ../inner sub; git add -A; git commit -qm outer
             echo changed >>sub/file; echo new >sub/new; git worktree add -q ../tree; cd ../tree; echo more >>file",
        );
        world.prepare(&world.wish(mode), false).expect("prepares");
        let status = "git status --porcelain; cd sub; git status --porcelain; git log --format=%s; cat file";
        assert_eq!(
            world.sh(&format!("cd guest; {status}")),
            world.sh(&format!("cd host; {status}")),
            "{mode:?}"
        );
        world.sh("cd guest; echo guest >>sub/file; rm sub/new; echo guest >>file");
        let exported = world.export(&Aim::default()).expect("exports");
        fs::write(world.at("patch"), &exported.patch).expect("writes");
        world.sh("cd host; git apply ../patch; diff -r -x .git . ../guest");

        world.sh("rm -r guest record");
        let wish = Wish { directory: world.at("tree"), ..world.wish(mode) };
        world.prepare(&wish, false).expect("prepares");
        let state = world.sh("cd guest; git status --porcelain; git symbolic-ref HEAD; git log --format=%s");
        assert_eq!(state, " M file\nrefs/heads/tree\nouter\n", "{mode:?}");
        world.sh("cd guest; git fsck --no-dangling 2>&1; test -d .git");
    }
}

/// As git LFS does it: git keeps pointers, the directory has contents.
#[test]
fn contents_that_are_kept_elsewhere() {
    let world = World::new();
    world.sh(
        "mkdir store; cat >clean <<'END'
f=$(mktemp); cat >$f; id=$(git hash-object $f); mv $f $STORE/$id; echo pointer $id
END
cat >smudge <<'END'
f=$(mktemp); cat >$f; if grep -q ^pointer $f; then cat $STORE/$(cut -d' ' -f2 $f); else cat $f; fi; rm $f
END
cd host; export STORE=$(realpath ../store)
for way in clean smudge; do git config filter.lfs.$way \"STORE=$STORE sh $(realpath ..)/$way\"; done
git config filter.lfs.required true; echo '*.bin filter=lfs' >.gitattributes; printf 'one\\0' >a.bin; printf 'two\\0' >b.bin
echo text >text; git add -A; git commit -qm first; git show HEAD:a.bin | grep -q ^pointer; printf 'changed\\0' >b.bin",
    );
    for mode in [Mode::Clone, Mode::FullCopy] {
        world.prepare(&world.wish(mode), true).expect("prepares");
        world.sh("cmp host/a.bin guest/a.bin; cmp host/b.bin guest/b.bin; grep -q pointer guest/.git/index && exit 1; true");
        assert_eq!(world.export(&Aim::default()).expect("exports").changes.len(), 0, "{mode:?}");
    }
    world.sh("cd guest; echo more >>text; printf 'three\\0' >a.bin; printf 'new\\0' >c.bin");
    let exported = world.export(&Aim::default()).expect("exports");
    let changes: Vec<_> = exported.changes.iter().map(|change| change.path.as_str()).collect();
    assert_eq!(changes, ["a.bin", "c.bin", "text"]);
    fs::write(world.at("patch"), &exported.patch).expect("writes");
    world.sh("cd host; git apply ../patch; cmp a.bin ../guest/a.bin; cmp c.bin ../guest/c.bin; cmp text ../guest/text
        git add -A; for file in a b c; do git show :$file.bin | grep -q ^pointer; done");
}

/// The files that may ask for tools are those that were sent, or would be.
#[test]
fn files_and_what_is_in_them() {
    let world = World::new();
    world.sh("cd host; mkdir sub; echo 1 >sub/one; echo x.o >.gitignore; ln -s sub/one link; git add -A; git commit -qm first
        echo 2 >sub/one; echo 1 >new; echo o >x.o");
    let done = world.prepare(&world.wish(Mode::Clone), false).expect("prepares");
    let objects = "cd host; find .git/objects -type f | wc -l";
    let before = world.sh(objects);
    let sent = super::source::committed(&done.record).expect("lists");
    assert_eq!(sent.keys().map(String::as_str).collect::<Vec<_>>(), [".gitignore", "new", "sub/one"]);
    assert_eq!(super::source::current(&world.at("host")).expect("lists"), sent);
    world.sh("cd host; echo 3 >sub/one; rm new");
    let now = super::source::current(&world.at("host/sub")).expect("lists");
    assert_eq!(now.keys().map(String::as_str).collect::<Vec<_>>(), [".gitignore", "sub/one"]);
    assert!(now["sub/one"] != sent["sub/one"] && now[".gitignore"] == sent[".gitignore"]);
    assert_eq!(world.sh(objects), before, "nothing is written");
}

#[test]
fn what_is_no_repository() {
    let world = World::new();
    world.sh("mkdir plain; git init -q --bare bare");
    for (directory, says) in [
        ("plain", "is no git repository"),
        ("bare", "bare"),
        ("host/.git", "the inside of a .git"),
        ("host", "has no commit yet"),
    ] {
        let refused = world.prepare(&Wish { directory: world.at(directory), ..Wish::default() }, false);
        let refused = refused.map(|prepared| prepared.sent).expect_err(directory);
        assert_eq!(refused.kind(), ErrorKind::RepositoryUnusable, "{refused}");
        assert!(refused.message().contains(says), "{directory}: {refused}");
    }
    let refused = world.prepare(&Wish { directory: world.at("none"), ..Wish::default() }, false);
    assert_eq!(refused.map(|prepared| prepared.sent).expect_err("none").kind(), ErrorKind::NoSuchDirectory);
}

/// A guest cannot have the host run or write anything by what its files say.
#[test]
fn hostile_files() {
    let world = World::new();
    world.sh("cd host; git config filter.evil.clean 'touch ../ran; cat'; git config diff.evil.textconv 'touch ../ran; cat'; git config diff.evil.command 'touch ../ran'
        mkdir dir; echo 1 >dir/file; git add -A; git commit -qm first");
    world.prepare(&world.wish(Mode::Clone), false).expect("prepares");
    world.sh("mkdir outside; echo safe >outside/file; cd guest; echo '* filter=evil diff=evil' >.gitattributes; echo 2 >new
        rm -r dir; ln -s ../outside dir; ln -s /etc .gitignore; printf '[core]\\n\\tfsmonitor = touch ../ran\\n' >>.git/config
        mkdir -p inner/.git; echo x >inner/.git/config; echo y >inner/file; chmod 6400 inner/file");
    let exported = world.export(&Aim::default()).expect("exports");
    fs::write(world.at("patch"), &exported.patch).expect("writes");
    assert!(!world.at("ran").exists());
    assert_eq!(world.sh("cat outside/file; ls outside"), "safe\nfile\n");
    let mut changes: Vec<_> =
        exported.changes.iter().map(|change| format!("{} {}", change.status, change.path)).collect();
    changes.sort();
    assert_eq!(changes, ["A .gitattributes", "A .gitignore", "A dir", "A inner/file", "A new", "D dir/file"]);
    world.sh("cd host; git config --remove-section filter.evil; git config --remove-section diff.evil; git apply --index ../patch; test -L dir");
}

/// git quotes what is ASCII of it; U+009B begins as many sequences as ESC [.
#[test]
fn names_do_not_control_a_terminal() {
    let world = World::new();
    world.sh("cd host; echo 1 >one; git add -A; git commit -qm first");
    world.prepare(&world.wish(Mode::Clone), false).expect("prepares");
    for name in ["c\u{9b}2J1", "c\u{1b}[2J2"] {
        fs::write(world.at("guest").join(name), "2\n").expect("writes");
    }
    let stat = world.export(&Aim::default()).expect("exports").stat;
    assert!(stat.contains("c\u{fffd}2J1") && stat.contains("[2J2"), "{stat:?}");
    assert!(!stat.contains(|c: char| c.is_control() && c != '\n'), "{stat:?}");
}

/// What a guest sends to be compared is not followed to anything else, and does not have the host wait.
#[test]
fn files_that_are_other_than_listed() {
    let world = World::new();
    world.sh("cd host; mkdir dir; echo 1 >dir/file; git add -A; git commit -qm first");
    world.prepare(&world.wish(Mode::Clone), false).expect("prepares");
    world.sh("echo guest >guest/dir/file; echo host- >host/dir/file");
    let host = world.at("host");
    let own_file = |into: &Path| {
        fs::create_dir(into.join("dir")).expect("makes");
        symlink(host.join("dir/file"), into.join("dir/file")).expect("links");
    };
    let own_directory = |into: &Path| symlink(host.join("dir"), into.join("dir")).expect("links");
    let fifo = |into: &Path| drop(sh(into, "mkdir dir; mkfifo dir/file"));
    let longer = |into: &Path| drop(sh(into, "mkdir dir; truncate -s 1G dir/file"));
    let nothing = |_: &Path| {};
    for sends in [&own_file as &dyn Fn(&Path), &own_directory, &fifo, &longer, &nothing] {
        let liar = Liar { guest: Directory(world.at("guest")), sends };
        let refused = world.prepare_in(&liar, &world.wish(Mode::Clone), false).expect_err("refused");
        assert_eq!(refused.kind(), ErrorKind::WorkspaceChanged, "{refused}");
        assert_eq!(world.sh("cat guest/dir/file"), "guest\n");
    }
}

/// What somebody does to a directory.
#[derive(Debug, Clone)]
enum Edit {
    Write(usize, Vec<u8>),
    Append(usize),
    Remove(usize),
    Rename(usize, usize),
    Link(usize, usize),
    Mode(usize, bool),
    /// Of a directory with all in it.
    RemoveAll(usize),
    Ignore(usize),
    Stage(usize),
    StageAll,
    Commit,
    Amend,
    Branch,
}

const NAMES: [&[u8]; 12] = [
    b"a",
    b"b.txt",
    b"dir/a",
    b"dir/b",
    b"dir/sub/c",
    b"other/x y",
    b"dir",
    b"other",
    b"\xff\xfe",
    b"new\nline",
    b"deep/er/still/f",
    b"sp\"e\\cial\t",
];

fn edit() -> impl Strategy<Value = Edit> {
    let name = 0..NAMES.len();
    prop_oneof![
        5 => (name.clone(), content()).prop_map(|(name, content)| Edit::Write(name, content)),
        3 => name.clone().prop_map(Edit::Append),
        2 => name.clone().prop_map(Edit::Remove),
        3 => (name.clone(), name.clone()).prop_map(|(from, to)| Edit::Rename(from, to)),
        2 => (name.clone(), name.clone()).prop_map(|(name, target)| Edit::Link(name, target)),
        2 => (name.clone(), any::<bool>()).prop_map(|(name, executable)| Edit::Mode(name, executable)),
        1 => name.clone().prop_map(Edit::RemoveAll),
        1 => name.clone().prop_map(Edit::Ignore),
        2 => name.prop_map(Edit::Stage),
        1 => Just(Edit::StageAll),
        2 => Just(Edit::Commit),
        1 => Just(Edit::Amend),
        1 => Just(Edit::Branch),
    ]
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[a-d\n]{0,40}".prop_map(String::into_bytes),
        "[a-d\r\n]{0,20}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..200),
        Just(b"many\nlines\nof\ntext\nthat\nstay\nthe\nsame\n".to_vec()),
    ]
}

/// Does it, if it can be done.
fn apply(root: &Path, edit: &Edit) {
    let name = |index: &usize| root.join(OsStr::from_bytes(NAMES[*index]));
    let git = |arguments: &[&OsStr]| {
        let command = Command::new("git")
            .args(arguments)
            .current_dir(root)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output();
        drop(command.expect("runs"));
    };
    let words = |words: &str| git(&words.split(' ').map(OsStr::new).collect::<Vec<_>>());
    let room = |path: &Path| {
        let _ = fs::create_dir_all(path.parent().expect("in the root"));
        let _ = fs::remove_file(path);
    };
    match edit {
        Edit::Write(at, content) => {
            room(&name(at));
            let _ = fs::write(name(at), content);
        }
        Edit::Append(at) => {
            if let Ok(mut content) = fs::read(name(at))
                .map_err(drop)
                .and_then(|c| if name(at).is_symlink() { Err(()) } else { Ok(c) })
            {
                content.extend(b"appended\n");
                let _ = fs::write(name(at), content);
            }
        }
        Edit::Remove(at) => drop(fs::remove_file(name(at))),
        Edit::Rename(from, to) => {
            let _ = fs::create_dir_all(name(to).parent().expect("in the root"));
            let _ = fs::rename(name(from), name(to));
        }
        Edit::Link(at, target) => {
            room(&name(at));
            let _ = symlink(OsStr::from_bytes(NAMES[*target]), name(at));
        }
        Edit::Mode(at, executable) => {
            if fs::symlink_metadata(name(at)).is_ok_and(|metadata| metadata.is_file()) {
                let mode = if *executable { 0o755 } else { 0o644 };
                let _ = fs::set_permissions(name(at), fs::Permissions::from_mode(mode));
            }
        }
        Edit::RemoveAll(at) => drop(fs::remove_dir_all(name(at))),
        Edit::Ignore(at) => {
            let rules = root.join(".gitignore");
            let mut content = fs::read(&rules).unwrap_or_default();
            content.extend(["b.txt\n", "dir/sub\n", "/other\n", "!b.txt\n"][at % 4].bytes());
            let _ = fs::write(rules, content);
        }
        Edit::Stage(at) => git(&["add", "--"]
            .map(OsStr::new)
            .into_iter()
            .chain([OsStr::from_bytes(NAMES[*at])])
            .collect::<Vec<_>>()),
        Edit::StageAll => words("add -A"),
        Edit::Commit => words("commit -q -m edit --allow-empty"),
        Edit::Amend => words("commit -q -m amended --amend --allow-empty"),
        Edit::Branch => words("checkout -q -b another"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 50, ..ProptestConfig::default() })]

    /// The patch makes of what was sent exactly what the guest has, whatever either did before.
    #[test]
    fn a_patch_is_what_the_guest_did(
        before in prop::collection::vec(edit(), 0..15),
        dirty in prop::collection::vec(edit(), 0..6),
        work in prop::collection::vec(edit(), 0..12),
        later in prop::collection::vec(edit(), 0..6),
        shallow in any::<bool>(),
    ) {
        let world = World::new();
        let (host, guest) = (world.at("host"), world.at("guest"));
        fs::write(host.join("first"), "first\n").expect("writes");
        before.iter().for_each(|edit| apply(&host, edit));
        world.sh("cd host; git add -A; git commit -q -m first --allow-empty");
        dirty.iter().for_each(|edit| apply(&host, edit));
        let wish = world.wish(if shallow { Mode::Shallow } else { Mode::Clone });
        world.prepare(&wish, false).expect("prepares");
        prop_assert_eq!(files(&guest), files(&host));
        let status = "git status --porcelain -z -uall --no-renames";
        prop_assert_eq!(world.sh(&format!("cd guest; {status}")), world.sh(&format!("cd host; {status}")));

        work.iter().for_each(|edit| apply(&guest, edit));
        let git_of_host = world.sh(&format!("cd host; {status}; cat .git/HEAD"));
        let guest_index = fs::read(guest.join(".git/index")).expect("reads");
        let exported = world.export(&Aim::default()).expect("exports");
        prop_assert_eq!(world.sh(&format!("cd host; {status}; cat .git/HEAD")), git_of_host);
        prop_assert_eq!(fs::read(guest.join(".git/index")).expect("reads"), guest_index);

        // Applied to what was sent, in a place of its own.
        fs::write(world.at("patch"), &exported.patch).expect("writes");
        world.sh("cd host; git worktree add -q --detach ../base refs/banger/web");
        if !exported.patch.is_empty() {
            world.sh("cd base; git apply --index --whitespace=nowarn ../patch");
        }
        // By the guest's rules, which are in its files: of what it has, what git would not ignore, tracked before or not.
        world.sh("cd base; git add -A; git write-tree >../patched; rm -rf ../again; cp -a ../guest ../again; rm -rf ../again/.git
            cd ../again; git --git-dir=../host/.git --work-tree=. --no-optional-locks version >/dev/null
            export GIT_DIR=$PWD/../host/.git GIT_WORK_TREE=$PWD GIT_INDEX_FILE=$PWD/../index
            git read-tree refs/banger/web; git -c core.untrackedCache=false add -A; git write-tree >../wanted");
        prop_assert_eq!(world.sh("cat patched"), world.sh("cat wanted"));
        prop_assert_eq!(exported.patch.is_empty(), exported.changes.is_empty());

        // And over it all the host's files again, whatever happened to them.
        later.iter().for_each(|edit| apply(&host, edit));
        match world.prepare(&wish, true) {
            Ok(_) => {
                let sent = |path: &PathBuf| files(&host).iter().any(|(known, ..)| known == path);
                let same: Vec<_> = files(&guest).into_iter().filter(|(path, ..)| sent(path)).collect();
                prop_assert_eq!(same, files(&host));
            }
            // Something ignored is where a file is to be.
            Err(error) => prop_assert_eq!(error.kind(), ErrorKind::FileInTheWay, "{}", error),
        }
    }
}
