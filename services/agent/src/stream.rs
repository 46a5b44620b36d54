//! Byte streams between vsock connections and the commands' pipes and terminals.
//!
//! The commands do not get the connections themselves: a socket cannot be opened by way of
//! `/dev/stdout`, as many programs do, and only a reader of our own can see the end of the
//! output early enough to keep the connection until everything has arrived
//! (see [`Connection::finish`]).

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use banger_core::guest::STREAM_PORT;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::process::{Stream, Table};
use crate::sys;
use crate::vsock::{Connection, Listener};

/// Streams at once, those included that wait for a slow reader.
const MAX_STREAMS: usize = 2048;
const MAX_TOKEN: usize = 64;
const HANDSHAKE: Duration = Duration::from_secs(10);
const BUFFER: usize = 64 * 1024;
/// How long a command may go on without the terminal that it has closed.
const LAST_STEPS: Duration = Duration::from_secs(1);
/// How long a write may be stuck before the device is asked to look after the other end.
const STUCK: Duration = Duration::from_secs(1);

pub async fn serve(table: Table) -> io::Result<()> {
    let listener = Listener::bind(STREAM_PORT)?;
    let places = Arc::new(Semaphore::new(MAX_STREAMS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return pending().await };
        match listener.accept().await {
            Ok(connection) => {
                let table = table.clone();
                tokio::spawn(async move {
                    let _place = place;
                    if let Err(error) = handle(connection, &table).await {
                        sys::log!(sys::INFO, "stream: {error}");
                    }
                });
            }
            Err(error) => {
                sys::log!(sys::WARNING, "cannot accept a stream: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn handle(connection: Connection, table: &Table) -> io::Result<()> {
    let token = timeout(HANDSHAKE, read_token(&connection)).await??;
    let Some((id, stream)) = table.claim(&token) else {
        connection.write_all(b"ERR no such stream\n").await?;
        connection.finish().await;
        return Ok(());
    };
    connection.write_all(b"OK\n").await?;
    match stream {
        Stream::Input(pipe) => {
            let pipe = sys::watch(pipe)?;
            tokio::select! {
                // Whoever reads it is gone: so may the host's end be.
                _ = async { pipe.ready(Interest::ERROR).await.map(drop) } => {}
                _ = feed(&connection, &pipe) => {}
            }
            Ok(())
        }
        Stream::Output(pipe) => {
            let pipe = sys::watch(pipe)?;
            let whole = tokio::select! {
                whole = drain(&pipe, &connection) => whole,
                // Closing our end of the pipe is how the command learns that nobody reads.
                () = hang_up(&connection) => false,
            };
            drop(pipe);
            if whole {
                connection.finish().await;
            }
            Ok(())
        }
        Stream::Terminal(master) => {
            let master = sys::watch(master)?;
            let whole = tokio::select! {
                whole = drain(&master, &connection) => whole,
                () = feed(&connection, &master) => false,
            };
            if whole {
                // Programs close their terminal on the way to their end, and a hang-up is not to be that.
                let _ = timeout(LAST_STEPS, table.wait(&id)).await;
            }
            table.release_terminal(&id);
            drop(master);
            if whole {
                connection.finish().await;
            }
            Ok(())
        }
        Stream::Session(view) => {
            view.serve(connection).await;
            Ok(())
        }
    }
}

/// Reads up to the newline and no further: what follows belongs to the command.
async fn read_token(connection: &Connection) -> io::Result<String> {
    let mut token = String::new();
    loop {
        let mut byte = [0];
        if connection.read(&mut byte).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match byte[0] {
            b'\n' => return Ok(token),
            byte if byte.is_ascii_graphic() && token.len() < MAX_TOKEN => token.push(byte as char),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Copies from the host until its end, or until the command's end refuses.
async fn feed(connection: &Connection, to: &AsyncFd<OwnedFd>) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = match connection.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => n,
        };
        let mut rest = &buffer[..n];
        while !rest.is_empty() {
            match to.async_io(Interest::WRITABLE, |fd| sys::write(fd, rest)).await {
                Ok(n) => rest = &rest[n..],
                Err(_) => return,
            }
        }
    }
}

/// Copies to the host until the command's end, or until the host is gone. Says whether all was
/// written.
async fn drain(from: &AsyncFd<OwnedFd>, connection: &Connection) -> bool {
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = match from.async_io(Interest::READABLE, |fd| sys::read(fd, &mut buffer)).await {
            // A terminal ends with EIO.
            Ok(0) | Err(_) => return true,
            Ok(n) => n,
        };
        if !deliver(connection, &buffer[..n]).await {
            return false;
        }
    }
}

/// Writes all of it, or says that the host is gone.
pub async fn deliver(connection: &Connection, mut rest: &[u8]) -> bool {
    while !rest.is_empty() {
        match timeout(STUCK, connection.write(rest)).await {
            Ok(Ok(n)) => rest = &rest[n..],
            Ok(Err(_)) => return false,
            Err(_) => connection.poke(),
        }
    }
    true
}

/// Waits until the host has closed its end. What it sends on an output stream means nothing.
pub async fn hang_up(connection: &Connection) {
    let mut nothing = [0; 512];
    while !matches!(connection.read(&mut nothing).await, Ok(0) | Err(_)) {}
}
