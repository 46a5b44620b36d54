//! `org.banger.Vm1`: the VM supervisor.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use zbus::{DeserializeDict, OwnedObjectPath, SerializeDict, Type, Variant, proxy};

use crate::access::{Access, Entry, VM_MANAGE};
use crate::agent::{Port, Stats};

/// Prefix of the objects of VMs.
pub const VM_PREFIX: &str = "/org/banger/Vm1/vm";
pub const MANAGER: &str = "org.banger.Vm1.Manager";
pub const VM: &str = "org.banger.Vm1.Vm";

/// Where the units of VMs reach vmd: its objects, peer to peer.
pub const LAUNCH_SOCKET: &str = "/run/banger/launch.sock";

/// Where the VMM of a VM keeps its sockets: `NAME` below this directory.
pub const RUNTIME_DIR: &str = "/run/banger/vm";

/// Name of a file in a VM's runtime directory that is there while its CPUs stand still.
pub const PAUSE_MARK: &str = "paused";

/// Name of a file in a VM's runtime directory whose time is that of the guest's last sign of life.
pub const HEARTBEAT: &str = "heartbeat";

/// The socket that leads to the vsock ports of the guest with this runtime directory.
///
/// All VMMs offer Firecracker's convention: a client connects and writes `CONNECT <port>\n`, is
/// answered `OK <port>\n`, and talks to the guest from then on; a connection of the guest to port
/// `n` of the host arrives at this path with `_n` appended.
pub fn vsock_socket(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("vsock.sock")
}

/// Where whoever is about to call a guest by [`vsock_socket`] leaves its socket: a datagram with that, unconnected yet,
/// and with the reading end of a pipe, to which it writes a byte when it has its answer.
pub fn calls_socket(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("calls.sock")
}

pub const ACCESS: &[Entry] = &[
    (MANAGER, "CreateVm", Access::Action(VM_MANAGE)),
    (MANAGER, "StartVm", Access::Action(VM_MANAGE)),
    (MANAGER, "StopVm", Access::Action(VM_MANAGE)),
    (MANAGER, "RestartVm", Access::Action(VM_MANAGE)),
    (MANAGER, "KillVm", Access::Action(VM_MANAGE)),
    (MANAGER, "PauseVm", Access::Action(VM_MANAGE)),
    (MANAGER, "ResumeVm", Access::Action(VM_MANAGE)),
    (MANAGER, "ResetVm", Access::Action(VM_MANAGE)),
    (MANAGER, "SetVm", Access::Action(VM_MANAGE)),
    (MANAGER, "DeleteVm", Access::Action(VM_MANAGE)),
    (MANAGER, "CheckVm", Access::Read),
    (MANAGER, "GetVmStats", Access::Read),
    (MANAGER, "PingVm", Access::Read),
    (MANAGER, "ListPorts", Access::Read),
    (MANAGER, "GetTimeline", Access::Read),
    (MANAGER, "ListVms", Access::Read),
    (MANAGER, "GetVm", Access::Read),
    (MANAGER, "CreateSnapshot", Access::Action(VM_MANAGE)),
    (MANAGER, "DeleteSnapshot", Access::Action(VM_MANAGE)),
    (MANAGER, "ListSnapshots", Access::Read),
    (MANAGER, "RestoreVm", Access::Action(VM_MANAGE)),
    (MANAGER, "ForkVm", Access::Action(VM_MANAGE)),
    // The service asks for that of images, too.
    (MANAGER, "PromoteVm", Access::Action(VM_MANAGE)),
    (MANAGER, "AddForward", Access::Action(VM_MANAGE)),
    (MANAGER, "RemoveForward", Access::Action(VM_MANAGE)),
    (MANAGER, "ListForwards", Access::Read),
    (MANAGER, "CreateVolume", Access::Action(VM_MANAGE)),
    (MANAGER, "DeleteVolume", Access::Action(VM_MANAGE)),
    (MANAGER, "ListVolumes", Access::Read),
    (MANAGER, "Reconcile", Access::Action(VM_MANAGE)),
    (MANAGER, "ListOrphans", Access::Read),
    (MANAGER, "GetHost", Access::Read),
    // For units of banger's own: the boot, and the timer that looks whose time is up.
    (MANAGER, "Autostart", Access::Internal),
    (MANAGER, "Reap", Access::Internal),
    // Only for the unit of the VM itself, which the service finds out from systemd.
    (MANAGER, "PrepareVm", Access::Own),
    (MANAGER, "ReleaseVm", Access::Own),
    (MANAGER, "PrepareForward", Access::Own),
    (VM, "Start", Access::Action(VM_MANAGE)),
    (VM, "Stop", Access::Action(VM_MANAGE)),
    (VM, "Restart", Access::Action(VM_MANAGE)),
    (VM, "Kill", Access::Action(VM_MANAGE)),
    (VM, "Pause", Access::Action(VM_MANAGE)),
    (VM, "Resume", Access::Action(VM_MANAGE)),
    (VM, "Reset", Access::Action(VM_MANAGE)),
    (VM, "Set", Access::Action(VM_MANAGE)),
    (VM, "Delete", Access::Action(VM_MANAGE)),
    (VM, "GetStats", Access::Read),
    (VM, "Ping", Access::Read),
    (VM, "ListPorts", Access::Read),
    (VM, "GetTimeline", Access::Read),
    (VM, "Describe", Access::Read),
    (crate::job::INTERFACE, "Cancel", Access::Action(VM_MANAGE)),
];

