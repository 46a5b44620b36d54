//! `org.banger.Agent1`, served on as many vsock connections as come.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use banger_api::files::Stat;
use banger_api::{Error, ErrorKind, Result, agent};
use banger_core::ending::Goodbye;
use banger_core::guest::{AGENT_PORT, PROTOCOL};
use banger_core::resource::Limits;
use nix::fcntl::OFlag;
use nix::libc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use zbus::connection::{AuthMechanism, Builder};
use zbus::interface;

use crate::archive::{self, Meter};
use crate::boot::{self, Context};
use crate::disks::Disks;
use crate::host::{self, Host};
use crate::line::Line;
use crate::power::{self, Why};
use crate::process::{Request, Stream, Table};
use crate::session::Sessions;
use crate::transfer::{self, Transfers};
use crate::vsock::{Connection, Listener};
use crate::{ports, stats, stream, sys, systemd};

/// D-Bus connections at once.
const MAX_CONNECTIONS: usize = 256;
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long disks stay frozen when nobody thaws them.
const FROZEN: Duration = Duration::from_secs(10);

/// How long they stay so while an archive is written, and nobody is awake to look whether it is.
const FROZEN_FOR_ARCHIVE: Duration = Duration::from_secs(60);
/// How long the host may take nothing of an archive before it is given up, and how often that is
/// looked for.
const STALLED: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(1);

/// Serves until the machine goes down.
pub async fn serve(context: Context, host: Host) -> anyhow::Result<()> {
    let context = Arc::new(context);
    let table = Table::new(context.process.clone());
    let (off, mut ends) = mpsc::channel(4);
    watch_signals(context.is_init, &table, &off)?;
    let listener = Listener::bind(AGENT_PORT)?;
    let freezer = Freezer { context: context.clone(), timer: Arc::default(), thawed: Arc::default() };
    let transfers = Transfers::new(table.clone());
    let agent = Agent {
        context: context.clone(),
        table: table.clone(),
        transfers: transfers.clone(),
        sessions: Sessions::new(table.clone()),
        freezer: freezer.clone(),
        archiving: Arc::default(),
        off,
    };
    tokio::spawn(async move { accept(listener, agent).await });
    let streams = table.clone();
    let streams = tokio::spawn(async move { stream::serve(streams).await });
    // The ports are bound, or about to be in the task that runs before anybody could connect.
    tokio::task::yield_now().await;
    anyhow::ensure!(!streams.is_finished(), "cannot serve streams");
    host.ready();
    let line = Line::open();
    sys::log!(sys::INFO, "ready after {:.2} s", sys::uptime().as_secs_f64());

    let why = loop {
        let why = ends.recv().await.unwrap_or(Why::Request);
        line.stopping(why.goodbye()).await;
        transfers.stop().await;
        // Where the image's init does the rest we live on: the host may still want to know.
        if !matches!(why, Why::Init(_)) {
            break why;
        }
    };
    table.stop();
    freezer.thaw().await;
    power::off(why, &context, &table).await
}

async fn accept(listener: Listener, agent: Agent) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok(connection) => {
                let agent = agent.clone();
                tokio::spawn(async move {
                    let _place = place;
                    if let Err(error) = converse(connection, agent).await {
                        sys::log!(sys::INFO, "connection: {error}");
                    }
                });
            }
            Err(error) => {
                sys::log!(sys::WARNING, "cannot accept a connection: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(connection: Connection, agent: Agent) -> zbus::Result<()> {
    let connection = Builder::socket(connection)
        .server(zbus::Guid::generate())
        .p2p()
        .auth_mechanism(AuthMechanism::Anonymous)
        .serve_at(agent::PATH, agent)
        .build();
    let connection =
        timeout(HANDSHAKE, connection).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    connection.closed().await;
    Ok(())
}

fn watch_signals(is_init: bool, table: &Table, off: &mpsc::Sender<Why>) -> io::Result<()> {
    let mut child = signal(SignalKind::child())?;
    let reaper = table.clone();
    tokio::spawn(async move {
        loop {
            reaper.reap();
            child.recv().await;
        }
    });
    for (number, goodbye) in power::SIGNALS {
        let mut signal = signal(SignalKind::from_raw(number))?;
        let off = off.clone();
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                if is_init {
                    let _ = off.try_send(Why::Signal(goodbye));
                } else if number == libc::SIGTERM && !systemd::is_init() {
                    // From an init's shutdown to everybody. None but systemd tells whether a reboot
                    // is to follow.
                    let _ = off.try_send(Why::Init(Goodbye::Down));
                }
            }
        });
    }
    // Whoever hangs up does not mean us.
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::spawn(async move { while hang_up.recv().await.is_some() {} });
    if !is_init && systemd::will_be_init() {
        let off = off.clone();
        tokio::spawn(async move {
            let _ = off.send(Why::Init(systemd::shutdown().await)).await;
        });
    }
    Ok(())
}

