//! Pausing, snapshots, and VMs that go on from them.

use banger_api::{SESSIOND, VMD};
use banger_tests::{BUSYBOX, Vm, Way, banger, error_name, eventually, job_error, json, sh, start};

#[test]
fn a_paused_vm_stands_still() {
    let vm = Vm::running("t-pause", BUSYBOX);
    vm.sh("(while :; do echo x >>/run/ticks; sleep 0.1; done) >/dev/null 2>&1 &").ok();
    banger(&["pause", vm.name()]).ok();
    assert_eq!(vm.state(), "paused");
    Way::Socket.call(VMD, "PauseVm", &["s", vm.name()]).ok();
    assert!(banger(&["ps"]).text().contains("paused"));
    // That it is paused outlives vmd.
    banger_tests::run("systemctl", &["restart", "banger-vmd"]).ok();
    assert_eq!(vm.state(), "paused");
    Way::Bus.call(VMD, "ResumeVm", &["s", vm.name()]).ok();
    assert_eq!(vm.state(), "running");
    vm.sh("test -s /run/ticks").ok();
    // One that stands still can be stopped in order.
    banger(&["pause", vm.name()]).ok();
    banger(&["stop", vm.name()]).ok();
    assert_eq!(vm.state(), "stopped");
    banger(&["pause", vm.name()]).refused(&["only a running VM"]);
}

/// The id of the VM's running session, once there is one.
#[track_caller]
fn running_session(vm: &Vm) -> String {
    let mut id = None;
    eventually("the session runs", || {
        let listed = json(&["session", "ls"]);
        let mut sessions = listed.as_array().expect("a list").iter();
        let session = sessions.find(|session| session["vm"] == vm.name() && session["state"] == "running");
        id = session.and_then(|session| session["id"].as_str()).map(str::to_owned);
        id.is_some()
    });
    id.expect("an id")
}

#[test]
fn calls_into_a_guest_that_stood_still() {
    let vm = Vm::running("t-still", BUSYBOX);
    assert_eq!(vm.sh("echo before").ok(), "before\n");
    // One that is under way goes on.
    let lasting = start("banger", &["exec", vm.name(), "--", "sh", "-c", "sleep 3; echo over; exit 7"]);
    running_session(&vm);
    banger(&["pause", vm.name()]).ok();
    vm.sh("true").refused(&["is paused", "banger resume t-still"]);
    let exec = ["sasa{ss}a{sv}", vm.name(), "1", "true", "0", "0"];
    assert_eq!(error_name(SESSIOND, "Exec", &exec), "org.banger.Error.VmPaused");
    banger(&["resume", vm.name()]).ok();
    assert_eq!(vm.sh("echo resumed").ok(), "resumed\n");
    let lasted = lasting.join().expect("joins");
    assert_eq!((lasted.text().as_str(), lasted.status), ("over\n", 7), "{lasted}");

    // A snapshot breaks connections off, and the next call does not notice.
    for snapshot in ["one", "two"] {
        banger(&["snapshot", "create", vm.name(), snapshot]).ok();
        assert_eq!(vm.sh("echo again >>/run/again; wc -l </run/again").status, 0);
    }
    assert_eq!(vm.sh("cat /run/again").ok(), "again\nagain\n");

    // Who stops the unit asks nobody: a snapshot that is being written is none then, and the guest goes down in order.
    let snapshot = start("banger", &["snapshot", "create", vm.name(), "three"]);
    eventually("it is being written", || vm.state() == "paused");
    banger_tests::run("systemctl", &["stop", &format!("banger-vm@{}", vm.name())]).ok();
    snapshot.join().expect("joins").refused(&["was stopped"]);
    assert_eq!(json(&["vm", "show", vm.name()])["ended"]["reason"], "stopped on request");
    assert_eq!(json(&["snapshot", "ls", vm.name()]).as_array().map(Vec::len), Some(2));
}

