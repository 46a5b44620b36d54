//! What the unit of a VM asks for: everything to execute before the VMM starts, and the verdict
//! when it has ended.

use std::path::Path;

use banger_api::vm::LaunchPlan;
use banger_api::{Error, ErrorKind, Result, now_usec};
use banger_core::ending::{End, Goodbye, Verdict, judge};
use banger_core::event::Event;
use banger_core::kernel::{self, Needs};
use banger_core::name::VmName;
use banger_core::timeline::NETWORK;
use banger_core::vm::Stage;
use banger_daemon::event::note;
use banger_daemon::failpoint;
use banger_daemon::gate::Caller;
use banger_vmm::{Vmm, probe};

use super::timeline::Timeline;
use super::{Supervisor, lock, plan};
use crate::config::Config;
use crate::effects::peers::{BootSet, NetLease};
use crate::effects::sync::{self, Synced};
use crate::store::{Ended, Run, VmRow};

/// What is known when nothing keeps a VM from starting.
struct Ready {
    vmm: Box<dyn Vmm + Send>,
    synced: Synced,
}

/// What a VM holds while it runs.
struct Held {
    boot: BootSet,
    network: Option<NetLease>,
    /// When everything else was ready.
    network_usec: u64,
}

impl Supervisor {
    /// For the VM's unit: gets everything ready and returns what to execute.
    pub async fn prepare(&self, name: &VmName, caller: Caller) -> Result<LaunchPlan> {
        self.check_unit(name, caller).await?;
        let outcome = self.prepare_for(name, caller).await;
        if let Err(error) = &outcome {
            tracing::warn!(vm = name.as_str(), "cannot start: {error}");
            // Of a start that was ended meanwhile the next one is not to hear.
            if self.check_unit(name, caller).await.is_ok()
                && let Some(start) = lock(&self.0.starts).get_mut(name)
            {
                start.failure = Some(error.clone());
            }
        }
        outcome
    }

    async fn prepare_for(&self, name: &VmName, caller: Caller) -> Result<LaunchPlan> {
        let row = self.to_start(self.get(name)?);
        let mut timeline = self.begin_timeline(name);
        let Ready { vmm, synced } = self.preflight(&row).await?;
        report(name, &synced);
        let _holding = self.0.holding.lock(name.as_str()).await;
        // If it was ended meanwhile, nobody would give back what is taken now. From here on who does waits for the lock.
        self.check_unit(name, caller).await?;
        self.check_whole(name)?;
        // Nothing of what it holds changes any more.
        let row = self.to_start(self.get(name)?);
        let held = match self.hold(&row, caller.uid).await {
            Ok(held) => held,
            Err(error) => {
                self.let_go(name).await;
                return Err(error);
            }
        };
        timeline.push((NETWORK.to_owned(), held.network_usec));
        self.forget_paused(name);
        if self.is_read(name) {
            // That is no run of its own.
            return self.launch_plan(&row, &held, vmm.as_ref(), synced, timeline);
        }
        let address6 = held.network.as_ref().and_then(|lease| lease.address6.as_deref());
        let run = Run {
            vmm: vmm.choice(),
            spec: row.spec.clone(),
            restored: self.0.disks.restore(name).is_some(),
            address6: address6.map(plan::parse).transpose()?,
        };
        let row = self.0.store.mark_started(name, now_usec(), run).await?;
        self.changed(
            name,
            vec![
                ("StartedTimestamp", row.started_usec.unwrap_or(0).into()),
                ("Address6", zbus::Str::from(row.shown_address6()).into()),
            ],
        );
        failpoint!("start.marked");
        tracing::debug!(vm = name.as_str(), vmm = vmm.name(), "prepared");
        self.launch_plan(&row, &held, vmm.as_ref(), synced, timeline)
    }

    fn check_whole(&self, name: &VmName) -> Result<()> {
        if self.get(name)?.whole {
            return Ok(());
        }
        Err(ErrorKind::NotReady.error(format!(
            "{name} is being created or deleted: wait for that, or finish it with `banger vm reconcile`"
        )))
    }

