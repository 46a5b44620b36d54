//! vmd dies at every place that has a name in its sources (`make failpoints`), comes back, and
//! nothing is orphaned, no VM lost, no name doubled.

use std::collections::BTreeSet;

use banger_api::{IMAGED, NETD};
use banger_tests::faults::{Mortal, failpoints};
use banger_tests::{BUSYBOX, Vm, banger, eventually, json, run, sh};
use serde_json::Value;

const STATE: &str = "/var/lib/banger/vmd";

/// What has become of the VM or volume that was worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is there with all that belongs to it.
    Whole,
    /// As if it had never been there.
    Gone,
}
use Fate::{Gone, Whole};

const CREATE: &[(&str, Fate)] = &[
    ("create.resolved", Gone),
    ("create.reserved", Gone),
    ("create.leased", Gone),
    ("disk.drafted", Gone),
    ("disk.published", Gone),
    ("create.disk", Gone),
    ("create.whole", Whole),
];
const DELETE: &[(&str, Fate)] = &[
    ("delete.doomed", Gone),
    ("delete.forwards", Gone),
    ("delete.network", Gone),
    ("delete.disks", Gone),
    ("delete.image", Gone),
    ("delete.row", Gone),
];
const SET: &[&str] = &["set.written", "set.limits", "forward.closed", "set.live"];
const RESET: &[&str] = &["disk.drafted", "disk.published", "reset.done"];
const CREATE_VOLUME: &[(&str, Fate)] =
    &[("disk.drafted", Gone), ("disk.published", Gone), ("volume.made", Gone), ("volume.added", Whole)];
const DELETE_VOLUME: &[&str] = &["volume.removed", "volume.deleted"];
const START: &[&str] = &[
    "start.begun",
    "start.leased",
    "start.disks",
    "start.granted",
    "start.limits",
    "start.network",
    "start.forwards",
    "start.marked",
    "start.ready",
];
const STOP: &[&str] = &[
    "stop.begun",
    "release.begun",
    "release.marked",
    "release.forwards",
    "release.network",
    "release.done",
    "stop.down",
];
const PAUSE: &[&str] = &["pause.marked", "pause.paused"];
const RESUME: &[&str] = &["resume.resumed"];
const GROW: &[&str] = &["set.grown"];
const SNAPSHOT: &[&str] = &["snapshot.begun", "snapshot.taken"];
const RESTORE: &[&str] = &["restore.linked"];
const FORK: &[(&str, Fate)] = &[("fork.reserved", Gone), ("restore.linked", Gone)];
const PROMOTE: &[&str] = &["promote.marked", "promote.started", "promote.streaming", "promote.stopped"];
const DELETE_RUNNING: &[&str] = &["delete.ended"];

/// Every place in the sources is in one of the lists above.
#[test]
fn no_failpoint_is_forgotten() {
    let found = failpoints("vmd");
    let with_fate = [CREATE, DELETE, CREATE_VOLUME, FORK].concat();
    let tried: BTreeSet<String> = [
        SET,
        RESET,
        DELETE_VOLUME,
        START,
        STOP,
        PAUSE,
        RESUME,
        GROW,
        SNAPSHOT,
        RESTORE,
        PROMOTE,
        DELETE_RUNNING,
    ]
    .concat()
    .into_iter()
    .chain(with_fate.into_iter().map(|(point, _)| point))
    .map(str::to_owned)
    .collect();
    assert_eq!(found, tried);
}

/// vmd built with failpoints, until this is dropped.
pub fn mortal() -> Mortal {
    let mortal = Mortal::new("vmd");
    banger(&["vm", "reconcile"]).ok();
    mortal
}

/// The first column of what a service's ListLeases returns.
fn holders(service: banger_api::Service) -> BTreeSet<String> {
    let call = ["--json=short", "call", service.bus_name, service.path, service.manager, "ListLeases"];
    let listed: Value = serde_json::from_str(&run("busctl", &call).ok()).expect("JSON");
    let rows = listed["data"][0].as_array().expect("rows");
    rows.iter().map(|row| row[0].as_str().expect("a holder").to_owned()).collect()
}

fn names(list: &[&str]) -> Vec<String> {
    let listed = json(list);
    let rows = listed.as_array().expect("a list").iter();
    rows.map(|row| row["name"].as_str().expect("a name").to_owned()).collect()
}

fn words(script: &str) -> BTreeSet<String> {
    sh(script).text().split_whitespace().map(str::to_owned).collect()
}

