//! banger-netd: the guests' network on the host.
//!
//! One bridge, one TAP per lease, one nftables table. What is wanted is in the database (leases)
//! and the configuration; what is there is asked of the kernel, and made alike:
//!
//! ```text
//!   bus/manager ──► leases ──► store        rows: who holds which address
//!                     │
//!                     └──────► effects      bridge, TAPs, nftables, sysctls
//!                                ▲
//!                plan, firewall ─┘          pure: names, addresses, rules
//! ```
//!
//! Nothing is touched before the first lease. A lease is written down before its TAP is made, and
//! crossed out after its TAP is gone, so a crash in between leaves a row and never a stray device;
//! the next start, or the next call for that holder, completes it.

mod bus;
mod config;
mod effects;
mod firewall;
mod leases;
mod plan;
mod resolvers;
mod store;

use std::process::ExitCode;

use banger_daemon::{Spec, Store};

use crate::leases::Leases;

fn main() -> ExitCode {
    let spec = Spec {
        service: banger_api::NETD,
        about: "Bridge, TAP devices and NAT for banger's VMs",
        access: banger_api::network::ACCESS,
    };
    banger_daemon::run(spec, |context| async move {
        let config = banger_daemon::config::load("netd")?;
        let store = Store::open(&context.state_dir.join("netd.db"), store::MIGRATIONS)?;
        let leases = Leases::new(config, store, context.hub.clone())?;
        leases.reconcile().await?;
        context.hub.add(context.service.path, bus::manager::Manager::new(leases, context.gate.clone())).await;
        Ok(())
    })
}
