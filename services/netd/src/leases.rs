//! Leases: what is written down, made true in the kernel.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime};

use banger_api::network::{
    AcquireOptions, Counters, LEASE, Lease, LeaseRow, MANAGER, PolicyOptions, lease_path,
};
use banger_api::{Error, ErrorKind, NETD, Result};
use banger_core::network::{EgressDefault, InvalidPolicy, Policy};
use banger_daemon::{Call, Hub, Locks, Store};
use ipnet::{IpNet, Ipv6Net};
use rusqlite::Transaction;
use tokio::sync::{Mutex, watch};
use zbus::{OwnedObjectPath, OwnedVariant, Str, Variant};

use crate::bus::lease::LeaseObject;
use crate::config::{self, Config};
use crate::dns::Names;
use crate::dns::zone::{Outside, Zone};
use crate::effects::netlink::{Link, Netlink};
use crate::effects::{nft, sysctl, tap};
use crate::firewall::{self, Contents, Frame, Guest};
use crate::store::Row;
use crate::{plan, resolvers, store, warnings};

/// Marks the interfaces that we made, and may remove.
const BRIDGE_ALIAS: &str = "banger: guests";
const TAP_ALIAS: &str = "banger: ";
const SPARE_ALIAS: &str = "banger: spare";

/// The bridge and the host's routes are looked at again after this long: uplinks come and go.
const FRESH: Duration = Duration::from_secs(10);

/// All leases. Cheap to clone.
#[derive(Clone)]
pub struct Leases(Arc<Inner>);

struct Inner {
    config: Arc<Config>,
    store: Store,
    hub: Hub,
    netlink: Netlink,
    /// The names of who holds a lease.
    names: Names,
    /// Index of the bridge, told whenever it was looked at.
    bridge: watch::Sender<Option<u32>>,
    /// Whether guests can ask us for names.
    serves_names: bool,
    /// The guests' network of IPv6; `None` where they have none.
    prefix6: Option<Ipv6Net>,
    /// One for whatever is done to the lease of a holder.
    holders: Locks,
    /// Held while links are changed: local system calls and the disk, never the network.
    kernel: Mutex<Kernel>,
    /// What the firewall holds for the guests, as far as we have seen to it. Whoever waits for it
    /// may find that those before have done what is to be done: so many leases at once are few
    /// transactions. Taken after `kernel` by who needs both.
    rules: Mutex<Option<Contents>>,
    /// Held by who fills the pool up.
    filling: Mutex<()>,
    /// The lease objects on the bus.
    objects: StdMutex<BTreeMap<String, watch::Sender<Row>>>,
}

#[derive(Default)]
struct Kernel {
    /// The bridge, and when it was last found to be complete and in nobody's way.
    bridge: Option<(Link, Instant)>,
    /// TAPs that are ports of the bridge already, and nobody's yet.
    spares: Vec<Link>,
}

/// The guests' network of IPv6, if they have it: this host's own, drawn when it is first needed.
pub async fn prefix6(config: &Config, store: &Store) -> Result<Option<Ipv6Net>> {
    // Where an admin has switched it off for all interfaces, it is off for ours.
    let host_has_ipv6 = sysctl::read(&sysctl::disable_ipv6("all"))?.as_deref() == Some("0");
    match config.ipv6 && host_has_ipv6 {
        true => Ok(Some(store.transact(store::prefix6).await?)),
        false => Ok(None),
    }
}

impl Leases {
    pub fn new(
        config: Arc<Config>,
        prefix6: Option<Ipv6Net>,
        store: Store,
        hub: Hub,
        names: Names,
        serves_names: bool,
    ) -> Result<Self> {
        Ok(Self(Arc::new(Inner {
            config,
            store,
            hub,
            netlink: Netlink::open()?,
            names,
            bridge: watch::Sender::new(None),
            serves_names,
            prefix6,
            holders: Locks::default(),
            kernel: Mutex::default(),
            rules: Mutex::default(),
            filling: Mutex::default(),
            objects: StdMutex::default(),
        })))
    }

    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Index of the bridge, if there is one, whenever it was looked at.
    pub fn bridge(&self) -> watch::Receiver<Option<u32>> {
        self.0.bridge.subscribe()
    }

    /// The guests' network of IPv6, and the host's address in it.
    pub fn ipv6(&self) -> Option<(Ipv6Net, Ipv6Addr)> {
        let gateway = plan::gateway(self.config().range);
        self.0.prefix6.map(|prefix| (prefix, plan::address6(prefix, gateway)))
    }

    /// Name servers for guests: those of the configuration, else us, else those of the host.
    pub fn dns(&self) -> Vec<String> {
        let config = self.config();
        let servers = match &config.dns {
            Some(servers) => servers.clone(),
            None if self.0.serves_names => vec![plan::gateway(config.range)],
            None => resolvers::for_guests(),
        };
        servers.iter().map(Ipv4Addr::to_string).collect()
    }

    /// The domain of the VMs' names, for guests that find them there.
    fn search_domain(&self) -> String {
        let asks_us = self.config().dns.is_none() && self.0.serves_names;
        if asks_us { self.config().domain.to_string() } else { String::new() }
    }

