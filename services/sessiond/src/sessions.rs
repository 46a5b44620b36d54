//! Sessions: what a client asks for, carried out by the agent of the VM.
//!
//! Those with a name are in [`named`](crate::named). Each other running session has a watcher, a task that waits for its end at the agent, serves its
//! object and says when it ended. If this service is killed the watchers are gone and nothing
//! else; the next instance finds the sessions again ([`Sessions::rediscover`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banger_api::files::{Copied, Stat};
use banger_api::session::{MANAGER, SessionRow, session_path};
use banger_api::vm::{ManagerProxy as VmManagerProxy, RUNTIME_DIR, VM_PREFIX, VmProxy, vsock_socket};
use banger_api::{Error, ErrorKind, Result, SESSIOND, now_usec, path};
use banger_core::event::Event;
use banger_core::name::VmName;
use banger_core::resource::Limits;
use banger_daemon::Context;
use banger_daemon::event::note;
use banger_daemon::gate::Caller;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use zbus::OwnedObjectPath;
use zbus::proxy::CacheProperties;

use crate::bus::SessionObject;
use crate::named::{Known, Status};
use crate::workspace;
use banger_guest::{Agent, Command, Started};

/// How long the object of an ended session stays.
const MEMORY: Duration = Duration::from_secs(60);
/// How long one VM may take to list its sessions before the list goes without it, and vmd to tell
/// what a VM is doing.
pub const LIST: Duration = Duration::from_secs(5);
/// How long a connection that was good once has to show that it still is. One that is given up
/// too early costs no more than a new one.
const ALIVE: Duration = Duration::from_secs(3);
/// How often it is looked whether a VM stands still whose guest lets a call wait.
pub const LOOK: Duration = Duration::from_secs(1);

/// Paths of files named in one call, and bytes of all.
const MAX_PATHS: usize = 4096;
const MAX_PATH_BYTES: usize = 512 << 10;

/// What to start.
#[derive(Debug)]
pub struct Request {
    pub argv: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub user: String,
    pub directory: String,
    /// Rows and columns.
    pub terminal: Option<(u16, u16)>,
    pub limits: Limits,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    pub(crate) context: Context,
    state: Arc<Mutex<State>>,
    pub(crate) named: Known,
}

#[derive(Default)]
struct State {
    /// The sessions that have a watcher.
    watched: HashSet<(VmName, String)>,
    /// One connection to each agent that has been needed, for all who need it.
    agents: HashMap<VmName, Arc<Agent>>,
}

pub fn vm_name(name: &str) -> Result<VmName> {
    VmName::new(name).map_err(|error| ErrorKind::InvalidArgs.error(error.to_string()))
}

impl Sessions {
    pub fn new(context: Context) -> Self {
        Self { context, state: Arc::default(), named: Known::default() }
    }

    pub async fn exec(
        &self,
        vm: VmName,
        request: Request,
    ) -> Result<(String, OwnedObjectPath, [OwnedFd; 3])> {
        if request.argv.is_empty() {
            return Err(ErrorKind::InvalidArgs.error("no command; OpenShell starts a login shell"));
        }
        let (id, path, mut streams) = self.start(vm, request).await?;
        let mut take =
            |name: &str| streams.remove(name).ok_or_else(|| Error::internal("a stream is missing"));
        Ok((id, path, [take("stdin")?, take("stdout")?, take("stderr")?]))
    }

    pub async fn open_shell(
        &self,
        vm: VmName,
        request: Request,
    ) -> Result<(String, OwnedObjectPath, OwnedFd)> {
        let (id, path, mut streams) = self.start(vm, request).await?;
        let pty = streams.remove("pty").ok_or_else(|| Error::internal("a stream is missing"))?;
        Ok((id, path, pty))
    }

    async fn start(
        &self,
        vm: VmName,
        request: Request,
    ) -> Result<(String, OwnedObjectPath, BTreeMap<String, OwnedFd>)> {
        let argv: Vec<&str> = request.argv.iter().map(String::as_str).collect();
        let command = Command {
            argv: &argv,
            environment: request.environment,
            user: &request.user,
            directory: &request.directory,
            terminal: request.terminal,
            limits: request.limits,
        };
        let call = async { self.agent(&vm).await?.start(&command).await };
        let Started { id, streams } = self.guarded(&vm, call).await?;
        note(&Event::SessionStarted { vm: vm.as_str(), session: &id });
        let path = self.watch(vm, id.clone(), now_usec()).await;
        Ok((id, path, streams))
    }

