//! `org.banger.Network1.Lease`.

use std::sync::Arc;

use tokio::sync::watch;
use zbus::interface;

use crate::config::Config;
use crate::plan;
use crate::store::Row;

#[derive(Clone)]
pub struct LeaseObject {
    pub config: Arc<Config>,
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
        self.config.range.prefix_len()
    }

    /// The host's address on the bridge.
    #[zbus(property(emits_changed_signal = "const"))]
    fn gateway(&self) -> String {
        plan::gateway(self.config.range).to_string()
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
}
