//! Creating a VM, in three phases. (1) Find the image, pulling it if needed: no lock. (2) Reserve
//! name and address: one transaction of `VmStore::reserve`. (3) Lease the image, make the disks,
//! start: under the VM's own lock only. So creates overlap in everything that takes time and meet
//! only in phase 2.

use banger_api::{ErrorKind, Result, now_usec};
use banger_core::event::Event;
use banger_core::name::VmName;
use banger_core::vm::Stage;
use banger_daemon::event::note;
use banger_daemon::{Progress, failpoint};
use zbus::OwnedObjectPath;

use super::Supervisor;
use crate::config::Config;
use crate::request::Create;
use crate::store::{Draft, VmRow};

/// How many generated names are tried before giving up.
const GENERATED_NAMES: usize = 16;

impl Supervisor {
    /// Starts the job that creates a VM.
    pub async fn create_job(&self, request: Create) -> (u32, OwnedObjectPath) {
        let subject = request.name.as_ref().map(VmName::to_string).unwrap_or_default();
        let this = self.clone();
        let work = |progress| async move { this.create(request, progress).await };
        self.0.context.jobs.start("create", &subject, work).await
    }

    async fn create(self, request: Create, progress: Progress) -> Result<String> {
        let start = request.start;
        let draft = self.draft(request, &progress).await?;
        failpoint!("create.resolved");
        progress.stage(Stage::Reserve.as_str());
        let row = self.0.store.reserve(draft).await?;
        let name = row.name.clone();
        note(&Event::VmCreated { vm: name.as_str(), image: &row.image, from: "" });

        let guard = self.lock(&name).await;
        let furnished = progress.cancelable(async {
            self.furnish(&row, &progress).await?;
            self.follow_forwards(&self.get(&name)?, &[]).await
        });
        let furnished = furnished.await;
        if let Err(error) = furnished {
            self.erase(&name).await;
            return Err(error);
        }
        let path = self.publish(&name).await;
        self.signal("VmNew", &name, path);
        self.leave_word();
        if start {
            let started = self.start_locked(&name, &progress).await;
            if matches!(&started, Err(error) if error.kind() == ErrorKind::JobCanceled) {
                self.erase(&name).await;
            }
            drop(guard);
            started?;
        }
        Ok(name.to_string())
    }

    /// Phase 1: everything a reservation needs.
    async fn draft(&self, request: Create, progress: &Progress) -> Result<Draft> {
        progress.stage(Stage::Resolve.as_str());
        if let Some(name) = &request.name {
            self.0.store.check_free(name)?;
        }
        let image = progress.cancelable(self.0.peers.resolve_image(&request.image)).await?;
        let image = match image {
            Some(image) => image,
            None => {
                progress.stage(Stage::Pull.as_str());
                self.0.peers.pull(&request.image, progress).await?
            }
        };
        let kernel = progress.cancelable(self.0.peers.resolve_kernel(&request.kernel, &image.id)).await?;
        let range = progress.cancelable(self.0.peers.range()).await?;
        Ok(Draft {
            names: request.name.map_or_else(generated_names, |name| vec![name]),
            range,
            image: image.name,
            image_id: image.id,
            kernel,
            spec: request.spec,
            machine_id: uuid::Uuid::new_v4().simple().to_string(),
            created_usec: now_usec(),
        })
    }

    /// Phase 3, up to the start.
    async fn furnish(&self, row: &VmRow, progress: &Progress) -> Result<()> {
        progress.stage(Stage::Disk.as_str());
        let name = &row.name;
        if self.state(row).is_up() {
            return Err(ErrorKind::VmRunning.error(format!(
                "{} runs, although there was no VM {name}: stop it with systemctl",
                name.unit()
            )));
        }
        self.0.peers.lease_image(name.as_str(), &row.image_id, &row.kernel).await?;
        failpoint!("create.leased");
        // Whatever is there is of another VM of this name.
        self.0.disks.remove(name).await?;
        self.make_disks(row).await?;
        failpoint!("create.disk");
        self.0.store.set_whole(name, true).await?;
        failpoint!("create.whole");
        Ok(())
    }

    /// Makes the disks that the VM does not have yet.
    pub(super) async fn make_disks(&self, row: &VmRow) -> Result<()> {
        let seed = Config::load()?.work.seed;
        self.0.disks.ensure(&row.name, &row.spec, seed.as_deref()).await
    }

    /// Takes back a create that failed or was canceled. What cannot be taken back now is found by
    /// the next reconciliation.
    pub(super) async fn erase(&self, name: &VmName) {
        if let Err(error) = self.unpublish(name).await {
            tracing::warn!(vm = name.as_str(), "cannot take back what was created: {error}");
        }
    }
}

fn generated_names() -> Vec<VmName> {
    let seed = || uuid::Uuid::new_v4().as_u64_pair().0;
    (0..GENERATED_NAMES).map(|_| VmName::generated(seed())).collect()
}
