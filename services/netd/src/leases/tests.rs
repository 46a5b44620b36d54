use std::path::Path;

use ipnet::IpNet;

use super::*;
use crate::effects::tap;

pub(crate) const NEEDS: &str = "root, /dev/net/tun and nft";

pub(crate) struct Host {
    pub(crate) leases: Leases,
    _dir: tempfile::TempDir,
}

impl Host {
    /// A namespace for this thread, and netd's insides in it.
    pub(crate) async fn new() -> Self {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect(NEEDS);
        let dir = tempfile::tempdir().expect("tempdir");
        Self { leases: open(dir.path()).await, _dir: dir }
    }

    /// As after `kill -9` and a start.
    async fn restarted(self) -> Self {
        // One at a time has the database, and what works in the background still does.
        let leases = open_with(Config::default(), self.leases.0.store.clone()).await;
        leases.reconcile().await.expect("reconciles");
        Self { leases, _dir: self._dir }
    }

    /// Has somebody change what is written down.
    pub(crate) async fn sql(&self, statement: &'static str) {
        let changed = self.leases.0.store.transact(|t| t.execute_batch(statement).map_err(Error::internal));
        changed.await.expect("changes");
    }

    async fn link(&self, name: &str) -> Option<Link> {
        self.leases.0.netlink.link(name).await.expect("asks")
    }

    async fn taps(&self) -> Vec<String> {
        let mut taps: Vec<_> =
            self.leases.our_taps().await.expect("asks").into_iter().map(|link| link.name).collect();
        taps.sort();
        taps
    }
}

async fn open(dir: &Path) -> Leases {
    let store = Store::open(&dir.join("netd.db"), store::MIGRATIONS).expect("opens");
    open_with(Config::default(), store).await
}

async fn open_with(config: Config, store: Store) -> Leases {
    let prefix = prefix6(&config, &store).await.expect(NEEDS);
    let names = crate::names(&config, prefix);
    Leases::new(Arc::new(config), prefix, store, Hub::new(), names, true).expect(NEEDS)
}

pub(crate) fn row(holder: &str, last: u8) -> Row {
    let policy = Policy::default();
    Row { holder: holder.into(), address: Ipv4Addr::new(10, 209, 0, last), uid: 12345, policy }
}

