//! Snapshots of running VMs, and VMs that go on from them.

use banger_api::vm::SnapshotRow;
use banger_api::{Error, ErrorKind, Result, now_usec};
use banger_core::event::Event;
use banger_core::guest::GuestConfig;
use banger_core::name::VmName;
use banger_core::snapshot::{Machine, Snapshot};
use banger_core::spec::{Spec, VmmChoice};
use banger_core::vm::{Stage, State};
use banger_daemon::event::note;
use banger_daemon::{Progress, failpoint};
use banger_vmm::control::SnapshotKind;
use banger_vmm::probe;
use zbus::OwnedObjectPath;

use super::control::vmm_error;
use super::{Supervisor, launch, lock, plan};
use crate::store::{Draft, VmRow};

impl Supervisor {
    /// Starts the job that makes a snapshot of a running VM.
    pub async fn snapshot_job(&self, name: VmName, snapshot: VmName) -> Result<(u32, OwnedObjectPath)> {
        self.get(&name)?;
        let (this, subject) = (self.clone(), name.to_string());
        let work = |progress: Progress| async move {
            let _guard = progress.cancelable(async { Ok(this.lock(&name).await) }).await?;
            this.take_snapshot(&name, &snapshot, false, &progress).await?;
            Ok(snapshot.to_string())
        };
        Ok(self.0.context.jobs.start("snapshot", &subject, work).await)
    }

    async fn take_snapshot(
        &self,
        name: &VmName,
        snapshot: &VmName,
        fork: bool,
        progress: &Progress,
    ) -> Result<()> {
        let row = self.get(name)?;
        match self.state(&row) {
            State::Running => {}
            state => {
                return Err(ErrorKind::VmNotRunning
                    .error(format!("{name} is {}: only a running VM has a memory to keep", state.as_str())));
            }
        }
        if let Some(mount) = row.started_spec().volumes.iter().find(|mount| !mount.read_only) {
            return Err(ErrorKind::NotSupported.error(format!(
                "{name} can write volume {}, which goes on by itself: a guest that woke up later would destroy what is in it; \
                 take the volume away with `banger set`, or give it read-only",
                mount.volume
            )));
        }
        let choice = row.run.as_ref().map_or(row.spec.vmm, |run| run.vmm);
        let machine = machine_of(&row, row.started_spec(), choice)?;
        progress.stage("snapshot");
        let user = self.0.units.user(name).await?;
        let directory = self.0.disks.begin_snapshot(name, snapshot, user).await?;
        failpoint!("snapshot.begun");
        // From here on the guest must not be left standing still: not to be canceled, and it is
        // shown as paused, so that nobody calls into it, and that it can be resumed if vmd ends.
        self.mark_paused(name)?;
        let taken = async {
            let copy = self.0.disks.copy_into_snapshot(name, &directory);
            let mut control = self.control(name).await?;
            control.snapshot(&directory, kind_of(&row), copy).await.map_err(vmm_error)?;
            // Who has systemd stop the unit asks nobody here, and wakes the guest: its disks may have gone on while
            // they were copied.
            if !self.0.units.is_active(name).await? {
                return Err(ErrorKind::Interrupted
                    .error(format!("{name} was stopped while its snapshot was written; there is none")));
            }
            self.unmark_paused(name)?;
            let meta = Snapshot { created_usec: now_usec(), machine, fork };
            failpoint!("snapshot.taken");
            self.0.disks.finish_snapshot(&directory, &meta).await
        };
        if let Err(error) = taken.await {
            if self.state_of(name)? == State::Paused {
                self.wake(name).await;
            }
            self.0.disks.remove_snapshot(name, snapshot).await?;
            return Err(error);
        }
        if !fork {
            note(&Event::SnapshotTaken { vm: name.as_str(), snapshot: snapshot.as_str() });
        }
        Ok(())
    }

    pub async fn list_snapshots(&self, name: &VmName) -> Result<Vec<SnapshotRow>> {
        self.get(name)?;
        let shown = |(snapshot, meta, bytes): (VmName, Snapshot, u64)| {
            (snapshot.to_string(), meta.created_usec, bytes, meta.machine.vmm)
        };
        Ok(self.0.disks.list_snapshots(name).await?.into_iter().map(shown).collect())
    }

    pub async fn delete_snapshot(&self, name: &VmName, snapshot: &VmName) -> Result<()> {
        self.get(name)?;
        let _guard = self.lock(name).await;
        self.0.disks.read_snapshot(name, snapshot).await?;
        self.0.disks.remove_snapshot(name, snapshot).await?;
        note(&Event::SnapshotDeleted { vm: name.as_str(), snapshot: snapshot.as_str() });
        Ok(())
    }

