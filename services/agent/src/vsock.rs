//! Sockets of the family vsock(7), for tokio and for zbus.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, Shutdown, SockFlag, SockType, VsockAddr, accept4, bind, connect,
    getpeername, listen, recv, shutdown, socket,
};
use tokio::io::unix::AsyncFd;
use zbus::connection::AuthMechanism;
use zbus::connection::socket::{ReadHalf, Socket, Split, WriteHalf};
use zbus::export::async_trait::async_trait;

use std::os::fd::FromRawFd;

/// The host, seen from a guest.
const HOST: u32 = libc::VMADDR_CID_HOST;

fn new_socket(flags: SockFlag) -> nix::Result<OwnedFd> {
    socket(AddressFamily::Vsock, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, None)
}

/// Connects to a port of the host, blocking.
pub fn connect_host(port: u32) -> nix::Result<OwnedFd> {
    let fd = new_socket(SockFlag::empty())?;
    connect(fd.as_raw_fd(), &VsockAddr::new(HOST, port))?;
    Ok(fd)
}

/// Accepts the connections to one port.
pub struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    pub fn bind(port: u32) -> io::Result<Self> {
        let fd = new_socket(SockFlag::SOCK_NONBLOCK)?;
        bind(fd.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
        listen(&fd, Backlog::new(128).expect("below the maximum"))?;
        Ok(Self(crate::sys::watch(fd)?))
    }

    /// Accepts the host alone: where the kernel has a vsock loopback, the guest's own processes get
    /// this far, too, and nobody here asks who they are.
    pub async fn accept(&self) -> io::Result<Connection> {
        loop {
            let fd = self
                .0
                .async_io(tokio::io::Interest::READABLE, |listener| {
                    Ok(accept4(listener.as_raw_fd(), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC)?)
                })
                .await?;
            // SAFETY: the descriptor is new and nobody else's.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            if getpeername::<VsockAddr>(fd.as_raw_fd()).is_ok_and(|peer| peer.cid() == HOST) {
                return Ok(Connection(Arc::new(crate::sys::watch(fd)?)));
            }
        }
    }
}

/// A connection; clones share it.
#[derive(Debug, Clone)]
pub struct Connection(Arc<AsyncFd<OwnedFd>>);

impl Connection {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        crate::sys::set_nonblocking(&fd)?;
        Ok(Self(Arc::new(crate::sys::watch(fd)?)))
    }

    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.async_io(tokio::io::Interest::READABLE, |fd| crate::sys::read(fd, buffer)).await
    }

    pub async fn write(&self, data: &[u8]) -> io::Result<usize> {
        self.0.async_io(tokio::io::Interest::WRITABLE, |fd| crate::sys::write(fd, data)).await
    }

    pub async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            match self.write(data).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => data = &data[n..],
            }
        }
        Ok(())
    }

    /// Makes the device look at the host's end again.
    ///
    /// vhost-device-vsock 0.3.0 forgets a connection whose host end was closed with unread bytes
    /// in it: reading that end fails, it takes it out of its poll set and never tells the guest,
    /// which then waits for credit forever. A credit update from the guest puts it back in. The
    /// one way to have the kernel send one unasked is to change the size of the socket's buffer;
    /// the value alternates because an unchanged one sends nothing. Other devices ignore it.
    pub fn poke(&self) {
        const SO_VM_SOCKETS_BUFFER_SIZE: libc::c_int = 0;
        const SIZE: u64 = 256 * 1024; // the kernel's default
        let mut size: u64 = 0;
        let mut length = size_of::<u64>() as libc::socklen_t;
        let fd = self.0.as_raw_fd();
        // SAFETY: `size` and `length` are valid for writes of the sizes given.
        unsafe {
            libc::getsockopt(
                fd,
                libc::AF_VSOCK,
                SO_VM_SOCKETS_BUFFER_SIZE,
                (&raw mut size).cast(),
                &raw mut length,
            );
        }
        let size = if size == SIZE { SIZE - 4096 } else { SIZE };
        // SAFETY: `size` is valid for reads of its size.
        unsafe {
            libc::setsockopt(
                fd,
                libc::AF_VSOCK,
                SO_VM_SOCKETS_BUFFER_SIZE,
                (&raw const size).cast(),
                size_of::<u64>() as libc::socklen_t,
            );
        }
    }

    /// Ends the connection without losing a byte that was written to it, however slowly the host
    /// reads.
    ///
    /// A plain close loses the last bytes if the host's reader pauses: the device holds up to
    /// 64 KiB that the reader has not made room for, and drops them when the guest kernel gives
    /// up on the closed socket (8 s), or Firecracker does (2 s). So:
    /// - both directions are shut down one after the other, because Firecracker arms its timer
    ///   only when one packet shuts down both;
    /// - the shutdown is repeated until the connection is reset, because vhost-device-vsock
    ///   answers one only if it has nothing left at that moment, and forgets the others;
    /// - only then is the socket closed. That a reset came shows in `ENOTCONN` from recv(2) right
    ///   after another shutdown(2), which clears the flag that otherwise makes it 0.
    pub async fn finish(self) {
        let fd = self.0.as_raw_fd();
        let _ = shutdown(fd, Shutdown::Write);
        let _ = shutdown(fd, Shutdown::Read);
        let mut pause = Duration::from_millis(1);
        loop {
            tokio::time::sleep(pause).await;
            if shutdown(fd, Shutdown::Both).is_err() {
                return;
            }
            match recv(fd, &mut [0; 1], MsgFlags::MSG_DONTWAIT) {
                Ok(_) | Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
                Err(_) => return,
            }
            if pause >= Duration::from_millis(500) {
                self.poke();
            }
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }
}

/// A connection to speak D-Bus over.
impl Socket for Connection {
    type ReadHalf = Connection;
    type WriteHalf = Connection;

    fn split(self) -> Split<Connection, Connection> {
        Split::new(self.clone(), self)
    }
}

#[async_trait]
impl ReadHalf for Connection {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        Ok((self.read(buffer).await?, Vec::new()))
    }

    fn auth_mechanism(&self) -> AuthMechanism {
        AuthMechanism::Anonymous
    }
}

#[async_trait]
impl WriteHalf for Connection {
    async fn sendmsg(&mut self, buffer: &[u8], _fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.write(buffer).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    async fn close(&mut self) -> io::Result<()> {
        Ok(shutdown(self.0.as_raw_fd(), Shutdown::Both)?)
    }
}
