//! The supervisor: what is done to VMs, and in which order.
//!
//! Creating a VM has three phases. (1) Validate, and find the image, pulling it if needed: no
//! lock. (2) Reserve name and address: one transaction of [`VmStore::reserve`]. (3) Lease the
//! image, make the disk, start: under the VM's own lock only. So creates overlap in everything
//! that takes time and meet only in phase 2.
//!
//! Starting a VM is starting its unit, whoever does it; the unit calls [`Supervisor::prepare`]
//! before it executes the VMM, and [`Supervisor::release`] after the VMM's end.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banger_api::vm::{LaunchPlan, RUNTIME_DIR, VM, VM_PREFIX, vsock_socket};
use banger_api::{Error, ErrorKind, Options, Result, VMD, path};
use banger_core::guest::{self, GuestConfig, PowerOff, ProcessDefaults, Rootfs};
use banger_core::name::VmName;
use banger_core::vm::{Spec, Stage, State};
use banger_core::{address, vm};
use banger_daemon::gate::Caller;
use banger_daemon::jobs::now_usec;
use banger_daemon::{Context, Progress};
use banger_vmm::{Disk, Kernel, Machine, Nic, probe};
use tokio::sync::{Notify, OwnedMutexGuard};
use zbus::OwnedObjectPath;

use crate::bus::VmObject;
use crate::effects::disks::Disks;
use crate::effects::peers::{BootSet, NetLease, Peers};
use crate::effects::units::Units;
use crate::store::{Draft, VmRow, VmStore};

/// How many generated names are tried before giving up.
const GENERATED_NAMES: usize = 16;

/// The result of a start that a stop or a delete cut short.
const INTERRUPTED: &str = "interrupted";

/// All VMs. Cheap to clone.
#[derive(Clone)]
pub struct Supervisor(Arc<Inner>);

struct Inner {
    context: Context,
    store: VmStore,
    units: Units,
    disks: Disks,
    peers: Peers,
    /// One lock for the lifecycle of each VM.
    locks: Mutex<HashMap<VmName, Arc<tokio::sync::Mutex<()>>>>,
    /// The starts under way, so that the unit's call to prepare can tell its progress and its
    /// failure to the job that waits for it.
    starts: Mutex<HashMap<VmName, Start>>,
    /// VMs that have been started at least once; the rest of their state is systemd's.
    started: Arc<Mutex<HashMap<VmName, bool>>>,
}

struct Start {
    progress: Progress,
    failure: Option<Error>,
    /// Told by whoever wants the VM down before it is up.
    interrupt: Arc<Notify>,
}

/// A request to create a VM.
#[derive(Debug)]
pub struct Create {
    /// `None`: generate one.
    pub name: Option<VmName>,
    pub image: String,
    /// Empty: the default one.
    pub kernel: String,
    pub spec: Spec,
    pub start: bool,
}

impl Create {
    /// # Errors
    /// `InvalidArgs` for anything that is not as `CreateVm` documents it.
    pub fn new(name: &str, image: &str, mut options: Options) -> Result<Self> {
        let name = if name.is_empty() { None } else { Some(vm_name(name)?) };
        if image.is_empty() {
            return Err(
                ErrorKind::InvalidArgs.error("the image is missing: give a reference such as debian:12")
            );
        }
        let default = Spec::default();
        let invalid = |error: vm::InvalidSpec| ErrorKind::InvalidArgs.error(error.to_string());
        let vmm = options.take::<String>("vmm")?.map(|word| word.parse()).transpose().map_err(invalid)?;
        let init = options.take::<String>("init")?.map(|word| word.parse()).transpose().map_err(invalid)?;
        let spec = Spec {
            cpus: options.take("cpus")?.unwrap_or(default.cpus),
            memory: options.take("memory")?.unwrap_or(default.memory),
            disk: options.take("disk")?.unwrap_or(default.disk),
            vmm: vmm.unwrap_or(default.vmm),
            network: options.take("network")?.unwrap_or(default.network),
            nat: options.take("nat")?.unwrap_or(default.nat),
            init: init.unwrap_or(default.init),
            kernel_arguments: options.take("kernel_arguments")?.unwrap_or_default(),
        };
        let kernel = options.take("kernel")?.unwrap_or_default();
        let start = options.take("start")?.unwrap_or(false);
        options.finish()?;
        spec.check().map_err(invalid)?;
        Ok(Self { name, image: image.to_owned(), kernel, spec, start })
    }
}

