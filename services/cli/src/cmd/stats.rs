//! `banger stats`, `ping` and `ports`.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

use banger_api::agent::Stats;
use banger_api::vm::VmStats;
use banger_api::{ErrorKind, Result};
use futures_util::future::join_all;
use serde::Serialize;
use serde_json::{Value, json};

use crate::Context;
use crate::args;
use crate::output::{or_dash, print, size, table};

/// How long figures are taken for if they are shown once.
const ONCE: Duration = Duration::from_secs(1);

/// A VM's figures, by its name.
pub type Taken = HashMap<String, VmStats>;

/// What two samples of a VM's figures say. `None` is what is not known.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Percent of one CPU of the host.
    pub cpu_percent: Option<f64>,
    /// Memory that is in use in the guest, and all it has, in bytes.
    pub memory_used_bytes: Option<u64>,
    pub memory_total_bytes: Option<u64>,
    /// Memory of the host.
    pub host_memory_bytes: Option<u64>,
    /// Bytes per second.
    pub disk_read_rate: Option<f64>,
    pub disk_write_rate: Option<f64>,
    pub net_receive_rate: Option<f64>,
    pub net_send_rate: Option<f64>,
}

impl Figures {
    pub fn between(before: Option<&VmStats>, now: &VmStats) -> Self {
        let guest = now.guest.as_ref();
        let rate = |of: fn(&VmStats) -> Option<u64>| {
            let before = before?;
            // A counter that has gone back is another run's.
            let grown = of(now)?.checked_sub(of(before)?)?;
            let usec = now.monotonic_usec.checked_sub(before.monotonic_usec).filter(|usec| *usec > 0)?;
            Some(grown as f64 * 1e6 / usec as f64)
        };
        Self {
            cpu_percent: rate(|it| it.cpu_usec).map(|usec| usec / 1e4),
            memory_used_bytes: guest.map(|guest| memory(guest).saturating_sub(guest.memory_available)),
            memory_total_bytes: guest.map(memory),
            host_memory_bytes: now.memory_bytes,
            disk_read_rate: rate(|it| disk(it, |disk| disk.read_bytes)),
            disk_write_rate: rate(|it| disk(it, |disk| disk.written_bytes)),
            net_receive_rate: rate(|it| it.net_received_bytes),
            net_send_rate: rate(|it| it.net_sent_bytes),
        }
    }
}

/// What the guest has: all but what its balloon has given back.
pub fn memory(guest: &Stats) -> u64 {
    guest.memory_total.saturating_sub(guest.memory_balloon.unwrap_or(0))
}

pub fn disk(stats: &VmStats, of: fn(&banger_api::agent::DiskCounters) -> u64) -> Option<u64> {
    Some(stats.guest.as_ref()?.disks.iter().map(of).fold(0, u64::saturating_add))
}

/// Takes the figures of these VMs, or of all that run.
pub async fn take(context: &Context, vms: &[String]) -> Result<Taken> {
    let vmd = context.bus.vms().await?;
    if !vms.is_empty() {
        let taken = join_all(vms.iter().map(|name| vmd.get_vm_stats(name))).await;
        return vms.iter().zip(taken).map(|(name, stats)| Ok((name.clone(), stats?))).collect();
    }
    let up =
        vmd.list_vms().await?.into_iter().filter(|(_, state, ..)| state == "running" || state == "paused");
    let names: Vec<String> = up.map(|(name, ..)| name).collect();
    let taken = join_all(names.iter().map(|name| vmd.get_vm_stats(name))).await;
    // One may have stopped meanwhile.
    Ok(names.iter().zip(taken).filter_map(|(name, stats)| Some((name.clone(), stats.ok()?))).collect())
}

pub async fn stats(context: &Context, arguments: args::Stats) -> Result<()> {
    let shown_live = std::io::stdout().is_terminal() && !context.output.json && !context.output.quiet;
    let live = arguments.watch || (shown_live && !arguments.no_stream);
    let interval = if live { Duration::from_secs(arguments.interval) } else { ONCE };
    let mut before = take(context, &arguments.vms).await?;
    loop {
        tokio::time::sleep(interval).await;
        let now = take(context, &arguments.vms).await?;
        if live && shown_live {
            // To the upper left, and everything below it gone.
            print(&format!("\x1b[H\x1b[J{}", show(&before, &now)));
        } else {
            once(context, &before, &now)?;
        }
        if !live {
            return Ok(());
        }
        before = now;
    }
}

fn once(context: &Context, before: &Taken, now: &Taken) -> Result<()> {
    if context.output.json {
        let shown: Vec<Value> =
            names(now).into_iter().map(|name| in_json(name, before.get(name), &now[name])).collect();
        return context.output.value(&shown);
    }
    if context.output.quiet {
        names(now).into_iter().for_each(|name| context.output.line(name));
    } else {
        print(&show(before, now));
    }
    Ok(())
}

fn names(taken: &Taken) -> Vec<&String> {
    let mut names: Vec<&String> = taken.keys().collect();
    names.sort();
    names
}

fn show(before: &Taken, now: &Taken) -> String {
    let header = ["NAME", "CPU", "MEMORY", "ON HOST", "DISK", "READ", "WRITE", "RECEIVE", "SEND", "TASKS"];
    let row = |name: &String| {
        let stats = &now[name];
        let figures = Figures::between(before.get(name), stats);
        vec![
            name.clone(),
            percent(figures.cpu_percent),
            match (figures.memory_used_bytes, figures.memory_total_bytes) {
                (Some(used), Some(total)) => format!("{}/{}", size(used), size(total)),
                _ => or_dash(""),
            },
            figures.host_memory_bytes.map_or_else(|| or_dash(""), size),
            size(stats.disk_used_bytes),
            per_second(figures.disk_read_rate),
            per_second(figures.disk_write_rate),
            per_second(figures.net_receive_rate),
            per_second(figures.net_send_rate),
            stats.tasks.map_or_else(|| or_dash(""), |tasks| tasks.to_string()),
        ]
    };
    table(&header, &names(now).into_iter().map(row).collect::<Vec<_>>())
}

