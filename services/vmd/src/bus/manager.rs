//! `org.banger.Vm1.Manager`.

use std::collections::HashMap;

use banger_api::access::IMAGE_MANAGE;
use banger_api::agent::Port;
use banger_api::vm::{ForwardRow, Host, LaunchPlan, SnapshotRow, VmRow, VmStats, VolumeRow};
use banger_api::{ImageSettings, Options, Result};
use banger_daemon::Gate;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, interface};

use crate::config::Config;
use crate::request::{
    Change, Create, delete_options, listen_of, new_forward, new_snapshot_name, snapshot_name, stop_options,
    vm_name, volume_name,
};
use crate::supervisor::{self, Promotion, Supervisor, vm_path};

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

#[interface(name = "org.banger.Vm1.Manager")]
impl Manager {
    /// Creates a VM, and starts it if asked to. The image is pulled if it is not there.
    ///
    /// Options: kernel (s), start (b), and all options of SetVm, which have defaults in vmd.conf.
    /// The job's outcome is the VM's name.
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
        let request = Create::new(name, image, options.into(), &Config::load()?.defaults)?;
        Ok(self.supervisor.create_job(request).await)
    }

    /// Starts a VM; the job ends when the guest is ready. One that runs is left as it is, one that starts is
    /// waited for.
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

    /// Stops a VM, if it runs: the guest is asked first. Options: timeout (u), seconds after which it
    /// is killed.
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

    /// Stops a VM, if it runs, and starts it again. Options: as StopVm.
    #[zbus(out_args("job_id", "job"))]
    async fn restart_vm(
        &self,
        name: &str,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("vm", name)]).await?;
        self.supervisor.restart_job(vm_name(name)?, stop_options(options)?).await
    }

    /// Sends a signal to the VMM. The guest hears nothing of it.
    async fn kill_vm(
        &self,
        name: &str,
        signal: i32,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", name)]).await?;
        self.supervisor.kill(&vm_name(name)?, signal).await
    }

    /// Makes the guest's CPUs stand still.
    async fn pause_vm(
        &self,
        name: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", name)]).await?;
        self.supervisor.pause(&vm_name(name)?).await
    }

    /// Lets the guest's CPUs go on.
    async fn resume_vm(
        &self,
        name: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", name)]).await?;
        self.supervisor.resume(&vm_name(name)?).await
    }

    /// Throws away what the guest wrote to its disk; the work disk and volumes stay.
    async fn reset_vm(
        &self,
        name: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", name)]).await?;
        self.supervisor.reset(&vm_name(name)?).await
    }

    /// Changes what a VM is to be. Says which options are in effect now, and which from the next
    /// start.
    ///
    /// Options: cpus (u), memory (t), disk (t), work (t) (bytes; disks only grow), volumes
    /// (a(ssb): volume, path in the guest, read-only), kernel_arguments (s), vmm (s: auto, qemu,
    /// firecracker), init (s: auto, agent, image), network (b), nat (b), forwards (a(ssqb), instead
    /// of those there are: protocol, where it listens, port of the guest, whether it starts the VM),
    /// groups (as: instead of those there are; the guest reaches those who share one), egress (s: open,
    /// closed, no-lan: where the guest gets beyond the host; open takes egress_allow away), egress_allow
    /// (as: instead of those there are, what it reaches besides: TO[:PORT[-PORT]][/tcp|/udp], with a
    /// network, an address or a name such as *.example.org), environment and labels (a{ss}: added to
    /// those there are), remove_environment and remove_labels (as),
    /// authorized_keys (as: public keys for SSH instead of those there are), restart (s: no,
    /// on-failure, always), autostart (b), ttl (t, seconds, 0: for ever), expiry (s: stop,
    /// delete), memory_max (t, bytes), cpu_quota (u, percent of one CPU), io_weight (u), tasks_max
    /// (t), disk_bandwidth (t, bytes a second of each disk), disk_iops (t, operations a second of
    /// each disk), network_bandwidth and network_packets (t, a second and direction)
    /// (0: no limit). Memory of a running VM follows by its balloon, up to what it was started with.
    #[zbus(out_args("live", "next_start"))]
    async fn set_vm(
        &self,
        name: &str,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(Vec<&'static str>, Vec<&'static str>)> {
        let _call = self.gate.enter(&header, connection, &[("vm", name)]).await?;
        let effects = self.supervisor.set(&vm_name(name)?, Change::new(options.into())?).await?;
        Ok((effects.live, effects.next_start))
    }

    /// What keeps a VM from starting: names and messages of errors; none if nothing does. And what
    /// it would start without.
    #[zbus(out_args("problems", "warnings"))]
    async fn check_vm(
        &self,
        name: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(Vec<(String, String)>, Vec<String>)> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        let (problems, warnings) = self.supervisor.check(&vm_name(name)?).await?;
        let shown = |error: banger_api::Error| (error.kind().name().to_owned(), error.message().to_owned());
        Ok((problems.into_iter().map(shown).collect(), warnings))
    }

    /// The figures of a running VM. Counters count since its start; what is not known is left out.
    ///
    /// Of the host: monotonic_usec (t: when, since the host's boot), cpu_usec, memory_bytes,
    /// memory_peak_bytes, io_read_bytes, io_written_bytes, tasks, disk_used_bytes (t);
    /// net_received_bytes, net_received_packets, net_received_dropped, net_sent_bytes,
    /// net_sent_packets, net_sent_dropped (t: of the TAP, as the guest sees it); reachable (b: whether
    /// the guest has answered). Of the guest: guest (a{sv}, as Stats of org.banger.Agent1
    /// has it: load, memory, filesystems, counters of its disks and network interfaces).
    #[zbus(out_args("stats"))]
    async fn get_vm_stats(
        &self,
        name: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<VmStats> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.supervisor.stats(&vm_name(name)?).await
    }

    /// Asks the guest's agent for a sign of life. Returns how long the answer took, in
    /// microseconds.
    #[zbus(out_args("usec"))]
    async fn ping_vm(
        &self,
        name: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<u64> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.supervisor.ping(&vm_name(name)?).await
    }

    /// What listens in the guest's network: protocol (tcp, udp, tcp6, udp6), address, port, name
    /// and id of the process (empty and 0 if not known).
    #[zbus(out_args("ports"))]
    async fn list_ports(
        &self,
        name: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<Port>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.supervisor.ports(&vm_name(name)?).await
    }

    /// The stages of the VM's last start, and when each began (microseconds since 1970). Kept after
    /// the VM's end, until its next start or the host's next boot.
    ///
    /// request (missing if vmd was not asked), unit, prepare, tap, helpers, vmm; kernel, agent,
    /// disks, network, init in the guest, or restore; ready.
    #[zbus(out_args("stages"))]
    async fn get_timeline(
        &self,
        name: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<(String, u64)>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.supervisor.timeline(&vm_name(name)?)
    }

    /// Keeps what a running VM is: memory, devices, disks. The guest stands still meanwhile, and
    /// connections into it break off. An empty name has one made up, which is the job's outcome.
    #[zbus(out_args("job_id", "job"))]
    async fn create_snapshot(
        &self,
        name: &str,
        snapshot: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("vm", name)]).await?;
        self.supervisor.snapshot_job(vm_name(name)?, new_snapshot_name(snapshot)?).await
    }

    async fn delete_snapshot(
        &self,
        name: &str,
        snapshot: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", name)]).await?;
        self.supervisor.delete_snapshot(&vm_name(name)?, &snapshot_name(snapshot)?).await
    }

    /// Snapshots of a VM, oldest first: name, time (microseconds since 1970), bytes that it takes,
    /// VMM.
    #[zbus(out_args("snapshots"))]
    async fn list_snapshots(
        &self,
        name: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<SnapshotRow>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.supervisor.list_snapshots(&vm_name(name)?).await
    }

    /// Has a stopped VM go on from a snapshot of it. What it wrote to its disks since is lost.
    #[zbus(out_args("job_id", "job"))]
    async fn restore_vm(
        &self,
        name: &str,
        snapshot: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("vm", name)]).await?;
        self.supervisor.restore_job(vm_name(name)?, snapshot_name(snapshot)?).await
    }

    /// Makes VMs that go on from where a running one is now, each with its own name, address,
    /// machine id and randomness.
    #[zbus(out_args("job_id", "job"))]
    async fn fork_vm(
        &self,
        name: &str,
        names: Vec<String>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("vm", name)]).await?;
        let names = names.iter().map(|name| vm_name(name)).collect::<Result<_>>()?;
        self.supervisor.fork_job(vm_name(name)?, names).await
    }

    /// Makes an image of what a VM's disk holds, with the environment, command and user of the image
    /// that it was made of. Writers to the disk of a running VM wait meanwhile; a VM that does not run is
    /// started for it without any program of its own, and stopped again. The job's outcome is the
    /// image's name.
    ///
    /// Options: `replace b` (take the name from the image that has it), and what the image is to say of
    /// programs instead: `environment a{ss}` and `labels a{ss}` (added to what there is), `user s`,
    /// `working_directory s`, `entrypoint as`, `command as`.
    #[zbus(out_args("job_id", "job"))]
    async fn promote_vm(
        &self,
        name: &str,
        image: String,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let call = self.gate.enter(&header, connection, &[("vm", name)]).await?;
        self.gate.ask_also(&call, IMAGE_MANAGE, &header, connection, &[("image", &image)]).await?;
        let mut options = Options::from(options);
        let wanted = Promotion {
            image,
            replace: options.take("replace")?.unwrap_or_default(),
            settings: ImageSettings::take(&mut options)?,
        };
        options.finish()?;
        self.supervisor.promote_job(vm_name(name)?, wanted).await
    }

    /// Makes a volume: a disk that exists by itself, with an empty filesystem.
    async fn create_volume(
        &self,
        name: &str,
        bytes: u64,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("volume", name)]).await?;
        self.supervisor.create_volume(volume_name(name)?, bytes).await
    }

    /// Deletes a volume that no VM has.
    async fn delete_volume(
        &self,
        name: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("volume", name)]).await?;
        self.supervisor.delete_volume(volume_name(name)?).await
    }

    /// All volumes: name, size in bytes, time of creation (microseconds since 1970), the VMs that
    /// have it.
    #[zbus(out_args("volumes"))]
    async fn list_volumes(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<VolumeRow>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.supervisor.volumes().await
    }

    /// Removes what belongs to no VM and no volume, such as what a crash left: disks, leases, failures
    /// of units. Returns what was found, a line each. VMs that run are not touched.
    #[zbus(out_args("repairs"))]
    async fn reconcile(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<String>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.supervisor.reconcile().await
    }

    /// What `Reconcile` would find, a line each. Nothing is changed.
    #[zbus(out_args("orphans"))]
    async fn list_orphans(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<String>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.supervisor.orphans().await
    }

    /// What the host has to run VMs with: vmm (s: what the choice auto means, empty if no VM can run), problem (s: what
    /// is missing then), firecracker, firecracker_version, qemu, qemu_version, vhost_device_vsock (s: paths of
    /// programs, and their versions, left out where there are none), kvm (b: whether guests run on the CPU
    /// itself; else they are emulated).
    #[zbus(out_args("host"))]
    async fn get_host(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Host> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        Ok(supervisor::host())
    }

    /// For the boot: starts every VM that is to start with the host.
    async fn autostart(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.supervisor.autostart().await
    }

    /// For the timer: stops or deletes the VMs whose time is up. Returns their names.
    #[zbus(out_args("vms"))]
    async fn reap(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<String>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.supervisor.reap().await
    }

    /// All VMs: name, state, image, address (empty without network), health, object path.
    #[zbus(out_args("vms"))]
    async fn list_vms(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<VmRow>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        let row = |row: crate::store::VmRow| {
            let state = self.supervisor.state(&row).as_str().to_owned();
            let path = vm_path(&row.name);
            let (address, health) = (row.shown_address(), self.supervisor.health(&row).as_str().to_owned());
            (row.name.to_string(), state, row.image, address, health, path)
        };
        Ok(self.supervisor.list().into_iter().map(row).collect())
    }

    #[zbus(out_args("vm"))]
    async fn get_vm(
        &self,
        name: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        let row = self.supervisor.get(&vm_name(name)?)?;
        Ok(vm_path(&row.name))
    }

    /// Leads a port of the host (protocol tcp or udp, address and port such as 127.0.0.1:8080) to a port of a
    /// VM's guest. It listens while the VM runs or, with the option on_demand (b), as long as there is the
    /// VM, which the first connection starts then.
    #[allow(clippy::too_many_arguments)]
    async fn add_forward(
        &self,
        name: &str,
        protocol: String,
        listen: String,
        port: u16,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", name)]).await?;
        self.supervisor.add_forward(&vm_name(name)?, new_forward(protocol, listen, port, options)?).await
    }

    /// Takes a forward away. Connections through it break off.
    async fn remove_forward(
        &self,
        protocol: &str,
        listen: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.supervisor.remove_forward(&listen_of(protocol, listen)?).await
    }

    /// All forwards: VM, protocol, where it listens, port of the guest, whether it starts the VM, whether it
    /// listens now.
    #[zbus(out_args("forwards"))]
    async fn list_forwards(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<ForwardRow>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.supervisor.forwards().await
    }

    /// For the forward's unit alone: sees to it that the VM runs, and returns its address and the port.
    #[zbus(out_args("address", "port"))]
    async fn prepare_forward(
        &self,
        protocol: &str,
        listen: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(String, u16)> {
        let call = self.gate.enter(&header, connection, &[]).await?;
        self.supervisor.prepare_forward(&listen_of(protocol, listen)?, call.caller).await
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

    /// For the VM's unit alone, after the end of its VMM: gives back what only a running VM needs.
    /// Returns whether the unit is to fail, and how the run ended.
    #[zbus(out_args("failed", "reason"))]
    async fn release_vm(
        &self,
        name: &str,
        result: &str,
        goodbye: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(bool, String)> {
        let call = self.gate.enter(&header, connection, &[]).await?;
        let verdict = self.supervisor.release(&vm_name(name)?, result, goodbye, call.caller).await?;
        Ok((verdict.failed, verdict.reason.to_owned()))
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
