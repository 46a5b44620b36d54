//! `banger metrics`: what the services know, in the text format of OpenMetrics.
//!
//! It asks what everybody may ask, so it needs no rights. A service that does not answer is told as such, and
//! keeps nobody from hearing of the others.

mod http;
mod text;

use std::io::Write;
use std::time::Duration;

use banger_api::service::ServiceProxy;
use banger_api::vm::VmStats;
use banger_api::{IMAGED, NETD, Result, SERVICES, SESSIOND, Service, VMD};
use futures_util::future::join_all;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::Context;
use crate::cmd::stats;
use crate::exit;
use crate::objects::{Objects, Properties};
use crate::output::print;
use text::{Exposition, Family, Kind};

/// How long a client may take to say what it wants, or to take a part of what it gets.
const PATIENCE: Duration = Duration::from_secs(5);

const fn family(name: &'static str, kind: Kind, help: &'static str) -> Family {
    Family { name, kind, help }
}

/// All that is told.
const FAMILIES: &[Family] = &[
    family("banger_service", Kind::Info, "Services that answered, and their versions."),
    family("banger_service_up", Kind::Gauge, "Whether the service answered."),
    family("banger_jobs", Kind::Gauge, "Jobs under way, by service and kind."),
    family("banger_vm", Kind::Info, "What the VM is made of."),
    family("banger_vm_state", Kind::Gauge, "1 for the state that the VM is in."),
    family("banger_vm_healthy", Kind::Gauge, "Whether the guest gives signs of life, where that is known."),
    family("banger_vm_cpus", Kind::Gauge, "CPUs that the VM is to have."),
    family("banger_vm_memory_bytes", Kind::Gauge, "Memory that the VM is to have."),
    family("banger_vm_start_time_seconds", Kind::Gauge, "When the VM was last started, since 1970."),
    family("banger_vm_cpu_seconds", Kind::Counter, "CPU time that the running VM took of the host."),
    family("banger_vm_host_memory_bytes", Kind::Gauge, "Memory that the running VM takes of the host."),
    family("banger_vm_host_memory_peak_bytes", Kind::Gauge, "The most memory that it took."),
    family("banger_vm_tasks", Kind::Gauge, "Processes and threads of the running VM on the host."),
    family("banger_vm_host_read_bytes", Kind::Counter, "What the running VM read from disks of the host."),
    family("banger_vm_host_written_bytes", Kind::Counter, "What the running VM wrote to disks of the host."),
    family("banger_vm_disk_used_bytes", Kind::Gauge, "What the disks of the running VM take on the host."),
    family("banger_vm_network_received_bytes", Kind::Counter, "What the guest received."),
    family("banger_vm_network_received_packets", Kind::Counter, "Packets that the guest received."),
    family(
        "banger_vm_network_received_dropped_packets",
        Kind::Counter,
        "Packets for the guest that it did not take in time.",
    ),
    family("banger_vm_network_sent_bytes", Kind::Counter, "What the guest sent."),
    family("banger_vm_network_sent_packets", Kind::Counter, "Packets that the guest sent."),
    family(
        "banger_vm_network_sent_dropped_packets",
        Kind::Counter,
        "Packets of the guest that the host did not take.",
    ),
    family("banger_vm_reachable", Kind::Gauge, "Whether the agent in the running VM answered in time."),
    family("banger_vm_guest_load1", Kind::Gauge, "Load average of the guest over a minute, as it says."),
    family("banger_vm_guest_cpu_seconds", Kind::Counter, "CPU time in the guest by mode, as it says."),
    family("banger_vm_guest_memory_bytes", Kind::Gauge, "Memory of the guest, as it says."),
    family(
        "banger_vm_guest_memory_available_bytes",
        Kind::Gauge,
        "Memory that the guest has left, as it says.",
    ),
    family(
        "banger_vm_guest_disk_read_bytes",
        Kind::Counter,
        "What the guest read from its disks, as it says.",
    ),
    family(
        "banger_vm_guest_disk_written_bytes",
        Kind::Counter,
        "What the guest wrote to its disks, as it says.",
    ),
    family("banger_volume_size_bytes", Kind::Gauge, "Size of the volume."),
    family("banger_volume_vms", Kind::Gauge, "VMs that have the volume."),
    family("banger_image_size_bytes", Kind::Gauge, "Size of the image."),
    family("banger_image_leases", Kind::Gauge, "VMs that use the image."),
    family("banger_kernels", Kind::Gauge, "Kernels that there are."),
    family("banger_network_leases", Kind::Gauge, "Addresses that VMs have."),
    family("banger_network_pool_taps", Kind::Gauge, "TAP devices that are made in advance at most."),
    family("banger_network_pool_free_taps", Kind::Gauge, "TAP devices that wait for VMs."),
    family("banger_sessions", Kind::Gauge, "Sessions by VM and state."),
];

