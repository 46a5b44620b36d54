//! `stop`: ask the guest, then wait for the VMM to end. systemd kills it if that takes too long.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use banger_api::{agent, vm};
use banger_core::guest::AGENT_PORT;
use banger_core::name::VmName;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use zbus::connection::AuthMechanism;

use crate::block_on;

/// How long the agent may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

pub fn stop(name: &VmName, runtime_dir: PathBuf) -> Result<()> {
    let pid = match std::env::var("MAINPID").ok().and_then(|pid| pid.parse().ok()) {
        Some(pid) => Pid::from_raw(pid).context("MAINPID is 0")?,
        // The VMM is gone already: nothing to stop.
        None => return Ok(()),
    };
    let vmm = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(vmm) => vmm,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error).context("cannot watch the VMM"),
    };
    block_on(async {
        let asked = tokio::time::timeout(ANSWER, power_off(&runtime_dir)).await;
        asked.unwrap_or_else(|_| bail!("the agent in {name} does not answer"))
    })?;
    // A pidfd becomes readable when its process ends.
    poll(&mut [PollFd::new(&vmm, PollFlags::IN)], None)?;
    Ok(())
}

async fn power_off(runtime_dir: &std::path::Path) -> Result<()> {
    let stream = connect(runtime_dir).context("cannot reach the guest")?;
    // Over vsock the agent cannot tell who is calling: the socket's access list did that.
    let builder = zbus::connection::Builder::unix_stream(stream).p2p();
    let connection = builder.auth_mechanism(AuthMechanism::Anonymous).build().await?;
    agent::AgentProxy::new(&connection).await?.power_off().await?;
    Ok(())
}

/// A connection to the agent, by the convention of [`vm::vsock_socket`].
fn connect(runtime_dir: &std::path::Path) -> Result<UnixStream> {
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