/// Holds the disks still, never for long.
#[derive(Clone)]
struct Freezer {
    context: Arc<Context>,
    /// What thaws frozen disks in the end. Held while they are frozen or thawed.
    timer: Arc<Mutex<Option<JoinHandle<()>>>>,
    /// Whether the disks were thawed since they were last frozen, whoever did it.
    thawed: Arc<AtomicBool>,
}

impl Freezer {
    async fn freeze(&self, limit: Duration, freeze: fn(&Disks) -> io::Result<()>) -> Result<()> {
        let this = self.clone();
        // A task of its own: a caller that goes away does not leave the disks frozen for good.
        let frozen = tokio::spawn(async move {
            let mut timer = this.timer.lock().await;
            // What takes long comes first, while writers need not wait.
            blocking(nix::unistd::sync).await?;
            // The freezing itself might hang on a writer that hangs on a disk that is frozen
            // already, and the timer is what helps then.
            this.thawed.store(false, Ordering::Relaxed);
            this.arm(&mut timer, limit);
            let context = this.context.clone();
            let frozen = blocking(move || freeze(&context.disks)).await?;
            this.arm(&mut timer, limit);
            Ok(frozen?)
        });
        frozen.await.map_err(|error| Error::internal(error.to_string()))?
    }

    fn arm(&self, timer: &mut Option<JoinHandle<()>>, limit: Duration) {
        if let Some(timer) = timer.replace(tokio::spawn(self.clone().thaw_late(limit))) {
            timer.abort();
        }
    }

    /// Keeps frozen disks so for longer.
    async fn keep(&self, limit: Duration) {
        let mut timer = self.timer.lock().await;
        if timer.is_some() {
            self.arm(&mut timer, limit);
        }
    }

    async fn thaw_late(self, limit: Duration) {
        sleep(limit).await;
        sys::log!(sys::WARNING, "nobody thawed the disks in {limit:?}");
        self.thawed.store(true, Ordering::Relaxed);
        // Not through the lock, whose holder may be about to end this task.
        let _ = blocking(move || self.context.disks.thaw()).await;
    }

    async fn thaw(&self) {
        let mut timer = self.timer.lock().await;
        if let Some(timer) = timer.take() {
            timer.abort();
        }
        self.thawed.store(true, Ordering::Relaxed);
        let context = self.context.clone();
        let _ = blocking(move || context.disks.thaw()).await;
    }
}

/// Writes the root filesystem, which nobody else writes to meanwhile, as a tar.
async fn archive(freezer: &Freezer, to: OwnedFd) -> Result<()> {
    blocking(archive::settle).await??;
    freezer.freeze(FROZEN_FOR_ARCHIVE, Disks::freeze_root).await?;
    // Of disks that were thawed there is no archive.
    let meter = Meter::new(freezer.thawed.clone());
    let (context, writing) = (freezer.context.clone(), meter.clone());
    let write = move || archive::write(&context.disks, &context.process.user, to, writing);
    let mut written = tokio::task::spawn_blocking(write);
    let (mut last, mut since) = (0, Instant::now());
    loop {
        if let Ok(done) = timeout(LOOK, &mut written).await {
            return Ok(done.map_err(|error| Error::internal(error.to_string()))??);
        }
        if meter.written() != last {
            (last, since) = (meter.written(), Instant::now());
        }
        if since.elapsed() > STALLED {
            return Err(ErrorKind::Interrupted.error("the host takes nothing of it"));
        }
        freezer.keep(FROZEN_FOR_ARCHIVE).await;
    }
}

