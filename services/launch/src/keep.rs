//! Keeps calls to the guest open until it has answered them.
//!
//! vhost-device-vsock (0.3.0) panics when the guest answers a call whose caller is gone, and spins when
//! a caller is gone before it has said where to; no call comes through after that. But whoever calls may be killed at
//! any moment. So each caller hands its socket over before it connects, and by a pipe says when it has
//! its answer. Of one that is gone without having said so, the socket stays open here until there is one.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};
use banger_api::vm::calls_socket;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// More calls than this are not waited for: the oldest are given up.
const MAX: usize = 256;

/// Begins to take calls, for as long as this process lives.
pub fn begin(runtime_dir: &Path) -> Result<()> {
    let path = calls_socket(runtime_dir);
    let socket = UnixDatagram::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    thread::spawn(move || {
        let mut calls = VecDeque::new();
        loop {
            if let Err(error) = turn(&socket, &mut calls) {
                crate::warn(&format!("calls to the guest are not kept open any longer: {error}"));
                return;
            }
        }
    });
    Ok(())
}

struct Call {
    socket: OwnedFd,
    /// Written to when the call is answered; it ends with its caller.
    caller: Option<OwnedFd>,
}

impl Call {
    /// What there is to wait for.
    fn awaited(&self) -> &OwnedFd {
        self.caller.as_ref().unwrap_or(&self.socket)
    }

    /// Whether it is still to be kept, when what was waited for has come.
    fn go_on(&mut self) -> bool {
        match self.caller.take() {
            // The caller has its answer, or is gone, and the call is ours.
            Some(caller) => rustix::io::read(&caller, &mut [0]).is_ok_and(|read| read == 0),
            None => false,
        }
    }
}

/// Waits for something to happen, and sees to it.
fn turn(socket: &UnixDatagram, calls: &mut VecDeque<Call>) -> io::Result<()> {
    let mut waits = vec![PollFd::new(socket, PollFlags::IN)];
    waits.extend(calls.iter().map(|call| PollFd::new(call.awaited(), PollFlags::IN)));
    match poll(&mut waits, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut happened = waits.iter().map(|wait| !wait.revents().is_empty()).collect::<Vec<_>>().into_iter();
    let called = happened.next().unwrap_or_default();
    calls.retain_mut(|call| !happened.next().unwrap_or_default() || call.go_on());
    if called {
        calls.extend(receive(socket)?);
        calls.drain(..calls.len().saturating_sub(MAX));
    }
    Ok(())
}

fn receive(socket: &UnixDatagram) -> io::Result<Option<Call>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut messages = RecvAncillaryBuffer::new(&mut space);
    let mut nothing = [0; 1];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    match recvmsg(socket, &mut [IoSliceMut::new(&mut nothing)], &mut messages, flags) {
        Ok(_) => {}
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let mut fds = messages.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    Ok(fds.next().zip(fds.next()).map(|(socket, caller)| Call { socket, caller: Some(caller) }))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A call, the guest's end of it, and the end by which its caller says that it is answered.
    fn call() -> (Call, UnixStream, io::PipeWriter) {
        let (ours, guests) = UnixStream::pair().unwrap();
        let (reader, writer) = io::pipe().unwrap();
        (Call { socket: ours.into(), caller: Some(reader.into()) }, guests, writer)
    }

    #[test]
    fn a_call_is_kept_until_it_is_answered() {
        let (mut answered, _guest, mut caller) = call();
        caller.write_all(b"\n").unwrap();
        assert!(!answered.go_on());

        let (mut left, _guest, caller) = call();
        drop(caller);
        assert!(left.go_on(), "its caller is gone");
        assert!(!left.go_on(), "the guest has answered");
    }

    #[test]
    fn calls_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("calls")).unwrap();
        let (call, mut guest, caller) = call();
        let mut calls = VecDeque::from([call]);
        drop(caller);
        turn(&socket, &mut calls).unwrap();
        assert_eq!(calls.len(), 1, "nobody has answered");
        guest.write_all(b"OK 1\n").unwrap();
        turn(&socket, &mut calls).unwrap();
        assert!(calls.is_empty());
    }
}
