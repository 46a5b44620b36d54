//! Files copied into guests and out of them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use banger_api::SESSIOND;
use banger_tests::tar::{Entry, Tar};
use banger_tests::{BUSYBOX, Vm, Way, banger, error_name, eventually, json, run_with, sh};
use tempfile::TempDir;

/// A directory on the disk: not every memory filesystem has extended attributes.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/var/tmp").expect("a directory")
}

/// A path in it, as it is typed.
fn at(scratch: &TempDir, name: &str) -> String {
    scratch.path().join(name).to_str().expect("UTF-8").to_owned()
}

/// Makes a tree with everything that can be in one.
fn make_tree(path: &str) {
    let capability = "0x0100000200200000000000000000000000000000";
    // Read and write for user 1000 beside owner and group.
    let acl = "0x0200000001000600ffffffff02000600e803000004000400ffffffff10000600ffffffff20000400ffffffff";
    let script = format!(
        r#"set -e; mkdir -p {path}/dir/empty {path}/dir/shared; cd {path}
        echo plain >file; echo run >dir/program; chmod 4755 dir/program; chmod 2775 dir/shared; chmod 500 dir/empty
        ln file dir/twin; ln -s ../file dir/link; ln -s /no/where dangling; ln -s ../../../../etc out; mkfifo fifo
        printf odd >"$(printf 'odd \377 "name"\n.')"; : >empty; echo dash >-n; echo hidden >.hidden
        mkdir -p $(printf 'deep/%.0s' $(seq 40)); echo deep >$(printf 'deep/%.0s' $(seq 40))end
        truncate -s 300M sparse; echo data | dd of=sparse bs=1M seek=150 conv=notrunc status=none
        setfattr -n user.mark -v 0x00ff3d0a file; setfattr -n user.of -v dir dir
        setfattr -n security.capability -v {capability} dir/program; setfattr -n system.posix_acl_access -v {acl} empty
        chown 1000:1001 file; chown -h 7:8 dangling; chown 1234567:7654321 .hidden
        touch -d '1999-12-31 23:59:59.123456789' file; touch -h -d '2001-01-01 00:00:00.5' dangling; touch -d 1960-01-01 empty
        touch -d '2002-02-02 02:02:02.25' dir"#
    );
    sh(&script).ok();
}

/// All that can be said of a tree, without its contents.
fn describe(path: &str) -> String {
    let script = format!(
        r"cd {path} && find . -mindepth 1 -printf '%P %y %m %U:%G %n %T@ %l\n' | sort && find . -type f -printf '%P %s\n' | sort \
        && (getfattr -R -P -d -m - -e hex . 2>/dev/null || true)"
    );
    let described = sh(&script).ok();
    assert!(described.contains("user.mark=0x00ff3d0a"), "{described}");
    described
}

#[track_caller]
fn compare(one: &str, other: &str) {
    let (described, wanted) = (describe(one), describe(other));
    let differ: Vec<_> = described.lines().zip(wanted.lines()).filter(|(one, other)| one != other).collect();
    assert!(described == wanted, "{differ:#?}");
    sh(&format!("diff -r --no-dereference --exclude=fifo {one} {other}")).ok();
}

