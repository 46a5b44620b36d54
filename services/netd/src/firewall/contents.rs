//! What the tables hold for the guests, and how they get from one such content to another.

use std::collections::BTreeMap;
use std::net::IpAddr;

use banger_core::network::{Destination, EgressDefault, Policy};
use serde_json::{Value, json};

use super::nft::{Table, accept, elements, equal, meta, named, rule};
use super::{Guest, HELD, rules};
use crate::plan;

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

    /// What makes all of it, where there is nothing yet.
    pub(super) fn add_all(&self, now: i64, commands: &mut Vec<Value>) {
        additions(self.0.iter(), now, commands);
    }

    fn add(&mut self, guest: &Guest<'_>, now: i64) {
        let tap = plan::tap(guest.address);
        self.chain(Table::Bridge, &tap, rules::from_guest(guest));
        self.jump(Table::Bridge, "guests", &tap, &tap);
        let limits = rules::limits(guest.policy);
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
            self.chain(Table::Inet, &chain, rules::egress(tap, egress));
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
pub(super) fn named_sets(tap: &str, number: usize) -> [String; 2] {
    ["", "-6"].map(|family| format!("{tap}-{number}{family}"))
}

/// Those of addresses to which connections may go on.
pub(super) fn held_sets(tap: &str) -> [String; 2] {
    ["", "-6"].map(|family| format!("{tap}-held{family}"))
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
