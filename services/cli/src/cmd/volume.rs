//! `banger volume`.

use banger_api::Result;
use serde::Serialize;

use crate::Context;
use crate::args::Volume;
use crate::exit::SUCCESS;
use crate::output::{or_dash, size};

pub async fn dispatch(context: &Context, command: Volume) -> Result<u8> {
    match command {
        Volume::Create { size, volume } => context.bus.vms().await?.create_volume(&volume, size).await?,
        Volume::Ls => list(context).await?,
        Volume::Rm { volumes } => {
            return super::each(volumes, async |volume| {
                Ok(context.bus.vms().await?.delete_volume(&volume).await?)
            })
            .await;
        }
    }
    Ok(SUCCESS)
}

#[derive(Serialize)]
struct Row {
    name: String,
    bytes: u64,
    created_usec: u64,
    vms: Vec<String>,
}

async fn list(context: &Context) -> Result<()> {
    let volumes = context.bus.vms().await?.list_volumes().await?;
    let row = |(name, bytes, created_usec, vms)| Row { name, bytes, created_usec, vms };
    let rows: Vec<Row> = volumes.into_iter().map(row).collect();
    context.output.rows(&rows, &["NAME", "SIZE", "VMS"], |row| {
        vec![row.name.clone(), size(row.bytes), or_dash(&row.vms.join(", "))]
    })
}
