//! `banger net`.

use banger_api::Result;
use serde::Serialize;

use crate::Context;
use crate::args::Net;
use crate::output::yes;

pub async fn dispatch(context: &Context, command: Net) -> Result<()> {
    match command {
        Net::Status => status(context).await,
        Net::Leases => leases(context).await,
    }
}

async fn status(context: &Context) -> Result<()> {
    let network = context.bus.network().await?;
    let status = serde_json::json!({
        "bridge": network.bridge().await?,
        "range": network.range().await?,
        "gateway": network.gateway().await?,
        "dns": network.dns().await?,
        "leases": network.list_leases().await?.len(),
    });
    context.output.description(&status.to_string())
}

#[derive(Serialize)]
struct Row {
    holder: String,
    address: String,
    tap: String,
    mac: String,
    nat: bool,
}

async fn leases(context: &Context) -> Result<()> {
    let rows: Vec<Row> = context
        .bus
        .network()
        .await?
        .list_leases()
        .await?
        .into_iter()
        .map(|(holder, address, tap, mac, nat, _)| Row { holder, address, tap, mac, nat })
        .collect();
    context.output.rows(&rows, &["VM", "ADDRESS", "TAP", "MAC", "NAT"], |row| {
        vec![row.holder.clone(), row.address.clone(), row.tap.clone(), row.mac.clone(), yes(row.nat)]
    })
}