/// Whatever is there and belongs to no row.
#[track_caller]
fn orphans() -> Vec<String> {
    let listed = names(&["ps", "-a"]);
    let vms: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(listed.len(), vms.len(), "a name is there twice: {listed:?}");
    let up = words("systemctl list-units 'banger-vm@*' --plain --no-legend | cut -d @ -f 2 | cut -d . -f 1");
    let units =
        words("systemctl list-units 'banger-vm@*' --all --plain --no-legend | grep -o '@[^.]*' | tr -d @");
    let leased = holders(NETD);
    // Those of the pool are nobody's yet.
    let taps = sh("ip -o link show type tun | grep -v bg-spare- | wc -l")
        .ok()
        .trim()
        .parse::<usize>()
        .expect("a number");
    let disks = words(&format!("ls {STATE}/vms"));
    let drafts = words(&format!("find {STATE} -name '*.new' -o -name restore"));
    let volumes: BTreeSet<String> =
        names(&["volume", "ls"]).into_iter().map(|volume| format!("{volume}.img")).collect();
    let mut orphans = Vec::new();
    let mut compare = |what: &str, found: &BTreeSet<String>, owners: &BTreeSet<String>| {
        orphans.extend(found.difference(owners).map(|orphan| format!("{what} {orphan}")));
    };
    compare("image lease of", &holders(IMAGED), &vms);
    compare("a VM without image lease:", &vms, &holders(IMAGED));
    compare("network lease of", &leased, &up);
    compare("unit of", &units, &vms);
    compare("disks of", &disks, &vms);
    compare("a VM without disks:", &vms, &disks);
    compare("unfinished", &drafts, &BTreeSet::new());
    compare("volume", &words(&format!("ls {STATE}/volumes")), &volumes);
    if taps != leased.len() {
        orphans.push(format!("{taps} TAPs for {} leases", leased.len()));
    }
    orphans
}

/// What vmd finds by itself when it comes back is all that there is to find.
#[track_caller]
pub fn nothing_is_orphaned(point: &str) {
    let mut found = Vec::new();
    let gone = || {
        found = orphans();
        found.is_empty()
    };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| eventually("no orphans", gone)));
    assert!(outcome.is_ok(), "after {point}: {found:?}");
    assert_eq!(banger(&["vm", "reconcile"]).ok(), "", "after {point}");
}

#[track_caller]
fn check_fate(point: &str, list: &[&str], name: &str, fate: Fate) {
    let found = names(list).contains(&name.to_owned());
    assert_eq!(found, fate == Whole, "{name} after {point}");
}

const PS: &[&str] = &["ps", "-a"];
const VOLUMES: &[&str] = &["volume", "ls"];

fn create(vm: &Vm) -> [&str; 6] {
    ["vm", "create", "--name", vm.name(), "--disk=64M", BUSYBOX]
}

#[test]
fn creates_and_deletions_are_finished_or_taken_back() {
    let (mortal, vm) = (mortal(), Vm::named("t-fault"));
    for (point, fate) in CREATE {
        mortal.dies(point, &create(&vm)).refused(&["banger-vmd ended", "run it again"]);
        check_fate(point, PS, vm.name(), *fate);
        nothing_is_orphaned(point);
        if *fate == Gone {
            banger(&create(&vm)).ok();
        }
        banger(&["rm", vm.name()]).ok();
    }
    for (point, fate) in DELETE {
        banger(&create(&vm)).ok();
        mortal.dies(point, &["rm", vm.name()]).failed(&["banger"]);
        check_fate(point, PS, vm.name(), *fate);
        // At once: what is left of the old one is none of the new one's business.
        banger(&create(&vm)).ok();
        banger(&["rm", vm.name()]).ok();
        nothing_is_orphaned(point);
    }
}

#[test]
fn changes_are_made_or_not() {
    let (mortal, vm) = (mortal(), Vm::named("t-fault-set"));
    banger(&create(&vm)).ok();
    for (cpus, point) in (2..).zip(SET) {
        let (cpu, forward) = (cpus.to_string(), format!("{}:80,on-demand", 18000 + cpus));
        mortal.dies(point, &["set", vm.name(), "--cpus", &cpu, "-p", &forward]).failed(&["banger"]);
        assert_eq!(json(&["vm", "show", vm.name()])["spec"]["cpus"], cpus, "after {point}");
        nothing_is_orphaned(point);
    }
    for point in RESET {
        mortal.dies(point, &["reset", vm.name()]).failed(&["banger"]);
        nothing_is_orphaned(point);
        banger(&["reset", vm.name()]).ok();
    }
}

#[test]
fn volumes_are_there_or_not() {
    const VOLUME: &str = "t-fault-volume";
    let create = ["volume", "create", "--size", "64M", VOLUME];
    let (mortal, _) = (mortal(), banger(&["volume", "rm", VOLUME]));
    for (point, fate) in CREATE_VOLUME {
        mortal.dies(point, &create).failed(&["banger"]);
        check_fate(point, VOLUMES, VOLUME, *fate);
        nothing_is_orphaned(point);
        if *fate == Gone {
            banger(&create).ok();
        }
        banger(&["volume", "rm", VOLUME]).ok();
    }
    for point in DELETE_VOLUME {
        banger(&create).ok();
        mortal.dies(point, &["volume", "rm", VOLUME]).failed(&["banger"]);
        check_fate(point, VOLUMES, VOLUME, Gone);
        nothing_is_orphaned(point);
    }
}

/// Waits until systemd has done what it was told for the VM.
#[track_caller]
fn rests(vm: &Vm) -> String {
    eventually("the unit rests", || !["starting", "stopping"].contains(&vm.state().as_str()));
    vm.state()
}