pub async fn metrics(context: &Context, http: bool) -> Result<()> {
    if !http {
        print(&take(context).await);
        return Ok(());
    }
    let connection = std::io::stdin();
    for timeout in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&connection, timeout, Some(PATIENCE)).map_err(std::io::Error::from)?;
    }
    let asked = http::read(connection.lock())?;
    let answer = http::answer(asked, take(context)).await;
    std::io::stdout().lock().write_all(answer.as_bytes())?;
    Ok(())
}

/// Asks all services.
async fn take(context: &Context) -> String {
    let mut exposition = Exposition::new(FAMILIES);
    for service in SERVICES {
        let outcome = match service {
            VMD => vms(context, &mut exposition).await,
            IMAGED => images(context, &mut exposition).await,
            NETD => network(context, &mut exposition).await,
            _ => sessions(context, &mut exposition).await,
        };
        let up = outcome
            .inspect_err(|error| exit::say(&format!("banger-{}: {}", service.id, error.message())))
            .is_ok();
        exposition.add("banger_service_up", &[("service", service.id)], Some(f64::from(up)));
    }
    exposition.text()
}

/// The objects of a service, after what all services tell.
async fn objects(context: &Context, service: Service, exposition: &mut Exposition) -> Result<Objects> {
    let proxy: ServiceProxy<'_> = context.bus.object(service, service.path).await?;
    let version = proxy.version().await?;
    exposition.add("banger_service", &[("service", service.id), ("version", &version)], Some(1.0));
    let objects = Objects::at(context, service).await?;
    let running = objects.of(banger_api::job::INTERFACE).filter(|job| job.text("State") == "running");
    let running: Vec<String> = running.map(|job| job.text("Kind")).collect();
    for (kind, count) in counted(running) {
        exposition.add("banger_jobs", &[("service", service.id), ("kind", &kind)], Some(count));
    }
    Ok(objects)
}

async fn vms(context: &Context, exposition: &mut Exposition) -> Result<()> {
    let objects = objects(context, VMD, exposition).await?;
    let mut vms: Vec<Properties<'_>> = objects.of(banger_api::vm::VM).collect();
    vms.sort_by_key(|vm| vm.text("Name"));
    let vmd = context.bus.vms().await?;
    let stats = join_all(vms.iter().map(async |vm| match vm.text("State").as_str() {
        // One may have stopped meanwhile.
        "running" | "paused" => vmd.get_vm_stats(&vm.text("Name")).await.ok(),
        _ => None,
    }))
    .await;
    for (vm, stats) in vms.iter().zip(stats) {
        describe(vm, exposition);
        if let Some(stats) = stats {
            measure(&vm.text("Name"), &stats, exposition);
        }
    }
    for (name, bytes, _, vms) in vmd.list_volumes().await? {
        exposition.add("banger_volume_size_bytes", &[("volume", &name)], Some(bytes as f64));
        exposition.add("banger_volume_vms", &[("volume", &name)], Some(vms.len() as f64));
    }
    Ok(())
}

