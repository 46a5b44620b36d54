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

    /// The row first: it alone decides whether anybody uses the volume.
    pub async fn delete_volume(&self, name: VmName) -> Result<()> {
        let _making = self.0.making_volumes.lock().await;
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
