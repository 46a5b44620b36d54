//! The nftables tables `bridge banger` and `inet banger`, as transactions for `nft -j -f -`.
//!
//! ```text
//!   guest ──TAP──► bridge prerouting     is it who it says it is? (a chain for each guest)
//!                    ├─► bridge forward  to a guest: only if both are in one group
//!                    │     └─► bridge postrouting  as fast as it may get it
//!                    └─► bridge input    to the host, as itself or as the gateway
//!                          ├─► inet input    what of the host is open to guests
//!                          └─► inet forward  whether and where it may leave the host (a chain for each
//!                                            guest that may not go everywhere)
//! ```
//!
//! The tables' frame follows from the configuration, what is in it from the leases. Both are made
//! anew when netd starts, which nftables does atomically: packets meet the old rules or the new
//! ones, and what somebody else did to our tables is gone. After that a lease changes what is its
//! own and no more. However many guests there are, a packet costs one look-up and the few rules of
//! the guest it comes from.
//!
//! Frames between guests are judged in the family `bridge`, without connection tracking: whether
//! the host has bridge-netfilter, and hands such frames to `inet forward` as well, makes no
//! difference. Other tables are never touched; one that drops forwarded packets still does, since
//! an `accept` only ends our own chain.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use banger_core::network::{Destination, Egress, EgressDefault, Policy, Ports, Rule};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::{Value, json};

use crate::plan;

const NAME: &str = "banger";

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

/// What the frame depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<'a> {
    pub bridge: &'a str,
    pub range: Ipv4Net,
    /// `None`: the guests have no IPv6.
    pub prefix6: Option<Ipv6Net>,
    /// Ports of the host that are open to guests.
    pub host: &'a [Ports],
}

/// A guest, as far as rules depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest<'a> {
    pub address: Ipv4Addr,
    pub address6: Option<Ipv6Addr>,
    pub policy: &'a Policy,
    pub ways: &'a [Way],
}

/// What a name was found to stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// In small letters.
    pub name: String,
    pub address: IpAddr,
    /// When that is over, in seconds since 1970.
    pub until: i64,
}

/// Connections to an address may go on for so many seconds after it is over that its name stood for it.
pub const HELD: i64 = 24 * 3600;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Table {
    Bridge,
    Inet,
}

impl Table {
    const ALL: [Table; 2] = [Table::Bridge, Table::Inet];

    fn family(self) -> &'static str {
        match self {
            Table::Bridge => "bridge",
            Table::Inet => "inet",
        }
    }
}

/// Something in the tables, in the order in which they may refer to each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// The value is its type and, if it has them, its flags.
    Set(Table, String),
    /// The value is a list of rules.
    Chain(Table, String),
    /// Table, set, and what it is the element for. The value is the element, or the second in which it goes.
    Element(Table, String, String),
}

/// What the tables hold for the guests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents(BTreeMap<Key, Value>);

