//! What a VM is to be, changed: now where that is possible, else from its next start.

use std::time::{Duration, Instant};

use banger_api::VMD;
use banger_tests::{BUSYBOX, Vm, Way, banger, eventually, json, run, sh};

/// A property of the VM's unit.
fn unit_property(vm: &Vm, name: &str) -> String {
    run("systemctl", &["show", "-P", name, &vm.unit()]).ok().trim().to_owned()
}

#[test]
fn set_says_what_is_in_effect_when() {
    let vm = Vm::running("t-set", BUSYBOX);
    let changed = json(&[
        "set",
        vm.name(),
        "--cpus",
        "2",
        "--label",
        "team=blue",
        "--memory-max",
        "1G",
        "--cpu-quota",
        "150%",
        "--restart",
        "on-failure",
    ]);
    assert_eq!(changed["live"], serde_json::json!(["labels", "restart", "memory_max", "cpu_quota"]));
    assert_eq!(changed["next_start"], serde_json::json!(["cpus"]));

    // Limits are the unit's, at once.
    assert_eq!(unit_property(&vm, "MemoryMax"), "1073741824");
    assert_eq!(unit_property(&vm, "CPUQuotaPerSecUSec"), "1.500000s");
    assert_eq!(vm.sh("nproc").ok(), "1\n");
    banger(&["restart", vm.name()]).ok();
    assert_eq!(vm.sh("nproc").ok(), "2\n");
    assert_eq!(unit_property(&vm, "MemoryMax"), "1073741824");

    // 0 takes a limit away; labels add up.
    banger(&["set", vm.name(), "--memory-max", "0", "--label", "tier=web", "--remove-label", "team"]).ok();
    assert_eq!(unit_property(&vm, "MemoryMax"), "infinity");
    let shown = json(&["vm", "show", vm.name()]);
    assert_eq!(shown["spec"]["labels"], serde_json::json!({"tier": "web"}));
    assert_eq!(shown["spec"]["restart"], "on-failure");
    // The next VM of this name does not inherit them.
    banger(&["rm", "-f", vm.name()]).ok();
    assert_eq!(unit_property(&vm, "CPUQuotaPerSecUSec"), "infinity");
}

#[test]
fn busctl_sets_and_shows() {
    let vm = Vm::named("t-set-busctl");
    banger(&["vm", "create", "--name", vm.name(), BUSYBOX]).ok();
    let arguments = ["sa{sv}", vm.name(), "2", "cpus", "u", "3", "labels", "a{ss}", "1", "a", "b"];
    assert_eq!(Way::Bus.call(VMD, "SetVm", &arguments).ok(), "asas 1 \"labels\" 1 \"cpus\"\n");
    let path = Way::Socket.call(VMD, "GetVm", &["s", vm.name()]).ok();
    let path = path.split('"').nth(1).expect("a path").to_owned();
    for (property, value) in [("Cpus", "v u 3\n"), ("Labels", "v a{ss} 1 \"a\" \"b\"\n")] {
        let get = ["ss", banger_api::vm::VM, property];
        let shown = Way::Socket.call_at(VMD, &path, "org.freedesktop.DBus.Properties", "Get", &get).ok();
        assert_eq!(shown, value);
    }
}

#[test]
fn what_cannot_be_is_refused_and_nothing_is_changed() {
    let vm = Vm::named("t-set-refused");
    banger(&["vm", "create", "--name", vm.name(), "--disk", "1G", BUSYBOX]).ok();
    let before = json(&["vm", "show", vm.name()])["spec"].clone();
    banger(&["set", vm.name(), "--cpus", "3", "--disk", "512M"]).refused(&["shrink"]);
    banger(&["set", vm.name(), "--cpus", "0"]).refused(&["CPUs"]);
    banger(&["set", vm.name(), "--cpus", "3", "--volume", "t-none:/data"]).refused(&["t-none"]);
    let error = banger_tests::error_name(VMD, "SetVm", &["sa{sv}", vm.name(), "1", "cpu", "u", "3"]);
    assert_eq!(error, "org.freedesktop.DBus.Error.InvalidArgs");
    assert_eq!(json(&["vm", "show", vm.name()])["spec"], before);
}

