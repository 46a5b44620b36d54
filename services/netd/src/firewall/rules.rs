//! The rules: those of the frame, and those of each guest.

use std::net::IpAddr;

use banger_core::network::{Destination, Egress, EgressDefault, Policy, Ports, Rule};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::contents::{held_sets, named_sets};
use super::nft::{
    Table, accept, chain, drop, equal, matches, meta, one_of, payload, prefix, prefix_of, reject, rule,
    typed, unequal, verdict_map,
};
use super::{Frame, Guest};
use crate::plan;

/// All our TAPs, for `iifname` and `oifname`.
const TAPS: &str = "bg-*";

/// IPv4 addresses that are not of the internet, as address and length of the prefix: those that IANA's registry
/// of special-purpose addresses calls not globally reachable, but for those of documentation, and from 224.0.0.0
/// multicast and what is reserved.
const NOT_INTERNET: &[(&str, u8)] = &[
    ("0.0.0.0", 8),
    ("10.0.0.0", 8),
    ("100.64.0.0", 10),
    ("127.0.0.0", 8),
    ("169.254.0.0", 16),
    ("172.16.0.0", 12),
    ("192.0.0.0", 24),
    ("192.168.0.0", 16),
    ("198.18.0.0", 15),
    ("224.0.0.0", 3),
];

/// All IPv6 addresses of the internet (RFC 4291, section 2.4). What is outside it is local, multicast, or
/// another way to write an IPv4 address.
const INTERNET6: (&str, u8) = ("2000::", 3);

/// What guests send, as it comes from their TAPs.
pub(super) fn bridge(frame: &Frame<'_>, commands: &mut Vec<Value>) {
    let table = Table::Bridge;
    let from_elsewhere = || unequal(meta("iifname"), json!(TAPS));
    commands.extend([
        verdict_map(table, "guests", "ifname"),
        verdict_map(table, "grouped", "ifname"),
        verdict_map(table, "limited", "ifname"),
        chain(table, "prerouting", "filter", "prerouting", -200),
        rule(table, "prerouting", &json!([from_elsewhere(), accept()])),
        // What is in a VLAN would be looked at as what it is without.
        rule(table, "prerouting", &json!([one_of(payload("ether", "type"), &["8021q", "8021ad"]), drop()])),
        // There is one DHCP server or router for guests, if any: the host.
        rule(table, "prerouting", &json!([one_of(payload("udp", "sport"), &[67, 547]), drop()])),
        rule(
            table,
            "prerouting",
            &json!([one_of(payload("icmpv6", "type"), &["nd-router-advert", "nd-redirect"]), drop()]),
        ),
        rule(table, "prerouting", &json!([{"vmap": {"key": meta("iifname"), "data": "@guests"}}])),
        rule(table, "prerouting", &json!([drop()])),
        // Ports that an admin added to the bridge are the admin's.
        chain(table, "forward", "filter", "forward", -200),
        rule(table, "forward", &json!([from_elsewhere(), accept()])),
        rule(table, "forward", &json!([unequal(meta("oifname"), json!(TAPS)), accept()])),
        rule(table, "forward", &json!([{"vmap": {"key": meta("iifname"), "data": "@grouped"}}])),
        rule(table, "forward", &json!([drop()])),
        chain(table, "postrouting", "filter", "postrouting", 0),
        rule(table, "postrouting", &json!([{"vmap": {"key": meta("oifname"), "data": "@limited"}}])),
        chain(table, "input", "filter", "input", -200),
    ]);
    // The gateway is no way round that.
    for (network, gateway, _) in networks(frame) {
        let destination = || payload(protocol(network), "daddr");
        let round = json!([
            equal(meta("iifname"), json!(TAPS)),
            equal(destination(), prefix(network)),
            unequal(destination(), json!(gateway)),
            drop()
        ]);
        commands.push(rule(table, "input", &round));
    }
}

fn protocol(network: IpNet) -> &'static str {
    match network {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ip6",
    }
}

