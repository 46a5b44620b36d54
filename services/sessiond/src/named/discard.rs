//! The end of what is kept of sessions: by somebody's wish, or with their VM.

use std::fs;
use std::sync::Arc;

use banger_api::session::MANAGER;
use banger_api::vm::ManagerProxy as VmManagerProxy;
use banger_api::{Result, SESSIOND};
use banger_core::name::VmName;
use banger_core::session::State;
use futures_util::StreamExt;
use tokio::time::timeout;

use super::Named;
use super::rows::blocking;
use crate::sessions::{LIST, Sessions};
use crate::workspace;

impl Sessions {
    /// Forgets a session and removes what is kept of it.
    pub(super) async fn discard(&self, session: &Arc<Named>) {
        let hub = &self.context.hub;
        hub.remove(session.path().as_str()).await;
        let body = (session.vm.to_string(), session.name.clone(), session.path());
        hub.emit(SESSIOND.path, MANAGER, "SessionRemoved", body);
        self.erase(session).await;
    }

    /// The same, of one that nobody has heard of.
    pub(super) async fn erase(&self, session: &Arc<Named>) {
        let directory = session.directory.clone();
        if let Err(error) = blocking(move || fs::remove_dir_all(directory)).await {
            tracing::warn!(
                vm = session.vm.as_str(),
                session = session.name,
                "cannot remove its log: {error}"
            );
        }
        // Not if there are others.
        let _ = session.directory.parent().map(fs::remove_dir);
        self.known().remove(&(session.vm.clone(), session.name.clone()));
        // For those who wait for it.
        session.status.send_modify(|status| {
            status.open = false;
            if !status.is_final() {
                status.state = State::Lost.as_str().to_owned();
            }
        });
        // The last, for it may be the keeper who is here.
        session.stop_keeping();
    }

    /// Discards the sessions of VMs that had this name before.
    pub(super) async fn discard_older(&self, vm: &VmName, created: u64) {
        self.discard_all(|session| session.vm == *vm && session.what.vm_created_usec != created).await;
    }

    async fn discard_all(&self, which: impl Fn(&Named) -> bool) {
        let found: Vec<_> = self.known().values().filter(|session| which(session)).cloned().collect();
        for session in found {
            self.discard(&session).await;
        }
    }

    /// Discards the sessions whose VM was deleted while nobody looked.
    pub(super) async fn discard_orphans(&self) {
        let mut vms: Vec<VmName> = self.known().keys().map(|(vm, _)| vm.clone()).collect();
        vms.dedup();
        if vms.is_empty() {
            return;
        }
        let rows = async { VmManagerProxy::new(&self.context.bus).await?.list_vms().await };
        let Ok(Ok(rows)) = timeout(LIST, rows).await else { return };
        for vm in vms {
            if !rows.iter().any(|(name, ..)| name == vm.as_str()) {
                self.discard_all(|session| session.vm == vm).await;
            } else if let Ok(Ok(created)) = timeout(LIST, self.vm_created(&vm)).await {
                self.discard_older(&vm, created).await;
            }
        }
    }

    /// Discards sessions when their VM is deleted.
    pub(super) async fn discard_with_vms(&self) -> Result<()> {
        let vmd = VmManagerProxy::new(&self.context.bus).await?;
        let mut removed = vmd.receive_vm_removed().await?;
        while let Some(signal) = removed.next().await {
            if let Ok(vm) = signal.args() {
                self.discard_all(|session| session.vm.as_str() == vm.name).await;
                workspace::forget(&self.context.runtime_dir, &vm.name);
            }
        }
        Ok(())
    }
}
