//! `stop`: ask the guest's agent, then press the power button, and wait for the VMM to end. systemd
//! kills it if all that takes too long.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use banger_api::{agent, vm};
use banger_core::event::Event;
use banger_core::guest::AGENT_PORT;
use banger_core::name::VmName;
use banger_vmm::control::{Control, RunState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use zbus::connection::AuthMechanism;

use crate::{block_on, health, note};

/// How long the agent may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

pub fn stop(name: &VmName, runtime_dir: &Path, power_button_after: Duration) -> Result<()> {
    let Some(vmm) = vmm()? else {
        health::settle(runtime_dir);
        return Ok(());
    };
    note(&Event::VmStopping { vm: name.as_str() });
    let deadline = Instant::now() + power_button_after;
    wake(runtime_dir);
    match ask(runtime_dir, ANSWER.min(power_button_after)) {
        Ok(()) if ended(&vmm, Some(deadline.saturating_duration_since(Instant::now())))? => return Ok(()),
        Ok(()) => eprintln!("{name} has not ended yet: pressing its power button"),
        Err(error) => eprintln!("{error:#}: pressing the power button of {name}"),
    }
    block_on(async { Ok(Control::connect(runtime_dir).await?.power_button().await?) })
        .context("cannot press the power button")?;
    ended(&vmm, None)?;
    Ok(())
}

/// The VMM, unless it is gone already and there is nothing to stop.
fn vmm() -> Result<Option<OwnedFd>> {
    let Some(pid) = std::env::var("MAINPID").ok().and_then(|pid| pid.parse().ok()) else { return Ok(None) };
    let pid = Pid::from_raw(pid).context("MAINPID is 0")?;
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(vmm) => Ok(Some(vmm)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error).context("cannot watch the VMM"),
    }
}

/// Waits for the end of the VMM, but no longer than `within`; returns whether it came.
fn ended(vmm: &OwnedFd, within: Option<Duration>) -> Result<bool> {
    let within = within.and_then(|within| Timespec::try_from(within).ok());
    // A pidfd becomes readable when its process ends.
    Ok(poll(&mut [PollFd::new(vmm, PollFlags::IN)], within.as_ref())? > 0)
}

/// A paused guest hears nothing.
fn wake(runtime_dir: &Path) {
    let woken = block_on(async {
        let mut control = Control::connect(runtime_dir).await?;
        if control.state().await? == RunState::Paused {
            control.resume().await?;
        }
        Ok(())
    });
    if let Err(error) = woken {
        eprintln!("cannot tell whether the guest is paused: {error:#}");
    }
}

/// Asks the agent to power off.
fn ask(runtime_dir: &Path, answer: Duration) -> Result<()> {
    block_on(async {
        let asked = tokio::time::timeout(answer, power_off(runtime_dir)).await;
        asked.unwrap_or_else(|_| bail!("the agent does not answer"))
    })
}

async fn power_off(runtime_dir: &Path) -> Result<()> {
    let stream = connect(runtime_dir).context("cannot reach the guest")?;
    // Over vsock the agent cannot tell who is calling: the socket's access list did that.
    let builder = zbus::connection::Builder::unix_stream(stream).p2p();
    let connection = builder.auth_mechanism(AuthMechanism::Anonymous).build().await?;
    agent::AgentProxy::new(&connection).await?.power_off().await?;
    Ok(())
}

/// A connection to the agent, by the convention of [`vm::vsock_socket`].
fn connect(runtime_dir: &Path) -> Result<UnixStream> {
    use std::io::{Read, Write};
    let mut stream = UnixStream::connect(vm::vsock_socket(runtime_dir))?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes())?;
    // Byte by byte: what follows the line belongs to the conversation.
    let mut answer = Vec::new();
    let mut byte = [0];
    while answer.len() < 32 && !answer.ends_with(b"\n") {
        stream.read_exact(&mut byte)?;
        answer.push(byte[0]);
    }
    if !answer.starts_with(b"OK ") {
        bail!("the VMM refused the connection: {}", String::from_utf8_lossy(&answer).trim_end());
    }
    stream.set_read_timeout(None)?;
    Ok(stream)
}
