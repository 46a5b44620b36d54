//! `org.banger.Vm1.Vm`: one VM.

use std::collections::HashMap;

use banger_api::vm::vsock_socket;
use banger_api::{Error, Result};
use banger_daemon::Gate;
use zbus::message::Header;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, interface};

use crate::bus::manager::{delete_options, stop_options};
use crate::store::VmRow;
use crate::supervisor::{Supervisor, runtime_dir};

/// What never changes of a VM comes from its row; its state from the supervisor.
#[derive(Clone)]
pub struct VmObject {
    supervisor: Supervisor,
    gate: Gate,
    row: VmRow,
}

impl VmObject {
    pub fn new(supervisor: Supervisor, gate: Gate, row: VmRow) -> Self {
        Self { supervisor, gate, row }
    }
}

#[interface(name = "org.banger.Vm1.Vm")]
impl VmObject {
    /// As StartVm of the manager.
    #[zbus(out_args("job_id", "job"))]
    async fn start(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("vm", self.row.name.as_str())]).await?;
        self.supervisor.start_job(self.row.name.clone()).await
    }

    /// As StopVm of the manager.
    #[zbus(out_args("job_id", "job"))]
    async fn stop(
        &self,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("vm", self.row.name.as_str())]).await?;
        self.supervisor.stop_job(self.row.name.clone(), stop_options(options)?).await
    }

    /// As DeleteVm of the manager.
    async fn delete(
        &self,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", self.row.name.as_str())]).await?;
        self.supervisor.delete(&self.row.name, delete_options(options)?).await
    }

    /// Everything about the VM as JSON.
    #[zbus(out_args("json"))]
    async fn describe(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        let row = self.supervisor.get(&self.row.name).await?;
        let description = serde_json::json!({
            "name": row.name,
            "state": self.supervisor.state(&row.name).as_str(),
            "image": row.image,
            "image_id": row.image_id,
            "kernel": row.kernel,
            "address": row.shown_address(),
            "unit": row.name.unit(),
            "created_usec": row.created_usec,
            "started_usec": row.started_usec,
            "spec": row.spec,
        });
        serde_json::to_string(&description).map_err(Error::internal)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> String {
        self.row.name.to_string()
    }

    /// created, starting, running, stopping, stopped or failed.
    #[zbus(property)]
    fn state(&self) -> String {
        self.supervisor.state(&self.row.name).as_str().to_owned()
    }

    /// The image's name when the VM was created.
    #[zbus(property(emits_changed_signal = "const"))]
    fn image(&self) -> String {
        self.row.image.clone()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn image_id(&self) -> String {
        self.row.image_id.clone()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn kernel(&self) -> String {
        self.row.kernel.clone()
    }

    /// The guest's address, empty without network.
    #[zbus(property(emits_changed_signal = "const"))]
    fn address(&self) -> String {
        self.row.shown_address()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn cpus(&self) -> u32 {
        self.row.spec.cpus
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn memory_bytes(&self) -> u64 {
        self.row.spec.memory
    }

    /// The size of the disk as the guest sees it; the file takes less.
    #[zbus(property(emits_changed_signal = "const"))]
    fn disk_bytes(&self) -> u64 {
        self.row.spec.disk
    }

    /// auto, qemu or firecracker, as asked for.
    #[zbus(property(emits_changed_signal = "const"))]
    fn vmm(&self) -> String {
        self.row.spec.vmm.as_str().to_owned()
    }

    /// The systemd unit that is the VM.
    #[zbus(property(emits_changed_signal = "const"))]
    fn unit(&self) -> String {
        self.row.name.unit()
    }

    /// The socket that leads to the guest's vsock ports; there while the VM runs.
    #[zbus(property(emits_changed_signal = "const"))]
    fn vsock_socket(&self) -> String {
        vsock_socket(&runtime_dir(&self.row.name)).to_string_lossy().into_owned()
    }

    /// Microseconds since 1970.
    #[zbus(property(emits_changed_signal = "const"))]
    fn created_timestamp(&self) -> u64 {
        self.row.created_usec
    }
}
