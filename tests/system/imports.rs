//! Images from files: what they may be, and whom they must come from.

use std::path::Path;

use banger_api::IMAGED;
use banger_tests::{BUSYBOX, Way, banger, json, nothing_is_staged, sh};

/// The root filesystem of busybox's image, as a directory in `dir`.
fn root(dir: &Path) -> String {
    let dir = dir.display();
    sh(&format!(
        "cd {dir} && skopeo copy -q --src-tls-verify=false docker://{BUSYBOX} oci:oci:x &&
         umoci unpack --image oci:x bundle 2>/dev/null"
    ))
    .ok();
    format!("{dir}/bundle/rootfs")
}

/// Imports a file, boots it, removes it.
#[track_caller]
fn boots(name: &str, arguments: &[&str]) {
    let _ = banger(&["image", "rm", name]);
    banger(&[&["image", "import", "--name", name][..], arguments].concat()).ok();
    let done = banger(&["run", "--rm", "--name", name, name, "--", "echo", "imported"]);
    assert_eq!(done.ok(), "imported\n", "{name}");
    banger(&["image", "rm", name]).ok();
}

#[test]
fn archives_and_directories_are_imported() {
    let dir = tempfile::tempdir().expect("tempdir");
    let root = root(dir.path());
    let at = |name: &str| dir.path().join(name).display().to_string();
    sh(&format!(
        "cd {} && tar -C {root} -cf root.tar . && tar -C oci -c . | xz -0 >oci.tar.xz &&
         skopeo copy -q oci:oci:x docker-archive:docker.tar:busybox:x",
        dir.path().display()
    ))
    .ok();
    for (name, file) in [
        ("t-import-tar", "root.tar"),
        ("t-import-oci", "oci"),
        ("t-import-oci-tar", "oci.tar.xz"),
        ("t-import-docker", "docker.tar"),
    ] {
        boots(name, &[&at(file)]);
    }
    boots("t-import-directory", &[&root]);
    // What the image says of itself comes along.
    banger(&["image", "import", "--name", "t-import-config", &at("docker.tar")]).ok();
    let command = json(&["image", "show", "t-import-config"])["config"]["cmd"].clone();
    assert_eq!(command, json(&["image", "show", BUSYBOX])["config"]["cmd"]);
    banger(&["image", "rm", "t-import-config"]).ok();
}

#[test]
fn filesystems_are_imported() {
    let dir = tempfile::tempdir().expect("tempdir");
    let root = root(dir.path());
    let at = |name: &str| dir.path().join(name).display().to_string();
    sh(&format!(
        "cd {} && mksquashfs {root} root.squashfs -quiet -no-progress -comp zstd >/dev/null &&
         mkfs.erofs root.erofs {root} >/dev/null && mke2fs -q -t ext4 -d {root} root.ext4 32M",
        dir.path().display()
    ))
    .ok();
    for kind in ["squashfs", "erofs", "ext4"] {
        let name = format!("t-import-{kind}");
        boots(&name, &[&at(&format!("root.{kind}"))]);
    }
    let copy = "t-import-again";
    banger(&["image", "import", "--name", copy, "--like", BUSYBOX, &at("root.squashfs")]).ok();
    let image = json(&["image", "show", copy]);
    assert_eq!(image["rootfs_type"], "squashfs");
    assert_eq!(image["config"]["cmd"], json(&["image", "show", BUSYBOX])["config"]["cmd"]);
    banger(&["image", "rm", copy]).ok();

    // One that a crash left behind cannot be repaired where it is read-only.
    sh(&format!("debugfs -w -R 'feature needs_recovery' {} 2>/dev/null", at("root.ext4"))).ok();
    banger(&["image", "import", "--name", "t-import-dirty", &at("root.ext4")]).refused(&["e2fsck"]);
    sh(&format!("truncate -s 100K {}", at("root.squashfs"))).ok();
    banger(&["image", "import", "--name", "t-import-cut", &at("root.squashfs")]).refused(&["broke off"]);
}

