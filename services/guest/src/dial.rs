//! Calls to the ports of a guest.

use std::io::{self, IoSlice, PipeWriter, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use banger_api::vm::calls_socket;
use banger_api::{Error, ErrorKind, Result};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixSocket, UnixStream};
use tokio::time::timeout;

use crate::{PATIENCE, lost, protocol_error, read_line};

/// How often a guest is called that breaks calls off, and how long after each other.
const ATTEMPTS: u32 = 8;
const RETRY: Duration = Duration::from_millis(50);

/// Connects to a port of the guest.
///
/// A guest that woke up from a snapshot still has the connections from before it fell asleep. One
/// that gets the number of such a one is broken off, which ends the old one, too. So that is no
/// answer yet.
pub async fn dial(vsock: &Path, port: u32) -> Result<UnixStream> {
    let mut attempt = 1;
    loop {
        match dial_once(vsock, port).await {
            Err(Refusal::BrokenOff) if attempt < ATTEMPTS => {}
            Err(Refusal::BrokenOff) => return Err(lost(io::ErrorKind::UnexpectedEof.into())),
            Err(Refusal::Final(error)) => return Err(error),
            Ok(stream) => return Ok(stream),
        }
        tokio::time::sleep(RETRY).await;
        attempt += 1;
    }
}

enum Refusal {
    /// The connection ended before it was the guest's.
    BrokenOff,
    Final(Error),
}

async fn dial_once(vsock: &Path, port: u32) -> std::result::Result<UnixStream, Refusal> {
    let unreachable = |what: &str| {
        let message = format!("the VM does not answer ({what}); is it running?");
        Refusal::Final(ErrorKind::AgentUnreachable.error(message))
    };
    let failed = |error: io::Error| unreachable(&format!("{}: {error}", vsock.display()));
    let socket = UnixSocket::new_stream().map_err(failed)?;
    let kept = hand_over(vsock, &socket).map_err(failed)?;
    let call = async {
        let mut stream = socket.connect(vsock).await.map_err(failed)?;
        if stream.write_all(format!("CONNECT {port}\n").as_bytes()).await.is_err() {
            return Err(Refusal::BrokenOff);
        }
        match read_line(&mut stream).await {
            Ok(line) if line.starts_with("OK ") => Ok(stream),
            Ok(_) => Err(Refusal::Final(protocol_error("the VM's vsock socket answers in no known form"))),
            Err(error) if error.kind() == ErrorKind::AgentUnreachable => Err(Refusal::BrokenOff),
            Err(error) => Err(Refusal::Final(error)),
        }
    };
    let stream = timeout(PATIENCE, call).await.map_err(|_| unreachable("timeout"))??;
    if let Some(mut answered) = kept {
        // Nobody there any longer is as good.
        let _ = answered.write_all(b"\n");
    }
    Ok(stream)
}

/// Has the VM's unit keep the call open until it is answered, whatever becomes of us; see [`calls_socket`].
/// Some VMs have nobody there for it.
fn hand_over(vsock: &Path, socket: &UnixSocket) -> io::Result<Option<PipeWriter>> {
    let keeper = UnixDatagram::unbound()?;
    let runtime_dir = vsock.parent().unwrap_or(Path::new("/"));
    if keeper.connect(calls_socket(runtime_dir)).is_err() {
        return Ok(None);
    }
    let (caller, answered) = io::pipe()?;
    let fds = [socket.as_fd(), caller.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut messages = SendAncillaryBuffer::new(&mut space);
    messages.push(SendAncillaryMessage::ScmRights(&fds));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = sendmsg(&keeper, &[IoSlice::new(b"\n")], &mut messages, flags);
    Ok(sent.is_ok().then_some(answered))
}
