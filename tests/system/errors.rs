//! What is refused says what was wrong and what to do, by a typed name, and leaves nothing.

use std::fs;
use std::io::Write;

use banger_api::{IMAGED, VMD};
use banger_tests::{BUSYBOX, Vm, Way, banger, error_name, job_error, nothing_is_staged, oci, run, sh};

/// Runs a pull by `busctl`, and returns the name of the error its job ends with.
#[track_caller]
fn pull_error(reference: &str) -> String {
    let name = job_error(IMAGED, "Pull", &["sa{sv}", reference, "0"]);
    nothing_is_staged();
    name
}

#[test]
fn unknown_images_and_unreachable_registries() {
    assert_eq!(pull_error("localhost:5000/no/such:image"), "org.banger.Error.NoSuchImage");
    banger(&["pull", "localhost:5000/no/such:image"]).refused(&["no/such"]);
    assert_eq!(pull_error("localhost:1/debian:12"), "org.banger.Error.RegistryUnreachable");
    banger(&["pull", "localhost:1/debian:12"]).refused(&["localhost:1"]);
    banger(&["pull", "localhost:5000/UPPER"]).refused(&["UPPER"]);
    // The lab's internet has no registry; nothing may take for ever.
    banger(&["run", "--rm", "--name", "t-unknown", "localhost:5000/no/such:image", "--", "true"])
        .refused(&["no/such"]);
    banger(&["vm", "show", "t-unknown"]).refused(&["t-unknown"]);
}

#[test]
fn a_blob_with_other_bytes_than_its_digest_says() {
    // Another layer each time: the registry keeps the broken one.
    let content = format!("{:?}", std::time::SystemTime::now()).repeat(100);
    let crafted = oci::push("t-digest", &oci::tar(&[("data", content.as_bytes())]));
    let file = oci::registry_file(&crafted.layer);
    let mut bytes = fs::read(&file).expect("reads");
    bytes[600] ^= 1;
    fs::write(&file, bytes).expect("writes");
    assert_eq!(pull_error(&crafted.reference), "org.banger.Error.DigestMismatch");
    banger(&["pull", &crafted.reference]).refused(&["digest"]);
}

#[test]
fn a_truncated_layer() {
    let whole = oci::tar(&[("data", &[b't'; 50_000])]);
    let crafted = oci::push("t-truncated", &whole[..20_000]);
    assert_eq!(pull_error(&crafted.reference), "org.banger.Error.InvalidImage");
    banger(&["pull", &crafted.reference]).refused(&["layer"]);

    // The registry breaks off.
    let crafted = oci::push("t-cut", &oci::tar(&[("data", &[b'c'; 50_000])]));
    let file = oci::registry_file(&crafted.layer);
    fs::OpenOptions::new().write(true).open(&file).and_then(|file| file.set_len(10_000)).expect("cuts");
    let name = pull_error(&crafted.reference);
    assert!(
        [
            "org.banger.Error.DigestMismatch",
            "org.banger.Error.RegistryUnreachable",
            "org.banger.Error.InvalidImage"
        ]
        .contains(&name.as_str()),
        "{name}"
    );
}

#[test]
fn an_entry_that_leaves_the_root() {
    for name in ["../escape", "a/../../escape"] {
        let crafted = oci::push("t-escape", &oci::tar(&[(name, b"out")]));
        assert_eq!(pull_error(&crafted.reference), "org.banger.Error.InvalidImage", "{name}");
        banger(&["pull", &crafted.reference]).refused(&["escape"]);
    }
}

#[test]
fn a_missing_kernel() {
    banger(&["vm", "create", "--name", "t-no-kernel", "--kernel", "no-such-kernel", BUSYBOX])
        .refused(&["no-such-kernel"]);
    banger(&["vm", "show", "t-no-kernel"]).refused(&["t-no-kernel"]);
    let create = ["ssa{sv}", "t-no-kernel", BUSYBOX, "1", "kernel", "s", "no-such-kernel"];
    assert_eq!(job_error(VMD, "CreateVm", &create), "org.banger.Error.NoSuchKernel");
}

