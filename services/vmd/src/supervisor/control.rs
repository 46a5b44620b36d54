//! What a running VM's VMM is told through its control socket, and its agent over vsock.

use std::io;

use banger_api::vm::vsock_socket;
use banger_api::{Error, ErrorKind, Result};
use banger_core::name::VmName;
use banger_daemon::failpoint;
use banger_guest::Agent;
use banger_vmm::RateLimit;
use banger_vmm::control::{Control, ControlError};

use super::plan::IMAGE_DISK;
use super::{Supervisor, runtime_dir};
use crate::store::VmRow;

impl Supervisor {
    pub(super) async fn control(&self, name: &VmName) -> Result<Control> {
        Control::connect(&runtime_dir(name)).await.map_err(vmm_error)
    }

    pub(super) async fn agent(&self, name: &VmName) -> Result<Agent> {
        Agent::connect(&vsock_socket(&runtime_dir(name))).await
    }

    /// Lets a running VM's disk be as large as its specification says: its file, the disk that the
    /// guest sees. The guest's agent lets the filesystem follow.
    pub(super) async fn grow_live(&self, row: &VmRow) -> Result<()> {
        let name = &row.name;
        let grown = self.0.disks.grow(name, &row.spec).await?;
        failpoint!("set.grown");
        let mut control = self.control(name).await?;
        for (id, bytes) in grown {
            control.grow_disk(&id, bytes).await.map_err(vmm_error)?;
        }
        drop(control);
        self.agent(name).await?.grow_disks().await?;
        Ok(())
    }

    /// Asks a running guest to make do with the memory that its specification says, which is in
    /// effect if that is no more than it was started with; else it gets back all that it was.
    /// Firecracker refuses where the guest has no driver for its balloon.
    pub(super) async fn balloon_live(&self, row: &VmRow) -> Result<bool> {
        let Some(run) = &row.run else { return Ok(false) };
        let (wanted, started) = (row.spec.memory, run.spec.memory);
        match self.control(&row.name).await?.set_memory(wanted.min(started)).await {
            Err(ControlError::Refused(reason)) => {
                tracing::warn!(vm = row.name.as_str(), "its memory stays until the next start: {reason}");
                Ok(false)
            }
            outcome => outcome.map(|()| wanted <= started).map_err(vmm_error),
        }
    }

    /// Keeps the disks that a running VM was started with to the rates of its specification.
    pub(super) async fn limit_disks_live(&self, row: &VmRow) -> Result<()> {
        let limit = RateLimit::of(&row.spec.rates);
        let own = self.0.disks.of(&row.name, row.started_spec());
        let mut control = self.control(&row.name).await?;
        for id in std::iter::once(IMAGE_DISK).chain(own.iter().map(|disk| disk.id.as_str())) {
            control.limit_disk(id, limit).await.map_err(vmm_error)?;
        }
        Ok(())
    }

    /// A guest that goes on from a snapshot brings the limits and the balloon of that moment along;
    /// it gets its own.
    pub(super) async fn adjust_restored(&self, row: &VmRow) -> Result<()> {
        self.balloon_live(row).await?;
        self.limit_disks_live(row).await
    }
}

pub(super) fn vmm_error(error: ControlError) -> Error {
    let kind = match error {
        ControlError::Unsupported { .. } => ErrorKind::NotSupported,
        ControlError::Snapshot(ref error) if error.kind() == io::ErrorKind::StorageFull => ErrorKind::NoSpace,
        _ => ErrorKind::VmmFailed,
    };
    kind.error(error.to_string())
}