/// What a VM is, whether it runs or not.
fn describe(vm: &Properties<'_>, exposition: &mut Exposition) {
    let name = vm.text("Name");
    let label = [("vm", name.as_str())];
    let (image, id, kernel) = (vm.text("Image"), vm.text("ImageId"), vm.text("Kernel"));
    let made_of = [label[0], ("image", &image), ("image_id", &id), ("kernel", &kernel)];
    exposition.add("banger_vm", &made_of, Some(1.0));
    exposition.add("banger_vm_state", &[label[0], ("state", &vm.text("State"))], Some(1.0));
    let health = vm.text("Health");
    let known = (health != "unknown").then(|| f64::from(health == "healthy"));
    exposition.add("banger_vm_healthy", &label, known);
    exposition.add("banger_vm_cpus", &label, vm.number("Cpus"));
    exposition.add("banger_vm_memory_bytes", &label, vm.number("MemoryBytes"));
    let started = vm.number("StartedTimestamp").filter(|usec| *usec > 0.0);
    exposition.add("banger_vm_start_time_seconds", &label, started.map(seconds));
}

/// What a running VM takes.
fn measure(name: &str, stats: &VmStats, exposition: &mut Exposition) {
    let label = [("vm", name)];
    let float = |value: Option<u64>| value.map(|value| value as f64);
    for (family, value) in [
        ("banger_vm_cpu_seconds", float(stats.cpu_usec).map(seconds)),
        ("banger_vm_host_memory_bytes", float(stats.memory_bytes)),
        ("banger_vm_host_memory_peak_bytes", float(stats.memory_peak_bytes)),
        ("banger_vm_tasks", float(stats.tasks)),
        ("banger_vm_host_read_bytes", float(stats.io_read_bytes)),
        ("banger_vm_host_written_bytes", float(stats.io_written_bytes)),
        ("banger_vm_disk_used_bytes", Some(stats.disk_used_bytes as f64)),
        ("banger_vm_network_received_bytes", float(stats.net_received_bytes)),
        ("banger_vm_network_received_packets", float(stats.net_received_packets)),
        ("banger_vm_network_received_dropped_packets", float(stats.net_received_dropped)),
        ("banger_vm_network_sent_bytes", float(stats.net_sent_bytes)),
        ("banger_vm_network_sent_packets", float(stats.net_sent_packets)),
        ("banger_vm_network_sent_dropped_packets", float(stats.net_sent_dropped)),
        ("banger_vm_reachable", Some(f64::from(stats.reachable))),
    ] {
        exposition.add(family, &label, value);
    }
    let Some(guest) = &stats.guest else { return };
    for (mode, usec) in [
        ("user", guest.cpu_user_usec),
        ("system", guest.cpu_system_usec),
        ("idle", guest.cpu_idle_usec),
        ("iowait", guest.cpu_iowait_usec),
        ("steal", guest.cpu_steal_usec),
    ] {
        exposition.add(
            "banger_vm_guest_cpu_seconds",
            &[label[0], ("mode", mode)],
            Some(seconds(usec as f64)),
        );
    }
    for (family, value) in [
        // A guest can say anything, but not everything is a number.
        ("banger_vm_guest_load1", Some(guest.load.0).filter(|load| load.is_finite())),
        ("banger_vm_guest_memory_bytes", Some(stats::memory(guest) as f64)),
        ("banger_vm_guest_memory_available_bytes", Some(guest.memory_available as f64)),
        ("banger_vm_guest_disk_read_bytes", float(stats::disk(stats, |disk| disk.read_bytes))),
        ("banger_vm_guest_disk_written_bytes", float(stats::disk(stats, |disk| disk.written_bytes))),
    ] {
        exposition.add(family, &label, value);
    }
}

