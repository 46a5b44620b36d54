//! The TAPs of leases, and the pool of those that wait for one.

use std::net::Ipv4Addr;

use banger_api::{Error, ErrorKind, Result};

use super::{Kernel, Leases, SPARE_ALIAS, TAP_ALIAS};
use crate::effects::netlink::Link;
use crate::effects::{sysctl, tap};
use crate::store::Row;
use crate::{plan, store};

impl Leases {
    /// TAPs with our names that also are ours by their alias or their bridge.
    pub(super) async fn our_taps(&self) -> Result<Vec<Link>> {
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

    /// Removes TAPs of ours that no lease owns, but for those of the pool: these are returned.
    pub(super) async fn remove_orphans(&self, rows: &[Row]) -> Result<Vec<Link>> {
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

    /// Names of TAPs of ours that no lease owns and that do not wait for one.
    pub(super) async fn orphans(&self) -> Result<Vec<String>> {
        // Nobody takes, makes or gives back one meanwhile.
        let kernel = self.0.kernel.lock().await;
        let rows = self.0.store.transact(store::all).await?;
        let is_known = |name: &str| {
            kernel.spares.iter().any(|spare| spare.name == name)
                || rows.iter().any(|row| plan::tap(row.address) == name)
        };
        let taps = self.our_taps().await?.into_iter().map(|link| link.name);
        Ok(taps.filter(|name| !is_known(name)).collect())
    }

    /// The TAP of a lease: there, its user's, on the bridge and up.
    pub(super) async fn ensure_tap(&self, row: &Row, before: Option<&Row>, bridge: &Link) -> Result<()> {
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

    pub(super) async fn delete_tap(&self, address: Ipv4Addr) -> Result<()> {
        match self.0.netlink.link(&plan::tap(address)).await? {
            Some(link) if link.is_tun => self.0.netlink.delete(&link).await,
            _ => Ok(()),
        }
    }

    /// The TAP of a lease: one of the pool for a new one, if there is any.
    pub(super) async fn give_tap(
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
    pub(super) async fn fill_pool(&self) {
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
}
