//! What follows from the configuration and an address: names, and whether they can be used.

use std::net::{Ipv4Addr, Ipv6Addr};

use banger_api::{ErrorKind, Result};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config;

/// The TAPs of banger are named by this and their address, so that one address never has two.
pub const TAP_PREFIX: &str = "bg-";

const ETHERNET_MTU: u32 = 1500;
const IPV6_MTU: u32 = 1280;

/// A route of the host, as far as it can be in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub destination: IpNet,
    /// Index of the interface it leads through.
    pub interface: Option<u32>,
}

/// The host's address on the bridge.
pub fn gateway(range: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(range.network()) + 1)
}

/// The IPv6 address that goes with an IPv4 address, the host's on the bridge or a guest's: the one
/// in the low bits of the other.
pub fn address6(prefix: Ipv6Net, address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(prefix.network()) | u128::from(u32::from(address)))
}

/// The link-local address that Linux makes of the MAC address (RFC 4291, appendix A).
pub fn link_local(address: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac(address);
    let interface = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from(0xfe80 << 112 | u128::from(interface))
}

/// Whether a guest may have this address.
///
/// # Errors
/// `InvalidArgs`.
pub fn check_address(range: Ipv4Net, address: Ipv4Addr) -> Result<()> {
    let reserved = [range.network(), gateway(range), range.broadcast()];
    if range.contains(&address) && !reserved.contains(&address) {
        return Ok(());
    }
    Err(ErrorKind::InvalidArgs.error(format!(
        "a guest cannot have the address {address}: it must be in {range} and be neither the network's own, \
         the gateway's nor the broadcast address"
    )))
}

/// Whether somebody may hold a lease under this name.
///
/// # Errors
/// `InvalidArgs`.
pub fn check_holder(holder: &str) -> Result<()> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=64).contains(&holder.len()) && holder.chars().all(valid) {
        return Ok(());
    }
    Err(ErrorKind::InvalidArgs
        .error(format!("holder {holder:?} must have 1 to 64 letters, digits, '-', '_' or '.'")))
}

/// Locally administered, and unique in the network because the address is.
pub fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0xba, a, b, c, d]
}

pub fn mac_text(address: Ipv4Addr) -> String {
    mac(address).map(|byte| format!("{byte:02x}")).join(":")
}

pub fn tap(address: Ipv4Addr) -> String {
    format!("{TAP_PREFIX}{:08x}", u32::from(address))
}

/// The name of a TAP that waits for a lease.
pub fn spare_tap(number: u32) -> String {
    format!("{TAP_PREFIX}spare-{number}")
}

/// The first route that shares addresses with the range and does not lead through our own bridge.
/// Default routes do not count.
pub fn conflict(range: Ipv4Net, routes: &[Route], bridge: Option<u32>) -> Option<&Route> {
    let range = IpNet::V4(range);
    routes.iter().find(|route| {
        let overlaps = route.destination.contains(&range) || range.contains(&route.destination);
        overlaps && route.destination.prefix_len() > 0 && (bridge.is_none() || route.interface != bridge)
    })
}

/// What is wrong with such a route, and what to do about it.
pub fn conflict_message(range: Ipv4Net, route: &Route, interface: Option<&str>) -> (String, String) {
    let through = interface.map(|name| format!(" of {name}")).unwrap_or_default();
    (
        format!("banger's address range {range} overlaps the host's route to {}{through}", route.destination),
        format!("set another range in {}", config::FILE),
    )
}

/// Indexes of the interfaces through which guests leave the host: those of default routes or,
/// where there is none, of any route. Never our own bridge.
pub fn uplinks(routes: &[Route], bridge: Option<u32>) -> Vec<u32> {
    let is_ours = |route: &Route| matches!(route.destination, IpNet::V4(_));
    let default = through(routes, bridge, |route| is_ours(route) && is_default(route));
    if default.is_empty() { through(routes, bridge, is_ours) } else { default }
}

/// The same for IPv6, where every interface has some route: those of default routes.
pub fn uplinks6(routes: &[Route], bridge: Option<u32>) -> Vec<u32> {
    through(routes, bridge, |route| matches!(route.destination, IpNet::V6(_)) && is_default(route))
}

