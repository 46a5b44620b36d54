//! `org.banger.Vm1`: the VM supervisor.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use zbus::{DeserializeDict, OwnedObjectPath, SerializeDict, Type, Variant, proxy};

use crate::access::{Access, Entry, VM_MANAGE};

/// Prefix of the objects of VMs.
pub const VM_PREFIX: &str = "/org/banger/Vm1/vm";
pub const MANAGER: &str = "org.banger.Vm1.Manager";
pub const VM: &str = "org.banger.Vm1.Vm";

/// Where the units of VMs reach vmd: its objects, peer to peer.
pub const LAUNCH_SOCKET: &str = "/run/banger/launch.sock";

/// Where the VMM of a VM keeps its sockets: `NAME` below this directory.
pub const RUNTIME_DIR: &str = "/run/banger/vm";

/// The socket that leads to the vsock ports of the guest with this runtime directory.
///
/// All VMMs offer Firecracker's convention: a client connects and writes `CONNECT <port>\n`, is
/// answered `OK <port>\n`, and talks to the guest from then on; a connection of the guest to port
/// `n` of the host arrives at this path with `_n` appended.
pub fn vsock_socket(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("vsock.sock")
}

pub const ACCESS: &[Entry] = &[
    (MANAGER, "CreateVm", Access::Action(VM_MANAGE)),
    (MANAGER, "StartVm", Access::Action(VM_MANAGE)),
    (MANAGER, "StopVm", Access::Action(VM_MANAGE)),
    (MANAGER, "DeleteVm", Access::Action(VM_MANAGE)),
    (MANAGER, "ListVms", Access::Read),
    (MANAGER, "GetVm", Access::Read),
    // Only for the unit of the VM itself, which the service finds out from systemd.
    (MANAGER, "PrepareVm", Access::Own),
    (MANAGER, "ReleaseVm", Access::Own),
    (VM, "Start", Access::Action(VM_MANAGE)),
    (VM, "Stop", Access::Action(VM_MANAGE)),
    (VM, "Delete", Access::Action(VM_MANAGE)),
    (VM, "Describe", Access::Read),
    (crate::job::INTERFACE, "Cancel", Access::Action(VM_MANAGE)),
];

/// One VM as `ListVms` returns it: name, state, image, address (empty without network), path.
pub type VmRow = (String, String, String, String, OwnedObjectPath);

/// What a VM's unit executes; the reply of `PrepareVm`.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "dict")]
pub struct LaunchPlan {
    /// Files to write into the runtime directory first: name, content.
    pub files: HashMap<String, String>,
    /// Processes to start beside the VMM: command line, and the socket that is there once the
    /// process is ready.
    pub helpers: Vec<(Vec<String>, String)>,
    /// Command line of the VMM.
    pub command: Vec<String>,
    /// The guest's configuration as JSON, see `banger_core::guest`.
    pub guest_config: String,
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
    /// which is the job's outcome. Options: `cpus u`, `memory t` (bytes), `disk t` (bytes),
    /// `kernel s`, `kernel_arguments s`, `vmm s` (`auto`, `qemu`, `firecracker`), `network b`,
    /// `nat b`, `init s` (`auto`, `agent`, `image`), `start b`.
    #[zbus(allow_interactive_auth)]
    fn create_vm(
        &self,
        name: &str,
        image: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(u32, OwnedObjectPath)>;

    /// Starts a VM; the job ends when the guest is ready.
    #[zbus(allow_interactive_auth)]
    fn start_vm(&self, name: &str) -> zbus::Result<(u32, OwnedObjectPath)>;

    /// Stops a VM: the guest is asked first. Options: `timeout u`, seconds after which it is
    /// killed (default: as the unit says).
    #[zbus(allow_interactive_auth)]
    fn stop_vm(
        &self,
        name: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(u32, OwnedObjectPath)>;

    /// Deletes a VM and its disk. Options: `force b`, kill it first if it runs.
    #[zbus(allow_interactive_auth)]
    fn delete_vm(&self, name: &str, options: HashMap<&str, Variant<'_>>) -> zbus::Result<()>;

    fn list_vms(&self) -> zbus::Result<Vec<VmRow>>;

    fn get_vm(&self, name: &str) -> zbus::Result<OwnedObjectPath>;

    /// For the VM's unit: gets everything ready and returns what to execute.
    fn prepare_vm(&self, name: &str) -> zbus::Result<LaunchPlan>;

    /// For the VM's unit: gives back what only a running VM needs.
    fn release_vm(&self, name: &str) -> zbus::Result<()>;

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
    /// Everything about the VM as JSON.
    fn describe(&self) -> zbus::Result<String>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> zbus::Result<String>;
    /// `created`, `starting`, `running`, `stopping`, `stopped` or `failed`.
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
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
    #[zbus(property(emits_changed_signal = "const"))]
    fn cpus(&self) -> zbus::Result<u32>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn memory_bytes(&self) -> zbus::Result<u64>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn disk_bytes(&self) -> zbus::Result<u64>;
    /// `auto`, `qemu` or `firecracker`, as asked for.
    #[zbus(property(emits_changed_signal = "const"))]
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
