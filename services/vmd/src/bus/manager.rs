//! `org.banger.Vm1.Manager`.

use std::collections::HashMap;
use std::time::Duration;

use banger_api::vm::{LaunchPlan, VmRow};
use banger_api::{Options, Result};
use banger_daemon::Gate;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, interface};

use crate::supervisor::{Create, Supervisor, vm_name, vm_path};

#[derive(Clone)]
pub struct Manager {
    supervisor: Supervisor,
    gate: Gate,
}

impl Manager {
    pub fn new(supervisor: Supervisor, gate: Gate) -> Self {
        Self { supervisor, gate }
    }
}

/// The options of stopping: seconds after which the guest is killed.
pub fn stop_options(options: HashMap<String, OwnedVariant>) -> Result<Option<Duration>> {
    let mut options = Options::from(options);
    let timeout = options.take::<u32>("timeout")?.map(|seconds| Duration::from_secs(seconds.into()));
    options.finish()?;
    Ok(timeout)
}

/// The options of deleting: whether a running VM is killed.
pub fn delete_options(options: HashMap<String, OwnedVariant>) -> Result<bool> {
    let mut options = Options::from(options);
    let force = options.take("force")?.unwrap_or(false);
    options.finish()?;
    Ok(force)
}

#[interface(name = "org.banger.Vm1.Manager")]
impl Manager {
    /// Creates a VM, and starts it if asked to. The image is pulled if it is not there.
    ///
    /// Options: cpus (u), memory (t, bytes), disk (t, bytes), kernel (s), kernel_arguments (s),
    /// vmm (s: auto, qemu, firecracker), network (b), nat (b), init (s: auto, agent, image),
    /// start (b). The job's outcome is the VM's name.
    #[zbus(out_args("job_id", "job"))]
    async fn create_vm(
        &self,
        name: &str,
        image: &str,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("vm", name)]).await?;
        let request = Create::new(name, image, options.into())?;
        Ok(self.supervisor.create_job(request).await)
    }

    /// Starts a VM; the job ends when the guest is ready.
    #[zbus(out_args("job_id", "job"))]
    async fn start_vm(
        &self,
        name: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("vm", name)]).await?;
        self.supervisor.start_job(vm_name(name)?).await
    }

    /// Stops a VM: the guest is asked first. Options: timeout (u), seconds after which it is
    /// killed.
    #[zbus(out_args("job_id", "job"))]
    async fn stop_vm(
        &self,
        name: &str,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("vm", name)]).await?;
        self.supervisor.stop_job(vm_name(name)?, stop_options(options)?).await
    }

    /// Deletes a VM and its disk. Options: force (b), kill it first if it runs.
    async fn delete_vm(
        &self,
        name: &str,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", name)]).await?;
        self.supervisor.delete(&vm_name(name)?, delete_options(options)?).await
    }

    /// All VMs: name, state, image, address (empty without network), object path.
    #[zbus(out_args("vms"))]
    async fn list_vms(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<VmRow>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        let rows = self.supervisor.list().await?;
        let row = |row: crate::store::VmRow| {
            let state = self.supervisor.state(&row.name).as_str().to_owned();
            let path = vm_path(&row.name);
            let address = row.shown_address();
            (row.name.to_string(), state, row.image, address, path)
        };
        Ok(rows.into_iter().map(row).collect())
    }

    #[zbus(out_args("vm"))]
    async fn get_vm(
        &self,
        name: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        let row = self.supervisor.get(&vm_name(name)?).await?;
        Ok(vm_path(&row.name))
    }

    /// For the VM's unit alone: gets everything ready and returns what to execute.
    #[zbus(out_args("plan"))]
    async fn prepare_vm(
        &self,
        name: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<LaunchPlan> {
        let call = self.gate.enter(&header, connection, &[]).await?;
        self.supervisor.prepare(&vm_name(name)?, call.caller).await
    }

    /// For the VM's unit alone: gives back what only a running VM needs.
    async fn release_vm(
        &self,
        name: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let call = self.gate.enter(&header, connection, &[]).await?;
        self.supervisor.release(&vm_name(name)?, call.caller).await
    }

    #[zbus(signal)]
    async fn vm_new(emitter: &SignalEmitter<'_>, name: &str, vm: OwnedObjectPath) -> zbus::Result<()>;
    #[zbus(signal)]
    async fn vm_removed(emitter: &SignalEmitter<'_>, name: &str, vm: OwnedObjectPath) -> zbus::Result<()>;
    #[zbus(signal)]
    async fn job_new(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        kind: &str,
    ) -> zbus::Result<()>;
    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        subject: &str,
        result: &str,
    ) -> zbus::Result<()>;
}