async fn images(context: &Context, exposition: &mut Exposition) -> Result<()> {
    let objects = objects(context, IMAGED, exposition).await?;
    let mut images: Vec<Properties<'_>> = objects.of(banger_api::image::IMAGE).collect();
    images.sort_by_key(|image| image.text("Id"));
    for image in images {
        let (name, id) = (image.text("Name"), image.text("Id"));
        let labels = [("image", name.as_str()), ("image_id", &id)];
        exposition.add("banger_image_size_bytes", &labels, image.number("Size"));
        exposition.add("banger_image_leases", &labels, Some(image.length("Leases")));
    }
    exposition.add("banger_kernels", &[], Some(objects.of(banger_api::image::KERNEL).count() as f64));
    Ok(())
}

async fn network(context: &Context, exposition: &mut Exposition) -> Result<()> {
    let objects = objects(context, NETD, exposition).await?;
    exposition.add("banger_network_leases", &[], Some(objects.of(banger_api::network::LEASE).count() as f64));
    let network = context.bus.network().await?;
    exposition.add("banger_network_pool_taps", &[], Some(network.pool_size().await?.into()));
    exposition.add("banger_network_pool_free_taps", &[], Some(network.pool_free().await?.into()));
    Ok(())
}

async fn sessions(context: &Context, exposition: &mut Exposition) -> Result<()> {
    let objects = objects(context, SESSIOND, exposition).await?;
    let sessions = objects.of(banger_api::session::SESSION);
    for ((vm, state), count) in counted(sessions.map(|session| (session.text("Vm"), session.text("State")))) {
        exposition.add("banger_sessions", &[("vm", &vm), ("state", &state)], Some(count));
    }
    Ok(())
}

fn seconds(usec: f64) -> f64 {
    usec / 1e6
}

/// How many there are of each.
fn counted<T: Ord>(things: impl IntoIterator<Item = T>) -> std::collections::BTreeMap<T, f64> {
    let mut counts = std::collections::BTreeMap::new();
    for thing in things {
        *counts.entry(thing).or_insert(0.0) += 1.0;
    }
    counts
}

#[cfg(test)]
mod tests {
    use banger_api::agent::{DiskCounters, Stats};

    use super::*;

    #[test]
    fn names_are_as_openmetrics_has_them() {
        for Family { name, kind, help } in FAMILIES {
            assert!(name.starts_with("banger_") && help.ends_with('.'), "{name}");
            assert!(!name.ends_with("_total") && (*kind != Kind::Info || !name.ends_with("_info")), "{name}");
        }
    }

    #[test]
    fn what_a_vm_says_is_measured() {
        let guest = Stats {
            load: (0.5, f64::NAN, 0.0),
            cpu_user_usec: 1_500_000,
            memory_total: 1200,
            memory_balloon: Some(200),
            memory_available: 400,
            disks: vec![DiskCounters { read_bytes: 5, written_bytes: 7, ..DiskCounters::default() }; 2],
            ..Stats::default()
        };
        let stats = VmStats {
            cpu_usec: Some(2_000_000),
            memory_bytes: Some(1 << 30),
            net_sent_packets: Some(3),
            reachable: true,
            guest: Some(guest),
            ..VmStats::default()
        };
        let mut exposition = Exposition::new(FAMILIES);
        measure("web", &stats, &mut exposition);
        measure("bare", &VmStats::default(), &mut exposition);
        insta::assert_snapshot!(exposition.text());
    }

    #[test]
    fn what_is_there_is_described() {
        let value =
            |value: zbus::Variant<'static>| zbus::OwnedVariant::try_from(value).expect("no descriptors");
        let properties = std::collections::HashMap::from([
            ("Name".to_owned(), value("web".into())),
            ("State".to_owned(), value("running".into())),
            ("Health".to_owned(), value("unresponsive".into())),
            ("Image".to_owned(), value("debian:12".into())),
            ("Cpus".to_owned(), value(2_u32.into())),
            ("MemoryBytes".to_owned(), value((1_u64 << 30).into())),
            ("StartedTimestamp".to_owned(), value(1_709_251_199_500_000_u64.into())),
        ]);
        let mut exposition = Exposition::new(FAMILIES);
        describe(&Properties(&properties), &mut exposition);
        insta::assert_snapshot!(exposition.text());
    }
}