#[test]
fn a_tree_goes_in_and_comes_out_as_it_was() {
    let scratch = scratch();
    let (tree, back) = (at(&scratch, "tree"), at(&scratch, "back"));
    make_tree(&tree);
    let vm = Vm::running("t-cp-tree", BUSYBOX);
    let done = banger(&["cp", "-a", &tree, "t-cp-tree:/srv"]);
    assert!(done.stderr.contains("files, ") && done.stderr.contains("/s)"), "a plain line: {done}");
    done.ok();
    let stat = "stat -c '%n %a %u:%g %h' file dir/program dir/shared dir/empty .hidden";
    assert_eq!(
        vm.sh(&format!("cd /srv && {stat}")).ok(),
        "file 644 1000:1001 2\ndir/program 4755 0:0 1\ndir/shared 2775 0:0 2\ndir/empty 500 0:0 2\n.hidden 644 1234567:7654321 1\n"
    );
    assert_eq!(
        vm.sh("readlink /srv/out; du -m /srv/sparse | cut -f1; wc -c </srv/sparse").ok(),
        "../../../../etc\n1\n314572800\n"
    );

    banger(&["cp", "-a", "t-cp-tree:/srv", &back]).ok();
    compare(&back, &tree);
    assert!(fs::metadata(Path::new(&back).join("sparse")).expect("stats").blocks() < 4096, "it has holes");

    // Of a copy that is gone on with, only what is missing or another goes over, in either direction.
    let kept = ["sparse", "dir/twin", "dir/link"];
    let inodes = format!("stat -c %i {}", kept.join(" "));
    let spoil = "rm dir/program empty; echo longer >.hidden; touch -d 2020-01-01 deep; rm -r deep/deep";
    let before = vm.sh(&format!("cd /srv; {spoil}; {inodes}")).ok();
    banger(&["cp", "-a", "--resume", &format!("{tree}/."), "t-cp-tree:/srv"]).ok();
    assert_eq!(vm.sh(&format!("cd /srv; {inodes}")).ok(), before);
    let before = sh(&format!("cd {back}; {spoil}; {inodes}")).ok();
    banger(&["cp", "-a", "--resume", "t-cp-tree:/srv/.", &back]).ok();
    assert_eq!(sh(&format!("cd {back}; {inodes}")).ok(), before);
    compare(&back, &tree);
    run_with("banger", &["cp", "--resume", "-", "t-cp-tree:/srv"], b"").refused(&["stream"]);

    // Without -a the files belong to root, or whom one says, and have no rights of their own.
    banger(&["cp", &format!("{tree}/."), "t-cp-tree:/srv/plain"]).ok();
    assert_eq!(
        vm.sh(&format!("cd /srv/plain && {stat}")).ok(),
        "file 644 0:0 2\ndir/program 755 0:0 1\ndir/shared 775 0:0 2\ndir/empty 500 0:0 2\n.hidden 644 0:0 1\n"
    );
    banger(&["cp", "--chown", "nobody", &format!("{tree}/dir"), "t-cp-tree:/srv/plain"]).ok();
    assert_eq!(vm.sh("cd /srv/plain/dir; stat -c %u:%g twin program").ok(), "65534:65534\n65534:65534\n");
    // Directories that were there are what they were.
    assert_eq!(vm.sh("stat -c %u /srv/plain/dir").ok(), "0\n");

    // Out of the VM they are the caller's: alice gets nothing of root's, nor with its rights.
    let script = format!(
        "cd $(mktemp -d) && banger cp {}:/srv/dir/. mine && stat -c '%n %U %a' mine mine/program && rm -r mine",
        vm.name()
    );
    let mode = fs::metadata(Path::new(&tree).join("dir")).expect("stats").mode() & 0o777;
    let done = banger_tests::as_user("alice", &script);
    assert_eq!(done.ok(), format!("mine alice {mode:o}\nmine/program alice 755\n"));
    banger_tests::as_user("alice", "banger cp -a t-cp-tree:/srv/dir /tmp").refused(&["only root"]);
    banger_tests::as_user("mallory", "banger cp t-cp-tree:/etc/passwd /tmp").refused(&[]);
}

