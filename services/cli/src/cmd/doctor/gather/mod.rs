//! The I/O: asks the kernel, systemd and banger's services, and judges nothing.

mod host;
mod journal;
mod links;
mod services;
mod units;
mod you;

use std::time::Duration;

use banger_api::{Error, ErrorKind, Result};

use super::facts::{Facts, Seen, Unseen};
use crate::Context;

/// Longer than the bus takes to give a service up that does not start.
const PATIENCE: Duration = Duration::from_secs(30);

/// Looks at everything.
pub async fn facts(context: &Context) -> Facts {
    // First, for those who are asked below are started by it, and their sockets with them.
    let systemd = seen("systemd does not answer", units::systemd(context)).await;
    let (versions, host, kernels, network, orphans, leavings) = tokio::join!(
        services::versions(context),
        seen("banger-vmd did not say what the host has", services::host(context)),
        seen("banger-imaged did not list kernels", services::kernels(context)),
        seen("banger-netd did not tell of the network", links::network(context)),
        seen("banger-vmd could not look for leftovers", services::orphans(context)),
        seen("the VMs are not known", services::leavings(context)),
    );
    let (you, clock, names, journal) = tokio::join!(
        seen("it is not known who you are", you::you(context)),
        seen("systemd-timedated does not answer", host::clock(context)),
        seen("the system bus does not answer", services::names(context)),
        journal::entries(),
    );
    Facts {
        you,
        machine: host::machine(),
        system: host::system(),
        storage: host::storage(),
        clock,
        names,
        systemd,
        versions,
        host,
        kernels,
        network,
        orphans,
        leavings,
        journal,
    }
}

/// What came of asking, in time.
async fn seen<T>(otherwise: &str, asked: impl Future<Output = Result<T>>) -> Seen<T> {
    let late = || Err(ErrorKind::ServiceUnavailable.error("no answer in time"));
    let answer = tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| late());
    answer.map_err(|error| unseen(otherwise, &error))
}

fn unseen(otherwise: &str, error: &Error) -> Unseen {
    let remedy = match error.kind() {
        ErrorKind::AccessDenied | ErrorKind::InteractiveAuthorizationRequired => "sudo banger doctor",
        _ => "see to what else is told here, then ask again",
    };
    Unseen { what: format!("{otherwise}: {}", error.message()), remedy: remedy.into() }
}
