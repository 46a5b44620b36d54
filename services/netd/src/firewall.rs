//! The nftables table `inet banger`, as one transaction for `nft -j -f -`.
//!
//! The table is made anew each time, which nftables does atomically: packets meet the old rules or
//! the new ones, and what somebody else did to our table is gone. Other tables are never touched;
//! one that drops forwarded packets still does, since an `accept` only ends our own chain.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde_json::{Value, json};

const FAMILY: &str = "inet";
const TABLE: &str = "banger";

/// What the rules depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firewall<'a> {
    pub bridge: &'a str,
    pub range: Ipv4Net,
    /// Guests that may leave the host.
    pub nat: Vec<Ipv4Addr>,
}

/// The transaction that replaces the whole table.
pub fn ruleset(firewall: &Firewall<'_>) -> Value {
    let mut set = json!({"family": FAMILY, "table": TABLE, "name": "nat", "type": "ipv4_addr"});
    let mut nat = firewall.nat.clone();
    nat.sort_unstable();
    if !nat.is_empty() {
        set["elem"] = nat.iter().map(Ipv4Addr::to_string).collect();
    }
    let bridge = firewall.bridge;
    let from_guest = || interface("iifname", "==", bridge);
    let to_guest = || interface("oifname", "==", bridge);
    let not_theirs = || {
        let network = firewall.range;
        matches(
            json!({"payload": {"protocol": "ip", "field": "saddr"}}),
            "!=",
            json!({"prefix": {"addr": network.network().to_string(), "len": network.prefix_len()}}),
        )
    };
    let may_leave = || matches(json!({"payload": {"protocol": "ip", "field": "saddr"}}), "==", json!("@nat"));
    let answer = || matches(json!({"ct": {"key": "state"}}), "in", json!(["established", "related"]));
    let accept = || json!({"accept": null});
    let drop = || json!({"drop": null});

    let mut commands = replace_table();
    commands.extend([
        json!({"add": {"set": set}}),
        chain("input", "filter", "input", 0),
        // Guests speak to the host under their own addresses.
        rule("input", [from_guest(), not_theirs(), drop()]),
        chain("forward", "filter", "forward", 0),
        rule("forward", [from_guest(), not_theirs(), drop()]),
        rule("forward", [from_guest(), to_guest(), accept()]),
        rule("forward", [from_guest(), may_leave(), accept()]),
        // Say so, rather than let a guest wait for a timeout.
        rule("forward", [from_guest(), json!({"reject": {"type": "icmpx", "expr": "admin-prohibited"}})]),
        rule("forward", [to_guest(), answer(), accept()]),
        rule("forward", [to_guest(), drop()]),
        chain("postrouting", "nat", "postrouting", 100),
        rule("postrouting", [may_leave(), interface("oifname", "!=", bridge), json!({"masquerade": null})]),
    ]);
    json!({"nftables": commands})
}

/// The transaction that removes the table, whether it is there or not.
pub fn removal() -> Value {
    let mut commands = replace_table();
    commands.pop();
    json!({"nftables": commands})
}

/// `add` before `delete`, since deleting what is not there fails.
fn replace_table() -> Vec<Value> {
    let table = || json!({"table": {"family": FAMILY, "name": TABLE}});
    vec![json!({"add": table()}), json!({"delete": table()}), json!({"add": table()})]
}

fn chain(name: &str, kind: &str, hook: &str, priority: i32) -> Value {
    json!({"add": {"chain": {
        "family": FAMILY, "table": TABLE, "name": name,
        "type": kind, "hook": hook, "prio": priority, "policy": "accept",
    }}})
}

fn rule<const N: usize>(chain: &str, expressions: [Value; N]) -> Value {
    let expressions: Vec<Value> = expressions.into();
    json!({"add": {"rule": {"family": FAMILY, "table": TABLE, "chain": chain, "expr": expressions}}})
}

fn interface(key: &str, operator: &str, name: &str) -> Value {
    matches(json!({"meta": {"key": key}}), operator, json!(name))
}

#[allow(clippy::needless_pass_by_value)]
fn matches(left: Value, operator: &str, right: Value) -> Value {
    json!({"match": {"op": operator, "left": left, "right": right}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firewall(nat: &[[u8; 4]]) -> Firewall<'static> {
        Firewall {
            bridge: "banger0",
            range: "10.209.0.0/16".parse().expect("network"),
            nat: nat.iter().copied().map(Ipv4Addr::from).collect(),
        }
    }

    /// One command a line, so that a change of a rule is a change of a line.
    fn lines(transaction: &Value) -> String {
        let commands = transaction["nftables"].as_array().expect("a list");
        commands.iter().map(|command| format!("{command}\n")).collect()
    }

    #[test]
    fn the_whole_table() {
        insta::assert_snapshot!(lines(&ruleset(&firewall(&[[10, 209, 0, 9], [10, 209, 0, 5]]))));
    }

    #[test]
    fn a_table_without_guests_has_an_empty_set() {
        let text = lines(&ruleset(&firewall(&[])));
        assert!(!text.contains("elem"), "{text}");
    }

    #[test]
    fn the_order_of_leases_does_not_matter() {
        let (one, other) = ([10, 209, 0, 9], [10, 209, 0, 5]);
        assert_eq!(ruleset(&firewall(&[one, other])), ruleset(&firewall(&[other, one])));
    }

    #[test]
    fn removal_works_without_a_table() {
        insta::assert_snapshot!(lines(&removal()), @r#"
        {"add":{"table":{"family":"inet","name":"banger"}}}
        {"delete":{"table":{"family":"inet","name":"banger"}}}
        "#);
    }
}