#[test]
fn streams_and_big_files() {
    const MEGABYTES: u64 = 64;
    let scratch = scratch();
    let vm = Vm::running("t-cp-stream", BUSYBOX);
    let (big, back) = (at(&scratch, "big"), at(&scratch, "back"));
    sh(&format!("head -c {MEGABYTES}M /dev/urandom >{big}")).ok();
    let sum = sh(&format!("sha256sum <{big}")).ok();
    let begun = Instant::now();
    banger(&["cp", &big, "t-cp-stream:/big"]).ok();
    let into = begun.elapsed();
    assert_eq!(vm.sh("sha256sum </big").ok(), sum);
    let begun = Instant::now();
    banger(&["cp", "t-cp-stream:/big", &back]).ok();
    let out = begun.elapsed();
    assert_eq!(sh(&format!("sha256sum <{back}")).ok(), sum);
    let rate = |time: std::time::Duration| MEGABYTES as f64 / time.as_secs_f64();
    println!("banger cp: {:.1} MB/s in, {:.1} MB/s out", rate(into), rate(out));
    // A program reads JSON.
    let copied = json(&["cp", &big, "t-cp-stream:/json"]);
    assert_eq!((copied["entries"].as_u64(), copied["bytes"].as_u64()), (Some(1), Some(MEGABYTES << 20)));

    let (tree, out) = (at(&scratch, "tree"), at(&scratch, "out"));
    make_tree(&tree);
    vm.sh("mkdir /in").ok();
    // tar fills its last record with zeros, which nobody wants but everybody has to take.
    sh(&format!(
        "tar -C {tree} -b 2000 --xattrs --xattrs-include='*' --sparse -c . | banger cp -a - t-cp-stream:/in"
    ))
    .ok();
    sh(&format!("banger cp t-cp-stream:/in - >{out}.tar && mkdir {out} && tar -C {out} --xattrs --xattrs-include='*' -xpf {out}.tar")).ok();
    compare(&format!("{out}/in"), &tree);
    let names =
        |command: &str| sh(&format!("{command} | sed 's,^\\./,,; s,/$,,' | grep -v '^\\.\\?$' | sort")).ok();
    assert_eq!(
        names("banger cp t-cp-stream:/in/. - | tar -t"),
        names(&format!("tar -C {tree} -c . | tar -t")),
    );
    sh("banger cp t-cp-stream:/in - | head -c 100 >/dev/null").ok();

    // From VM to VM is two of these; here within one.
    vm.sh("mkdir /again").ok();
    sh("banger cp -a t-cp-stream:/in/. - | banger cp -a - t-cp-stream:/again").ok();
    assert_eq!(vm.sh("cd /again && find . | wc -l").ok(), vm.sh("cd /in && find . | wc -l").ok());
}