    /// Takes what the VM needs while it runs, one thing after the other.
    async fn hold(&self, row: &VmRow, uid: u32) -> Result<Held> {
        let name = &row.name;
        let boot = self.0.peers.lease_image(name.as_str(), &row.image_id, &row.kernel).await?;
        failpoint!("start.leased");
        self.check_volumes(row).await?;
        self.make_disks(row).await?;
        failpoint!("start.disks");
        self.0.disks.grant(name, &row.spec, Some(uid))?;
        failpoint!("start.granted");
        self.0.units.set_limits(name, &row.spec.limits).await?;
        failpoint!("start.limits");
        if let Some(start) = lock(&self.0.starts).get(name) {
            start.progress.stage(Stage::Network.as_str());
        }
        let network_usec = now_usec();
        let network = if row.spec.network {
            Some(self.0.peers.acquire_network(name.as_str(), row.address, uid, &row.spec.policy()).await?)
        } else {
            None
        };
        failpoint!("start.network");
        self.listen(row).await?;
        failpoint!("start.forwards");
        Ok(Held { boot, network, network_usec })
    }

    /// Gives back what [`Supervisor::hold`] took, in reverse. The image stays leased as long as
    /// there is the VM.
    async fn let_go(&self, name: &VmName) {
        if let Err(error) = self.give_back(name).await {
            tracing::warn!(vm = name.as_str(), "cannot give back what it held: {error}");
        }
    }

    /// The caller has the VM's lock of `holding`.
    pub(super) async fn give_back(&self, name: &VmName) -> Result<()> {
        self.end_forwards(name).await?;
        failpoint!("release.forwards");
        self.0.peers.release_network(name.as_str()).await?;
        failpoint!("release.network");
        match self.get(name) {
            Ok(row) => self.0.disks.grant(name, &self.to_start(row).spec, None),
            // It was deleted meanwhile, and its disks with it.
            Err(_) => Ok(()),
        }
    }

    fn launch_plan(
        &self,
        row: &VmRow,
        held: &Held,
        vmm: &dyn Vmm,
        synced: Synced,
        timeline: Timeline,
    ) -> Result<LaunchPlan> {
        let disks = self.0.disks.of(&row.name, &row.spec);
        let machine =
            plan::machine(row, &held.boot, held.network.as_ref(), disks, self.0.disks.restore(&row.name));
        let warnings = synced.warnings.clone();
        let config = plan::guest_config(row, &held.boot, held.network.as_ref(), vmm.power_off(), synced)?;
        let plan = vmm.plan(&machine);
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let helpers = plan.helpers.into_iter().map(|helper| (helper.command, text(&helper.ready))).collect();
        Ok(LaunchPlan {
            files: plan.files.into_iter().collect(),
            links: plan.links.into_iter().map(|(name, target)| (name, text(&target))).collect(),
            pipes: plan.pipes,
            helpers,
            command: plan.main,
            guest_config: plan::serialize(&config)?,
            warnings,
            timeline,
        })
    }

    /// Looks whether the VM can start at all, before anything is taken for it.
    ///
    /// # Errors
    /// One that names everything that is wrong, with the kind of the first.
    async fn preflight(&self, row: &VmRow) -> Result<Ready> {
        let host = probe::host();
        let vmm = banger_vmm::choose(row.spec.vmm, &host)
            .map_err(|missing| ErrorKind::VmmMissing.error(missing.to_string()));
        let mut wrong = Vec::new();
        wrong.extend(vmm.as_ref().err().cloned());
        wrong.extend(self.0.disks.check_room(&row.name).err());
        wrong.extend(plan::check_memory(row.spec.memory, rustix::system::sysinfo().totalram).err());
        wrong.extend(self.check_kernel(row, vmm.as_ref().ok().map(|vmm| vmm.name())).await.err());
        if row.spec.network {
            wrong.extend(self.0.peers.range().await.err());
        }
        let synced = synced().await;
        wrong.extend(synced.as_ref().err().cloned());
        match (vmm, synced, wrong.as_slice()) {
            (Ok(vmm), Ok(synced), []) => Ok(Ready { vmm, synced }),
            (_, _, [only]) => Err(only.clone()),
            (_, _, several) => {
                let all: Vec<&str> = several.iter().map(Error::message).collect();
                Err(ErrorKind::NotReady.error(format!("{} cannot start: {}", row.name, all.join("; "))))
            }
        }
    }

