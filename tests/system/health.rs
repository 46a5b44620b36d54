//! Whether guests answer: what banger shows of it, and what systemd makes of it.

use std::fs;
use std::time::Duration;

use banger_api::VMD;
use banger_api::vm::{VM, VM_PREFIX};
use banger_tests::monitor::Monitor;
use banger_tests::{BUSYBOX, Vm, Way, banger, eventually, eventually_within, json, run, sh};

/// Longer than a guest may be silent, on a busy host.
const LONG: Duration = Duration::from_secs(120);

#[track_caller]
fn health(vm: &Vm) -> String {
    json(&["vm", "show", vm.name()])["health"].as_str().expect("a word").to_owned()
}

/// When the guest was last heard, by the CLI.
#[track_caller]
fn heartbeat(vm: &Vm) -> u64 {
    json(&["vm", "show", vm.name()])["heartbeat_usec"].as_u64().expect("a time")
}

fn path(vm: &Vm) -> String {
    banger_api::path::encode(VM_PREFIX, vm.name()).to_string()
}

/// As `busctl get-property` prints it.
#[track_caller]
fn property(vm: &Vm, property: &str) -> String {
    run("busctl", &["get-property", VMD.bus_name, &path(vm), VM, property]).ok()
}

/// What systemd shows of the VM's unit.
#[track_caller]
fn status(vm: &Vm) -> String {
    run("systemctl", &["show", "-P", "StatusText", &vm.unit()]).ok().trim().to_owned()
}

#[test]
fn a_guest_that_runs_is_healthy() {
    let vm = Vm::running("t-health", BUSYBOX);
    eventually("it is healthy", || health(&vm) == "healthy");
    assert_eq!(property(&vm, "Health"), "s \"healthy\"\n");
    assert_eq!(status(&vm), "healthy");
    let list = banger(&["ps"]).ok();
    assert!(list.lines().any(|line| line.starts_with("t-health") && line.contains("healthy")), "{list}");
    let rows = json(&["ps"]);
    let row = rows.as_array().expect("a list").iter().find(|row| row["name"] == vm.name());
    assert_eq!(row.expect("the VM")["health"], "healthy");
    assert!(Way::Socket.call(VMD, "ListVms", &[]).ok().contains("\"healthy\""));
    let first = heartbeat(&vm);
    eventually("it is heard again", || heartbeat(&vm) > first);
    assert_ne!(property(&vm, "HeartbeatTimestamp"), "t 0\n");
    // vmd knows nothing by itself.
    run("systemctl", &["restart", "banger-vmd"]).ok();
    assert_eq!(health(&vm), "healthy");

    // Of one that stands still nobody knows.
    banger(&["pause", vm.name()]).ok();
    assert_eq!(health(&vm), "unknown");
    eventually("systemd shows it", || status(&vm) == "paused");
    Way::Bus.call(VMD, "ResumeVm", &["s", vm.name()]).ok();
    eventually("it is as it was", || health(&vm) == "healthy");
    assert_eq!(status(&vm), "healthy");

    banger(&["stop", vm.name()]).ok();
    assert_eq!(health(&vm), "unknown");
    assert_eq!(property(&vm, "HeartbeatTimestamp"), "t 0\n");
}

#[test]
fn an_agent_that_falls_silent_is_noticed_and_so_is_its_return() {
    let vm = Vm::with_init("t-silent");
    eventually("it is healthy", || health(&vm) == "healthy");
    let mut signals = Monitor::start(&format!("type='signal',path='{}'", path(&vm)));
    // What stops the agent has to let it go on as well: nobody else can tell the guest to.
    vm.sh("agent=$(pidof @banger-agent) || exit; (sleep 1; kill -STOP $agent; sleep 75; kill -CONT $agent) >/dev/null 2>&1 &").ok();
    // Asking keeps vmd awake, too, without whom there are no signals.
    eventually_within(LONG, "it is noticed", || health(&vm) == "unresponsive");
    assert!(signals.hears("string \"Health\"") && signals.hears("string \"unresponsive\""));
    assert_eq!((vm.state().as_str(), status(&vm).as_str()), ("running", "unresponsive"));
    assert!(banger(&["ps"]).ok().contains("unresponsive"));
    let silent_since = heartbeat(&vm);
    eventually_within(LONG, "so is its return", || health(&vm) == "healthy");
    assert!(signals.hears("string \"Health\"") && signals.hears("string \"healthy\""));
    assert!(heartbeat(&vm) > silent_since);
    assert_eq!(vm.sh("echo back").ok(), "back\n");
    let log = sh(&format!("journalctl -o cat BANGER_VM={} _SYSTEMD_UNIT={}", vm.name(), vm.unit())).ok();
    assert_eq!(log.matches("does not answer").count(), 1, "{log}");
    assert_eq!(log.matches("answers again").count(), 1, "{log}");
}

