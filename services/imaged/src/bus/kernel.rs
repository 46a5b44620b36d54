//! `org.banger.Image1.Kernel`.

use banger_api::{Error, Result};
use banger_daemon::Gate;
use tokio::sync::watch;
use zbus::message::Header;
use zbus::{Connection, interface};

use crate::service::Service;
use crate::store::KernelRow;

#[derive(Clone)]
pub struct KernelObject {
    pub service: Service,
    pub gate: Gate,
    pub row: watch::Receiver<KernelRow>,
}

#[interface(name = "org.banger.Image1.Kernel")]
impl KernelObject {
    /// Removes the kernel. Refused while VMs use it.
    async fn remove(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let name = self.name();
        let _call = self.gate.enter(&header, connection, &[("kernel", &name)]).await?;
        Ok(self.service.remove_kernel(&name).await?)
    }

    /// Everything about the kernel as JSON.
    #[zbus(out_args("json"))]
    async fn describe(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        let row = self.row.borrow().clone();
        let description = serde_json::json!({
            "name": row.name,
            "version": row.version,
            "architecture": row.architecture,
            "description": row.description,
            "features": row.features,
            "default": row.is_default,
            "created_usec": row.created_usec,
            "leases": row.holders,
        });
        serde_json::to_string(&description).map_err(Error::internal)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> String {
        self.row.borrow().name.clone()
    }

    /// What `uname -r` says in a guest.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        self.row.borrow().version.clone()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn architecture(&self) -> String {
        self.row.borrow().architecture.clone()
    }

    /// What the kernel says of itself, or the importer of it.
    #[zbus(property(emits_changed_signal = "const"))]
    fn description(&self) -> String {
        self.row.borrow().description.clone()
    }

    /// What it can do, by its configuration, such as `virtio-mmio`; empty if that is not known.
    #[zbus(property(emits_changed_signal = "const"))]
    fn features(&self) -> Vec<String> {
        self.row.borrow().features.clone().unwrap_or_default()
    }

    /// Whether VMs that name no kernel get this one.
    #[zbus(property)]
    fn default(&self) -> bool {
        self.row.borrow().is_default
    }

    /// When it was imported, microseconds since 1970.
    #[zbus(property(emits_changed_signal = "const"))]
    fn created_timestamp(&self) -> u64 {
        self.row.borrow().created_usec
    }

    /// Who uses the kernel.
    #[zbus(property)]
    fn leases(&self) -> Vec<String> {
        self.row.borrow().holders.clone()
    }
}