/// A VM's name as an argument of a method.
///
/// # Errors
/// `InvalidArgs`.
pub fn vm_name(name: &str) -> Result<VmName> {
    VmName::new(name).map_err(|error| ErrorKind::InvalidArgs.error(error.to_string()))
}

impl Supervisor {
    pub async fn open(context: Context) -> Result<Self> {
        let store = VmStore::open(&context.state_dir.join("vmd.db"))?;
        let disks = Disks::open(context.state_dir.join("vms")).await?;
        let rows = store.list().await?;
        let started: HashMap<_, _> =
            rows.into_iter().map(|row| (row.name, row.started_usec.is_some())).collect();
        let started = Arc::new(Mutex::new(started));
        let units = {
            let (hub, started) = (context.hub.clone(), started.clone());
            Units::follow(&context.bus, move |name, active_state| {
                // A unit without a row is none of our objects.
                let Some(started) = lock(&started).get(name).copied() else { return };
                let state = State::of(active_state, started).as_str();
                hub.changed(&vm_path(name), VM, vec![("State", zbus::Str::from(state).into())]);
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
            locks: Mutex::default(),
            starts: Mutex::default(),
            started,
        }));
        supervisor.reconcile().await?;
        Ok(supervisor)
    }

    /// Removes what an instance that was cut off may have left: disks without a row at once, leases
    /// elsewhere without a row in the background.
    async fn reconcile(&self) -> Result<()> {
        if self.0.context.clean {
            return Ok(());
        }
        for name in self.0.disks.list().await? {
            if !self.exists(&name) {
                tracing::info!(vm = name.as_str(), "removing the disk of a VM that is not there");
                self.0.disks.remove(&name).await?;
            }
        }
        let this = self.clone();
        let hold = self.0.context.idle.hold();
        tokio::spawn(async move {
            if let Err(error) = this.reconcile_leases().await {
                tracing::warn!("cannot compare leases with VMs: {error}");
            }
            drop(hold);
        });
        Ok(())
    }

    async fn reconcile_leases(&self) -> Result<()> {
        for holder in self.0.peers.image_leases().await? {
            let orphan = VmName::new(&holder).is_ok_and(|name| !self.exists(&name));
            if orphan {
                tracing::info!(vm = holder, "releasing the image of a VM that is not there");
                self.0.peers.release_image(&holder).await?;
            }
        }
        for holder in self.0.peers.net_leases().await? {
            let orphan = VmName::new(&holder).is_ok_and(|name| !self.state(&name).is_up());
            if orphan {
                tracing::info!(vm = holder, "releasing the network of a VM that does not run");
                self.0.peers.release_network(&holder).await?;
            }
        }
        Ok(())
    }

    /// Serves the objects of all VMs.
    pub async fn publish_all(&self) -> Result<()> {
        for row in self.0.store.list().await? {
            self.publish(row).await;
        }
        Ok(())
    }

    async fn publish(&self, row: VmRow) -> OwnedObjectPath {
        let path = vm_path(&row.name);
        let gate = self.0.context.gate.clone();
        self.0.context.hub.add(&path, VmObject::new(self.clone(), gate, row)).await;
        path
    }

    fn exists(&self, name: &VmName) -> bool {
        lock(&self.0.started).contains_key(name)
    }

