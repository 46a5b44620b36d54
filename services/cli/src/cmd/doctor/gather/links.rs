//! The guests' network.

use std::path::Path;

use banger_api::Result;
use zbus::fdo::DBusProxy;
use zbus::{Connection, OwnedObjectPath, proxy};

use super::super::facts::Network;
use crate::Context;

#[proxy(
    interface = "org.freedesktop.NetworkManager",
    default_service = "org.freedesktop.NetworkManager",
    default_path = "/org/freedesktop/NetworkManager"
)]
trait NetworkManager {
    fn get_device_by_ip_iface(&self, interface: &str) -> zbus::Result<OwnedObjectPath>;
}

#[proxy(
    interface = "org.freedesktop.NetworkManager.Device",
    default_service = "org.freedesktop.NetworkManager",
    assume_defaults = false
)]
trait Device {
    #[zbus(property(emits_changed_signal = "false"))]
    fn managed(&self) -> zbus::Result<bool>;
}

#[proxy(
    interface = "org.freedesktop.network1.Manager",
    default_service = "org.freedesktop.network1",
    default_path = "/org/freedesktop/network1"
)]
trait Networkd {
    fn get_link_by_name(&self, name: &str) -> zbus::Result<(i32, OwnedObjectPath)>;
}

#[proxy(
    interface = "org.freedesktop.network1.Link",
    default_service = "org.freedesktop.network1",
    assume_defaults = false
)]
trait Link {
    #[zbus(property(emits_changed_signal = "false"))]
    fn administrative_state(&self) -> zbus::Result<String>;
}

pub async fn network(context: &Context) -> Result<Network> {
    let netd = context.bus.network().await?;
    let bridge = netd.bridge().await?;
    let uplinks = netd.uplinks().await?;
    let has_bridge = Path::new("/sys/class/net").join(&bridge).exists();
    Ok(Network {
        has_bridge,
        leases: netd.list_leases().await?.len(),
        forwarding: std::iter::once(&bridge).chain(&uplinks).filter_map(|link| forwarding(link)).collect(),
        warnings: netd.warnings().await?,
        resolved: netd.resolved_state().await?,
        problems: netd.dns_problems().await?,
        managers: if has_bridge { managers(context, &bridge).await } else { Vec::new() },
        bridge,
    })
}

/// Whether packets that come in by a link are routed on.
fn forwarding(link: &str) -> Option<(String, bool)> {
    let set = std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{link}/forwarding")).ok()?;
    Some((link.to_owned(), set.trim() == "1"))
}

/// Those that run, without starting any, and whether they take the bridge for theirs.
async fn managers(context: &Context, bridge: &str) -> Vec<(&'static str, bool)> {
    let Ok(bus) = context.bus.system().await else { return Vec::new() };
    let mut managers = Vec::new();
    if runs(&bus, "org.freedesktop.NetworkManager").await {
        managers.push(("NetworkManager", network_manager_takes(&bus, bridge).await.unwrap_or(false)));
    }
    if runs(&bus, "org.freedesktop.network1").await {
        managers.push(("systemd-networkd", networkd_takes(&bus, bridge).await.unwrap_or(false)));
    }
    managers
}

async fn runs(bus: &Connection, name: &'static str) -> bool {
    let has_owner = async { DBusProxy::new(bus).await?.name_has_owner(name.try_into()?).await };
    has_owner.await.unwrap_or(false)
}

async fn network_manager_takes(bus: &Connection, bridge: &str) -> zbus::Result<bool> {
    let path = NetworkManagerProxy::new(bus).await?.get_device_by_ip_iface(bridge).await?;
    DeviceProxy::builder(bus).path(path).build().await?.managed().await
}

async fn networkd_takes(bus: &Connection, bridge: &str) -> zbus::Result<bool> {
    let (_, path) = NetworkdProxy::new(bus).await?.get_link_by_name(bridge).await?;
    let state = LinkProxy::builder(bus).path(path).build().await?.administrative_state().await?;
    Ok(state != "unmanaged")
}