#[test]
fn a_guest_that_goes_on_from_a_snapshot_is_healthy() {
    let vm = Vm::running("t-health-of", BUSYBOX);
    let fork = Vm::named("t-health-fork");
    banger(&["snapshot", "create", vm.name(), "one"]).ok();
    // Its line broke off, which it did not wait to find out.
    let taken = heartbeat(&vm);
    eventually("it is heard again", || heartbeat(&vm) > taken && health(&vm) == "healthy");
    banger(&["fork", vm.name(), fork.name()]).ok();
    eventually("the fork is healthy", || health(&fork) == "healthy");
    banger(&["stop", vm.name()]).ok();
    banger(&["restore", vm.name(), "one"]).ok();
    eventually("the restored one is healthy", || health(&vm) == "healthy");
    // Both have an agent that can still say how they go down.
    for vm in [&vm, &fork] {
        let _ = vm.sh("poweroff");
        eventually("it stops", || vm.state() == "stopped");
        assert_eq!(json(&["vm", "show", vm.name()])["ended"]["reason"], "the guest powered itself off");
    }
}

/// A drop-in for the unit of one VM.
struct DropIn(String);

impl DropIn {
    fn new(vm: &Vm, text: &str) -> Self {
        let directory = format!("/run/systemd/system/{}.d", vm.unit());
        fs::create_dir_all(&directory).expect("makes");
        fs::write(format!("{directory}/50-test.conf"), text).expect("writes");
        run("systemctl", &["daemon-reload"]).ok();
        Self(directory)
    }
}

impl Drop for DropIn {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        let _ = run("systemctl", &["daemon-reload"]);
    }
}

#[test]
fn systemd_starts_a_hung_guest_again_and_lets_a_paused_one_be() {
    const WATCHDOG: Duration = Duration::from_secs(30);
    let vm = Vm::named("t-watchdog");
    let _drop_in =
        DropIn::new(&vm, &format!("[Service]\nWatchdogSec={}\nRestart=on-watchdog\n", WATCHDOG.as_secs()));
    banger(&["run", "-d", "--name", vm.name(), BUSYBOX]).ok();
    let first = vm.pid();
    let current = || run("systemctl", &["show", "-P", "WatchdogUSec", &vm.unit()]).ok().trim().to_owned();
    eventually("the watchdog is on", || current() == "30s");
    banger(&["pause", vm.name()]).ok();
    eventually("the watchdog is off", || current() == "0");
    std::thread::sleep(WATCHDOG + Duration::from_secs(5));
    assert_eq!((vm.state().as_str(), vm.pid()), ("paused", first));
    banger(&["resume", vm.name()]).ok();
    eventually("the watchdog is on", || current() == "30s");
    assert_eq!((vm.state().as_str(), vm.pid()), ("running", first));

    // Nothing of the guest runs any longer, and nobody was told.
    run("kill", &["-STOP", &first.to_string()]).ok();
    eventually_within(LONG, "another VMM is there", || ![0, first].contains(&vm.pid()));
    eventually_within(LONG, "the guest is up again", || health(&vm) == "healthy");
    let reason = json(&["vm", "show", vm.name()])["ended"]["reason"].clone();
    assert!(reason.as_str().expect("a reason").contains("watchdog"), "{reason}");
    banger(&["stop", vm.name()]).ok();
    assert_eq!(vm.state(), "stopped");
}
