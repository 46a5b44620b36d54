//! Leases: what is written down, made true in the kernel.

mod bridge;
mod shown;
mod taps;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex as StdMutex};
use std::time::{Duration, Instant, SystemTime};

use banger_api::network::{AcquireOptions, Counters, Lease, LeaseRow, PolicyOptions, lease_path};
use banger_api::{Error, ErrorKind, Result};
use banger_core::event::Event;
use banger_core::network::{InvalidPolicy, Policy};
use banger_daemon::event::note;
use banger_daemon::{Call, Hub, Locks, Store};
use ipnet::Ipv6Net;
use rusqlite::Transaction;
use tokio::sync::{Mutex, watch};
use zbus::OwnedObjectPath;

use crate::config::{self, Config};
use crate::dns::Names;
use crate::effects::netlink::{Link, Netlink};
use crate::effects::{nft, sysctl};
use crate::firewall::{self, Contents, Frame, Guest};
use crate::store::Row;
use crate::{plan, resolvers, store};

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
        if before.is_none() {
            note(&Event::LeaseAcquired { vm: &row.holder, address: &row.address.to_string() });
        }
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
        note(&Event::LeaseReleased { vm: &holder, address: &row.address.to_string() });
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

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Runs to its end even if the caller goes away in the middle.
async fn detached<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(work).await.unwrap_or_else(|error| Err(Error::internal(error)))
}

/// These run in a network namespace of their own: `cargo test -p banger-netd -- --ignored`.
#[cfg(test)]
pub(crate) mod tests;
