//! Named sessions: they live in the guest, and what they put out is kept here.
//!
//! Each has a directory, `VM/NAME/` under the service's state, with [`ROW`] in it and the files of
//! its [`log`]. A keeper, a task, drains the agent's spool into the log and writes down
//! what becomes of the command. It tells the agent how far it is only after the bytes are in the file, so a service
//! that is killed at any moment goes on exactly where its files end.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banger_api::agent::SessionStatus;
use banger_api::session::{LogRecord, MANAGER, SESSION, SessionRow, session_path};
use banger_api::vm::{ManagerProxy as VmManagerProxy, VM_PREFIX, VmProxy};
use banger_api::{Error, ErrorKind, Result, SESSIOND, now_usec, path};
use banger_core::event::Event;
use banger_core::name::VmName;
use banger_core::resource::Limits;
use banger_core::session::{State, is_name};
use banger_core::spec::Restart;
use banger_core::spool::Parser;
use banger_daemon::event;
use banger_guest::{Agent, Command, Scrollback};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{sleep, timeout};
use zbus::proxy::CacheProperties;
use zbus::{OwnedObjectPath, OwnedVariant, Variant};

use crate::bus::SessionObject;
use crate::log::{self, Log, Wanted};
use crate::sessions::{LIST, LOOK, Request, Sessions, note_end};
use crate::workspace;

/// The file that says what a session is.
const ROW: &str = "session.json";
/// Sessions kept for one VM, ended ones included. Each may take 16 MiB of the disk.
const MAX_PER_VM: usize = 64;
/// The most bytes that one call reads of a log.
const CHUNK: usize = 256 * 1024;
/// How long a call waits for more of a log.
const FOLLOW: Duration = Duration::from_secs(20);
/// How long an agent that has sent the last byte may take to say how the command ended.
const LAST_WORD: Duration = Duration::from_secs(10);
/// How long it takes at least from one status to the next: a guest could have one after the other.
const BREATH: Duration = Duration::from_millis(100);
const BUFFER: usize = 64 * 1024;
/// The most the agent takes at once.
const MAX_SEND: usize = 64 * 1024;

/// All named sessions by VM and name.
pub type Known = Arc<Mutex<HashMap<(VmName, String), Arc<Named>>>>;

#[derive(Debug)]
pub struct Named {
    vm: VmName,
    name: String,
    directory: PathBuf,
    what: What,
    status: watch::Sender<Status>,
    /// How far the log is.
    kept: watch::Sender<u64>,
    keeper: Mutex<Option<AbortHandle>>,
}

/// What a session is, from its beginning on.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct What {
    /// What the agent calls it.
    id: String,
    /// Of the VM, which tells it from another one with its name.
    vm_created_usec: u64,
    command: Vec<String>,
    user: String,
    directory: String,
    terminal: bool,
    restart: String,
    #[serde(default)]
    limits: Limits,
}

/// What became of a session; the same for those without a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub state: String,
    pub exit_status: i32,
    pub exit_signal: i32,
    pub started_usec: u64,
    pub ended_usec: u64,
    pub restarts: u32,
    /// The guest may have more output than is here.
    #[serde(default)]
    pub open: bool,
}

#[derive(Serialize, Deserialize)]
struct Row {
    #[serde(flatten)]
    what: What,
    status: Status,
    /// How far the log is, if nothing comes any more.
    kept: u64,
}

/// What [`Sessions::start_named`] is to start.
#[derive(Debug)]
pub struct NamedRequest {
    /// Empty for one that is made up.
    pub name: String,
    pub process: Request,
    pub restart: Restart,
}

/// Records of a log, the offset after them, and whether nothing will follow.
pub type LogPart = (Vec<LogRecord>, u64, bool);

impl Status {
    fn is_final(&self) -> bool {
        self.state.parse::<State>().is_ok_and(State::is_final)
    }
}

