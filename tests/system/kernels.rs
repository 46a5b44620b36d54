//! Kernels: where they come from, what is known of them, what that decides.

use banger_api::IMAGED;
use banger_tests::{BUSYBOX, Vm, Way, banger, json, oci, sh};

#[test]
fn kernels_are_imported_listed_and_kept_while_used() {
    let kernels = json(&["kernel", "ls"]);
    let kernels = kernels.as_array().expect("a list");
    assert!(kernels.iter().any(|kernel| kernel["default"] == true), "{kernels:?}");
    let name = "t-kernel";
    let _ = banger(&["kernel", "rm", name]);
    banger(&["kernel", "import", "--name", name, "host"]).ok();
    let vm = Vm::named("t-kernel-user");
    banger(&["vm", "create", "--name", vm.name(), "--kernel", name, BUSYBOX]).ok();
    banger(&["kernel", "rm", name]).refused(&["t-kernel-user"]);
    banger(&["rm", vm.name()]).ok();
    banger(&["kernel", "rm", name]).ok();
    banger(&["kernel", "show", name]).refused(&[name]);
}

#[test]
fn kernels_come_from_packages_and_from_files() {
    let version = sh("ls /lib/modules | sort -V | tail -n 1").ok().trim().to_owned();
    let dir = tempfile::tempdir().expect("tempdir");
    let package = dir.path().display().to_string();
    // A linux-image package as Debian makes them.
    let build = format!(
        "mkdir -p {package}/root/DEBIAN {package}/root/boot {package}/root/lib/modules && cd {package}/root &&
         cp /boot/vmlinuz-{version} /boot/config-{version} boot/ && cp -a /lib/modules/{version} lib/modules/ &&
         printf 'Package: linux-image-{version}\\nVersion: 1\\nArchitecture: all\\nMaintainer: x <x@x>\\nDescription: x\\n' > DEBIAN/control &&
         dpkg-deb -Zgzip -z1 -b . ../kernel.deb"
    );
    sh(&build).ok();
    let (vmlinuz, modules) = (format!("/boot/vmlinuz-{version}"), format!("/lib/modules/{version}"));
    let deb = format!("{package}/kernel.deb");
    let sources =
        [("t-kernel-deb", vec![deb.as_str()]), ("t-kernel-file", vec!["--modules", &modules, &vmlinuz])];
    for (name, source) in sources {
        let _ = banger(&["kernel", "rm", name]);
        let mut line = vec!["kernel", "import", "--name", name];
        line.extend(source);
        banger(&line).ok();
        let done = banger(&["run", "--rm", "--name", name, "--kernel", name, BUSYBOX, "--", "uname", "-r"]);
        assert_eq!(done.ok().trim(), version);
        banger(&["kernel", "rm", name]).ok();
    }
    let script = dir.path().join("no-kernel");
    std::fs::write(&script, "#!/bin/sh\n").expect("writes");
    banger(&["kernel", "import", "--name", "t-kernel-bad", &script.display().to_string()])
        .refused(&["no-kernel"]);
}

/// An RPM as Fedora makes them: `lib/modules/VERSION` alone, the payload compressed with zstd.
const SPEC: &str = "
Name: kernel-PART
Version: 1
Release: 1
Summary: x
License: GPL-2.0-only
BuildArch: noarch
%define _binary_payload w3.zstdio
%define __os_install_post %{nil}
%define _build_id_links none
%description
x
%install
mkdir -p %{buildroot}/lib/modules
cp -a TREE %{buildroot}/lib/modules/VERSION
%files
/lib/modules/VERSION
";

/// Splits the host's kernel into what a package of the kernel and one of its modules have.
fn trees(dir: &str) -> String {
    let version = sh("ls /lib/modules | sort -V | tail -n 1").ok().trim().to_owned();
    sh(&format!(
        "mkdir -p {dir}/core {dir}/modules && cp /boot/vmlinuz-{version} {dir}/core/vmlinuz &&
         cp /boot/config-{version} {dir}/core/config && cp /lib/modules/{version}/modules.builtin {dir}/core/ &&
         cp -a /lib/modules/{version}/kernel {dir}/modules/"
    ))
    .ok();
    version
}

#[test]
fn kernels_come_in_several_packages() {
    let temporary = tempfile::tempdir().expect("tempdir");
    let dir = temporary.path().display().to_string();
    let version = trees(&dir);
    for part in ["core", "modules"] {
        let spec =
            SPEC.replace("PART", part).replace("TREE", &format!("{dir}/{part}")).replace("VERSION", &version);
        std::fs::write(temporary.path().join(format!("{part}.spec")), spec).expect("writes");
        sh(&format!("rpmbuild -bb --quiet --define '_topdir {dir}/rpm' {dir}/{part}.spec")).ok();
    }
    let rpm = |part| format!("{dir}/rpm/RPMS/noarch/kernel-{part}-1-1.noarch.rpm");
    let name = "t-kernel-rpm";
    let _ = banger(&["kernel", "rm", name]);
    banger(&["kernel", "import", "--name", name, &rpm("core")]).refused(&["modules", "package"]);
    banger(&["kernel", "import", "--name", name, &rpm("core"), &rpm("modules")]).ok();

    let kernel = json(&["kernel", "show", name]);
    assert_eq!(kernel["version"], version.as_str());
    assert!(kernel["description"].as_str().expect("text").starts_with(&version), "{kernel}");
    let features: Vec<&str> =
        kernel["features"].as_array().expect("known").iter().filter_map(|feature| feature.as_str()).collect();
    for feature in ["acpi", "ext4", "overlay", "squashfs", "virtio-mmio", "vsock"] {
        assert!(features.contains(&feature), "{feature}: {features:?}");
    }
    let done = banger(&["run", "--rm", "--name", name, "--kernel", name, BUSYBOX, "--", "uname", "-r"]);
    assert_eq!(done.ok().trim(), version);
    banger(&["kernel", "rm", name]).ok();

    // Over D-Bus by paths, of which a service sees those that are not of somebody's own.
    sh(&format!("install -D -m644 -t /opt/t-kernel {} {}", rpm("core"), rpm("modules"))).ok();
    let first = "/opt/t-kernel/kernel-core-1-1.noarch.rpm";
    let second = "/opt/t-kernel/kernel-modules-1-1.noarch.rpm";
    let given =
        ["ssa{sv}", first, name, "2", "with", "as", "1", second, "description", "s", "from two packages"];
    for way in Way::BOTH {
        way.wait(IMAGED, way.call(IMAGED, "ImportKernel", &given)).ok();
        assert_eq!(json(&["kernel", "show", name])["description"], "from two packages");
        banger(&["kernel", "rm", name]).ok();
    }
    sh("rm -r /opt/t-kernel").ok();
}