#[test]
fn disks_are_imported() {
    let dir = tempfile::tempdir().expect("tempdir");
    let root = root(dir.path());
    let at = |name: &str| dir.path().join(name).display().to_string();
    // A first partition with something else in it, and a second with the root.
    sh(&format!(
        "cd {} && mkdir -p repart && printf '[Partition]\\nType=esp\\nSizeMinBytes=8M\\nSizeMaxBytes=8M\\n' >repart/10.conf &&
         printf '[Partition]\\nType=root\\nSizeMinBytes=64M\\nSizeMaxBytes=64M\\n' >repart/20.conf &&
         systemd-repart --empty=create --size=auto --dry-run=no --definitions=repart disk.raw 2>/dev/null >/dev/null &&
         mke2fs -q -t ext4 -d {root} root.ext4 32M &&
         start=$(python3 -c 'd=open(\"disk.raw\",\"rb\").read(8192); print(int.from_bytes(d[1024+128+32:1024+128+40],\"little\"))') &&
         dd if=root.ext4 of=disk.raw bs=512 seek=$start conv=notrunc status=none &&
         qemu-img convert -f raw -O qcow2 -c disk.raw disk.qcow2 &&
         qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 backed.qcow2",
        dir.path().display()
    ))
    .ok();
    boots("t-import-raw", &[&at("disk.raw")]);
    boots("t-import-qcow2", &["--partition", "2", &at("disk.qcow2")]);
    banger(&["image", "import", "--name", "t-import-bad", "--partition", "1", &at("disk.raw")])
        .refused(&["partitions"]);
    banger(&["image", "import", "--name", "t-import-bad", &at("backed.qcow2")]).refused(&["backing file"]);
    nothing_is_staged();
}

#[test]
fn files_are_what_they_were_said_to_be() {
    let dir = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| dir.path().join(name).display().to_string();
    sh(&format!(
        "cd {} && mkdir tree && echo signed >tree/file && tar -C tree -cf signed.tar . && cp signed.tar other.tar &&
         minisign -G -W -p t-trust.pub -s key >/dev/null && minisign -S -s key -m signed.tar >/dev/null",
        dir.path().display()
    ))
    .ok();
    let file = at("signed.tar");
    let name = "t-trust";
    let import =
        |more: &[&str]| banger(&[&["image", "import", "--name", name][..], more, &[file.as_str()]].concat());
    banger(&["image", "import", "--name", name, "--sha256", &"0".repeat(64), &at("other.tar")])
        .refused(&["digest"]);
    // Signed, but by nobody the admin trusts.
    import(&[]).refused(&["/etc/banger/keys.d"]);
    sh(&format!("install -D -m644 {} /etc/banger/keys.d/t-trust.pub", at("t-trust.pub"))).ok();
    let digest = sh(&format!("sha256sum {file} | cut -c1-64")).ok();
    import(&["--sha256", digest.trim()]).ok();
    banger(&["image", "rm", name]).ok();

    sh(&format!("echo x >>{}", at("other.tar"))).ok();
    let signature = at("signed.tar.minisig");
    banger(&["image", "import", "--name", name, "--signature", &signature, &at("other.tar")])
        .refused(&["signature", "damaged"]);
    let text = std::fs::read_to_string(&signature).expect("reads");
    sh(&format!("install -D -m644 {file} /opt/t-trust.tar")).ok();
    let given = ["ssa{sv}", "/opt/t-trust.tar", name, "1", "signature", "s", &text];
    Way::Bus.wait(IMAGED, Way::Bus.call(IMAGED, "Import", &given)).ok();
    banger(&["image", "rm", name]).ok();
    sh("rm /opt/t-trust.tar /etc/banger/keys.d/t-trust.pub").ok();
}