#[test]
fn a_missing_vmm() {
    let vm = Vm::named("t-no-vmm");
    banger(&["vm", "create", "--name", vm.name(), "--vmm", "firecracker", BUSYBOX]).ok();
    let firecracker = std::path::Path::new("/usr/bin/firecracker").exists()
        || std::path::Path::new("/usr/local/bin/firecracker").exists();
    if !firecracker {
        banger(&["start", vm.name()]).refused(&["Firecracker"]);
        assert_eq!(job_error(VMD, "StartVm", &["s", vm.name()]), "org.banger.Error.VmmMissing");
    }
    // Nothing stays behind of a start that failed.
    assert!(!Way::Bus.call(banger_api::NETD, "ListLeases", &[]).ok().contains("t-no-vmm"));
}

#[test]
fn no_free_address() {
    let conf = "/etc/banger/netd.conf";
    let old = fs::read(conf).ok();
    fs::create_dir_all("/etc/banger").expect("creates");
    // Room for one guest.
    fs::write(conf, "range = \"10.250.0.0/30\"\nbridge = \"banger1\"\n").expect("writes");
    run("systemctl", &["stop", "banger-netd.service"]).ok();
    let first = Vm::named("t-full-1");
    let made = banger(&["vm", "create", "--name", first.name(), BUSYBOX]);
    let refused = banger(&["vm", "create", "--name", "t-full-2", BUSYBOX]);
    let name =
        std::panic::catch_unwind(|| job_error(VMD, "CreateVm", &["ssa{sv}", "t-full-2", BUSYBOX, "0"]));
    match old {
        Some(old) => fs::write(conf, old).expect("restores"),
        None => fs::remove_file(conf).expect("removes"),
    }
    run("systemctl", &["stop", "banger-netd.service"]).ok();
    banger(&["rm", "-f", "t-full-2"]);
    made.ok();
    refused.refused(&["10.250.0.0/30", "netd.conf"]);
    assert_eq!(name.expect("refused"), "org.banger.Error.NoFreeAddress");
}

#[test]
fn bad_input_by_busctl() {
    let create = |arguments: &[&str]| {
        let mut line = vec!["ssa{sv}"];
        line.extend(arguments);
        error_name(VMD, "CreateVm", &line)
    };
    let invalid = "org.freedesktop.DBus.Error.InvalidArgs";
    assert_eq!(create(&["UPPER", "x", "0"]), invalid);
    assert_eq!(create(&["t-bad", "x", "1", "typo", "s", "x"]), invalid);
    assert_eq!(create(&["t-bad", "x", "1", "cpus", "s", "two"]), invalid);
    assert_eq!(create(&["t-bad", "", "0"]), invalid);
    assert_eq!(error_name(VMD, "StartVm", &["s", "t-nobody"]), "org.banger.Error.NoSuchVm");
    assert_eq!(error_name(VMD, "StopVm", &["sa{sv}", "t-nobody", "0"]), "org.banger.Error.NoSuchVm");
    assert_eq!(error_name(IMAGED, "GetKernel", &["s", "t-none"]), "org.banger.Error.NoSuchKernel");
    banger(&["run", "--cpus", "0", BUSYBOX]).refused(&["CPU"]);
    banger(&["start", "t-nobody"]).refused(&["t-nobody"]);
}

#[test]
fn garbage_on_a_socket_does_no_harm() {
    for service in banger_api::SERVICES {
        for garbage in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0xff; 4096],
            b"\0AUTH EXTERNAL 30\r\nBEGIN\r\nl\x01\0\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            let mut socket = std::os::unix::net::UnixStream::connect(service.socket).expect("connects");
            let _ = socket.write_all(garbage);
        }
        let ping = format!(
            "busctl --address=unix:path={} call {} {} org.freedesktop.DBus.Peer Ping",
            service.socket, service.bus_name, service.path
        );
        sh(&ping).ok();
    }
}