/// Nothing but its agent brings this guest down: its image has nobody who hears the power button.
#[test]
fn a_guest_that_cannot_be_reached_is_asked_again() {
    let vm = Vm::running("t-stop-again", BUSYBOX);
    let run = sh(&format!("systemctl show -P InvocationID {}", vm.unit())).ok();
    let socket = format!("/run/banger/vm/{}/vsock.sock", vm.name());
    sh(&format!("mv {socket} {socket}.away")).ok();
    let stop = start("banger", &["stop", vm.name()]);
    let asked =
        format!("journalctl _SYSTEMD_INVOCATION_ID={} --output cat | grep -q 'asking again'", run.trim());
    eventually("it is asked in vain", || sh(&asked).status == 0);
    sh(&format!("mv {socket}.away {socket}")).ok();
    stop.join().expect("joins").ok();
    assert_eq!(json(&["vm", "show", vm.name()])["ended"]["reason"], "stopped on request");
}

#[test]
fn a_call_under_way_when_the_vm_is_paused_ends() {
    let vm = Vm::running("t-still-call", BUSYBOX);
    // There is a connection, that will not answer, before another is made.
    vm.sh("true").ok();
    // The process that is the vsock device takes no call meanwhile.
    let signal =
        |signal: &str| sh(&format!("kill -{signal} $(pgrep -u bvm-{} vhost-device)", vm.name())).ok();
    signal("STOP");
    let call = start("banger", &["exec", vm.name(), "--", "true"]);
    let waiting = format!("ss -xlH | grep '{}/vsock.sock ' | tr -s ' ' | cut -d ' ' -f 3", vm.name());
    eventually("the call is made", || sh(&waiting).ok().trim() != "0");
    let pause = start("banger", &["pause", vm.name()]);
    call.join().expect("joins").refused(&["is paused", "may still be done"]);
    signal("CONT");
    pause.join().expect("joins").ok();
}

/// What waits for a session is told how it ended, though the connection it waits on broke.
#[test]
fn sessions_outlive_a_snapshot() {
    let vm = Vm::running("t-still-wait", BUSYBOX);
    let follower = start(
        "banger",
        &[
            "exec",
            vm.name(),
            "--",
            "sh",
            "-c",
            "cat; >/run/begun; while [ ! -e /run/enough ]; do sleep 0.2; done; exit 9",
        ],
    );
    // The end of its input reaches the guest once the caller has its streams.
    eventually("the command follows its caller", || vm.sh("test -e /run/begun").status == 0);
    let id = running_session(&vm);
    let waiting = {
        let vm = vm.name().to_owned();
        std::thread::spawn(move || Way::Bus.call(SESSIOND, "WaitSession", &["ss", &vm, &id]))
    };
    banger(&["snapshot", "create", vm.name(), "one"]).ok();
    vm.sh("touch /run/enough").ok();
    assert_eq!(waiting.join().expect("joins").ok(), "ii 9 0\n");
    assert_eq!(follower.join().expect("joins").status, 9);
}