#[test]
fn nat_is_switched_under_a_running_guest() {
    let vm = Vm::running("t-set-nat", BUSYBOX);
    let fetch = "printf 'GET /hello HTTP/1.0\\r\\n\\r\\n' | nc -w 5 203.0.113.10 80 | grep 200";
    vm.sh(fetch).ok();
    banger(&["set", vm.name(), "--no-nat"]).ok();
    assert_ne!(vm.sh(fetch).status, 0);
    banger(&["set", vm.name(), "--nat"]).ok();
    vm.sh(fetch).ok();
}

#[test]
fn defaults_are_the_admins() {
    let conf = "/etc/banger/vmd.conf";
    let write = |text: &str| {
        std::fs::create_dir_all("/etc/banger").expect("makes");
        std::fs::write(conf, text).expect("writes");
    };
    let vm = Vm::named("t-defaults");
    write("[defaults]\ncpus = 3\nmemory = \"256M\"\n");
    let created = banger(&["vm", "create", "--name", vm.name(), BUSYBOX]);
    // Wrong ones are named with file and line, and nothing is guessed.
    write("[defaults]\ncpu = 3\n");
    let refused = banger(&["vm", "create", BUSYBOX]);
    std::fs::remove_file(conf).expect("removes");
    created.ok();
    refused.refused(&["/etc/banger/vmd.conf:2: unknown field `cpu`"]);
    let spec = json(&["vm", "show", vm.name()])["spec"].clone();
    assert_eq!((spec["cpus"].as_u64(), spec["memory"].as_u64()), (Some(3), Some(256 << 20)));
}

#[test]
fn a_vm_whose_time_is_up_is_stopped_or_deleted() {
    let kept = Vm::named("t-ttl-stop");
    let gone = Vm::named("t-ttl-delete");
    let ids = [
        std::thread::spawn(|| banger(&["run", "-d", "--name", "t-ttl-stop", "--ttl", "5s", BUSYBOX])),
        std::thread::spawn(|| {
            banger(&["run", "-d", "--name", "t-ttl-delete", "--ttl", "5s", "--expiry", "delete", BUSYBOX])
        }),
    ];
    for id in ids {
        id.join().expect("joins").ok();
    }
    // The timer does it, with nobody else asking.
    eventually("the VM is stopped", || kept.state() == "stopped");
    eventually("the VM is deleted", || banger(&["vm", "show", gone.name()]).status != 0);
    let log = sh("journalctl -u banger-vmd -o cat --since -5min").text();
    assert!(log.contains("its time of 5 s is up"), "{log}");
}

/// How long a guest takes to write 4 MiB.
fn writes(vm: &Vm) -> Duration {
    let begun = Instant::now();
    vm.sh("dd if=/dev/zero of=/written bs=1M count=4 conv=fsync").ok();
    begun.elapsed()
}