/// What a guest may send to anybody: frames that name itself as their sender.
pub(super) fn from_guest(guest: &Guest<'_>) -> Vec<Value> {
    let (mac, ip) = (plan::mac_text(guest.address), guest.address.to_string());
    let mut rules = vec![
        json!([unequal(payload("ether", "saddr"), json!(mac)), drop()]),
        json!([equal(payload("ip", "saddr"), json!(ip)), accept()]),
        json!([
            equal(payload("arp", "saddr ether"), json!(mac)),
            // Without an address: it asks whether somebody has it.
            one_of(payload("arp", "saddr ip"), &[ip.as_str(), "0.0.0.0"]),
            accept()
        ]),
    ];
    // After those who are not who they say they are, before those who are.
    rules.splice(1..1, limits(guest.policy));
    if let Some(address) = guest.address6 {
        let own = [address, plan::link_local(guest.address)];
        // Whose address an advertisement is about: ICMPv6 has it after eight bytes (RFC 4861).
        let target = json!({"payload": {"base": "th", "offset": 64, "len": 128}});
        let advertised = own.map(|address| format!("{:#x}", u128::from(address)));
        rules.extend([
            json!([
                equal(payload("icmpv6", "type"), json!("nd-neighbor-advert")),
                unequal(target, json!({"set": advertised})),
                drop()
            ]),
            json!([one_of(payload("ip6", "saddr"), &own.map(|address| address.to_string())), accept()]),
            json!([
                equal(payload("ip6", "saddr"), json!("::")),
                one_of(payload("icmpv6", "type"), &["nd-neighbor-solicit", "mld2-listener-report"]),
                accept()
            ]),
        ]);
    }
    rules
}

/// What a guest sends or gets beyond its rates is dropped, and its senders slow down.
pub(super) fn limits(policy: &Policy) -> Vec<Value> {
    let bytes = |rate: u64| {
        // Frames that the kernel puts together have up to 64 KiB, and several come at a time.
        let burst = (rate / 4).max(256 << 10);
        json!({"rate": rate, "rate_unit": "bytes", "per": "second", "burst": burst, "burst_unit": "bytes", "inv": true})
    };
    let packets = |rate: u64| {
        let burst = (rate / 4).max(16);
        json!({"rate": rate, "per": "second", "burst": burst, "inv": true})
    };
    let limits = [policy.bandwidth.map(bytes), policy.packets.map(packets)];
    limits.into_iter().flatten().map(|limit| json!([{"limit": limit}, drop()])).collect()
}

/// What guests want of the host, and of what is beyond.
pub(super) fn inet(frame: &Frame<'_>, commands: &mut Vec<Value>) {
    let table = Table::Inet;
    let bridge = frame.bridge;
    let from_guest = || equal(meta("iifname"), json!(bridge));
    let to_guest = || equal(meta("oifname"), json!(bridge));
    let answer = || matches(json!({"ct": {"key": "state"}}), "in", json!(["established", "related"]));
    let icmpv6 = ["echo-request", "nd-neighbor-solicit", "nd-neighbor-advert", "mld2-listener-report"];
    let networks = networks(frame);

    commands.extend([
        json!({"add": {"set": typed(table, "nat", json!("ipv4_addr"))}}),
        json!({"add": {"set": typed(table, "nat6", json!("ipv6_addr"))}}),
        verdict_map(table, "egress", "ipv4_addr"),
        verdict_map(table, "egress6", "ipv6_addr"),
        chain(table, "input", "filter", "input", 0),
        rule(table, "input", &json!([unequal(meta("iifname"), json!(bridge)), accept()])),
        rule(table, "input", &json!([answer(), accept()])),
        rule(table, "input", &json!([equal(payload("icmp", "type"), json!("echo-request")), accept()])),
        rule(table, "input", &json!([one_of(payload("icmpv6", "type"), &icmpv6), accept()])),
    ]);
    for (network, gateway, _) in &networks {
        let dns = json!([
            equal(payload(protocol(*network), "daddr"), json!(gateway)),
            one_of(meta("l4proto"), &["tcp", "udp"]),
            equal(payload("th", "dport"), json!(53)),
            accept()
        ]);
        commands.push(rule(table, "input", &dns));
    }
    if !frame.host.is_empty() {
        let ports: Vec<Value> = frame.host.iter().map(concatenation).collect();
        let wanted = json!({"concat": [meta("l4proto"), payload("th", "dport")]});
        commands.push(rule(table, "input", &json!([one_of(wanted, &ports), accept()])));
    }
    commands.extend([
        rule(table, "input", &json!([reject()])),
        chain(table, "forward", "filter", "forward", 0),
        // Between guests: bridge-netfilter shows us what has been judged above.
        rule(table, "forward", &json!([from_guest(), to_guest(), accept()])),
    ]);
    // What the guest's own chain decides, which may be nothing, comes before that it may leave at all.
    for network in &networks {
        let map = if network.0.addr().is_ipv4() { "@egress" } else { "@egress6" };
        let own = json!({"vmap": {"key": payload(protocol(network.0), "saddr"), "data": map}});
        commands.push(rule(table, "forward", &json!([from_guest(), own])));
    }
    let may_leave = |network, nat| equal(payload(protocol(network), "saddr"), json!(nat));
    for (network, _, nat) in &networks {
        commands.push(rule(table, "forward", &json!([from_guest(), may_leave(*network, nat), accept()])));
    }
    commands.extend([
        rule(table, "forward", &json!([from_guest(), reject()])),
        rule(table, "forward", &json!([to_guest(), answer(), accept()])),
        rule(table, "forward", &json!([to_guest(), drop()])),
        chain(table, "postrouting", "nat", "postrouting", 100),
    ]);
    for (network, _, nat) in &networks {
        let beyond = unequal(meta("oifname"), json!(bridge));
        let masquerade = json!([may_leave(*network, nat), beyond, {"masquerade": null}]);
        commands.push(rule(table, "postrouting", &masquerade));
    }
}