    /// A snapshot breaks connections off, and a VM that is paused does not answer; what is waited for goes
    /// on all the same.
    pub async fn wait(&self, vm: &VmName, id: &str) -> Result<(i32, i32)> {
        if let Some(session) = self.named(vm, id) {
            return self.wait_named(&session).await;
        }
        loop {
            let agent = match self.guarded(vm, self.agent(vm)).await {
                Err(error) if error.kind() == ErrorKind::VmPaused => {
                    sleep(LOOK).await;
                    continue;
                }
                agent => agent?,
            };
            match agent.wait(id).await {
                Err(error) if error.kind() == ErrorKind::AgentUnreachable => sleep(LOOK).await,
                outcome => return outcome.map_err(|error| unknown(error, vm, id)),
            }
        }
    }

    pub async fn kill(&self, vm: &VmName, id: &str, signal: i32) -> Result<()> {
        if let Some(session) = self.named(vm, id) {
            return self.kill_named(&session, signal).await;
        }
        let call = async { self.agent(vm).await?.kill(id, signal).await };
        self.guarded(vm, call).await.map_err(|error| unknown(error, vm, id))
    }

    pub async fn resize(&self, vm: &VmName, id: &str, rows: u16, columns: u16) -> Result<()> {
        if let Some(session) = self.named(vm, id) {
            return self.resize_named(&session, rows, columns).await;
        }
        let call = async { self.agent(vm).await?.resize(id, rows, columns).await };
        self.guarded(vm, call).await.map_err(|error| unknown(error, vm, id))
    }

    pub async fn stat_file(&self, vm: &VmName, path: &str, follow: bool) -> Result<Stat> {
        let call = async { self.agent(vm).await?.stat(path, follow).await };
        self.guarded(vm, call).await
    }

    pub async fn open_read(
        &self,
        vm: &VmName,
        path: &str,
        name: &str,
        follow: bool,
    ) -> Result<(String, OwnedFd)> {
        let call = async { self.agent(vm).await?.pack(path, name, follow).await };
        self.guarded(vm, call).await
    }

    pub async fn open_read_only(
        &self,
        vm: &VmName,
        directory: &str,
        paths: &[Vec<u8>],
    ) -> Result<(String, OwnedFd)> {
        let paths = bounded(paths)?;
        let call = async { self.agent(vm).await?.pack_files(directory, &paths).await };
        self.guarded(vm, call).await
    }

    pub async fn open_list(&self, vm: &VmName, directory: &str) -> Result<(String, OwnedFd)> {
        let call = async { self.agent(vm).await?.list_files(directory).await };
        self.guarded(vm, call).await
    }

    pub async fn remove_files(&self, vm: &VmName, directory: &str, paths: &[Vec<u8>]) -> Result<u64> {
        let paths = bounded(paths)?;
        let call = async { self.agent(vm).await?.remove_files(directory, &paths).await };
        self.guarded(vm, call).await
    }

    /// Only of a VM that runs, so that there is no lock of one that never was.
    pub async fn lock_workspace(&self, vm: &VmName, caller: Caller, shared: bool) -> Result<OwnedFd> {
        self.guarded(vm, self.agent(vm)).await?;
        workspace::lock(&self.context.runtime_dir, vm, caller, shared)
    }

    pub async fn open_write(
        &self,
        vm: &VmName,
        directory: &str,
        user: &str,
        archive: bool,
    ) -> Result<(String, OwnedFd)> {
        let call = async { self.agent(vm).await?.unpack(directory, user, archive).await };
        self.guarded(vm, call).await
    }

    /// The bytes go past this service, but who waits for them to arrive does so here.
    pub async fn wait_transfer(&self, vm: &VmName, id: &str) -> Result<Copied> {
        let agent = self.guarded(vm, self.agent(vm)).await?;
        match agent.wait_transfer(id).await {
            // The connection broke: with the VM, which then says so, or without it.
            Err(error) if error.kind() == ErrorKind::AgentUnreachable => {
                let call = async { self.agent(vm).await?.wait_transfer(id).await };
                self.guarded(vm, call).await
            }
            outcome => outcome,
        }
    }