#[test]
fn disks_are_kept_to_their_rate() {
    let vm = Vm::running("t-set-rate", BUSYBOX);
    let limited = Duration::from_secs(3);
    let changed = json(&["set", vm.name(), "--disk-bandwidth", "1M", "--disk-iops", "500"]);
    assert_eq!(changed["live"], serde_json::json!(["disk_bandwidth", "disk_iops"]));
    assert!(writes(&vm) >= limited);
    let path = Way::Bus.call(VMD, "GetVm", &["s", vm.name()]).ok();
    let path = path.split('"').nth(1).expect("a path").to_owned();
    let property = |name: &str| {
        let get = ["ss", banger_api::vm::VM, name];
        Way::Bus.call_at(VMD, &path, "org.freedesktop.DBus.Properties", "Get", &get).ok()
    };
    assert_eq!(
        (property("DiskBandwidth"), property("DiskIops")),
        ("v t 1048576\n".into(), "v t 500\n".into())
    );
    // A VM that starts with a limit has it from the beginning; 0 takes it away.
    banger(&["restart", vm.name()]).ok();
    assert!(writes(&vm) >= limited);
    let arguments = ["sa{sv}", vm.name(), "2", "disk_bandwidth", "t", "0", "disk_iops", "t", "0"];
    assert_eq!(
        Way::Socket.call(VMD, "SetVm", &arguments).ok(),
        "asas 2 \"disk_bandwidth\" \"disk_iops\" 0\n"
    );
    assert_eq!(property("DiskBandwidth"), "v t 0\n");
    eventually("writes are fast again", || writes(&vm) < limited);
    banger(&["set", vm.name(), "--disk-iops", "9999999999999999"]).refused(&["rate", "at most"]);
}

/// How many of 200 echo requests, sent one after the other without rest, a guest has answered.
fn echoes(vm: &Vm) -> u64 {
    let shown = json(&["vm", "show", vm.name()]);
    let done =
        run("ping", &["-f", "-q", "-W", "1", "-c", "200", shown["address"].as_str().expect("an address")]);
    let text = done.text();
    let (_, rest) = text.split_once("transmitted, ").expect("a summary");
    rest.split_once(' ').and_then(|(received, _)| received.parse().ok()).expect("a number")
}

#[test]
fn networks_are_kept_to_their_rate() {
    let vm = Vm::running("t-set-net-rate", BUSYBOX);
    assert_eq!(echoes(&vm), 200);
    let changed = json(&["set", vm.name(), "--network-packets", "5", "--network-bandwidth", "100M"]);
    assert_eq!(changed["live"], serde_json::json!(["network_bandwidth", "network_packets"]));
    assert!((1..100).contains(&echoes(&vm)));
    // A VM that starts with a limit has it from the beginning; 0 takes it away.
    banger(&["restart", vm.name()]).ok();
    assert!((1..100).contains(&echoes(&vm)));
    let arguments = ["sa{sv}", vm.name(), "1", "network_packets", "t", "0"];
    assert_eq!(Way::Socket.call(VMD, "SetVm", &arguments).ok(), "asas 1 \"network_packets\" 0\n");
    assert_eq!(echoes(&vm), 200);
    assert_eq!(json(&["vm", "show", vm.name()])["spec"]["rates"]["network_bandwidth"], 100 << 20);
}

#[test]
fn a_running_guest_gives_memory_back_and_gets_it_again() {
    const MIB: u64 = 1 << 20;
    let vm = Vm::running("t-set-memory", BUSYBOX);
    let balloon = || json(&["stats", vm.name()])[0]["guest"]["memory_balloon"].as_u64().unwrap_or(0);
    let set = |memory: &str| json(&["set", vm.name(), "--memory", memory]);
    assert_eq!(set("320M")["live"], serde_json::json!(["memory"]));
    eventually("the balloon is full", || balloon() == 192 * MIB);
    let figures = json(&["stats", vm.name()])[0]["figures"].clone();
    assert!(figures["memory_total_bytes"].as_u64().is_some_and(|total| total <= 320 * MIB), "{figures}");
    assert_eq!(set("448M")["live"], serde_json::json!(["memory"]));
    eventually("the balloon is smaller", || balloon() == 64 * MIB);
    // More than it was started with it gets when it is started again, and until then all it was.
    assert_eq!(set("640M")["next_start"], serde_json::json!(["memory"]));
    eventually("the balloon is empty", || balloon() == 0);
    banger(&["restart", vm.name()]).ok();
    let kernels = vm.sh("grep MemTotal /proc/meminfo").ok();
    let kib: u64 = kernels.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("a number");
    assert!((512 * 1024..=640 * 1024).contains(&kib), "{kernels}");
}