    /// Starts the job that has a stopped VM go on from one of its snapshots.
    pub async fn restore_job(&self, name: VmName, snapshot: VmName) -> Result<(u32, OwnedObjectPath)> {
        self.get(&name)?;
        let (this, subject) = (self.clone(), name.to_string());
        let work = |progress: Progress| async move {
            let _guard = progress.cancelable(async { Ok(this.lock(&name).await) }).await?;
            this.go_on(&this.get(&name)?, &name, &snapshot, &progress).await?;
            Ok(name.to_string())
        };
        Ok(self.0.context.jobs.start("restore", &subject, work).await)
    }

    /// Starts a VM, whose lock the caller holds, from a snapshot of itself or of another.
    async fn go_on(&self, row: &VmRow, of: &VmName, snapshot: &VmName, progress: &Progress) -> Result<()> {
        let name = &row.name;
        let meta = self.0.disks.read_snapshot(of, snapshot).await?;
        meta.machine
            .fits(&machine_of(row, &row.spec, row.spec.vmm)?)
            .map_err(|mismatch| ErrorKind::SnapshotMismatch.error(mismatch.to_string()))?;
        progress.stage(Stage::Disk.as_str());
        {
            // Its unit needs nobody's lock to start, but this one for its disks: whoever starts it from here on has it
            // go on from the snapshot.
            let _holding = self.0.holding.lock(name.as_str()).await;
            if self.0.units.is_up(name).await? {
                return Err(ErrorKind::VmRunning.error(format!("{name} runs: stop it before it is restored")));
            }
            self.0.disks.restore_from(name, of, snapshot).await?;
            failpoint!("restore.linked");
            if !row.whole {
                self.0.store.set_whole(name, true).await?;
            }
        }
        let started = self.start_unit(name, progress).await;
        self.0.disks.forget_restore(name).await?;
        started?;
        if !self.get(name)?.run.is_some_and(|run| run.restored) {
            return Err(ErrorKind::Interrupted.error(format!(
                "{name} was started and stopped by somebody else meanwhile, and has booted: stop it and restore it again"
            )));
        }
        note(&Event::VmRestored { vm: name.as_str(), from: of.as_str(), snapshot: snapshot.as_str() });
        progress.stage("reconfigure");
        let row = &self.get(name)?;
        self.adjust_restored(row).await?;
        self.reconfigure(row).await?;
        // The sessions in a fork are nobody's.
        if of == name
            && let Err(error) = self.0.peers.recover_sessions(name.as_str()).await
        {
            tracing::warn!(vm = name.as_str(), "its sessions stay lost: {error}");
        }
        Ok(())
    }

    /// Tells a guest that woke up from a snapshot who it is, and what time.
    async fn reconfigure(&self, row: &VmRow) -> Result<()> {
        let config = self.current_config(row).await?;
        let left = self.agent(&row.name).await?.reconfigure(&config).await?;
        for line in left {
            tracing::warn!(vm = row.name.as_str(), "after the restore: {line}");
        }
        Ok(())
    }

    /// The guest's configuration, with the time and the randomness of this moment.
    async fn current_config(&self, row: &VmRow) -> Result<GuestConfig> {
        let name = row.name.as_str();
        let boot = self.0.peers.lease_image(name, &row.image_id, &row.kernel).await?;
        let network = match row.spec.network {
            // The lease that it has already.
            true => {
                let user = self.0.units.user(&row.name).await?;
                Some(self.0.peers.acquire_network(name, row.address, user, &row.spec.policy()).await?)
            }
            false => None,
        };
        let synced = launch::synced().await?;
        launch::report(&row.name, &synced);
        let config =
            plan::guest_config(row, &boot, network.as_ref(), banger_core::guest::PowerOff::Acpi, synced)?;
        let seed: String = (0..2).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect();
        Ok(GuestConfig { realtime_usec: now_usec(), seed, ..config })
    }