    /// Takes a lease, or the same once more.
    pub async fn acquire(&self, holder: String, options: AcquireOptions, call: Call) -> Result<Lease> {
        plan::check_holder(&holder)?;
        let address: Ipv4Addr = options.address.parse().map_err(|_| {
            ErrorKind::InvalidArgs.error(format!("{:?} is not an IPv4 address", options.address))
        })?;
        plan::check_address(self.config().range, address)?;
        let default = Policy { nat: self.config().nat, ..Policy::default() };
        let policy = self.changed(&default, options.policy)?;
        let row = Row { holder, address, uid: options.uid, policy };
        let leases = self.clone();
        detached(async move {
            let lease = leases.acquire_row(row).await;
            // Whoever waits for the lease does not wait for this.
            tokio::spawn(async move {
                leases.fill_pool().await;
                drop(call);
            });
            lease
        })
        .await
    }

    pub(crate) async fn acquire_row(&self, row: Row) -> Result<Lease> {
        let _held = self.0.holders.lock(&row.holder).await;
        let claimed = row.clone();
        let before = self.0.store.transact(move |t| store::claim(t, &claimed)).await?;
        let bridge = match self.realise(&row, before.as_ref()).await {
            Ok(bridge) => bridge,
            Err(error) => {
                self.take_back(&row, before).await;
                return Err(error);
            }
        };
        self.publish(row.clone()).await;
        Ok(Lease {
            tap: plan::tap(row.address),
            mac: plan::mac_text(row.address),
            address: row.address.to_string(),
            prefix: self.config().range.prefix_len(),
            gateway: plan::gateway(self.config().range).to_string(),
            address6: self.0.prefix6.map(|prefix| plan::address6(prefix, row.address).to_string()),
            prefix6: self.0.prefix6.map(|prefix| prefix.prefix_len()),
            gateway6: self.ipv6().map(|(_, gateway)| gateway.to_string()),
            dns: self.dns(),
            domain: self.search_domain(),
            mtu: bridge.mtu,
        })
    }

    /// Bridge, TAP and rules for a lease that is written down.
    async fn realise(&self, row: &Row, before: Option<&Row>) -> Result<Link> {
        let asks_again = before == Some(row);
        if asks_again {
            // For what should be there already: so it may not be.
            *self.0.rules.lock().await = None;
            self.0.kernel.lock().await.bridge = None;
        }
        // Where there can be no bridge, nothing is changed.
        self.ensure_bridge(&mut *self.0.kernel.lock().await).await?;
        // The rules come before the TAP, which lets nothing through without them.
        self.apply_rules().await?;
        let mut kernel = self.0.kernel.lock().await;
        let bridge = self.ensure_bridge(&mut kernel).await?;
        let Err(error) = self.give_tap(&mut kernel, row, before, &bridge).await else { return Ok(bridge) };
        tracing::debug!("once more, as the bridge may have gone since it was looked at: {error}");
        kernel.bridge = None;
        let bridge = self.ensure_bridge(&mut kernel).await?;
        self.ensure_tap(row, before, &bridge).await?;
        Ok(bridge)
    }

    /// After a failed acquire: what was there before, or nothing.
    async fn take_back(&self, row: &Row, before: Option<Row>) {
        let kernel = self.0.kernel.lock().await;
        if before.is_none()
            && let Err(error) = self.delete_tap(row.address).await
        {
            tracing::warn!("{error}");
        }
        let holder = row.holder.clone();
        let undone = self.0.store.transact(move |t| match &before {
            Some(before) => store::put(t, before),
            None => store::delete(t, &holder),
        });
        if let Err(error) = undone.await {
            tracing::error!("cannot take the lease of {} back: {error}", row.holder);
        }
        drop(kernel);
        let has_rules = self.0.rules.lock().await.is_some();
        if has_rules && let Err(error) = self.apply_rules().await {
            tracing::warn!("{error}");
        }
    }

    /// What the guest of a lease reaches, from now on.
    pub async fn set_policy(&self, holder: String, options: PolicyOptions, call: Call) -> Result<()> {
        let leases = self.clone();
        detached(async move {
            let _call = call;
            leases.set_policy_of(holder, options).await
        })
        .await
    }

    async fn set_policy_of(&self, holder: String, options: PolicyOptions) -> Result<()> {
        let _held = self.0.holders.lock(&holder).await;
        let before = self.0.store.transact(move |t| store::find(t, &holder)).await?;
        let row = Row { policy: self.changed(&before.policy, options)?, ..before.clone() };
        self.put(row.clone()).await?;
        if let Err(error) = self.apply_rules().await {
            self.put(before).await?;
            return Err(error);
        }
        self.publish(row).await;
        Ok(())
    }

    /// The policy with what the options say.
    fn changed(&self, before: &Policy, options: PolicyOptions) -> Result<Policy> {
        let policy = changed(before, options)?;
        if self.config().dns.is_some() && policy.egress.names().next().is_some() {
            return Err(ErrorKind::NotSupported.error(format!(
                "guests ask the name servers in {}, so banger does not hear what names stand for: allow \
                 addresses, or take `dns` out there",
                config::FILE
            )));
        }
        Ok(policy)
    }

    /// Lets a guest out to what a name stands for, each address for so many seconds at least, if its policy
    /// says that it may reach the name.
    pub async fn let_out(&self, guest: IpAddr, name: String, addresses: Vec<(IpAddr, u32)>) -> Result<()> {
        let holder = || self.names().holder(guest).map(str::to_owned);
        let Some(known) = holder() else { return Ok(()) };
        let _held = self.0.holders.lock(&known).await;
        // It may have been released meanwhile.
        let Some(holder) = holder().filter(|holder| *holder == known) else { return Ok(()) };
        let store = &self.0.store;
        let news = store.transact(move |t| store::add_ways(t, &holder, &name, &addresses, now())).await?;
        // Whatever there is was not applied if that failed before.
        let unapplied = self.0.rules.lock().await.is_none();
        if news || unapplied { self.apply_rules().await } else { Ok(()) }
    }

