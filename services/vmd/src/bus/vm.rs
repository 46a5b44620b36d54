//! `org.banger.Vm1.Vm`: one VM.

use std::collections::HashMap;

use banger_api::agent::Port;
use banger_api::vm::{VmStats, vsock_socket};
use banger_api::{Error, Result};
use banger_core::name::VmName;
use banger_daemon::Gate;
use zbus::message::Header;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, fdo, interface};

use crate::request::{Change, delete_options, stop_options};
use crate::store::VmRow;
use crate::supervisor::{Supervisor, runtime_dir};

/// A VM as clients see it. It holds nothing but the name.
#[derive(Clone)]
pub struct VmObject {
    supervisor: Supervisor,
    gate: Gate,
    name: VmName,
}

impl VmObject {
    pub fn new(supervisor: Supervisor, gate: Gate, name: VmName) -> Self {
        Self { supervisor, gate, name }
    }

    /// The row; it may be gone by now, though its object is about to go as well.
    fn row(&self) -> fdo::Result<VmRow> {
        self.supervisor.get(&self.name).map_err(|error| fdo::Error::UnknownObject(error.message().to_owned()))
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
        let _call = self.gate.enter(&header, connection, &[("vm", self.name.as_str())]).await?;
        self.supervisor.start_job(self.name.clone()).await
    }

