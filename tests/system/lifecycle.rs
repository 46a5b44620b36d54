//! The life of a VM by `busctl` alone, and as a unit.

use banger_api::VMD;
use banger_api::vm::VM;
use banger_tests::{BUSYBOX, Vm, Way, banger, eventually, json, run, sh, start};

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
fn a_vm_that_is_left_running_goes_on_with_its_command() {
    let vm = Vm::named("t-left");
    let command = "echo $A in $PWD; read line; echo $line; exit 3";
    let run = ["run", "-d", "--name", vm.name(), "-e", "A=1", "-w", "/tmp", BUSYBOX, "sh", "-c", command];
    assert_eq!(banger(&run).ok(), "t-left\n");
    banger(&["session", "send", vm.name(), "main", "go on"]).ok();
    assert_eq!(banger(&["session", "wait", vm.name(), "main"]).status, 3);
    assert_eq!(banger(&["session", "logs", vm.name(), "main"]).text(), "1 in /tmp\ngo on\n");
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
fn who_wants_a_vm_up_or_down_does_not_ask_which_it_is() {
    let vm = Vm::named("t-wanted");
    banger(&["vm", "create", "--name", vm.name(), BUSYBOX]).ok();
    banger(&["stop", vm.name()]).ok();
    assert_eq!(vm.state(), "created");
    // Two who start it, and systemd itself, wait for one start.
    run("systemctl", &["start", "--no-block", &vm.unit()]).ok();
    let other = start("banger", &["start", vm.name()]);
    banger(&["start", vm.name()]).ok();
    other.join().expect("joins").ok();
    assert_eq!(vm.state(), "running");
    let pid = vm.pid();
    let started = Way::Bus.call(VMD, "StartVm", &["s", vm.name()]);
    assert_eq!(Way::Bus.wait(VMD, started).ok(), "s \"t-wanted\"\n");
    assert_eq!(vm.pid(), pid);
    // To stand still is neither.
    banger(&["pause", vm.name()]).ok();
    banger(&["start", vm.name()]).refused(&["banger resume t-wanted"]);
    for _ in 0..2 {
        let stopped = Way::Bus.call(VMD, "StopVm", &["sa{sv}", vm.name(), "0"]);
        Way::Bus.wait(VMD, stopped).ok();
        assert_eq!(vm.state(), "stopped");
    }
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

#[test]
fn a_restart_is_a_new_boot_on_the_same_disk() {
    let vm = Vm::running("t-restart", BUSYBOX);
    vm.sh("echo kept >/root/file; sync").ok();
    let pid = vm.pid();
    banger(&["restart", vm.name()]).ok();
    assert_ne!(vm.pid(), pid);
    assert_eq!(vm.sh("cat /root/file").ok(), "kept\n");
    // Of one that does not run it is a start.
    banger(&["stop", vm.name()]).ok();
    let restarted = Way::Bus.call(VMD, "RestartVm", &["sa{sv}", vm.name(), "0"]);
    Way::Bus.wait(VMD, restarted).ok();
    assert_eq!(vm.state(), "running");
}

#[test]
fn a_signal_reaches_the_vmm_and_the_end_has_a_reason() {
    let vm = Vm::running("t-kill", BUSYBOX);
    banger(&["kill", "--signal", "NEVER", vm.name()]).failed(&["NEVER"]);
    Way::Bus.call(VMD, "KillVm", &["si", vm.name(), "99"]).failed(&["no signal 99"]);
    assert_eq!(vm.state(), "running");
    banger(&["kill", vm.name()]).ok();
    eventually("the VM fails", || vm.state() == "failed");
    assert_eq!(json(&["vm", "show", vm.name()])["ended"]["reason"], "its VMM was killed");
    banger(&["kill", vm.name()]).refused(&["does not run"]);
}

#[test]
fn a_reset_brings_the_image_back_and_keeps_the_work_disk() {
    let vm = Vm::named("t-reset");
    banger(&["run", "-d", "--name", vm.name(), "--work", "128M", BUSYBOX]).ok();
    vm.sh("echo x >/root/file; rm /bin/wget; echo kept >/work/file; sync").ok();
    banger(&["reset", vm.name()]).refused(&["stop it"]);
    banger(&["stop", vm.name()]).ok();
    Way::Bus.call(VMD, "ResetVm", &["s", vm.name()]).ok();
    banger(&["start", vm.name()]).ok();
    assert_eq!(vm.sh("ls /root/file; ls /bin/wget; cat /work/file").ok(), "/bin/wget\nkept\n");
}

#[test]
fn several_at_once_and_each_that_fails_is_named() {
    let (one, two) = (Vm::named("t-several-one"), Vm::named("t-several-two"));
    for vm in [&one, &two] {
        banger(&["vm", "create", "--name", vm.name(), BUSYBOX]).ok();
    }
    let done = banger(&["start", one.name(), "t-several-none", two.name()]);
    assert_ne!(done.status, 0);
    assert!(done.stderr.contains("t-several-none"), "{done}");
    assert_eq!((one.state().as_str(), two.state().as_str()), ("running", "running"));
    banger(&["stop", one.name(), two.name()]).ok();
    assert_eq!((one.state().as_str(), two.state().as_str()), ("stopped", "stopped"));
}

#[test]
fn all_are_all() {
    let (one, two) = (Vm::named("t-all-one"), Vm::named("t-all-two"));
    for vm in [&one, &two] {
        banger(&["vm", "create", "--name", vm.name(), BUSYBOX]).ok();
    }
    banger(&["start", "--all"]).ok();
    assert_eq!((one.state().as_str(), two.state().as_str()), ("running", "running"));
    banger(&["stop", one.name()]).ok();
    // Only those it makes sense for.
    banger(&["stop", "--all"]).ok();
    assert_eq!(two.state(), "stopped");
    banger(&["rm", "--all"]).ok();
    assert_eq!(json(&["vm", "ls"]), serde_json::json!([]));
}

#[test]
fn a_slow_boot_delays_nobody() {
    let (slow, quick) = (Vm::named("t-slow"), Vm::running("t-quick", BUSYBOX));
    banger(&["vm", "create", "--name", slow.name(), BUSYBOX]).ok();
    let starting = start("banger", &["start", slow.name()]);
    // Before that the process is the one that asks vmd what to execute.
    let is_vmm = |comm: String| comm.starts_with("qemu") || comm.starts_with("firecracker");
    let comm = || std::fs::read_to_string(format!("/proc/{}/comm", slow.pid()));
    eventually("the slow one has a VMM", || slow.state() == "starting" && comm().is_ok_and(is_vmm));
    // It boots no further.
    run("kill", &["-STOP", &slow.pid().to_string()]).ok();
    banger(&["stop", quick.name()]).ok();
    banger(&["start", quick.name()]).ok();
    assert_eq!(slow.state(), "starting");
    // And its own stop need not wait for it to come up.
    run("kill", &["-CONT", &slow.pid().to_string()]).ok();
    banger(&["stop", slow.name()]).ok();
    assert_eq!(slow.state(), "stopped");
    starting.join().expect("joins").refused(&["stopped before it was up"]);
}

#[test]
fn a_guest_that_crashes_is_a_failed_vm_and_one_that_powers_off_is_not() {
    let vm = Vm::running("t-ends", BUSYBOX);
    // To journald that would be an emergency, which it tells on every terminal.
    vm.sh("echo '<0>the guest is bored' >/dev/console").ok();
    let _ = vm.sh("echo c >/proc/sysrq-trigger");
    eventually("the VM fails", || vm.state() == "failed");
    let reason = json(&["vm", "show", vm.name()])["ended"]["reason"].clone();
    assert!(reason.as_str().expect("a reason").contains("panicked"), "{reason}");
    // The console is in the journal of the unit.
    let log = sh(&format!("journalctl -o cat BANGER_VM={} _SYSTEMD_UNIT={}", vm.name(), vm.unit())).text();
    assert!(log.contains("Kernel panic"), "{log}");
    let bored = "journalctl -o json MESSAGE='<0>the guest is bored' | jq -r .PRIORITY | sort -u";
    assert_eq!(sh(bored).ok(), "6\n");

    banger(&["start", vm.name()]).ok();
    let _ = vm.sh("poweroff");
    eventually("the VM stops", || vm.state() == "stopped");
    let reason = json(&["vm", "show", vm.name()])["ended"]["reason"].clone();
    assert_eq!(reason, "the guest powered itself off");
}

#[test]
fn a_reset_is_a_reboot_whoever_does_it_and_a_power_off_is_none() {
    let vm = Vm::with_init("t-foreign");
    // The init does not tell the agent which it is; `-f` and sysrq tell nobody at all.
    for reset in ["reboot", "reboot -f", "echo b >/proc/sysrq-trigger"] {
        let before = vm.pid();
        // These are more starts than systemd allows in a while.
        run("systemctl", &["reset-failed", &vm.unit()]).ok();
        let _ = vm.sh(reset);
        eventually("it is up again", || vm.state() == "running" && ![0, before].contains(&vm.pid()));
        assert_eq!(json(&["vm", "show", vm.name()])["ended"]["reason"], "the guest rebooted", "{reset}");
    }
    for off in ["poweroff", "poweroff -f"] {
        let _ = vm.sh(off);
        eventually("it stops", || vm.state() == "stopped");
        let reason = json(&["vm", "show", vm.name()])["ended"]["reason"].clone();
        assert_eq!(reason, "the guest powered itself off", "{off}");
        banger(&["start", vm.name()]).ok();
    }
    // A panic is a reset, too, but nothing that anybody wants. Which it was the guest must have said that it can tell.
    eventually("it is heard", || json(&["vm", "show", vm.name()])["health"] == "healthy");
    let _ = vm.sh("echo c >/proc/sysrq-trigger");
    eventually("it fails", || vm.state() == "failed");
    assert_eq!(json(&["vm", "show", vm.name()])["ended"]["reason"], "the guest's kernel panicked");
}

#[test]
fn the_restart_policy_is_kept() {
    let vm = Vm::named("t-policy");
    banger(&["run", "-d", "--name", vm.name(), "--restart", "on-failure", BUSYBOX]).ok();
    let first = vm.pid();
    banger(&["kill", vm.name()]).ok();
    eventually("it is up again", || vm.state() == "running" && ![0, first].contains(&vm.pid()));
    // What was asked for is not undone.
    banger(&["stop", vm.name()]).ok();
    assert_eq!(vm.state(), "stopped");
    banger(&["start", vm.name()]).ok();
    let _ = vm.sh("poweroff");
    eventually("it stays down", || vm.state() == "stopped");
    banger(&["start", vm.name()]).ok();
    let second = vm.pid();
    // A guest that reboots is a VM that starts again, whatever its policy.
    let _ = vm.sh("reboot");
    eventually("it is up again", || vm.state() == "running" && ![0, second].contains(&vm.pid()));
    banger(&["rm", "-f", vm.name()]).ok();
    assert!(!sh("systemctl is-active banger-vm@t-policy").text().starts_with("act"));
}

#[test]
fn machinectl_knows_it() {
    let vm = Vm::running("t-machine", BUSYBOX);
    let listed = run("machinectl", &["list", "--no-legend"]).ok();
    assert!(listed.lines().any(|line| line.contains("t-machine") && line.contains("banger")), "{listed}");
    let shown = run("machinectl", &["show", vm.name(), "-p", "Unit", "-p", "Class", "-p", "Leader"]).ok();
    assert!(shown.contains(&format!("Unit={}", vm.unit())), "{shown}");
    assert!(shown.contains("Class=vm") && shown.contains(&format!("Leader={}", vm.pid())), "{shown}");
    banger(&["stop", vm.name()]).ok();
    assert_ne!(run("machinectl", &["show", vm.name()]).status, 0);
}

#[test]
fn vms_start_with_the_host() {
    let (wanted, other) = (Vm::named("t-auto"), Vm::named("t-manual"));
    banger(&["vm", "create", "--name", wanted.name(), "--autostart", "--", BUSYBOX]).ok();
    banger(&["vm", "create", "--name", other.name(), BUSYBOX]).ok();
    // What the boot does.
    assert_eq!(run("systemctl", &["is-enabled", "banger-autostart"]).text(), "enabled\n");
    run("systemctl", &["start", "banger-autostart"]).ok();
    eventually("it is up", || wanted.state() == "running");
    assert_eq!(other.state(), "created");
    banger(&["set", wanted.name(), "--autostart=false"]).ok();
    // With nothing to start, vmd is not even asked.
    run("systemctl", &["start", "banger-autostart"]).ok();
    let met = run("systemctl", &["show", "-P", "ConditionResult", "banger-autostart"]).ok();
    assert_eq!(met, "no\n");
}

#[test]
fn a_vm_that_was_enabled_and_deleted_leaves_nothing_that_fails() {
    let vm = Vm::named("t-enabled");
    banger(&["vm", "create", "--name", vm.name(), BUSYBOX]).ok();
    run("systemctl", &["enable", &vm.unit()]).ok();
    banger(&["rm", vm.name()]).ok();
    run("systemctl", &["start", &vm.unit()]).failed(&["Assertion failed"]);
    assert_eq!(run("systemctl", &["show", "-P", "ActiveState", &vm.unit()]).ok(), "inactive\n");
    run("systemctl", &["disable", &vm.unit()]).ok();
}