#[test]
fn a_kernel_that_cannot_do_it_is_refused_before_the_start() {
    let temporary = tempfile::tempdir().expect("tempdir");
    let dir = temporary.path().display().to_string();
    let version = sh("ls /lib/modules | sort -V | tail -n 1").ok().trim().to_owned();
    // Everything in an archive, with a configuration that knows no overlay.
    sh(&format!(
        "mkdir -p {dir}/boot {dir}/lib/modules && cp /boot/vmlinuz-{version} {dir}/boot/ &&
         cp -a /lib/modules/{version} {dir}/lib/modules/ &&
         grep -v OVERLAY_FS /boot/config-{version} >{dir}/boot/config-{version} &&
         tar -C {dir} -c boot lib | zstd -q >{dir}/kernel.tar.zst"
    ))
    .ok();
    let name = "t-kernel-less";
    let _ = banger(&["kernel", "rm", name]);
    banger(&["kernel", "import", "--name", name, &format!("{dir}/kernel.tar.zst")]).ok();
    let vm = Vm::named("t-kernel-less");
    banger(&["vm", "create", "--name", vm.name(), "--kernel", name, BUSYBOX]).ok();
    banger(&["vm", "check", vm.name()]).refused(&["overlay", "--kernel"]);
    banger(&["start", vm.name()]).refused(&["overlay", "--kernel"]);
    banger(&["rm", vm.name()]).ok();
    banger(&["kernel", "rm", name]).ok();
}

#[test]
fn an_image_may_have_a_kernel_of_its_own() {
    let name = "t-kernel-own";
    let image = oci::push("t-own-kernel", &oci::tar(&[("hello", b"hello\n")]));
    banger(&["pull", &image.reference]).ok();
    let _ = banger(&["kernel", "rm", name]);
    banger(&["kernel", "import", "--name", name, "host"]).ok();
    banger(&["image", "set", &image.reference, "--kernel", "no-such"]).refused(&["no-such"]);
    banger(&["image", "set", &image.reference, "--kernel", name]).ok();
    assert_eq!(json(&["image", "show", &image.reference])["kernel"], name);
    let vm = Vm::named("t-kernel-own");
    banger(&["vm", "create", "--name", vm.name(), &image.reference]).ok();
    assert_eq!(json(&["vm", "show", vm.name()])["kernel"], name);
    banger(&["rm", vm.name()]).ok();
    banger(&["kernel", "rm", name]).refused(&["image"]);
    banger(&["image", "set", &image.reference, "--no-kernel"]).ok();
    banger(&["kernel", "rm", name]).ok();
    banger(&["image", "rm", &image.reference]).ok();
}

#[test]
fn kernels_come_from_registries() {
    let version = sh("ls /lib/modules | sort -V | tail -n 1").ok().trim().to_owned();
    let dir = tempfile::tempdir().expect("tempdir");
    sh(&format!(
        "tar -C / -cf {0}/kernel.tar boot/vmlinuz-{version} boot/config-{version} lib/modules/{version}",
        dir.path().display()
    ))
    .ok();
    let layer = std::fs::read(dir.path().join("kernel.tar")).expect("reads");
    let image = oci::push("t-kernel-oci", &layer);
    let name = "t-kernel-oci";
    let _ = banger(&["kernel", "rm", name]);
    banger(&["kernel", "pull", "--name", name, "--description", "of a registry", &image.reference]).ok();
    let kernel = json(&["kernel", "show", name]);
    assert_eq!(
        (&kernel["version"], &kernel["description"]),
        (&version.as_str().into(), &"of a registry".into())
    );
    let done = banger(&["run", "--rm", "--name", name, "--kernel", name, BUSYBOX, "--", "uname", "-r"]);
    assert_eq!(done.ok().trim(), version);
    banger(&["kernel", "rm", name]).ok();
    // Its blobs were for the import alone.
    assert!(!std::path::Path::new(&format!("/var/lib/banger/imaged/blobs/sha256/{}", image.layer)).exists());
    banger(&["kernel", "pull", BUSYBOX]).refused(&["vmlinuz"]);
    let call = ["ssa{sv}", &image.reference, name, "0"];
    Way::Bus.wait(IMAGED, Way::Bus.call(IMAGED, "PullKernel", &call)).ok();
    banger(&["kernel", "rm", name]).ok();
}
