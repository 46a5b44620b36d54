//! `org.banger.Session1.Manager`.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use banger_api::files::Stat;
use banger_api::session::{LogRecord, SessionRow};
use banger_api::{ErrorKind, Options, Result};
use banger_daemon::Gate;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::wire::OwnedFd;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, interface};

use banger_core::resource;
use banger_core::spec::Restart;
use banger_guest::Scrollback;

use crate::log::Wanted;
use crate::named::NamedRequest;
use crate::sessions::{Request, Sessions, vm_name};

/// The size of a terminal nobody gave a size: rows, columns.
const DEFAULT_SIZE: (u16, u16) = (24, 80);
/// What somebody who attaches sees of what was before, in bytes.
const DEFAULT_SCROLLBACK: u64 = 64 * 1024;
/// How long a session that is stopped may take before it is killed, and by what it is told.
const DEFAULT_GRACE: u64 = 10_000_000;
const SIGTERM: i32 = 15;

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

/// What to start, by the options that all have who start something.
fn request(
    argv: Vec<String>,
    environment: BTreeMap<String, String>,
    options: &mut Options,
    has_terminal: bool,
) -> Result<Request> {
    let terminal = if has_terminal {
        let rows = options.take("rows")?.unwrap_or(DEFAULT_SIZE.0);
        Some((rows, options.take("columns")?.unwrap_or(DEFAULT_SIZE.1)))
    } else {
        None
    };
    let user = options.take("user")?.unwrap_or_default();
    let directory = options.take("directory")?.unwrap_or_default();
    let limits = options.take("limits")?.unwrap_or_default();
    resource::check(&limits).map_err(|error| ErrorKind::InvalidArgs.error(error.to_string()))?;
    Ok(Request { argv, environment, user, directory, terminal, limits })
}

