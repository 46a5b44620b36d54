//! What every service of banger does alike, and no word of what any of them is for.
//!
//! [`run`] is the whole life of a service: it takes the sockets systemd opened, connects to the
//! system bus, lets the service register its objects in the [`Hub`], requests the bus name, tells
//! systemd that it is ready, serves until nobody has needed it for a while, and leaves.
//!
//! - [`hub`]: the same objects on the system bus and on every peer connection, signals in order
//! - [`gate`]: who may call what (polkit on the bus, `SO_PEERCRED` on the sockets)
//! - [`event`]: what has happened, for the journal
//! - [`jobs`]: long work as objects with stages, progress, cancel and an outcome
//! - [`store`]: one SQLite file on its own thread, with numbered migrations
//! - [`idle`]: when to leave

mod activation;
pub mod event;
#[cfg(feature = "failpoints")]
pub mod failpoint;
pub mod gate;
pub mod hub;
pub mod idle;
pub mod jobs;
pub mod locks;
pub mod log;
mod peer;
mod record;
mod socket;
pub mod store;
mod subscribers;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use banger_api::{Access, Result, Service};
use clap::{CommandFactory, FromArgMatches};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use zbus::Connection;

use crate::activation::Passed;
use crate::subscribers::Subscribers;

pub use gate::{Call, Gate};
pub use hub::Hub;
pub use idle::Idle;
pub use jobs::{Jobs, Progress};
pub use locks::Locks;
pub use store::Store;

/// A named point at which tests end or delay the service, in asynchronous code or, with `blocking`,
/// in a thread that may block; see `failpoint.rs`.
#[cfg(feature = "failpoints")]
#[macro_export]
macro_rules! failpoint {
    (blocking $name:literal) => {
        $crate::failpoint::hit_blocking($name)
    };
    ($name:literal) => {
        $crate::failpoint::hit($name).await
    };
}

/// Nothing, in a build that is no test's.
#[cfg(not(feature = "failpoints"))]
#[macro_export]
macro_rules! failpoint {
    ($(blocking)? $name:literal) => {};
}

/// Which service this is, and who may call its members.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    pub service: Service,
    /// One line for `--help`.
    pub about: &'static str,
    pub access: &'static [(&'static str, &'static str, Access)],
}

/// Everything a service gets from its surroundings. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    pub service: Service,
    /// The system bus, for calls to others.
    pub bus: Connection,
    pub hub: Hub,
    pub gate: Gate,
    pub jobs: Jobs,
    pub idle: Idle,
    /// `$STATE_DIRECTORY`, or the place systemd would give.
    pub state_dir: PathBuf,
    /// `$RUNTIME_DIRECTORY`, or the place systemd would give; lost at reboot, kept until then.
    pub runtime_dir: PathBuf,
    /// The last instance since boot left because it was idle. If not, it may have been cut off in
    /// the middle of something: look for what it left behind.
    pub clean: bool,
    /// Sockets of the service's own, by name: those that systemd opened, and those that it kept for us
    /// ([`keep`]).
    pub sockets: Arc<[(String, OwnedFd)]>,
}

/// Left in the runtime directory by an instance that had nothing under way.
const CLEAN_MARK: &str = "clean";

#[derive(Debug, clap::Parser)]
#[command(version, disable_help_subcommand = true)]
struct Arguments {
    /// Leave after this many seconds without calls, jobs, subscribers or peers; 0 stays for ever
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    idle_timeout: u64,
}

