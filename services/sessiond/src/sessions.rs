//! Sessions: what a client asks for, carried out by the agent of the VM.
//!
//! Each running session has a watcher, a task with a connection to the agent, that serves its
//! object and says when it ended. If this service is killed the watchers are gone and nothing
//! else; the next instance finds the sessions again ([`Sessions::rediscover`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use banger_api::session::{MANAGER, SESSION, SessionRow, session_path};
use banger_api::vm::{ManagerProxy as VmManagerProxy, RUNTIME_DIR, vsock_socket};
use banger_api::{Error, ErrorKind, Result, SESSIOND};
use banger_core::name::VmName;
use banger_daemon::Context;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use zbus::{OwnedObjectPath, OwnedVariant, Variant};

use crate::bus::SessionObject;
use banger_guest::{Agent, Command, Started};

/// How long the object of an ended session stays.
const MEMORY: Duration = Duration::from_secs(60);
/// How long one VM may take to list its sessions before the list goes without it.
const LIST: Duration = Duration::from_secs(5);

/// What to start.
#[derive(Debug)]
pub struct Request {
    pub argv: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub user: String,
    pub directory: String,
    /// Rows and columns.
    pub terminal: Option<(u16, u16)>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    context: Context,
    state: Arc<Mutex<State>>,
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
        Self { context, state: Arc::default() }
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
        let agent = self.agent(&vm).await?;
        let argv: Vec<&str> = request.argv.iter().map(String::as_str).collect();
        let command = Command {
            argv: &argv,
            environment: request.environment,
            user: &request.user,
            directory: &request.directory,
            terminal: request.terminal,
        };
        let Started { id, streams } = agent.start(&command).await?;
        tracing::info!(vm = vm.as_str(), id, "session started");
        let path = self.watch(vm, id.clone(), agent).await;
        Ok((id, path, streams))
    }

    pub async fn wait(&self, vm: &VmName, id: &str) -> Result<(i32, i32)> {
        self.agent(vm).await?.wait(id).await.map_err(|error| unknown(error, vm, id))
    }

    pub async fn kill(&self, vm: &VmName, id: &str, signal: i32) -> Result<()> {
        self.agent(vm).await?.kill(id, signal).await.map_err(|error| unknown(error, vm, id))
    }

    pub async fn resize(&self, vm: &VmName, id: &str, rows: u16, columns: u16) -> Result<()> {
        self.agent(vm).await?.resize(id, rows, columns).await.map_err(|error| unknown(error, vm, id))
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
        let mut rows = Vec::new();
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
        let rows = self.connect(vm).await?.list().await?;
        let row = |(id, state, argv, started): (String, String, Vec<String>, u64)| {
            let path = session_path(vm.as_str(), &id);
            (vm.to_string(), id, state, argv, started, path)
        };
        Ok(rows.into_iter().map(row).collect())
    }

    /// A connection to a VM's agent. The VM's name leads to its socket; only if nobody answers
    /// there is vmd asked why.
    async fn agent(&self, vm: &VmName) -> Result<Arc<Agent>> {
        match self.connect(vm).await {
            Err(error) if error.kind() == ErrorKind::AgentUnreachable => Err(self.explain(vm, error).await),
            result => result,
        }
    }

    async fn connect(&self, vm: &VmName) -> Result<Arc<Agent>> {
        if let Some(agent) = self.state().agents.get(vm).filter(|agent| !agent.is_closed()) {
            return Ok(agent.clone());
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
            None => ErrorKind::NoSuchVm.error(format!("no VM {vm}; `banger ps -a` lists them")),
            Some("running") => error,
            Some(state) => ErrorKind::VmNotRunning
                .error(format!("VM {vm} is {state}; start it with `banger start {vm}`")),
        }
    }

    /// Serves the object of a session until a while after its end.
    async fn watch(&self, vm: VmName, id: String, agent: Arc<Agent>) -> OwnedObjectPath {
        let path = session_path(vm.as_str(), &id);
        if !self.state().watched.insert((vm.clone(), id.clone())) {
            return path;
        }
        let exit = Arc::new(OnceLock::new());
        let hub = &self.context.hub;
        let object =
            SessionObject::new(self.clone(), self.context.gate.clone(), vm.clone(), id.clone(), exit.clone());
        hub.add(path.as_str(), object).await;
        let body = (vm.to_string(), id.clone(), path.clone());
        hub.emit(SESSIOND.path, MANAGER, "SessionNew", body.clone());

        let sessions = self.clone();
        let hold = self.context.idle.hold();
        let object = path.clone();
        tokio::spawn(async move {
            let hub = &sessions.context.hub;
            match agent.wait(&id).await {
                Ok((status, signal)) => {
                    let _ = exit.set((status, signal));
                    let value = |value: Variant<'static>| OwnedVariant::try_from(value).ok();
                    let changed = [
                        ("State", value("exited".into())),
                        ("ExitStatus", value(status.into())),
                        ("ExitSignal", value(signal.into())),
                    ];
                    let changed = changed.into_iter().filter_map(|(name, value)| Some((name, value?)));
                    hub.changed(object.as_str(), SESSION, changed.collect());
                    tracing::info!(vm = vm.as_str(), id, status, signal, "session ended");
                    // Kept for those who ask, but no reason to stay.
                    drop(hold);
                    sleep(MEMORY).await;
                }
                Err(error) => tracing::info!(vm = vm.as_str(), id, "session lost: {error}"),
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
                    for (_, id, state, ..) in sessions.list_vm(&vm).await? {
                        if state == "running" {
                            sessions.watch(vm.clone(), id, sessions.connect(&vm).await?).await;
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

/// What is a process to the agent is a session here.
fn unknown(error: Error, vm: &VmName, id: &str) -> Error {
    match error.kind() {
        ErrorKind::NoSuchProcess => ErrorKind::NoSuchSession
            .error(format!("no session {id:?} in VM {vm}: it has ended, or never was")),
        _ => error,
    }
}