    /// Starts the job that makes VMs which go on from where a running one is now.
    pub async fn fork_job(&self, name: VmName, names: Vec<VmName>) -> Result<(u32, OwnedObjectPath)> {
        self.get(&name)?;
        for name in &names {
            self.0.store.check_free(name)?;
        }
        let (this, subject) = (self.clone(), name.to_string());
        let work = |progress: Progress| async move {
            let snapshot = VmName::new(&format!("fork-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]))
                .map_err(Error::internal)?;
            lock(&this.0.forks).insert(snapshot.clone());
            let forked = this.fork(&name, &snapshot, &names, &progress).await;
            // Those that run have what they need of it by links and copies.
            let removed = this.0.disks.remove_snapshot(&name, &snapshot).await;
            lock(&this.0.forks).remove(&snapshot);
            forked?;
            removed?;
            Ok(names.iter().map(VmName::as_str).collect::<Vec<_>>().join(" "))
        };
        Ok(self.0.context.jobs.start("fork", &subject, work).await)
    }

    /// Makes one fork after the other, up to the first that fails.
    async fn fork(
        &self,
        name: &VmName,
        snapshot: &VmName,
        names: &[VmName],
        progress: &Progress,
    ) -> Result<()> {
        let row = {
            let _guard = progress.cancelable(async { Ok(self.lock(name).await) }).await?;
            self.take_snapshot(name, snapshot, true, progress).await?;
            self.get(name)?
        };
        for new in names {
            self.fork_one(&row, snapshot, new.clone(), progress).await?;
        }
        Ok(())
    }

    async fn fork_one(&self, of: &VmRow, snapshot: &VmName, new: VmName, progress: &Progress) -> Result<()> {
        progress.stage(Stage::Reserve.as_str());
        let range = self.0.peers.range().await?;
        let draft = Draft {
            names: vec![new],
            range,
            image: of.image.clone(),
            image_id: of.image_id.clone(),
            kernel: of.kernel.clone(),
            spec: forked_spec(of),
            machine_id: uuid::Uuid::new_v4().simple().to_string(),
            created_usec: now_usec(),
        };
        let row = self.0.store.reserve(draft).await?;
        let name = &row.name;
        note(&Event::VmCreated { vm: name.as_str(), image: &row.image, from: of.name.as_str() });
        let _guard = self.lock(name).await;
        let made = async {
            self.0.peers.lease_image(name.as_str(), &row.image_id, &row.kernel).await?;
            let path = self.publish(name).await;
            self.signal("VmNew", name, path);
            self.leave_word();
            self.go_on(&row, &of.name, snapshot, progress).await
        };
        failpoint!("fork.reserved");
        let outcome = progress.cancelable(made).await;
        if outcome.is_err() {
            // A start that was canceled has not cleared up behind itself.
            lock(&self.0.starts).remove(name);
            if self.0.units.is_up(name).await.unwrap_or(true)
                && let Err(error) = self.0.units.end(name).await
            {
                tracing::warn!(vm = name.as_str(), "a fork that is not wanted cannot be ended: {error}");
            }
            self.erase(name).await;
        }
        outcome
    }
}

/// A guest that went on from a snapshot has memory that it did not touch and that is not zero. And
/// what is swapped out is not to be told from what was never touched.
fn kind_of(row: &VmRow) -> SnapshotKind {
    let booted = row.run.as_ref().is_some_and(|run| !run.restored);
    if booted && rustix::system::sysinfo().totalswap == 0 { SnapshotKind::Sparse } else { SnapshotKind::Full }
}

/// A fork is made of what the VM was started with, and is to be else what the VM is to be.
fn forked_spec(of: &VmRow) -> Spec {
    let started = of.started_spec();
    Spec {
        cpus: started.cpus,
        memory: started.memory,
        work: if started.work > 0 { of.spec.work } else { 0 },
        volumes: started.volumes.clone(),
        vmm: started.vmm,
        network: started.network,
        // Those are the VM's own.
        forwards: Vec::new(),
        ..of.spec.clone()
    }
}

/// What a snapshot of the VM is bound to while it is made of this.
fn machine_of(row: &VmRow, spec: &Spec, choice: VmmChoice) -> Result<Machine> {
    let host = probe::host();
    let vmm = banger_vmm::choose(choice, &host)
        .map_err(|missing| ErrorKind::VmmMissing.error(missing.to_string()))?;
    let program = if vmm.name() == "qemu" { &host.qemu } else { &host.firecracker };
    let version = program.as_ref().and_then(|program| program.version);
    Ok(Machine {
        vmm: vmm.name().to_owned(),
        version: version.map(|version| version.to_string()).unwrap_or_default(),
        kvm: host.kvm || vmm.name() == "firecracker",
        cpu: probe::cpu(),
        cpus: spec.cpus,
        memory: spec.memory,
        work: spec.work > 0,
        volumes: spec.volumes.len(),
        network: spec.network,
        image_id: row.image_id.clone(),
        kernel: row.kernel.clone(),
    })
}
