//! The create reservation: names and addresses under competition.

use std::collections::BTreeSet;

use banger_api::VMD;
use banger_tests::{BUSYBOX, Vm, Way, banger, job_error, job_property, json, start};

#[test]
fn a_name_has_exactly_one_winner() {
    banger(&["pull", BUSYBOX]).ok();
    let vm = Vm::named("t-race");
    let calls: Vec<_> =
        (0..8).map(|_| start("banger", &["vm", "create", "--name", vm.name(), BUSYBOX])).collect();
    let outcomes: Vec<_> = calls.into_iter().map(|call| call.join().expect("joins")).collect();
    assert_eq!(outcomes.iter().filter(|done| done.status == 0).count(), 1, "{outcomes:#?}");
    for loser in outcomes.into_iter().filter(|done| done.status != 0) {
        loser.refused(&["t-race", "already"]);
    }
    // The name of the error, as a program sees it.
    let name = job_error(VMD, "CreateVm", &["ssa{sv}", vm.name(), BUSYBOX, "0"]);
    assert_eq!(name, "org.banger.Error.NameTaken");
}

#[test]
fn twenty_creates_at_once_get_twenty_addresses() {
    banger(&["pull", BUSYBOX]).ok();
    let vms: Vec<_> = (0..20).map(|index| Vm::named(&format!("t-many-{index}"))).collect();
    let calls: Vec<_> =
        vms.iter().map(|vm| start("banger", &["vm", "create", "--name", vm.name(), BUSYBOX])).collect();
    for call in calls {
        call.join().expect("joins").ok();
    }
    let addresses: BTreeSet<_> = vms
        .iter()
        .map(|vm| json(&["vm", "show", vm.name()])["address"].as_str().expect("an address").to_owned())
        .collect();
    assert_eq!(addresses.len(), 20);
}

#[test]
fn a_vm_without_a_name_gets_one() {
    let name = banger(&["vm", "create", BUSYBOX]).ok();
    let vm = Vm(name.trim().to_owned());
    assert!(vm.name().split('-').count() == 3, "{name}");
    assert_eq!(vm.state(), "created");
}

#[test]
fn a_canceled_create_leaves_nothing() {
    let vm = Vm::named("t-cancel");
    let started = Way::Bus.call(VMD, "CreateVm", &["ssa{sv}", vm.name(), BUSYBOX, "1", "start", "b", "true"]);
    let job = started.ok();
    let job = job.split('"').nth(1).expect("a job");
    banger_tests::eventually("the VM starts", || {
        Way::Bus.call(VMD, "ListVms", &[]).ok().contains("\"t-cancel\" \"starting\"")
    });
    Way::Bus.call_at(VMD, job, banger_api::job::INTERFACE, "Cancel", &[]).ok();
    assert_ne!(Way::Bus.call_at(VMD, job, banger_api::job::INTERFACE, "Wait", &[]).status, 0);
    assert_eq!(job_property(VMD, job, "State"), "v s \"canceled\"\n");
    banger(&["vm", "show", vm.name()]).refused(&["t-cancel"]);
    assert!(!std::path::Path::new("/var/lib/banger/vmd/vms/t-cancel").exists());
    assert!(!Way::Bus.call(banger_api::NETD, "ListLeases", &[]).ok().contains("t-cancel"));
}
