//! The supervisor: what is done to VMs, and in which order.
//!
//! - `create`: the three phases of a create
//! - `lifecycle`: start, stop, restart, kill, pause, resume, reset, delete
//! - `change`: what a VM is to be, changed later
//! - `control`: what a running VM's VMM and agent are told
//! - `launch`: what the VM's unit asks for when it starts and when it has ended
//! - `plan`: from rows and leases to machines and guests' configurations; pure
//! - `forwards`: ports of the host that lead to guests
//! - `stats`: figures of running VMs
//! - `timeline`: how the last start of a VM went on
//! - `reap`: VMs whose time is up, and idle ones; `idle` tells which are
//! - `snapshots`: what running VMs are, and VMs that go on from there
//! - `promote`: images of what VMs' disks hold
//! - `volumes`: disks that exist by themselves
//! - `reconcile`: what an instance that was cut off may have left
//!
//! Starting a VM is starting its unit, whoever does it; the unit calls [`Supervisor::prepare`]
//! before it executes the VMM, and [`Supervisor::release`] after the VMM's end.

mod change;
mod control;
mod create;
mod forwards;
mod host;
mod idle;
mod launch;
mod lifecycle;
mod plan;
mod promote;
mod reap;
mod reconcile;
mod snapshots;
mod stats;
mod timeline;
mod volumes;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use banger_api::vm::{RUNTIME_DIR, VM, VM_PREFIX};
use banger_api::{Error, Result, VMD, path};
use banger_core::health::Health;
use banger_core::name::VmName;
use banger_core::vm::State;
use banger_daemon::locks::Held;
use banger_daemon::{Context, Locks, Progress};
use tokio::sync::Notify;
use zbus::{OwnedObjectPath, OwnedVariant};

use crate::bus::VmObject;
use crate::effects::disks::Disks;
use crate::effects::marks::Marks;
use crate::effects::peers::Peers;
use crate::effects::runtime;
use crate::effects::units::{UnitView, Units};
use crate::store::{VmRow, VmStore};
pub use host::host;
pub use promote::Promotion;

/// All VMs. Cheap to clone.
#[derive(Clone)]
pub struct Supervisor(Arc<Inner>);

struct Inner {
    context: Context,
    store: VmStore,
    units: Units,
    disks: Disks,
    peers: Peers,
    /// One for the lifecycle of each VM.
    locks: Locks,
    /// One for what each VM holds while it runs. Its unit takes and gives it back whoever has the
    /// lock of its lifecycle, as that may be somebody who waits for the unit; whoever needs both
    /// takes this one last.
    holding: Locks,
    /// The starts under way, so that the unit's call to prepare can tell its progress and its
    /// failure to the job that waits for it.
    starts: Mutex<HashMap<VmName, Start>>,
    /// VMs whose CPUs stand still. As durable as they are: each has a mark in its runtime directory.
    paused: Mutex<HashSet<VmName>>,
    /// VMs that run only to be read, and what is told by whoever wants such a one for something else. Their
    /// marks go with a reboot.
    readings: Mutex<HashMap<VmName, Arc<Notify>>>,
    reading_marks: Marks,
    /// Why runs of VMs end that vmd ends by itself.
    reasons: Mutex<HashMap<VmName, &'static str>>,
    /// The snapshots of forks under way.
    forks: Mutex<HashSet<VmName>>,
    making_volumes: tokio::sync::Mutex<()>,
}

struct Start {
    requested_usec: u64,
    progress: Progress,
    failure: Option<Error>,
    /// Told by whoever wants the VM down before it is up.
    interrupt: Arc<Notify>,
}

