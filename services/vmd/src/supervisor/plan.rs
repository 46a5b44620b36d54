//! From a row and its leases to a machine and its guest's configuration: pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use banger_api::vm::vsock_socket;
use banger_api::{Error, ErrorKind, Result};
use banger_core::address;
use banger_core::guest::{self, GuestConfig, Init, PowerOff, ProcessDefaults, Rootfs};
use banger_core::spec::{Mount, Spec};
use banger_vmm::{Disk, Kernel, Machine, Nic, RateLimit};

use super::runtime_dir;
use crate::effects::disks::DiskFile;
use crate::effects::peers::{BootSet, NetLease};
use crate::effects::sync::Synced;
use crate::store::VmRow;

/// The VMM's name for the disk with the image.
pub const IMAGE_DISK: &str = "image";

/// The first and the second disk of a guest. The work disk, if there is one, and the volumes
/// follow.
const IMAGE_DEVICE: &str = "/dev/vda";
const OVERLAY_DEVICE: &str = "/dev/vdb";
const WORK_INDEX: u8 = 2;

pub fn machine(
    row: &VmRow,
    boot: &BootSet,
    network: Option<&NetLease>,
    own: Vec<DiskFile>,
    restore: Option<PathBuf>,
) -> Machine {
    let limit = RateLimit::of(&row.spec.rates).any();
    let image = Disk { id: IMAGE_DISK.into(), path: boot.rootfs.clone().into(), read_only: true, limit };
    let own =
        own.into_iter().map(|disk| Disk { id: disk.id, path: disk.path, read_only: disk.read_only, limit });
    let nic = |lease: &NetLease| Nic { tap: lease.tap.clone(), mac: lease.mac.clone() };
    let runtime_dir = runtime_dir(&row.name);
    Machine {
        name: row.name.to_string(),
        cpus: row.spec.cpus,
        memory: row.spec.memory,
        kernel: Kernel {
            vmlinuz: boot.vmlinuz.clone().into(),
            vmlinux: boot.vmlinux.clone().into(),
            initramfs: boot.initramfs.clone().into(),
            arguments: row.spec.kernel_arguments.clone(),
        },
        disks: std::iter::once(image).chain(own).collect(),
        network: network.map(nic),
        context_id: address::context_id(row.address),
        vsock_socket: vsock_socket(&runtime_dir),
        runtime_dir,
        balloon: true,
        restore,
    }
}

pub fn guest_config(
    row: &VmRow,
    boot: &BootSet,
    network: Option<&NetLease>,
    power_off: PowerOff,
    synced: Synced,
) -> Result<GuestConfig> {
    let network = network
        .map(|lease| -> Result<guest::Network> {
            let ipv6 = match (&lease.address6, lease.prefix6, &lease.gateway6) {
                (Some(address), Some(prefix), Some(gateway)) => {
                    Some(guest::Network6 { address: parse(address)?, prefix, gateway: parse(gateway)? })
                }
                _ => None,
            };
            Ok(guest::Network {
                address: parse(&lease.address)?,
                prefix: lease.prefix,
                gateway: parse(&lease.gateway)?,
                dns: lease.dns.iter().map(|server| parse(server)).collect::<Result<_>>()?,
                domain: lease.domain.clone(),
                mac: lease.mac.clone(),
                mtu: lease.mtu,
                ipv6,
            })
        })
        .transpose()?;
    let env: BTreeMap<String, String> = boot
        .env
        .iter()
        .filter_map(|entry| entry.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    Ok(GuestConfig {
        protocol: guest::PROTOCOL,
        hostname: row.name.to_string(),
        // The attendant fills in the moment's.
        realtime_usec: 0,
        seed: String::new(),
        machine_id: row.machine_id.clone(),
        rootfs: Rootfs {
            image: IMAGE_DEVICE.into(),
            fstype: boot.rootfs_type.clone(),
            overlay: OVERLAY_DEVICE.into(),
        },
        network,
        init: row.spec.init,
        power_off,
        process: ProcessDefaults {
            env,
            user: boot.user.clone(),
            working_directory: boot.working_directory.clone(),
        },
        environment: row.spec.environment.clone(),
        work: (row.spec.work > 0).then(|| device(WORK_INDEX)),
        mounts: mounts(&row.spec),
        files: synced.files,
        authorized_keys: keys(synced.authorized_keys, &row.spec.authorized_keys),
        git: synced.git,
        ca_certificates: synced.ca_certificates,
        timezone: synced.timezone,
    })
}

/// An address in a lease.
pub fn parse<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| Error::internal(format!("netd gave {text:?} for an address")))
}

/// What a VM is that is started only for its disk to be read: nothing of the image's runs in it, and
/// nothing else is there that it could change.
pub fn for_reading(spec: &Spec) -> Spec {
    Spec { init: Init::Agent, network: false, work: 0, volumes: Vec::new(), ..spec.clone() }
}

/// The configuration as the guest reads it.
///
/// # Errors
/// `NotReady` if it is longer than a guest reads.
pub fn serialize(config: &GuestConfig) -> Result<String> {
    let text = serde_json::to_string(config).map_err(Error::internal)?;
    // The attendant fills in the moment's, which takes some bytes more.
    if text.len() + 4096 <= guest::MAX_CONFIG {
        return Ok(text);
    }
    Err(ErrorKind::NotReady.error(format!(
        "what the guest is to know takes {} MiB, and it reads {} MiB at most: sync fewer or smaller files",
        text.len() >> 20,
        guest::MAX_CONFIG >> 20
    )))
}

/// The keys of all VMs and the VM's own, each once.
fn keys(mut keys: Vec<String>, own: &[String]) -> Vec<String> {
    for key in own {
        if !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    keys
}

/// The volumes as the guest sees them, after the disks of the root filesystem and the work disk.
fn mounts(spec: &Spec) -> Vec<guest::Mount> {
    let first = if spec.work > 0 { WORK_INDEX + 1 } else { WORK_INDEX };
    let mount = |(index, mount): (u8, &Mount)| guest::Mount {
        device: device(index),
        path: mount.path.clone(),
        fstype: String::new(),
        read_only: mount.read_only,
    };
    (first..).zip(&spec.volumes).map(mount).collect()
}

/// The name of a guest's disk by its place in the machine.
fn device(index: u8) -> String {
    format!("/dev/vd{}", char::from(b'a' + index))
}

/// # Errors
/// `NotReady` if the host could never hold the guest's memory.
pub fn check_memory(wanted: u64, host: u64) -> Result<()> {
    if wanted < host {
        return Ok(());
    }
    Err(ErrorKind::NotReady.error(format!(
        "{} MiB of memory are more than the host's {} MiB: give it less with `banger set --memory`",
        wanted >> 20,
        host >> 20
    )))
}