    async fn put(&self, row: Row) -> Result<()> {
        self.0.store.transact(move |t| store::put(t, &row)).await
    }

    /// Gives a lease back.
    pub async fn release(&self, holder: String, call: Call) -> Result<()> {
        let leases = self.clone();
        detached(async move {
            let _call = call;
            leases.release_row(holder).await
        })
        .await
    }

    pub(crate) async fn release_row(&self, holder: String) -> Result<()> {
        let _held = self.0.holders.lock(&holder).await;
        let row = {
            let holder = holder.clone();
            self.0.store.transact(move |t| store::find(t, &holder)).await?
        };
        // Nothing makes the TAP again in between.
        let kernel = self.0.kernel.lock().await;
        // The row goes last: until then the lease is there and can be released again.
        self.delete_tap(row.address).await?;
        let gone = holder.clone();
        self.0.store.transact(move |t| store::delete(t, &gone)).await?;
        drop(kernel);
        self.unpublish(&holder).await;
        // A rule too many about an address that nobody has does no harm, and goes with the next.
        if let Err(error) = self.apply_rules().await {
            tracing::warn!("after the release of {holder}: {error}");
        }
        Ok(())
    }

    pub async fn path(&self, holder: String) -> Result<OwnedObjectPath> {
        let row = self.0.store.transact(move |t| store::find(t, &holder)).await?;
        Ok(lease_path(&row.holder))
    }

    /// What went through the TAP of a lease.
    pub async fn counters(&self, holder: String) -> Result<Counters> {
        let row = self.0.store.transact(move |t| store::find(t, &holder)).await?;
        let tap = plan::tap(row.address);
        let link = self.0.netlink.link(&tap).await?;
        // It went with the host's last boot, if whoever holds the lease has not asked for it since.
        Ok(link.map(|link| link.counters).unwrap_or_default())
    }

    pub async fn list(&self) -> Result<Vec<LeaseRow>> {
        let rows = self.0.store.transact(store::all).await?;
        Ok(rows
            .into_iter()
            .map(|row| {
                let path = lease_path(&row.holder);
                let (tap, mac) = (plan::tap(row.address), plan::mac_text(row.address));
                (row.holder, row.address.to_string(), tap, mac, row.policy.nat, path)
            })
            .collect())
    }