impl Named {
    /// Changes the status, in the file first.
    fn set(&self, sessions: &Sessions, change: impl FnOnce(&mut Status)) {
        let mut status = self.status.borrow().clone();
        change(&mut status);
        if *self.status.borrow() == status {
            return;
        }
        let row = Row { what: self.what.clone(), status: status.clone(), kept: *self.kept.borrow() };
        if let Err(error) = write_row(&self.directory, &row) {
            tracing::warn!(
                vm = self.vm.as_str(),
                session = self.name,
                "cannot write down its state: {error}"
            );
        }
        sessions.announce(self.path().as_str(), &status);
        let before = self.status.send_replace(status);
        self.note(&before, &self.status.borrow());
    }

    /// Notes a beginning or an end.
    fn note(&self, before: &Status, status: &Status) {
        let (vm, session) = (self.vm.as_str(), self.name.as_str());
        if before.started_usec == 0 && status.started_usec > 0 {
            event::note(&Event::SessionStarted { vm, session });
        }
        if status.is_final() && !before.is_final() {
            match status.state == State::Lost.as_str() {
                true => event::note(&Event::SessionLost { vm, session }),
                false => note_end(&self.vm, session, (status.exit_status, status.exit_signal)),
            }
        }
    }

    fn path(&self) -> OwnedObjectPath {
        session_path(self.vm.as_str(), &self.name)
    }

    fn is_final(&self) -> bool {
        self.status.borrow().is_final()
    }

    /// # Errors
    /// `SessionEnded`.
    fn check_going(&self) -> Result<()> {
        if self.is_final() { Err(self.has_ended()) } else { Ok(()) }
    }

    fn has_ended(&self) -> Error {
        let (vm, name) = (&self.vm, &self.name);
        ErrorKind::SessionEnded.error(format!(
            "session {name} of VM {vm} has ended; `banger session logs {vm} {name}` shows what it put out"
        ))
    }

    fn stop_keeping(&self) {
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        keeper.inspect(AbortHandle::abort);
    }
}

