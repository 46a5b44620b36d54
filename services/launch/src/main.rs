//! What the unit `banger-vm@NAME.service` executes.
//!
//! - `run` asks vmd for the VM's launch plan, starts what the VMM needs beside itself and then
//!   *becomes* the VMM, so that systemd supervises the VMM and nothing stands between them;
//! - `attend`, which `run` leaves behind in the unit, gives the starting guest its configuration, or loads
//!   the snapshot that the VM starts from,
//!   and turns the guest's status into the unit's (`READY=1`, `STATUS=`), and its signs of life (`WATCHDOG=1`);
//!   it passes on to the journal what the VMM tells of itself, too;
//! - `stop` asks the guest to power off, presses its power button if that does not help, and waits for
//!   the VMM's end;
//! - `release` tells vmd that the VM is down.
//!
//! And what the units `banger-forward-*@ADDRESS.service` execute: `forward`.
//!
//! All of it runs as the VM's own user, or the forward's, without any privilege. Nobody needs vmd, or any other
//! service of banger, while the VM runs.

mod attend;
mod forward;
mod health;
mod journal;
mod keep;
mod restore;
mod run;
mod stop;
mod timeline;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use banger_api::vm::{LAUNCH_SOCKET, ManagerProxy};
use banger_core::event::Event;
use banger_core::name::VmName;
use clap::Parser;
use libsystemd::logging::{Priority, connected_to_journal, journal_send};

#[derive(Parser)]
#[command(version, about = "What a VM's unit runs; not for use by hand")]
enum Command {
    /// Prepare the VM and become its VMM
    Run { name: String },
    /// Give the guest its configuration and pass its status on
    Attend { name: String },
    /// Ask the guest to power off and wait for the end of the VMM
    Stop {
        name: String,
        /// Press the power button of a guest that has not ended after so many seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 20)]
        power_button_after: u64,
    },
    /// Tell vmd that the VM is down
    Release { name: String },
    /// Carry what comes to a port of the host to a guest
    Forward { protocol: String, listen: String },
}

fn main() -> ExitCode {
    let outcome = match Command::parse() {
        Command::Run { name } => named(&name, run::run),
        Command::Attend { name } => named(&name, attend::attend),
        Command::Stop { name, power_button_after } => named(&name, |name, runtime_dir| {
            stop::stop(name, &runtime_dir, Duration::from_secs(power_button_after))
        }),
        Command::Release { name } => named(&name, release),
        Command::Forward { protocol, listen } => forward::forward(&protocol, &listen),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is the journal of the VM's unit.
            eprintln!("banger-launch: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn named(name: &str, command: impl FnOnce(&VmName, PathBuf) -> Result<()>) -> Result<()> {
    let name = VmName::new(name)?;
    let runtime_dir = std::env::var_os("RUNTIME_DIRECTORY")
        .map_or_else(|| PathBuf::from(banger_api::vm::RUNTIME_DIR).join(name.as_str()), PathBuf::from);
    command(&name, runtime_dir)
}

/// Fails, and the unit with it, if the run did not end as it should.
fn release(name: &VmName, runtime_dir: PathBuf) -> Result<()> {
    let result = std::env::var("SERVICE_RESULT").unwrap_or_default();
    let goodbye = std::fs::read_to_string(runtime_dir.join(attend::GOODBYE)).unwrap_or_default();
    let judged = ask_vmd(async |vmd| vmd.release_vm(name.as_str(), &result, &goodbye).await);
    let (failed, reason) = judged.inspect_err(|error| {
        // Else vmd has noted it.
        note(&Event::VmFailed { vm: name.as_str(), reason: &format!("vmd does not release it: {error}") });
        // The journal finds out whose unit this process is in only as long as it is there.
        std::thread::sleep(Duration::from_millis(100));
    })?;
    if failed {
        bail!("{reason}");
    }
    eprintln!("{reason}");
    Ok(())
}

/// Notes what has happened to the VM: in its own unit, as that needs nobody else.
fn note(event: &Event<'_>) {
    let priority = if event.kind().is_warning { Priority::Warning } else { Priority::Notice };
    log(priority, &event.message(), event.fields());
}

fn warn(message: &str) {
    log(Priority::Warning, message, []);
}

/// Standard error is the journal of the VM's unit, too, but its lines have no priority: the guest's console is
/// among them, and is not to choose any.
fn log(priority: Priority, message: &str, fields: impl IntoIterator<Item = (String, String)>) {
    if !connected_to_journal() {
        return eprintln!("{message}");
    }
    let program = ("SYSLOG_IDENTIFIER".to_owned(), "banger-launch".to_owned());
    if let Err(error) = journal_send(priority, message, fields.into_iter().chain([program])) {
        eprintln!("{message}, which the journal did not take as it is: {error}");
    }
}

/// Asks vmd, and once more if vmd ends before it has answered: its socket brings it back.
fn ask_vmd<T>(question: impl AsyncFn(ManagerProxy<'static>) -> zbus::Result<T>) -> Result<T> {
    block_on(async {
        let answer = match question(vmd().await?).await {
            Err(error) if !matches!(error, zbus::Error::MethodError(..)) => question(vmd().await?).await,
            answer => answer,
        };
        Ok(answer.map_err(banger_api::Error::from)?)
    })
}

/// The VM's user is too short-lived to be known to the bus, so this goes to vmd directly.
async fn vmd() -> Result<ManagerProxy<'static>> {
    let stream = UnixStream::connect(LAUNCH_SOCKET)
        .with_context(|| format!("cannot reach vmd at {LAUNCH_SOCKET}; is banger-launch.socket active?"))?;
    let connection = zbus::connection::Builder::unix_stream(stream).p2p().build().await?;
    Ok(ManagerProxy::new(&connection).await?)
}

/// Runs a future on a runtime of its own, which is gone afterwards: what comes next may be an
/// exec.
fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}
