//! The services themselves: killed, left idle, called by people who may not.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use banger_api::job::INTERFACE as JOB;
use banger_api::service::ServiceProxy;
use banger_api::{ErrorKind, IMAGED, NETD, SERVICES, SESSIOND, Service, VMD};
use banger_tests::monitor::Monitor;
use banger_tests::{
    BUSYBOX, Vm, Way, as_user, banger, eventually, eventually_within, job_property, json, oci, run, sh, start,
};

#[test]
fn no_vm_notices_the_death_of_a_service() {
    let vm = Vm::running("t-kill", BUSYBOX);
    let pid = vm.pid();
    for service in SERVICES {
        let unit = format!("banger-{}.service", service.id);
        // There may be nobody to kill: idle services leave.
        run("systemctl", &["start", &unit]).ok();
        let killed = run("systemctl", &["show", "-P", "MainPID", &unit]).ok();
        run("systemctl", &["kill", "-s", "KILL", &unit]).ok();
        // Before it is dead, a call may still be for it.
        eventually("it is dead", || !std::path::Path::new("/proc").join(killed.trim()).exists());
        let listed = banger(&["ps"]).ok();
        assert!(listed.contains("t-kill") && listed.contains("running"), "{}: {listed}", service.id);
        assert_eq!(vm.sh("echo alive").ok(), "alive\n", "{}", service.id);
        assert_eq!(vm.pid(), pid, "{}", service.id);
    }
    // All of them at once, and the sockets.
    let units = SERVICES.map(|service| format!("banger-{}.service", service.id));
    for stopped in ["banger.target", "banger-launch.socket"] {
        run("systemctl", &["stop", stopped]).ok();
        assert_eq!(vm.pid(), pid, "{stopped}");
    }
    for unit in &units {
        assert_eq!(run("systemctl", &["is-active", unit]).text(), "inactive\n", "{unit}");
    }
    assert_ne!(Way::Socket.call(VMD, "ListVms", &[]).status, 0, "nobody listens");
    run("systemctl", &["start", "banger-launch.socket"]).ok();
    // What the VM had is given back all the same.
    run("systemctl", &["stop", &format!("banger-vm@{}", vm.name())]).ok();
    run("systemctl", &["start", "banger.target"]).ok();
    Way::Socket.call(VMD, "ListVms", &[]).ok();
    assert_eq!(vm.state(), "stopped");
    assert_eq!(banger(&["vm", "reconcile"]).ok(), "");
}

/// `$BANGER_UPGRADE_VMS` is the number of VMs, if not three: each takes seconds to boot where it is
/// emulated.
#[test]
fn no_vm_notices_an_upgrade() {
    const DEB: &str = "/root/banger.deb";
    let count = std::env::var("BANGER_UPGRADE_VMS").map_or(3, |count| count.parse().expect("a number"));
    let vms: Vec<Vm> = (0..count).map(|index| Vm::named(&format!("t-upgrade-{index}"))).collect();
    for vm in &vms {
        banger(&["run", "-d", "--name", vm.name(), "--memory", "96M", BUSYBOX]).ok();
    }
    let pids: Vec<u32> = vms.iter().map(Vm::pid).collect();
    let script =
        "i=0; while [ ! -e /tmp/enough ]; do echo line $i; i=$((i+1)); sleep 0.05; done; echo $i >&2";
    let stream = start("banger", &["exec", vms[0].name(), "--", "sh", "-c", script]);
    eventually("the stream flows", || json(&["session", "ls"]).as_array().is_some_and(|all| !all.is_empty()));
    let services: Vec<String> =
        SERVICES.iter().map(|service| format!("banger-{}.service", service.id)).collect();
    // There are instances to replace.
    for unit in &services {
        run("systemctl", &["start", unit]).ok();
    }
    let (began, since) = (Instant::now(), sh("date +@%s").ok());
    run("apt-get", &["install", "-q", "-y", "--reinstall", DEB]).ok();
    eprintln!("the upgrade under {count} VMs took {:.1} s", began.elapsed().as_secs_f64());
    // systemd, systemd-machined and the bus did not wait for each other.
    let waited = format!("journalctl -q -o cat --since {} _PID=1 | grep GetNameOwner", since.trim());
    assert_eq!(sh(&waited).text(), "");
    for unit in &services {
        let old = sh(&format!("readlink /proc/$(systemctl show -P MainPID {unit})/exe | grep deleted"));
        assert_ne!(old.status, 0, "{unit} is still the old one: {old}");
    }
    for (vm, pid) in vms.iter().zip(&pids) {
        assert_eq!((vm.state().as_str(), vm.pid()), ("running", *pid), "{}", vm.name());
        assert_eq!(vm.sh("echo alive").ok(), "alive\n");
    }
    vms[0].sh("touch /tmp/enough").ok();
    let done = stream.join().expect("joins");
    let lines: usize = done.stderr.trim().parse().unwrap_or_else(|_| panic!("{done}"));
    let expected: String = (0..lines).map(|line| format!("line {line}\n")).collect();
    assert_eq!(done.ok(), expected);
    assert_eq!(banger(&["vm", "reconcile"]).ok(), "");
    for vm in &vms {
        banger(&["stop", vm.name()]).ok();
        assert_eq!(vm.state(), "stopped");
    }
}

