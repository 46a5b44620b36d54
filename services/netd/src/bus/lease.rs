//! `org.banger.Network1.Lease`.

use tokio::sync::watch;
use zbus::interface;

use crate::leases::Leases;
use crate::plan;
use crate::store::Row;

#[derive(Clone)]
pub struct LeaseObject {
    pub leases: Leases,
    pub row: watch::Receiver<Row>,
}

#[interface(name = "org.banger.Network1.Lease")]
impl LeaseObject {
    #[zbus(property(emits_changed_signal = "const"))]
    fn holder(&self) -> String {
        self.row.borrow().holder.clone()
    }

    /// The guest's IPv4 address.
    #[zbus(property(emits_changed_signal = "const"))]
    fn address(&self) -> String {
        self.row.borrow().address.to_string()
    }

    /// Length of the network's prefix.
    #[zbus(property(emits_changed_signal = "const"))]
    fn prefix(&self) -> u8 {
        self.leases.config().range.prefix_len()
    }

    /// The host's address on the bridge.
    #[zbus(property(emits_changed_signal = "const"))]
    fn gateway(&self) -> String {
        plan::gateway(self.leases.config().range).to_string()
    }

    /// The guest's IPv6 address, empty without.
    #[zbus(property(emits_changed_signal = "const"))]
    fn address6(&self) -> String {
        let address = self.row.borrow().address;
        self.leases.ipv6().map_or_else(String::new, |(prefix, _)| plan::address6(prefix, address).to_string())
    }

    /// Length of its network's prefix, 0 without.
    #[zbus(property(emits_changed_signal = "const"))]
    fn prefix6(&self) -> u8 {
        self.leases.ipv6().map_or(0, |(prefix, _)| prefix.prefix_len())
    }

    /// The host's IPv6 address on the bridge, empty without.
    #[zbus(property(emits_changed_signal = "const"))]
    fn gateway6(&self) -> String {
        self.leases.ipv6().map_or_else(String::new, |(_, gateway)| gateway.to_string())
    }

    /// The guest's MAC address.
    #[zbus(property(emits_changed_signal = "const"))]
    fn mac(&self) -> String {
        plan::mac_text(self.row.borrow().address)
    }

    /// The TAP device.
    #[zbus(property(emits_changed_signal = "const"))]
    fn tap(&self) -> String {
        plan::tap(self.row.borrow().address)
    }

    /// The user who may open the TAP.
    #[zbus(property)]
    fn uid(&self) -> u32 {
        self.row.borrow().uid
    }

    /// Whether the guest may leave the host.
    #[zbus(property)]
    fn nat(&self) -> bool {
        self.row.borrow().policy.nat
    }

    /// It reaches the guests that share one of these groups with it.
    #[zbus(property)]
    fn groups(&self) -> Vec<String> {
        self.row.borrow().policy.groups.iter().cloned().collect()
    }

    /// Where the guest gets beyond the host, with Nat: open (everywhere), closed (nowhere) or no-lan (not
    /// to addresses that are not of the internet).
    #[zbus(property)]
    fn egress(&self) -> &'static str {
        self.row.borrow().policy.egress.default.as_str()
    }

    /// What it reaches besides.
    #[zbus(property)]
    fn egress_allow(&self) -> Vec<String> {
        self.row.borrow().policy.egress.shown_rules()
    }

    /// The most bytes a second in each direction; 0 is unlimited.
    #[zbus(property)]
    fn bandwidth(&self) -> u64 {
        self.row.borrow().policy.bandwidth.unwrap_or(0)
    }

    /// The most packets a second in each direction; 0 is unlimited.
    #[zbus(property)]
    fn packets(&self) -> u64 {
        self.row.borrow().policy.packets.unwrap_or(0)
    }
}
