//! What an instance that was cut off may have left, and what else does not belong to any VM.
//!
//! What is whole stays: this touches no VM that runs, and none that somebody works on. What was
//! being created or deleted goes, since nobody was told that it is there.

use banger_api::Result;
use banger_core::event::Event;
use banger_core::forward::Listen;
use banger_core::name::VmName;
use banger_daemon::event::note;
use tokio::fs;

use super::{Supervisor, lock};

/// Of a VM that nobody was told of.
const CUT_OFF: &str = "its creation or deletion was cut off";

/// What was found, for people: one line each. In the journal, too, if it is done away with.
struct Search {
    repairing: bool,
    found: Vec<String>,
}

impl Search {
    fn new(repairing: bool) -> Self {
        Self { repairing, found: Vec::new() }
    }

    /// Notes what was found of a VM, or of a name that is none's, and says whether to do away with it.
    fn found(&mut self, name: &VmName, what: &str) -> bool {
        if self.repairing {
            tracing::info!(vm = name.as_str(), "reconciling: {what}");
        }
        self.found.push(format!("{name}: {what}"));
        self.repairing
    }

    /// The same of a port.
    fn found_port(&mut self, listen: &Listen, what: &str) -> bool {
        if self.repairing {
            tracing::info!("reconciling: {listen}: {what}");
        }
        self.found.push(format!("{listen}: {what}"));
        self.repairing
    }
}

impl Supervisor {
    /// After an instance that did not end in order: frees the names it left at once, before anybody
    /// can ask for them, and looks for the rest in the background.
    pub(super) async fn recover(&self) -> Result<()> {
        if self.0.context.clean {
            return Ok(());
        }
        for row in self.0.store.list() {
            if !row.whole && !self.state(&row).is_up() {
                self.0.disks.remove(&row.name).await?;
                note(&Event::VmDeleted { vm: row.name.as_str() });
                self.0.store.remove(&row.name).await?;
                Search::new(true).found(&row.name, CUT_OFF);
            }
        }
        let this = self.clone();
        let hold = self.0.context.idle.hold();
        tokio::spawn(async move {
            if let Err(error) = this.reconcile().await {
                tracing::warn!("cannot reconcile everything: {error}");
            }
            drop(hold);
        });
        Ok(())
    }

    /// Removes what belongs to no VM and no volume. Returns what was found.
    ///
    /// # Errors
    /// Those of the other services; what concerns vmd alone is done before they are asked.
    pub async fn reconcile(&self) -> Result<Vec<String>> {
        self.search(Search::new(true)).await
    }

    /// What [`Self::reconcile`] would find; nothing is changed.
    ///
    /// # Errors
    /// Those of the other services.
    pub async fn orphans(&self) -> Result<Vec<String>> {
        self.search(Search::new(false)).await
    }

    async fn search(&self, mut search: Search) -> Result<Vec<String>> {
        self.search_rows(&mut search).await?;
        self.search_units(&mut search).await?;
        self.search_disks(&mut search).await?;
        self.search_volumes(&mut search).await?;
        self.search_forwards(&mut search).await?;
        if search.repairing {
            self.open_forwards().await;
            self.leave_word();
        }
        self.search_images(&mut search).await?;
        self.search_networks(&mut search).await?;
        Ok(search.found)
    }

    /// A deletion that failed is finished.
    async fn search_rows(&self, search: &mut Search) -> Result<()> {
        for row in self.0.store.list().into_iter().filter(|row| !row.whole) {
            let Some(_guard) = self.0.locks.try_lock(row.name.as_str()) else { continue };
            if self.get(&row.name).is_ok_and(|row| !row.whole) && search.found(&row.name, CUT_OFF) {
                self.unpublish(&row.name).await?;
            }
        }
        Ok(())
    }

    async fn search_units(&self, search: &mut Search) -> Result<()> {
        for name in self.0.units.names() {
            if self.0.store.contains(&name) {
                continue;
            }
            match self.0.units.active_state(&name).await?.as_str() {
                "inactive" => {}
                "failed" => {
                    if search.found(&name, "a failed unit that is no VM's") {
                        self.0.units.reset_failed(&name).await;
                    }
                }
                _ => {
                    let what = format!("{} runs, but is no VM's: stop it with systemctl", name.unit());
                    search.found(&name, &what);
                }
            }
        }
        Ok(())
    }