/// Runs what may wait for disks, without the streams having to wait for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::internal(error.to_string()))
}

#[derive(Clone)]
struct Agent {
    context: Arc<Context>,
    table: Table,
    transfers: Transfers,
    sessions: Sessions,
    freezer: Freezer,
    /// One archive at a time: the end of the first would thaw the disk under the second.
    archiving: Arc<Mutex<()>>,
    off: mpsc::Sender<Why>,
}

#[interface(name = "org.banger.Agent1")]
impl Agent {
    #[zbus(out_args("id", "streams"))]
    #[allow(clippy::too_many_arguments)]
    fn start(
        &self,
        argv: Vec<String>,
        environment: BTreeMap<String, String>,
        user: String,
        directory: String,
        terminal: bool,
        rows: u16,
        columns: u16,
        limits: Limits,
    ) -> Result<(String, BTreeMap<String, String>)> {
        let terminal = terminal.then_some((rows, columns));
        self.table.start(Request { argv, environment, user, directory, terminal, limits })
    }

    #[zbus(out_args("status", "signal"))]
    async fn wait(&self, id: &str) -> Result<(i32, i32)> {
        self.table.wait(id).await
    }

    fn kill(&self, id: &str, signal: i32) -> Result<()> {
        self.table.kill(id, signal)
    }

    fn resize(&self, id: &str, rows: u16, columns: u16) -> Result<()> {
        self.table.resize(id, rows, columns)
    }

    #[zbus(out_args("processes"))]
    fn list(&self) -> Vec<(String, String, Vec<String>, u64)> {
        self.table.list()
    }

    #[allow(clippy::too_many_arguments)]
    fn start_session(
        &self,
        id: &str,
        argv: Vec<String>,
        environment: BTreeMap<String, String>,
        user: String,
        directory: String,
        terminal: bool,
        rows: u16,
        columns: u16,
        limits: Limits,
        restart: &str,
    ) -> Result<()> {
        let policy = restart.parse().map_err(|error: banger_core::spec::InvalidSpec| {
            ErrorKind::InvalidArgs.error(error.to_string())
        })?;
        let terminal = terminal.then_some((rows, columns));
        self.sessions.start(id, Request { argv, environment, user, directory, terminal, limits }, policy)
    }

    #[zbus(out_args("serial", "status"))]
    async fn watch_session(&self, id: &str, serial: u32) -> Result<(u32, agent::SessionStatus)> {
        self.sessions.watch(id, serial).await
    }

    async fn send_session(&self, id: &str, data: Vec<u8>, end: bool) -> Result<()> {
        self.sessions.send(id, data, end).await
    }

    fn stop_session(&self, id: &str, signal: i32, grace_usec: u64) -> Result<()> {
        self.sessions.stop(id, signal, Duration::from_micros(grace_usec))
    }

    fn kill_session(&self, id: &str, signal: i32) -> Result<()> {
        self.sessions.kill(id, signal)
    }

    fn resize_session(&self, id: &str, rows: u16, columns: u16) -> Result<()> {
        self.sessions.resize(id, rows, columns)
    }

    #[zbus(out_args("token"))]
    fn attach_session(&self, id: &str, scrollback: u64, read_only: bool) -> Result<String> {
        self.sessions.attach(id, None, scrollback, read_only)
    }

    #[zbus(out_args("token"))]
    fn resume_session(&self, id: &str, from: u64, read_only: bool) -> Result<String> {
        self.sessions.attach(id, Some(from), 0, read_only)
    }

    #[zbus(out_args("token"))]
    fn drain_session(&self, id: &str, from: u64) -> Result<String> {
        self.sessions.drain(id, from)
    }

    fn forget_session(&self, id: &str) -> Result<()> {
        self.sessions.forget(id)
    }

    fn power_off(&self) {
        // A second wish adds nothing to the first.
        let _ = self.off.try_send(Why::Request);
    }

