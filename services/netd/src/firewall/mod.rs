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
//!
//! - [`rules`]: what is judged, in the frame and for each guest
//! - [`contents`]: what there is for guests, and from one content to the next
//! - [`nft`]: nftables in JSON

mod contents;
mod nft;
mod rules;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use banger_core::network::{Policy, Ports};
use ipnet::{Ipv4Net, Ipv6Net};
use serde_json::{Value, json};

pub use contents::{Contents, change};
use nft::{Table, renewed};

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

/// The transaction that makes the tables anew.
pub fn ruleset(frame: &Frame<'_>, contents: &Contents, now: i64) -> Value {
    let mut commands = Vec::new();
    for table in Table::ALL {
        commands.extend(renewed(table));
    }
    rules::bridge(frame, &mut commands);
    rules::inet(frame, &mut commands);
    contents.add_all(now, &mut commands);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::plan;

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