    async fn search_disks(&self, search: &mut Search) -> Result<()> {
        for name in self.0.disks.list().await? {
            let Some(_guard) = self.0.locks.try_lock(name.as_str()) else { continue };
            let forks = lock(&self.0.forks).clone();
            if self.0.store.contains(&name) {
                for snapshot in self.0.disks.broken_snapshots(&name, &forks).await? {
                    if search.found(&name, "a snapshot that was cut off") {
                        fs::remove_dir_all(snapshot).await?;
                    }
                }
            }
            let _holding = self.0.holding.lock(name.as_str()).await;
            if self.0.units.is_up(&name).await? {
                continue;
            }
            match self.get(&name) {
                Ok(row) => {
                    let is_stray = self.0.disks.has_strays(&name, &row.spec).await?;
                    if is_stray && search.found(&name, "files that are none of its disks") {
                        self.0.disks.tidy(&name, &row.spec).await?;
                    }
                }
                Err(_) => {
                    if search.found(&name, "disks of a VM that is not there") {
                        self.0.disks.remove(&name).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn search_volumes(&self, search: &mut Search) -> Result<()> {
        let _making = self.0.making_volumes.lock().await;
        let wanted: Vec<VmName> =
            self.0.store.volumes().await?.into_iter().map(|(volume, _)| volume.name).collect();
        for name in self.0.disks.list_volumes().await? {
            if !wanted.contains(&name) && search.found(&name, "the disk of a volume that is not there") {
                self.0.disks.remove_volume(&name).await?;
            }
        }
        Ok(())
    }

    /// Ports that are forwarded to nobody are free.
    async fn search_forwards(&self, search: &mut Search) -> Result<()> {
        for listen in self.0.units.listening().await? {
            let Some(name) = self.forwarded_to(&listen).map(|(row, _)| row.name) else {
                if search.found_port(&listen, "a port that is forwarded to no VM") {
                    self.0.units.close(&listen).await?;
                }
                continue;
            };
            let Some(_guard) = self.0.locks.try_lock(name.as_str()) else { continue };
            if let Ok(row) = self.get(&name)
                && !row
                    .spec
                    .forwards
                    .iter()
                    .any(|forward| forward.listen == listen && self.is_wanted(&row, forward))
                && search.found_port(&listen, &format!("a port of {name}, which does not run"))
            {
                self.0.units.close(&listen).await?;
            }
        }
        Ok(())
    }

    /// Ports that are to lead somewhere do.
    async fn open_forwards(&self) {
        for row in self.0.store.list() {
            let Some(_guard) = self.0.locks.try_lock(row.name.as_str()) else { continue };
            if let Err(error) = self.follow_forwards(&row, &[]).await {
                tracing::warn!(vm = row.name.as_str(), "{error}");
            }
        }
    }

    async fn search_images(&self, search: &mut Search) -> Result<()> {
        for holder in self.0.peers.image_leases().await? {
            let Ok(name) = VmName::new(&holder) else { continue };
            let Some(_guard) = self.0.locks.try_lock(name.as_str()) else { continue };
            if !self.0.store.contains(&name)
                && !self.0.units.is_up(&name).await?
                && search.found(&name, "the image of a VM that is not there")
            {
                self.0.peers.release_image(&holder).await?;
            }
        }
        Ok(())
    }

    async fn search_networks(&self, search: &mut Search) -> Result<()> {
        for holder in self.0.peers.net_leases().await? {
            let Ok(name) = VmName::new(&holder) else { continue };
            let Some(_guard) = self.0.locks.try_lock(name.as_str()) else { continue };
            let _holding = self.0.holding.lock(name.as_str()).await;
            if !self.0.units.is_up(&name).await?
                && search.found(&name, "the network of a VM that does not run")
            {
                self.give_back(&name).await?;
            }
        }
        Ok(())
    }
}
