//! The line to the host for the rest of the guest's life: signs of life, and the last word.
//!
//! It is served by the one thread that serves everything else, so that a sign of life tells that the
//! others are served, too.

use std::io;
use std::time::Duration;

use banger_core::ending::Goodbye;
use banger_core::guest::{ALIVE_KEY, GOODBYE_KEY, PANIC_SEEN_KEY, STATUS_PORT};
use banger_core::health::BEAT;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};

use crate::sys;
use crate::vsock::{Connection, connect_host};

/// Between two calls of a host that does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// How long the machine's end waits for its last word to be said.
const PATIENCE: Duration = Duration::from_secs(5);

/// The line, which a task of its own keeps up.
pub struct Line {
    words: mpsc::Sender<Word>,
}

/// Something to say, and whom to tell when it is said.
type Word = (Goodbye, oneshot::Sender<()>);

impl Line {
    pub fn open() -> Self {
        let (words, queue) = mpsc::channel(1);
        tokio::spawn(keep_up(queue));
        Self { words }
    }

    /// The machine is on its way down, in order. Returns when the host has been told, or cannot be.
    pub async fn stopping(&self, goodbye: Goodbye) {
        let (said, heard) = oneshot::channel();
        let say = async { self.words.send((goodbye, said)).await.is_ok() && heard.await.is_ok() };
        if timeout(PATIENCE, say).await != Ok(true) {
            sys::log!(sys::WARNING, "cannot tell the host how this ends");
        }
    }
}

async fn keep_up(mut queue: mpsc::Receiver<Word>) {
    let mut beats = interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut word = None;
    loop {
        if let Ok(connection) = dial().await {
            // The host may be waiting for a sign.
            beats.reset_immediately();
            if let Err(error) = talk(&connection, &mut beats, &mut queue, &mut word).await {
                sys::log!(sys::INFO, "the line to the host broke off: {error}");
            }
        }
        tokio::select! {
            () = sleep(RETRY) => {}
            // The machine's end waits for it, so it is said as soon as it can be.
            Some(next) = queue.recv(), if word.is_none() => word = Some(next),
        }
    }
}

async fn dial() -> io::Result<Connection> {
    // It may take seconds, in which others are to be served.
    let fd = tokio::task::spawn_blocking(|| connect_host(STATUS_PORT)).await.map_err(io::Error::other)??;
    Connection::new(fd)
}

/// Speaks until the connection breaks off. A word that was not said by then stays in `word`.
async fn talk(
    connection: &Connection,
    beats: &mut Interval,
    queue: &mut mpsc::Receiver<Word>,
    word: &mut Option<Word>,
) -> io::Result<()> {
    let mut nothing = [0; 64];
    if sees_panics() {
        connection.write_all(format!("{PANIC_SEEN_KEY}=1\n").as_bytes()).await?;
    }
    loop {
        if let Some((goodbye, _)) = word {
            connection.write_all(format!("{GOODBYE_KEY}={}\n", goodbye.as_str()).as_bytes()).await?;
        }
        if let Some((_, said)) = word.take() {
            // Whoever waited for it may have given up.
            let _ = said.send(());
        }
        tokio::select! {
            _ = beats.tick() => connection.write_all(format!("{ALIVE_KEY}=1\n").as_bytes()).await?,
            Some(next) = queue.recv() => *word = Some(next),
            // The host has nothing to say, but its end is the connection's.
            read = connection.read(&mut nothing) => {
                if read? == 0 {
                    return Ok(());
                }
            }
        }
    }
}

/// Whether the kernel has a device to tell the VMM of its panic: pvpanic, bound to its driver.
fn sees_panics() -> bool {
    let bound = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().contains(':');
    let devices = std::fs::read_dir("/sys/bus/pci/drivers/pvpanic-pci");
    devices.is_ok_and(|devices| devices.flatten().any(bound))
}
