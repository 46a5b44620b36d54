//! `banger snapshot`, `restore` and `fork`.

use banger_api::{Result, VMD};
use serde::Serialize;

use crate::Context;
use crate::args::Snapshot;
use crate::exit::SUCCESS;
use crate::job;
use crate::output::{ago, size};

pub async fn dispatch(context: &Context, command: Snapshot) -> Result<u8> {
    match command {
        Snapshot::Create { vm, snapshot } => create(context, &vm, snapshot.as_deref()).await?,
        Snapshot::Ls { vm } => list(context, &vm).await?,
        Snapshot::Rm { vm, snapshots } => {
            return super::each(snapshots, async |snapshot| {
                Ok(context.bus.vms().await?.delete_snapshot(&vm, &snapshot).await?)
            })
            .await;
        }
    }
    Ok(SUCCESS)
}

async fn create(context: &Context, vm: &str, snapshot: Option<&str>) -> Result<()> {
    let started = context.bus.vms().await?.create_snapshot(vm, snapshot.unwrap_or_default()).await?;
    let ended = job::follow(context, VMD, started, &format!("snapshot of {vm}")).await?;
    if context.output.json {
        return context.output.value(&serde_json::json!({"vm": vm, "snapshot": ended.outcome}));
    }
    context.output.line(&ended.outcome);
    Ok(())
}

#[derive(Serialize)]
struct Row {
    name: String,
    created_usec: u64,
    bytes: u64,
    vmm: String,
}

async fn list(context: &Context, vm: &str) -> Result<()> {
    let snapshots = context.bus.vms().await?.list_snapshots(vm).await?;
    let row = |(name, created_usec, bytes, vmm)| Row { name, created_usec, bytes, vmm };
    let rows: Vec<Row> = snapshots.into_iter().map(row).collect();
    context.output.rows(&rows, &["NAME", "TAKEN", "SIZE", "VMM"], |row| {
        vec![row.name.clone(), ago(row.created_usec), size(row.bytes), row.vmm.clone()]
    })
}

pub async fn restore(context: &Context, vm: &str, snapshot: &str) -> Result<()> {
    let started = context.bus.vms().await?.restore_vm(vm, snapshot).await?;
    job::follow(context, VMD, started, &format!("restore {vm}")).await.map(drop)
}

pub async fn fork(context: &Context, vm: &str, names: &[String]) -> Result<()> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let started = context.bus.vms().await?.fork_vm(vm, &names).await?;
    let ended = job::follow(context, VMD, started, &format!("fork {vm}")).await?;
    if context.output.json {
        return context
            .output
            .value(&serde_json::json!({"vms": ended.outcome.split(' ').collect::<Vec<_>>()}));
    }
    for name in ended.outcome.split(' ') {
        context.output.line(name);
    }
    Ok(())
}
