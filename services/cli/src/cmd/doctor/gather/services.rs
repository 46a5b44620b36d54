//! banger's own services, by what everybody may ask them.

use banger_api::image::KernelRow;
use banger_api::service::ServiceProxy;
use banger_api::{Result, SERVICES, Service, vm};
use futures_util::future::join_all;
use zbus::fdo::DBusProxy;

use super::super::facts::{Leavings, Seen};
use super::seen;
use crate::Context;

pub async fn names(context: &Context) -> Result<Vec<String>> {
    let bus = DBusProxy::new(&context.bus.system().await?).await?;
    Ok(bus.list_activatable_names().await?.into_iter().map(|name| name.to_string()).collect())
}

pub async fn versions(context: &Context) -> Vec<(&'static str, Seen<String>)> {
    join_all(SERVICES.map(async |service| {
        let silent = format!("banger-{} does not answer", service.id);
        let version = seen(&silent, version(context, service)).await;
        (service.id, version)
    }))
    .await
}

async fn version(context: &Context, service: Service) -> Result<String> {
    let proxy: ServiceProxy<'static> = context.bus.object(service, service.path).await?;
    Ok(proxy.version().await?)
}

pub async fn host(context: &Context) -> Result<vm::Host> {
    Ok(context.bus.vms().await?.get_host().await?)
}

pub async fn kernels(context: &Context) -> Result<Vec<KernelRow>> {
    Ok(context.bus.images().await?.list_kernels().await?)
}

pub async fn orphans(context: &Context) -> Result<Vec<String>> {
    Ok(context.bus.vms().await?.list_orphans().await?)
}

pub async fn leavings(context: &Context) -> Result<Leavings> {
    // Before the VMs, of which there may be more by then.
    let (enabled, running) = (enabled(), entries(vm::RUNTIME_DIR));
    let vms = context.bus.vms().await?.list_vms().await?;
    Ok(Leavings { vms: vms.into_iter().map(|(name, ..)| name).collect(), enabled, running })
}

/// The links by which units of VMs are enabled.
fn enabled() -> Vec<(String, String)> {
    const UNITS: &str = "/etc/systemd/system";
    let wants = entries(UNITS).into_iter().filter(|name| name.ends_with(".wants"));
    wants
        .flat_map(|wants| {
            let dir = format!("{UNITS}/{wants}");
            entries(&dir).into_iter().filter_map(move |unit| {
                let vm = unit.strip_prefix("banger-vm@")?.strip_suffix(".service")?;
                Some((vm.to_owned(), format!("{dir}/{unit}")))
            })
        })
        .collect()
}

/// The names in a directory; none if it cannot be read, which is for others to tell.
fn entries(path: &str) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
