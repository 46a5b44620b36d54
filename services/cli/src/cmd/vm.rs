//! `banger vm`, and its short forms.

use std::collections::HashMap;

use banger_api::options::OptionsBuilder;
use banger_api::vm::VmProxy;
use banger_api::{ErrorKind, Result, VMD};
use serde::Serialize;
use zbus::{OwnedObjectPath, Variant};

use crate::Context;
use crate::args::{Create, Init, Machine, Rm, Start, Stop, Vm, Vmm};
use crate::exit::SUCCESS;
use crate::job::{self, Ended};
use crate::output::or_dash;

pub async fn dispatch(context: &Context, command: Vm) -> Result<u8> {
    match command {
        Vm::Create(arguments) => create_command(context, arguments).await?,
        Vm::Start(arguments) => return start(context, arguments).await,
        Vm::Stop(arguments) => return stop(context, arguments).await,
        Vm::Rm(arguments) => return remove(context, arguments).await,
        Vm::Show { vm } => show(context, &vm).await?,
        Vm::Ls => list(context, true).await?,
    }
    Ok(SUCCESS)
}

#[derive(Serialize)]
struct Row {
    name: String,
    state: String,
    image: String,
    address: String,
}

/// `ps`, and `vm ls`.
pub async fn list(context: &Context, all: bool) -> Result<()> {
    let rows: Vec<Row> = context
        .bus
        .vms()
        .await?
        .list_vms()
        .await?
        .into_iter()
        .map(|(name, state, image, address, _)| Row { name, state, image, address })
        .filter(|row| all || matches!(row.state.as_str(), "starting" | "running" | "stopping"))
        .collect();
    context.output.rows(&rows, &["NAME", "STATE", "IMAGE", "ADDRESS"], |row| {
        vec![row.name.clone(), row.state.clone(), row.image.clone(), or_dash(&row.address)]
    })
}

async fn show(context: &Context, name: &str) -> Result<()> {
    let path = context.bus.vms().await?.get_vm(name).await?;
    let vm: VmProxy<'static> = context.bus.object(VMD, &path).await?;
    context.output.description(&vm.describe().await?)
}

async fn create_command(context: &Context, arguments: Create) -> Result<()> {
    super::run::provide(context, &arguments.image, arguments.machine.kernel.is_none()).await?;
    let name = arguments.name.as_deref().unwrap_or_default();
    let created = create(context, name, &arguments.image, &arguments.machine, arguments.start).await?;
    if context.output.json {
        return context.output.value(&serde_json::json!({"name": created.outcome}));
    }
    context.output.line(&created.outcome);
    Ok(())
}

/// Creates a VM. The job's outcome is its name.
pub async fn create(
    context: &Context,
    name: &str,
    image: &str,
    machine: &Machine,
    start: bool,
) -> Result<Ended> {
    let started = context.bus.vms().await?.create_vm(name, image, options(machine, start)).await?;
    let title = if name.is_empty() { format!("create a VM of {image}") } else { format!("create {name}") };
    job::follow(context, VMD, started, &title).await
}

fn options(machine: &Machine, start: bool) -> HashMap<&str, Variant<'_>> {
    let vmm = machine.vmm.map(|vmm| match vmm {
        Vmm::Auto => "auto",
        Vmm::Qemu => "qemu",
        Vmm::Firecracker => "firecracker",
    });
    let init = machine.init.map(|init| match init {
        Init::Auto => "auto",
        Init::Agent => "agent",
        Init::Image => "image",
    });
    OptionsBuilder::new()
        .set("cpus", machine.cpus)
        .set("memory", machine.memory)
        .set("disk", machine.disk)
        .set("kernel", machine.kernel.as_deref())
        .set("kernel_arguments", machine.kernel_arguments.as_deref())
        .set("vmm", vmm)
        .set("init", init)
        .set("network", machine.no_network.then_some(false))
        .set("nat", machine.no_nat.then_some(false))
        .set("start", start.then_some(true))
        .build()
}

pub async fn start(context: &Context, arguments: Start) -> Result<u8> {
    super::each(arguments.vms, async |name| start_one(context, &name).await.map(drop)).await
}

pub async fn start_one(context: &Context, name: &str) -> Result<Ended> {
    let started = context.bus.vms().await?.start_vm(name).await?;
    job::follow(context, VMD, started, &format!("start {name}")).await
}

pub async fn stop(context: &Context, arguments: Stop) -> Result<u8> {
    super::each(arguments.vms, async |name| stop_one(context, &name, arguments.timeout).await).await
}

pub async fn stop_one(context: &Context, name: &str, timeout: Option<u32>) -> Result<()> {
    let options = OptionsBuilder::new().set("timeout", timeout).build();
    let stopping: (u32, OwnedObjectPath) = context.bus.vms().await?.stop_vm(name, options).await?;
    job::follow(context, VMD, stopping, &format!("stop {name}")).await.map(drop)
}

pub async fn remove(context: &Context, arguments: Rm) -> Result<u8> {
    super::each(arguments.vms, async |name| match remove_one(context, &name, arguments.force).await {
        Err(error) if arguments.force && error.kind() == ErrorKind::NoSuchVm => Ok(()),
        Err(error) if error.kind() == ErrorKind::VmRunning => Err(error
            .kind()
            .error(format!("{name} is running; stop it first (banger stop {name}), or use -f"))),
        outcome => outcome,
    })
    .await
}

pub async fn remove_one(context: &Context, name: &str, force: bool) -> Result<()> {
    let options = OptionsBuilder::new().set("force", force.then_some(true)).build();
    Ok(context.bus.vms().await?.delete_vm(name, options).await?)
}
