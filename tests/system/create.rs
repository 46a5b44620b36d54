//! The create reservation: names and addresses under competition.

use std::collections::{BTreeSet, HashMap};

use banger_api::job::JobProxy;
use banger_api::vm::ManagerProxy;
use banger_api::{ErrorKind, IMAGED, VMD};
use banger_tests::{BUSYBOX, Vm, banger, job_error, json, oci, run, sh, start};

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

/// Creates a VM as a program does; returns how long its reservation took, in microseconds.
async fn create(bus: zbus::Connection, name: String) -> Result<u64, ErrorKind> {
    let kind = |error: zbus::Error| banger_api::Error::from(error).kind();
    let vms = ManagerProxy::new(&bus).await.map_err(kind)?;
    let options = HashMap::from([("disk", (64u64 << 20).into())]);
    let (_, path) = vms.create_vm(&name, BUSYBOX, options).await.map_err(kind)?;
    let job = JobProxy::builder(&bus).destination(VMD.bus_name).path(path).build().await.map_err(kind)?;
    job.wait().await.map_err(kind)?;
    let stages: HashMap<String, u64> = job.stages().await.map_err(kind)?.into_iter().collect();
    Ok(stages["disk"] - stages["reserve"])
}

/// Names of their own for most, one and the same for the others.
#[test]
fn sixty_four_callers_at_once() {
    const CALLERS: usize = 64;
    const CONTENDERS: usize = 8;
    banger(&["pull", BUSYBOX]).ok();
    let contended = Vm::named("t-many-one");
    let vms: Vec<_> = (CONTENDERS..CALLERS).map(|index| Vm::named(&format!("t-many-{index}"))).collect();
    let names = vms.iter().chain(std::iter::repeat_n(&contended, CONTENDERS)).map(|vm| vm.name().to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcomes: Vec<(String, Result<u64, ErrorKind>)> = runtime.expect("a runtime").block_on(async {
        let mut calls = Vec::new();
        for name in names {
            // Each caller with a connection of its own.
            let bus = zbus::connection::Builder::system().build().await.expect("connects");
            calls.push((name.clone(), tokio::spawn(create(bus, name))));
        }
        let mut outcomes = Vec::new();
        for (name, call) in calls {
            outcomes.push((name, call.await.expect("joins")));
        }
        outcomes
    });
    let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|(_, outcome)| outcome.is_ok());
    let winners: BTreeSet<&str> = won.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((won.len(), winners.len()), (vms.len() + 1, vms.len() + 1), "{lost:?}");
    for (name, outcome) in &lost {
        assert_eq!((name.as_str(), outcome), (contended.name(), &Err(ErrorKind::NameTaken)));
    }
    let addresses: BTreeSet<_> = winners
        .iter()
        .map(|name| json(&["vm", "show", name])["address"].as_str().expect("an address").to_owned())
        .collect();
    assert_eq!(addresses.len(), won.len());
    let mut times: Vec<u64> = won.into_iter().filter_map(|(_, outcome)| outcome.ok()).collect();
    times.sort_unstable();
    let percentile = |percent: usize| times[(times.len() - 1) * percent / 100];
    eprintln!("reservation with {CALLERS} callers: p50 {} us, p99 {} us", percentile(50), percentile(99));
}

#[test]
fn a_vm_without_a_name_gets_one() {
    let name = banger(&["vm", "create", BUSYBOX]).ok();
    let vm = Vm(name.trim().to_owned());
    assert!(vm.name().split('-').count() == 3, "{name}");
    assert_eq!(vm.state(), "created");
}

/// What a process has had written to disks, in bytes.
fn written(service: banger_api::Service) -> u64 {
    let pid = run("systemctl", &["show", "-P", "MainPID", &format!("banger-{}.service", service.id)]).ok();
    let io = std::fs::read_to_string(format!("/proc/{}/io", pid.trim())).expect("reads");
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).expect("a counter");
    line.parse().expect("a number")
}

/// The image is shared, and the VM's own disk is sparse.
#[test]
fn a_big_image_makes_no_vm_bigger() {
    const SIZES: [usize; 2] = [1 << 20, 64 << 20];
    let mut taken = Vec::new();
    for (index, size) in SIZES.into_iter().enumerate() {
        let content: Vec<u8> = (0..size).map(|at| (at / 4096 % 251) as u8).collect();
        let image = oci::push(&format!("t-size-{index}"), &oci::tar(&[("content", &content)])).reference;
        banger(&["pull", &image]).ok();
        let vm = Vm::named("t-size");
        let before = [VMD, IMAGED].map(written);
        banger(&["vm", "create", "--name", vm.name(), &image]).ok();
        let written = [VMD, IMAGED].map(written);
        let count: u64 = written.iter().zip(before).map(|(after, before)| after - before).sum();
        let allocated = sh(&format!("du -sB1 /var/lib/banger/vmd/vms/{} | cut -f 1", vm.name())).ok();
        let allocated: u64 = allocated.trim().parse().expect("a number");
        eprintln!("a VM of an image with {size} bytes: {allocated} bytes of disk, {count} bytes written");
        taken.push(allocated);
        assert!(count < 8 << 20, "{count} bytes written for an image of {size}");
        drop(vm);
        banger(&["image", "rm", &image]).ok();
    }
    // But for a block that the filesystem of the host needs or not.
    assert!(taken[0] < 8 << 20 && taken[0].abs_diff(taken[1]) <= 64 << 10, "{taken:?}");
}
