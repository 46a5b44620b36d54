//! How long the services take to answer with many VMs, and to come back when they have left.
//!
//! Runs in the lab (`make bench`) with the binaries that are installed there. `$BANGER_BENCH_VMS` is the number
//! of VMs, which are created and never started, if not 1000.

use std::collections::HashMap;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use banger_api::job::JobProxy;
use banger_api::network::NetworkProxy;
use banger_api::vm::ManagerProxy;
use banger_api::{NETD, SERVICES, Service, VMD};
use banger_tests::{BUSYBOX, Vm, Way, banger, eventually, json, run};
use tokio::task::JoinSet;
use zbus::Connection;

/// Calls of each kind.
const CALLS: usize = 50;
/// Queries of each client for a name.
const QUERIES: usize = 10_000;
/// Creates and deletions, and clients that ask for names, at once.
const AT_ONCE: usize = 4;
/// Leases of each kind.
const LEASES: usize = 100;

fn main() {
    let vms = std::env::var("BANGER_BENCH_VMS").map_or(1000, |vms| vms.parse().expect("a number"));
    banger(&["pull", BUSYBOX]).ok();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let bus = Connection::system().await.expect("connects");
        let names: Vec<String> = (0..vms).map(|index| format!("bench-{index}")).collect();
        let begun = Instant::now();
        each(&bus, &names, create).await;
        println!("{vms} VMs created in {:.1} s, {AT_ONCE} at once", begun.elapsed().as_secs_f64());
        answers(&bus, &names).await;
        each(&bus, &names, delete).await;
        for pool in [0, LEASES] {
            leases(&bus, pool).await;
        }
    });
    names();
    activation();
    for service in SERVICES {
        println!("{:<46} {:>9}", format!("memory of banger-{}", service.id), resident(service));
    }
}

/// Does the same to all, some of them at a time.
async fn each<F>(bus: &Connection, names: &[String], work: fn(Connection, String) -> F)
where
    F: Future<Output = zbus::Result<()>> + Send + 'static,
{
    let mut under_way: JoinSet<zbus::Result<()>> = JoinSet::new();
    for name in names {
        if under_way.len() == AT_ONCE {
            under_way.join_next().await.expect("one").expect("joins").expect("works");
        }
        under_way.spawn(work(bus.clone(), name.clone()));
    }
    while let Some(done) = under_way.join_next().await {
        done.expect("joins").expect("works");
    }
}

async fn create(bus: Connection, name: String) -> zbus::Result<()> {
    let vms = ManagerProxy::new(&bus).await?;
    let options = HashMap::from([("disk", (64u64 << 20).into())]);
    let (_, path) = vms.create_vm(&name, BUSYBOX, options).await?;
    JobProxy::builder(&bus).destination(VMD.bus_name).path(path).build().await?.wait().await.map(drop)
}

async fn delete(bus: Connection, name: String) -> zbus::Result<()> {
    ManagerProxy::new(&bus).await?.delete_vm(&name, HashMap::new()).await
}

/// How long netd takes to give a lease, one after the other and all at once, with so many TAPs made in advance.
async fn leases(bus: &Connection, pool: usize) {
    const DROP_IN: &str = "/etc/banger/netd.conf.d/bench.conf";
    std::fs::create_dir_all("/etc/banger/netd.conf.d").expect("makes");
    std::fs::write(DROP_IN, format!("pool = {pool}\n")).expect("writes");
    run("systemctl", &["restart", &unit(NETD)]).ok();
    let network = NetworkProxy::new(bus).await.expect("a proxy");
    for (way, at_once) in [("one by one", 1), ("all at once", LEASES)] {
        // The first has the bridge made, and with it the pool.
        acquire(network.clone(), LEASES).await;
        eventually("the pool is full", || json(&["net", "status"])["pool"]["free"] == pool);
        let (begun, mut times, mut under_way) = (Instant::now(), Vec::new(), JoinSet::new());
        for number in 0..LEASES {
            if under_way.len() == at_once {
                times.extend(under_way.join_next().await.map(|time| time.expect("joins")));
            }
            under_way.spawn(acquire(network.clone(), number));
        }
        times.extend(under_way.join_all().await);
        let seconds = begun.elapsed().as_secs_f64();
        report(&format!("lease, pool of {pool}, {way}, {seconds:.2} s in all"), times);
        for number in 0..=LEASES {
            network.release(&holder(number)).await.expect("releases");
        }
    }
    std::fs::remove_file(DROP_IN).expect("removes");
    run("systemctl", &["restart", &unit(NETD)]).ok();
}

