//! What a running VM's VMM is told through its control socket, and its agent over vsock.

use banger_api::vm::vsock_socket;
use banger_api::{Error, ErrorKind, Result};
use banger_core::name::VmName;
use banger_daemon::failpoint;
use banger_guest::Agent;
use banger_vmm::control::{Control, ControlError};

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
}

pub(super) fn vmm_error(error: ControlError) -> Error {
    let kind = match error {
        ControlError::Unsupported { .. } => ErrorKind::NotSupported,
        _ => ErrorKind::VmmFailed,
    };
    kind.error(error.to_string())
}