impl Contents {
    /// As it is to be at this second.
    pub fn of<'a>(guests: impl IntoIterator<Item = Guest<'a>>, now: i64) -> Self {
        let mut contents = Self::default();
        for guest in guests {
            contents.add(&guest, now);
        }
        contents
    }

    fn add(&mut self, guest: &Guest<'_>, now: i64) {
        let tap = plan::tap(guest.address);
        self.chain(Table::Bridge, &tap, from_guest(guest));
        self.jump(Table::Bridge, "guests", &tap, &tap);
        let limits = limits(guest.policy);
        if !limits.is_empty() {
            let chain = format!("{tap}-limits");
            self.chain(Table::Bridge, &chain, limits);
            self.jump(Table::Bridge, "limited", &tap, &chain);
        }
        if !guest.policy.groups.is_empty() {
            self.groups(&tap, guest.policy);
        }
        if guest.policy.nat {
            self.egress(&tap, guest, now);
        }
    }

    /// Lets a guest leave the host, and has its own chain say where to unless that is everywhere.
    fn egress(&mut self, tap: &str, guest: &Guest<'_>, now: i64) {
        let egress = &guest.policy.egress;
        let is_limited = egress.default != EgressDefault::Open;
        let chain = format!("{tap}-egress");
        if is_limited {
            self.chain(Table::Inet, &chain, egress_rules(tap, egress));
            self.ways(tap, guest, now);
        }
        let addresses = [
            (Some(IpAddr::V4(guest.address)), "nat", "egress"),
            (guest.address6.map(IpAddr::V6), "nat6", "egress6"),
        ];
        for (address, set, map) in addresses {
            let Some(address) = address.as_ref().map(IpAddr::to_string) else { continue };
            self.element(Table::Inet, set, &address, json!(address));
            if is_limited {
                self.jump(Table::Inet, map, &address, &chain);
            }
        }
    }

    /// The sets of addresses that stand for names: those of each rule, and those whose connections go on.
    fn ways(&mut self, tap: &str, guest: &Guest<'_>, now: i64) {
        let egress = &guest.policy.egress;
        let mut timed: BTreeMap<(String, IpAddr), i64> = BTreeMap::new();
        for (number, rule) in egress.allow.iter().enumerate() {
            let Destination::Names(names) = &rule.to else { continue };
            for set in [named_sets(tap, number), held_sets(tap)] {
                for (set, kind) in set.into_iter().zip(["ipv4_addr", "ipv6_addr"]) {
                    let flags = json!({"type": kind, "flags": ["timeout"]});
                    self.0.insert(Key::Set(Table::Inet, set), flags);
                }
            }
            for way in guest.ways.iter().filter(|way| names.contain(&way.name)) {
                let of_family = usize::from(way.address.is_ipv6());
                let [named, held] =
                    [named_sets(tap, number), held_sets(tap)].map(|sets| sets[of_family].clone());
                for (set, until) in [(named, way.until), (held, way.until + HELD)] {
                    let longest = timed.entry((set, way.address)).or_default();
                    *longest = until.max(*longest);
                }
            }
        }
        for ((set, address), until) in timed {
            if until > now {
                self.element(Table::Inet, &set, &address.to_string(), json!(until));
            }
        }
    }

    fn groups(&mut self, tap: &str, policy: &Policy) {
        let mut rules = Vec::new();
        for group in &policy.groups {
            let set = format!("group-{group}");
            self.0.insert(Key::Set(Table::Bridge, set.clone()), json!({"type": "ifname"}));
            self.element(Table::Bridge, &set, tap, json!(tap));
            rules.push(json!([equal(meta("oifname"), json!(format!("@{set}"))), accept()]));
        }
        let chain = format!("{tap}-groups");
        self.chain(Table::Bridge, &chain, rules);
        self.jump(Table::Bridge, "grouped", tap, &chain);
    }

    fn chain(&mut self, table: Table, name: &str, rules: Vec<Value>) {
        self.0.insert(Key::Chain(table, name.to_owned()), rules.into());
    }

    fn jump(&mut self, table: Table, map: &str, key: &str, chain: &str) {
        self.element(table, map, key, json!([key, {"jump": {"target": chain}}]));
    }

    fn element(&mut self, table: Table, set: &str, key: &str, element: Value) {
        self.0.insert(Key::Element(table, set.to_owned(), key.to_owned()), element);
    }
}

/// The names of the sets of addresses that stand for the names in a guest's rule of this number.
fn named_sets(tap: &str, number: usize) -> [String; 2] {
    ["", "-6"].map(|family| format!("{tap}-{number}{family}"))
}

/// Those of addresses to which connections may go on.
fn held_sets(tap: &str) -> [String; 2] {
    ["", "-6"].map(|family| format!("{tap}-held{family}"))
}

/// The transaction that makes the tables anew.
pub fn ruleset(frame: &Frame<'_>, contents: &Contents, now: i64) -> Value {
    let mut commands = Vec::new();
    for table in Table::ALL {
        commands.extend(renewed(table));
    }
    bridge_rules(frame, &mut commands);
    inet_rules(frame, &mut commands);
    additions(contents.0.iter(), now, &mut commands);
    json!({"nftables": commands})
}