pub fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| or_dash(""), |value| format!("{value:.1}%"))
}

pub fn per_second(rate: Option<f64>) -> String {
    rate.map_or_else(|| or_dash(""), |rate| format!("{}/s", size(rate as u64)))
}

fn in_json(name: &str, before: Option<&VmStats>, now: &VmStats) -> Value {
    json!({
        "name": name,
        "reachable": now.reachable,
        "figures": Figures::between(before, now),
        "cpu_usec": now.cpu_usec,
        "memory_bytes": now.memory_bytes,
        "memory_peak_bytes": now.memory_peak_bytes,
        "io_read_bytes": now.io_read_bytes,
        "io_written_bytes": now.io_written_bytes,
        "tasks": now.tasks,
        "net_received_bytes": now.net_received_bytes,
        "net_received_packets": now.net_received_packets,
        "net_received_dropped": now.net_received_dropped,
        "net_sent_bytes": now.net_sent_bytes,
        "net_sent_packets": now.net_sent_packets,
        "net_sent_dropped": now.net_sent_dropped,
        "disk_used_bytes": now.disk_used_bytes,
        "guest": now.guest.as_ref().map(guest_in_json),
    })
}

fn guest_in_json(guest: &Stats) -> Value {
    json!({
        "load": guest.load,
        "uptime_usec": guest.uptime_usec,
        "cpu_user_usec": guest.cpu_user_usec,
        "cpu_system_usec": guest.cpu_system_usec,
        "cpu_idle_usec": guest.cpu_idle_usec,
        "cpu_iowait_usec": guest.cpu_iowait_usec,
        "cpu_steal_usec": guest.cpu_steal_usec,
        "memory_total": guest.memory_total,
        "memory_available": guest.memory_available,
        "memory_free": guest.memory_free,
        "memory_cached": guest.memory_cached,
        "memory_balloon": guest.memory_balloon,
        "swap_total": guest.swap_total,
        "swap_free": guest.swap_free,
        "processes": guest.processes,
        "filesystems": guest.filesystems,
        "disks": guest.disks,
        "networks": guest.networks,
    })
}

pub async fn ping(context: &Context, vm: &str) -> Result<()> {
    let usec = context.bus.vms().await?.ping_vm(vm).await?;
    if context.output.json {
        return context.output.value(&json!({"name": vm, "usec": usec}));
    }
    if !context.output.quiet {
        context.output.line(&format!("{vm} answers in {:.1} ms", usec as f64 / 1000.0));
    }
    Ok(())
}

#[derive(Serialize)]
struct Listening {
    protocol: String,
    address: String,
    port: u16,
    process: String,
    pid: u32,
}

pub async fn ports(context: &Context, vm: &str) -> Result<()> {
    let ports = context.bus.vms().await?.list_ports(vm).await?;
    let row = |(protocol, address, port, process, pid)| Listening { protocol, address, port, process, pid };
    let rows: Vec<Listening> = ports.into_iter().map(row).collect();
    context.output.rows(&rows, &["PORT", "PROTOCOL", "ADDRESS", "PROCESS", "PID"], |row| {
        vec![
            row.port.to_string(),
            row.protocol.clone(),
            row.address.clone(),
            or_dash(&row.process),
            if row.pid == 0 { or_dash("") } else { row.pid.to_string() },
        ]
    })
}

/// The error of `top` where there is nothing to draw on.
pub fn no_terminal() -> banger_api::Error {
    ErrorKind::NotSupported.error("this needs a terminal; banger stats prints figures anywhere")
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_api::agent::DiskCounters;

    fn taken(second: u64, cpu_usec: u64, bytes: u64) -> VmStats {
        let guest = Stats {
            memory_total: 1200,
            memory_balloon: Some(200),
            memory_available: 400,
            disks: vec![DiskCounters { read_bytes: bytes, ..DiskCounters::default() }; 2],
            ..Stats::default()
        };
        VmStats {
            monotonic_usec: second * 1_000_000,
            cpu_usec: Some(cpu_usec),
            net_received_bytes: Some(bytes),
            net_sent_bytes: Some(7),
            guest: Some(guest),
            ..VmStats::default()
        }
    }

    #[test]
    fn rates_are_of_two_samples() {
        let figures = Figures::between(Some(&taken(10, 0, 100)), &taken(12, 3_000_000, 300));
        assert_eq!(figures.cpu_percent, Some(150.0));
        assert_eq!(figures.memory_used_bytes, Some(600));
        // Of all disks.
        assert_eq!((figures.disk_read_rate, figures.net_receive_rate), (Some(200.0), Some(100.0)));
        assert_eq!(figures.net_send_rate, Some(0.0));
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        let now = taken(12, 5, 5);
        assert_eq!(Figures::between(None, &now).cpu_percent, None);
        assert_eq!(Figures::between(Some(&now), &now).cpu_percent, None);
        // Started again in between.
        assert_eq!(Figures::between(Some(&taken(10, 9, 9)), &now).cpu_percent, None);
        let paused = VmStats { guest: None, ..now.clone() };
        let figures = Figures::between(Some(&taken(10, 0, 0)), &paused);
        assert!(figures.net_receive_rate.is_some() && figures.disk_read_rate.is_none());
        assert_eq!(
            (percent(None), per_second(Some(2048.0)), percent(Some(1.25))),
            ("-".into(), "2K/s".into(), "1.2%".into())
        );
    }
}
