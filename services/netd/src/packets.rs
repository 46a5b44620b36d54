//! What the firewall makes of real frames: the tests play guests, who write to their TAPs what they
//! like and see what arrives. As in `leases`, in a network namespace of their own.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use banger_core::network::Policy;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::effects::{sysctl, tap};
use crate::leases::tests::{Host, NEEDS, row};
use crate::plan;
use crate::store::Row;

/// The header that TAPs of ours have before each frame; zeros ask for nothing.
const VNET_HEADER: usize = 10;
const BROADCAST: [u8; 6] = [0xff; 6];
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 209, 0, 1);
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;

/// A guest that does not keep to the rules.
struct Guest {
    tap: File,
    address: Ipv4Addr,
    mac: [u8; 6],
}

impl Guest {
    async fn new(host: &Host, last: u8, groups: &[&str]) -> Self {
        let groups: BTreeSet<String> = groups.iter().map(ToString::to_string).collect();
        let policy = Policy { groups, ..Policy::default() };
        let row = Row { policy, ..row(&format!("guest{last}"), last) };
        let address = row.address;
        let lease = host.leases.acquire_row(row).await.expect("acquires");
        let tap = tap::open(&lease.tap).expect(NEEDS);
        wait_until_it_forwards(&lease.tap);
        Self { tap, address, mac: plan::mac(address) }
    }

    fn send(&mut self, frame: &[u8]) {
        let packet = [&[0; VNET_HEADER][..], frame].concat();
        self.tap.write_all(&packet).expect("writes");
    }

    /// The next frame of a test's own that is for this guest; `None` if nothing comes any more.
    fn receive(&mut self) -> Option<Vec<u8>> {
        loop {
            let mut wait = [PollFd::new(self.tap.as_fd(), PollFlags::POLLIN)];
            if poll(&mut wait, PollTimeout::from(500u16)).expect("polls") == 0 {
                return None;
            }
            let mut packet = vec![0; 2048];
            let length = self.tap.read(&mut packet).expect("reads");
            let frame = packet[VNET_HEADER..length].to_vec();
            let for_us = frame.starts_with(&self.mac) || frame.starts_with(&BROADCAST);
            if for_us && frame.ends_with(MARK) {
                return Some(frame);
            }
        }
    }

    /// What arrives at `to` of the frame and of a proper one after it.
    fn passes(&mut self, frame: &[u8], to: &mut Guest) -> bool {
        let proper = datagram(self.mac, BROADCAST, self.address, Ipv4Addr::BROADCAST, 4000);
        self.send(frame);
        self.send(&proper);
        let first = to.receive().expect("at least the proper frame arrives");
        if first == proper {
            return false;
        }
        assert_eq!(first, frame);
        assert_eq!(to.receive(), Some(proper));
        true
    }
}

