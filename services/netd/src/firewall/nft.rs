//! nftables in JSON, as in libnftables-json(5).

use ipnet::IpNet;
use serde_json::{Value, json};

const NAME: &str = "banger";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Table {
    Bridge,
    Inet,
}

impl Table {
    pub const ALL: [Table; 2] = [Table::Bridge, Table::Inet];

    pub fn family(self) -> &'static str {
        match self {
            Table::Bridge => "bridge",
            Table::Inet => "inet",
        }
    }
}

/// `add` before `delete`, since deleting what is not there fails.
pub(super) fn renewed(table: Table) -> [Value; 3] {
    let table = || json!({"table": {"family": table.family(), "name": NAME}});
    [json!({"add": table()}), json!({"delete": table()}), json!({"add": table()})]
}

pub(super) fn elements(table: Table, set: &str, elements: &[Value]) -> Value {
    json!({"family": table.family(), "table": NAME, "name": set, "elem": elements})
}

pub(super) fn named(table: Table, name: &str) -> Value {
    json!({"family": table.family(), "table": NAME, "name": name})
}

pub(super) fn typed(table: Table, name: &str, kind: Value) -> Value {
    let mut set = named(table, name);
    set["type"] = kind;
    set
}

/// Where frames of a TAP, or packets of an address, go on.
pub(super) fn verdict_map(table: Table, name: &str, kind: &str) -> Value {
    let mut map = typed(table, name, json!(kind));
    map["map"] = json!("verdict");
    json!({"add": {"map": map}})
}

pub(super) fn chain(table: Table, name: &str, kind: &str, hook: &str, priority: i32) -> Value {
    json!({"add": {"chain": {
        "family": table.family(), "table": NAME, "name": name,
        "type": kind, "hook": hook, "prio": priority, "policy": "accept",
    }}})
}

pub(super) fn rule(table: Table, chain: &str, expressions: &Value) -> Value {
    json!({"add": {"rule": {"family": table.family(), "table": NAME, "chain": chain, "expr": expressions}}})
}

pub(super) fn accept() -> Value {
    json!({"accept": null})
}

pub(super) fn drop() -> Value {
    json!({"drop": null})
}

/// Says so, rather than let a guest wait for a timeout.
pub(super) fn reject() -> Value {
    json!({"reject": {"type": "icmpx", "expr": "admin-prohibited"}})
}

pub(super) fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

pub(super) fn payload(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

pub(super) fn prefix(network: IpNet) -> Value {
    prefix_of(&network.network().to_string(), network.prefix_len())
}

pub(super) fn prefix_of(address: &str, length: u8) -> Value {
    json!({"prefix": {"addr": address, "len": length}})
}

pub(super) fn equal(left: Value, right: Value) -> Value {
    matches(left, "==", right)
}

pub(super) fn unequal(left: Value, right: Value) -> Value {
    matches(left, "!=", right)
}

pub(super) fn one_of<T: serde::Serialize>(left: Value, values: &[T]) -> Value {
    equal(left, json!({"set": values}))
}

#[allow(clippy::needless_pass_by_value)]
pub(super) fn matches(left: Value, operator: &str, right: Value) -> Value {
    json!({"match": {"op": operator, "left": left, "right": right}})
}