/// The transaction between two contents.
pub fn change(before: &Contents, after: &Contents, now: i64) -> Value {
    let (before, after) = (&before.0, &after.0);
    let mut commands = Vec::new();
    let changed = |key: &Key, value: &Value| before.get(key).is_some_and(|before| before != value);
    for (key, value) in after {
        if let Key::Chain(table, name) = key
            && changed(key, value)
        {
            commands.push(json!({"flush": {"chain": named(*table, name)}}));
        }
    }
    // An element that goes at another time is another one.
    let stays = |key: &Key| match key {
        Key::Element(..) => before.get(key) == after.get(key),
        Key::Set(..) | Key::Chain(..) => after.contains_key(key),
    };
    for (key, value) in before.iter().rev().filter(|(key, _)| !stays(key)) {
        match key {
            Key::Set(table, name) => commands.push(json!({"delete": {"set": named(*table, name)}})),
            Key::Chain(table, name) => commands.push(json!({"delete": {"chain": named(*table, name)}})),
            Key::Element(table, set, element) if value.is_i64() => {
                // It may have gone by itself, and deleting what is not there fails.
                let again = json!({"elem": {"val": element, "timeout": 1}});
                commands.push(json!({"add": {"element": elements(*table, set, &[again])}}));
                commands.push(json!({"delete": {"element": elements(*table, set, &[json!(element)])}}));
            }
            Key::Element(table, set, _) => {
                commands
                    .push(json!({"delete": {"element": elements(*table, set, std::slice::from_ref(value))}}));
            }
        }
    }
    additions(after.iter().filter(|(key, value)| before.get(*key) != Some(*value)), now, &mut commands);
    json!({"nftables": commands})
}

/// The transaction that removes the tables, whether they are there or not.
pub fn removal() -> Value {
    let commands = Table::ALL.into_iter().flat_map(|table| {
        let [add, delete, _] = renewed(table);
        [add, delete]
    });
    json!({"nftables": commands.collect::<Vec<_>>()})
}

/// `add` before `delete`, since deleting what is not there fails.
fn renewed(table: Table) -> [Value; 3] {
    let table = || json!({"table": {"family": table.family(), "name": NAME}});
    [json!({"add": table()}), json!({"delete": table()}), json!({"add": table()})]
}

