//! Bytes between the caller's descriptors and a session's.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::{read, write};

const BUFFER: usize = 256 * 1024;

/// Copies until the end of `from`, or until nobody reads `to`, which is no error: that is how
/// `banger exec … | head` ends.
///
/// # Errors
/// What reading or writing fails with otherwise.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    copy_counting(from, to, |_| {})
}

/// The same, telling how many bytes have just been written.
pub fn copy_counting(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    mut count: impl FnMut(usize),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = match read_some(from, &mut buffer)? {
            0 => return Ok(()),
            length => length,
        };
        match write_all(to, &buffer[..length]) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
        count(length);
    }
}

/// Reads what there is, when there is something; 0 at the end.
pub fn read_some(from: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    match retry(from, PollFlags::POLLIN, || read(from, &mut *buffer)) {
        // What a pseudo-terminal says when its other end closes, and a vsock when its guest
        // is gone; how the command ended tells which.
        Err(Errno::EIO | Errno::ECONNRESET) => Ok(0),
        outcome => Ok(outcome?),
    }
}

/// Writes all of it, however long the other end takes.
pub fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = retry(to, PollFlags::POLLOUT, || write(to, bytes))?;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// A descriptor that came from somewhere else may be non-blocking, and changing that would change
/// it for others.
fn retry(
    fd: BorrowedFd<'_>,
    ready: PollFlags,
    mut operation: impl FnMut() -> nix::Result<usize>,
) -> nix::Result<usize> {
    loop {
        match operation() {
            Err(Errno::EAGAIN) => {
                let _ = poll(&mut [PollFd::new(fd, ready)], PollTimeout::NONE);
            }
            Err(Errno::EINTR) => {}
            outcome => return outcome,
        }
    }
}

/// Copies standard input to `to` in the background, for ever if need be: a read of a terminal
/// cannot be called off. At its end `to` is told so.
pub fn feed(to: OwnedFd) {
    std::thread::spawn(move || {
        // A command that does not read its input is none of our business.
        let _ = copy(io::stdin().as_fd(), to.as_fd());
        close_write(&to);
    });
}

/// The same for a terminal there. At the end it gets what Ctrl-D types, for a hang-up would end the command before it has
/// read what came; again and again, since a terminal whose settings change meanwhile, as a shell's do when it starts, drops it, and whoever
/// reads on is at the end as well.
pub fn type_into(to: OwnedFd) {
    const CTRL_D: u8 = 4;
    const AGAIN: Duration = Duration::from_millis(500);
    std::thread::spawn(move || {
        let mut buffer = vec![0; BUFFER];
        let mut last = b'\n';
        while let Ok(length @ 1..) = read_some(io::stdin().as_fd(), &mut buffer) {
            if write_all(to.as_fd(), &buffer[..length]).is_err() {
                return;
            }
            last = buffer[length - 1];
        }
        // In the middle of a line Ctrl-D ends nothing.
        if last != b'\n' && write_all(to.as_fd(), b"\n").is_err() {
            return;
        }
        while write_all(to.as_fd(), &[CTRL_D]).is_ok() {
            std::thread::sleep(AGAIN);
        }
    });
}

/// Tells the other end that nothing more comes. Others may hold the same socket: closing it here
/// would not.
pub fn close_write(fd: &OwnedFd) {
    let _ = shutdown(fd.as_raw_fd(), Shutdown::Write);
}

/// Reads to the end, or until it is more than anybody would need.
pub async fn read_up_to(from: OwnedFd, limit: usize) -> io::Result<Vec<u8>> {
    let read = move || {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; BUFFER.min(limit)];
        while bytes.len() < limit {
            match read_some(from.as_fd(), &mut buffer)? {
                0 => break,
                length => bytes.extend_from_slice(&buffer[..length]),
            }
        }
        bytes.truncate(limit);
        Ok(bytes)
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Copies `from` to one of our own descriptors on a thread; resolves at its end.
pub async fn drain(from: OwnedFd, to: impl AsFd + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(move || copy(from.as_fd(), to.as_fd()))
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn every_byte_arrives_through_non_blocking_ends() {
        let (mut source, from) = UnixStream::pair().expect("pair");
        let (to, mut sink) = UnixStream::pair().expect("pair");
        from.set_nonblocking(true).expect("sets");
        to.set_nonblocking(true).expect("sets");
        let sent: Vec<u8> = (0..5_000_000u32).map(|n| (n % 251) as u8).collect();
        let writer = std::thread::spawn({
            let sent = sent.clone();
            move || source.write_all(&sent).expect("writes")
        });
        let copier = std::thread::spawn(move || copy(from.as_fd(), to.as_fd()).expect("copies"));
        let mut received = Vec::new();
        sink.read_to_end(&mut received).expect("reads");
        writer.join().expect("joins");
        copier.join().expect("joins");
        assert!(received == sent);
    }

    #[test]
    fn a_reader_that_left_is_no_error() {
        let (mut source, from) = UnixStream::pair().expect("pair");
        let (to, sink) = UnixStream::pair().expect("pair");
        drop(sink);
        source.write_all(b"x").expect("writes");
        copy(from.as_fd(), to.as_fd()).expect("no error");
    }
}
