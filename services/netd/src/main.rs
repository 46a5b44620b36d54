//! banger-netd: the guests' network on the host.
//!
//! One bridge, one TAP per lease, one nftables table, one name server. What is wanted is in the database
//! (leases) and the configuration; what is there is asked of the kernel, and made alike:
//!
//! ```text
//!   bus/manager ──► leases ──► store        rows: who holds which address
//!                    │ │ │
//!                    │ │ └───► effects      bridge, TAPs, nftables, sysctls
//!                    │ │         ▲
//!                    │ │  plan, firewall    pure: names, addresses, rules
//!                    │ └─────► dns          the guests' names, on port 53 of the gateway
//!                    └───────► routing      the host's way to them: systemd-resolved
//! ```
//!
//! Nothing is touched before the first lease. A lease is written down before its TAP is made, and
//! crossed out after its TAP is gone, so a crash in between leaves a row and never a stray device;
//! the next start, or the next call for that holder, completes it.

mod bus;
mod config;
mod dns;
mod effects;
mod firewall;
mod generator;
mod leases;
#[cfg(test)]
mod packets;
mod plan;
mod resolvers;
mod routing;
mod store;
mod warnings;

use std::process::ExitCode;
use std::sync::{Arc, RwLock};

use banger_daemon::{Spec, Store};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::Config;
use crate::dns::zone::{Name, Zone};
use crate::leases::Leases;
use crate::routing::Routing;

fn main() -> ExitCode {
    if let Some(directory) = generator::called() {
        return generator::run(&directory);
    }
    let spec = Spec {
        service: banger_api::NETD,
        about: "Bridge, TAP devices and NAT for banger's VMs",
        access: banger_api::network::ACCESS,
    };
    banger_daemon::run(spec, |context| async move {
        let config: Arc<Config> = Arc::new(banger_config::load("netd")?);
        let store = Store::open(&context.state_dir.join("netd.db"), store::MIGRATIONS)?;
        let gateway = plan::gateway(config.range);
        let prefix6 = leases::prefix6(&config, &store).await?;
        let names = names(&config, prefix6);
        let sockets = dns::server::Sockets::take(&context.sockets, gateway);
        let leases =
            Leases::new(config, prefix6, store, context.hub.clone(), names.clone(), sockets.is_ok())?;
        let domains = names.read().map(|names| names.tops().iter().map(Name::to_string).collect());
        let plan = routing::Plan {
            gateway,
            domains: domains.unwrap_or_default(),
            no_server: sockets.as_ref().err().cloned(),
        };
        let routing = Routing::start(&context, plan, leases.bridge());
        leases.reconcile().await?;
        dns::hook::serve(&context, &names)?;
        if let Ok(sockets) = sockets {
            dns::server::serve(sockets, leases.clone(), names, gateway, context.idle.clone())?;
        }
        let manager = bus::manager::Manager::new(leases, routing, context.gate.clone());
        context.hub.add(context.service.path, manager).await;
        Ok(())
    })
}

/// The names of the host; those of guests come with their leases.
fn names(config: &Config, prefix6: Option<Ipv6Net>) -> dns::Names {
    let gateway = plan::gateway(config.range);
    let gateway4 = Ipv4Net::new(gateway, config.range.prefix_len()).ok().map(IpNet::V4);
    let gateway6 = prefix6.and_then(|prefix| {
        Some(IpNet::V6(Ipv6Net::new(plan::address6(prefix, gateway), prefix.prefix_len()).ok()?))
    });
    let gateways: Vec<IpNet> = gateway4.into_iter().chain(gateway6).collect();
    Arc::new(RwLock::new(Zone::new(config.domain.clone(), &gateways)))
}