impl Sessions {
    fn known(&self) -> MutexGuard<'_, HashMap<(VmName, String), Arc<Named>>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn named(&self, vm: &VmName, name: &str) -> Option<Arc<Named>> {
        self.known().get(&(vm.clone(), name.to_owned())).cloned()
    }

    fn get_named(&self, vm: &VmName, name: &str) -> Result<Arc<Named>> {
        self.named(vm, name).ok_or_else(|| {
            ErrorKind::NoSuchSession
                .error(format!("no session {name:?} of VM {vm}; `banger session ls` lists them"))
        })
    }

    /// Starts a command that lives as long as it likes, and keeps what it puts out.
    pub async fn start_named(&self, vm: VmName, request: NamedRequest) -> Result<(String, OwnedObjectPath)> {
        let NamedRequest { name, process, restart } = request;
        if process.argv.is_empty() && process.terminal.is_none() {
            return Err(
                ErrorKind::InvalidArgs.error("no command; only with a terminal the user's shell is one")
            );
        }
        let seed = || getrandom::u64().map_err(Error::internal);
        let name = if name.is_empty() { VmName::generated(seed()?).to_string() } else { name };
        if !is_name(&name) {
            return Err(ErrorKind::InvalidArgs.error(format!(
                "{name:?} cannot be the name of a session: use letters, digits, `.`, `_` and `-`, with a letter or \
                 digit first"
            )));
        }
        // The VM is there and runs.
        let agent = self.guarded(&vm, self.agent(&vm)).await?;
        let created = self.vm_created(&vm).await?;
        self.discard_older(&vm, created).await;

        let what = What {
            id: format!("{:016x}", seed()?),
            vm_created_usec: created,
            command: process.argv.clone(),
            user: process.user.clone(),
            directory: process.directory.clone(),
            terminal: process.terminal.is_some(),
            restart: restart.as_str().to_owned(),
            limits: process.limits.clone(),
        };
        let session = self.reserve(vm, name, what)?;
        let argv: Vec<&str> = process.argv.iter().map(String::as_str).collect();
        let command = Command {
            argv: &argv,
            environment: process.environment,
            user: &process.user,
            directory: &process.directory,
            terminal: process.terminal,
            limits: process.limits,
        };
        let call = agent.start_session(&session.what.id, &command, restart.as_str());
        let started = self.guarded(&session.vm, call).await;
        match &started {
            // It may have been started all the same: the keeper will see.
            Err(error)
                if error.kind() == ErrorKind::AgentUnreachable || error.kind() == ErrorKind::VmPaused => {}
            Err(error) => {
                self.erase(&session).await;
                return Err(error.clone());
            }
            Ok(()) => session.set(self, |status| {
                status.state = State::Running.as_str().to_owned();
                status.started_usec = now_usec();
            }),
        }
        self.serve(&session).await;
        self.keep(session.clone());
        started?;
        Ok((session.name.clone(), session.path()))
    }

    /// Takes the name, here and on the disk.
    fn reserve(&self, vm: VmName, name: String, what: What) -> Result<Arc<Named>> {
        let directory = self.context.state_dir.join(vm.as_str()).join(&name);
        let status = Status { state: State::Starting.as_str().to_owned(), open: true, ..Status::default() };
        let mut known = self.known();
        if known.contains_key(&(vm.clone(), name.clone())) {
            return Err(ErrorKind::NameTaken.error(format!(
                "VM {vm} has a session {name} already; remove it with `banger session rm {vm} {name}`, or take \
                 another name"
            )));
        }
        if known.keys().filter(|(of, _)| *of == vm).count() >= MAX_PER_VM {
            return Err(ErrorKind::NotSupported.error(format!(
                "VM {vm} has {MAX_PER_VM} sessions; remove one of them with `banger session rm`"
            )));
        }
        fs::create_dir_all(&directory)?;
        write_row(&directory, &Row { what: what.clone(), status: status.clone(), kept: 0 })?;
        let session = Arc::new(Named {
            vm: vm.clone(),
            name: name.clone(),
            directory,
            what,
            status: watch::Sender::new(status),
            kept: watch::Sender::new(0),
            keeper: Mutex::default(),
        });
        known.insert((vm, name), session.clone());
        Ok(session)
    }

    /// Serves a session's object.
    async fn serve(&self, session: &Arc<Named>) {
        let hub = &self.context.hub;
        let (vm, name) = (session.vm.clone(), session.name.clone());
        let object = SessionObject::new(
            self.clone(),
            self.context.gate.clone(),
            vm.clone(),
            name.clone(),
            name.clone(),
            session.status.subscribe(),
        );
        hub.add(session.path().as_str(), object).await;
        hub.emit(SESSIOND.path, MANAGER, "SessionNew", (vm.to_string(), name, session.path()));
    }

    /// Tells of a status.
    pub fn announce(&self, path: &str, status: &Status) {
        let value = |value: Variant<'static>| OwnedVariant::try_from(value).ok();
        let changed = [
            ("State", value(status.state.clone().into())),
            ("ExitStatus", value(status.exit_status.into())),
            ("ExitSignal", value(status.exit_signal.into())),
            ("StartedTimestamp", value(status.started_usec.into())),
            ("EndedTimestamp", value(status.ended_usec.into())),
            ("Restarts", value(status.restarts.into())),
        ];
        let changed = changed.into_iter().filter_map(|(name, value)| Some((name, value?)));
        self.context.hub.changed(path, SESSION, changed.collect());
    }

    /// Has a session followed until nothing can come of it any more.
    fn keep(&self, session: Arc<Named>) {
        let (sessions, hold) = (self.clone(), self.context.idle.hold());
        let of = session.clone();
        let task = tokio::spawn(async move {
            let _hold = hold;
            while let Err(error) = sessions.attend(&session).await {
                tracing::debug!(vm = session.vm.as_str(), session = session.name, "{error}");
                if sessions.is_over(&session, &error).await {
                    break;
                }
                sleep(LOOK).await;
            }
        });
        *of.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
    }

    /// Follows a session until its end, or until the way to it breaks.
    async fn attend(&self, session: &Arc<Named>) -> Result<()> {
        self.check_awake(&session.vm).await?;
        let agent = self.connect(&session.vm).await?;
        let log = open_log(session).await?;
        let stream = agent.drain_session(&session.what.id, log.next()).await?;
        let drained = watch::Sender::new(false);
        let drain = async {
            drain(session, stream, log).await?;
            drained.send_replace(true);
            let mut status = session.status.subscribe();
            let told = timeout(LAST_WORD, status.wait_for(Status::is_final)).await;
            told.map(drop)
                .map_err(|_| ErrorKind::AgentUnreachable.error("the output of the session broke off"))
        };
        let follow = self.follow(session, &agent, drained.subscribe());
        tokio::try_join!(drain, follow)?;
        session.set(self, |status| status.open = false);
        agent.forget_session(&session.what.id).await
    }

    /// Writes down what the agent says of a session, until its end.
    async fn follow(&self, session: &Named, agent: &Agent, mut drained: watch::Receiver<bool>) -> Result<()> {
        let mut serial = 0;
        loop {
            let news;
            (serial, news) = agent.watch_session(&session.what.id, serial).await?;
            let state: State = news.state.parse().map_err(|()| {
                ErrorKind::AgentProtocol.error("the guest's agent names a state that there is not")
            })?;
            if state.is_final() {
                // Who hears of the end finds all of the output.
                let mut kept = session.kept.subscribe();
                tokio::select! {
                    _ = kept.wait_for(|kept| *kept >= news.end) => {}
                    _ = drained.wait_for(|drained| *drained) => {}
                }
            }
            session.set(self, |status| *status = told(&news, state));
            if state.is_final() {
                return Ok(());
            }
            sleep(BREATH).await;
        }
    }

    /// Whether a session whose agent could not be followed has no future; then that is written down.
    async fn is_over(&self, session: &Arc<Named>, error: &Error) -> bool {
        let is_up = match error.kind() {
            // There is another guest in its place, or one that has lost its mind.
            ErrorKind::NoSuchProcess | ErrorKind::InvalidArgs => false,
            ErrorKind::AgentProtocol | ErrorKind::NotSupported => {
                tracing::warn!(vm = session.vm.as_str(), session = session.name, "giving it up: {error}");
                false
            }
            _ => self.is_up(&session.vm).await,
        };
        if is_up {
            return false;
        }
        if session.status.borrow().started_usec == 0 {
            // Nobody was told that it had started.
            self.discard(session).await;
            return true;
        }
        session.set(self, |status| {
            status.open = false;
            if !status.is_final() {
                status.state = State::Lost.as_str().to_owned();
                status.ended_usec = now_usec();
            }
        });
        true
    }

    /// Whether a VM has a VMM. While nobody knows, it has.
    async fn is_up(&self, vm: &VmName) -> bool {
        let rows = async { VmManagerProxy::new(&self.context.bus).await?.list_vms().await };
        match timeout(LIST, rows).await {
            Ok(Ok(rows)) => rows.iter().any(|(name, state, ..)| {
                name == vm.as_str() && ["starting", "running", "paused", "stopping"].contains(&state.as_str())
            }),
            _ => true,
        }
    }

    async fn vm_created(&self, vm: &VmName) -> Result<u64> {
        let vm = VmProxy::builder(&self.context.bus).path(path::encode(VM_PREFIX, vm.as_str()));
        Ok(vm.cache_properties(CacheProperties::No).build().await?.created_timestamp().await?)
    }

    pub async fn wait_named(&self, session: &Named) -> Result<(i32, i32)> {
        let mut status = session.status.subscribe();
        let status = status.wait_for(Status::is_final).await.map_err(|_| session.has_ended())?;
        if status.state == State::Lost.as_str() {
            return Err(ErrorKind::SessionEnded
                .error(format!("session {} was lost when VM {} went down", session.name, session.vm)));
        }
        Ok((status.exit_status, status.exit_signal))
    }

    pub async fn kill_named(&self, session: &Named, signal: i32) -> Result<()> {
        session.check_going()?;
        let call = async { self.agent(&session.vm).await?.kill_session(&session.what.id, signal).await };
        self.of_agent(session, self.guarded(&session.vm, call).await)
    }

    pub async fn resize_named(&self, session: &Named, rows: u16, columns: u16) -> Result<()> {
        session.check_going()?;
        let call =
            async { self.agent(&session.vm).await?.resize_session(&session.what.id, rows, columns).await };
        self.of_agent(session, self.guarded(&session.vm, call).await)
    }

    pub async fn send_named(&self, vm: &VmName, name: &str, data: &[u8], end: bool) -> Result<()> {
        let session = self.get_named(vm, name)?;
        session.check_going()?;
        let id = &session.what.id;
        let call = async {
            let agent = self.agent(vm).await?;
            let pieces = data.chunks(MAX_SEND).enumerate();
            for (index, piece) in pieces {
                let sent = agent.send_session(id, piece, false).await;
                sent.map_err(|error| match index {
                    0 => error,
                    _ => error.context(format!("after {} bytes", index * MAX_SEND)),
                })?;
            }
            if end { agent.send_session(id, &[], true).await } else { Ok(()) }
        };
        self.of_agent(&session, self.guarded(vm, call).await)
    }

    /// Connects somebody to a session: the stream is the guest's.
    pub async fn attach_named(
        &self,
        vm: &VmName,
        name: &str,
        from: Scrollback,
        read_only: bool,
    ) -> Result<OwnedFd> {
        let session = self.get_named(vm, name)?;
        if !session.status.borrow().open {
            return Err(session.has_ended());
        }
        let call = async { self.agent(vm).await?.attach_session(&session.what.id, from, read_only).await };
        self.of_agent(&session, self.guarded(vm, call).await)
    }

    /// Ends a session and returns when it has ended.
    pub async fn stop_named(&self, vm: &VmName, name: &str, signal: i32, grace: Duration) -> Result<()> {
        let session = self.get_named(vm, name)?;
        self.stop(&session, signal, grace).await
    }

    async fn stop(&self, session: &Named, signal: i32, grace: Duration) -> Result<()> {
        if session.is_final() {
            return Ok(());
        }
        let call =
            async { self.agent(&session.vm).await?.stop_session(&session.what.id, signal, grace).await };
        match self.guarded(&session.vm, call).await {
            // It has just ended.
            Err(error) if error.kind() == ErrorKind::NoSuchProcess => {}
            stopped => stopped?,
        }
        let mut status = session.status.subscribe();
        let _ = status.wait_for(Status::is_final).await;
        Ok(())
    }

    /// Removes a session that has ended, and its log; with `force`, ends it first.
    pub async fn remove_named(&self, vm: &VmName, name: &str, force: bool) -> Result<()> {
        let session = self.get_named(vm, name)?;
        if !session.is_final() && !force {
            return Err(ErrorKind::SessionRunning.error(format!(
                "session {name} of VM {vm} is running; stop it with `banger session stop {vm} {name}`"
            )));
        }
        self.stop(&session, 0, Duration::ZERO).await?;
        if session.status.borrow().open {
            // Something else holds its outputs. If the guest does not answer, it forgets it when it needs the room.
            let call = async { self.agent(vm).await?.forget_session(&session.what.id).await };
            let _ = self.guarded(vm, call).await;
        }
        self.discard(&session).await;
        Ok(())
    }

    /// A part of a session's log from `from` on. With `wait`, waits for a while if there is none yet.
    pub async fn read_log(
        &self,
        vm: &VmName,
        name: &str,
        from: u64,
        wanted: Wanted,
        wait: bool,
    ) -> Result<LogPart> {
        let session = self.get_named(vm, name)?;
        let directory = session.directory.clone();
        let from = match wanted {
            Wanted { since_usec: None, tail: None } => from,
            _ => from.max(blocking(move || log::begin(&directory, wanted)).await?),
        };
        if wait {
            let (mut kept, mut status) = (session.kept.subscribe(), session.status.subscribe());
            let news = async {
                tokio::select! {
                    _ = kept.wait_for(|kept| *kept > from) => {}
                    _ = status.wait_for(|status| !status.open) => {}
                }
            };
            let _ = timeout(FOLLOW, news).await;
        }
        // Before it is read: what comes later is read later.
        let (is_open, kept) = (session.status.borrow().open, *session.kept.borrow());
        let directory = session.directory.clone();
        let records = blocking(move || log::read(&directory, from, CHUNK)).await?;
        let next = records.last().map_or(from, |record| record.header.end());
        let record = |log::Record { header, data }| (header.offset, header.time_usec, header.stream, data);
        Ok((records.into_iter().map(record).collect(), next, !is_open && next >= kept))
    }

    /// All there is to know of a session, as JSON.
    pub fn describe_named(&self, vm: &VmName, name: &str) -> Result<String> {
        let session = self.get_named(vm, name)?;
        let (what, status) = (&session.what, session.status.borrow());
        let description = serde_json::json!({
            "vm": vm,
            "name": name,
            "state": status.state,
            "command": what.command,
            "user": what.user,
            "directory": what.directory,
            "terminal": what.terminal,
            "restart": what.restart,
            "limits": what.limits,
            "restarts": status.restarts,
            "exit_status": status.exit_status,
            "exit_signal": status.exit_signal,
            "started_usec": status.started_usec,
            "ended_usec": status.ended_usec,
            "output_bytes": *session.kept.borrow(),
        });
        Ok(description.to_string())
    }

    pub fn list_named(&self) -> Vec<SessionRow> {
        let row = |session: &Arc<Named>| {
            let status = session.status.borrow();
            let (vm, name) = (session.vm.to_string(), session.name.clone());
            (
                vm,
                name,
                status.state.clone(),
                session.what.command.clone(),
                status.started_usec,
                session.path(),
            )
        };
        self.known().values().map(row).collect()
    }

    /// What the agent calls a process is a session here.
    fn of_agent<T>(&self, session: &Named, outcome: Result<T>) -> Result<T> {
        outcome.map_err(|error| match error.kind() {
            ErrorKind::NoSuchProcess => session.has_ended(),
            _ => error,
        })
    }

    /// Forgets a session and removes what is kept of it.
    async fn discard(&self, session: &Arc<Named>) {
        let hub = &self.context.hub;
        hub.remove(session.path().as_str()).await;
        let body = (session.vm.to_string(), session.name.clone(), session.path());
        hub.emit(SESSIOND.path, MANAGER, "SessionRemoved", body);
        self.erase(session).await;
    }

    /// The same, of one that nobody has heard of.
    async fn erase(&self, session: &Arc<Named>) {
        let directory = session.directory.clone();
        if let Err(error) = blocking(move || fs::remove_dir_all(directory)).await {
            tracing::warn!(
                vm = session.vm.as_str(),
                session = session.name,
                "cannot remove its log: {error}"
            );
        }
        // Not if there are others.
        let _ = session.directory.parent().map(fs::remove_dir);
        self.known().remove(&(session.vm.clone(), session.name.clone()));
        // For those who wait for it.
        session.status.send_modify(|status| {
            status.open = false;
            if !status.is_final() {
                status.state = State::Lost.as_str().to_owned();
            }
        });
        // The last, for it may be the keeper who is here.
        session.stop_keeping();
    }

    /// Discards the sessions of VMs that had this name before.
    async fn discard_older(&self, vm: &VmName, created: u64) {
        self.discard_all(|session| session.vm == *vm && session.what.vm_created_usec != created).await;
    }

    async fn discard_all(&self, which: impl Fn(&Named) -> bool) {
        let found: Vec<_> = self.known().values().filter(|session| which(session)).cloned().collect();
        for session in found {
            self.discard(&session).await;
        }
    }

    /// Finds the sessions that earlier instances kept, and goes on with them.
    pub async fn load_named(&self) -> Result<()> {
        let root = self.context.state_dir.clone();
        for session in blocking(move || load(&root)).await? {
            let session = Arc::new(session);
            self.known().insert((session.vm.clone(), session.name.clone()), session.clone());
            self.serve(&session).await;
        }
        let sessions = self.clone();
        let hold = self.context.idle.hold();
        tokio::spawn(async move {
            sessions.discard_orphans().await;
            let open: Vec<_> = sessions.known().values().cloned().collect();
            open.into_iter().filter(|session| session.status.borrow().open).for_each(|it| sessions.keep(it));
            drop(hold);
            if let Err(error) = sessions.discard_with_vms().await {
                tracing::warn!("cannot learn of VMs that are deleted: {error}");
            }
        });
        Ok(())
    }

    /// Discards the sessions whose VM was deleted while nobody looked.
    async fn discard_orphans(&self) {
        let mut vms: Vec<VmName> = self.known().keys().map(|(vm, _)| vm.clone()).collect();
        vms.dedup();
        if vms.is_empty() {
            return;
        }
        let rows = async { VmManagerProxy::new(&self.context.bus).await?.list_vms().await };
        let Ok(Ok(rows)) = timeout(LIST, rows).await else { return };
        for vm in vms {
            if !rows.iter().any(|(name, ..)| name == vm.as_str()) {
                self.discard_all(|session| session.vm == vm).await;
            } else if let Ok(Ok(created)) = timeout(LIST, self.vm_created(&vm)).await {
                self.discard_older(&vm, created).await;
            }
        }
    }

    /// Discards sessions when their VM is deleted.
    async fn discard_with_vms(&self) -> Result<()> {
        let vmd = VmManagerProxy::new(&self.context.bus).await?;
        let mut removed = vmd.receive_vm_removed().await?;
        while let Some(signal) = removed.next().await {
            if let Ok(vm) = signal.args() {
                self.discard_all(|session| session.vm.as_str() == vm.name).await;
                workspace::forget(&self.context.runtime_dir, &vm.name);
            }
        }
        Ok(())
    }
}