#[test]
fn nothing_is_written_outside_of_the_destination() {
    let scratch = scratch();
    let vm = Vm::running("t-cp-hostile", BUSYBOX);
    vm.sh("mkdir -p /box/in; echo safe >/box/victim; ln -s .. /box/in/up; ln -s ../victim /box/in/file").ok();
    let link = |name: &str, target: &str| Tar::default().link(b'2', name, target);
    for (what, archive) in [
        ("upwards", Tar::default().file("../victim", b"x")),
        ("absolute", Tar::default().file("/box/victim", b"x")),
        ("a link that was there", Tar::default().file("up/victim", b"x")),
        ("a link of its own", link("out", "..").file("out/victim", b"x")),
        ("an absolute one", link("out", "/box").file("out/victim", b"x")),
        ("a hard link", link("out", "..").link(b'1', "twin", "out/victim")),
    ] {
        let mut bytes = archive.finish();
        bytes.resize(10240, 0);
        let done = run_with("banger", &["cp", "-a", "-", "t-cp-hostile:/box/in"], &bytes);
        assert_eq!(done.status, 1, "{what}: {done}");
        assert_eq!(
            vm.sh("cat /box/victim; stat -c %h /box/victim; ls -A /box").ok(),
            "safe\n1\nin\nvictim\n",
            "{what}"
        );
    }
    // In the place of a link comes the file, not where it leads.
    let archive = Tar::default().file("file", b"x").finish();
    run_with("banger", &["cp", "-", "t-cp-hostile:/box/in"], &archive).ok();
    assert_eq!(vm.sh("cat /box/victim /box/in/file").ok(), "safe\nx");
    // No setuid root, no device without --archive.
    let device = Entry { device: (1, 3), ..Entry::new(b'3') };
    let su = Entry { mode: 0o4755, ..Entry::new(b'0') };
    let archive = Tar::default().entry(b"null", &device, b"").entry(b"su", &su, b"x").finish();
    let done = run_with("banger", &["cp", "-", "t-cp-hostile:/box/in"], &archive);
    assert!(done.stderr.contains("null: a device"), "{done}");
    assert_eq!(vm.sh("cd /box/in; stat -c %a su; test -e null || echo none").ok(), "755\nnone\n");
    run_with("banger", &["cp", "-a", "-", "t-cp-hostile:/box/in"], &archive).ok();
    assert_eq!(vm.sh("cd /box/in; stat -c %a su; test -c null && echo device").ok(), "4755\ndevice\n");

    // The same on the host: a guest's links are copied as such, and never followed.
    let (dest, victim) = (at(&scratch, "dest"), at(&scratch, "victim"));
    sh(&format!("mkdir {dest}; echo safe >{victim}")).ok();
    vm.sh(&format!("mkdir -p /evil; ln -s {victim} /evil/file; ln -s ../.. /evil/dir; mknod /evil/null c 1 3; cp /bin/busybox /evil/su; chmod 6755 /evil/su")).ok();
    banger(&["cp", "t-cp-hostile:/evil", &dest]).ok();
    vm.sh("rm /evil/file /evil/dir; echo x >/evil/file; mkdir /evil/dir; echo x >/evil/dir/victim").ok();
    banger(&["cp", "t-cp-hostile:/evil", &dest]).refused(&["evil/dir", "move it away"]);
    // Nor with root's own rights.
    let done = banger(&["cp", "-a", "t-cp-hostile:/evil/file", &format!("{dest}/evil/file")]);
    done.ok();
    assert_eq!(
        sh(&format!(
            "cat {victim}; cd {dest}/evil; cat file; readlink dir; stat -c %a su; ls {}",
            scratch.path().display()
        ))
        .ok(),
        "safe\nx\n../..\n755\ndest\nvictim\n"
    );
    assert!(!Path::new(&dest).join("evil/null").exists(), "no device on the host");
}