    #[zbus(out_args("uptime_usec"))]
    fn ping(&self) -> u64 {
        stats::uptime_usec()
    }

    #[zbus(out_args("stats"))]
    async fn stats(&self) -> Result<agent::Stats> {
        let context = self.context.clone();
        blocking(move || stats::collect(&context.disks)).await
    }

    #[zbus(out_args("ports"))]
    async fn listening_ports(&self) -> Result<Vec<agent::Port>> {
        blocking(ports::listening).await
    }

    #[zbus(out_args("disks"))]
    async fn grow_disks(&self) -> Result<Vec<(String, u64, u64)>> {
        let context = self.context.clone();
        let grown = blocking(move || context.disks.grow()).await?;
        let result = |(device, grown): (String, anyhow::Result<(u64, u64)>)| match grown {
            Ok((before, after)) => Ok((device, before, after)),
            Err(error) => Err(Error::internal(format!("{device}: {error:#}"))),
        };
        grown.into_iter().map(result).collect()
    }

    async fn quiesce(&self) -> Result<()> {
        self.freezer.freeze(FROZEN, Disks::freeze).await
    }

    #[zbus(out_args("token"))]
    async fn archive(&self) -> Result<String> {
        let Ok(only) = self.archiving.clone().try_lock_owned() else {
            return Err(ErrorKind::NotReady.error("an archive is being written: wait for its end"));
        };
        let (output, to) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from)?;
        sys::set_nonblocking(&output)?;
        let token = self.table.offer(Stream::Output(output))?;
        let freezer = self.freezer.clone();
        tokio::spawn(async move {
            let _only = only;
            let outcome = archive(&freezer, to).await;
            freezer.thaw().await;
            if let Err(error) = outcome {
                sys::log!(sys::WARNING, "cannot write the archive: {error}");
            }
        });
        Ok(token)
    }

    #[zbus(out_args("stat"))]
    async fn stat(&self, path: String, follow: bool) -> Result<Stat> {
        transfer::stat(path, follow).await
    }

    #[zbus(out_args("id", "token"))]
    async fn pack(&self, path: String, name: String, follow: bool) -> Result<(String, String)> {
        self.transfers.pack(path, name, follow).await
    }

    #[zbus(out_args("id", "token"))]
    async fn unpack(&self, directory: String, user: String, archive: bool) -> Result<(String, String)> {
        self.transfers.unpack(directory, user, archive).await
    }

    #[zbus(out_args("id", "token"))]
    async fn pack_files(&self, directory: String, paths: Vec<Vec<u8>>) -> Result<(String, String)> {
        self.transfers.pack_files(directory, paths).await
    }

    #[zbus(out_args("id", "token"))]
    async fn list_files(&self, directory: String) -> Result<(String, String)> {
        self.transfers.list(directory).await
    }

    #[zbus(out_args("removed"))]
    async fn remove_files(&self, directory: String, paths: Vec<Vec<u8>>) -> Result<u64> {
        transfer::remove(directory, paths).await
    }

    #[zbus(out_args("entries", "bytes", "remarks"))]
    async fn wait_transfer(&self, id: &str) -> Result<(u64, u64, Vec<String>)> {
        self.transfers.wait(id).await
    }

    async fn thaw(&self) {
        self.freezer.thaw().await;
    }

    #[zbus(out_args("warnings"))]
    async fn reconfigure(&self, config: &str) -> Result<Vec<String>> {
        let mut config = host::parse(config.as_bytes())
            .map_err(|error| ErrorKind::InvalidArgs.error(format!("{error:#}")))?;
        self.freezer.thaw().await;
        let (context, table) = (self.context.clone(), self.table.clone());
        let done = blocking(move || {
            let warnings = boot::reconfigure(&mut config, &context)?;
            table.set_defaults(config.process_defaults());
            anyhow::Ok(warnings)
        });
        done.await?.map_err(|error| Error::internal(format!("{error:#}")))
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn protocol(&self) -> u32 {
        PROTOCOL
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> &str {
        env!("CARGO_PKG_VERSION")
    }
}