impl Supervisor {
    pub async fn open(context: Context) -> Result<Self> {
        let store = VmStore::open(&context.state_dir.join("vmd.db")).await?;
        let disks = Disks::open(context.state_dir.clone()).await?;
        let paused = store.list().into_iter().map(|row| row.name);
        let paused = paused.filter(|name| runtime::is_paused(&runtime_dir(name))).collect();
        let reading_marks = Marks::new(context.runtime_dir.join("reading"));
        let readings = reading_marks.list()?.into_iter().map(|name| (name, Arc::default())).collect();
        let units = {
            let (hub, store) = (context.hub.clone(), store.clone());
            Units::follow(&context.bus, move |name, was, is| {
                // A unit without a row is none of our objects.
                let Ok(row) = store.get(name) else { return };
                let seen = |view: &UnitView| {
                    let state = State::of(&view.active_state, row.started_usec.is_some());
                    [("State", state.as_str()), ("Health", Health::of(state, &view.status).as_str())]
                };
                let changed = seen(is).into_iter().filter(|property| !seen(was).contains(property));
                let changed: Vec<(&str, OwnedVariant)> =
                    changed.map(|(name, value)| (name, zbus::Str::from(value).into())).collect();
                if !changed.is_empty() {
                    hub.changed(&vm_path(name), VM, changed);
                }
            })
            .await?
        };
        let peers = Peers::new(context.bus.clone());
        let supervisor = Self(Arc::new(Inner {
            context,
            store,
            units,
            disks,
            peers,
            locks: Locks::default(),
            holding: Locks::default(),
            starts: Mutex::default(),
            paused: Mutex::new(paused),
            readings: Mutex::new(readings),
            reading_marks,
            reasons: Mutex::default(),
            forks: Mutex::default(),
            making_volumes: tokio::sync::Mutex::default(),
        }));
        supervisor.recover().await?;
        supervisor.end_readings();
        // The configuration may be another now.
        supervisor.leave_word();
        Ok(supervisor)
    }

    /// Serves the objects of all VMs.
    pub async fn publish_all(&self) {
        for row in self.0.store.list() {
            self.publish(&row.name).await;
        }
    }

    async fn publish(&self, name: &VmName) -> OwnedObjectPath {
        let path = vm_path(name);
        let object = VmObject::new(self.clone(), self.0.context.gate.clone(), name.clone());
        self.0.context.hub.add(&path, object).await;
        path
    }

    /// What the VM is doing, without asking anybody.
    pub fn state(&self, row: &VmRow) -> State {
        let state = State::of(&self.0.units.view(&row.name).active_state, row.started_usec.is_some());
        match state {
            State::Running if lock(&self.0.paused).contains(&row.name) => State::Paused,
            state => state,
        }
    }

    pub fn state_of(&self, name: &VmName) -> Result<State> {
        Ok(self.state(&self.get(name)?))
    }

    /// Whether its guest answers, as far as that is known.
    pub fn health(&self, row: &VmRow) -> Health {
        Health::of(self.state(row), &self.0.units.view(&row.name).status)
    }

    /// When its guest last gave a sign of life in this run, microseconds since 1970.
    pub fn heartbeat(&self, name: &VmName) -> Option<u64> {
        runtime::heartbeat(&runtime_dir(name))
    }

    pub fn list(&self) -> Vec<VmRow> {
        self.0.store.list()
    }

    /// # Errors
    /// `NoSuchVm`.
    pub fn get(&self, name: &VmName) -> Result<VmRow> {
        self.0.store.get(name)
    }

    async fn lock(&self, name: &VmName) -> Held {
        self.0.locks.lock(name.as_str()).await
    }

    fn signal(&self, member: &'static str, name: &VmName, path: OwnedObjectPath) {
        self.0.context.hub.emit(VMD.path, VMD.manager, member, (name.to_string(), path));
    }

    /// Says that properties of a VM have changed.
    fn changed(&self, name: &VmName, properties: Vec<(&'static str, OwnedVariant)>) {
        self.0.context.hub.changed(&vm_path(name), VM, properties);
    }

    fn state_changed(&self, name: &VmName) {
        if let Ok(row) = self.get(name) {
            let (state, health) = (self.state(&row).as_str(), self.health(&row).as_str());
            let text = |value: &'static str| zbus::Str::from(value).into();
            self.changed(name, vec![("State", text(state)), ("Health", text(health))]);
        }
    }
}

pub fn vm_path(name: &VmName) -> OwnedObjectPath {
    path::encode(VM_PREFIX, name.as_str())
}

/// Where the VMM of a VM keeps its sockets.
pub fn runtime_dir(name: &VmName) -> PathBuf {
    Path::new(RUNTIME_DIR).join(name.as_str())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