/// What an agent says, as it is written down.
fn told(news: &SessionStatus, state: State) -> Status {
    Status {
        state: state.as_str().to_owned(),
        exit_status: news.exit_status,
        exit_signal: news.exit_signal,
        started_usec: news.started_usec.max(1),
        ended_usec: news.ended_usec,
        restarts: news.restarts,
        open: true,
    }
}

/// Copies a session's output into its log until it ends.
async fn drain(session: &Named, stream: UnixStream, mut log: Log) -> Result<()> {
    let (mut from, mut to) = stream.into_split();
    let broken = |error: io::Error| {
        ErrorKind::AgentUnreachable.error(format!("the connection into the guest broke: {error}"))
    };
    let mut parser = Parser::starting_at(log.next());
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = from.read(&mut buffer).await.map_err(broken)?;
        if n == 0 {
            return match parser.rest() {
                0 => Ok(()),
                _ => Err(broken(io::ErrorKind::UnexpectedEof.into())),
            };
        }
        parser.push(&buffer[..n]);
        let mut records = Vec::new();
        while let Some((header, data)) = parser
            .record()
            .map_err(|error| ErrorKind::AgentProtocol.error(format!("the guest's agent: {error}")))?
        {
            records.extend_from_slice(&header.encode());
            records.extend_from_slice(data);
        }
        if records.is_empty() {
            continue;
        }
        let next = parser.next();
        log = blocking(move || log.append(&records, next).map(|()| log)).await?;
        session.kept.send_replace(next);
        to.write_all(&next.to_le_bytes()).await.map_err(broken)?;
    }
}