#[test]
fn what_is_wrong_is_said() {
    let scratch = scratch();
    let vm = Vm::running("t-cp-errors", BUSYBOX);
    let file = at(&scratch, "file");
    sh(&format!("head -c 4M /dev/urandom >{file}")).ok();
    let code = |arguments: &[&str], status: i32, words: &[&str]| {
        let mut line = vec!["cp"];
        line.extend(arguments);
        let done = banger(&line);
        assert_eq!(done.status, status, "{done}");
        done.refused(words);
    };
    code(&["t-cp-errors:/no/such", "/tmp"], 3, &["/no/such"]);
    code(&["/no/such", "t-cp-errors:/tmp"], 3, &["/no/such"]);
    code(&[&file, "t-cp-errors:/no/such/file"], 3, &["/no/such"]);
    code(&[&file, "t-cp-errors:/no/"], 3, &["/no/"]);
    code(&["t-cp-errors:/etc/passwd", "/no/such/file"], 3, &["/no/such"]);
    code(&["t-cp-errors:/etc/passwd/", "/tmp"], 3, &["/etc/passwd"]);
    code(&["/etc", "t-cp-errors:/etc/passwd"], 1, &["not a directory"]);
    code(&["--chown", "nemo", &file, "t-cp-errors:/tmp"], 3, &["nemo"]);
    code(&["--chown", "root", "t-cp-errors:/etc/passwd", "/tmp"], 2, &["--chown"]);
    code(&[&file, "/tmp"], 2, &["VM:PATH"]);
    code(&["t-no-such:/etc", "/tmp"], 3, &["t-no-such"]);
    let done =
        run_with("banger", &["cp", "-", "t-cp-errors:/"], b"no tar at all, and not a whole block of it");
    done.refused(&["ended before"]);
    run_with("banger", &["cp", "-", "t-cp-errors:/"], &[b'x'; 100_000]).refused(&["checksum"]);
    run_with("banger", &["cp", "-", "t-cp-errors:/no/such"], b"").refused(&["/no/such"]);

    // No space: said as such, and nothing half is left.
    vm.sh("mkdir /small; mount -t tmpfs -o size=1m none /small").ok();
    code(&[&file, "t-cp-errors:/small/file"], 1, &["No space left"]);
    assert_eq!(vm.sh("ls -A /small").ok(), "");
    sh(&format!("mkdir {0}/small; mount -t tmpfs -o size=1m none {0}/small", scratch.path().display())).ok();
    vm.sh("head -c 4194304 /dev/urandom >/file").ok();
    code(&["t-cp-errors:/file", &at(&scratch, "small")], 1, &["No space left"]);
    assert_eq!(sh(&format!("ls -A {0}/small; umount {0}/small", scratch.path().display())).ok(), "");

    // By D-Bus.
    let manager = |method: &str, arguments: &[&str]| error_name(SESSIOND, method, arguments);
    assert_eq!(
        manager("StatFile", &["ssb", "t-cp-errors", "/no/such", "false"]),
        "org.banger.Error.NoSuchFile"
    );
    assert_eq!(
        manager("StatFile", &["ssb", "t-cp-errors", "etc", "false"]),
        "org.freedesktop.DBus.Error.InvalidArgs"
    );
    assert_eq!(
        manager("OpenRead", &["ssa{sv}", "t-cp-errors", "/no/such", "0"]),
        "org.banger.Error.NoSuchFile"
    );
    assert_eq!(
        manager("OpenWrite", &["ssa{sv}", "t-cp-errors", "/no/such", "0"]),
        "org.banger.Error.NoSuchFile"
    );
    assert_eq!(
        manager("OpenWrite", &["ssa{sv}", "t-cp-errors", "/file", "0"]),
        "org.banger.Error.NoSuchDirectory"
    );
    assert_eq!(manager("WaitTransfer", &["ss", "t-cp-errors", "abc"]), "org.banger.Error.NoSuchTransfer");
    for way in Way::BOTH {
        let stat = way.call(SESSIOND, "StatFile", &["ssb", "t-cp-errors", "/file", "false"]).ok();
        assert!(stat.contains("\"kind\" s \"file\"") && stat.contains("\"size\" t 4194304"), "{stat}");
        let opened =
            way.call(SESSIOND, "OpenRead", &["ssa{sv}", "t-cp-errors", "/file", "1", "name", "s", "x"]).ok();
        // busctl has closed the stream by now.
        let id = opened.split('"').nth(1).expect("an id");
        way.call(SESSIOND, "WaitTransfer", &["ss", "t-cp-errors", id]).failed(&["nobody took"]);
    }

    // Copies that stand still do not hold up a stop, and say that they are not whole.
    let stalled = |arguments: &[&str]| {
        let mut command = Command::new("banger");
        command.arg("cp").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(Stdio::piped()).spawn().expect("starts")
    };
    let mut into = stalled(&["-", "t-cp-errors:/tmp"]);
    let archive = Tar::default().file("half", &[b'x'; 100_000]).cut();
    into.stdin.as_mut().expect("piped").write_all(&archive[..50_000]).expect("writes");
    let out = stalled(&["t-cp-errors:/file", "-"]);
    let half = || vm.sh("ls -A /tmp").ok().contains(".part");
    eventually("a copy is under way", half);
    banger(&["stop", "t-cp-errors"]).ok();
    assert_eq!(vm.state(), "stopped");
    // Dropping its input is the end of that, too.
    for copying in [into, out] {
        let done = copying.wait_with_output().expect("waits");
        assert_eq!(done.status.code(), Some(1), "{}", String::from_utf8_lossy(&done.stderr));
    }
    code(&[&file, "t-cp-errors:/"], 1, &["banger start"]);
    code(&["t-cp-errors:/file", "/tmp"], 1, &["banger start"]);
    // What was half there is not left in the way of the next.
    banger(&["start", "t-cp-errors"]).ok();
    assert_eq!(vm.sh("find / -xdev -name '.banger-*'").ok(), "");
}

