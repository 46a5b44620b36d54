//! The bridge, and what of the host has to be set for the guests behind it.

use std::path::Path;
use std::time::Instant;

use banger_api::network::Warning;
use banger_api::{Error, ErrorKind, Result};
use ipnet::IpNet;

use super::{BRIDGE_ALIAS, FRESH, Kernel, Leases};
use crate::config::{self, Config};
use crate::effects::netlink::Link;
use crate::effects::{nft, sysctl};
use crate::{plan, store, warnings};

impl Leases {
    /// The bridge: there, with its addresses, up, and routed.
    pub(super) async fn ensure_bridge(&self, kernel: &mut Kernel) -> Result<Link> {
        if let Some((bridge, when)) = &kernel.bridge
            && when.elapsed() < FRESH
        {
            return Ok(bridge.clone());
        }
        let Config { bridge: name, range, .. } = self.config();
        let gateway = plan::gateway(*range);
        let mut wanted = vec![IpNet::new(gateway.into(), range.prefix_len()).expect("a valid prefix")];
        if let Some((prefix, gateway)) = self.ipv6() {
            wanted.push(IpNet::new(gateway.into(), prefix.prefix_len()).expect("a valid prefix"));
        }
        let netlink = &self.0.netlink;

        let found = netlink.link(name).await?;
        if found.as_ref().is_some_and(|link| !link.is_bridge) {
            return Err(ErrorKind::NetworkConflict.error(format!(
                "the host has an interface {name} that is no bridge; set another bridge in {}",
                config::FILE
            )));
        }
        let addresses = match &found {
            Some(link) => netlink.addresses(link.index).await?,
            None => Vec::new(),
        };
        let ours = found.as_ref().is_some_and(|link| link.alias.as_deref() == Some(BRIDGE_ALIAS));
        // Of an earlier configuration.
        let is_old = |address: &IpNet| ours && !wanted.contains(address) && !is_link_local(address);
        let old: Vec<IpNet> = addresses.iter().copied().filter(is_old).collect();
        let complete = old.is_empty()
            && wanted.iter().all(|address| addresses.contains(address))
            && found.as_ref().is_some_and(|link| link.is_up);

        let routes = netlink.routes().await?;
        let own = found.as_ref().map(|link| link.index);
        // A bridge that is in use stays so, whatever routes have come since.
        if !complete && let Some(route) = plan::conflict(*range, &routes, own) {
            let links = netlink.links().await?;
            let interface = links.iter().find(|link| Some(link.index) == route.interface);
            let (what, remedy) =
                plan::conflict_message(*range, route, interface.map(|link| link.name.as_str()));
            return Err(ErrorKind::NetworkConflict.error(format!("{what}; {remedy}")));
        }
        if found.is_none() {
            netlink.add_bridge(name, plan::mac(gateway), BRIDGE_ALIAS).await?;
        }
        let vanished = || Error::internal(format!("the bridge {name} vanished while it was set up"));
        let mut bridge = netlink.link(name).await?.ok_or_else(vanished)?;
        if !complete {
            for address in old {
                netlink.delete_address(&bridge, address).await?;
            }
            let off = if self.0.prefix6.is_some() { "0" } else { "1" };
            sysctl::write(&sysctl::disable_ipv6(name), off)?;
            sysctl::write(&sysctl::accept_ra(name), "0")?;
            for address in wanted {
                netlink.add_address(&bridge, address).await?;
            }
            netlink.up(name).await?;
        }
        let links = netlink.links().await?;
        self.ensure_mtu(&routes, &links, &mut bridge).await?;
        self.ensure_forwarding(&routes, &links, &bridge).await?;
        if self.0.prefix6.is_some() {
            self.ensure_forwarding6(&routes, &links, &bridge).await?;
        }
        kernel.bridge = Some((bridge.clone(), Instant::now()));
        self.0.bridge.send_replace(Some(bridge.index));
        Ok(bridge)
    }

    /// Bridge and TAPs take packets as large as those that the uplinks take. Guests hear of a change
    /// when they start.
    async fn ensure_mtu(&self, routes: &[plan::Route], links: &[Link], bridge: &mut Link) -> Result<()> {
        let uplinks = [plan::uplinks, plan::uplinks6].map(|of| of(routes, Some(bridge.index))).concat();
        let uplinks = links.iter().filter(|link| uplinks.contains(&link.index) && link.name != "lo");
        let mtu = plan::mtu(uplinks.map(|link| link.mtu));
        if bridge.mtu == mtu {
            return Ok(());
        }
        tracing::info!("guests' packets have {mtu} bytes at most, {} before", bridge.mtu);
        for tap in self.our_taps().await? {
            self.0.netlink.set_mtu(&tap, mtu).await?;
        }
        self.0.netlink.set_mtu(bridge, mtu).await?;
        bridge.mtu = mtu;
        Ok(())
    }

    /// What of the host's is in the way of guests, each with what to do about it.
    pub async fn warnings(&self) -> Vec<Warning> {
        self.find_obstacles().await.unwrap_or_else(|error| {
            let look = "journalctl -u banger-netd".to_owned();
            vec![("unknown".to_owned(), error.message().to_owned(), look)]
        })
    }

