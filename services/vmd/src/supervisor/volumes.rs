//! Volumes: disks that exist by themselves.

use banger_api::vm::VolumeRow as Shown;
use banger_api::{ErrorKind, Result, now_usec};
use banger_core::event::Event;
use banger_core::name::VmName;
use banger_core::spec;
use banger_daemon::event::note;
use banger_daemon::failpoint;

use super::Supervisor;
use crate::store::{VmRow, VolumeRow};

impl Supervisor {
    /// The file first, then the row: a row always has a file, and a file without a row is found by
    /// the next reconciliation. Both under one lock, so that nobody takes a half-made volume.
    pub async fn create_volume(&self, name: VmName, bytes: u64) -> Result<()> {
        spec::check_disk(bytes).map_err(|error| ErrorKind::InvalidArgs.error(error.to_string()))?;
        let _making = self.0.making_volumes.lock().await;
        if self.0.store.volumes().await?.iter().any(|(volume, _)| volume.name == name) {
            return Err(
                ErrorKind::NameTaken.error(format!("there is a volume {name} already: choose another name"))
            );
        }
        self.0.disks.make_volume(&name, bytes).await?;
        failpoint!("volume.made");
        self.0.store.add_volume(VolumeRow { name: name.clone(), bytes, created_usec: now_usec() }).await?;
        failpoint!("volume.added");
        note(&Event::VolumeCreated { volume: name.as_str(), bytes: &bytes.to_string() });
        Ok(())
    }

    /// Looks whether the volumes of a VM that is about to start can be its own: who runs has those that it was started
    /// with, whatever its specification says by now.
    ///
    /// # Errors
    /// `VolumeInUse`.
    pub(super) async fn check_volumes(&self, row: &VmRow) -> Result<()> {
        for mount in &row.spec.volumes {
            self.check_unused(&mount.volume, Some(&row.name), mount.read_only).await?;
        }
        Ok(())
    }

    /// Looks whether no VM but `except` runs with a volume; with `shared`, none that can write it.
    async fn check_unused(&self, volume: &str, except: Option<&VmName>, shared: bool) -> Result<()> {
        for other in self.0.store.list().iter().filter(|other| Some(&other.name) != except) {
            let theirs = other.running_spec().volumes.iter().find(|mount| mount.volume == volume);
            let excludes = theirs.is_some_and(|theirs| !(shared && theirs.read_only));
            // Who runs only to be read has none.
            if excludes && !self.is_read(&other.name) && self.0.units.is_up(&other.name).await? {
                return Err(ErrorKind::VolumeInUse.error(format!(
                    "{} was started with volume {volume}, and runs: stop it first",
                    other.name
                )));
            }
        }
        Ok(())
    }

    /// The row first: it alone decides whether anybody uses the volume.
    pub async fn delete_volume(&self, name: VmName) -> Result<()> {
        let _making = self.0.making_volumes.lock().await;
        self.check_unused(name.as_str(), None, false).await?;
        self.0.store.remove_volume(&name).await?;
        failpoint!("volume.removed");
        self.0.disks.remove_volume(&name).await?;
        failpoint!("volume.deleted");
        note(&Event::VolumeDeleted { volume: name.as_str() });
        Ok(())
    }

    pub async fn volumes(&self) -> Result<Vec<Shown>> {
        let shown = |(volume, vms): (VolumeRow, Vec<VmName>)| {
            let vms = vms.iter().map(VmName::to_string).collect();
            (volume.name.to_string(), volume.bytes, volume.created_usec, vms)
        };
        Ok(self.0.store.volumes().await?.into_iter().map(shown).collect())
    }

    /// Bytes on the host that the VM's own disks take.
    pub async fn disk_used(&self, row: &VmRow) -> Result<u64> {
        self.0.disks.used(&row.name, &row.spec).await
    }
}
