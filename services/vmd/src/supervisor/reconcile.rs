//! What an instance that was cut off may have left: disks without a row are removed at once,
//! leases elsewhere without a row in the background. No VM that runs is ever touched.

use banger_api::Result;
use banger_core::name::VmName;

use super::Supervisor;

impl Supervisor {
    pub(super) async fn reconcile(&self) -> Result<()> {
        if self.0.context.clean {
            return Ok(());
        }
        for name in self.0.disks.list().await? {
            if !self.0.store.contains(&name) {
                tracing::info!(vm = name.as_str(), "removing the disk of a VM that is not there");
                self.0.disks.remove(&name).await?;
            }
        }
        self.reconcile_volumes().await?;
        let this = self.clone();
        let hold = self.0.context.idle.hold();
        tokio::spawn(async move {
            if let Err(error) = this.reconcile_leases().await {
                tracing::warn!("cannot compare leases with VMs: {error}");
            }
            drop(hold);
        });
        Ok(())
    }

    async fn reconcile_volumes(&self) -> Result<()> {
        let wanted: Vec<VmName> =
            self.0.store.volumes().await?.into_iter().map(|(volume, _)| volume.name).collect();
        for name in self.0.disks.list_volumes().await? {
            if !wanted.contains(&name) {
                tracing::info!(volume = name.as_str(), "removing the disk of a volume that is not there");
                self.0.disks.remove_volume(&name).await?;
            }
        }
        Ok(())
    }

    async fn reconcile_leases(&self) -> Result<()> {
        for holder in self.0.peers.image_leases().await? {
            let orphan = VmName::new(&holder).is_ok_and(|name| !self.0.store.contains(&name));
            if orphan {
                tracing::info!(vm = holder, "releasing the image of a VM that is not there");
                self.0.peers.release_image(&holder).await?;
            }
        }
        for holder in self.0.peers.net_leases().await? {
            let up = |name: VmName| self.state_of(&name).is_ok_and(|state| state.is_up());
            let orphan = VmName::new(&holder).is_ok_and(|name| !up(name));
            if orphan {
                tracing::info!(vm = holder, "releasing the network of a VM that does not run");
                self.0.peers.release_network(&holder).await?;
            }
        }
        Ok(())
    }
}
