//! What is written down beside a snapshot, and whether it can be restored.

use serde::{Deserialize, Serialize};

/// What a snapshot was made of. A guest in the middle of its life cannot be moved onto a machine
/// that differs from the one it knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// `qemu` or `firecracker`.
    pub vmm: String,
    /// Its version.
    pub version: String,
    /// Whether hardware ran the guest: emulated CPUs and real ones are different CPUs.
    pub kvm: bool,
    /// The host's CPU, as `/proc/cpuinfo` names it. Of no meaning to an emulated guest.
    pub cpu: String,
    pub cpus: u32,
    /// Bytes.
    pub memory: u64,
    /// Whether there is a work disk, and how many volumes.
    pub work: bool,
    pub volumes: usize,
    pub network: bool,
    pub image_id: String,
    pub kernel: String,
}

/// A snapshot of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Microseconds since 1970.
    pub created_usec: u64,
    pub machine: Machine,
    /// Whether it was made for a fork alone, and goes with it.
    #[serde(default)]
    pub fork: bool,
}

/// Why a snapshot cannot be restored: what differs, then and now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot was made with {what} {then}, this is {now}")]
pub struct Mismatch {
    pub what: &'static str,
    pub then: String,
    pub now: String,
}

impl Machine {
    /// Whether a snapshot of this machine goes on in another one.
    ///
    /// # Errors
    /// The first thing in which they differ.
    pub fn fits(&self, now: &Machine) -> Result<(), Mismatch> {
        let differs = |what, then: &dyn std::fmt::Display, now: &dyn std::fmt::Display| {
            let (then, now) = (then.to_string(), now.to_string());
            if then == now { Ok(()) } else { Err(Mismatch { what, then, now }) }
        };
        let accelerator = |machine: &Machine| if machine.kvm { "KVM" } else { "emulated" };
        differs("the VMM", &self.vmm, &now.vmm)?;
        differs("the VMM's version", &self.version, &now.version)?;
        differs("CPUs that are", &accelerator(self), &accelerator(now))?;
        if self.kvm {
            differs("the host's CPU", &self.cpu, &now.cpu)?;
        }
        differs("a number of CPUs of", &self.cpus, &now.cpus)?;
        differs("bytes of memory:", &self.memory, &now.memory)?;
        differs("a work disk:", &self.work, &now.work)?;
        differs("a number of volumes of", &self.volumes, &now.volumes)?;
        differs("a network:", &self.network, &now.network)?;
        differs("the image", &self.image_id, &now.image_id)?;
        differs("the kernel", &self.kernel, &now.kernel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            vmm: "qemu".into(),
            version: "7.2.22".into(),
            kvm: false,
            cpu: "A".into(),
            cpus: 1,
            memory: 1 << 29,
            work: false,
            volumes: 0,
            network: true,
            image_id: "abc".into(),
            kernel: "6.1".into(),
        }
    }

    #[test]
    fn a_snapshot_fits_where_nothing_has_changed() {
        assert_eq!(machine().fits(&machine()), Ok(()));
        // What emulates a CPU is not bound to the host's.
        assert_eq!(machine().fits(&Machine { cpu: "B".into(), ..machine() }), Ok(()));
    }

    #[test]
    fn what_differs_is_named() {
        let now = Machine { version: "8.0.0".into(), ..machine() };
        let mismatch = machine().fits(&now).expect_err("differs");
        assert_eq!(
            mismatch.to_string(),
            "the snapshot was made with the VMM's version 7.2.22, this is 8.0.0"
        );
        let kvm = Machine { kvm: true, ..machine() };
        assert!(kvm.fits(&Machine { cpu: "B".into(), ..kvm.clone() }).is_err());
        assert!(machine().fits(&Machine { cpus: 2, ..machine() }).is_err());
    }
}
