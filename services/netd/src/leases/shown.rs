//! What of the leases is seen on the bus and by their names.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{MutexGuard, PoisonError, RwLockWriteGuard};

use banger_api::NETD;
use banger_api::network::{LEASE, MANAGER, lease_path};
use banger_core::network::{EgressDefault, Policy};
use tokio::sync::watch;
use zbus::{OwnedVariant, Str, Variant};

use super::Leases;
use crate::bus::lease::LeaseObject;
use crate::dns::zone::{Outside, Zone};
use crate::plan;
use crate::store::Row;

impl Leases {
    pub(super) fn objects(&self) -> MutexGuard<'_, BTreeMap<String, watch::Sender<Row>>> {
        self.0.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn names(&self) -> RwLockWriteGuard<'_, Zone> {
        self.0.names.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a lease on the bus and by its name, or what changed of it.
    pub(super) async fn publish(&self, row: Row) {
        let address6 = self.0.prefix6.map(|prefix| plan::address6(prefix, row.address).into());
        let addresses: Vec<IpAddr> = [row.address.into()].into_iter().chain(address6).collect();
        self.names().put(&row.holder, &addresses, &outside(&row.policy));
        let path = lease_path(&row.holder);
        let known = self.objects().get(&row.holder).map(|object| object.send_replace(row.clone()));
        if let Some(before) = known {
            let mut changed = Vec::new();
            if before.uid != row.uid {
                changed.push(("Uid", row.uid.into()));
            }
            if before.policy.nat != row.policy.nat {
                changed.push(("Nat", row.policy.nat.into()));
            }
            if before.policy.groups != row.policy.groups {
                changed.push(("Groups", texts(&row.policy.groups)));
            }
            if before.policy.egress.default != row.policy.egress.default {
                changed.push(("Egress", Str::from(row.policy.egress.default.as_str()).into()));
            }
            if before.policy.egress.allow != row.policy.egress.allow {
                changed.push(("EgressAllow", texts(&row.policy.egress.shown_rules())));
            }
            if before.policy.bandwidth != row.policy.bandwidth {
                changed.push(("Bandwidth", row.policy.bandwidth.unwrap_or(0).into()));
            }
            if before.policy.packets != row.policy.packets {
                changed.push(("Packets", row.policy.packets.unwrap_or(0).into()));
            }
            if !changed.is_empty() {
                self.0.hub.changed(&path, LEASE, changed);
            }
            return;
        }
        let (sender, receiver) = watch::channel(row.clone());
        self.objects().insert(row.holder.clone(), sender);
        self.0.hub.add(&path, LeaseObject { leases: self.clone(), row: receiver }).await;
        self.0.hub.emit(NETD.path, MANAGER, "LeaseNew", (row.holder, path.clone()));
    }

    pub(super) async fn unpublish(&self, holder: &str) {
        self.names().remove(holder);
        let path = lease_path(holder);
        self.objects().remove(holder);
        self.0.hub.emit(NETD.path, MANAGER, "LeaseRemoved", (holder.to_owned(), path.clone()));
        self.0.hub.remove(&path).await;
    }
}

/// Which names a guest may ask for: that is a way out, too.
fn outside(policy: &Policy) -> Outside {
    if !policy.nat {
        return Outside::NOTHING;
    }
    let all = policy.egress.default != EgressDefault::Closed;
    Outside { all, names: policy.egress.names().cloned().collect() }
}

fn texts<'a>(texts: impl IntoIterator<Item = &'a String>) -> OwnedVariant {
    let texts: Vec<&str> = texts.into_iter().map(String::as_str).collect();
    OwnedVariant::try_from(Variant::from(texts)).expect("no file descriptors in it")
}
