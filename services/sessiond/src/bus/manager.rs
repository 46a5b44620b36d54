//! `org.banger.Session1.Manager`.

use std::collections::{BTreeMap, HashMap};

use banger_api::files::Stat;
use banger_api::session::SessionRow;
use banger_api::{ErrorKind, Options, Result};
use banger_daemon::Gate;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::wire::OwnedFd;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, interface};

use crate::sessions::{Request, Sessions, vm_name};

/// The size of a terminal nobody gave a size: rows, columns.
const DEFAULT_SIZE: (u16, u16) = (24, 80);

#[derive(Clone)]
pub struct Manager {
    sessions: Sessions,
    gate: Gate,
}

impl Manager {
    pub fn new(sessions: Sessions, gate: Gate) -> Self {
        Self { sessions, gate }
    }
}

#[interface(name = "org.banger.Session1.Manager")]
impl Manager {
    /// Starts a command in a running VM, with its three standard streams apart.
    ///
    /// Options: user (s), directory (s). Closing stdin is the end of input; closing stdout or
    /// stderr is a broken pipe to the command.
    #[zbus(out_args("id", "session", "stdin", "stdout", "stderr"))]
    async fn exec(
        &self,
        vm: &str,
        argv: Vec<String>,
        environment: BTreeMap<String, String>,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(String, OwnedObjectPath, OwnedFd, OwnedFd, OwnedFd)> {
        let _call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        let mut options = Options::from(options);
        let request = Request {
            argv,
            environment,
            user: options.take("user")?.unwrap_or_default(),
            directory: options.take("directory")?.unwrap_or_default(),
            terminal: None,
        };
        options.finish()?;
        let (id, path, [stdin, stdout, stderr]) = self.sessions.exec(vm_name(vm)?, request).await?;
        Ok((id, path, stdin.into(), stdout.into(), stderr.into()))
    }

    /// Starts a command on a terminal; with an empty argv the user's login shell.
    ///
    /// Options: user (s), directory (s), rows (q), columns (q). Closing the descriptor hangs up.
    #[zbus(out_args("id", "session", "pty"))]
    async fn open_shell(
        &self,
        vm: &str,
        argv: Vec<String>,
        environment: BTreeMap<String, String>,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(String, OwnedObjectPath, OwnedFd)> {
        let _call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        let mut options = Options::from(options);
        let rows = options.take("rows")?.unwrap_or(DEFAULT_SIZE.0);
        let columns = options.take("columns")?.unwrap_or(DEFAULT_SIZE.1);
        let request = Request {
            argv,
            environment,
            user: options.take("user")?.unwrap_or_default(),
            directory: options.take("directory")?.unwrap_or_default(),
            terminal: Some((rows, columns)),
        };
        options.finish()?;
        let (id, path, pty) = self.sessions.open_shell(vm_name(vm)?, request).await?;
        Ok((id, path, pty.into()))
    }

    /// Waits for the end of a session's command: exit status and signal, of which one is 0. The
    /// end is remembered for ten minutes.
    #[zbus(out_args("status", "signal"))]
    async fn wait_session(
        &self,
        vm: &str,
        id: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(i32, i32)> {
        let _call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        self.sessions.wait(&vm_name(vm)?, id).await
    }

    /// Sends a signal to a session's process group.
    async fn kill_session(
        &self,
        vm: &str,
        id: &str,
        signal: i32,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        self.sessions.kill(&vm_name(vm)?, id, signal).await
    }

    /// Tells a session's terminal its size.
    async fn resize_session(
        &self,
        vm: &str,
        id: &str,
        rows: u16,
        columns: u16,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        self.sessions.resize(&vm_name(vm)?, id, rows, columns).await
    }

    /// All sessions of all running VMs that answer: VM, id, state (running, exited), command
    /// line, start time (microseconds since 1970), object path.
    #[zbus(out_args("sessions"))]
    async fn list_sessions(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<SessionRow>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.sessions.list().await
    }

    /// What is at an absolute path in a running VM; with follow what a link there leads to.
    #[zbus(out_args("stat"))]
    async fn stat_file(
        &self,
        vm: &str,
        path: &str,
        follow: bool,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Stat> {
        let _call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        self.sessions.stat_file(&vm_name(vm)?, path, follow).await
    }

    /// Opens a file, or a directory and all in it, for reading, as a stream of tar.
    ///
    /// Options: name (s), follow (b).
    #[zbus(out_args("id", "stream"))]
    async fn open_read(
        &self,
        vm: &str,
        path: &str,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(String, OwnedFd)> {
        let _call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        let mut options = Options::from(options);
        let name: String = options.take("name")?.unwrap_or_default();
        let follow = options.take("follow")?.unwrap_or_default();
        options.finish()?;
        let (id, stream) = self.sessions.open_read(&vm_name(vm)?, path, &name, follow).await?;
        Ok((id, stream.into()))
    }

    /// Opens a directory for writing: what is written to the stream, a tar without compression, is
    /// unpacked into it.
    ///
    /// Options: user (s), archive (b).
    #[zbus(out_args("id", "stream"))]
    async fn open_write(
        &self,
        vm: &str,
        directory: &str,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(String, OwnedFd)> {
        let _call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        let mut options = Options::from(options);
        let user: String = options.take("user")?.unwrap_or_default();
        let archive = options.take("archive")?.unwrap_or_default();
        options.finish()?;
        if archive && !user.is_empty() {
            return Err(ErrorKind::InvalidArgs.error("either archive or user, not both"));
        }
        let (id, stream) = self.sessions.open_write(&vm_name(vm)?, directory, &user, archive).await?;
        Ok((id, stream.into()))
    }

    /// Waits for the end of what OpenRead or OpenWrite began: entries, bytes of files, and what
    /// was left out. The end is remembered for ten minutes.
    #[zbus(out_args("entries", "bytes", "remarks"))]
    async fn wait_transfer(
        &self,
        vm: &str,
        id: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u64, u64, Vec<String>)> {
        let _call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        self.sessions.wait_transfer(&vm_name(vm)?, id).await
    }

    #[zbus(signal)]
    async fn session_new(
        emitter: &SignalEmitter<'_>,
        vm: String,
        id: String,
        session: OwnedObjectPath,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn session_removed(
        emitter: &SignalEmitter<'_>,
        vm: String,
        id: String,
        session: OwnedObjectPath,
    ) -> zbus::Result<()>;
}