fn nft(arguments: &[&str]) -> String {
    let output = std::process::Command::new("nft").args(arguments).output().expect(NEEDS);
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and nft"]
async fn a_lease_from_nothing_to_nothing() {
    let host = Host::new().await;
    host.leases.reconcile().await.expect("reconciles");
    assert_eq!(host.link("banger0").await, None, "nothing is touched before the first lease");

    let lease = host.leases.acquire_row(row("web", 2)).await.expect("acquires");
    assert_eq!((lease.tap.as_str(), lease.gateway.as_str()), ("bg-0ad10002", "10.209.0.1"));
    assert_eq!(host.leases.acquire_row(row("web", 2)).await.expect("again"), lease);
    let bridge = host.link("banger0").await.expect("the bridge");
    let tap = host.link("bg-0ad10002").await.expect("the TAP");
    assert!(bridge.is_up && tap.is_up && tap.controller == Some(bridge.index));
    assert!(nft(&["list", "set", "inet", "banger", "nat"]).contains("10.209.0.2"));

    let error = host.leases.acquire_row(row("db", 2)).await.expect_err("a double");
    assert_eq!(error.kind(), ErrorKind::AddressInUse);
    let error = host.leases.acquire_row(row("web", 3)).await.expect_err("another address");
    assert_eq!(error.kind(), ErrorKind::AddressInUse);
    assert_eq!(host.taps().await, ["bg-0ad10002"]);

    let policy = Policy { nat: false, ..Policy::default() };
    let closed = Row { policy, uid: 54321, ..row("web", 2) };
    host.leases.acquire_row(closed).await.expect("changes");
    assert!(!nft(&["list", "set", "inet", "banger", "nat"]).contains("10.209.0.2"));

    let error = host.leases.tear_down_now().await.expect_err("in use");
    assert_eq!(error.kind(), ErrorKind::VmBusy);
    host.leases.release_row("web".into()).await.expect("releases");
    let error = host.leases.release_row("web".into()).await.expect_err("gone");
    assert_eq!(error.kind(), ErrorKind::NoSuchLease);
    assert!(host.taps().await.is_empty());
    host.leases.tear_down_now().await.expect("tears down");
    assert_eq!(host.link("banger0").await, None);
    assert_eq!(nft(&["list", "tables"]), "");
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and nft"]
async fn a_restart_makes_what_vanished_and_removes_what_nobody_owns() {
    let host = Host::new().await;
    for (holder, last) in [("a", 2), ("b", 3)] {
        host.leases.acquire_row(row(holder, last)).await.expect("acquires");
    }
    let vanished = host.link("bg-0ad10002").await.expect("the TAP");
    host.leases.0.netlink.delete(&vanished).await.expect("deletes");
    // As if killed between the row and the TAP of a release.
    host.leases.0.store.transact(|t| store::delete(t, "b")).await.expect("deletes");
    nft(&["flush", "ruleset"]);

    let host = host.restarted().await;
    assert_eq!(host.taps().await, ["bg-0ad10002"]);
    assert!(nft(&["list", "set", "inet", "banger", "nat"]).contains("10.209.0.2"));

    let bridge = host.link("banger0").await.expect("the bridge");
    host.leases.0.netlink.delete(&bridge).await.expect("deletes");
    let host = host.restarted().await;
    let bridge = host.link("banger0").await.expect("the bridge");
    assert_eq!(host.link("bg-0ad10002").await.and_then(|tap| tap.controller), Some(bridge.index));
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and nft"]
async fn a_route_in_the_way_is_named_and_nothing_stays() {
    let host = Host::new().await;
    let netlink = &host.leases.0.netlink;
    netlink.add_bridge("lan0", [2, 0, 0, 0, 0, 1], "x").await.expect("adds");
    let lan = host.link("lan0").await.expect("the bridge");
    netlink.up("lan0").await.expect("up");
    netlink.add_address(&lan, "10.209.7.1/24".parse().expect("network")).await.expect("adds");

    let error = host.leases.acquire_row(row("web", 2)).await.expect_err("in the way");
    assert_eq!(error.kind(), ErrorKind::NetworkConflict);
    assert_eq!(
        error.message(),
        "banger's address range 10.209.0.0/16 overlaps the host's route to 10.209.7.0/24 of lan0; \
         set another range in /etc/banger/netd.conf"
    );
    assert_eq!(host.link("banger0").await, None);
    assert!(host.leases.list().await.expect("lists").is_empty());
    assert_eq!(nft(&["list", "tables"]), "");

    netlink.delete(&lan).await.expect("deletes");
    host.leases.acquire_row(row("web", 2)).await.expect("acquires");
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and nft"]
async fn ipv6_is_this_hosts_own_and_can_be_switched_off() {
    let host = Host::new().await;
    let lease = host.leases.acquire_row(row("web", 2)).await.expect("acquires");
    let address = lease.address6.expect("an address");
    assert!(address.starts_with("fd") && address.ends_with("::ad1:2"), "{address}");
    let bridge = host.link("banger0").await.expect("the bridge");
    let gateway: Ipv6Addr = lease.gateway6.expect("a gateway").parse().expect("an address");
    let has = |addresses: Vec<IpNet>| addresses.iter().any(|network| network.addr() == gateway);
    assert!(has(host.leases.0.netlink.addresses(bridge.index).await.expect("lists")));

    let host = host.restarted().await;
    let again = host.leases.acquire_row(row("web", 2)).await.expect("acquires");
    assert_eq!(again.address6, Some(address));

    let store = host.leases.0.store.clone();
    let config = Config { ipv6: false, ..Config::default() };
    let without = open_with(config, store).await;
    let lease = without.acquire_row(row("web", 2)).await.expect("acquires");
    assert_eq!((lease.address6, lease.prefix6, lease.gateway6), (None, None, None));
    assert!(!has(without.0.netlink.addresses(bridge.index).await.expect("lists")));
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and nft"]
async fn a_host_that_becomes_a_router_keeps_listening_to_routers() {
    let host = Host::new().await;
    let netlink = &host.leases.0.netlink;
    for name in ["lan0", "banger0"] {
        netlink.add_bridge(name, [2, 0, 0, 0, 0, 1], "x").await.expect("adds");
    }
    let read = |path: &Path| sysctl::read(path).expect("reads").expect("there");
    let listens = sysctl::accept_ra("lan0");
    let routes = sysctl::forwarding6("all");
    assert_eq!((read(&listens), read(&routes)), ("1".into(), "0".into()));
    let bridge = host.link("banger0").await.expect("the bridge");
    let links = netlink.links().await.expect("lists");
    host.leases.become_router6(&links, &bridge).await.expect("routes");
    assert_eq!((read(&listens), read(&routes)), ("2".into(), "1".into()));
    assert_eq!(read(&sysctl::accept_ra("banger0")), "1", "our own is not touched");
    // Once more, as after a restart: what is remembered is what it was before.
    host.leases.become_router6(&links, &bridge).await.expect("routes");
    host.leases.tear_down_now().await.expect("tears down");
    assert_eq!((read(&listens), read(&routes)), ("1".into(), "0".into()));
    assert_eq!(read(&sysctl::forwarding6("lan0")), "0");
}

fn ip(arguments: &str) {
    let status = std::process::Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.expect(NEEDS).success(), "ip {arguments}");
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and nft"]
async fn packets_are_as_large_as_the_uplinks() {
    let host = Host::new().await;
    ip("link add lan0 type bridge");
    ip("link set lan0 mtu 1400 up");
    ip("route add default dev lan0");
    let lease = host.leases.acquire_row(row("one", 2)).await.expect("acquires");
    assert_eq!(lease.mtu, 1400);
    ip("link set lan0 mtu 1450");
    // As some seconds later.
    host.leases.0.kernel.lock().await.bridge = None;
    let lease = host.leases.acquire_row(row("other", 3)).await.expect("acquires");
    assert_eq!(lease.mtu, 1450);
    for name in ["banger0", "bg-0ad10002", "bg-0ad10003"] {
        assert_eq!(host.link(name).await.expect("there").mtu, 1450, "{name}");
    }
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and nft"]
async fn rules_that_are_gone_are_told() {
    let host = Host::new().await;
    assert!(host.leases.warnings().await.is_empty());
    host.leases.acquire_row(row("one", 2)).await.expect("acquires");
    assert!(host.leases.warnings().await.is_empty());
    nft(&["flush", "ruleset"]);
    let warnings = host.leases.warnings().await;
    assert!(warnings.len() == 1 && warnings[0].0 == "rules", "{warnings:?}");
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and nft"]
async fn a_tap_that_is_no_leases_is_told_and_goes() {
    let host = Host::new().await;
    host.leases.acquire_row(row("one", 2)).await.expect("acquires");
    host.leases.fill_pool().await;
    let bridge = host.link("banger0").await.expect("the bridge");
    tap::create("bg-0ad100fe", 0).expect("makes a TAP");
    host.leases.0.netlink.attach("bg-0ad100fe", &bridge, TAP_ALIAS).await.expect("attaches");
    let warnings = host.leases.warnings().await;
    assert!(warnings.len() == 1 && warnings[0].0 == "tap", "{warnings:?}");
    assert!(warnings[0].1.contains("bg-0ad100fe"), "{warnings:?}");
    host.leases.reconcile().await.expect("reconciles");
    assert!(host.leases.warnings().await.is_empty());
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and nft"]
async fn two_hundred_at_once() {
    let host = Host::new().await;
    let started = Instant::now();
    let acquired = (2..202).map(|last| {
        let leases = host.leases.clone();
        async move { leases.acquire_row(row(&format!("vm{last}"), last)).await }
    });
    for lease in futures_util::future::join_all(acquired).await {
        lease.expect("acquires");
    }
    println!("200 leases in {:?}", started.elapsed());
    assert_eq!(host.taps().await.len(), 200);
    assert_eq!(nft(&["list", "map", "bridge", "banger", "guests"]).matches("jump").count(), 200);

    let started = Instant::now();
    host.leases.acquire_row(row("one-more", 250)).await.expect("acquires");
    println!("one more in {:?}", started.elapsed());
    let started = Instant::now();
    *host.leases.0.rules.lock().await = None;
    host.leases.acquire_row(row("one-more", 250)).await.expect("acquires");
    println!("the whole firewall anew in {:?}", started.elapsed());
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and nft"]
async fn leases_take_taps_of_the_pool() {
    let host = Host::new().await;
    host.leases.fill_pool().await;
    assert!(host.taps().await.is_empty(), "nothing is touched before the first lease");
    host.leases.acquire_row(row("first", 2)).await.expect("acquires");
    host.leases.fill_pool().await;
    let spare = host.link("bg-spare-7").await.expect("a full pool");
    let bridge = host.link("banger0").await.expect("the bridge");
    assert!(!spare.is_up && spare.controller == Some(bridge.index));

    host.leases.acquire_row(row("second", 3)).await.expect("acquires");
    let tap = host.link("bg-0ad10003").await.expect("the TAP");
    assert_eq!((tap.index, tap.is_up, tap.alias.as_deref()), (spare.index, true, Some("banger: second")));
    assert!(tun_owner("bg-0ad10003").contains("user 12345"));
    assert!(tun_owner("bg-spare-6").contains("user root"));

    // It is found again, and one that is nobody's in particular is not taken for it.
    tap::create("bg-0ad100ff", 0).expect("makes");
    host.leases.0.netlink.attach("bg-0ad100ff", &bridge, SPARE_ALIAS).await.expect("attaches");
    host.leases.0.netlink.up("bg-0ad100ff").await.expect("brings up");
    let host = host.restarted().await;
    assert_eq!((host.leases.spares().await, host.taps().await.len()), (7, 9));
    host.leases.fill_pool().await;
    assert_eq!(host.leases.spares().await, 8);

    for holder in ["first", "second"] {
        host.leases.release_row(holder.into()).await.expect("releases");
    }
    host.leases.tear_down_now().await.expect("tears down");
    assert!(host.taps().await.is_empty());
}

/// A lease must not fail because the pool, or its bridge, is not what it was.
#[tokio::test]
#[ignore = "needs root, /dev/net/tun and nft"]
async fn a_pool_that_vanished_is_no_matter() {
    let host = Host::new().await;
    host.leases.acquire_row(row("first", 2)).await.expect("acquires");
    host.leases.fill_pool().await;
    let last = host.link("bg-spare-7").await.expect("a full pool");
    host.leases.0.netlink.delete(&last).await.expect("deletes");
    host.leases.acquire_row(row("second", 3)).await.expect("acquires");
    let bridge = host.link("banger0").await.expect("the bridge");
    host.leases.0.netlink.delete(&bridge).await.expect("deletes");
    host.leases.acquire_row(row("third", 4)).await.expect("acquires");
    let bridge = host.link("banger0").await.expect("the bridge");
    let tap = host.link("bg-0ad10004").await.expect("the TAP");
    assert!(tap.is_up && tap.controller == Some(bridge.index));
}

fn tun_owner(name: &str) -> String {
    let output = std::process::Command::new("ip").args(["-d", "link", "show", name]).output();
    String::from_utf8(output.expect(NEEDS).stdout).expect("text")
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and nft"]
async fn a_firewall_that_somebody_flushed_comes_back() {
    let host = Host::new().await;
    host.leases.acquire_row(row("a", 2)).await.expect("acquires");
    for again in ["a", "b"] {
        nft(&["flush", "ruleset"]);
        host.leases.acquire_row(row(again, if again == "a" { 2 } else { 3 })).await.expect("acquires");
        assert!(nft(&["list", "map", "bridge", "banger", "guests"]).contains("bg-0ad10002"));
    }
    nft(&["delete", "element", "bridge", "banger", "guests", "{ bg-0ad10003 }"]);
    host.leases.release_row("b".into()).await.expect("releases");
    let guests = nft(&["list", "map", "bridge", "banger", "guests"]);
    assert!(guests.contains("bg-0ad10002") && !guests.contains("bg-0ad10003"), "{guests}");
}