    /// Looks whether the kernel can do what the machine needs; one of which nothing is known may.
    async fn check_kernel(&self, row: &VmRow, vmm: Option<&str>) -> Result<()> {
        let (features, rootfs) = self.0.peers.boot_features(&row.kernel, &row.image_id).await?;
        let Some(vmm) = vmm.filter(|_| !features.is_empty()) else { return Ok(()) };
        let needs = Needs { vmm, network: row.spec.network, rootfs: &rootfs };
        match kernel::missing(&features, needs) {
            missing if missing.is_empty() => Ok(()),
            missing => Err(ErrorKind::KernelUnsupported.error(format!(
                "kernel {} lacks {}, which a VM on {} needs: choose another with --kernel, or import one with these",
                row.kernel,
                missing.join(", "),
                vmm
            ))),
        }
    }

    /// What keeps a VM from starting, empty if nothing does; and what it would start without.
    pub async fn check(&self, name: &VmName) -> Result<(Vec<Error>, Vec<String>)> {
        let row = self.get(name)?;
        Ok(match self.preflight(&row).await {
            Ok(ready) => (Vec::new(), ready.synced.warnings),
            Err(error) => (vec![error], Vec::new()),
        })
    }

    /// For the VM's unit, after the end of its VMM: gives back what only a running VM needs, and
    /// judges how it ended. `result` is `$SERVICE_RESULT`.
    pub async fn release(
        &self,
        name: &VmName,
        result: &str,
        goodbye: &str,
        caller: Caller,
    ) -> Result<Verdict> {
        self.check_unit(name, caller).await?;
        failpoint!("release.begun");
        self.keep_timeline(name);
        let asked = self.0.units.is_stop_asked(name).await?;
        let _holding = self.0.holding.lock(name.as_str()).await;
        let verdict = match self.get(name) {
            Ok(_) if self.is_read(name) => {
                Verdict { failed: false, again: false, reason: "its disk was read" }
            }
            Ok(row) => {
                let end = End { result, goodbye: Goodbye::parse(goodbye), asked };
                let mut verdict = judge(end, row.spec.restart);
                if let Some(reason) = lock(&self.0.reasons).get(name).filter(|_| asked) {
                    verdict.reason = reason;
                }
                let usec = now_usec();
                self.0.store.mark_ended(name, Ended { usec, reason: verdict.reason.to_owned() }).await?;
                let reason = zbus::Str::from(verdict.reason).into();
                self.changed(name, vec![("EndedTimestamp", usec.into()), ("EndReason", reason)]);
                verdict
            }
            // It is being deleted.
            Err(_) => Verdict { failed: false, again: false, reason: "deleted" },
        };
        failpoint!("release.marked");
        self.give_back(name).await?;
        self.forget_paused(name);
        // It was meant for the run that is over, if for any.
        self.0.disks.forget_restore(name).await?;
        failpoint!("release.done");
        // The last thing: if this is cut off before, the unit asks once more.
        let (vm, reason) = (name.as_str(), verdict.reason);
        note(&if verdict.failed { Event::VmFailed { vm, reason } } else { Event::VmStopped { vm, reason } });
        // Whoever wants it down may have come meanwhile.
        if verdict.again && !self.0.units.is_stop_asked(name).await? {
            tracing::info!(vm = name.as_str(), "starting again: {}", verdict.reason);
            self.0.units.start_again(name).await?;
        }
        Ok(verdict)
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

/// What all guests are brought up with, as the host has it now.
pub(super) async fn synced() -> Result<Synced> {
    sync::read(&Config::load()?).await
}

pub(super) fn report(name: &VmName, synced: &Synced) {
    for warning in &synced.warnings {
        tracing::warn!(vm = name.as_str(), "{warning}");
    }
}