    pub async fn list(&self) -> Result<Vec<SessionRow>> {
        let vmd = VmManagerProxy::new(&self.context.bus).await?;
        let mut asked = JoinSet::new();
        for (name, state, ..) in vmd.list_vms().await? {
            if let (Ok(vm), "running" | "stopping") = (VmName::new(&name), state.as_str()) {
                let sessions = self.clone();
                asked.spawn(timeout(LIST, async move { sessions.list_vm(&vm).await }));
            }
        }
        let mut rows = self.list_named();
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok(Ok(Ok(answer))) => rows.extend(answer),
                Ok(Ok(Err(error))) => tracing::info!("{error}"),
                Ok(Err(_)) => tracing::info!("a VM does not list its sessions in time"),
                Err(error) => tracing::warn!("{error}"),
            }
        }
        rows.sort_by(|a, b| (&a.0, a.4, &a.1).cmp(&(&b.0, b.4, &b.1)));
        Ok(rows)
    }

    async fn list_vm(&self, vm: &VmName) -> Result<Vec<SessionRow>> {
        let call = async { self.connect(vm).await?.list().await };
        let rows = self.guarded(vm, call).await?;
        let row = |(id, state, argv, started): (String, String, Vec<String>, u64)| {
            let path = session_path(vm.as_str(), &id);
            (vm.to_string(), id, state, argv, started, path)
        };
        Ok(rows.into_iter().map(row).collect())
    }

    /// A call into a guest. None goes to a VM that is paused: it would wait, and vhost-device-vsock
    /// 0.3 does not survive one. One that is under way when the VM is paused is given up.
    pub(crate) async fn guarded<T>(&self, vm: &VmName, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.check_awake(vm).await?;
        let mut call = pin!(call);
        loop {
            if let Ok(outcome) = timeout(LOOK, call.as_mut()).await {
                return outcome;
            }
            self.check_awake(vm)
                .await
                .map_err(|error| error.context("what was asked for may still be done when the VM goes on"))?;
        }
    }

    /// # Errors
    /// `VmPaused`. A vmd that does not answer is no reason to refuse.
    pub(crate) async fn check_awake(&self, vm: &VmName) -> Result<()> {
        match self.vm_state(vm).await {
            Ok(state) if state == "paused" => Err(ErrorKind::VmPaused
                .error(format!("VM {vm} is paused and does not answer; `banger resume {vm}` first"))),
            _ => Ok(()),
        }
    }

    async fn vm_state(&self, vm: &VmName) -> Result<String> {
        let state = async {
            let path = path::encode(VM_PREFIX, vm.as_str());
            let vm = VmProxy::builder(&self.context.bus).path(path);
            Ok(vm.cache_properties(CacheProperties::No).build().await?.state().await?)
        };
        timeout(LIST, state)
            .await
            .unwrap_or_else(|_| Err(ErrorKind::ServiceUnavailable.error("vmd does not answer")))
    }

    /// A connection to a VM's agent. The VM's name leads to its socket; only if nobody answers
    /// there is vmd asked why.
    pub(crate) async fn agent(&self, vm: &VmName) -> Result<Arc<Agent>> {
        match self.connect(vm).await {
            Err(error) if error.kind() == ErrorKind::AgentUnreachable => Err(self.explain(vm, error).await),
            result => result,
        }
    }

    /// The connection that there is, if it is still one, or a new one. A snapshot breaks
    /// connections off, which a command must not be the first to notice: nobody could tell whether
    /// it was started.
    pub(crate) async fn connect(&self, vm: &VmName) -> Result<Arc<Agent>> {
        let known = self.state().agents.get(vm).cloned();
        if let Some(agent) = known.filter(|agent| !agent.is_closed())
            && matches!(timeout(ALIVE, agent.ping()).await, Ok(Ok(_)))
        {
            return Ok(agent);
        }
        let agent = Arc::new(Agent::connect(&vsock(vm)).await?);
        let mut state = self.state();
        state.agents.retain(|_, agent| !agent.is_closed());
        // Two that connect at once both have a good connection; the later one is kept.
        state.agents.insert(vm.clone(), agent.clone());
        Ok(agent)
    }

    async fn explain(&self, vm: &VmName, error: Error) -> Error {
        let state = async {
            let vmd = VmManagerProxy::new(&self.context.bus).await?;
            vmd.list_vms().await
        };
        let rows = match timeout(LIST, state).await {
            Ok(Ok(rows)) => rows,
            Ok(Err(_)) | Err(_) => return error,
        };
        match rows.iter().find(|(name, ..)| name == vm.as_str()).map(|(_, state, ..)| state.as_str()) {
            None => ErrorKind::NoSuchVm
                .error(format!("there is no VM {:?}; `banger ps -a` lists all", vm.as_str())),
            Some("running") => error,
            Some(state @ ("starting" | "stopping")) => {
                ErrorKind::VmNotRunning.error(format!("VM {vm} is {state}; try again in a moment"))
            }
            Some(state) => ErrorKind::VmNotRunning
                .error(format!("VM {vm} is {state}; start it with `banger start {vm}`")),
        }
    }

    /// Serves the object of a session until a while after its end.
    async fn watch(&self, vm: VmName, id: String, started_usec: u64) -> OwnedObjectPath {
        let path = session_path(vm.as_str(), &id);
        if !self.state().watched.insert((vm.clone(), id.clone())) {
            return path;
        }
        let status = Status { state: "running".to_owned(), started_usec, ..Status::default() };
        let status = watch::Sender::new(status);
        let hub = &self.context.hub;
        let object = SessionObject::new(
            self.clone(),
            self.context.gate.clone(),
            vm.clone(),
            id.clone(),
            String::new(),
            status.subscribe(),
        );
        hub.add(path.as_str(), object).await;
        let body = (vm.to_string(), id.clone(), path.clone());
        hub.emit(SESSIOND.path, MANAGER, "SessionNew", body.clone());

        let sessions = self.clone();
        let hold = self.context.idle.hold();
        let object = path.clone();
        tokio::spawn(async move {
            let hub = &sessions.context.hub;
            match sessions.wait(&vm, &id).await {
                Ok(exit) => {
                    status.send_modify(|now| {
                        now.state = "exited".to_owned();
                        (now.exit_status, now.exit_signal) = exit;
                        now.ended_usec = now_usec();
                    });
                    sessions.announce(object.as_str(), &status.borrow());
                    note_end(&vm, &id, exit);
                    // Kept for those who ask, but no reason to stay.
                    drop(hold);
                    sleep(MEMORY).await;
                }
                Err(error) => {
                    tracing::debug!(vm = vm.as_str(), session = id, "lost: {error}");
                    note(&Event::SessionLost { vm: vm.as_str(), session: &id });
                }
            }
            hub.remove(object.as_str()).await;
            hub.emit(SESSIOND.path, MANAGER, "SessionRemoved", body);
            sessions.state().watched.remove(&(vm, id));
        });
        path
    }

    /// Finds the running sessions that an earlier instance watched.
    pub fn rediscover(&self) {
        let sessions = self.clone();
        let hold = self.context.idle.hold();
        tokio::spawn(async move {
            let _hold = hold;
            for vm in running() {
                let found = timeout(LIST, async {
                    for (_, id, state, _, started_usec, _) in sessions.list_vm(&vm).await? {
                        if state == "running" {
                            sessions.watch(vm.clone(), id, started_usec).await;
                        }
                    }
                    Ok::<(), Error>(())
                });
                if let Ok(Err(error)) = found.await {
                    tracing::debug!("{error}");
                }
            }
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn vsock(vm: &VmName) -> PathBuf {
    vsock_socket(&Path::new(RUNTIME_DIR).join(vm.as_str()))
}

/// The VMs that have a runtime directory, which is what running ones have. If it cannot be read,
/// only objects that nobody has asked for yet are missing.
fn running() -> Vec<VmName> {
    let entries = std::fs::read_dir(RUNTIME_DIR).into_iter().flatten().flatten();
    entries.filter_map(|entry| VmName::new(entry.file_name().to_str()?).ok()).collect()
}

/// Paths for the agent: no more than fit into one message.
fn bounded(paths: &[Vec<u8>]) -> Result<Vec<&[u8]>> {
    if paths.len() > MAX_PATHS || paths.iter().map(Vec::len).sum::<usize>() > MAX_PATH_BYTES {
        return Err(ErrorKind::InvalidArgs
            .error(format!("more than {MAX_PATHS} paths, or {MAX_PATH_BYTES} bytes of them, at once")));
    }
    Ok(paths.iter().map(Vec::as_slice).collect())
}

/// What is a process to the agent is a session here.
fn unknown(error: Error, vm: &VmName, id: &str) -> Error {
    match error.kind() {
        ErrorKind::NoSuchProcess => ErrorKind::NoSuchSession
            .error(format!("no session {id:?} in VM {vm}: it has ended, or never was")),
        _ => error,
    }
}

/// Notes how a session's command has ended: by its exit status, or by a signal.
pub fn note_end(vm: &VmName, session: &str, (status, signal): (i32, i32)) {
    let (status, signal) = match signal {
        0 => (status.to_string(), String::new()),
        signal => (String::new(), signal.to_string()),
    };
    note(&Event::SessionEnded { vm: vm.as_str(), session, status: &status, signal: &signal });
}