/// Where a guest gets beyond the host. Every packet is looked at, not the first of a connection alone: what is
/// taken away is away for connections that are open, too. But names come to stand for other addresses while
/// connections to the old ones are open, and those go on.
pub(super) fn egress(tap: &str, egress: &Egress) -> Vec<Value> {
    let mut rules = Vec::new();
    for (number, rule) in egress.allow.iter().enumerate() {
        match rule.to {
            Destination::Network(network) => rules.push(allowed(vec![goes_to(network)], rule)),
            Destination::Names(_) => {
                let sets = in_sets(named_sets(tap, number));
                rules.extend(sets.map(|condition| allowed(vec![condition], rule)));
            }
        }
    }
    if egress.names().next().is_some() {
        let goes_on = matches(json!({"ct": {"key": "state"}}), "in", json!(["established", "related"]));
        rules.extend(in_sets(held_sets(tap)).map(|condition| json!([goes_on, condition, accept()])));
    }
    match egress.default {
        EgressDefault::Open => {}
        EgressDefault::Closed => rules.push(json!([reject()])),
        EgressDefault::NoLan => {
            let local: Vec<Value> =
                NOT_INTERNET.iter().map(|(address, length)| prefix_of(address, *length)).collect();
            let (address, length) = INTERNET6;
            rules.push(json!([one_of(payload("ip", "daddr"), &local), reject()]));
            rules.push(json!([unequal(payload("ip6", "daddr"), prefix_of(address, length)), reject()]));
        }
    }
    rules
}

fn goes_to(network: IpNet) -> Value {
    match network.prefix_len() {
        // nft knows no comparison of no bits.
        0 => equal(meta("nfproto"), json!(if network.addr().is_ipv4() { "ipv4" } else { "ipv6" })),
        length if length == network.max_prefix_len() => {
            equal(payload(protocol(network), "daddr"), json!(network.addr()))
        }
        _ => equal(payload(protocol(network), "daddr"), prefix(network)),
    }
}

/// Whether a packet goes to an address in the set of its family.
fn in_sets([set, set6]: [String; 2]) -> [Value; 2] {
    [("ip", set), ("ip6", set6)]
        .map(|(protocol, set)| equal(payload(protocol, "daddr"), json!(format!("@{set}"))))
}

/// Lets through what meets the conditions, and those of the rule about protocol and ports.
fn allowed(mut expressions: Vec<Value>, rule: &Rule) -> Value {
    expressions.extend(match (rule.protocol, rule.ports) {
        (Some(protocol), _) => Some(equal(meta("l4proto"), json!(protocol.as_str()))),
        (None, Some(_)) => Some(one_of(meta("l4proto"), &["tcp", "udp"])),
        (None, None) => None,
    });
    expressions.extend(rule.ports.map(|ports| equal(payload("th", "dport"), range(ports))));
    expressions.push(accept());
    expressions.into()
}

/// The guests' networks, each with the gateway's address and the set of those who may leave the host.
fn networks(frame: &Frame<'_>) -> Vec<(IpNet, IpAddr, &'static str)> {
    let gateway = plan::gateway(frame.range);
    let mut networks = vec![(frame.range.into(), gateway.into(), "@nat")];
    if let Some(prefix) = frame.prefix6 {
        networks.push((prefix.into(), plan::address6(prefix, gateway).into(), "@nat6"));
    }
    networks
}

/// Protocol and port, or range of ports.
fn concatenation(ports: &Ports) -> Value {
    json!({"concat": [ports.protocol.as_str(), range((ports.first, ports.last))]})
}

fn range((first, last): (u16, u16)) -> Value {
    if first == last { json!(first) } else { json!({"range": [first, last]}) }
}