    /// What the VM is doing, without asking anybody.
    pub fn state(&self, name: &VmName) -> State {
        let started = lock(&self.0.started).get(name).copied().unwrap_or(false);
        State::of(&self.0.units.view(name).active_state, started)
    }

    pub async fn list(&self) -> Result<Vec<VmRow>> {
        self.0.store.list().await
    }

    pub async fn get(&self, name: &VmName) -> Result<VmRow> {
        self.0.store.get(name.clone()).await
    }

    /// Starts the job that creates a VM.
    pub async fn create_job(&self, request: Create) -> (u32, OwnedObjectPath) {
        let subject = request.name.as_ref().map(VmName::to_string).unwrap_or_default();
        let this = self.clone();
        let work = |progress| async move { this.create(request, progress).await };
        self.0.context.jobs.start("create", &subject, work).await
    }

    async fn create(self, request: Create, progress: Progress) -> Result<String> {
        progress.stage(Stage::Resolve.as_str());
        if let Some(name) = &request.name {
            self.0.store.check_free(name.clone()).await?;
        }
        let image = progress.cancelable(self.0.peers.resolve_image(&request.image)).await?;
        let image = match image {
            Some(image) => image,
            None => {
                progress.stage(Stage::Pull.as_str());
                self.0.peers.pull(&request.image, &progress).await?
            }
        };
        let kernel = progress.cancelable(self.0.peers.resolve_kernel(&request.kernel)).await?;
        let range = progress.cancelable(self.0.peers.range()).await?;

        progress.stage(Stage::Reserve.as_str());
        let names = request.name.map_or_else(generated_names, |name| vec![name]);
        let draft = Draft {
            names,
            range,
            image: image.name,
            image_id: image.id,
            kernel,
            spec: request.spec,
            created_usec: now_usec(),
        };
        let row = self.0.store.reserve(draft).await?;
        let name = row.name.clone();
        lock(&self.0.started).insert(name.clone(), false);

        let guard = self.lock(&name).await;
        let furnished = progress.cancelable(self.furnish(&row, &progress)).await;
        if let Err(error) = furnished {
            self.erase(&name).await;
            return Err(error);
        }
        let path = self.publish(row).await;
        self.signal("VmNew", &name, path);
        tracing::info!(vm = name.as_str(), "created");
        if request.start {
            let started = self.start_locked(&name, &progress).await;
            if matches!(&started, Err(error) if error.kind() == ErrorKind::JobCanceled) {
                self.erase(&name).await;
            }
            drop(guard);
            started?;
        }
        Ok(name.to_string())
    }

    /// Phase 3 of a create, up to the start.
    async fn furnish(&self, row: &VmRow, progress: &Progress) -> Result<()> {
        self.0.peers.lease_image(row.name.as_str(), &row.image_id, &row.kernel).await?;
        progress.stage(Stage::Disk.as_str());
        self.0.disks.ensure(&row.name, row.spec.disk).await
    }

    /// Starts the job that starts a VM.
    pub async fn start_job(&self, name: VmName) -> Result<(u32, OwnedObjectPath)> {
        self.get(&name).await?;
        let this = self.clone();
        let subject = name.to_string();
        let work = |progress: Progress| async move {
            let _guard = progress.cancelable(async { Ok(this.lock(&name).await) }).await?;
            this.start_locked(&name, &progress).await?;
            Ok(name.to_string())
        };
        Ok(self.0.context.jobs.start("start", &subject, work).await)
    }