#[test]
fn a_stream_does_not_notice_the_death_of_sessiond() {
    let vm = Vm::running("t-kill-stream", BUSYBOX);
    let script = "i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); sleep 0.1; done; exit 5";
    let stream = banger_tests::start("banger", &["exec", vm.name(), "--", "sh", "-c", script]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    run("systemctl", &["kill", "-s", "KILL", "banger-sessiond.service"]).ok();
    let done = stream.join().expect("joins");
    assert_eq!(done.status, 5, "{done}");
    assert_eq!(done.text().lines().count(), 40, "{done}");
}

/// A service that leaves after a second without work, until this is dropped.
struct Hasty(Service);

impl Hasty {
    fn new(service: Service) -> Self {
        let hasty = Self(service);
        std::fs::create_dir_all(hasty.drop_in()).expect("creates");
        let program = format!("/usr/libexec/banger/banger-{}", service.id);
        let text = format!("[Service]\nExecStart=\nExecStart={program} --idle-timeout 1\n");
        std::fs::write(format!("{}/idle.conf", hasty.drop_in()), text).expect("writes");
        hasty.restart();
        hasty
    }

    fn unit(&self) -> String {
        format!("banger-{}.service", self.0.id)
    }

    fn drop_in(&self) -> String {
        format!("/run/systemd/system/{}.d", self.unit())
    }

    fn restart(&self) {
        run("systemctl", &["daemon-reload"]).ok();
        run("systemctl", &["restart", &self.unit()]).ok();
    }

    #[track_caller]
    fn leaves(&self) {
        eventually("the service leaves", || !self.is_active());
    }

    fn is_active(&self) -> bool {
        run("systemctl", &["is-active", &self.unit()]).text().trim() != "inactive"
    }
}

impl Drop for Hasty {
    fn drop(&mut self) {
        std::fs::remove_dir_all(self.drop_in()).expect("removes");
        self.restart();
    }
}

/// Much longer than a hasty service stays.
fn a_while() {
    std::thread::sleep(Duration::from_secs(5));
}

#[test]
fn idle_services_leave_and_come_back() {
    let hasty = Hasty::new(SESSIOND);
    hasty.leaves();
    for way in Way::BOTH {
        way.call_at(SESSIOND, SESSIOND.path, "org.freedesktop.DBus.Peer", "Ping", &[]).ok();
        hasty.leaves();
    }
}

/// A registry that takes connections and never answers: a pull from it lasts.
fn silent_registry() -> (TcpListener, String) {
    let silent = TcpListener::bind("127.0.0.1:0").expect("listens");
    let reference = format!("localhost:{}/silent:latest", silent.local_addr().expect("bound").port());
    (silent, reference)
}

#[test]
fn jobs_outlive_their_service() {
    let unit = "banger-imaged.service";
    let crafted = oci::push("t-outlive", &oci::tar(&[("data", b"pulled before")]));
    let _ = banger(&["image", "rm", &crafted.reference]);
    let started = Way::Bus.call(IMAGED, "Pull", &["sa{sv}", &crafted.reference, "0"]).ok();
    let done = started.split('"').nth(1).expect("a job");
    let name = Way::Bus.call_at(IMAGED, done, JOB, "Wait", &[]).ok();
    let (silent, reference) = silent_registry();
    let started = Way::Bus.call(IMAGED, "Pull", &["sa{sv}", &reference, "0"]).ok();
    let cut = started.split('"').nth(1).expect("a job");
    let _connection = silent.accept().expect("imaged calls");
    for way in ["", "--peer"] {
        let (silent, reference) = silent_registry();
        let line = format!("banger {way} pull {reference}");
        let follower = start("sh", &["-c", &line]);
        let _connection = silent.accept().expect("imaged calls");
        let mut signals = Monitor::start("type='signal',member='JobRemoved'");
        run("systemctl", &["kill", "-s", "KILL", unit]).ok();
        follower.join().expect("joins").refused(&["banger-imaged ended", "run it again"]);
        assert!(signals.hears("object path \"/org/banger/Image1/job/"));
    }
    // A restart is no different, and it does not make what ended with the first instance new.
    run("systemctl", &["restart", unit]).ok();
    assert_eq!(job_property(IMAGED, cut, "State"), "v s \"failed\"\n");
    assert_eq!(job_property(IMAGED, cut, "Subject"), format!("v s \"{reference}\"\n"));
    assert_eq!(job_property(IMAGED, cut, "ErrorName"), "v s \"org.banger.Error.Interrupted\"\n");
    assert_eq!(Way::Socket.call_at(IMAGED, done, JOB, "Wait", &[]).ok(), name);
    let stored = || run("systemctl", &["show", "-P", "NFileDescriptorStore", unit]).ok();
    assert_ne!(stored().trim(), "0");
    eventually_within(Duration::from_secs(180), "the records are removed", || stored().trim() == "0");
    assert_ne!(Way::Bus.call_at(IMAGED, cut, JOB, "Wait", &[]).status, 0);
    banger(&["image", "rm", &crafted.reference]).ok();
}

#[test]
fn what_is_installed_has_no_failpoints() {
    for service in SERVICES {
        let binary = format!("/usr/libexec/banger/banger-{}", service.id);
        let text = std::fs::read(&binary).expect("reads");
        let trace = b"create.reserved";
        assert!(!text.windows(trace.len()).any(|bytes| bytes == trace), "{binary}");
    }
}

#[test]
fn no_service_leaves_with_an_outcome() {
    let _hasty = Hasty::new(IMAGED);
    let started = Way::Bus.call(IMAGED, "Pull", &["sa{sv}", "localhost:5000/t-no-such-image:1", "0"]).ok();
    let job = started.split('"').nth(1).expect("a job");
    assert_ne!(Way::Bus.call_at(IMAGED, job, JOB, "Wait", &[]).status, 0);
    let pid = || run("systemctl", &["show", "-P", "MainPID", "banger-imaged.service"]).ok();
    let before = pid();
    a_while();
    assert_eq!(job_property(IMAGED, job, "State"), "v s \"failed\"\n");
    assert_eq!(pid(), before);
}

#[test]
fn subscribers_keep_a_service() {
    let hasty = Hasty::new(NETD);
    let count = || {
        let get = ["ss", "org.banger.Service1", "Subscribers"];
        Way::Bus.call_at(NETD, NETD.path, "org.freedesktop.DBus.Properties", "Get", &get).ok()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let client = runtime.block_on(zbus::connection::Builder::system().build()).expect("connects");
    let subscription = runtime.block_on(async {
        let builder = ServiceProxy::builder(&client).destination(NETD.bus_name).path(NETD.path);
        let proxy = builder.build().await.expect("a proxy");
        proxy.subscribe().await.expect("subscribes");
        proxy.subscribe().await.expect("subscribes twice");
        proxy.unsubscribe().await.expect("takes back one");
        proxy
    });
    assert_eq!(count(), "v u 1\n");
    a_while();
    assert!(hasty.is_active());
    runtime.block_on(subscription.unsubscribe()).expect("takes back the other");
    let error = banger_api::Error::from(runtime.block_on(subscription.unsubscribe()).expect_err("no more"));
    assert_eq!(error.kind(), ErrorKind::NotSubscribed);
    assert_eq!(count(), "v u 0\n");
    hasty.leaves();
    // Who leaves the bus does not have to say so.
    runtime.block_on(subscription.subscribe()).expect("subscribes");
    a_while();
    assert!(hasty.is_active());
    drop((subscription, client));
    drop(runtime);
    hasty.leaves();
    for way in Way::BOTH {
        way.call_at(NETD, NETD.path, "org.banger.Service1", "Subscribe", &[]).ok();
    }
    eventually("busctl's subscription ends with it", || count() == "v u 0\n");
}

#[test]
fn strangers_may_look_but_not_touch() {
    let listed = as_user("mallory", "banger ps");
    listed.ok();
    as_user("mallory", &format!("banger run {BUSYBOX} -- true")).refused(&["banger"]);
    as_user("mallory", "banger pull localhost:5000/busybox:latest").refused(&["banger"]);
    let start = "SYSTEMD_LOG_LEVEL=debug busctl call org.banger.Vm1 /org/banger/Vm1 org.banger.Vm1.Manager StartVm s x";
    let denied = as_user("mallory", start);
    // Without a password: polkit would ask for one if it could.
    let names = ["DBus.Error.AccessDenied", "DBus.Error.InteractiveAuthorizationRequired"];
    assert!(names.iter().any(|name| denied.stderr.contains(name)), "{denied}");
    let call = "busctl call org.banger.Network1 /org/banger/Network1 org.banger.Network1.Manager Release s x";
    assert_ne!(as_user("alice", call).status, 0, "leases are between services");
    // The sockets are closed to strangers by their mode, and open to the group.
    let list = "busctl --address=unix:path=/run/banger/vmd.sock call org.banger.Vm1 /org/banger/Vm1 org.banger.Vm1.Manager ListVms";
    assert_ne!(as_user("mallory", list).status, 0);
    as_user("alice", list).ok();
    // Nobody but the unit of a VM gets its launch plan.
    let prepare = "busctl call org.banger.Vm1 /org/banger/Vm1 org.banger.Vm1.Manager PrepareVm s x";
    assert_ne!(sh(prepare).status, 0);
}

#[test]
fn members_of_the_group_need_no_password() {
    let done = as_user("alice", &format!("banger run --rm --name t-alice {BUSYBOX} -- id -u"));
    assert_eq!(done.ok(), "0\n");
}

#[test]
fn log_levels_change_at_run_time() {
    for service in SERVICES {
        let unit = format!("banger-{}.service", service.id);
        run("systemctl", &["start", &unit]).ok();
        run("systemctl", &["service-log-level", &unit, "debug"]).ok();
        // It lasts, since the service may leave any moment and come back.
        run("systemctl", &["restart", &unit]).ok();
        assert_eq!(run("systemctl", &["service-log-level", &unit]).ok(), "debug\n");
        run("systemctl", &["service-log-level", &unit, "info"]).ok();
        assert_ne!(as_user("alice", &format!("systemctl service-log-level {unit} debug")).status, 0);
    }
}

/// Passes all further connections on to the registry.
fn relay(listener: TcpListener) {
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let registry = TcpStream::connect("localhost:5000").expect("the registry is there");
            for (mut from, mut to) in [
                (client.try_clone().expect("clones"), registry.try_clone().expect("clones")),
                (registry, client),
            ] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
}

#[test]
fn a_create_goes_on_when_imaged_dies() {
    let kill = || run("systemctl", &["kill", "-s", "KILL", "banger-imaged.service"]).ok();
    let vm = Vm::named("t-pull-cut");
    let create = |reference: &str| Way::Bus.call(VMD, "CreateVm", &["ssa{sv}", vm.name(), reference, "0"]);
    let (registry, reference) = silent_registry();
    let reference = reference.replace("silent", "busybox");
    let created = create(&reference);
    let _connection = registry.accept().expect("imaged calls");
    kill();
    relay(registry);
    Way::Bus.wait(VMD, created).ok();
    assert_eq!(vm.state(), "created");
    banger(&["rm", vm.name()]).ok();
    banger(&["image", "rm", &reference]).ok();

    // Once: what kills imaged each time is not tried for ever.
    let (registry, reference) = silent_registry();
    let created = create(&reference);
    let mut connections = Vec::new();
    for _ in 0..2 {
        connections.push(registry.accept().expect("imaged calls"));
        kill();
    }
    Way::Bus.wait(VMD, created).failed(&["twice", "journalctl -u banger-imaged"]);
    banger(&["vm", "show", vm.name()]).refused(&["t-pull-cut"]);
    let _ = run("systemctl", &["reset-failed", "banger-imaged.service"]);
}
