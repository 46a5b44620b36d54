//! banger-vmd: the VM supervisor.
//!
//! It owns the rows that say which VMs there are to be, and the reservation of their names and
//! addresses. What runs is a unit of systemd each; vmd prepares it when the unit starts, and can
//! be restarted or killed at any time without a VM noticing.

mod bus;
mod config;
mod effects;
mod request;
mod store;
mod supervisor;

use std::process::ExitCode;

use banger_api::vm::ACCESS;
use banger_api::{Result, VMD};
use banger_daemon::{Context, Spec};

use crate::bus::Manager;
use crate::supervisor::Supervisor;

fn main() -> ExitCode {
    let spec = Spec { service: VMD, about: "The VM supervisor of banger", access: ACCESS };
    banger_daemon::run(spec, start)
}

async fn start(context: Context) -> Result<()> {
    let supervisor = Supervisor::open(context.clone()).await?;
    context.hub.add(VMD.path, Manager::new(supervisor.clone(), context.gate.clone())).await;
    supervisor.publish_all().await;
    Ok(())
}