/// The largest packet for guests, by those of the links through which they leave the host: what fits
/// through all of them, between what IPv6 asks for and Ethernet's usual.
pub fn mtu(uplinks: impl Iterator<Item = u32>) -> u32 {
    uplinks.min().unwrap_or(ETHERNET_MTU).clamp(IPV6_MTU, ETHERNET_MTU)
}

fn is_default(route: &Route) -> bool {
    route.destination.prefix_len() == 0
}

fn through(routes: &[Route], bridge: Option<u32>, wanted: impl Fn(&Route) -> bool) -> Vec<u32> {
    let mut indexes: Vec<u32> = routes
        .iter()
        .filter(|route| wanted(route))
        .filter_map(|route| route.interface)
        .filter(|index| Some(*index) != bridge)
        .collect();
    indexes.sort_unstable();
    indexes.dedup();
    indexes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().expect("network")
    }

    fn route(destination: &str, interface: u32) -> Route {
        Route { destination: destination.parse().expect("network"), interface: Some(interface) }
    }

    #[test]
    fn names_follow_from_the_address() {
        let address = "10.209.1.16".parse().expect("address");
        assert_eq!(tap(address), "bg-0ad10110");
        assert_eq!(mac_text(address), "02:ba:0a:d1:01:10");
        assert!(tap(Ipv4Addr::BROADCAST).len() <= 15);
        let prefix = "fd12:3456:789a::/64".parse().expect("network");
        assert_eq!(address6(prefix, address).to_string(), "fd12:3456:789a::ad1:110");
        assert_eq!(link_local(address).to_string(), "fe80::ba:aff:fed1:110");
    }

    #[test]
    fn reserved_and_foreign_addresses_are_refused() {
        let range = net("10.209.0.0/30");
        let check = |text: &str| check_address(range, text.parse().expect("address")).is_ok();
        assert!(!check("10.209.0.0"));
        assert!(!check("10.209.0.1"));
        assert!(check("10.209.0.2"));
        assert!(!check("10.209.0.3"));
        assert!(!check("10.209.0.4"));
    }

    #[test]
    fn holders_are_plain_names() {
        assert!(check_holder("web-1.test_2").is_ok());
        for bad in ["", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(check_holder(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn wider_and_narrower_routes_conflict_but_not_ours_or_the_default() {
        let range = net("10.209.0.0/16");
        assert_eq!(conflict(range, &[route("0.0.0.0/0", 2), route("10.208.0.0/16", 2)], Some(7)), None);
        assert_eq!(conflict(range, &[route("10.209.0.0/16", 7)], Some(7)), None);
        for destination in ["10.0.0.0/8", "10.209.3.0/24", "10.209.0.0/16"] {
            let routes = [route(destination, 2)];
            assert_eq!(conflict(range, &routes, Some(7)), Some(&routes[0]));
        }
        let blackhole = [Route { interface: None, ..route("10.209.0.0/16", 0) }];
        assert!(conflict(range, &blackhole, None).is_some());
    }

    #[test]
    fn packets_fit_through_all_uplinks() {
        assert_eq!(mtu([].into_iter()), 1500);
        assert_eq!(mtu([1500, 1420].into_iter()), 1420);
        assert_eq!((mtu([9000].into_iter()), mtu([576].into_iter())), (1500, 1280));
    }

    #[test]
    fn uplinks_are_those_of_default_routes_else_all() {
        let routes = [route("0.0.0.0/0", 2), route("192.168.1.0/24", 3), route("10.209.0.0/16", 7)];
        assert_eq!(uplinks(&routes, Some(7)), [2]);
        assert_eq!(uplinks(&routes[1..], Some(7)), [3]);
        let routes = [route("fe80::/64", 2), route("::/0", 4), route("0.0.0.0/0", 3)];
        assert_eq!((uplinks(&routes, None), uplinks6(&routes, None)), (vec![3], vec![4]));
        assert!(uplinks6(&routes[..1], None).is_empty());
    }
}