/// A guest that stood still may break calls off at first.
#[track_caller]
fn answers(vm: &Vm, point: &str) {
    eventually(&format!("{} answers after {point}", vm.name()), || vm.sh("echo up").text() == "up\n");
}

#[test]
fn starts_and_stops_end_somewhere() {
    let (mortal, vm) = (mortal(), Vm::named("t-fault-start"));
    banger(&create(&vm)).ok();
    for point in START {
        mortal.dies(point, &["start", vm.name()]).failed(&["banger"]);
        let state = rests(&vm);
        // Its unit asks again when vmd is gone before it has answered.
        assert_eq!(state, if *point == "start.begun" { "created" } else { "running" }, "after {point}");
        nothing_is_orphaned(point);
        if state == "running" {
            assert_eq!(vm.sh("echo up").ok(), "up\n", "after {point}");
            banger(&["stop", "--timeout", "0", vm.name()]).ok();
        }
    }
    for point in STOP {
        banger(&["start", vm.name()]).ok();
        mortal.dies(point, &["stop", vm.name()]).failed(&["banger"]);
        let state = rests(&vm);
        assert_eq!(state, if *point == "stop.begun" { "running" } else { "stopped" }, "after {point}");
        nothing_is_orphaned(point);
        if state == "running" {
            banger(&["stop", vm.name()]).ok();
        }
    }
}

#[test]
fn vms_that_run_go_on() {
    let (mortal, vm) = (mortal(), Vm::running("t-fault-run", BUSYBOX));
    let pid = vm.pid();
    for point in PAUSE {
        mortal.dies(point, &["pause", vm.name()]).failed(&["banger"]);
        nothing_is_orphaned(point);
        banger(&["resume", vm.name()]).ok();
        answers(&vm, point);
    }
    for point in RESUME {
        banger(&["pause", vm.name()]).ok();
        mortal.dies(point, &["resume", vm.name()]).failed(&["banger"]);
        banger(&["resume", vm.name()]).ok();
        answers(&vm, point);
    }
    for point in GROW {
        mortal.dies(point, &["set", vm.name(), "--disk", "9G"]).failed(&["banger"]);
        nothing_is_orphaned(point);
        assert_eq!(json(&["vm", "show", vm.name()])["spec"]["disk"], 9u64 << 30);
    }
    for point in SNAPSHOT {
        mortal.dies(point, &["snapshot", "create", vm.name(), "cut"]).failed(&["banger"]);
        nothing_is_orphaned(point);
        assert_eq!(json(&["snapshot", "ls", vm.name()]), serde_json::json!([]), "after {point}");
        banger(&["resume", vm.name()]).ok();
        answers(&vm, point);
    }
    assert_eq!(vm.pid(), pid);
    for point in DELETE_RUNNING {
        mortal.dies(point, &["rm", "-f", vm.name()]).failed(&["banger"]);
        check_fate(point, PS, vm.name(), Whole);
        nothing_is_orphaned(point);
        banger(&["start", vm.name()]).ok();
        banger(&["rm", "-f", vm.name()]).ok();
        nothing_is_orphaned(point);
    }
}

#[test]
fn restores_and_forks_are_made_or_not() {
    let (mortal, vm, fork) = (mortal(), Vm::running("t-fault-snap", BUSYBOX), Vm::named("t-fault-fork"));
    for (point, fate) in FORK {
        mortal.dies(point, &["fork", vm.name(), fork.name()]).failed(&["banger"]);
        check_fate(point, PS, fork.name(), *fate);
        // What it was forked from goes with the fork.
        nothing_is_orphaned(point);
        assert_eq!(json(&["snapshot", "ls", vm.name()]), serde_json::json!([]), "after {point}");
        answers(&vm, point);
    }
    banger(&["snapshot", "create", vm.name(), "one"]).ok();
    banger(&["stop", "--timeout", "0", vm.name()]).ok();
    for point in RESTORE {
        mortal.dies(point, &["restore", vm.name(), "one"]).failed(&["banger"]);
        nothing_is_orphaned(point);
        banger(&["restore", vm.name(), "one"]).ok();
        answers(&vm, point);
    }
}

/// A VM that ran only to be read does not run on without anybody who reads it.
#[test]
fn promotions_are_made_or_not() {
    let (mortal, vm) = (Mortal::new("vmd"), Vm::named("t-fault-promote"));
    banger(&create(&vm)).ok();
    for point in PROMOTE {
        let image = format!("t-fault-promote:{point}");
        let _ = banger(&["image", "rm", &image]);
        mortal.dies(point, &["image", "promote", vm.name(), &image]).failed(&["banger"]);
        eventually(&format!("it is down after {point}"), || vm.state() == "created");
        nothing_is_orphaned(point);
        assert_eq!(sh("ls /run/banger/vmd/reading").ok(), "", "after {point}");
        // It was made before vmd died, or not at all.
        let made = banger(&["image", "rm", &image]).status == 0;
        assert_eq!(made, *point == "promote.stopped", "after {point}");
    }
    banger(&["start", vm.name()]).ok();
    answers(&vm, "all");
}