    /// As StopVm of the manager.
    #[zbus(out_args("job_id", "job"))]
    async fn stop(
        &self,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("vm", self.name.as_str())]).await?;
        self.supervisor.stop_job(self.name.clone(), stop_options(options)?).await
    }

    /// As DeleteVm of the manager.
    async fn delete(
        &self,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", self.name.as_str())]).await?;
        self.supervisor.delete(&self.name, delete_options(options)?).await
    }

    /// As RestartVm of the manager.
    #[zbus(out_args("job_id", "job"))]
    async fn restart(
        &self,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("vm", self.name.as_str())]).await?;
        self.supervisor.restart_job(self.name.clone(), stop_options(options)?).await
    }

    /// As KillVm of the manager.
    async fn kill(
        &self,
        signal: i32,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", self.name.as_str())]).await?;
        self.supervisor.kill(&self.name, signal).await
    }

    /// As PauseVm of the manager.
    async fn pause(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", self.name.as_str())]).await?;
        self.supervisor.pause(&self.name).await
    }

    /// As ResumeVm of the manager.
    async fn resume(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", self.name.as_str())]).await?;
        self.supervisor.resume(&self.name).await
    }

    /// As ResetVm of the manager.
    async fn reset(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", self.name.as_str())]).await?;
        self.supervisor.reset(&self.name).await
    }

    /// As SetVm of the manager.
    #[zbus(out_args("live", "next_start"))]
    async fn set(
        &self,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(Vec<&'static str>, Vec<&'static str>)> {
        let _call = self.gate.enter(&header, connection, &[("vm", self.name.as_str())]).await?;
        let effects = self.supervisor.set(&self.name, Change::new(options.into())?).await?;
        Ok((effects.live, effects.next_start))
    }

    /// As GetVmStats of the manager.
    #[zbus(out_args("stats"))]
    async fn get_stats(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<VmStats> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.supervisor.stats(&self.name).await
    }

    /// As PingVm of the manager.
    #[zbus(out_args("usec"))]
    async fn ping(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<u64> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.supervisor.ping(&self.name).await
    }

    /// As ListPorts of the manager.
    #[zbus(out_args("ports"))]
    async fn list_ports(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<Port>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.supervisor.ports(&self.name).await
    }

    /// As GetTimeline of the manager.
    #[zbus(out_args("stages"))]
    async fn get_timeline(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<(String, u64)>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.supervisor.timeline(&self.name)
    }

    /// Everything about the VM as JSON. Of its environment only the names: values may be secret.
    #[zbus(out_args("json"))]
    async fn describe(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        let row = self.supervisor.get(&self.name)?;
        let mut spec = serde_json::to_value(&row.spec).map_err(Error::internal)?;
        spec["environment"] = row.spec.environment.keys().cloned().collect();
        let description = serde_json::json!({
            "name": row.name,
            "state": self.supervisor.state(&row).as_str(),
            "health": self.supervisor.health(&row).as_str(),
            "heartbeat_usec": self.supervisor.heartbeat(&self.name),
            "image": row.image,
            "image_id": row.image_id,
            "kernel": row.kernel,
            "address": row.shown_address(),
            "address6": row.shown_address6(),
            "unit": row.name.unit(),
            "created_usec": row.created_usec,
            "started_usec": row.started_usec,
            "ended": row.ended,
            "disk_used": self.supervisor.disk_used(&row).await?,
            "spec": spec,
        });
        serde_json::to_string(&description).map_err(Error::internal)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> String {
        self.name.to_string()
    }

    /// created, starting, running, paused, stopping, stopped or failed.
    #[zbus(property)]
    fn state(&self) -> fdo::Result<String> {
        Ok(self.supervisor.state(&self.row()?).as_str().to_owned())
    }

    /// unknown, healthy or unresponsive: whether the guest's agent is heard, every 10 s. stalled while the host has
    /// no room for what the guest writes. unknown of a VM that does not run, or is paused.
    #[zbus(property)]
    fn health(&self) -> fdo::Result<String> {
        Ok(self.supervisor.health(&self.row()?).as_str().to_owned())
    }

    /// When the guest was last heard, microseconds since 1970; 0: never in this run.
    #[zbus(property(emits_changed_signal = "false"))]
    fn heartbeat_timestamp(&self) -> u64 {
        self.supervisor.heartbeat(&self.name).unwrap_or(0)
    }

    /// The image's name when the VM was created.
    #[zbus(property(emits_changed_signal = "const"))]
    fn image(&self) -> fdo::Result<String> {
        Ok(self.row()?.image)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn image_id(&self) -> fdo::Result<String> {
        Ok(self.row()?.image_id)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn kernel(&self) -> fdo::Result<String> {
        Ok(self.row()?.kernel)
    }

    /// The guest's address, empty without network.
    #[zbus(property)]
    fn address(&self) -> fdo::Result<String> {
        Ok(self.row()?.shown_address())
    }

    /// The guest's IPv6 address since its last start, empty without one.
    #[zbus(property)]
    fn address6(&self) -> fdo::Result<String> {
        Ok(self.row()?.shown_address6())
    }

    #[zbus(property)]
    fn cpus(&self) -> fdo::Result<u32> {
        Ok(self.row()?.spec.cpus)
    }

    #[zbus(property)]
    fn memory_bytes(&self) -> fdo::Result<u64> {
        Ok(self.row()?.spec.memory)
    }

    /// The size of the disk as the guest sees it; the file takes less.
    #[zbus(property)]
    fn disk_bytes(&self) -> fdo::Result<u64> {
        Ok(self.row()?.spec.disk)
    }

    /// The size of the disk at /work, 0 without one.
    #[zbus(property)]
    fn work_bytes(&self) -> fdo::Result<u64> {
        Ok(self.row()?.spec.work)
    }

    /// Volume, path in the guest, read-only.
    #[zbus(property)]
    fn volumes(&self) -> fdo::Result<Vec<(String, String, bool)>> {
        let mounts = self.row()?.spec.volumes;
        Ok(mounts.into_iter().map(|mount| (mount.volume, mount.path, mount.read_only)).collect())
    }

    /// auto, qemu or firecracker, as asked for.
    #[zbus(property)]
    fn vmm(&self) -> fdo::Result<String> {
        Ok(self.row()?.spec.vmm.as_str().to_owned())
    }

    #[zbus(property)]
    fn nat(&self) -> fdo::Result<bool> {
        Ok(self.row()?.spec.nat)
    }

    /// Ports of the host that lead to the guest: protocol, where it listens, port of the guest, whether it
    /// starts the VM.
    #[zbus(property)]
    fn forwards(&self) -> fdo::Result<Vec<(&'static str, String, u16, bool)>> {
        Ok(self.row()?.spec.shown_forwards())
    }

    /// The guest reaches the guests of VMs that share one of these groups, and no other's.
    #[zbus(property)]
    fn groups(&self) -> fdo::Result<Vec<String>> {
        Ok(self.row()?.spec.groups.into_iter().collect())
    }

    /// Where the guest gets beyond the host, with Nat: open (everywhere), closed (nowhere) or no-lan (not
    /// to addresses that are not of the internet).
    #[zbus(property)]
    fn egress(&self) -> fdo::Result<&'static str> {
        Ok(self.row()?.spec.egress.default.as_str())
    }

    /// What it reaches besides, such as 192.0.2.0/24:443/tcp.
    #[zbus(property)]
    fn egress_allow(&self) -> fdo::Result<Vec<String>> {
        Ok(self.row()?.spec.egress.shown_rules())
    }

    #[zbus(property)]
    fn labels(&self) -> fdo::Result<HashMap<String, String>> {
        Ok(self.row()?.spec.labels.into_iter().collect())
    }

    /// no, on-failure or always.
    #[zbus(property)]
    fn restart_policy(&self) -> fdo::Result<String> {
        Ok(self.row()?.spec.restart.as_str().to_owned())
    }

    /// Whether it starts with the host.
    #[zbus(property)]
    fn autostart(&self) -> fdo::Result<bool> {
        Ok(self.row()?.spec.autostart)
    }

    /// Seconds after its start at which the VM has had its time; 0: never.
    #[zbus(property)]
    fn ttl(&self) -> fdo::Result<u64> {
        Ok(self.row()?.spec.ttl)
    }

    /// What happens then: stop or delete.
    #[zbus(property)]
    fn expiry(&self) -> fdo::Result<String> {
        Ok(self.row()?.spec.expiry.as_str().to_owned())
    }

    /// Bytes a second of each disk, 0 without limit.
    #[zbus(property)]
    fn disk_bandwidth(&self) -> fdo::Result<u64> {
        Ok(self.row()?.spec.rates.disk_bandwidth.unwrap_or(0))
    }

    /// Operations a second of each disk, 0 without limit.
    #[zbus(property)]
    fn disk_iops(&self) -> fdo::Result<u64> {
        Ok(self.row()?.spec.rates.disk_iops.unwrap_or(0))
    }

    /// Bytes a second of the network in each direction, 0 without limit.
    #[zbus(property)]
    fn network_bandwidth(&self) -> fdo::Result<u64> {
        Ok(self.row()?.spec.rates.network_bandwidth.unwrap_or(0))
    }

    /// Packets a second of the network in each direction, 0 without limit.
    #[zbus(property)]
    fn network_packets(&self) -> fdo::Result<u64> {
        Ok(self.row()?.spec.rates.network_packets.unwrap_or(0))
    }

    /// The systemd unit that is the VM.
    #[zbus(property(emits_changed_signal = "const"))]
    fn unit(&self) -> String {
        self.name.unit()
    }

    /// The socket that leads to the guest's vsock ports; there while the VM runs.
    #[zbus(property(emits_changed_signal = "const"))]
    fn vsock_socket(&self) -> String {
        vsock_socket(&runtime_dir(&self.name)).to_string_lossy().into_owned()
    }

    /// Microseconds since 1970.
    #[zbus(property(emits_changed_signal = "const"))]
    fn created_timestamp(&self) -> fdo::Result<u64> {
        Ok(self.row()?.created_usec)
    }

    /// When it was last started, microseconds since 1970; 0: never.
    #[zbus(property)]
    fn started_timestamp(&self) -> fdo::Result<u64> {
        Ok(self.row()?.started_usec.unwrap_or(0))
    }

    /// When its last run ended; 0: never.
    #[zbus(property)]
    fn ended_timestamp(&self) -> fdo::Result<u64> {
        Ok(self.row()?.ended.map_or(0, |ended| ended.usec))
    }

    /// How its last run ended, for people; empty before the first end.
    #[zbus(property)]
    fn end_reason(&self) -> fdo::Result<String> {
        Ok(self.row()?.ended.map(|ended| ended.reason).unwrap_or_default())
    }
}