    /// Names of the links through which guests leave the host.
    pub async fn uplinks(&self) -> Result<Vec<String>> {
        let links = self.0.netlink.links().await?;
        let bridge = links.iter().find(|link| link.name == self.config().bridge).map(|link| link.index);
        let routes = self.0.netlink.routes().await?;
        let indexes = [plan::uplinks, plan::uplinks6].map(|of| of(&routes, bridge)).concat();
        let uplinks = links.into_iter().filter(|link| indexes.contains(&link.index) && link.name != "lo");
        Ok(uplinks.map(|link| link.name).collect())
    }

    async fn find_obstacles(&self) -> Result<Vec<Warning>> {
        let Config { bridge: name, range, .. } = self.config();
        let mut found = Vec::new();
        let mut add =
            |kind: &str, (what, remedy): (String, String)| found.push((kind.to_owned(), what, remedy));
        let links = self.0.netlink.links().await?;
        let bridge = links.iter().find(|link| link.name == *name).map(|link| link.index);
        let routes = self.0.netlink.routes().await?;
        if let Some(route) = plan::conflict(*range, &routes, bridge) {
            let through = links.iter().find(|link| Some(link.index) == route.interface);
            add("range", plan::conflict_message(*range, route, through.map(|link| link.name.as_str())));
        }
        let chains = nft::chains().await?;
        for obstacle in warnings::obstacles(&chains) {
            let table = nft::table(&obstacle.family, &obstacle.table).await?;
            if let Some(warning) = obstacle.warning(name, &table) {
                add("filter", warning);
            }
        }
        let has_leases = !self.0.store.transact(store::all).await?.is_empty();
        if has_leases && !warnings::has_our_tables(&chains) {
            let what = "somebody flushed banger's rules, and guests do not get beyond the host";
            add("rules", (what.to_owned(), "systemctl restart banger-netd".to_owned()));
        }
        for tap in self.orphans().await? {
            add("tap", (format!("the TAP {tap} is no lease's"), "systemctl restart banger-netd".to_owned()));
        }
        Ok(found)
    }

    /// Packets are routed on if the interface they come in by says so: from guests by the bridge,
    /// and answers to them by the uplinks.
    async fn ensure_forwarding(&self, routes: &[plan::Route], links: &[Link], bridge: &Link) -> Result<()> {
        sysctl::write(&sysctl::forwarding(&bridge.name), "1")?;
        let uplinks = plan::uplinks(routes, Some(bridge.index));
        for link in links.iter().filter(|link| uplinks.contains(&link.index) && link.name != "lo") {
            self.set(&sysctl::forwarding(&link.name), "1").await?;
        }
        Ok(())
    }

    /// As [`Self::ensure_forwarding`], where the kernel can route IPv6 link by link.
    async fn ensure_forwarding6(&self, routes: &[plan::Route], links: &[Link], bridge: &Link) -> Result<()> {
        let uplinks = plan::uplinks6(routes, Some(bridge.index));
        let uplinks: Vec<&Link> =
            links.iter().filter(|link| uplinks.contains(&link.index) && link.name != "lo").collect();
        if uplinks.is_empty() {
            return Ok(());
        }
        let by_link = sysctl::force_forwarding6(&bridge.name);
        if sysctl::read(&by_link)?.is_none() {
            return self.become_router6(links, bridge).await;
        }
        sysctl::write(&by_link, "1")?;
        for link in uplinks {
            self.set(&sysctl::force_forwarding6(&link.name), "1").await?;
        }
        Ok(())
    }

    /// Before Linux 6.17, IPv6 is routed by all of the host or not at all. A router does not listen
    /// to other routers, and forgets what it had from them, unless it is told to; so those links
    /// that did are told first.
    pub(super) async fn become_router6(&self, links: &[Link], bridge: &Link) -> Result<()> {
        for link in links.iter().filter(|link| link.index != bridge.index) {
            let path = sysctl::accept_ra(&link.name);
            if sysctl::read(&path)?.as_deref() == Some("1") {
                self.set(&path, "2").await?;
            }
            // What it was is lost when it is set for all.
            self.remember(&sysctl::forwarding6(&link.name)).await?;
        }
        self.set(&sysctl::forwarding6("all"), "1").await
    }

    /// Sets a sysctl that is not of our own links, and remembers what it was.
    async fn set(&self, path: &Path, value: &str) -> Result<()> {
        if sysctl::read(path)?.is_some_and(|current| current != value) {
            self.remember(path).await?;
            sysctl::write(path, value)?;
            tracing::info!("{} is {value} now", path.display());
        }
        Ok(())
    }

    async fn remember(&self, path: &Path) -> Result<()> {
        let Some(value) = sysctl::read(path)? else { return Ok(()) };
        let path = path.display().to_string();
        self.0.store.transact(move |t| store::remember_sysctl(t, &path, &value)).await
    }
}

fn is_link_local(address: &IpNet) -> bool {
    matches!(address, IpNet::V6(address) if address.addr().is_unicast_link_local())
}