/// One snapshot as `ListSnapshots` returns it: name, time (microseconds since 1970), bytes that it
/// takes, VMM.
pub type SnapshotRow = (String, u64, u64, String);

/// One volume as `ListVolumes` returns it: name, size in bytes, time of creation (microseconds
/// since 1970), the VMs that have it.
pub type VolumeRow = (String, u64, u64, Vec<String>);

/// One forward as `ListForwards` returns it: VM, protocol (`tcp`, `udp`), where it listens
/// (`127.0.0.1:8080`), port of the guest, whether it starts the VM, whether it listens now.
pub type ForwardRow = (String, String, String, u16, bool, bool);

/// The figures of a running VM; the reply of `GetVmStats`. What is not known is left out: the host
/// may not account for it, and the guest may not answer. Counters count since the VM's start.
#[derive(Debug, Clone, Default, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "dict")]
pub struct VmStats {
    /// When the figures were taken, microseconds since the host's boot (`CLOCK_MONOTONIC`).
    pub monotonic_usec: u64,
    /// CPU time of the VMM, and so of the guest, in microseconds.
    pub cpu_usec: Option<u64>,
    /// Memory of the host that the VM takes, and the most it took, in bytes.
    pub memory_bytes: Option<u64>,
    pub memory_peak_bytes: Option<u64>,
    /// What went to and from the host's disks, in bytes.
    pub io_read_bytes: Option<u64>,
    pub io_written_bytes: Option<u64>,
    /// Processes and threads in the VM's unit.
    pub tasks: Option<u64>,
    /// What went through its network interface, as the guest sees it, counted by the host: what it
    /// received and sent, and what was dropped on the way to it and from it.
    pub net_received_bytes: Option<u64>,
    pub net_received_packets: Option<u64>,
    pub net_received_dropped: Option<u64>,
    pub net_sent_bytes: Option<u64>,
    pub net_sent_packets: Option<u64>,
    pub net_sent_dropped: Option<u64>,
    /// What the VM's own disks take on the host, in bytes.
    pub disk_used_bytes: u64,
    /// Whether the guest has answered in time. A paused one does not.
    pub reachable: bool,
    /// What the guest says of itself.
    pub guest: Option<Stats>,
}

/// What the host has to run VMs with; the reply of `GetHost`. Programs by their paths.
#[derive(Debug, Clone, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "dict")]
pub struct Host {
    /// What the choice `auto` means: `firecracker` or `qemu`; empty if no VM can run.
    pub vmm: String,
    /// What is missing then, and what to do about it.
    pub problem: Option<String>,
    pub firecracker: Option<String>,
    pub firecracker_version: Option<String>,
    pub qemu: Option<String>,
    pub qemu_version: Option<String>,
    pub vhost_device_vsock: Option<String>,
    /// Whether guests run on the CPU itself; else they are emulated.
    pub kvm: bool,
}

/// One VM as `ListVms` returns it: name, state, image, address (empty without network), health, path.
pub type VmRow = (String, String, String, String, String, OwnedObjectPath);