/// Runs a service until it is idle or told to stop. `start` opens its state and registers its
/// objects; the bus name is requested after it, so that nobody meets half a service.
pub fn run<F, Fut>(spec: Spec, start: F) -> ExitCode
where
    F: FnOnce(Context) -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let command = Arguments::command().name(format!("banger-{}", spec.service.id)).about(spec.about);
    let arguments = match Arguments::from_arg_matches(&command.get_matches()) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    // Before any thread exists: this edits the environment.
    let passed = activation::receive();
    let level = log::init(spec.service.id, &runtime_dir(spec.service));
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(serve(spec, arguments, passed, level, start)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve<F, Fut>(
    spec: Spec,
    arguments: Arguments,
    passed: Passed,
    level: log::Level,
    start: F,
) -> Result<()>
where
    F: FnOnce(Context) -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let service = spec.service;
    let bus = zbus::connection::Builder::system().build().await?;
    let idle = Idle::new();
    let hub = Hub::new();
    let gate = Gate::new(spec.access, idle.clone());
    let clean_mark = runtime_dir(service).join(CLEAN_MARK);
    let context = Context {
        service,
        clean: std::fs::remove_file(&clean_mark).is_ok(),
        bus: bus.clone(),
        jobs: Jobs::new(service, hub.clone(), gate.clone(), idle.clone()),
        hub: hub.clone(),
        gate: gate.clone(),
        idle: idle.clone(),
        runtime_dir: runtime_dir(service),
        state_dir: directory("STATE_DIRECTORY", "/var/lib/banger", service.id),
        sockets: passed.others.into(),
    };
    hub.add(service.path, zbus::fdo::ObjectManager).await;
    hub.add(service.path, Subscribers::new(gate.clone(), idle.clone())).await;
    hub.add("/org/freedesktop/LogControl1", log::LogControl::new(service.id, level, gate)).await;
    let jobs = context.jobs.clone();
    let interrupted = jobs.restore(passed.records).await;
    start(context).await?;

    hub.attach_bus(bus.clone()).await?;
    bus.request_name(service.bus_name).await?;
    interrupted.iter().for_each(|job| jobs.announce_end(job));
    for socket in passed.sockets {
        tokio::spawn(peer::accept(socket, service, hub.clone(), idle.clone()));
    }
    notify(&[NotifyState::Ready]);
    tracing::debug!("{} is ready", service.bus_name);

    let outcome = until_done(&bus, &idle, arguments.idle_timeout).await;
    notify(&[NotifyState::Stopping]);
    leave(&bus, &idle, service).await;
    if outcome.is_ok() && !idle.is_busy() {
        // Without the mark the next instance only looks around in vain.
        let _ = std::fs::write(&clean_mark, "");
    }
    outcome
}

/// Serves until it is time to leave: `Ok` when asked to or idle, an error when the bus is lost.
async fn until_done(bus: &Connection, idle: &Idle, timeout: u64) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let watched = bus.clone();
    let touched = idle.clone();
    tokio::spawn(async move {
        loop {
            watched.monitor_activity().await;
            touched.touch();
        }
    });
    let expired = async {
        match timeout {
            0 => std::future::pending().await,
            seconds => idle.expired(Duration::from_secs(seconds)).await,
        }
    };
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = expired => Ok(()),
        () = watchdog() => Ok(()),
        () = bus.closed() => Err(banger_api::ErrorKind::ServiceUnavailable.error("the system bus went away")),
    }
}

/// Gives the name back first, so that the bus starts a fresh instance for whatever comes from now
/// on, then answers what had already been sent to us.
async fn leave(bus: &Connection, idle: &Idle, service: Service) {
    if let Err(error) = bus.release_name(service.bus_name).await {
        tracing::debug!("cannot release {}: {error}", service.bus_name);
    }
    let drained = async {
        // Calls that the bus routed before it saw the release are still on their way to us.
        tokio::time::sleep(Duration::from_millis(50)).await;
        idle.no_calls().await;
    };
    if tokio::time::timeout(Duration::from_secs(5), drained).await.is_err() {
        tracing::warn!("leaving while calls are under way");
    }
}

/// Tells systemd that the event loop turns, as often as the unit's `WatchdogSec=` asks for.
async fn watchdog() {
    let Some(period) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    loop {
        notify(&[NotifyState::Watchdog]);
        tokio::time::sleep(period / 2).await;
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("cannot notify systemd: {error}");
    }
}

/// Has systemd keep a connection, for the next instance to get it among its sockets, for as long as the unit says and
/// the other end is there.
pub fn keep(name: &str, connection: BorrowedFd<'_>) {
    if let Err(error) =
        sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(name)], &[connection])
    {
        tracing::debug!("cannot have {name} kept: {error}");
    }
}

/// `$RUNTIME_DIRECTORY`, or the place systemd would give.
fn runtime_dir(service: Service) -> PathBuf {
    directory("RUNTIME_DIRECTORY", "/run/banger", service.id)
}

fn directory(variable: &str, base: &str, id: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| PathBuf::from(base).join(id), PathBuf::from)
}