#[test]
fn names_are_as_with_other_tools() {
    let scratch = scratch();
    let (tree, dest) = (at(&scratch, "tree"), at(&scratch, "dest"));
    sh(&format!(
        "mkdir -p {tree}/sub {dest}; echo 1 >{tree}/file; ln -s file {tree}/link; ln -s tree {0}/linked",
        scratch.path().display()
    ))
    .ok();
    let vm = Vm::running("t-cp-names", BUSYBOX);
    // The agent copies: an image may have no program at all.
    vm.sh("mkdir /d; cp /bin/busybox /keep; ln -s /d /to-d").ok();
    let copy = |arguments: &[&str]| {
        let mut line = vec!["cp", "-q"];
        line.extend(arguments);
        let done = banger(&line);
        assert_eq!(done.stderr, "", "{done}");
        done.ok();
    };
    copy(&[&format!("{tree}/file"), "t-cp-names:/d"]);
    copy(&[&format!("{tree}/file"), "t-cp-names:/d/other"]);
    copy(&[&tree, "t-cp-names:/d"]);
    copy(&[&tree, "t-cp-names:d/new"]);
    copy(&[&format!("{tree}/."), "t-cp-names:/d/tree/sub"]);
    copy(&[&format!("{tree}/link"), "t-cp-names:/d/link"]);
    copy(&["-L", &format!("{tree}/link"), "t-cp-names:/to-d/followed"]);
    copy(&[&at(&scratch, "linked/"), "t-cp-names:/d/linked"]);
    let found = vm.sh("cd /d; find . ! -name . | sort; readlink link; cat followed").ok();
    assert_eq!(
        found.split_whitespace().collect::<Vec<_>>().join(" "),
        "./file ./followed ./link ./linked ./linked/file ./linked/link ./linked/sub ./new ./new/file ./new/link ./new/sub \
         ./other ./tree ./tree/file ./tree/link ./tree/sub ./tree/sub/file ./tree/sub/link ./tree/sub/sub file 1"
    );

    vm.sh("rm -r /bin /sbin /usr /lib || true; true");
    copy(&["t-cp-names:/d/file", &dest]);
    copy(&["t-cp-names:/d/file", &format!("{dest}/other")]);
    copy(&["t-cp-names:/d/tree", &dest]);
    copy(&["t-cp-names:/d/tree/.", &format!("{dest}/new")]);
    copy(&["-L", "t-cp-names:/to-d", &format!("{dest}/all")]);
    copy(&["t-cp-names:/to-d", &format!("{dest}/link")]);
    let found = sh(&format!(
        "cd {dest}; find . ! -name . -path './all/*' -prune -o -print | sort; readlink link; ls all"
    ))
    .ok();
    assert_eq!(
        found.split_whitespace().collect::<Vec<_>>().join(" "),
        ". ./all ./file ./link ./new ./new/file ./new/link ./new/sub ./new/sub/file ./new/sub/link ./new/sub/sub ./other ./tree \
         ./tree/file ./tree/link ./tree/sub ./tree/sub/file ./tree/sub/link ./tree/sub/sub /d file followed link linked new other tree"
    );
    // What the kernel makes up is not in a copy of everything.
    copy(&["t-cp-names:/", &format!("{dest}/root")]);
    assert!(Path::new(&dest).join("root/keep").exists() && Path::new(&dest).join("root/proc").is_dir());
    assert!(!Path::new(&dest).join("root/proc/self").exists());
}
