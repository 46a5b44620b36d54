//! What is safe to be done about what was found: nothing that a guest notices, and nothing to what is not banger's.

use std::time::Duration;

use banger_api::{ErrorKind, NETD, Result};
use tokio::process::Command;

use super::systemd::{self, ManagerProxy};
use crate::Context;

/// In the order in which they are done.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fix {
    /// Users and groups are made.
    Users,
    /// Directories are made, with owners and modes.
    Directories,
    /// systemd reads unit files again.
    Reload,
    /// The failure of a unit that comes when it is called is forgotten.
    Forget(String),
    /// That of one that waits, such as a socket, is, too, and it waits again: for a service that can start again.
    Revive(String),
    /// A unit is enabled and, with `now`, started.
    Enable {
        unit: String,
        now: bool,
    },
    Start(String),
    /// netd makes its links and rules again.
    Network,
    /// vmd removes what is no VM's.
    Reconcile,
}

/// How long systemd may take to start a socket.
const PATIENCE: Duration = Duration::from_secs(10);

impl Fix {
    /// The same, for a person to type.
    pub fn command(&self) -> String {
        match self {
            Self::Users => "systemd-sysusers banger.conf".into(),
            Self::Directories => "systemd-tmpfiles --create banger.conf".into(),
            Self::Reload => "systemctl daemon-reload".into(),
            Self::Forget(unit) => format!("systemctl reset-failed {unit}"),
            Self::Revive(unit) => format!("systemctl reset-failed {unit} && systemctl start {unit}"),
            Self::Enable { unit, now: true } => format!("systemctl enable --now {unit}"),
            Self::Enable { unit, now: false } => format!("systemctl enable {unit}"),
            Self::Start(unit) => format!("systemctl start {unit}"),
            Self::Network => format!("busctl call {} {} {} Refresh", NETD.bus_name, NETD.path, NETD.manager),
            Self::Reconcile => "banger vm reconcile".into(),
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// What systemd or the services refuse; `AccessDenied` to who may not.
    pub async fn apply(&self, context: &Context) -> Result<()> {
        match self {
            Self::Users => run("systemd-sysusers", &["banger.conf"]).await,
            Self::Directories => run("systemd-tmpfiles", &["--create", "banger.conf"]).await,
            Self::Reload => Ok(manager(context).await?.reload().await?),
            Self::Forget(unit) => Ok(manager(context).await?.reset_failed_unit(unit).await?),
            Self::Revive(unit) => {
                manager(context).await?.reset_failed_unit(unit).await?;
                start(context, unit).await
            }
            Self::Enable { unit, now } => {
                let manager = manager(context).await?;
                manager.enable_unit_files(&[unit], false, false).await?;
                manager.reload().await?;
                if *now { start(context, unit).await } else { Ok(()) }
            }
            Self::Start(unit) => start(context, unit).await,
            Self::Network => Ok(context.bus.network().await?.refresh().await?),
            Self::Reconcile => {
                context.bus.vms().await?.reconcile().await?;
                Ok(())
            }
        }
    }
}

async fn manager(context: &Context) -> Result<ManagerProxy<'static>> {
    Ok(ManagerProxy::new(&context.bus.system().await?).await?)
}

/// Starts a unit, and waits until systemd is done with it.
async fn start(context: &Context, unit: &str) -> Result<()> {
    let bus = context.bus.system().await?;
    let manager = ManagerProxy::new(&bus).await?;
    manager.start_unit(unit, "replace").await?;
    let (proxy, _) = systemd::unit(&bus, manager.load_unit(unit).await?).await?;
    let done = async {
        while proxy.job().await?.0 != 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        match proxy.active_state().await? {
            state if state == "active" => Ok(()),
            state => {
                Err(ErrorKind::NotReady.error(format!("it is {state}; look at systemctl status {unit}")))
            }
        }
    };
    let late =
        |_| ErrorKind::NotReady.error(format!("systemd is still at it; look at systemctl status {unit}"));
    tokio::time::timeout(PATIENCE, done).await.map_err(late)?
}

/// Runs a program of systemd's that has no interface on the bus.
async fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().await?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(ErrorKind::AccessDenied.error(format!("{program}: {said}")))
}