async fn open_log(session: &Named) -> Result<Log> {
    let directory = session.directory.clone();
    let log = blocking(move || Log::open(&directory)).await?;
    session.kept.send_replace(log.next());
    Ok(log)
}

/// What waits for a disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    Ok(spawn_blocking(work).await.map_err(Error::internal)??)
}

/// Replaces the file as a whole.
fn write_row(directory: &Path, row: &Row) -> io::Result<()> {
    let new = directory.join(format!("{ROW}.new"));
    fs::write(&new, serde_json::to_vec(row)?)?;
    fs::rename(new, directory.join(ROW))
}

/// The sessions under a directory. What is none, because its beginning was cut off, is removed.
fn load(root: &Path) -> io::Result<Vec<Named>> {
    let mut sessions = Vec::new();
    for vm in subdirectories(root)? {
        let Ok(vm_name) = VmName::new(&vm.file_name().to_string_lossy()) else { continue };
        for directory in subdirectories(&vm.path())? {
            let path = directory.path();
            let name = directory.file_name().to_string_lossy().into_owned();
            let row = fs::read(path.join(ROW)).ok().and_then(|row| serde_json::from_slice(&row).ok());
            let Some(Row { what, status, kept }) = row.filter(|_| is_name(&name)) else {
                tracing::warn!("{} is no session; removing it", path.display());
                fs::remove_dir_all(path)?;
                continue;
            };
            let kept = if status.open { Log::open(&path)?.next() } else { kept };
            sessions.push(Named {
                vm: vm_name.clone(),
                name,
                kept: watch::Sender::new(kept),
                directory: path,
                what,
                status: watch::Sender::new(status),
                keeper: Mutex::default(),
            });
        }
    }
    Ok(sessions)
}

