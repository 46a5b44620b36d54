//! Guest addresses and what follows from them.
//!
//! A VM's MAC address and vsock context id are functions of its address, so that a VM has one
//! identity to reserve, not three.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// The host's address in a range: the first one.
pub fn gateway(range: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(range.network()).saturating_add(1))
}

/// Whether a guest may have this address: in the range, and neither its network, gateway nor
/// broadcast address.
pub fn is_assignable(range: Ipv4Net, address: Ipv4Addr) -> bool {
    range.contains(&address)
        && address != range.network()
        && address != range.broadcast()
        && address != gateway(range)
}

/// The lowest free guest address, or `None` if all are taken.
pub fn next_free(range: Ipv4Net, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    range.hosts().find(|address| is_assignable(range, *address) && !taken.contains(address))
}

/// How many guests a range has room for.
pub fn capacity(range: Ipv4Net) -> u32 {
    let size = 1u64 << (32 - u32::from(range.prefix_len()));
    u32::try_from(size.saturating_sub(3)).unwrap_or(u32::MAX)
}

/// The MAC address of the guest with this address: locally administered, unicast.
pub fn mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:ba:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// The vsock context id of the guest with this address. Context ids 0 to 2 are reserved, and so
/// are addresses as small as these.
pub fn context_id(address: Ipv4Addr) -> u32 {
    u32::from(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(range: &str) -> Ipv4Net {
        range.parse().expect("valid")
    }

    #[test]
    fn skips_what_is_not_a_guests() {
        let range = net("10.1.2.0/29");
        let mut taken = BTreeSet::new();
        let mut given = Vec::new();
        while let Some(address) = next_free(range, &taken) {
            taken.insert(address);
            given.push(address.to_string());
        }
        assert_eq!(given, ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]);
        assert_eq!(capacity(range), 5);
    }

    #[test]
    fn macs_are_local_and_unicast() {
        assert_eq!(mac(Ipv4Addr::new(10, 209, 0, 2)), "02:ba:0a:d1:00:02");
    }

    proptest! {
        #[test]
        fn never_gives_an_address_twice(prefix in 24u8..=30, taken in proptest::collection::btree_set(0u8..=255, 0..64)) {
            let range = Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), prefix).expect("valid");
            let taken: BTreeSet<_> = taken.into_iter().map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
            if let Some(address) = next_free(range, &taken) {
                prop_assert!(!taken.contains(&address));
                prop_assert!(is_assignable(range, address));
            }
        }
    }
}