    async fn start_locked(&self, name: &VmName, progress: &Progress) -> Result<()> {
        self.get(name).await?;
        if self.state(name).is_up() {
            return Err(
                ErrorKind::VmRunning.error(format!("{name} is {} already", self.state(name).as_str()))
            );
        }
        progress.stage(Stage::Start.as_str());
        let interrupt = Arc::new(Notify::new());
        let start = Start { progress: progress.clone(), failure: None, interrupt: interrupt.clone() };
        lock(&self.0.starts).insert(name.clone(), start);
        let tell = |status: &str| {
            if is_stage(status) {
                progress.stage(status);
            }
        };
        let starting = async {
            tokio::select! {
                result = self.0.units.start(name, tell) => result,
                () = interrupt.notified() => Ok(INTERRUPTED.to_owned()),
            }
        };
        let started = progress.cancelable(starting).await;
        let failure = lock(&self.0.starts).remove(name).and_then(|start| start.failure);
        match started {
            Ok(result) if result == "done" => {
                progress.stage(Stage::Ready.as_str());
                tracing::info!(vm = name.as_str(), "running");
                Ok(())
            }
            Ok(result) if result == INTERRUPTED => {
                self.end_unit(name).await?;
                Err(ErrorKind::VmNotRunning.error(format!("{name} was stopped before it was up")))
            }
            Ok(result) => Err(failure.unwrap_or_else(|| self.boot_failure(name, &result))),
            Err(error) => {
                if error.kind() == ErrorKind::JobCanceled {
                    self.end_unit(name).await?;
                }
                Err(error)
            }
        }
    }

    fn boot_failure(&self, name: &VmName, result: &str) -> Error {
        let status = self.0.units.view(name).status;
        let reason = match status.strip_prefix("failed: ") {
            Some(reason) => reason.to_owned(),
            None if is_stage(&status) => format!("it ended in the stage {status} ({result})"),
            None => format!("its unit ended with {result}"),
        };
        ErrorKind::BootFailed
            .error(format!("{name} did not come up: {reason}; see journalctl -u {}", name.unit()))
    }

    /// Starts the job that stops a VM. After `timeout` the guest is not asked any longer.
    pub async fn stop_job(&self, name: VmName, timeout: Option<Duration>) -> Result<(u32, OwnedObjectPath)> {
        self.get(&name).await?;
        if !self.state(&name).is_up() {
            return Err(ErrorKind::VmNotRunning.error(format!("{name} does not run")));
        }
        let this = self.clone();
        let subject = name.to_string();
        let work = |progress: Progress| async move {
            progress.stage("stop");
            this.interrupt_start(&name);
            let _guard = this.lock(&name).await;
            this.stop_locked(&name, timeout).await?;
            Ok(name.to_string())
        };
        Ok(self.0.context.jobs.start("stop", &subject, work).await)
    }

    async fn stop_locked(&self, name: &VmName, timeout: Option<Duration>) -> Result<()> {
        let stop = self.0.units.stop(name);
        let Some(timeout) = timeout else { return stop.await };
        tokio::pin!(stop);
        match tokio::time::timeout(timeout, &mut stop).await {
            Ok(stopped) => stopped,
            Err(_) => {
                tracing::warn!(vm = name.as_str(), "did not stop in time; killing it");
                self.0.units.kill(name).await?;
                stop.await
            }
        }
    }

    /// A VM that is being started need not come up before it is stopped.
    fn interrupt_start(&self, name: &VmName) {
        if let Some(start) = lock(&self.0.starts).get(name) {
            start.interrupt.notify_one();
        }
    }

    /// Ends the unit without asking the guest.
    async fn end_unit(&self, name: &VmName) -> Result<()> {
        // There may be nothing left to kill.
        let _ = self.0.units.kill(name).await;
        self.0.units.stop(name).await
    }

    pub async fn delete(&self, name: &VmName, force: bool) -> Result<()> {
        self.get(name).await?;
        if force {
            self.interrupt_start(name);
        }
        let _guard = self.lock(name).await;
        // Somebody may have been quicker.
        self.get(name).await?;
        let state = self.state(name);
        if state.is_up() {
            if !force {
                return Err(ErrorKind::VmRunning
                    .error(format!("{name} is {}: stop it first, or use force", state.as_str())));
            }
            self.end_unit(name).await?;
        }
        self.unpublish(name).await
    }

