//! Named sessions: they live in the guest, and what they put out is kept here.
//!
//! Each has a directory, `VM/NAME/` under the service's state, with a row in it ([`rows`]) and the files of
//! its [`log`]. A [`keeper`], a task, drains the agent's spool into the log and writes down
//! what becomes of the command. It tells the agent how far it is only after the bytes are in the file, so a service
//! that is killed at any moment goes on exactly where its files end.

mod discard;
mod keeper;
mod recover;
mod rows;

use std::collections::HashMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banger_api::session::{LogRecord, MANAGER, SESSION, SessionRow, session_path};
use banger_api::vm::{VM_PREFIX, VmProxy};
use banger_api::{Error, ErrorKind, Result, SESSIOND, now_usec, path};
use banger_core::event::Event;
use banger_core::name::VmName;
use banger_core::resource::Limits;
use banger_core::session::{State, is_name};
use banger_core::spec::Restart;
use banger_daemon::event;
use banger_guest::{Command, Scrollback};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use zbus::proxy::CacheProperties;
use zbus::{OwnedObjectPath, OwnedVariant, Variant};

use rows::{Row, blocking, load, write_row};

use crate::bus::SessionObject;
use crate::log::{self, Wanted};
use crate::sessions::{Request, Sessions, note_end};

/// Sessions kept for one VM, ended ones included. Each may take 16 MiB of the disk.
const MAX_PER_VM: usize = 64;
/// The most bytes that one call reads of a log.
const CHUNK: usize = 256 * 1024;
/// How long a call waits for more of a log.
const FOLLOW: Duration = Duration::from_secs(20);
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
    /// Whose turn it is to write the log: of a keeper that was told to stop, a write may be under way.
    turn: Arc<tokio::sync::Mutex<()>>,
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
            turn: Arc::default(),
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
}
