//! What systemd says of banger's units.

use std::os::unix::fs::MetadataExt;

use banger_api::Result;
use futures_util::future::{join_all, try_join_all};
use zbus::{Connection, OwnedObjectPath};

use super::super::facts::{Program, Systemd, Unit};
use super::super::systemd::{self, ManagerProxy, ServiceProxy};
use super::super::units::UNITS;
use crate::Context;

const VM_PATTERN: &str = "banger-vm@*.service";

pub async fn systemd(context: &Context) -> Result<Systemd> {
    let bus = context.bus.system().await?;
    let manager = ManagerProxy::new(&bus).await?;
    let failed = manager.list_units_by_patterns(&["failed"], &["banger-*"]).await?;
    let up = ["active", "activating", "deactivating", "reloading"];
    let up = manager.list_units_by_patterns(&up, &[VM_PATTERN]).await?;
    let vm = |unit: &str| Some(unit.strip_prefix("banger-vm@")?.strip_suffix(".service")?.to_owned());
    let units = UNITS.iter().map(|wanted| unit(&bus, &manager, wanted.name));
    let results = failed.into_iter().map(|(name, .., path, _, _, _)| result(&bus, name, path));
    let outdated = up.iter().map(|(name, .., path, _, _, _)| is_outdated(&bus, name, path));
    Ok(Systemd {
        version: manager.version().await?,
        units: try_join_all(units).await?.into_iter().collect(),
        failed: try_join_all(results).await?,
        up: up.iter().filter_map(|(unit, ..)| vm(unit)).collect(),
        outdated: join_all(outdated).await.into_iter().flatten().collect(),
    })
}

/// The name of a unit whose files changed since systemd read them; it may be gone by now.
async fn is_outdated(bus: &Connection, name: &str, path: &OwnedObjectPath) -> Option<String> {
    let (unit, _) = systemd::unit(bus, path.clone()).await.ok()?;
    unit.need_daemon_reload().await.ok()?.then(|| name.to_owned())
}

async fn unit(bus: &Connection, manager: &ManagerProxy<'_>, name: &str) -> Result<(String, Unit)> {
    let (unit, service) = systemd::unit(bus, manager.load_unit(name).await?).await?;
    let is_service = name.ends_with(".service");
    let facts = Unit {
        load: unit.load_state().await?,
        active: unit.active_state().await?,
        file: unit.unit_file_state().await?,
        needs_reload: unit.need_daemon_reload().await?,
        drop_ins: unit.drop_in_paths().await?,
        program: if is_service { program(&service).await? } else { None },
        started: if is_service { service.exec_main_start_timestamp().await? } else { 0 },
    };
    Ok((name.to_owned(), facts))
}

async fn program(service: &ServiceProxy<'_>) -> Result<Option<Program>> {
    let commands = service.exec_start().await?;
    Ok(commands.into_iter().next().map(|(path, ..)| Program { installed: changed(&path), path }))
}

/// When a file took its place or was changed, microseconds since 1970: programs are as old as their build.
fn changed(path: &str) -> Option<u64> {
    let metadata = std::fs::metadata(path).ok()?;
    u64::try_from(metadata.ctime() * 1_000_000 + metadata.ctime_nsec() / 1000).ok()
}

/// The property `Result`, which each type of unit has in an interface of its own.
async fn result(bus: &Connection, name: String, path: OwnedObjectPath) -> Result<(String, String)> {
    let kind = match name.rsplit_once('.') {
        Some((_, "socket")) => "Socket",
        Some((_, "timer")) => "Timer",
        _ => "Service",
    };
    let interface = format!("org.freedesktop.systemd1.{kind}");
    let proxy = zbus::Proxy::new(bus, "org.freedesktop.systemd1", path, interface).await?;
    // It may be gone by now.
    let result = proxy.get_property("Result").await.unwrap_or_default();
    Ok((name, result))
}
