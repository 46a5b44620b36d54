//! `banger net`.

use banger_api::network::{Counters, Problem, Warning};
use banger_api::options::OptionsBuilder;
use banger_api::vm::ForwardRow;
use banger_api::{Error, ErrorKind, Result};
use banger_core::forward::{Forward, Listen};
use serde::Serialize;

use crate::Context;
use crate::args::{ForwardCommand, Net};
use crate::output::{size, yes};

pub async fn dispatch(context: &Context, command: Net) -> Result<()> {
    match command {
        Net::Status => status(context).await,
        Net::Leases => leases(context).await,
        Net::Forward(command) => forward(context, command).await,
    }
}

async fn status(context: &Context) -> Result<()> {
    let network = context.bus.network().await?;
    let problem = |(what, remedy): Problem| format!("{what}: {remedy}");
    let warning = |(_, what, remedy): Warning| problem((what, remedy));
    let status = serde_json::json!({
        "bridge": network.bridge().await?,
        "uplinks": network.uplinks().await?,
        "range": network.range().await?,
        "gateway": network.gateway().await?,
        "range6": network.range6().await?,
        "gateway6": network.gateway6().await?,
        "dns": network.dns().await?,
        "domain": network.domain().await?,
        "resolved": network.resolved_state().await?,
        "problems": network.dns_problems().await?.into_iter().map(problem).collect::<Vec<_>>(),
        "pool": {"taps": network.pool_size().await?, "free": network.pool_free().await?},
        "leases": network.list_leases().await?.len(),
        "forwards": context.bus.vms().await?.list_forwards().await?.len(),
        "warnings": network.warnings().await?.into_iter().map(warning).collect::<Vec<_>>(),
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
    /// As the guest sees them.
    counters: Counters,
}

async fn leases(context: &Context) -> Result<()> {
    let network = context.bus.network().await?;
    let mut rows = Vec::new();
    for (holder, address, tap, mac, nat, _) in network.list_leases().await? {
        match network.get_counters(&holder).await.map_err(Error::from) {
            Ok(counters) => rows.push(Row { holder, address, tap, mac, nat, counters }),
            // Released since.
            Err(error) if error.kind() == ErrorKind::NoSuchLease => {}
            Err(error) => return Err(error),
        }
    }
    context.output.rows(&rows, &["VM", "ADDRESS", "TAP", "MAC", "NAT", "RECEIVED", "SENT"], |row| {
        vec![
            row.holder.clone(),
            row.address.clone(),
            row.tap.clone(),
            row.mac.clone(),
            yes(row.nat),
            size(row.counters.received_bytes),
            size(row.counters.sent_bytes),
        ]
    })
}

async fn forward(context: &Context, command: ForwardCommand) -> Result<()> {
    let vms = context.bus.vms().await?;
    match command {
        ForwardCommand::Add { vm, forwards } => {
            for forward in &forwards {
                let (protocol, listen, port, on_demand) = arguments(forward);
                let options = OptionsBuilder::new().set("on_demand", on_demand.then_some(true)).build();
                vms.add_forward(&vm, protocol, &listen, port, options).await?;
            }
            Ok(())
        }
        ForwardCommand::Rm { listens } => {
            for Listen { protocol, address } in listens {
                vms.remove_forward(protocol.as_str(), &address.to_string()).await?;
            }
            Ok(())
        }
        ForwardCommand::Ls => forwards(context).await,
    }
}

#[derive(Serialize)]
struct ForwardLine {
    vm: String,
    protocol: String,
    listen: String,
    port: u16,
    on_demand: bool,
    listening: bool,
}

async fn forwards(context: &Context) -> Result<()> {
    let line = |(vm, protocol, listen, port, on_demand, listening): ForwardRow| ForwardLine {
        vm,
        protocol,
        listen,
        port,
        on_demand,
        listening,
    };
    let lines: Vec<ForwardLine> =
        context.bus.vms().await?.list_forwards().await?.into_iter().map(line).collect();
    context.output.rows(&lines, &["LISTEN", "VM", "PORT", "ON DEMAND", "LISTENING"], |line| {
        vec![
            format!("{}/{}", line.listen, line.protocol),
            line.vm.clone(),
            line.port.to_string(),
            yes(line.on_demand),
            yes(line.listening),
        ]
    })
}

/// A forward as methods take it.
pub fn arguments(forward: &Forward) -> (&'static str, String, u16, bool) {
    let Listen { protocol, address } = forward.listen;
    (protocol.as_str(), address.to_string(), forward.port, forward.on_demand)
}

/// A forward in a column.
pub fn arrow((_, protocol, listen, port, ..): &ForwardRow) -> String {
    format!("{listen}->{port}/{protocol}")
}