fn holder(number: usize) -> String {
    format!("bench-lease-{number}")
}

async fn acquire(network: NetworkProxy<'static>, number: usize) -> Duration {
    let address = format!("10.209.255.{}", number + 1);
    let begun = Instant::now();
    let options = HashMap::from([("address", address.as_str().into())]);
    network.acquire(&holder(number), options).await.expect("acquires");
    begun.elapsed()
}

/// By one connection that stays, and by processes as a user starts them.
async fn answers(bus: &Connection, names: &[String]) {
    let vms = ManagerProxy::new(bus).await.expect("a proxy");
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let begun = Instant::now();
        let listed = vms.list_vms().await.expect("lists");
        times.push(begun.elapsed());
        assert!(listed.len() >= names.len());
    }
    report("ListVms, the call alone", times);
    let mut times = Vec::new();
    for name in names.iter().cycle().take(CALLS) {
        let begun = Instant::now();
        vms.get_vm(name).await.expect("gets");
        times.push(begun.elapsed());
    }
    report("GetVm, the call alone", times);
    process("ListVms by busctl", || Way::Bus.call(VMD, "ListVms", &[]).ok());
    process("banger ps --all", || banger(&["ps", "--all"]).ok());
    println!("{:<46} {:>9}", "memory of banger-vmd", resident(VMD));
}

fn process(what: &str, mut run: impl FnMut() -> String) {
    let time = |_| {
        let begun = Instant::now();
        run();
        begun.elapsed()
    };
    report(what, (0..CALLS / 5).map(time).collect());
}

/// The resident set of a service, as the kernel prints it.
fn resident(service: Service) -> String {
    let pid = run("systemctl", &["show", "-P", "MainPID", &unit(service)]).ok();
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim())).expect("reads");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().to_owned()
}

/// How long netd takes to say where a VM is, to one program of the host and to several at once.
fn names() {
    let vm = Vm::running("bench-names", BUSYBOX);
    let gateway = json(&["net", "status"])["gateway"].as_str().expect("an address").to_owned();
    for clients in [1, AT_ONCE] {
        let begun = Instant::now();
        let asking: Vec<_> = (0..clients)
            .map(|_| {
                let (name, gateway) = (vm.name().to_owned(), gateway.clone());
                std::thread::spawn(move || ask(&name, &gateway))
            })
            .collect();
        let times: Vec<Duration> =
            asking.into_iter().flat_map(|times| times.join().expect("no panic")).collect();
        let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
        report(&format!("name, {clients} at once, {rate:.0}/s"), times);
    }
}

fn ask(name: &str, gateway: &str) -> Vec<Duration> {
    let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in [name, "banger", "internal"] {
        query.push(label.len().try_into().expect("short"));
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("binds");
    socket.connect((gateway, 53)).expect("connects");
    let mut answer = [0; 512];
    let mut once = || {
        let begun = Instant::now();
        socket.send(&query).expect("sends");
        let length = socket.recv(&mut answer).expect("receives");
        assert_eq!((answer[3] & 15, answer[7]), (0, 1), "{:?}", &answer[..length]);
        begun.elapsed()
    };
    // The first one may have to start netd.
    once();
    (0..QUERIES).map(|_| once()).collect()
}

/// The first call to a service that is not there, as a process of its own, beside one to a service
/// that is.
fn activation() {
    for service in SERVICES {
        for way in Way::BOTH {
            let ping = || {
                let begun = Instant::now();
                way.call_at(service, service.path, "org.freedesktop.DBus.Peer", "Ping", &[]).ok();
                begun.elapsed()
            };
            let (mut first, mut second) = (Vec::new(), Vec::new());
            for _ in 0..CALLS / 5 {
                run("systemctl", &["stop", &unit(service)]).ok();
                first.push(ping());
                second.push(ping());
                // So often in so short a time looks like a service that cannot start.
                let _ = run("systemctl", &["reset-failed", &unit(service)]);
            }
            report(&format!("{} by {way:?}: first call", service.id), first);
            report(&format!("{} by {way:?}: next call", service.id), second);
        }
    }
}

fn unit(service: Service) -> String {
    format!("banger-{}.service", service.id)
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let percentile = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    println!("{what:<46} {:>9.2} ms (p99 {:.2})", percentile(50), percentile(99));
}
