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
    fn a_range_holds_as_many_guests_as_it_says() {
        for prefix in 22..=30 {
            let range = Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), prefix).expect("valid");
            let mut taken = BTreeSet::new();
            while let Some(address) = next_free(range, &taken) {
                assert!(taken.insert(address), "{address} was taken");
            }
            assert_eq!(taken.len(), capacity(range) as usize);
        }
    }

    #[test]
    fn macs_are_local_and_unicast() {
        assert_eq!(mac(Ipv4Addr::new(10, 209, 0, 2)), "02:ba:0a:d1:00:02");
    }

    proptest! {
        /// The lowest address that is a guest's and free; none only if there is none.
        #[test]
        fn the_lowest_free_address_is_next(
            prefix in 20u8..=32,
            taken in proptest::collection::btree_set(any::<u16>().prop_map(|low| low % 64), 0..64),
        ) {
            let range = Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), prefix).expect("valid");
            let base = u32::from(range.network());
            let taken: BTreeSet<_> = taken.into_iter().map(|low| Ipv4Addr::from(base + u32::from(low))).collect();
            let free = |address: &Ipv4Addr| is_assignable(range, *address) && !taken.contains(address);
            let lowest = (base..=u32::from(range.broadcast())).map(Ipv4Addr::from).find(free);
            prop_assert_eq!(next_free(range, &taken), lowest);
        }

        #[test]
        fn one_address_one_identity(one: u32, other: u32) {
            let (one, other) = (Ipv4Addr::from(one), Ipv4Addr::from(other));
            prop_assert_eq!(mac(one) == mac(other), one == other);
            prop_assert_eq!(context_id(one) == context_id(other), one == other);
        }
    }
}
