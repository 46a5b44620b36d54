//! Figures of VMs, signs of life, and where the time of a start went.

use banger_api::{NETD, VMD};
use banger_tests::{BUSYBOX, Vm, Way, banger, error_name, eventually, json, run, run_with, sh};
use serde_json::Value;

/// The figures of one VM as the CLI shows them.
fn stats(vm: &Vm) -> Value {
    json(&["stats", vm.name()])[0].clone()
}

#[test]
fn stats_are_those_of_host_and_guest() {
    let vm = Vm::running("t-stats", BUSYBOX);
    let before = stats(&vm);
    assert_eq!((before["name"].as_str(), before["reachable"].as_bool()), (Some("t-stats"), Some(true)));
    // What the guest writes and computes is counted, on both sides.
    vm.sh(
        "dd if=/dev/zero of=/big bs=1M count=8 conv=fsync; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done",
    )
    .ok();
    let after = stats(&vm);
    let grown = |path: &str| {
        let of = |stats: &Value| stats.pointer(path).and_then(Value::as_u64).expect("a number");
        of(&after) - of(&before)
    };
    assert!(grown("/cpu_usec") > 0 && grown("/guest/cpu_user_usec") > 0, "{before} {after}");
    assert!(grown("/disk_used_bytes") >= 8 << 20, "{before} {after}");
    let written = |stats: &Value| -> u64 {
        let disks = stats["guest"]["disks"].as_array().expect("disks");
        disks.iter().filter_map(|disk| disk["written_bytes"].as_u64()).sum()
    };
    assert!(written(&after) - written(&before) >= 8 << 20, "{before} {after}");
    assert!(after["figures"]["cpu_percent"].as_f64().is_some_and(|percent| percent >= 0.0), "{after}");
    let kernels = vm.sh("grep MemTotal /proc/meminfo").ok();
    let kib: u64 = kernels.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("a number");
    assert_eq!(after["guest"]["memory_total"].as_u64(), Some(kib * 1024));

    // Packets are counted by the host, and their direction is the guest's: nobody answers these.
    vm.sh("ping -c 20 -i 0.1 -s 1400 -W 1 224.0.0.1 >/dev/null; true").ok();
    let network = stats(&vm);
    let grown = |of: &str| network[of].as_u64().expect("a number") - after[of].as_u64().expect("a number");
    assert!(grown("net_sent_bytes") >= 20 * 1400 && grown("net_sent_packets") >= 20, "{network}");
    assert!(grown("net_received_bytes") < 20 * 1400, "{network}");
    let counters = Way::Bus.call(NETD, "GetCounters", &["s", vm.name()]).ok();
    assert!(
        counters.contains("\"received_bytes\" t ") && counters.contains("\"sent_dropped\" t "),
        "{counters}"
    );
    assert_eq!(error_name(NETD, "GetCounters", &["s", "t-none"]), "org.banger.Error.NoSuchLease");

    // A table, once in a pipe; without names, of all that run.
    let table = banger(&["stats"]).ok();
    let line = table.lines().find(|line| line.starts_with("t-stats ")).expect("a line");
    assert!(line.contains('%') && table.starts_with("NAME"), "{table}");
    // The same with busctl, from the manager and from the VM itself.
    let shown = Way::Socket.call(VMD, "GetVmStats", &["s", vm.name()]).ok();
    let path = Way::Bus.call(VMD, "GetVm", &["s", vm.name()]).ok();
    let path = path.split('"').nth(1).expect("a path");
    let own = Way::Bus.call_at(VMD, path, banger_api::vm::VM, "GetStats", &[]).ok();
    for text in [shown, own] {
        assert!(text.contains("\"reachable\" b true") && text.contains("\"cpu_usec\" t "), "{text}");
        assert!(text.contains("\"guest\" a{sv} ") && text.contains("\"load\" (ddd) "), "{text}");
    }
}

