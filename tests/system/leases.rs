//! Leases and the TAPs made for them in advance, by way of netd alone.

use std::collections::HashMap;

use banger_api::NETD;
use banger_api::network::NetworkProxy;
use banger_tests::{Way, eventually, json, run};

/// They are nobody's VM, so vmd would take them for left behind: these tests have the lab for themselves.
const AT_ONCE: u8 = 50;

/// Takes and gives back a lease over a connection of its own.
async fn take_and_give_back(number: u8) -> zbus::Result<String> {
    let bus = zbus::connection::Builder::system().build().await?;
    let network = NetworkProxy::new(&bus).await?;
    let (holder, address) = (format!("t-lease-{number}"), format!("10.209.255.{number}"));
    let lease = network.acquire(&holder, HashMap::from([("address", address.as_str().into())])).await?;
    network.release(&holder).await?;
    Ok(lease.tap)
}

#[test]
fn fifty_leases_at_once_while_netd_restarts() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let taps: Vec<String> = runtime.expect("a runtime").block_on(async {
        let calls: Vec<_> = (1..=AT_ONCE).map(|number| tokio::spawn(take_and_give_back(number))).collect();
        let restarts = tokio::task::spawn_blocking(|| {
            for _ in 0..3 {
                run("systemctl", &["restart", "banger-netd.service"]).ok();
            }
        });
        let mut taps = Vec::new();
        for call in calls {
            taps.push(call.await.expect("joins").expect("a lease"));
        }
        restarts.await.expect("joins");
        taps
    });
    may_start_again();
    let links = run("ip", &["-o", "link"]).ok();
    assert!(taps.iter().all(|tap| !links.contains(tap)), "{links}");
    assert!(!run("nft", &["list", "ruleset"]).ok().contains("bg-0ad1ff"));
}

/// These are more starts than systemd allows in a while.
fn may_start_again() {
    run("systemctl", &["reset-failed", "banger-netd.service"]).ok();
}

#[test]
fn the_pool_fills_up_and_outlives_netd() {
    let free = || json(&["net", "status"])["pool"]["free"].clone();
    let acquire = || {
        let arguments = ["sa{sv}", "t-lease-pool", "1", "address", "s", "10.209.255.99"];
        Way::Bus.call(NETD, "Acquire", &arguments).ok()
    };
    may_start_again();
    // The first may come before there is a pool.
    acquire();
    eventually("the pool is full", || free() == 8);
    Way::Bus.call(NETD, "Release", &["s", "t-lease-pool"]).ok();
    let index = |tap: &str| std::fs::read_to_string(format!("/sys/class/net/{tap}/ifindex")).expect("a link");
    let last = index("bg-spare-7");

    run("systemctl", &["kill", "-s", "KILL", "banger-netd.service"]).ok();
    eventually("netd is back", || free() == 8);
    assert_eq!(index("bg-spare-7"), last);
    // Nobody but netd may open one that is nobody's yet.
    let opens = run("setpriv", &["--reuid=nobody", "--clear-groups", "python3", "-c", OPEN, "bg-spare-7"]);
    assert!(opens.stderr.contains("Operation not permitted"), "{opens}");

    acquire();
    assert_eq!(index("bg-0ad1ff63"), last);
    Way::Bus.call(NETD, "Release", &["s", "t-lease-pool"]).ok();
    eventually("the pool is full", || free() == 8);
}

/// Opens a TAP as a VMM does.
const OPEN: &str = "import fcntl, struct, sys
with open('/dev/net/tun', 'r+b', buffering=0) as tun:
    fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH22x', sys.argv[1].encode(), 0x5002))";