#[test]
fn a_restored_vm_is_what_it_was() {
    let vm = Vm::running("t-restore", BUSYBOX);
    vm.sh("echo memory >/run/then; echo disk >/root/then; sleep 1000 >/dev/null 2>&1 &").ok();
    // Of two sessions one ends after the snapshot and one begins after it.
    banger(&["session", "start", "--name", "old", vm.name(), "--", "cat"]).ok();
    banger(&["session", "send", vm.name(), "old", "before"]).ok();
    let logs = |session: &str| banger(&["session", "logs", vm.name(), session]).text();
    let state = |session: &str| json(&["session", "show", vm.name(), session])["state"].clone();
    eventually("it has put that out", || logs("old") == "before\n");
    // Another says all the time in which of its futures it is.
    vm.sh("echo first >/run/future").ok();
    let count = "i=0; while read future </run/future; do i=$((i+1)); echo $i $future; sleep 0.1; done";
    banger(&["session", "start", "--name", "count", vm.name(), "--", "sh", "-c", count]).ok();
    let counted = || logs("count").lines().map(str::to_owned).collect::<Vec<_>>();
    eventually("it counts", || counted().len() > 5);
    let taken = json(&["snapshot", "create", vm.name(), "first"]);
    assert_eq!(taken["snapshot"], "first");
    banger(&["snapshot", "create", vm.name(), "first"]).refused(&["first already"]);
    vm.sh("echo lost >/run/lost; mv /run/lost /run/future; echo later >/run/later; rm /root/then; sync").ok();
    banger(&["session", "send", vm.name(), "old", "after"]).ok();
    eventually("it has put that out, too", || logs("old") == "before\nafter\n");
    banger(&["session", "stop", vm.name(), "old"]).ok();
    banger(&["session", "start", "--name", "new", vm.name(), "--", "cat"]).ok();
    banger(&["restore", vm.name(), "first"]).refused(&["stop it"]);
    let stop = ["ssa{sv}", vm.name(), "count", "1", "signal", "i", "100"];
    Way::Bus.call(SESSIOND, "StopSession", &stop).failed(&["no signal 100"]);
    assert_eq!(state("count"), "running");
    banger(&["stop", vm.name()]).ok();
    eventually("it is lost", || state("new") == "lost");
    let before = counted().len();
    assert_eq!(state("old"), "exited");
    banger(&["restore", vm.name(), "none"]).refused(&["no snapshot none"]);

    let restored = Way::Bus.call(VMD, "RestoreVm", &["ss", vm.name(), "first"]);
    Way::Bus.wait(VMD, restored).ok();
    assert_eq!(
        vm.sh("cat /run/then /root/then; pidof sleep >/dev/null && echo sleeps").ok(),
        "memory\ndisk\nsleeps\n"
    );
    assert_ne!(vm.sh("cat /run/later").status, 0);
    // What ran in it runs again, and has said no more than it had by then.
    assert_eq!((state("old"), state("new")), ("running".into(), "lost".into()));
    assert_eq!(logs("old"), "before\n");
    eventually("it counts on", || counted().len() > before);
    for (index, line) in counted().iter().enumerate() {
        assert_eq!(*line, format!("{} first", index + 1));
    }
    banger(&["session", "send", vm.name(), "old", "again"]).ok();
    eventually("its log goes on", || logs("old") == "before\nagain\n");
    let attached = start("sh", &["-c", &format!("echo typed | banger session attach {} old", vm.name())]);
    eventually("somebody attaches and types", || logs("old") == "before\nagain\ntyped\n");
    banger_tests::run_with(
        "banger",
        &["session", "send", "--file", "-", "--eof", vm.name(), "old"],
        b"end\n",
    )
    .ok();
    assert_eq!(attached.join().expect("joins").text(), "before\nagain\ntyped\nend\n");
    // It wakes up in the present.
    let guest: i64 = vm.sh("date +%s").ok().trim().parse().expect("a number");
    let host: i64 = banger_tests::sh("date +%s").ok().trim().parse().expect("a number");
    assert!((host - guest).abs() <= 5, "guest {guest}, host {host}");

    assert!(Way::Socket.call(VMD, "ListSnapshots", &["s", vm.name()]).ok().contains("\"first\""));
    // Another machine than it was made on is refused, and nothing happens to the VM.
    banger(&["stop", vm.name()]).ok();
    banger(&["set", vm.name(), "--cpus", "2"]).ok();
    banger(&["restore", vm.name(), "first"]).refused(&["number of CPUs of 1, this is 2"]);
    assert_eq!(vm.state(), "stopped");
    banger(&["snapshot", "rm", vm.name(), "first"]).ok();
    assert_eq!(json(&["snapshot", "ls", vm.name()]), serde_json::json!([]));
}

