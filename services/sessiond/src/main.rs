//! banger-sessiond: commands and shells in guests.
//!
//! It opens the doors and stands beside them: what is running is known to the agents in the
//! guests, and what a client writes and reads flows between it and the guest without passing here. What
//! this service has of its own are the logs of named sessions, which it copies out of the guests. It asks
//! the agents after a restart.

mod bus;
mod log;
mod named;
mod sessions;
mod workspace;

use std::process::ExitCode;

use banger_api::session::ACCESS;
use banger_api::{Result, SESSIOND};
use banger_daemon::{Context, Spec};

use crate::bus::Manager;
use crate::sessions::Sessions;

fn main() -> ExitCode {
    let spec = Spec { service: SESSIOND, about: "Commands and shells in the VMs of banger", access: ACCESS };
    banger_daemon::run(spec, start)
}

async fn start(context: Context) -> Result<()> {
    let sessions = Sessions::new(context.clone());
    context.hub.add(SESSIOND.path, Manager::new(sessions.clone(), context.gate.clone())).await;
    sessions.load_named().await?;
    sessions.rediscover();
    Ok(())
}
