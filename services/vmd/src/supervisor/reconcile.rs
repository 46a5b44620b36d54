//! What an instance that was cut off may have left, and what else does not belong to any VM.
//!
//! What is whole stays: this touches no VM that runs, and none that somebody works on. What was
//! being created or deleted goes, since nobody was told that it is there.

use banger_api::Result;
use banger_core::name::VmName;

use super::{Supervisor, lock};

/// What was found and done about it, for people: one line each, also in the journal.
#[derive(Default)]
struct Repairs(Vec<String>);

impl Repairs {
    fn add(&mut self, name: &VmName, what: &str) {
        tracing::info!(vm = name.as_str(), "reconciling: {what}");
        self.0.push(format!("{name}: {what}"));
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
                self.0.store.remove(&row.name).await?;
                Repairs::default().add(&row.name, "removed, as its creation or deletion was cut off");
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
        let mut repairs = Repairs::default();
        self.reconcile_rows(&mut repairs).await?;
        self.reconcile_units(&mut repairs).await?;
        self.reconcile_disks(&mut repairs).await?;
        self.reconcile_volumes(&mut repairs).await?;
        self.reconcile_forwards(&mut repairs).await?;
        self.leave_word();
        self.reconcile_images(&mut repairs).await?;
        self.reconcile_networks(&mut repairs).await?;
        Ok(repairs.0)
    }

    /// A deletion that failed is finished.
    async fn reconcile_rows(&self, repairs: &mut Repairs) -> Result<()> {
        for row in self.0.store.list().into_iter().filter(|row| !row.whole) {
            let Some(_guard) = self.0.locks.try_lock(row.name.as_str()) else { continue };
            if self.get(&row.name).is_ok_and(|row| !row.whole) {
                self.unpublish(&row.name).await?;
                repairs.add(&row.name, "removed, as its creation or deletion was cut off");
            }
        }
        Ok(())
    }

    async fn reconcile_units(&self, repairs: &mut Repairs) -> Result<()> {
        for name in self.0.units.names() {
            if self.0.store.contains(&name) {
                continue;
            }
            match self.0.units.active_state(&name).await?.as_str() {
                "inactive" => {}
                "failed" => {
                    self.0.units.reset_failed(&name).await;
                    repairs.add(&name, "forgot the failure of a unit that is no VM's");
                }
                _ => repairs.add(
                    &name,
                    &format!("{} runs, but is no VM's; left alone: stop it with systemctl", name.unit()),
                ),
            }
        }
        Ok(())
    }

    async fn reconcile_disks(&self, repairs: &mut Repairs) -> Result<()> {
        for name in self.0.disks.list().await? {
            let Some(_guard) = self.0.locks.try_lock(name.as_str()) else { continue };
            let forks = lock(&self.0.forks).clone();
            if self.0.store.contains(&name) && self.0.disks.tidy_snapshots(&name, &forks).await? {
                repairs.add(&name, "removed a snapshot that was cut off");
            }
            let _holding = self.0.holding.lock(name.as_str()).await;
            if self.0.units.is_up(&name).await? {
                continue;
            }
            match self.get(&name) {
                Ok(row) => {
                    if self.0.disks.tidy(&name, &row.spec).await? {
                        repairs.add(&name, "removed files that are none of its disks");
                    }
                }
                Err(_) => {
                    self.0.disks.remove(&name).await?;
                    repairs.add(&name, "removed the disks of a VM that is not there");
                }
            }
        }
        Ok(())
    }

    async fn reconcile_volumes(&self, repairs: &mut Repairs) -> Result<()> {
        let _making = self.0.making_volumes.lock().await;
        let wanted: Vec<VmName> =
            self.0.store.volumes().await?.into_iter().map(|(volume, _)| volume.name).collect();
        for name in self.0.disks.list_volumes().await? {
            if !wanted.contains(&name) {
                self.0.disks.remove_volume(&name).await?;
                repairs.add(&name, "removed the disk of a volume that is not there");
            }
        }
        Ok(())
    }

    /// Ports that are forwarded to nobody are free, and those that are to lead somewhere do.
    async fn reconcile_forwards(&self, repairs: &mut Repairs) -> Result<()> {
        for listen in self.0.units.listening().await? {
            let Some(name) = self.forwarded_to(&listen).map(|(row, _)| row.name) else {
                self.0.units.close(&listen).await?;
                repairs.0.push(format!("{listen}: closed a port that is forwarded to no VM"));
                continue;
            };
            let Some(_guard) = self.0.locks.try_lock(name.as_str()) else { continue };
            if let Ok(row) = self.get(&name)
                && !row
                    .spec
                    .forwards
                    .iter()
                    .any(|forward| forward.listen == listen && self.is_wanted(&row, forward))
            {
                self.0.units.close(&listen).await?;
                repairs.add(&name, "closed a port of a VM that does not run");
            }
        }
        for row in self.0.store.list() {
            let Some(_guard) = self.0.locks.try_lock(row.name.as_str()) else { continue };
            if let Err(error) = self.follow_forwards(&row, &[]).await {
                tracing::warn!(vm = row.name.as_str(), "{error}");
            }
        }
        Ok(())
    }

    async fn reconcile_images(&self, repairs: &mut Repairs) -> Result<()> {
        for holder in self.0.peers.image_leases().await? {
            let Ok(name) = VmName::new(&holder) else { continue };
            let Some(_guard) = self.0.locks.try_lock(name.as_str()) else { continue };
            if !self.0.store.contains(&name) && !self.0.units.is_up(&name).await? {
                self.0.peers.release_image(&holder).await?;
                repairs.add(&name, "released the image of a VM that is not there");
            }
        }
        Ok(())
    }

    async fn reconcile_networks(&self, repairs: &mut Repairs) -> Result<()> {
        for holder in self.0.peers.net_leases().await? {
            let Ok(name) = VmName::new(&holder) else { continue };
            let Some(_guard) = self.0.locks.try_lock(name.as_str()) else { continue };
            let _holding = self.0.holding.lock(name.as_str()).await;
            if !self.0.units.is_up(&name).await? {
                self.give_back(&name).await?;
                repairs.add(&name, "released the network of a VM that does not run");
            }
        }
        Ok(())
    }
}
