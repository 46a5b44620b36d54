//! The life of a VM by `busctl` alone, and as a unit.

use banger_api::VMD;
use banger_api::vm::VM;
use banger_tests::{BUSYBOX, Vm, Way, banger, eventually, run, sh};

#[test]
fn busctl_alone_creates_starts_lists_stops_and_deletes() {
    for way in Way::BOTH {
        let vm = Vm::named("t-busctl");
        let created =
            way.call(VMD, "CreateVm", &["ssa{sv}", vm.name(), BUSYBOX, "1", "memory", "t", "268435456"]);
        assert_eq!(way.wait(VMD, created).ok(), "s \"t-busctl\"\n");
        assert!(way.call(VMD, "ListVms", &[]).ok().contains("\"t-busctl\" \"created\""));
        let path = way.call(VMD, "GetVm", &["s", vm.name()]).ok();
        let path = path.split('"').nth(1).expect("a path").to_owned();

        let started = way.call(VMD, "StartVm", &["s", vm.name()]);
        way.wait(VMD, started).ok();
        assert!(way.call(VMD, "ListVms", &[]).ok().contains("\"t-busctl\" \"running\""));
        let get = ["ss", VM, "State"];
        let state = way.call_at(VMD, &path, "org.freedesktop.DBus.Properties", "Get", &get);
        assert_eq!(state.ok(), "v s \"running\"\n");

        let stopped = way.call_at(VMD, &path, VM, "Stop", &["a{sv}", "0"]);
        way.wait(VMD, stopped).ok();
        assert!(way.call(VMD, "ListVms", &[]).ok().contains("\"t-busctl\" \"stopped\""));
        way.call(VMD, "DeleteVm", &["sa{sv}", vm.name(), "0"]).ok();
        assert!(!way.call(VMD, "ListVms", &[]).ok().contains("t-busctl"));
    }
}

#[test]
fn the_cli_works_over_the_sockets_too() {
    let done = banger(&[
        "--peer",
        "run",
        "--rm",
        "--name",
        "t-peer",
        BUSYBOX,
        "--",
        "sh",
        "-c",
        "echo by socket; exit 4",
    ]);
    assert_eq!((done.status, done.text().as_str()), (4, "by socket\n"), "{done}");
}

#[test]
fn systemctl_is_an_equal_way() {
    let vm = Vm::named("t-unit");
    banger(&["vm", "create", "--name", vm.name(), BUSYBOX]).ok();
    run("systemctl", &["start", &vm.unit()]).ok();
    assert_eq!(vm.state(), "running");
    // Active means that the guest is ready, not that the VMM is there.
    assert_eq!(vm.sh("echo ready").ok(), "ready\n");
    run("systemctl", &["stop", &vm.unit()]).ok();
    assert_eq!(vm.state(), "stopped");
    let released = sh("ip -o link show type tun").text();
    assert!(!released.contains("t-unit"), "{released}");
}

#[test]
fn a_vmm_that_dies_is_a_failed_vm_that_can_be_started_again() {
    let vm = Vm::running("t-dies", BUSYBOX);
    run("kill", &["-9", &vm.pid().to_string()]).ok();
    eventually("the VM fails", || vm.state() == "failed");
    banger(&["exec", vm.name(), "--", "true"]).refused(&["t-dies"]);
    banger(&["start", vm.name()]).ok();
    assert_eq!(vm.sh("echo again").ok(), "again\n");
}

#[test]
fn a_vm_is_a_user_of_its_own_without_privilege() {
    let vm = Vm::running("t-user", BUSYBOX);
    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.pid())).expect("reads");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect("there");
        line.split_whitespace().nth(1).expect("a value").to_owned()
    };
    let uid: u32 = field("Uid:").parse().expect("a number");
    // The range of systemd's dynamic users.
    assert!((61184..=65519).contains(&uid), "{uid}");
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert_eq!(field("NoNewPrivs:"), "1");
    let slice = run("systemctl", &["show", "-P", "Slice", &vm.unit()]).ok();
    assert_eq!(slice.trim(), "machine-banger.slice");
}

#[test]
fn running_vms_are_not_deleted_by_mistake() {
    let vm = Vm::running("t-careful", BUSYBOX);
    banger(&["rm", vm.name()]).refused(&["running", "t-careful"]);
    assert_eq!(vm.state(), "running");
    banger(&["rm", "-f", vm.name()]).ok();
    banger(&["vm", "show", vm.name()]).refused(&["t-careful"]);
    // Nothing of it is left.
    assert!(!std::path::Path::new("/var/lib/banger/vmd/vms/t-careful").exists());
    let leases = Way::Bus.call(banger_api::IMAGED, "ListLeases", &[]).ok();
    assert!(!leases.contains("t-careful"), "{leases}");
    let leases = Way::Bus.call(banger_api::NETD, "ListLeases", &[]).ok();
    assert!(!leases.contains("t-careful"), "{leases}");
}
