//! Connects standard input and output to somewhere in the guest's network, or to a Unix socket.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use nix::sys::socket::{Shutdown, shutdown};

const BUFFER: usize = 64 * 1024;

pub fn run(arguments: &[String]) -> io::Result<()> {
    let socket = match arguments {
        [path] => UnixStream::connect(path).map(OwnedFd::from).map_err(|error| failed(path, &error)),
        [host, port] => {
            let number = port.parse().map_err(|_| io::Error::other(format!("{port:?} is not a port")))?;
            dial(host, number)
                .map(OwnedFd::from)
                .map_err(|error| failed(&format!("{host} port {port}"), &error))
        }
        _ => Err(io::Error::other("needs HOST PORT, or the PATH of a socket")),
    };
    relay(&File::from(socket?))
}

fn failed(where_to: &str, error: &io::Error) -> io::Error {
    io::Error::other(format!("cannot connect to {where_to}: {error}"))
}

/// `localhost` is known here, for images without a file of hosts.
fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = match host {
        "localhost" => TcpStream::connect(("127.0.0.1", port))
            .or_else(|first| TcpStream::connect(("::1", port)).map_err(|_| first)),
        host => TcpStream::connect((host, port)),
    }?;
    // What is typed at the other end is not to wait for more.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Copies both ways, each to its end.
fn relay(socket: &File) -> io::Result<()> {
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    // SAFETY: nothing else in this process uses it from here on. The last to hold it closes it, which tells the reader
    // that nothing more comes, although they may still send.
    drop(unsafe { OwnedFd::from_raw_fd(1) });
    thread::scope(|scope| {
        scope.spawn(|| {
            // If the other end has gone, the other direction ends as well.
            let _ = copy(io::stdin().lock(), socket);
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Write);
        });
        copy(socket, stdout)
    })
}

fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            length => to.write_all(&buffer[..length])?,
        }
    }
}
