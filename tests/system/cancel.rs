//! A create is canceled in each of its stages, and nothing of it is left.

use std::future::poll_fn;
use std::io::Read;
use std::net::TcpListener;
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::time::Duration;

use banger_api::job::{INTERFACE, JobProxy};
use banger_api::vm::ManagerProxy;
use banger_api::{Error, ErrorKind, IMAGED, VMD};
use banger_tests::{BUSYBOX, Vm, Way, banger, eventually, job_property};
use zbus::export::futures_core::Stream;
use zbus::{MatchRule, MessageStream, OwnedObjectPath, Variant};

use crate::faults::{mortal, nothing_is_orphaned};

/// The stages of a create whose image is there, and a place in vmd's sources where it is held up
/// in them. From the kernel on, the guest takes its time.
const STAGES: &[(&str, Option<&str>)] = &[
    ("resolve", Some("create.resolved")),
    ("reserve", Some("create.reserved")),
    ("disk", Some("create.leased")),
    ("disk", Some("disk.drafted")),
    ("disk", Some("disk.published")),
    ("disk", Some("create.whole")),
    ("start", Some("start.begun")),
    ("start", Some("start.disks")),
    ("start", Some("start.limits")),
    ("network", Some("start.network")),
    ("network", Some("start.marked")),
    ("kernel", None),
    ("agent", None),
    ("disks", None),
    ("address", None),
];

/// All stages, one after the other.
const ORDER: [&str; 10] =
    ["resolve", "pull", "reserve", "disk", "start", "network", "kernel", "agent", "disks", "address"];

/// Long enough for a cancel to come meanwhile.
const HELD_UP: u64 = 1500;

async fn next<S: Stream + Unpin>(stream: &mut S) -> S::Item {
    poll_fn(|context| Pin::new(&mut *stream).poll_next(context)).await.expect("the bus stays")
}

/// The stage that a signal of this job tells.
fn told(message: zbus::Result<zbus::Message>, job: &OwnedObjectPath) -> Option<String> {
    let message = message.ok()?;
    let header = message.header();
    if header.path()?.as_str() != job.as_str() {
        return None;
    }
    let body = message.body();
    let (_, changed, _): (&str, std::collections::HashMap<&str, Variant<'_>>, Vec<&str>) =
        body.deserialize().ok()?;
    changed.get("Stage").and_then(|stage| <&str>::try_from(stage).ok()).map(str::to_owned)
}

/// Creates and starts a VM, as a program does that cancels it when it hears that it is in the
/// stage. Returns what became of the job, and its path.
async fn cancel_in(stage: &str, name: &str, image: &str) -> (Result<String, ErrorKind>, OwnedObjectPath) {
    let bus = zbus::connection::Builder::system().build().await.expect("connects");
    let rule = MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .interface("org.freedesktop.DBus.Properties")
        .member("PropertiesChanged")
        .arg(0, INTERFACE)
        .build()
        .expect("a rule");
    let mut signals = MessageStream::for_match_rule(rule, &bus, None).await.expect("listens");
    let vms = ManagerProxy::new(&bus).await.expect("a proxy");
    let options = [("start", true.into()), ("disk", (64u64 << 20).into()), ("memory", (96u64 << 20).into())];
    let (_, path) = vms.create_vm(name, image, options.into()).await.expect("begins");
    let job = JobProxy::builder(&bus).destination(VMD.bus_name).path(path.clone()).build();
    let job = job.await.expect("a proxy");
    // On a busy host one stage may be over before anybody hears of it.
    let order = |stage: &str| ORDER.iter().position(|known| *known == stage);
    while told(next(&mut signals).await, &path).as_deref().and_then(order) < order(stage) {}
    job.cancel().await.unwrap_or_else(|error| panic!("cancel in {stage}: {error}"));
    (job.wait().await.map_err(|error| Error::from(error).kind()), path)
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let limited = async { tokio::time::timeout(Duration::from_secs(120), work).await };
    runtime.block_on(limited).expect("in time")
}

#[track_caller]
fn nothing_is_left(stage: &str, vm: &Vm) {
    banger(&["vm", "show", vm.name()]).refused(&["no VM", vm.name()]);
    nothing_is_orphaned(&format!("a cancel in {stage}"));
}

#[test]
fn in_every_stage() {
    banger(&["pull", BUSYBOX]).ok();
    let (mortal, vm) = (mortal(), Vm::named("t-cancel"));
    for (stage, place) in STAGES {
        if let Some(place) = place {
            mortal.delays(place, HELD_UP);
        }
        let (outcome, job) = block_on(cancel_in(stage, vm.name(), BUSYBOX));
        mortal.delays_nobody();
        assert_eq!(outcome, Err(ErrorKind::JobCanceled), "in {stage}, {place:?}");
        assert_eq!(job_property(VMD, &job, "State"), "v s \"canceled\"\n");
        nothing_is_left(stage, &vm);
    }
    // Nothing of it keeps the name from being used.
    banger(&["run", "-d", "--name", vm.name(), BUSYBOX]).ok();
    assert_eq!(vm.sh("echo up").ok(), "up\n");
}

#[test]
fn while_the_image_is_pulled() {
    let vm = Vm::named("t-cancel-pull");
    let silent = TcpListener::bind("127.0.0.1:0").expect("listens");
    let image = format!("localhost:{}/silent:latest", silent.local_addr().expect("bound").port());
    let (outcome, _) = block_on(cancel_in("pull", vm.name(), &image));
    assert_eq!(outcome, Err(ErrorKind::JobCanceled));
    nothing_is_left("pull", &vm);
    // The pull is over, too: its connection ends, if it came as far as that.
    silent.set_nonblocking(true).expect("sets");
    if let Ok((mut connection, _)) = silent.accept() {
        connection.set_read_timeout(Some(Duration::from_secs(60))).expect("sets");
        connection.read_to_end(&mut Vec::new()).expect("ends");
    }
    assert!(!Way::Bus.call(IMAGED, "ListImages", &[]).ok().contains("/silent"));
}

#[test]
fn when_it_is_ready_it_is_too_late() {
    let vm = Vm::named("t-cancel-late");
    let options = ["ssa{sv}", vm.name(), BUSYBOX, "1", "start", "b", "true"];
    let created = Way::Bus.call(VMD, "CreateVm", &options).ok();
    let job = created.split('"').nth(1).expect("a job");
    Way::Bus.call_at(VMD, job, INTERFACE, "Wait", &[]).ok();
    Way::Bus.call_at(VMD, job, INTERFACE, "Cancel", &[]).failed(&["has ended (done)", "nothing to cancel"]);
    assert_eq!(vm.state(), "running");
}

/// By Ctrl-C, which is how a person cancels.
#[test]
fn from_the_keyboard() {
    let (mortal, vm) = (mortal(), Vm::named("t-cancel-key"));
    for (state, place) in [("created", "create.disk"), ("starting", "start.limits")] {
        mortal.delays(place, 10 * HELD_UP);
        let child = Command::new("banger")
            .args(["run", "--name", vm.name(), BUSYBOX, "--", "true"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        eventually(state, || {
            Way::Bus.call(VMD, "ListVms", &[]).ok().contains(&format!("\"t-cancel-key\" \"{state}\""))
        });
        banger_tests::run("kill", &["-INT", &child.id().to_string()]).ok();
        let ended = child.wait_with_output().expect("waits");
        mortal.delays_nobody();
        assert_eq!(ended.status.code(), Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
        nothing_is_left(state, &vm);
    }
}