#[test]
fn a_root_filesystem_is_registered_with_its_kernel() {
    let dir = tempfile::tempdir().expect("tempdir");
    let root = root(dir.path());
    let at = |name: &str| dir.path().join(name).display().to_string();
    let version = sh("ls /lib/modules | sort -V | tail -n 1").ok().trim().to_owned();
    let vmlinuz = format!("/boot/vmlinuz-{version}");
    // An initrd as boot loaders are given it: microcode, and then the rest, compressed.
    sh(&format!(
        "cd {} && mke2fs -q -t ext4 -d {root} root.ext4 32M && tar -C oci -cf oci.tar . && echo nothing >nothing &&
         mkdir -p kernel/x86 && find kernel | cpio -o -H newc --quiet >initrd && head -c 1024 /dev/zero >>initrd &&
         here=$PWD && cd / && find usr/lib/modules/{version} -name '*.ko*' -o -name modules.builtin |
         cpio -o -H newc --quiet | zstd -1 -q >>$here/initrd",
        dir.path().display()
    ))
    .ok();
    let digest = |file: &str| sh(&format!("sha256sum {file} | cut -c1-64")).ok().trim().to_owned();
    let name = "t-register:1";
    let forget = || {
        let _ = banger(&["image", "rm", name]);
        let _ = banger(&["kernel", "rm", "t-register-1"]);
        let _ = banger(&["kernel", "rm", "t-register-own"]);
    };
    forget();
    let register = |file: &str, more: &[&str]| {
        banger(&[&["image", "register", "--kernel", &vmlinuz][..], more, &[&at(file), name]].concat())
    };
    let is_there = |kernel: &str| banger(&["kernel", "show", kernel]).status == 0;
    let nothing_is_left = || {
        assert_ne!(banger(&["image", "show", name]).status, 0);
        assert!(!is_there("t-register-1"));
        nothing_is_staged();
    };

    // Whichever of the two cannot be had, the other does not stay.
    let initrd = at("initrd");
    register("nothing", &["--initrd", &initrd]).failed(&[]);
    nothing_is_left();
    register("root.ext4", &["--initrd", &at("nothing")]).failed(&[]);
    register("root.ext4", &["--initrd", &initrd, "--sha256", &"0".repeat(64)]).refused(&["has the digest"]);
    register("root.ext4", &["--initrd", &initrd, "--kernel-sha256", &"0".repeat(64)])
        .refused(&["has the digest"]);
    register("root.ext4", &["--initrd", &initrd, "--initrd-sha256", &"0".repeat(64)])
        .refused(&["has the digest"]);
    register("oci.tar", &["--initrd", &initrd]).refused(&["banger image set"]);
    nothing_is_left();

    let (of_root, of_kernel, of_initrd) = (digest(&at("root.ext4")), digest(&vmlinuz), digest(&initrd));
    let digests = ["--sha256", &of_root, "--kernel-sha256", &of_kernel, "--initrd-sha256", &of_initrd];
    let registered = register("root.ext4", &[&["--initrd", &initrd, "--env", "A=1"][..], &digests].concat());
    assert_eq!(registered.ok(), format!("{name}\n"));
    let image = json(&["image", "show", name]);
    assert_eq!(
        (image["kernel"].as_str(), image["rootfs_type"].as_str()),
        (Some("t-register-1"), Some("ext4"))
    );
    let ran = banger(&["run", "--rm", "--name", "t-register", name, "--", "sh", "-c", "uname -r; echo $A"]);
    assert_eq!(ran.ok(), format!("{version}\n1\n"));
    // It was copied: what becomes of the file is all the same.
    std::fs::write(at("root.ext4"), "changed").expect("writes");
    banger(&["image", "verify", name]).ok();
    banger(&["kernel", "rm", "t-register-1"]).refused(&["t-register"]);
    // What is made of it has its kernel, too.
    banger(&["image", "derive", "-e", "A=2", name, "t-register:2"]).ok();
    assert_eq!(json(&["image", "show", "t-register:2"])["kernel"], "t-register-1");
    banger(&["image", "rm", "t-register:2", name]).ok();
    forget();

    // By D-Bus, with paths.
    sh(&format!("mke2fs -q -t ext4 -d {root} /opt/t-register.ext4 32M && chmod 644 /opt/t-register.ext4"))
        .ok();
    sh(&format!("cp {initrd} /opt/t-register.initrd")).ok();
    let call = ["sassa{sv}", "/opt/t-register.ext4", "2", &vmlinuz, "/opt/t-register.initrd", name];
    let call = [&call[..], &["1", "kernel_name", "s", "t-register-own"]].concat();
    Way::Bus.wait(IMAGED, Way::Bus.call(IMAGED, "RegisterImage", &call)).ok();
    sh("mv /opt/t-register.ext4 $0; rm /opt/t-register.initrd".replace("$0", &at("root.ext4")).as_str()).ok();
    assert!(is_there("t-register-own") && !is_there("t-register-1"));
    register("root.ext4", &["--initrd", &initrd]).refused(&["is taken"]);
    banger(&[
        "image",
        "register",
        "--kernel",
        &vmlinuz,
        "--initrd",
        &initrd,
        &at("root.ext4"),
        "t-register:3",
    ])
    .refused(&["is there already", "banger image set"]);
    assert!(!is_there("t-register-3"));
    forget();
}