/// What guests send, as it comes from their TAPs.
fn bridge_rules(frame: &Frame<'_>, commands: &mut Vec<Value>) {
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
fn from_guest(guest: &Guest<'_>) -> Vec<Value> {
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
fn limits(policy: &Policy) -> Vec<Value> {
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
fn inet_rules(frame: &Frame<'_>, commands: &mut Vec<Value>) {
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
fn egress_rules(tap: &str, egress: &Egress) -> Vec<Value> {
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

/// Elements of one set in one command, which nft takes much faster than one by one.
fn additions<'a>(contents: impl Iterator<Item = (&'a Key, &'a Value)>, now: i64, commands: &mut Vec<Value>) {
    let mut sets: BTreeMap<(Table, &str), Vec<Value>> = BTreeMap::new();
    for (key, value) in contents {
        match key {
            Key::Set(table, name) => {
                let mut set = named(*table, name);
                for (property, value) in value.as_object().into_iter().flatten() {
                    set[property] = value.clone();
                }
                commands.push(json!({"add": {"set": set}}));
            }
            Key::Chain(table, name) => {
                commands.push(json!({"add": {"chain": named(*table, name)}}));
                let rules = value.as_array().into_iter().flatten();
                commands.extend(rules.map(|expressions| rule(*table, name, expressions)));
            }
            Key::Element(table, set, element) => {
                let timed = |until: i64| json!({"elem": {"val": element, "timeout": (until - now).max(1)}});
                let element = value.as_i64().map_or_else(|| value.clone(), timed);
                sets.entry((*table, set)).or_default().push(element);
            }
        }
    }
    for ((table, set), values) in sets {
        commands.push(json!({"add": {"element": elements(table, set, &values)}}));
    }
}

fn elements(table: Table, set: &str, elements: &[Value]) -> Value {
    json!({"family": table.family(), "table": NAME, "name": set, "elem": elements})
}

fn named(table: Table, name: &str) -> Value {
    json!({"family": table.family(), "table": NAME, "name": name})
}

fn typed(table: Table, name: &str, kind: Value) -> Value {
    let mut set = named(table, name);
    set["type"] = kind;
    set
}

/// Where frames of a TAP, or packets of an address, go on.
fn verdict_map(table: Table, name: &str, kind: &str) -> Value {
    let mut map = typed(table, name, json!(kind));
    map["map"] = json!("verdict");
    json!({"add": {"map": map}})
}

fn chain(table: Table, name: &str, kind: &str, hook: &str, priority: i32) -> Value {
    json!({"add": {"chain": {
        "family": table.family(), "table": NAME, "name": name,
        "type": kind, "hook": hook, "prio": priority, "policy": "accept",
    }}})
}

fn rule(table: Table, chain: &str, expressions: &Value) -> Value {
    json!({"add": {"rule": {"family": table.family(), "table": NAME, "chain": chain, "expr": expressions}}})
}

fn accept() -> Value {
    json!({"accept": null})
}

fn drop() -> Value {
    json!({"drop": null})
}

/// Says so, rather than let a guest wait for a timeout.
fn reject() -> Value {
    json!({"reject": {"type": "icmpx", "expr": "admin-prohibited"}})
}

fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

fn payload(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

fn prefix(network: IpNet) -> Value {
    prefix_of(&network.network().to_string(), network.prefix_len())
}

fn prefix_of(address: &str, length: u8) -> Value {
    json!({"prefix": {"addr": address, "len": length}})
}

fn equal(left: Value, right: Value) -> Value {
    matches(left, "==", right)
}

fn unequal(left: Value, right: Value) -> Value {
    matches(left, "!=", right)
}

fn one_of<T: serde::Serialize>(left: Value, values: &[T]) -> Value {
    equal(left, json!({"set": values}))
}

#[allow(clippy::needless_pass_by_value)]
fn matches(left: Value, operator: &str, right: Value) -> Value {
    json!({"match": {"op": operator, "left": left, "right": right}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const OPEN: &[&str] = &[];

    fn policy(nat: bool, groups: &[&str]) -> Policy {
        Policy { nat, groups: groups.iter().map(ToString::to_string).collect(), ..Policy::default() }
    }

    fn egress(default: &str, allow: &[&str]) -> Policy {
        let mut policy = Policy::default();
        let rules: Vec<String> = allow.iter().map(ToString::to_string).collect();
        policy.egress.change(Some(default), Some(&rules)).expect("valid");
        policy
    }

    fn contents(guests: &[([u8; 4], Policy)]) -> Contents {
        Contents::of(
            guests.iter().map(|(address, policy)| {
                let address = Ipv4Addr::from(*address);
                Guest { address, address6: None, policy, ways: &[] }
            }),
            0,
        )
    }

    fn frame(host: &[Ports]) -> Frame<'_> {
        Frame { bridge: "banger0", range: Config::default().range, prefix6: None, host }
    }

    /// One command a line, so that a change of a rule is a change of a line.
    fn lines(transaction: &Value) -> String {
        let commands = transaction["nftables"].as_array().expect("a list");
        commands.iter().map(|command| format!("{command}\n")).collect()
    }

    #[test]
    fn the_whole_tables() {
        let guests = contents(&[
            ([10, 209, 0, 9], policy(true, &["ci", "web"])),
            ([10, 209, 0, 5], policy(false, &["web"])),
            ([10, 209, 0, 7], policy(true, OPEN)),
        ]);
        let host = ["tcp/8080", "udp/5000-5010"].map(|port| port.parse().expect("a port"));
        insta::assert_snapshot!(lines(&ruleset(&frame(&host), &guests, 0)));
    }

    #[test]
    fn with_ipv6() {
        let prefix: Ipv6Net = "fd12:3456:789a::/64".parse().expect("network");
        let address = Ipv4Addr::new(10, 209, 0, 5);
        let policy = policy(true, OPEN);
        let guest =
            Guest { address, address6: Some(plan::address6(prefix, address)), policy: &policy, ways: &[] };
        let with = ruleset(&Frame { prefix6: Some(prefix), ..frame(&[]) }, &Contents::of([guest], 0), 0);
        let without = ruleset(&frame(&[]), &contents(&[([10, 209, 0, 5], policy.clone())]), 0);
        let without = lines(&without);
        let more = lines(&with)
            .lines()
            .filter(|line| !without.contains(line))
            .fold(String::new(), |all, line| all + line + "\n");
        insta::assert_snapshot!(more);
    }

    #[test]
    fn the_order_of_leases_does_not_matter() {
        let (one, other) = (([10, 209, 0, 9], policy(true, &["a"])), ([10, 209, 0, 5], policy(true, &["a"])));
        assert_eq!(contents(&[one.clone(), other.clone()]), contents(&[other, one]));
    }

    #[test]
    fn a_lease_changes_what_is_its_own() {
        let one = ([10, 209, 0, 5], policy(true, &["web"]));
        let before = contents(std::slice::from_ref(&one));
        let after = contents(&[one, ([10, 209, 0, 6], policy(true, OPEN))]);
        insta::assert_snapshot!(lines(&change(&before, &after, 0)));
        insta::assert_snapshot!(lines(&change(&after, &before, 0)));
    }

    #[test]
    fn another_group_changes_the_rules_of_its_guests() {
        let before = contents(&[([10, 209, 0, 5], policy(true, &["web"]))]);
        let after = contents(&[([10, 209, 0, 5], policy(false, &["ci"]))]);
        insta::assert_snapshot!(lines(&change(&before, &after, 0)));
    }

    #[test]
    fn what_a_guest_may_reach_is_in_a_chain_of_its_own() {
        let rules = [
            "192.0.2.0/24:443/tcp",
            "198.51.100.7",
            "[2001:db8::]:53",
            "0.0.0.0/0:8000-8080/udp",
            "::/0/udp",
        ];
        let prefix: Ipv6Net = "fd12:3456:789a::/64".parse().expect("network");
        let of = |policy: &Policy| {
            let address = Ipv4Addr::new(10, 209, 0, 5);
            let guest = Guest { address, address6: Some(plan::address6(prefix, address)), policy, ways: &[] };
            Contents::of([guest], 0)
        };
        let (open, closed) = (of(&Policy::default()), of(&egress("closed", &rules)));
        insta::assert_snapshot!(lines(&change(&open, &closed, 0)));
        let no_lan = of(&egress("no-lan", &["10.0.0.1:53"]));
        insta::assert_snapshot!(lines(&change(&closed, &no_lan, 0)));
        insta::assert_snapshot!(lines(&change(&no_lan, &open, 0)));
        // Who may not leave is let out by no rule.
        let mut nowhere = egress("closed", &rules);
        nowhere.nat = false;
        assert_eq!(of(&nowhere), of(&policy(false, OPEN)));
    }

    #[test]
    fn names_are_what_they_stand_for_now() {
        let policy = egress("closed", &["192.0.2.9", "*.example.org:443/tcp", "a.example.org"]);
        let way = |name: &str, address: &str, until| Way {
            name: name.into(),
            address: address.parse().expect("an address"),
            until,
        };
        let at = |now: i64, ways: &[Way]| {
            Contents::of(
                [Guest { address: Ipv4Addr::new(10, 209, 0, 5), address6: None, policy: &policy, ways }],
                now,
            )
        };
        let mut ways = vec![
            way("a.example.org", "198.51.100.1", 1300),
            way("b.example.org", "198.51.100.1", 1400),
            way("b.example.org", "2001:db8::1", 1400),
            way("was.example.net", "198.51.100.3", 9999),
        ];
        let (none, some) = (at(1000, &[]), at(1000, &ways));
        insta::assert_snapshot!(lines(&change(&Contents::default(), &none, 1000)));
        insta::assert_snapshot!(lines(&change(&none, &some, 1000)));
        // One is good for longer, the others are over but for the connections there are.
        ways[0].until = 2000;
        insta::assert_snapshot!(lines(&change(&some, &at(1500, &ways), 1500)));
        assert_eq!(at(2000 + HELD, &ways), none);
    }

    #[test]
    fn rates_are_kept_both_ways() {
        let of = |policy: Policy| contents(&[([10, 209, 0, 5], policy)]);
        let limited = Policy { bandwidth: Some(8 << 20), packets: Some(50), ..policy(false, OPEN) };
        insta::assert_snapshot!(lines(&change(&of(policy(false, OPEN)), &of(limited), 0)));
    }

    #[test]
    fn removal_works_without_tables() {
        insta::assert_snapshot!(lines(&removal()), @r#"
        {"add":{"table":{"family":"bridge","name":"banger"}}}
        {"delete":{"table":{"family":"bridge","name":"banger"}}}
        {"add":{"table":{"family":"inet","name":"banger"}}}
        {"delete":{"table":{"family":"inet","name":"banger"}}}
        "#);
    }
}
