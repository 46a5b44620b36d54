//! What the host has to run VMs with, told to whoever asks.

use banger_api::vm::Host;
use banger_core::spec::VmmChoice;
use banger_vmm::{Program, probe};

/// The host as it is now; see [`probe::host`] for how long that takes.
pub fn host() -> Host {
    let host = probe::host();
    let chosen = banger_vmm::choose(VmmChoice::Auto, &host);
    let path = |program: &Option<Program>| Some(program.as_ref()?.path.display().to_string());
    let version = |program: &Option<Program>| Some(program.as_ref()?.version?.to_string());
    Host {
        vmm: chosen.as_ref().map(|vmm| vmm.name().to_owned()).unwrap_or_default(),
        problem: chosen.err().map(|missing| missing.to_string()),
        firecracker: path(&host.firecracker),
        firecracker_version: version(&host.firecracker),
        qemu: path(&host.qemu),
        qemu_version: version(&host.qemu),
        vhost_device_vsock: host.vhost_device_vsock.as_ref().map(|path| path.display().to_string()),
        kvm: host.kvm,
    }
}