/// Linux tells the bridge up to a second later that somebody has opened a TAP, and until then it drops what
/// comes from there.
fn wait_until_it_forwards(tap: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let said = Command::new("bridge").args(["link", "show", "dev", tap]).output().expect(NEEDS);
        if String::from_utf8_lossy(&said.stdout).contains("state forwarding") {
            return;
        }
        assert!(Instant::now() < deadline, "{tap} does not forward: {said:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ends every frame of the tests: the host sends some of its own.
const MARK: &[u8] = b"a frame of the tests";

fn ethernet(source: [u8; 6], destination: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&destination[..], &source, &kind.to_be_bytes(), payload, MARK].concat()
}

/// A request or an answer (1, 2) in which a guest says who it is.
fn arp(source: [u8; 6], operation: u8, sender: ([u8; 6], Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let header = [0, 1, 8, 0, 6, 4, 0, operation];
    let (mac, address) = sender;
    ethernet(
        source,
        BROADCAST,
        ARP,
        &[&header[..], &mac, &address.octets(), &[0; 6], &target.octets()].concat(),
    )
}

fn datagram(
    source: [u8; 6],
    destination: [u8; 6],
    from: Ipv4Addr,
    to: Ipv4Addr,
    source_port: u16,
) -> Vec<u8> {
    let length = u16::try_from(MARK.len()).expect("short");
    let udp = [source_port, 4000, 8 + length, 0].map(u16::to_be_bytes).concat();
    let mut ip = [&[0x45, 0][..], &(28 + length).to_be_bytes(), &[0, 0, 0, 0, 64, 17, 0, 0]].concat();
    ip.extend([from.octets(), to.octets()].concat());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    ethernet(source, destination, IPV4, &[ip, udp].concat())
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and nft"]
async fn nobody_passes_for_somebody_else() {
    let host = Host::new().await;
    let mut one = Guest::new(&host, 2, &["web"]).await;
    let mut other = Guest::new(&host, 3, &["ci", "web"]).await;
    let (mac, address) = (one.mac, one.address);
    let (other_mac, other_address) = (other.mac, other.address);
    let mut passes = |frame: &[u8]| one.passes(frame, &mut other);

    assert!(passes(&arp(mac, 1, (mac, address), other_address)));
    assert!(passes(&arp(mac, 1, (mac, Ipv4Addr::UNSPECIFIED), other_address)), "a probe");
    assert!(passes(&datagram(mac, other_mac, address, other_address, 5000)));

    let strange = [2, 0, 0, 0, 0, 9];
    for (what, frame) in [
        ("another MAC address", datagram(strange, other_mac, address, other_address, 5000)),
        ("the gateway's address", datagram(mac, other_mac, GATEWAY, other_address, 5000)),
        ("the receiver's own address", datagram(mac, other_mac, other_address, other_address, 5000)),
        ("an address from elsewhere", datagram(mac, other_mac, [192, 0, 2, 1].into(), other_address, 5000)),
        ("a DHCP server", datagram(mac, other_mac, address, other_address, 67)),
        ("ARP from another MAC address", arp(strange, 2, (strange, address), other_address)),
        ("ARP for the gateway", arp(mac, 2, (mac, GATEWAY), other_address)),
        ("ARP with another MAC address inside", arp(mac, 2, (strange, address), other_address)),
        ("ARP with another MAC address outside", arp(strange, 2, (mac, address), other_address)),
        ("a VLAN", ethernet(mac, other_mac, 0x8100, &[0, 5, 8, 0])),
        ("no IP at all", ethernet(mac, other_mac, 0x88b5, &[])),
    ] {
        assert!(!passes(&frame), "{what}");
    }
}

/// An ICMPv6 message of this type about this address.
fn icmpv6(mac: [u8; 6], from: Ipv6Addr, kind: u8, target: Ipv6Addr) -> Vec<u8> {
    let length = u16::try_from(24 + MARK.len()).expect("short");
    let header = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[58, 255]].concat();
    let everybody: Ipv6Addr = "ff02::1".parse().expect("an address");
    let message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat();
    let addresses = [from.octets(), everybody.octets()].concat();
    ethernet(mac, BROADCAST, 0x86dd, &[header, addresses, message].concat())
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and nft"]
async fn nobody_passes_for_somebody_else_in_ipv6() {
    const SOLICITATION: u8 = 135;
    const ADVERTISEMENT: u8 = 136;
    let host = Host::new().await;
    let mut one = Guest::new(&host, 2, &["web"]).await;
    let mut other = Guest::new(&host, 3, &["web"]).await;
    let (prefix, gateway) = host.leases.ipv6().expect("IPv6");
    let own = [plan::address6(prefix, one.address), plan::link_local(one.address)];
    let others = plan::address6(prefix, other.address);
    let mac = one.mac;
    let mut passes = |frame: &[u8]| one.passes(frame, &mut other);

    for from in own {
        assert!(passes(&icmpv6(mac, from, SOLICITATION, gateway)));
        assert!(passes(&icmpv6(mac, from, ADVERTISEMENT, from)));
    }
    assert!(passes(&icmpv6(mac, Ipv6Addr::UNSPECIFIED, SOLICITATION, own[0])), "a probe");
    for (what, from, kind, target) in [
        ("the gateway", gateway, SOLICITATION, own[0]),
        ("another guest", others, SOLICITATION, own[0]),
        ("somebody from elsewhere", "2001:db8::1".parse().expect("an address"), SOLICITATION, own[0]),
        ("another link-local address", plan::link_local(GATEWAY), SOLICITATION, own[0]),
        ("an advertisement of the gateway's address", own[0], ADVERTISEMENT, gateway),
        ("an advertisement of another guest's", own[0], ADVERTISEMENT, others),
        ("an advertisement from nowhere", Ipv6Addr::UNSPECIFIED, ADVERTISEMENT, own[0]),
        ("a router", own[1], 134, own[0]),
        ("a redirection", own[1], 137, own[0]),
    ] {
        assert!(!passes(&icmpv6(mac, from, kind, target)), "{what}");
    }
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and nft"]
async fn guests_meet_in_groups_only() {
    let host = Host::new().await;
    let mut one = Guest::new(&host, 2, &["web", "db"]).await;
    let mut friend = Guest::new(&host, 3, &["web"]).await;
    let mut stranger = Guest::new(&host, 4, &["ci"]).await;
    let mut loner = Guest::new(&host, 5, &[]).await;

    let everybody = datagram(one.mac, BROADCAST, one.address, Ipv4Addr::BROADCAST, 5000);
    one.send(&everybody);
    let bridge = plan::mac(GATEWAY);
    for guest in [&friend, &stranger, &loner] {
        // These guests answer no questions, so the host has to know them.
        let (address, mac) = (guest.address.to_string(), plan::mac_text(guest.address));
        let neighbor = ["neighbor", "add", &address, "lladdr", &mac, "dev", "banger0"];
        assert!(Command::new("ip").args(neighbor).status().expect(NEEDS).success());
        let frame = datagram(one.mac, guest.mac, one.address, guest.address, 5000);
        one.send(&frame);
        // Nor by way of the host, which routes.
        one.send(&datagram(one.mac, bridge, one.address, guest.address, 5001));
    }
    assert_eq!(friend.receive(), Some(everybody));
    assert_eq!(friend.receive(), Some(datagram(one.mac, friend.mac, one.address, friend.address, 5000)));
    for guest in [&mut friend, &mut stranger, &mut loner] {
        assert_eq!(guest.receive(), None);
    }

    // Group by group: one comes, the other goes, while both run.
    let policy = |groups: &[&str]| Policy {
        groups: groups.iter().map(ToString::to_string).collect(),
        ..Policy::default()
    };
    for (holder, last, groups) in [("guest4", 4, &["db"][..]), ("guest2", 2, &["db"])] {
        let row = Row { policy: policy(groups), ..row(holder, last) };
        host.leases.acquire_row(row).await.expect("changes");
    }
    for guest in [&friend, &stranger] {
        let frame = datagram(one.mac, guest.mac, one.address, guest.address, 5002);
        one.send(&frame);
    }
    assert_eq!(
        stranger.receive(),
        Some(datagram(one.mac, stranger.mac, one.address, stranger.address, 5002))
    );
    assert_eq!(friend.receive(), None);
}

/// What leaves the host: a link without anybody at the other end.
struct Uplink;

impl Uplink {
    fn new() -> Self {
        for command in [
            "link add out0 type bridge",
            "address add 198.51.100.9/24 dev out0",
            "link set out0 arp off up",
            "route add default dev out0",
        ] {
            assert!(
                Command::new("ip").args(command.split(' ')).status().expect(NEEDS).success(),
                "{command}"
            );
        }
        // It says nothing of its own.
        sysctl::write(&sysctl::disable_ipv6("out0"), "1").expect("writes");
        Self
    }

    /// Without ports, but it takes whatever is routed to it, and counts.
    fn packets(&self) -> u64 {
        let arguments = ["-json", "-statistics", "link", "show", "out0"];
        let shown = Command::new("ip").args(arguments).output().expect("shows").stdout;
        let shown: serde_json::Value = serde_json::from_slice(&shown).expect("JSON");
        shown[0]["stats64"]["tx"]["packets"].as_u64().expect("a number")
    }

    /// Whether a datagram of the guest leaves the host, to port 4000 there.
    fn takes(&self, guest: &mut Guest, from_port: u16, to: [u8; 4]) -> bool {
        let before = self.packets();
        guest.send(&datagram(guest.mac, plan::mac(GATEWAY), guest.address, to.into(), from_port));
        self.packets() > before
    }
}

fn egress(default: &str, rules: &[&str]) -> Policy {
    let rules: Vec<String> = rules.iter().map(ToString::to_string).collect();
    let mut policy = Policy::default();
    policy.egress.change(Some(default), Some(&rules)).expect("a policy");
    policy
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and nft"]
async fn where_a_guest_may_go_is_as_it_was_asked_for() {
    let host = Host::new().await;
    let uplink = Uplink::new();
    let mut guest = Guest::new(&host, 2, &[]).await;
    let mut leaves = async |default: &str, rules: &[&str], to: [u8; 4]| {
        let policy = egress(default, rules);
        host.leases.acquire_row(Row { policy, ..row("guest2", 2) }).await.expect("changes");
        uplink.takes(&mut guest, 5000, to)
    };
    let (outside, private) = ([192, 0, 2, 1], [192, 168, 7, 9]);
    for (default, rules, leave) in [
        ("open", &[][..], [true, true]),
        ("no-lan", &[], [true, false]),
        ("no-lan", &["192.168.0.0/16:4000"], [true, true]),
        ("closed", &[], [false, false]),
        ("closed", &["192.0.2.1"], [true, false]),
        ("closed", &["192.0.2.0/24:3999-4001/udp"], [true, false]),
        ("closed", &["0.0.0.0/0"], [true, true]),
        ("closed", &["0.0.0.0/0:4000/udp", "::/0"], [true, true]),
        ("closed", &["192.0.2.1/tcp", "192.0.2.1:4001", "192.0.2.2", "::/0/udp"], [false, false]),
    ] {
        for (to, leave) in [outside, private].into_iter().zip(leave) {
            assert_eq!(leaves(default, rules, to).await, leave, "{to:?} with {default} and {rules:?}");
        }
    }
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and nft"]
async fn a_name_is_a_way_to_what_it_stands_for() {
    let host = Host::new().await;
    let uplink = Uplink::new();
    let mut guest = Guest::new(&host, 2, &[]).await;
    let address = guest.address.into();
    let set = async |rules: &[&str]| {
        let policy = egress("closed", rules);
        host.leases.acquire_row(Row { policy, ..row("guest2", 2) }).await.expect("changes");
    };
    let answered = async |name: &str, to: [u8; 4]| {
        host.leases.let_out(address, name.into(), vec![(to.into(), 60)]).await.expect("lets out");
    };
    let (one, other) = ([192, 0, 2, 1], [192, 0, 2, 2]);
    set(&["*.example.org:4000/udp"]).await;
    answered("www.example.org", one).await;
    answered("www.example.net", other).await;
    assert!(uplink.takes(&mut guest, 5000, one) && !uplink.takes(&mut guest, 5000, other));

    // Of somebody else's in our table: it goes if the table is made anew.
    let mark = ["add", "chain", "inet", "banger", "strange"];
    assert!(Command::new("nft").args(mark).status().expect(NEEDS).success());
    // It is over in a second, and then it is good for longer.
    host.sql("UPDATE way SET until = unixepoch() + 1").await;
    host.leases.acquire_row(row("another", 3)).await.expect("acquires");
    answered("www.example.org", one).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(uplink.takes(&mut guest, 5000, one));
    // It is over, and the kernel does not wait for word of ours. Nor does it take offence afterwards.
    host.sql("UPDATE way SET until = unixepoch() + 1").await;
    host.leases.release_row("another".into()).await.expect("releases");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(!uplink.takes(&mut guest, 5001, one));
    answered("www.example.org", one).await;
    assert!(uplink.takes(&mut guest, 5002, one));

    set(&["*.example.org:4001/udp"]).await;
    assert!(!uplink.takes(&mut guest, 5002, one));
    set(&["www.example.net"]).await;
    answered("www.example.net", other).await;
    assert!(!uplink.takes(&mut guest, 5002, one) && uplink.takes(&mut guest, 5000, other));
    let mark = ["list", "chain", "inet", "banger", "strange"];
    assert!(Command::new("nft").args(mark).status().expect(NEEDS).success());
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and nft"]
async fn packets_beyond_a_guests_rate_are_dropped() {
    const SENT: usize = 200;
    let host = Host::new().await;
    let (mut one, mut other) = (Guest::new(&host, 2, &["web"]).await, Guest::new(&host, 3, &["web"]).await);
    let limit = async |packets: Option<u64>, bandwidth: Option<u64>| {
        let policy = Policy { packets, bandwidth, groups: ["web".into()].into(), ..Policy::default() };
        host.leases.acquire_row(Row { policy, ..row("guest2", 2) }).await.expect("changes");
    };
    let arrived = |from: &mut Guest, to: &mut Guest| {
        let frame = datagram(from.mac, to.mac, from.address, to.address, 5000);
        (0..SENT).for_each(|_| from.send(&frame));
        std::iter::from_fn(|| to.receive()).count()
    };
    assert_eq!(arrived(&mut one, &mut other), SENT);
    limit(Some(1), None).await;
    assert!((1..SENT / 2).contains(&arrived(&mut one, &mut other)));
    assert!((1..SENT / 2).contains(&arrived(&mut other, &mut one)));
    // All of them are fewer bytes than may come at once.
    limit(None, Some(1)).await;
    assert_eq!(arrived(&mut one, &mut other), SENT);
    limit(None, None).await;
    assert_eq!(arrived(&mut other, &mut one), SENT);
}
