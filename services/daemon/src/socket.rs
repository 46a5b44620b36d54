//! The socket under a peer connection.
//!
//! What zbus has for Unix sockets would do, but for one thing: libsystemd, and so `busctl`, breaks
//! off when anything arrives before the answer to its first call, `Hello`. zbus announces objects
//! as soon as they are served. So this one holds signals back, that is drops them, until the client
//! has been answered something: who has not asked yet has not subscribed to anything either.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg, sockopt,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use zbus::connection::socket::{ReadHalf, Socket, Split, WriteHalf};
use zbus::export::async_trait::async_trait;
use zbus::fdo::ConnectionCredentials;
use zbus::message::{Message, Type};

/// The most file descriptors one message may carry, as the bus itself allows by default.
const MAX_FDS: usize = 16;

#[derive(Debug)]
pub(crate) struct PeerSocket(UnixStream);

impl PeerSocket {
    /// # Errors
    /// If the runtime cannot watch the socket.
    pub(crate) fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream).map(Self)
    }
}

impl Socket for PeerSocket {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
        let stream = Arc::new(self.0);
        Split::new(Reader(stream.clone()), Writer { stream, answered: false })
    }
}

#[derive(Debug)]
pub(crate) struct Reader(Arc<UnixStream>);

#[async_trait]
impl ReadHalf for Reader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        self.0
            .async_io(Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
                let mut ancillary = RecvAncillaryBuffer::new(&mut space);
                let buffers = &mut [IoSliceMut::new(buffer)];
                let received = recvmsg(&self.0, buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
                let mut fds = Vec::new();
                for message in ancillary.drain() {
                    if let RecvAncillaryMessage::ScmRights(rights) = message {
                        fds.extend(rights);
                    }
                }
                Ok((received.bytes, fds))
            })
            .await
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }

    async fn peer_credentials(&mut self) -> io::Result<ConnectionCredentials> {
        credentials(&self.0)
    }
}

#[derive(Debug)]
pub(crate) struct Writer {
    stream: Arc<UnixStream>,
    /// Something other than a signal has been sent.
    answered: bool,
}

#[async_trait]
impl WriteHalf for Writer {
    async fn send_message(&mut self, message: &Message) -> zbus::Result<()> {
        if !self.answered && message.message_type() == Type::Signal {
            return Ok(());
        }
        self.answered = true;
        let data = message.data();
        let mut sent = 0;
        while sent < data.len() {
            let fds: Vec<_> = data.fds().iter().map(AsFd::as_fd).filter(|_| sent == 0).collect();
            sent += self.sendmsg(&data[sent..], &fds).await?;
        }
        Ok(())
    }

    async fn sendmsg(&mut self, buffer: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.stream
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                Ok(sendmsg(&self.stream, &[IoSlice::new(buffer)], &mut ancillary, SendFlags::NOSIGNAL)?)
            })
            .await
    }

    async fn close(&mut self) -> io::Result<()> {
        rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Both)?;
        Ok(())
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }

    async fn peer_credentials(&mut self) -> io::Result<ConnectionCredentials> {
        credentials(&self.stream)
    }
}

/// Who connected, as the kernel recorded it then.
fn credentials(stream: &UnixStream) -> io::Result<ConnectionCredentials> {
    let peer = sockopt::socket_peercred(stream)?;
    let pid = u32::try_from(peer.pid.as_raw_nonzero().get()).unwrap_or_default();
    Ok(ConnectionCredentials::default().set_unix_user_id(peer.uid.as_raw()).set_process_id(pid))
}