#[test]
fn a_paused_vm_has_figures_of_the_host_alone() {
    let vm = Vm::running("t-stats-paused", BUSYBOX);
    banger(&["pause", vm.name()]).ok();
    let shown = stats(&vm);
    assert_eq!((shown["reachable"].as_bool(), &shown["guest"]), (Some(false), &Value::Null));
    assert!(shown["cpu_usec"].as_u64().is_some(), "{shown}");
    assert!(shown["figures"]["net_receive_rate"].as_f64().is_some(), "{shown}");
    banger(&["ping", vm.name()]).refused(&["paused", "resume"]);
    assert_eq!(error_name(VMD, "PingVm", &["s", vm.name()]), "org.banger.Error.VmPaused");
    banger(&["resume", vm.name()]).ok();
    banger(&["ping", vm.name()]).ok();

    banger(&["stop", vm.name()]).ok();
    for method in ["GetVmStats", "PingVm", "ListPorts"] {
        assert_eq!(error_name(VMD, method, &["s", vm.name()]), "org.banger.Error.VmNotRunning");
        assert_eq!(error_name(VMD, method, &["s", "t-none"]), "org.banger.Error.NoSuchVm");
    }
    banger(&["stats", vm.name()]).refused(&["starts it"]);
    assert!(!banger(&["stats"]).ok().contains(vm.name()));
}

#[test]
fn guests_answer_and_tell_their_ports() {
    let vm = Vm::running("t-ports", BUSYBOX);
    assert!(banger(&["ping", vm.name()]).ok().starts_with("t-ports answers in "));
    assert!(json(&["ping", vm.name()])["usec"].as_u64().is_some_and(|usec| usec > 0));
    let usec = Way::Bus.call(VMD, "PingVm", &["s", vm.name()]).ok();
    assert!(usec.starts_with("t "), "{usec}");

    vm.sh("nc -l -p 4321 -e cat >/dev/null 2>&1 </dev/null & echo").ok();
    eventually("the port is there", || {
        let ports = json(&["ports", vm.name()]);
        ports.as_array().is_some_and(|ports| {
            ports.iter().any(|port| {
                port["port"] == 4321
                    && port["protocol"].as_str().is_some_and(|protocol| protocol.starts_with("tcp"))
                    && port["process"] == "nc"
            })
        })
    });
    let shown = Way::Socket.call(VMD, "ListPorts", &["s", vm.name()]).ok();
    assert!(shown.starts_with("a(ssqsu) ") && shown.contains(" 4321 \"nc\" "), "{shown}");
}

#[test]
fn top_draws_and_leaves_the_terminal_as_it_was() {
    let vm = Vm::running("t-top", BUSYBOX);
    // script(1) gives it a terminal, of which stty tells whether it is itself again.
    let line = "script -qec 'stty rows 10 cols 100; stty -g; banger top --interval 1; echo \"left $?\"; stty -g' \
                /dev/null";
    let script = format!("(sleep 4; printf q; sleep 1) | {line}");
    let done = run_with("sh", &["-c", &script], b"");
    let text = done.text();
    let screen = text.split("\u{1b}[?1049h").nth(1).and_then(|rest| rest.split("\u{1b}[?1049l").next());
    let screen = screen.unwrap_or_else(|| panic!("no screen of its own: {done}"));
    assert!(screen.contains(vm.name()) && screen.contains("CPU") && screen.contains('▁'), "{done}");
    assert!(text.contains("\u{1b}[?25h") && text.contains("left 0"), "{done}");
    let modes: Vec<&str> = text.lines().filter(|line| line.matches(':').count() > 20).collect();
    assert_eq!(modes.len(), 2, "{done}");
    assert_eq!(modes[0], modes[1]);
    banger(&["top"]).refused(&["terminal"]);
}