#[test]
fn a_fork_is_the_same_with_an_identity_of_its_own() {
    let one = Vm::running("t-fork-one", BUSYBOX);
    let (two, three) = (Vm::named("t-fork-two"), Vm::named("t-fork-three"));
    one.sh("echo before >/run/then").ok();
    banger(&["fork", one.name(), two.name(), one.name()]).refused(&["t-fork-one already"]);
    banger(&["fork", one.name(), two.name(), three.name()]).ok();
    let identity = "cat /run/then; hostname; cat /etc/machine-id /sys/class/net/eth0/address; ip -4 -o addr show eth0 | tr -s ' ' | cut -d' ' -f4";
    let mut seen = Vec::new();
    for vm in [&one, &two, &three] {
        let shown = vm.sh(identity).ok();
        let lines: Vec<String> = shown.lines().map(str::to_owned).collect();
        assert_eq!((lines[0].as_str(), lines[1].as_str()), ("before", vm.name()), "{shown}");
        let address = json(&["vm", "show", vm.name()])["address"].as_str().expect("an address").to_owned();
        assert!(lines[4].starts_with(&format!("{address}/")), "{shown}");
        for other in &seen {
            assert!(lines[2..].iter().zip(other).all(|(mine, theirs)| mine != theirs), "{shown}");
        }
        seen.push(lines[2..].to_vec());
        // Its network is its own.
        vm.sh("printf 'GET /hello HTTP/1.0\\r\\n\\r\\n' | nc -w 10 203.0.113.10 80 | grep -q 200").ok();
    }
    // They have nothing in common any longer.
    two.sh("echo changed >/run/then; echo x >/root/x; sync").ok();
    assert_eq!(three.sh("cat /run/then; ls /root").ok(), "before\n");
    banger(&["restart", two.name()]).ok();
    assert_eq!(two.sh("hostname; cat /root/x").ok(), "t-fork-two\nx\n");
}

#[test]
fn a_volume_goes_on_beside_snapshots_and_is_of_who_runs_with_it() {
    let vm = Vm::named("t-snap-volume");
    let _ = banger(&["volume", "rm", "t-snap-data"]);
    banger(&["volume", "create", "--size", "64M", "t-snap-data"]).ok();
    banger(&["run", "-d", "--name", vm.name(), "--volume", "t-snap-data:/data", BUSYBOX]).ok();
    let refused = job_error(VMD, "CreateSnapshot", &["ss", vm.name(), "first"]);
    assert_eq!(refused, "org.freedesktop.DBus.Error.NotSupported");
    banger(&["snapshot", "create", vm.name()]).refused(&["t-snap-data"]);
    assert_eq!(json(&["snapshot", "ls", vm.name()]), serde_json::json!([]));
    assert_eq!(vm.state(), "running");

    // It is taken away with the next start, and another's no sooner.
    banger(&["set", vm.name(), "--no-volumes"]).ok();
    let other = Vm::named("t-snap-other");
    banger(&["create", "--name", other.name(), "--volume", "t-snap-data:/data", BUSYBOX]).ok();
    assert_eq!(job_error(VMD, "StartVm", &["s", other.name()]), "org.banger.Error.VolumeInUse");
    banger(&["rm", other.name()]).ok();
    banger(&["volume", "rm", "t-snap-data"]).refused(&["stop it first"]);
    banger(&["rm", "-f", vm.name()]).ok();
    banger(&["volume", "rm", "t-snap-data"]).ok();
}

#[test]
fn a_fork_is_made_of_what_its_source_was_started_with() {
    let (vm, fork) = (Vm::running("t-fork-set", BUSYBOX), Vm::named("t-fork-set-fork"));
    let changed = json(&["set", vm.name(), "--cpus", "2", "--memory", "384M", "--label", "a=b"]);
    assert_eq!(changed["next_start"], serde_json::json!(["cpus"]));
    banger(&["fork", vm.name(), fork.name()]).ok();
    let spec = json(&["vm", "show", fork.name()])["spec"].clone();
    assert_eq!((spec["cpus"].as_u64(), spec["memory"].as_u64()), (Some(1), Some(512 << 20)));
    assert_eq!(spec["labels"]["a"], "b");
    // It has all the memory that it says, whatever the source's balloon held.
    let balloon = || json(&["stats", fork.name()])[0]["guest"]["memory_balloon"].as_u64();
    banger_tests::eventually("the balloon is empty", || balloon() == Some(0));
}