    /// Removes a VM that does not run: everything it holds first, its row last, so that its name
    /// is free only when nothing of it is left.
    async fn unpublish(&self, name: &VmName) -> Result<()> {
        self.0.peers.release_network(name.as_str()).await?;
        self.0.disks.remove(name).await?;
        self.0.peers.release_image(name.as_str()).await?;
        self.0.units.reset_failed(name).await;
        self.0.store.remove(name.clone()).await?;
        lock(&self.0.started).remove(name);
        lock(&self.0.locks).remove(name);
        self.0.units.forget(name);
        let path = vm_path(name);
        self.0.context.hub.remove(&path).await;
        self.signal("VmRemoved", name, path);
        tracing::info!(vm = name.as_str(), "deleted");
        Ok(())
    }

    /// Takes back a create that failed or was canceled. What cannot be taken back now is found by
    /// the next reconciliation.
    async fn erase(&self, name: &VmName) {
        if let Err(error) = self.unpublish(name).await {
            tracing::warn!(vm = name.as_str(), "cannot take back what was created: {error}");
        }
    }

    async fn lock(&self, name: &VmName) -> OwnedMutexGuard<()> {
        let lock = lock(&self.0.locks).entry(name.clone()).or_default().clone();
        lock.lock_owned().await
    }

    fn signal(&self, member: &'static str, name: &VmName, path: OwnedObjectPath) {
        self.0.context.hub.emit(VMD.path, VMD.manager, member, (name.to_string(), path));
    }

    /// For the VM's unit: gets everything ready and returns what to execute.
    pub async fn prepare(&self, name: &VmName, caller: Caller) -> Result<LaunchPlan> {
        self.check_unit(name, caller).await?;
        let outcome = self.prepare_for(name, caller.uid).await;
        if let Err(error) = &outcome {
            tracing::warn!(vm = name.as_str(), "cannot start: {error}");
            if let Some(start) = lock(&self.0.starts).get_mut(name) {
                start.failure = Some(error.clone());
            }
        }
        outcome
    }

    async fn prepare_for(&self, name: &VmName, uid: u32) -> Result<LaunchPlan> {
        let row = self.get(name).await?;
        let missing = |error: banger_vmm::Missing| ErrorKind::VmmMissing.error(error.to_string());
        let vmm = banger_vmm::choose(row.spec.vmm, &probe::host()).map_err(missing)?;
        let boot = self.0.peers.lease_image(name.as_str(), &row.image_id, &row.kernel).await?;
        self.0.disks.ensure(name, row.spec.disk).await?;
        self.0.disks.grant(name, Some(uid))?;
        if let Some(start) = lock(&self.0.starts).get(name) {
            start.progress.stage(Stage::Network.as_str());
        }
        let network = if row.spec.network {
            Some(self.0.peers.acquire_network(name.as_str(), row.address, uid, row.spec.nat).await?)
        } else {
            None
        };
        self.0.store.mark_started(name.clone(), now_usec()).await?;
        lock(&self.0.started).insert(name.clone(), true);

        let machine = machine(&row, &boot, network.as_ref(), self.0.disks.path(name));
        let config = guest_config(&row, &boot, network.as_ref(), vmm.power_off())?;
        let plan = vmm.plan(&machine);
        tracing::debug!(vm = name.as_str(), vmm = vmm.name(), "prepared");
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let helpers = plan.helpers.into_iter().map(|helper| (helper.command, text(&helper.ready))).collect();
        Ok(LaunchPlan {
            files: plan.files.into_iter().collect(),
            helpers,
            command: plan.main,
            guest_config: serde_json::to_string(&config).map_err(Error::internal)?,
        })
    }

    /// For the VM's unit, after the end of its VMM: gives back what only a running VM needs.
    pub async fn release(&self, name: &VmName, caller: Caller) -> Result<()> {
        self.check_unit(name, caller).await?;
        self.0.peers.release_network(name.as_str()).await?;
        self.0.disks.grant(name, None)
    }