/// The stages of the VM's last start, in their order, from busctl.
fn stages(vm: &Vm) -> Vec<String> {
    let shown = Way::Bus.call(VMD, "GetTimeline", &["s", vm.name()]).ok();
    assert!(shown.starts_with("a(st) "), "{shown}");
    shown.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn a_start_is_told_stage_by_stage() {
    // Without an init of the image.
    let of_a_guest = ["vmm", "kernel", "agent", "disks", "address", "ready"];
    let vm = Vm::named("t-timeline");
    banger(&["vm", "create", "--name", vm.name(), BUSYBOX]).ok();
    assert_eq!(stages(&vm), Vec::<String>::new());
    banger(&["analyze", "time", vm.name()]).refused(&["not started"]);

    banger(&["start", vm.name()]).ok();
    let host = ["request", "unit", "prepare", "network", "helpers"];
    let all: Vec<&str> = host.into_iter().chain(of_a_guest).collect();
    assert_eq!(stages(&vm), all);
    let blame = json(&["analyze", "blame", vm.name()]);
    let times: Vec<u64> = blame
        .as_array()
        .expect("stages")
        .iter()
        .map(|stage| stage["usec"].as_u64().expect("a time"))
        .collect();
    assert!(times.len() == all.len() - 1 && times.is_sorted_by(|a, b| a >= b), "{blame}");
    let parts = json(&["analyze", "time", vm.name()]);
    assert_eq!(parts["total_usec"].as_u64(), Some(times.iter().sum()), "{parts}");
    assert!(parts["kernel_usec"].as_u64().is_some_and(|usec| usec > 0), "{parts}");
    let line = banger(&["analyze", "time", vm.name()]).ok();
    assert!(
        line.contains("(host) + ") && line.contains("(kernel) + ") && line.contains("(agent) = "),
        "{line}"
    );
    let picture = banger(&["analyze", "plot", vm.name()]).ok();
    assert!(picture.starts_with("<svg ") && picture.contains(">kernel (") && picture.contains("t-timeline"));

    // After the end and a restart of vmd it is still there.
    banger(&["stop", vm.name()]).ok();
    run("systemctl", &["restart", "banger-vmd"]).ok();
    assert_eq!(json(&["analyze", "blame", vm.name()]), blame);

    // Of a start that vmd was not asked for, all but that is told.
    run("systemctl", &["start", &vm.unit()]).ok();
    assert_eq!(stages(&vm), all[1..]);
}

#[test]
fn an_idle_vm_is_stopped_and_a_busy_one_is_not() {
    let idle = Vm::running("t-idle", BUSYBOX);
    let busy = Vm::running("t-busy", BUSYBOX);
    // Commands keep a VM, even such as take no time.
    std::fs::write("/run/t-idle", "").expect("writes");
    let keep = banger_tests::start(
        "sh",
        &["-c", "while banger exec t-busy -- true && [ -e /run/t-idle ]; do sleep 1; done"],
    );
    let conf = "/etc/banger/vmd.conf";
    std::fs::create_dir_all("/etc/banger").expect("makes");
    // Without hardware virtualisation, also an idle guest takes its share.
    std::fs::write(conf, "[reap]\nidle = \"20s\"\nidle_cpu = 1000\n").expect("writes");
    run("systemctl", &["restart", "banger-vmd"]).ok();
    let stopped = std::panic::catch_unwind(|| {
        // The timer does it, with nobody else asking.
        banger_tests::eventually_within(std::time::Duration::from_secs(180), "the VM is stopped", || {
            idle.state() == "stopped"
        });
    });
    let states = (idle.state(), busy.state());
    std::fs::remove_file(conf).expect("removes");
    let _ = std::fs::remove_file("/run/t-idle");
    run("systemctl", &["restart", "banger-vmd"]).ok();
    keep.join().expect("joins");
    assert!(stopped.is_ok(), "{states:?}");
    assert_eq!(states.1, "running");
    assert_eq!(json(&["vm", "show", idle.name()])["ended"]["reason"], "stopped, as it was idle");
    let log =
        |vm: &Vm| sh(&format!("journalctl -o cat --since -5min BANGER_VM={} | grep 'idle for'", vm.name()));
    assert!(log(&idle).ok().contains("stopping it"));
    assert_ne!(log(&busy).status, 0);
}