#[test]
fn images_are_exported() {
    let dir = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| dir.path().join(name).display().to_string();
    let skopeo = |name: &str| {
        let file = at(name);
        sh(&format!(
            "skopeo inspect --config oci-archive:{file} >/dev/null && skopeo copy -q oci-archive:{file} dir:{file}.dir"
        ))
    };
    // What was pulled comes out as it went in.
    banger(&["pull", BUSYBOX]).ok();
    banger(&["image", "export", BUSYBOX, &at("pulled.tar")]).ok();
    skopeo("pulled.tar").ok();

    let digest = sh(&format!("skopeo inspect oci-archive:{} | jq -r .Digest", at("pulled.tar"))).ok();
    let id = json(&["image", "show", BUSYBOX])["id"].as_str().expect("an id").to_owned();
    assert_eq!(digest.trim(), format!("sha256:{id}"));

    // What was imported comes out as one layer with the same files.
    let root = root(dir.path());
    sh(&format!("setfattr -n user.test -v value {root}/bin/busybox; mknod {root}/dev/t-null c 1 3; tar --xattrs -C {root} -cf {} .", at("in.tar"))).ok();
    let name = "t-export";
    let _ = banger(&["image", "rm", name]);
    banger(&["image", "import", "--name", name, "--like", BUSYBOX, &at("in.tar")]).ok();
    banger(&["image", "export", name, &at("made.tar")]).ok();
    skopeo("made.tar").ok();
    sh(&format!(
        "cd {} && skopeo copy -q oci-archive:made.tar oci:made:x && umoci unpack --image made:x out 2>/dev/null",
        dir.path().display()
    ))
    .ok();
    let list = |root: &str| {
        sh(&format!("cd {root} && find . -printf '%P %y %m %U %G %l\\n' | sort && getfattr -R -d . && find . -type f | sort | xargs -d '\\n' sha256sum")).ok()
    };
    assert_eq!(list(&root), list(&at("out/rootfs")));

    // A bundle, by way of a pipe, and back.
    sh(&format!("banger image export --format bundle {name} - >{}", at("made.bundle"))).ok();
    let again = "t-export-again";
    let _ = banger(&["image", "rm", again]);
    banger(&["image", "import", "--name", again, &at("made.bundle")]).ok();
    for what in ["rootfs_digest", "config"] {
        assert_eq!(json(&["image", "show", again])[what], json(&["image", "show", name])[what]);
    }
    boots("t-export-boots", &[&at("made.bundle")]);
    banger(&["image", "export", "no-such", &at("never.tar")]).refused(&["no-such"]);
    assert!(!Path::new(&at("never.tar")).exists());
    banger(&["image", "rm", name, again]).ok();
}
