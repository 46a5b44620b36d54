//! Images of what VMs' disks hold.

use std::path::Path;

use banger_api::job::INTERFACE;
use banger_api::{IMAGED, VMD};
use banger_tests::{
    BUSYBOX, DEBIAN, Vm, Way, banger, error_name, eventually, job_property, json, nothing_is_staged, sh,
    start,
};

/// Whatever a root filesystem can hold, made in a VM that comes from busybox. The last lines leave
/// marks of overlayfs behind that it tidies up later.
const CHANGES: &str = r"
mkdir -p /made/deep /pure &&
echo new >/made/file && ln /made/file /made/deep/hard && ln -s ../file /made/deep/soft &&
echo su >/made/su && chown 1234:70000 /made/su && chmod 6755 /made/su &&
mknod /made/null c 1 3 && mknod /made/disk b 259 1048575 && mkfifo -m 600 /made/fifo &&
n=$(printf %0200d 7) && mkdir /made/$n && echo long >/made/$n/$n && ln -s $n/$n /made/long &&
echo bytes >/made/$(printf 'a\377b') && touch -d @86400 /made/old && : >/made/empty &&
dd if=/dev/zero of=/made/sparse bs=1 count=1 seek=50M 2>/dev/null &&
dd if=/dev/urandom of=/made/data bs=1000 count=3000 2>/dev/null &&
echo changed >>/etc/passwd && chmod 711 /root && rm /bin/whoami &&
mv /bin/tty /pure/ && rm /pure/tty && mkdir /made/oci-layout && echo {} >/index.json";

/// Everything in the root filesystem but what belongs to one VM: names, types, owners, modes, links,
/// times, devices, content.
const TREE: &str = r#"cd / && find . \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./run \
  -o -path ./etc/hostname -o -path ./etc/hosts -o -path ./etc/resolv.conf -o -path ./etc/machine-id \) -prune \
  -o -print | grep -v '^./bin/\|^./usr/bin/' | sort | while IFS= read -r f; do
  if [ -L "$f" ]; then echo "$(stat -c '%n %u %g' "$f") -> $(readlink "$f")"
  elif [ -d "$f" ]; then stat -c '%n %f %u %g' "$f"
  elif [ -f "$f" ]; then echo "$(stat -c '%n %f %u %g %h %s %Y' "$f") $(md5sum <"$f")"
  else stat -c '%n %f %u %g %t %T' "$f"; fi; done | od -c | sed 's/^[0-9]* //' | md5sum;
  find . -path ./proc -prune -o -path ./made -print -o -path './made/*' -print | sort | od -c"#;