    /// Makes the kernel agree with what is written down: at start, or when asked to, when anything may have
    /// happened to either. What cannot be made true is logged; the next `Acquire` says it to its caller.
    pub async fn reconcile(&self) -> Result<()> {
        let mut kernel = self.0.kernel.lock().await;
        kernel.bridge = None;
        *self.0.rules.lock().await = None;
        let rows = self.0.store.transact(store::all).await?;
        for row in &rows {
            self.publish(row.clone()).await;
        }
        match self.remove_orphans(&rows).await {
            Ok(spares) => kernel.spares = spares,
            Err(error) => tracing::error!("{error}"),
        }
        let (usable, foreign): (Vec<_>, Vec<_>) =
            rows.iter().partition(|row| self.config().range.contains(&row.address));
        for row in foreign {
            tracing::warn!(
                "the lease of {} on {} is outside {} and has no network; delete the VM or set the range in {} back",
                row.holder,
                row.address,
                self.config().range,
                config::FILE
            );
        }
        if usable.is_empty() {
            // It stays after the last lease, and so does what others were told of it.
            let bridge = self.0.netlink.link(&self.config().bridge).await?;
            self.0.bridge.send_replace(bridge.map(|link| link.index));
            return Ok(());
        }
        let restored = async {
            let bridge = self.ensure_bridge(&mut kernel).await?;
            self.apply_rules().await?;
            for row in usable {
                self.ensure_tap(row, Some(row), &bridge).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = restored.await {
            tracing::error!("cannot restore the network: {error}");
        }
        Ok(())
    }

    /// [`Leases::reconcile`] for a caller.
    pub async fn refresh(&self, call: Call) -> Result<()> {
        let leases = self.clone();
        detached(async move {
            let _call = call;
            leases.reconcile().await
        })
        .await
    }

    /// Removes TAPs of ours that no lease owns, but for those of the pool: these are returned.
    async fn remove_orphans(&self, rows: &[Row]) -> Result<Vec<Link>> {
        let mut spares = Vec::new();
        for link in self.our_taps().await? {
            let is_spare = link.alias.as_deref() == Some(SPARE_ALIAS) && !link.is_up;
            if is_spare && spares.len() < self.config().pool {
                spares.push(link);
            } else if !rows.iter().any(|row| plan::tap(row.address) == link.name) {
                tracing::info!("removing {}, which no lease owns", link.name);
                self.0.netlink.delete(&link).await?;
            }
        }
        Ok(spares)
    }

    /// TAPs with our names that also are ours by their alias or their bridge.
    async fn our_taps(&self) -> Result<Vec<Link>> {
        let links = self.0.netlink.links().await?;
        let bridge = links.iter().find(|link| link.name == self.config().bridge).map(|link| link.index);
        Ok(links
            .into_iter()
            .filter(|link| link.is_tun && link.name.starts_with(plan::TAP_PREFIX))
            .filter(|link| {
                let marked = link.alias.as_deref().is_some_and(|alias| alias.starts_with(TAP_ALIAS));
                marked || (bridge.is_some() && link.controller == bridge)
            })
            .collect())
    }

    /// Removes everything of ours from the host.
    pub async fn tear_down(&self, call: Call) -> Result<()> {
        let leases = self.clone();
        detached(async move {
            let _call = call;
            leases.tear_down_now().await
        })
        .await
    }

    async fn tear_down_now(&self) -> Result<()> {
        let mut kernel = self.0.kernel.lock().await;
        let rows = self.0.store.transact(store::all).await?;
        if let Some(row) = rows.first() {
            return Err(ErrorKind::VmBusy.error(format!(
                "{} leases are held (the first by {}); delete the VMs first",
                rows.len(),
                row.holder
            )));
        }
        *kernel = Kernel::default();
        *self.0.rules.lock().await = None;
        self.0.bridge.send_replace(None);
        for tap in self.our_taps().await? {
            self.0.netlink.delete(&tap).await?;
        }
        if let Some(bridge) = self.0.netlink.link(&self.config().bridge).await?
            && bridge.alias.as_deref() == Some(BRIDGE_ALIAS)
        {
            self.0.netlink.delete(&bridge).await?;
        }
        nft::apply(&firewall::removal()).await?;
        for (path, value) in self.0.store.transact(store::take_sysctls).await? {
            sysctl::write(path.as_ref(), &value)?;
        }
        Ok(())
    }

    /// The bridge: there, with its addresses, up, and routed.
    async fn ensure_bridge(&self, kernel: &mut Kernel) -> Result<Link> {
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
            return Err(ErrorKind::NetworkConflict.error(plan::conflict_message(
                *range,
                route,
                interface.map(|link| link.name.as_str()),
            )));
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
    pub async fn warnings(&self) -> Vec<String> {
        self.find_obstacles().await.unwrap_or_else(|error| vec![error.message().to_owned()])
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

    async fn find_obstacles(&self) -> Result<Vec<String>> {
        let Config { bridge: name, range, .. } = self.config();
        let mut found = Vec::new();
        let links = self.0.netlink.links().await?;
        let bridge = links.iter().find(|link| link.name == *name).map(|link| link.index);
        let routes = self.0.netlink.routes().await?;
        if let Some(route) = plan::conflict(*range, &routes, bridge) {
            let through = links.iter().find(|link| Some(link.index) == route.interface);
            found.push(plan::conflict_message(*range, route, through.map(|link| link.name.as_str())));
        }
        let chains = nft::chains().await?;
        for obstacle in warnings::obstacles(&chains) {
            let table = nft::table(&obstacle.family, &obstacle.table).await?;
            found.extend(obstacle.warning(name, &table));
        }
        let has_leases = !self.0.store.transact(store::all).await?.is_empty();
        if has_leases && !warnings::has_our_tables(&chains) {
            found.push(
                "somebody flushed banger's rules, and guests do not get beyond the host: systemctl restart \
                 banger-netd"
                    .to_owned(),
            );
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
    async fn become_router6(&self, links: &[Link], bridge: &Link) -> Result<()> {
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

    /// The TAP of a lease: there, its user's, on the bridge and up.
    async fn ensure_tap(&self, row: &Row, before: Option<&Row>, bridge: &Link) -> Result<()> {
        let name = plan::tap(row.address);
        let found = self.0.netlink.link(&name).await?;
        if let Some(link) = &found
            && !link.is_tun
        {
            return Err(ErrorKind::NetworkConflict.error(format!(
                "the host has an interface {name} that is not banger's; remove or rename it"
            )));
        }
        let same_owner = before.is_some_and(|before| before.uid == row.uid);
        let attached = |link: &Link| link.controller == Some(bridge.index) && link.is_up;
        if same_owner && found.as_ref().is_some_and(attached) {
            return Ok(());
        }
        // One that is there and open belongs to a running VM: only its owner cannot be changed.
        match tap::create(&name, row.uid) {
            Err(error) if error.kind() == ErrorKind::VmRunning && same_owner => {}
            created => created?,
        }
        sysctl::write(&sysctl::disable_ipv6(&name), "1")?;
        self.0.netlink.attach(&name, bridge, &format!("{TAP_ALIAS}{}", row.holder)).await?;
        self.0.netlink.up(&name).await
    }

    async fn delete_tap(&self, address: Ipv4Addr) -> Result<()> {
        match self.0.netlink.link(&plan::tap(address)).await? {
            Some(link) if link.is_tun => self.0.netlink.delete(&link).await,
            _ => Ok(()),
        }
    }

    /// The TAP of a lease: one of the pool for a new one, if there is any.
    async fn give_tap(
        &self,
        kernel: &mut Kernel,
        row: &Row,
        before: Option<&Row>,
        bridge: &Link,
    ) -> Result<()> {
        let spare = if before.is_none() { kernel.spares.pop() } else { None };
        let Some(spare) = spare else { return self.ensure_tap(row, before, bridge).await };
        let name = plan::tap(row.address);
        // One message to the kernel, which also says whether the bridge is the one that we know.
        self.0.netlink.adopt(&spare, &name, bridge, &format!("{TAP_ALIAS}{}", row.holder)).await?;
        tap::create(&name, row.uid)
    }

    /// Makes TAPs for those who come next.
    async fn fill_pool(&self) {
        let Ok(_filling) = self.0.filling.try_lock() else { return };
        // Whoever waits for a lease goes before the next one, since the lock has a queue.
        while match self.add_spare().await {
            Ok(added) => added,
            Err(error) => {
                tracing::warn!("the pool of TAPs is not full: {error}");
                false
            }
        } {}
    }

    /// Whether one was wanting.
    async fn add_spare(&self) -> Result<bool> {
        let mut kernel = self.0.kernel.lock().await;
        // Without it nobody has asked for anything yet, or all was torn down.
        let Some((bridge, _)) = kernel.bridge.clone() else { return Ok(false) };
        if kernel.spares.len() >= self.config().pool {
            return Ok(false);
        }
        let is_free = |name: &String| kernel.spares.iter().all(|spare| spare.name != *name);
        let name = (0..).map(plan::spare_tap).find(is_free).expect("more names than TAPs");
        // Ours until it is somebody's: one without an owner may be opened by everybody.
        tap::create(&name, nix::unistd::geteuid().as_raw())?;
        sysctl::write(&sysctl::disable_ipv6(&name), "1")?;
        self.0.netlink.attach(&name, &bridge, SPARE_ALIAS).await?;
        let made = self.0.netlink.link(&name).await?;
        kernel.spares.push(made.ok_or_else(|| Error::internal(format!("{name} vanished")))?);
        Ok(true)
    }

    /// How many TAPs wait for leases.
    pub async fn spares(&self) -> usize {
        self.0.kernel.lock().await.spares.len()
    }

    /// Has the firewall agree with what is written down.
    async fn apply_rules(&self) -> Result<()> {
        let mut rules = self.0.rules.lock().await;
        let Config { bridge, range, host, .. } = self.config();
        let now = now();
        let written = move |t: &Transaction<'_>| Ok((store::all(t)?, store::ways(t, now)?));
        let (rows, ways) = self.0.store.transact(written).await?;
        let usable = rows.iter().filter(|row| range.contains(&row.address));
        let guests = usable.map(|row| Guest {
            address: row.address,
            address6: self.0.prefix6.map(|prefix| plan::address6(prefix, row.address)),
            policy: &row.policy,
            ways: ways.get(&row.holder).map_or(&[], Vec::as_slice),
        });
        let wanted = Contents::of(guests, now);
        if rules.as_ref() == Some(&wanted) {
            return Ok(());
        }
        if let Some(before) = rules.take() {
            match nft::apply(&firewall::change(&before, &wanted, now)).await {
                Ok(()) => {
                    *rules = Some(wanted);
                    return Ok(());
                }
                Err(error) => tracing::warn!("the firewall is not as we left it and is made anew: {error}"),
            }
        }
        let frame = Frame { bridge, range: *range, prefix6: self.0.prefix6, host: &host.allow };
        nft::apply(&firewall::ruleset(&frame, &wanted, now)).await?;
        *rules = Some(wanted);
        Ok(())
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, watch::Sender<Row>>> {
        self.0.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn names(&self) -> RwLockWriteGuard<'_, Zone> {
        self.0.names.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a lease on the bus and by its name, or what changed of it.
    async fn publish(&self, row: Row) {
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

    async fn unpublish(&self, holder: &str) {
        self.names().remove(holder);
        let path = lease_path(holder);
        self.objects().remove(holder);
        self.0.hub.emit(NETD.path, MANAGER, "LeaseRemoved", (holder.to_owned(), path.clone()));
        self.0.hub.remove(&path).await;
    }
}

/// What the options make of a policy.
fn changed(policy: &Policy, options: PolicyOptions) -> Result<Policy> {
    let mut policy = policy.clone();
    if let Some(nat) = options.nat {
        policy.nat = nat;
    }
    if let Some(groups) = options.groups {
        policy.groups = groups.into_iter().collect();
    }
    for (rate, wanted) in [(&mut policy.bandwidth, options.bandwidth), (&mut policy.packets, options.packets)]
    {
        if let Some(wanted) = wanted {
            *rate = Some(wanted).filter(|rate| *rate > 0);
        }
    }
    let invalid = |error: InvalidPolicy| ErrorKind::InvalidArgs.error(error.to_string());
    policy.egress.change(options.egress.as_deref(), options.egress_allow.as_deref()).map_err(invalid)?;
    policy.check().map_err(invalid)?;
    Ok(policy)
}

/// Which names a guest may ask for: that is a way out, too.
fn outside(policy: &Policy) -> Outside {
    if !policy.nat {
        return Outside::NOTHING;
    }
    let all = policy.egress.default != EgressDefault::Closed;
    Outside { all, names: policy.egress.names().cloned().collect() }
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn is_link_local(address: &IpNet) -> bool {
    matches!(address, IpNet::V6(address) if address.addr().is_unicast_link_local())
}

fn texts<'a>(texts: impl IntoIterator<Item = &'a String>) -> OwnedVariant {
    let texts: Vec<&str> = texts.into_iter().map(String::as_str).collect();
    OwnedVariant::try_from(Variant::from(texts)).expect("no file descriptors in it")
}

/// Runs to its end even if the caller goes away in the middle.
async fn detached<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(work).await.unwrap_or_else(|error| Err(Error::internal(error)))
}

/// These run in a network namespace of their own: `cargo test -p banger-netd -- --ignored`.
#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const NEEDS: &str = "root, /dev/net/tun and nft";

    pub(crate) struct Host {
        pub(crate) leases: Leases,
        _dir: tempfile::TempDir,
    }

    impl Host {
        /// A namespace for this thread, and netd's insides in it.
        pub(crate) async fn new() -> Self {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect(NEEDS);
            let dir = tempfile::tempdir().expect("tempdir");
            Self { leases: open(dir.path()).await, _dir: dir }
        }

        /// As after `kill -9` and a start.
        async fn restarted(self) -> Self {
            let leases = open(self._dir.path()).await;
            leases.reconcile().await.expect("reconciles");
            Self { leases, _dir: self._dir }
        }

        /// Has somebody change what is written down.
        pub(crate) async fn sql(&self, statement: &'static str) {
            let changed =
                self.leases.0.store.transact(|t| t.execute_batch(statement).map_err(Error::internal));
            changed.await.expect("changes");
        }

        async fn link(&self, name: &str) -> Option<Link> {
            self.leases.0.netlink.link(name).await.expect("asks")
        }

        async fn taps(&self) -> Vec<String> {
            let mut taps: Vec<_> =
                self.leases.our_taps().await.expect("asks").into_iter().map(|link| link.name).collect();
            taps.sort();
            taps
        }
    }

    async fn open(dir: &Path) -> Leases {
        let store = Store::open(&dir.join("netd.db"), store::MIGRATIONS).expect("opens");
        open_with(Config::default(), store).await
    }

    async fn open_with(config: Config, store: Store) -> Leases {
        let prefix = prefix6(&config, &store).await.expect(NEEDS);
        let names = crate::names(&config, prefix);
        Leases::new(Arc::new(config), prefix, store, Hub::new(), names, true).expect(NEEDS)
    }

    pub(crate) fn row(holder: &str, last: u8) -> Row {
        let policy = Policy::default();
        Row { holder: holder.into(), address: Ipv4Addr::new(10, 209, 0, last), uid: 12345, policy }
    }

    fn nft(arguments: &[&str]) -> String {
        let output = std::process::Command::new("nft").args(arguments).output().expect(NEEDS);
        String::from_utf8(output.stdout).expect("text")
    }

    #[tokio::test]
    #[ignore = "needs root, /dev/net/tun and nft"]
    async fn a_lease_from_nothing_to_nothing() {
        let host = Host::new().await;
        host.leases.reconcile().await.expect("reconciles");
        assert_eq!(host.link("banger0").await, None, "nothing is touched before the first lease");

        let lease = host.leases.acquire_row(row("web", 2)).await.expect("acquires");
        assert_eq!((lease.tap.as_str(), lease.gateway.as_str()), ("bg-0ad10002", "10.209.0.1"));
        assert_eq!(host.leases.acquire_row(row("web", 2)).await.expect("again"), lease);
        let bridge = host.link("banger0").await.expect("the bridge");
        let tap = host.link("bg-0ad10002").await.expect("the TAP");
        assert!(bridge.is_up && tap.is_up && tap.controller == Some(bridge.index));
        assert!(nft(&["list", "set", "inet", "banger", "nat"]).contains("10.209.0.2"));

        let error = host.leases.acquire_row(row("db", 2)).await.expect_err("a double");
        assert_eq!(error.kind(), ErrorKind::AddressInUse);
        let error = host.leases.acquire_row(row("web", 3)).await.expect_err("another address");
        assert_eq!(error.kind(), ErrorKind::AddressInUse);
        assert_eq!(host.taps().await, ["bg-0ad10002"]);

        let policy = Policy { nat: false, ..Policy::default() };
        let closed = Row { policy, uid: 54321, ..row("web", 2) };
        host.leases.acquire_row(closed).await.expect("changes");
        assert!(!nft(&["list", "set", "inet", "banger", "nat"]).contains("10.209.0.2"));

        let error = host.leases.tear_down_now().await.expect_err("in use");
        assert_eq!(error.kind(), ErrorKind::VmBusy);
        host.leases.release_row("web".into()).await.expect("releases");
        let error = host.leases.release_row("web".into()).await.expect_err("gone");
        assert_eq!(error.kind(), ErrorKind::NoSuchLease);
        assert!(host.taps().await.is_empty());
        host.leases.tear_down_now().await.expect("tears down");
        assert_eq!(host.link("banger0").await, None);
        assert_eq!(nft(&["list", "tables"]), "");
    }

    #[tokio::test]
    #[ignore = "needs root, /dev/net/tun and nft"]
    async fn a_restart_makes_what_vanished_and_removes_what_nobody_owns() {
        let host = Host::new().await;
        for (holder, last) in [("a", 2), ("b", 3)] {
            host.leases.acquire_row(row(holder, last)).await.expect("acquires");
        }
        let vanished = host.link("bg-0ad10002").await.expect("the TAP");
        host.leases.0.netlink.delete(&vanished).await.expect("deletes");
        // As if killed between the row and the TAP of a release.
        host.leases.0.store.transact(|t| store::delete(t, "b")).await.expect("deletes");
        nft(&["flush", "ruleset"]);

        let host = host.restarted().await;
        assert_eq!(host.taps().await, ["bg-0ad10002"]);
        assert!(nft(&["list", "set", "inet", "banger", "nat"]).contains("10.209.0.2"));

        let bridge = host.link("banger0").await.expect("the bridge");
        host.leases.0.netlink.delete(&bridge).await.expect("deletes");
        let host = host.restarted().await;
        let bridge = host.link("banger0").await.expect("the bridge");
        assert_eq!(host.link("bg-0ad10002").await.and_then(|tap| tap.controller), Some(bridge.index));
    }

    #[tokio::test]
    #[ignore = "needs root, /dev/net/tun and nft"]
    async fn a_route_in_the_way_is_named_and_nothing_stays() {
        let host = Host::new().await;
        let netlink = &host.leases.0.netlink;
        netlink.add_bridge("lan0", [2, 0, 0, 0, 0, 1], "x").await.expect("adds");
        let lan = host.link("lan0").await.expect("the bridge");
        netlink.up("lan0").await.expect("up");
        netlink.add_address(&lan, "10.209.7.1/24".parse().expect("network")).await.expect("adds");

        let error = host.leases.acquire_row(row("web", 2)).await.expect_err("in the way");
        assert_eq!(error.kind(), ErrorKind::NetworkConflict);
        assert_eq!(
            error.message(),
            "banger's address range 10.209.0.0/16 overlaps the host's route to 10.209.7.0/24 of lan0; \
             set another range in /etc/banger/netd.conf"
        );
        assert_eq!(host.link("banger0").await, None);
        assert!(host.leases.list().await.expect("lists").is_empty());
        assert_eq!(nft(&["list", "tables"]), "");

        netlink.delete(&lan).await.expect("deletes");
        host.leases.acquire_row(row("web", 2)).await.expect("acquires");
    }

    #[tokio::test]
    #[ignore = "needs root, /dev/net/tun and nft"]
    async fn ipv6_is_this_hosts_own_and_can_be_switched_off() {
        let host = Host::new().await;
        let lease = host.leases.acquire_row(row("web", 2)).await.expect("acquires");
        let address = lease.address6.expect("an address");
        assert!(address.starts_with("fd") && address.ends_with("::ad1:2"), "{address}");
        let bridge = host.link("banger0").await.expect("the bridge");
        let gateway: Ipv6Addr = lease.gateway6.expect("a gateway").parse().expect("an address");
        let has = |addresses: Vec<IpNet>| addresses.iter().any(|network| network.addr() == gateway);
        assert!(has(host.leases.0.netlink.addresses(bridge.index).await.expect("lists")));

        let host = host.restarted().await;
        let again = host.leases.acquire_row(row("web", 2)).await.expect("acquires");
        assert_eq!(again.address6, Some(address));

        let store = Store::open(&host._dir.path().join("netd.db"), store::MIGRATIONS).expect("opens");
        let config = Config { ipv6: false, ..Config::default() };
        let without = open_with(config, store).await;
        let lease = without.acquire_row(row("web", 2)).await.expect("acquires");
        assert_eq!((lease.address6, lease.prefix6, lease.gateway6), (None, None, None));
        assert!(!has(without.0.netlink.addresses(bridge.index).await.expect("lists")));
    }

    #[tokio::test]
    #[ignore = "needs root, /dev/net/tun and nft"]
    async fn a_host_that_becomes_a_router_keeps_listening_to_routers() {
        let host = Host::new().await;
        let netlink = &host.leases.0.netlink;
        for name in ["lan0", "banger0"] {
            netlink.add_bridge(name, [2, 0, 0, 0, 0, 1], "x").await.expect("adds");
        }
        let read = |path: &Path| sysctl::read(path).expect("reads").expect("there");
        let listens = sysctl::accept_ra("lan0");
        let routes = sysctl::forwarding6("all");
        assert_eq!((read(&listens), read(&routes)), ("1".into(), "0".into()));
        let bridge = host.link("banger0").await.expect("the bridge");
        let links = netlink.links().await.expect("lists");
        host.leases.become_router6(&links, &bridge).await.expect("routes");
        assert_eq!((read(&listens), read(&routes)), ("2".into(), "1".into()));
        assert_eq!(read(&sysctl::accept_ra("banger0")), "1", "our own is not touched");
        // Once more, as after a restart: what is remembered is what it was before.
        host.leases.become_router6(&links, &bridge).await.expect("routes");
        host.leases.tear_down_now().await.expect("tears down");
        assert_eq!((read(&listens), read(&routes)), ("1".into(), "0".into()));
        assert_eq!(read(&sysctl::forwarding6("lan0")), "0");
    }

    fn ip(arguments: &str) {
        let status = std::process::Command::new("ip").args(arguments.split(' ')).status();
        assert!(status.expect(NEEDS).success(), "ip {arguments}");
    }

    #[tokio::test]
    #[ignore = "needs root, /dev/net/tun and nft"]
    async fn packets_are_as_large_as_the_uplinks() {
        let host = Host::new().await;
        ip("link add lan0 type bridge");
        ip("link set lan0 mtu 1400 up");
        ip("route add default dev lan0");
        let lease = host.leases.acquire_row(row("one", 2)).await.expect("acquires");
        assert_eq!(lease.mtu, 1400);
        ip("link set lan0 mtu 1450");
        // As some seconds later.
        host.leases.0.kernel.lock().await.bridge = None;
        let lease = host.leases.acquire_row(row("other", 3)).await.expect("acquires");
        assert_eq!(lease.mtu, 1450);
        for name in ["banger0", "bg-0ad10002", "bg-0ad10003"] {
            assert_eq!(host.link(name).await.expect("there").mtu, 1450, "{name}");
        }
    }

    #[tokio::test]
    #[ignore = "needs root, /dev/net/tun and nft"]
    async fn rules_that_are_gone_are_told() {
        let host = Host::new().await;
        assert!(host.leases.warnings().await.is_empty());
        host.leases.acquire_row(row("one", 2)).await.expect("acquires");
        assert!(host.leases.warnings().await.is_empty());
        nft(&["flush", "ruleset"]);
        let warnings = host.leases.warnings().await;
        assert!(warnings.len() == 1 && warnings[0].contains("restart banger-netd"), "{warnings:?}");
    }

    #[tokio::test]
    #[ignore = "needs root, /dev/net/tun and nft"]
    async fn two_hundred_at_once() {
        let host = Host::new().await;
        let started = Instant::now();
        let acquired = (2..202).map(|last| {
            let leases = host.leases.clone();
            async move { leases.acquire_row(row(&format!("vm{last}"), last)).await }
        });
        for lease in futures_util::future::join_all(acquired).await {
            lease.expect("acquires");
        }
        println!("200 leases in {:?}", started.elapsed());
        assert_eq!(host.taps().await.len(), 200);
        assert_eq!(nft(&["list", "map", "bridge", "banger", "guests"]).matches("jump").count(), 200);

        let started = Instant::now();
        host.leases.acquire_row(row("one-more", 250)).await.expect("acquires");
        println!("one more in {:?}", started.elapsed());
        let started = Instant::now();
        *host.leases.0.rules.lock().await = None;
        host.leases.acquire_row(row("one-more", 250)).await.expect("acquires");
        println!("the whole firewall anew in {:?}", started.elapsed());
    }

    #[tokio::test]
    #[ignore = "needs root, /dev/net/tun and nft"]
    async fn leases_take_taps_of_the_pool() {
        let host = Host::new().await;
        host.leases.fill_pool().await;
        assert!(host.taps().await.is_empty(), "nothing is touched before the first lease");
        host.leases.acquire_row(row("first", 2)).await.expect("acquires");
        host.leases.fill_pool().await;
        let spare = host.link("bg-spare-7").await.expect("a full pool");
        let bridge = host.link("banger0").await.expect("the bridge");
        assert!(!spare.is_up && spare.controller == Some(bridge.index));

        host.leases.acquire_row(row("second", 3)).await.expect("acquires");
        let tap = host.link("bg-0ad10003").await.expect("the TAP");
        assert_eq!((tap.index, tap.is_up, tap.alias.as_deref()), (spare.index, true, Some("banger: second")));
        assert!(tun_owner("bg-0ad10003").contains("user 12345"));
        assert!(tun_owner("bg-spare-6").contains("user root"));

        // It is found again, and one that is nobody's in particular is not taken for it.
        tap::create("bg-0ad100ff", 0).expect("makes");
        host.leases.0.netlink.attach("bg-0ad100ff", &bridge, SPARE_ALIAS).await.expect("attaches");
        host.leases.0.netlink.up("bg-0ad100ff").await.expect("brings up");
        let host = host.restarted().await;
        assert_eq!((host.leases.spares().await, host.taps().await.len()), (7, 9));
        host.leases.fill_pool().await;
        assert_eq!(host.leases.spares().await, 8);

        for holder in ["first", "second"] {
            host.leases.release_row(holder.into()).await.expect("releases");
        }
        host.leases.tear_down_now().await.expect("tears down");
        assert!(host.taps().await.is_empty());
    }

    /// A lease must not fail because the pool, or its bridge, is not what it was.
    #[tokio::test]
    #[ignore = "needs root, /dev/net/tun and nft"]
    async fn a_pool_that_vanished_is_no_matter() {
        let host = Host::new().await;
        host.leases.acquire_row(row("first", 2)).await.expect("acquires");
        host.leases.fill_pool().await;
        let last = host.link("bg-spare-7").await.expect("a full pool");
        host.leases.0.netlink.delete(&last).await.expect("deletes");
        host.leases.acquire_row(row("second", 3)).await.expect("acquires");
        let bridge = host.link("banger0").await.expect("the bridge");
        host.leases.0.netlink.delete(&bridge).await.expect("deletes");
        host.leases.acquire_row(row("third", 4)).await.expect("acquires");
        let bridge = host.link("banger0").await.expect("the bridge");
        let tap = host.link("bg-0ad10004").await.expect("the TAP");
        assert!(tap.is_up && tap.controller == Some(bridge.index));
    }

    fn tun_owner(name: &str) -> String {
        let output = std::process::Command::new("ip").args(["-d", "link", "show", name]).output();
        String::from_utf8(output.expect(NEEDS).stdout).expect("text")
    }

    #[tokio::test]
    #[ignore = "needs root, /dev/net/tun and nft"]
    async fn a_firewall_that_somebody_flushed_comes_back() {
        let host = Host::new().await;
        host.leases.acquire_row(row("a", 2)).await.expect("acquires");
        for again in ["a", "b"] {
            nft(&["flush", "ruleset"]);
            host.leases.acquire_row(row(again, if again == "a" { 2 } else { 3 })).await.expect("acquires");
            assert!(nft(&["list", "map", "bridge", "banger", "guests"]).contains("bg-0ad10002"));
        }
        nft(&["delete", "element", "bridge", "banger", "guests", "{ bg-0ad10003 }"]);
        host.leases.release_row("b".into()).await.expect("releases");
        let guests = nft(&["list", "map", "bridge", "banger", "guests"]);
        assert!(guests.contains("bg-0ad10002") && !guests.contains("bg-0ad10003"), "{guests}");
    }
}