    /// Only the unit of a VM may prepare and release it; systemd knows which process is whose.
    async fn check_unit(&self, name: &VmName, caller: Caller) -> Result<()> {
        let denied = || {
            ErrorKind::AccessDenied.error(format!("only {} may do this: start the VM instead", name.unit()))
        };
        let pid = caller.pid.ok_or_else(denied)?;
        match self.0.units.contains(name, pid).await {
            Ok(true) => Ok(()),
            _ => Err(denied()),
        }
    }
}

fn generated_names() -> Vec<VmName> {
    let seed = || uuid::Uuid::new_v4().as_u64_pair().0;
    (0..GENERATED_NAMES).map(|_| VmName::generated(seed())).collect()
}

pub fn vm_path(name: &VmName) -> OwnedObjectPath {
    path::encode(VM_PREFIX, name.as_str())
}

/// Where the VMM of a VM keeps its sockets.
pub fn runtime_dir(name: &VmName) -> PathBuf {
    Path::new(RUNTIME_DIR).join(name.as_str())
}

/// Whether a unit's status is a stage's name.
fn is_stage(status: &str) -> bool {
    [Stage::Kernel, Stage::Ready].iter().any(|stage| stage.as_str() == status)
        || guest::STAGES.contains(&status)
}

/// The first and the second disk of a guest.
const IMAGE_DEVICE: &str = "/dev/vda";
const OVERLAY_DEVICE: &str = "/dev/vdb";

fn machine(row: &VmRow, boot: &BootSet, network: Option<&NetLease>, disk: PathBuf) -> Machine {
    let runtime_dir = runtime_dir(&row.name);
    Machine {
        name: row.name.to_string(),
        cpus: row.spec.cpus,
        memory: row.spec.memory,
        kernel: Kernel {
            vmlinuz: boot.vmlinuz.clone().into(),
            vmlinux: boot.vmlinux.clone().into(),
            initramfs: boot.initramfs.clone().into(),
            arguments: row.spec.kernel_arguments.clone(),
        },
        disks: vec![
            Disk { id: "image".into(), path: boot.rootfs.clone().into(), read_only: true },
            Disk { id: "disk".into(), path: disk, read_only: false },
        ],
        network: network.map(|lease| Nic { tap: lease.tap.clone(), mac: lease.mac.clone() }),
        context_id: address::context_id(row.address),
        vsock_socket: vsock_socket(&runtime_dir),
        runtime_dir,
    }
}

fn guest_config(
    row: &VmRow,
    boot: &BootSet,
    network: Option<&NetLease>,
    power_off: PowerOff,
) -> Result<GuestConfig> {
    let network = network
        .map(|lease| -> Result<guest::Network> {
            let parse = |text: &str| {
                text.parse().map_err(|_| Error::internal(format!("netd gave {text:?} for an address")))
            };
            Ok(guest::Network {
                address: parse(&lease.address)?,
                prefix: lease.prefix,
                gateway: parse(&lease.gateway)?,
                dns: lease.dns.iter().map(|server| parse(server)).collect::<Result<_>>()?,
                domain: String::new(),
            })
        })
        .transpose()?;
    let env: BTreeMap<String, String> = boot
        .env
        .iter()
        .filter_map(|entry| entry.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    Ok(GuestConfig {
        protocol: guest::PROTOCOL,
        hostname: row.name.to_string(),
        // The attendant fills in the moment's.
        realtime_usec: 0,
        seed: String::new(),
        rootfs: Rootfs {
            image: IMAGE_DEVICE.into(),
            fstype: boot.rootfs_type.clone(),
            overlay: OVERLAY_DEVICE.into(),
        },
        network,
        init: row.spec.init,
        power_off,
        process: ProcessDefaults {
            env,
            user: boot.user.clone(),
            working_directory: boot.working_directory.clone(),
        },
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