#[interface(name = "org.banger.Session1.Manager")]
impl Manager {
    /// Starts a command in a running VM, with its three standard streams apart. `@sftp`, and `@connect` with a host and
    /// a port or with the path of a Unix socket, are programs of the agent's own.
    ///
    /// Options: user (s), directory (s), limits (a{st}). Closing stdin is the end of input; closing stdout or
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
        let request = request(argv, environment, &mut options, false)?;
        options.finish()?;
        let (id, path, [stdin, stdout, stderr]) = self.sessions.exec(vm_name(vm)?, request).await?;
        Ok((id, path, stdin.into(), stdout.into(), stderr.into()))
    }

    /// Starts a command on a terminal; with an empty argv the user's login shell.
    ///
    /// Options: user (s), directory (s), limits (a{st}), rows (q), columns (q). Closing the descriptor hangs up.
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
        let request = request(argv, environment, &mut options, true)?;
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

    /// Starts a command in a running VM that hangs on no connection, and keeps what it puts out.
    ///
    /// An empty name stands for one that is made up. Options: user (s), directory (s), limits (a{st}), terminal
    /// (b), rows (q), columns (q), restart (s: no, on-failure or always).
    #[allow(clippy::too_many_arguments)]
    #[zbus(out_args("name", "session"))]
    async fn start_session(
        &self,
        vm: &str,
        name: String,
        argv: Vec<String>,
        environment: BTreeMap<String, String>,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(String, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        let mut options = Options::from(options);
        let terminal = options.take("terminal")?.unwrap_or(false);
        let restart = options.take::<String>("restart")?.unwrap_or_else(|| Restart::No.as_str().to_owned());
        let restart = restart.parse().map_err(|error: banger_core::spec::InvalidSpec| {
            ErrorKind::InvalidArgs.error(error.to_string())
        })?;
        let process = request(argv, environment, &mut options, terminal)?;
        options.finish()?;
        self.sessions.start_named(vm_name(vm)?, NamedRequest { name, process, restart }).await
    }

    /// Connects to a named session. What is written to the stream goes to the command's input; what is read from it are
    /// records: offset, time (microseconds since 1970), both of 64 bits, stream (8 bits: 1 stdout, 2 stderr), length
    /// (32 bits), little-endian, and that many bytes. Closing it leaves the command alone.
    ///
    /// Options: scrollback (t: begin this many bytes ago; 65536), from (t: begin at this offset instead),
    /// read_only (b).
    #[zbus(out_args("stream"))]
    async fn attach_session(
        &self,
        vm: &str,
        name: &str,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedFd> {
        let _call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        let mut options = Options::from(options);
        let scrollback = options.take("scrollback")?.unwrap_or(DEFAULT_SCROLLBACK);
        let from = options.take("from")?.map_or(Scrollback::Bytes(scrollback), Scrollback::Offset);
        let read_only = options.take("read_only")?.unwrap_or(false);
        options.finish()?;
        Ok(self.sessions.attach_named(&vm_name(vm)?, name, from, read_only).await?.into())
    }

    /// Writes to the input of a named session. Options: end (b: nothing more will come; on a terminal, Ctrl-D).
    async fn send_session(
        &self,
        vm: &str,
        name: &str,
        data: Vec<u8>,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        let mut options = Options::from(options);
        let end = options.take("end")?.unwrap_or(false);
        options.finish()?;
        self.sessions.send_named(&vm_name(vm)?, name, &data, end).await
    }

    /// Ends a named session for good and returns when it has ended. Options: signal (i: what it is told by; 15), timeout_usec (t: then it is
    /// killed; 10 s).
    async fn stop_session(
        &self,
        vm: &str,
        name: &str,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        let mut options = Options::from(options);
        let signal = options.take("signal")?.unwrap_or(SIGTERM);
        let grace = options.take("timeout_usec")?.unwrap_or(DEFAULT_GRACE);
        options.finish()?;
        self.sessions.stop_named(&vm_name(vm)?, name, signal, Duration::from_micros(grace)).await
    }

    /// For vmd, which has had a VM go on from a snapshot of itself: finds what has become of its named sessions. Those that
    /// ran at the snapshot run again, and their logs go back to it. Returns how many that are.
    #[zbus(out_args("recovered"))]
    async fn recover_sessions(
        &self,
        vm: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<u32> {
        let _call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        self.sessions.recover_named(&vm_name(vm)?).await
    }

    /// Removes a named session that has ended, and its log. Options: force (b: kill it first).
    async fn remove_session(
        &self,
        vm: &str,
        name: &str,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        let mut options = Options::from(options);
        let force = options.take("force")?.unwrap_or(false);
        options.finish()?;
        self.sessions.remove_named(&vm_name(vm)?, name, force).await
    }

    /// Part of the log of a named session, from an offset on: records of offset, time (microseconds since 1970),
    /// stream (1 stdout, 2 stderr) and bytes; the offset to go on from; whether nothing will follow. Bytes between two
    /// records' offsets are lost.
    ///
    /// Options: since (t: records from this time on), tail (t: only so many lines), wait (b: if there is nothing yet,
    /// wait up to 20 s).
    #[zbus(out_args("records", "next", "end"))]
    async fn read_log(
        &self,
        vm: &str,
        name: &str,
        from: u64,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(Vec<LogRecord>, u64, bool)> {
        let _call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        let mut options = Options::from(options);
        let wanted = Wanted { since_usec: options.take("since")?, tail: options.take("tail")? };
        let wait = options.take("wait")?.unwrap_or(false);
        options.finish()?;
        self.sessions.read_log(&vm_name(vm)?, name, from, wanted, wait).await
    }

    /// What is known of a named session, as JSON.
    #[zbus(out_args("description"))]
    async fn describe_session(
        &self,
        vm: &str,
        name: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String> {
        let _call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        self.sessions.describe_named(&vm_name(vm)?, name)
    }

    /// All sessions of all running VMs that answer, and all with a name: VM, id or name, state, command
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
    /// Options: name (s), follow (b), only (aay: of a directory what is at these paths in it).
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
        let only: Option<Vec<Vec<u8>>> = options.take("only")?;
        options.finish()?;
        let vm = vm_name(vm)?;
        let (id, stream) = match only {
            None => self.sessions.open_read(&vm, path, &name, follow).await?,
            Some(_) if follow || !name.is_empty() => {
                return Err(ErrorKind::InvalidArgs.error("either only, or name and follow"));
            }
            Some(only) => self.sessions.open_read_only(&vm, path, &only).await?,
        };
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

    /// Opens a list of all that is in a directory: of each entry a line of kind (f, d, l or o), mode (octal), size, and the times
    /// of the last change of the content and of the file (nanoseconds since 1970); its path; of a symbolic link its target. Each
    /// is ended by a NUL, and the whole by one more.
    #[zbus(out_args("id", "stream"))]
    async fn open_list(
        &self,
        vm: &str,
        directory: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(String, OwnedFd)> {
        let _call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        let (id, stream) = self.sessions.open_list(&vm_name(vm)?, directory).await?;
        Ok((id, stream.into()))
    }

    /// Removes files by their paths in a directory, and directories that nothing is left in. What is not there is no
    /// error. Returns how many files that were.
    #[zbus(out_args("removed"))]
    async fn remove_files(
        &self,
        vm: &str,
        directory: &str,
        paths: Vec<Vec<u8>>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<u64> {
        let _call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        self.sessions.remove_files(&vm_name(vm)?, directory, &paths).await
    }

    /// Takes the lock of a running VM's workspace, which is held until the descriptor is closed. Nothing in the VM's life waits
    /// for it.
    ///
    /// Options: shared (b: together with others who share it).
    #[zbus(out_args("lock"))]
    async fn lock_workspace(
        &self,
        vm: &str,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedFd> {
        let call = self.gate.enter(&header, connection, &[("vm", vm)]).await?;
        let mut options = Options::from(options);
        let shared = options.take("shared")?.unwrap_or(false);
        options.finish()?;
        Ok(self.sessions.lock_workspace(&vm_name(vm)?, call.caller, shared).await?.into())
    }

    /// Waits for the end of what OpenRead, OpenList or OpenWrite began: entries, bytes of files, and what
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
