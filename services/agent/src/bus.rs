//! `org.banger.Agent1`, served on as many vsock connections as come.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use banger_api::{Result, agent};
use banger_core::guest::{AGENT_PORT, PROTOCOL};
use nix::libc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use zbus::connection::{AuthMechanism, Builder};
use zbus::interface;

use crate::boot::Context;
use crate::host::Host;
use crate::power::{self, Why};
use crate::process::{Request, Table};
use crate::vsock::{Connection, Listener};
use crate::{stream, sys};

/// D-Bus connections at once.
const MAX_CONNECTIONS: usize = 256;
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves until the machine goes down.
pub async fn serve(context: Context, mut host: Host) -> anyhow::Result<()> {
    let table = Table::new(host.config.process.clone());
    let (off, mut wanted) = mpsc::channel(1);
    watch_signals(context.is_init, &table, &off)?;
    let listener = Listener::bind(AGENT_PORT)?;
    let agent = Agent { table: table.clone(), off };
    tokio::spawn(async move { accept(listener, agent).await });
    let streams = table.clone();
    let streams = tokio::spawn(async move { stream::serve(streams).await });
    // The ports are bound, or about to be in the task that runs before anybody could connect.
    tokio::task::yield_now().await;
    anyhow::ensure!(!streams.is_finished(), "cannot serve streams");
    host.ready();
    sys::log!(sys::INFO, "ready after {:.2} s", sys::uptime().as_secs_f64());

    let why = wanted.recv().await.unwrap_or(Why::Signal);
    host.stopping();
    table.stop();
    power::off(why, &context, &table, host.config.power_off).await
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
    // As PID 1 these ask for power off: Ctrl-Alt-Del sends SIGINT. Beside another init they come
    // from its shutdown; we live on until the end then, as the host may still want to know.
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGPWR, libc::SIGHUP] {
        let mut signal = signal(SignalKind::from_raw(number))?;
        let off = off.clone();
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                if is_init && number != libc::SIGHUP {
                    let _ = off.try_send(Why::Signal);
                }
            }
        });
    }
    Ok(())
}

#[derive(Clone)]
struct Agent {
    table: Table,
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
    ) -> Result<(String, BTreeMap<String, String>)> {
        let terminal = terminal.then_some((rows, columns));
        self.table.start(Request { argv, environment, user, directory, terminal })
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

    fn power_off(&self) {
        // A second wish adds nothing to the first.
        let _ = self.off.try_send(Why::Request);
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