fn subdirectories(directory: &Path) -> io::Result<Vec<fs::DirEntry>> {
    let entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    Ok(entries.into_iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let what = What {
            id: "0123456789abcdef".into(),
            vm_created_usec: 7,
            command: vec!["sh".into(), "-c".into(), "x".into()],
            user: String::new(),
            directory: "/tmp".into(),
            terminal: false,
            restart: "no".into(),
            limits: Limits::from([("nofile".into(), 64)]),
        };
        let status = Status { state: "running".into(), started_usec: 5, open: true, ..Status::default() };
        Row { what, status, kept: 0 }
    }

    #[test]
    fn sessions_are_found_again() {
        let root = tempfile::tempdir().unwrap();
        for name in ["build", "half"] {
            fs::create_dir_all(root.path().join("web").join(name)).unwrap();
        }
        fs::create_dir_all(root.path().join("Not A VM")).unwrap();
        write_row(&root.path().join("web/build"), &row()).unwrap();
        fs::write(root.path().join("web/half/session.json.new"), "{").unwrap();

        let found = load(root.path()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].vm.as_str(), found[0].name.as_str()), ("web", "build"));
        assert_eq!(*found[0].status.borrow(), row().status);
        assert_eq!(found[0].what.command, row().what.command);
        assert!(!root.path().join("web/half").exists());
    }

    #[tokio::test]
    async fn hostile_records_end_the_drain() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("web/build")).unwrap();
        write_row(&root.path().join("web/build"), &row()).unwrap();
        let session = load(root.path()).unwrap().remove(0);
        let (ours, mut guest) = UnixStream::pair().unwrap();
        guest.write_all(&[0xff; 100]).await.unwrap();
        let log = open_log(&session).await.unwrap();
        let error = drain(&session, ours, log).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AgentProtocol, "{error}");
    }
}