/// What a VM's unit executes; the reply of `PrepareVm`.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "dict")]
pub struct LaunchPlan {
    /// Files to write into the runtime directory first: name, content.
    pub files: HashMap<String, String>,
    /// Symbolic links to make in the runtime directory: name, target.
    pub links: HashMap<String, String>,
    /// Named pipes to make in the runtime directory, by which the VMM tells of itself.
    pub pipes: Vec<String>,
    /// Processes to start beside the VMM: command line, and the socket that is there once the
    /// process is ready.
    pub helpers: Vec<(Vec<String>, String)>,
    /// Command line of the VMM.
    pub command: Vec<String>,
    /// The guest's configuration as JSON, see `banger_core::guest`.
    pub guest_config: String,
    /// What the guest comes up without, for people.
    pub warnings: Vec<String>,
    /// The stages of `banger_core::timeline` up to here, and when each began.
    pub timeline: Vec<(String, u64)>,
}

#[proxy(
    interface = "org.banger.Vm1.Manager",
    default_service = "org.banger.Vm1",
    default_path = "/org/banger/Vm1"
)]
pub trait Manager {
    /// Creates a VM, and starts it if asked to.
    ///
    /// The image is pulled if it is not there. With an empty `name` the VM gets a readable one,
    /// which is the job's outcome. Options: `kernel s`, `start b`, and those of [`set_vm`], which
    /// have defaults in `/etc/banger/vmd.conf`.
    ///
    /// [`set_vm`]: ManagerProxy::set_vm
    #[zbus(allow_interactive_auth)]
    fn create_vm(
        &self,
        name: &str,
        image: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(u32, OwnedObjectPath)>;

    /// Starts a VM; the job ends when the guest is ready. One that runs is left as it is, one that starts is
    /// waited for.
    #[zbus(allow_interactive_auth)]
    fn start_vm(&self, name: &str) -> zbus::Result<(u32, OwnedObjectPath)>;

    /// Stops a VM, if it runs: the guest is asked first. Options: `timeout u`, seconds after which it
    /// is killed (default: as the unit says).
    #[zbus(allow_interactive_auth)]
    fn stop_vm(
        &self,
        name: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(u32, OwnedObjectPath)>;

    /// Deletes a VM and its disk. Options: `force b`, kill it first if it runs.
    #[zbus(allow_interactive_auth)]
    fn delete_vm(&self, name: &str, options: HashMap<&str, Variant<'_>>) -> zbus::Result<()>;

    /// Stops a VM, if it runs, and starts it again. Options: as `StopVm`.
    #[zbus(allow_interactive_auth)]
    fn restart_vm(
        &self,
        name: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(u32, OwnedObjectPath)>;

    /// Sends a signal to the VMM. The guest hears nothing of it.
    #[zbus(allow_interactive_auth)]
    fn kill_vm(&self, name: &str, signal: i32) -> zbus::Result<()>;

    /// Makes the guest's CPUs stand still.
    #[zbus(allow_interactive_auth)]
    fn pause_vm(&self, name: &str) -> zbus::Result<()>;

    #[zbus(allow_interactive_auth)]
    fn resume_vm(&self, name: &str) -> zbus::Result<()>;

    /// Throws away what the guest wrote to its disk; the work disk and volumes stay.
    #[zbus(allow_interactive_auth)]
    fn reset_vm(&self, name: &str) -> zbus::Result<()>;

    /// Changes what a VM is to be. Returns the names of the options that are in effect now, and
    /// of those that will be from the next start.
    ///
    /// Options: `cpus u`, `memory t`, `disk t`, `work t` (bytes; disks only grow), `volumes
    /// a(ssb)` (volume, path in the guest, read-only), `kernel_arguments s`, `vmm s` (`auto`,
    /// `qemu`, `firecracker`), `init s` (`auto`, `agent`, `image`), `network b`, `nat b`,
    /// `forwards a(ssqb)` (instead of those there are: protocol, where it listens, port of the guest,
    /// whether it starts the VM), `groups as` (instead of those there are; the guest reaches those
    /// who share one), `egress s` (`open`, `closed`, `no-lan`: where the guest gets beyond the host;
    /// `open` takes `egress_allow` away), `egress_allow as` (instead of those there are, what it
    /// reaches besides: `TO[:PORT[-PORT]][/tcp|/udp]`, with a network, an address or a name such as
    /// `*.example.org`),
    /// `environment a{ss}` and `labels a{ss}` (added to those there are), `remove_environment as`,
    /// `remove_labels as`, `authorized_keys as` (public keys for SSH, instead of those there are),
    /// `restart s` (`no`, `on-failure`, `always`), `autostart b`, `ttl t`
    /// (seconds, 0: for ever), `expiry s` (`stop`, `delete`), `memory_max t` (bytes),
    /// `cpu_quota u` (percent of one CPU), `io_weight u`, `tasks_max t`, `disk_bandwidth t` (bytes a
    /// second of each disk), `disk_iops t` (operations a second of each disk), `network_bandwidth t`
    /// and `network_packets t` (a second and direction) (0: no limit).
    /// Memory of a running VM follows by its balloon, up to what it was started with.
    #[zbus(allow_interactive_auth)]
    fn set_vm(
        &self,
        name: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(Vec<String>, Vec<String>)>;

    /// What keeps a VM from starting: pairs of an error's name and message; none if nothing does.
    /// And what it would start without, for people.
    fn check_vm(&self, name: &str) -> zbus::Result<(Vec<(String, String)>, Vec<String>)>;

    /// Keeps what a running VM is: memory, devices, disks. The guest stands still meanwhile, and
    /// connections into it break off. An empty `snapshot` has a name made up, which is the job's
    /// outcome.
    #[zbus(allow_interactive_auth)]
    fn create_snapshot(&self, name: &str, snapshot: &str) -> zbus::Result<(u32, OwnedObjectPath)>;

    #[zbus(allow_interactive_auth)]
    fn delete_snapshot(&self, name: &str, snapshot: &str) -> zbus::Result<()>;

    fn list_snapshots(&self, name: &str) -> zbus::Result<Vec<SnapshotRow>>;

    /// Has a stopped VM go on from a snapshot of it. What it wrote to its disks since is lost.
    #[zbus(allow_interactive_auth)]
    fn restore_vm(&self, name: &str, snapshot: &str) -> zbus::Result<(u32, OwnedObjectPath)>;

    /// Makes VMs that go on from where a running one is now, each with its own name, address,
    /// machine id and randomness.
    #[zbus(allow_interactive_auth)]
    fn fork_vm(&self, name: &str, names: &[&str]) -> zbus::Result<(u32, OwnedObjectPath)>;

    /// Makes an image of what a VM's disk holds, with the environment, command and user of the image
    /// that it was made of. Writers to the disk of a running VM wait meanwhile; a VM that does not run is started
    /// for it without any program of its own, and stopped again. The job's outcome is the image's
    /// name. Options: `replace b` (take the name from the image that has it), and those of
    /// [`ImageSettings`](crate::ImageSettings): what the image is to say of programs instead.
    ///
    /// Errors: `NoSuchVm`, `NameTaken`, `VmPaused`, `VmNotRunning` if it goes down meanwhile.
    #[zbus(allow_interactive_auth)]
    fn promote_vm(
        &self,
        name: &str,
        image: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(u32, OwnedObjectPath)>;

    /// Leads a port of the host to one of a VM's guest. It listens while the VM runs or, with the option
    /// `on_demand b`, as long as there is the VM, and starts it then.
    ///
    /// Errors: `NoSuchVm`, `InvalidArgs`, `PortInUse`.
    #[zbus(allow_interactive_auth)]
    fn add_forward(
        &self,
        name: &str,
        protocol: &str,
        listen: &str,
        port: u16,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<()>;

    /// Errors: `NoSuchForward`, `InvalidArgs`.
    #[zbus(allow_interactive_auth)]
    fn remove_forward(&self, protocol: &str, listen: &str) -> zbus::Result<()>;

    fn list_forwards(&self) -> zbus::Result<Vec<ForwardRow>>;

    /// Makes a volume: a disk that exists by itself, with an empty filesystem of `bytes`.
    #[zbus(allow_interactive_auth)]
    fn create_volume(&self, name: &str, bytes: u64) -> zbus::Result<()>;

    /// Deletes a volume that no VM has.
    #[zbus(allow_interactive_auth)]
    fn delete_volume(&self, name: &str) -> zbus::Result<()>;

    /// The figures of a running VM.
    ///
    /// Errors: `NoSuchVm`, `VmNotRunning`.
    fn get_vm_stats(&self, name: &str) -> zbus::Result<VmStats>;

    /// Asks the guest's agent for a sign of life, and returns how long the answer took, in
    /// microseconds.
    ///
    /// Errors: `NoSuchVm`, `VmNotRunning`, `VmPaused`, `AgentUnreachable`.
    fn ping_vm(&self, name: &str) -> zbus::Result<u64>;

    /// What listens in the guest's network. Errors: as [`ManagerProxy::ping_vm`].
    fn list_ports(&self, name: &str) -> zbus::Result<Vec<Port>>;

    /// The stages of the VM's last start, and when each began in microseconds since 1970; see
    /// `banger_core::timeline`. Empty if it was not started since the host's boot.
    fn get_timeline(&self, name: &str) -> zbus::Result<Vec<(String, u64)>>;

    fn list_volumes(&self) -> zbus::Result<Vec<VolumeRow>>;

    /// Removes what belongs to no VM and no volume, such as what a crash left. Returns what was
    /// found, for people, a line each.
    #[zbus(allow_interactive_auth)]
    fn reconcile(&self) -> zbus::Result<Vec<String>>;

    /// What `Reconcile` would find.
    fn list_orphans(&self) -> zbus::Result<Vec<String>>;

    /// What the host has to run VMs with.
    fn get_host(&self) -> zbus::Result<Host>;

    fn list_vms(&self) -> zbus::Result<Vec<VmRow>>;

    fn get_vm(&self, name: &str) -> zbus::Result<OwnedObjectPath>;

    /// For the VM's unit: gets everything ready and returns what to execute.
    fn prepare_vm(&self, name: &str) -> zbus::Result<LaunchPlan>;

    /// For a forward's unit: sees to it that the VM runs, and returns its address and port.
    fn prepare_forward(&self, protocol: &str, listen: &str) -> zbus::Result<(String, u16)>;

    /// For the VM's unit: gives back what only a running VM needs.
    /// `result` is `$SERVICE_RESULT` of systemd.exec(5), `goodbye` the last that is known of the guest: a word of
    /// `banger_core::ending::Goodbye`, or nothing. Returns whether the unit is to fail, and why.
    fn release_vm(&self, name: &str, result: &str, goodbye: &str) -> zbus::Result<(bool, String)>;

    #[zbus(signal)]
    fn vm_new(&self, name: String, vm: OwnedObjectPath) -> zbus::Result<()>;
    #[zbus(signal)]
    fn vm_removed(&self, name: String, vm: OwnedObjectPath) -> zbus::Result<()>;
    #[zbus(signal)]
    fn job_new(&self, id: u32, job: OwnedObjectPath, kind: String) -> zbus::Result<()>;
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, subject: String, result: String)
    -> zbus::Result<()>;
}

#[proxy(interface = "org.banger.Vm1.Vm", default_service = "org.banger.Vm1", assume_defaults = false)]
pub trait Vm {
    #[zbus(allow_interactive_auth)]
    fn start(&self) -> zbus::Result<(u32, OwnedObjectPath)>;
    #[zbus(allow_interactive_auth)]
    fn stop(&self, options: HashMap<&str, Variant<'_>>) -> zbus::Result<(u32, OwnedObjectPath)>;
    #[zbus(allow_interactive_auth)]
    fn delete(&self, options: HashMap<&str, Variant<'_>>) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn restart(&self, options: HashMap<&str, Variant<'_>>) -> zbus::Result<(u32, OwnedObjectPath)>;
    #[zbus(allow_interactive_auth)]
    fn kill(&self, signal: i32) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn pause(&self) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn resume(&self) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn reset(&self) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn set(&self, options: HashMap<&str, Variant<'_>>) -> zbus::Result<(Vec<String>, Vec<String>)>;
    fn get_stats(&self) -> zbus::Result<VmStats>;
    fn ping(&self) -> zbus::Result<u64>;
    fn list_ports(&self) -> zbus::Result<Vec<Port>>;
    fn get_timeline(&self) -> zbus::Result<Vec<(String, u64)>>;
    /// Everything about the VM as JSON.
    fn describe(&self) -> zbus::Result<String>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> zbus::Result<String>;
    /// `created`, `starting`, `running`, `paused`, `stopping`, `stopped` or `failed`.
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// `unknown`, `healthy`, `unresponsive` or `stalled`; see `banger_core::health`.
    #[zbus(property)]
    fn health(&self) -> zbus::Result<String>;
    /// When the guest last gave a sign of life, microseconds since 1970; 0: never in this run.
    #[zbus(property(emits_changed_signal = "false"))]
    fn heartbeat_timestamp(&self) -> zbus::Result<u64>;
    /// The image's name when the VM was created.
    #[zbus(property(emits_changed_signal = "const"))]
    fn image(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn image_id(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn kernel(&self) -> zbus::Result<String>;
    /// Empty without network.
    #[zbus(property(emits_changed_signal = "const"))]
    fn address(&self) -> zbus::Result<String>;
    /// Since its last start, empty without one.
    #[zbus(property)]
    fn address6(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn cpus(&self) -> zbus::Result<u32>;
    #[zbus(property)]
    fn memory_bytes(&self) -> zbus::Result<u64>;
    #[zbus(property)]
    fn disk_bytes(&self) -> zbus::Result<u64>;
    /// Size of the disk at `/work`, 0 without one.
    #[zbus(property)]
    fn work_bytes(&self) -> zbus::Result<u64>;
    /// Volume, path in the guest, read-only.
    #[zbus(property)]
    fn volumes(&self) -> zbus::Result<Vec<(String, String, bool)>>;
    #[zbus(property)]
    fn nat(&self) -> zbus::Result<bool>;
    /// The guest reaches the guests of VMs that share one of these groups, and no other's.
    #[zbus(property)]
    fn groups(&self) -> zbus::Result<Vec<String>>;
    /// Where the guest gets beyond the host: `open`, `closed` or `no-lan`.
    #[zbus(property)]
    fn egress(&self) -> zbus::Result<String>;
    /// What it reaches besides.
    #[zbus(property)]
    fn egress_allow(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property)]
    fn labels(&self) -> zbus::Result<HashMap<String, String>>;
    /// `no`, `on-failure` or `always`.
    #[zbus(property)]
    fn restart_policy(&self) -> zbus::Result<String>;
    /// Whether it starts with the host.
    #[zbus(property)]
    fn autostart(&self) -> zbus::Result<bool>;
    /// Seconds after its start at which the VM has had its time; 0: never.
    #[zbus(property)]
    fn ttl(&self) -> zbus::Result<u64>;
    /// What happens then: `stop` or `delete`.
    #[zbus(property)]
    fn expiry(&self) -> zbus::Result<String>;
    /// Bytes a second of each disk, 0 without limit.
    #[zbus(property)]
    fn disk_bandwidth(&self) -> zbus::Result<u64>;
    /// Operations a second of each disk, 0 without limit.
    #[zbus(property)]
    fn disk_iops(&self) -> zbus::Result<u64>;
    /// Bytes a second of the network in each direction, 0 without limit.
    #[zbus(property)]
    fn network_bandwidth(&self) -> zbus::Result<u64>;
    /// Packets a second of the network in each direction, 0 without limit.
    #[zbus(property)]
    fn network_packets(&self) -> zbus::Result<u64>;
    /// When it was last started, microseconds since 1970; 0: never.
    #[zbus(property)]
    fn started_timestamp(&self) -> zbus::Result<u64>;
    /// When its last run ended; 0: never.
    #[zbus(property)]
    fn ended_timestamp(&self) -> zbus::Result<u64>;
    /// How its last run ended, for people; empty before the first end.
    #[zbus(property)]
    fn end_reason(&self) -> zbus::Result<String>;
    /// `auto`, `qemu` or `firecracker`, as asked for.
    #[zbus(property)]
    fn vmm(&self) -> zbus::Result<String>;
    /// The systemd unit that is the VM.
    #[zbus(property(emits_changed_signal = "const"))]
    fn unit(&self) -> zbus::Result<String>;
    /// The socket that leads to the guest's vsock ports (`CONNECT port`); there while it runs.
    #[zbus(property(emits_changed_signal = "const"))]
    fn vsock_socket(&self) -> zbus::Result<String>;
    /// Microseconds since 1970.
    #[zbus(property(emits_changed_signal = "const"))]
    fn created_timestamp(&self) -> zbus::Result<u64>;
}