/// Removes an image, whatever becomes of the test.
struct Image(&'static str);

impl Image {
    fn named(name: &'static str) -> Self {
        let _ = banger(&["image", "rm", name]);
        Self(name)
    }

    fn is_there(&self) -> bool {
        Way::Bus.call(IMAGED, "ListImages", &[]).ok().contains(&format!("\"{}\"", self.0))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = banger(&["image", "rm", self.0]);
    }
}

/// The file of an image's root filesystem.
#[track_caller]
fn rootfs(image: &str) -> String {
    let id = json(&["image", "show", image])["id"].as_str().expect("an id").to_owned();
    format!("/var/lib/banger/imaged/images/{id}/rootfs.squashfs")
}

/// A file as it is in the image, before any VM was made of that.
#[track_caller]
fn content(image: &str, path: &str) -> String {
    sh(&format!("unsquashfs -cat {} {path}", rootfs(image))).ok()
}

/// Nothing of an image that was not made is left, and nobody waits for it.
#[track_caller]
fn nothing_is_left(image: &Image) {
    assert!(!image.is_there());
    nothing_is_staged();
}

/// Begins to promote a VM, and returns when some of it is read.
#[track_caller]
fn begin(vm: &Vm, image: &Image) -> String {
    let begun = Way::Bus.call(VMD, "PromoteVm", &["ssa{sv}", vm.name(), image.0, "0"]).ok();
    let job = begun.split('"').nth(1).expect("a job").to_owned();
    eventually("bytes arrive", || {
        let progress = job_property(VMD, &job, "Progress");
        let bytes = progress.split_whitespace().nth(2).and_then(|bytes| bytes.parse::<u64>().ok());
        assert_eq!(job_property(VMD, &job, "State"), "v s \"running\"\n", "{progress}");
        job_property(VMD, &job, "Stage").contains("read") && bytes.is_some_and(|bytes| bytes > 0)
    });
    job
}

#[test]
fn a_running_vm_is_promoted() {
    let (vm, image) = (Vm::running("t-promote", BUSYBOX), Image::named("t-promote:1"));
    vm.sh(CHANGES).ok();
    let before = vm.sh(TREE).ok();
    assert_eq!(banger(&["image", "promote", vm.name(), image.0]).text(), format!("{}\n", image.0));
    // It runs and writes as before.
    assert_eq!(vm.sh("echo after >/after && sync && cat /after").ok(), "after\n");
    assert_eq!(vm.state(), "running");

    let new = Vm::running("t-promoted", image.0);
    assert_eq!(new.sh(TREE).ok(), before);
    new.sh("test ! -e /bin/whoami && test ! -L /bin/whoami && test -e /bin/ls").ok();
    let blocks = new.sh("stat -c %b /made/sparse").ok();
    assert!(blocks.trim().parse::<u64>().is_ok_and(|blocks| blocks < 1000), "{blocks}");
    // What is a VM's own is not the other's.
    assert_eq!(new.sh("hostname; cat /etc/hostname").ok(), "t-promoted\nt-promoted\n");
    assert_ne!(new.sh("cat /etc/machine-id").ok(), vm.sh("cat /etc/machine-id").ok());
    assert_eq!(content(image.0, "etc/machine-id"), "");
    let names = |image: &str| sh(&format!("unsquashfs -l {} | grep '/etc/[hr]'", rootfs(image))).text();
    assert_eq!(names(image.0), names(BUSYBOX));
    // What the image says of programs comes along.
    let config = |image: &str| json(&["image", "show", image])["config"].clone();
    assert_eq!(config(image.0), config(BUSYBOX));
}

#[test]
fn a_stopped_vm_is_promoted_and_stays_as_it_was() {
    let (vm, image) = (Vm::running("t-promote-down", BUSYBOX), Image::named("t-promote-down:1"));
    let again = Image::named("t-promote-down:2");
    vm.sh("echo kept >/kept").ok();
    banger(&["stop", vm.name()]).ok();
    let shown = || {
        let mut shown = json(&["vm", "show", vm.name()]);
        shown.as_object_mut().expect("an object").retain(|key, _| key != "disk_used");
        shown
    };
    let before = shown();
    banger(&["image", "promote", vm.name(), image.0]).ok();
    assert_eq!(shown(), before);
    Way::Socket.wait(VMD, Way::Socket.call(VMD, "PromoteVm", &["ssa{sv}", vm.name(), again.0, "0"])).ok();
    assert_eq!(shown(), before);
    banger(&["start", vm.name()]).ok();
    assert_eq!(vm.sh("cat /kept").ok(), "kept\n");
    let ran = banger(&["run", "--rm", "--name", "t-promoted-down", image.0, "--", "cat", "/kept"]);
    assert_eq!(ran.ok(), "kept\n");

    // One that never ran has not run now.
    let (created, image) = (Vm::named("t-promote-new"), Image::named("t-promote-new:1"));
    banger(&["vm", "create", "--name", created.name(), BUSYBOX]).ok();
    banger(&["image", "promote", created.name(), image.0]).ok();
    assert_eq!(created.state(), "created");
}

/// An init that never rests.
const INIT: &str = r"#!/bin/sh\nmount -t tmpfs tmpfs /tmp\necho above >/tmp/above
while :; do date >>/var/log/ticks; sync; sleep 0.2; done\n";

/// Services of the image's write to the disk, and wait while it is frozen. What banger writes is not
/// in the image, what the user wrote beside it is.
#[test]
fn a_vm_with_an_init_is_promoted() {
    let (vm, image) = (Vm::named("t-promote-init"), Image::named("t-promote-init:1"));
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIeTbVyUyvFVgkLAEUhz0g0Y7mhnpOVb1kKvHhTFnmNE of-banger";
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("key.pub");
    std::fs::write(&file, key).expect("writes");
    let path = file.display().to_string();
    banger(&["run", "-d", "--name", vm.name(), "--ssh-key", &path, DEBIAN]).ok();
    let xattr = |name: &str| {
        format!(
            r#"perl -e '$p="{name}";$a="user.banger";$v="\0"x99;print substr($v,0,syscall(191,$p,$a,$v,99))'"#
        )
    };
    let mark = r#"$p="/marked";$a="user.banger";$v="of mine";exit(syscall(188,$p,$a,$v,7,0)!=0)"#;
    vm.sh(&format!("touch /marked && perl -e '{mark}'")).ok();
    assert_eq!(vm.sh(&xattr("/marked")).ok(), "of mine");
    vm.sh("grep -q of-banger /root/.ssh/authorized_keys && echo mine >>/root/.ssh/authorized_keys").ok();
    vm.sh("echo below >/tmp/below").ok();
    vm.sh(&format!("printf '{INIT}' >/sbin/init && chmod 755 /sbin/init")).ok();
    banger(&["restart", vm.name()]).ok();
    eventually("its init is up", || vm.sh("cat /tmp/above; wc -l </var/log/ticks").text() != "");
    banger(&["image", "promote", vm.name(), image.0]).ok();
    let ticks = vm.sh("wc -l </var/log/ticks").ok();
    eventually("writers go on", || vm.sh("wc -l </var/log/ticks").text() != ticks);
    // What is mounted is not in it, but what is below that.
    assert_eq!(content(image.0, "tmp/below"), "below\n");
    sh(&format!("! unsquashfs -l {} | grep tmp/above", rootfs(image.0))).ok();
    assert_eq!(content(image.0, "root/.ssh/authorized_keys"), "mine\n");
    assert_eq!(content(image.0, "etc/machine-id"), "");
    drop(vm);
    let new = Vm::running("t-promoted-init", image.0);
    assert_eq!(new.sh(&xattr("/marked")).ok(), "of mine");
    eventually("its init is up, too", || new.sh("cat /tmp/above").text() == "above\n");
}

#[test]
fn what_cannot_be_promoted_is_refused() {
    let (vm, image) = (Vm::running("t-promote-no", BUSYBOX), Image::named("t-promote-no:1"));
    banger(&["image", "promote", vm.name(), BUSYBOX]).refused(&["is taken", "another name"]);
    let promote = |vm: &str, image: &str| error_name(VMD, "PromoteVm", &["ssa{sv}", vm, image, "0"]);
    assert_eq!(promote(vm.name(), BUSYBOX), "org.banger.Error.NameTaken");
    assert_eq!(promote("t-nobody", image.0), "org.banger.Error.NoSuchVm");
    let unknown = ["ssa{sv}", vm.name(), image.0, "1", "nonsense", "b", "true"];
    Way::Bus.call(VMD, "PromoteVm", &unknown).failed(&["unknown option nonsense"]);
    banger(&["image", "promote", vm.name(), "not a name"]).refused(&["not a usable name"]);
    banger(&["pause", vm.name()]).ok();
    banger(&["image", "promote", vm.name(), image.0]).refused(&["is paused", "banger resume t-promote-no"]);
    banger(&["resume", vm.name()]).ok();
    nothing_is_left(&image);
    vm.sh("echo x >/x && sync").ok();
    // An archive without its end was cut off.
    let script = "cd /etc && tar -c hostname | head -c 1024 >/srv/cut.tar";
    sh(script).ok();
    let import = ["ssa{sv}", "/srv/cut.tar", image.0, "1", "root", "b", "true"];
    Way::Bus.wait(IMAGED, Way::Bus.call(IMAGED, "Import", &import)).failed(&["was cut off"]);
    assert!(Path::new("/srv/cut.tar").exists() && !image.is_there());
}

const DATA: &str = "dd if=/dev/urandom of=/data bs=1M count=150 2>/dev/null";

#[test]
fn a_promotion_is_canceled() {
    let (vm, image) = (Vm::running("t-promote-cancel", BUSYBOX), Image::named("t-promote-cancel:1"));
    vm.sh(DATA).ok();
    for state in ["running", "stopped"] {
        if state == "stopped" {
            banger(&["stop", vm.name()]).ok();
        }
        let job = begin(&vm, &image);
        Way::Bus.call_at(VMD, &job, INTERFACE, "Cancel", &[]).ok();
        assert_ne!(Way::Bus.call_at(VMD, &job, INTERFACE, "Wait", &[]).status, 0);
        assert_eq!(job_property(VMD, &job, "State"), "v s \"canceled\"\n");
        assert_eq!(vm.state(), state);
        nothing_is_left(&image);
        if state == "running" {
            // The disk can be written to at once.
            vm.sh("echo written >/written && sync").ok();
        }
    }
}

/// Whoever wants something else of a VM does not wait for its promotion.
#[test]
fn a_vm_that_goes_down_is_not_promoted() {
    let (vm, image) = (Vm::running("t-promote-stop", BUSYBOX), Image::named("t-promote-stop:1"));
    vm.sh(DATA).ok();
    for state in ["running", "stopped"] {
        let job = begin(&vm, &image);
        let waits = job.clone();
        let waiting = std::thread::spawn(move || Way::Bus.call_at(VMD, &waits, INTERFACE, "Wait", &[]));
        banger(&["stop", vm.name()]).ok();
        waiting.join().expect("joins").failed(&["went down before all of its disk was read"]);
        assert_eq!(
            job_property(VMD, &job, "ErrorName"),
            "v s \"org.banger.Error.VmNotRunning\"\n",
            "{state}"
        );
        assert_eq!(vm.state(), "stopped", "{state}");
        nothing_is_left(&image);
    }
    let promoting = start("banger", &["image", "promote", vm.name(), image.0]);
    eventually("it is read", || vm.state() == "running");
    banger(&["rm", "-f", vm.name()]).ok();
    assert_ne!(promoting.join().expect("joins").status, 0);
    nothing_is_left(&image);
}
