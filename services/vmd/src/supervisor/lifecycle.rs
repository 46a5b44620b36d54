//! Start, stop and everything between. Each VM has a lock of its own, which is all that any of
//! this waits for.

use std::sync::Arc;
use std::time::Duration;

use banger_api::{Error, ErrorKind, Result, now_usec};
use banger_core::event::Event;
use banger_core::guest;
use banger_core::name::VmName;
use banger_core::vm::{Stage, State};
use banger_daemon::event::note;
use banger_daemon::{Progress, failpoint};
use tokio::sync::Notify;
use zbus::OwnedObjectPath;

use super::control::vmm_error;
use super::{Start, Supervisor, lock, runtime_dir, vm_path};
use crate::effects::runtime;

/// The result of a start that a stop or a delete cut short.
const INTERRUPTED: &str = "interrupted";

impl Supervisor {
    /// Starts the job that starts a VM, unless it runs.
    pub async fn start_job(&self, name: VmName) -> Result<(u32, OwnedObjectPath)> {
        self.get(&name)?;
        let this = self.clone();
        let subject = name.to_string();
        let work = |progress: Progress| async move {
            let _guard = progress.cancelable(async { Ok(this.lock(&name).await) }).await?;
            this.bring_up(&name, &progress).await?;
            Ok(name.to_string())
        };
        Ok(self.0.context.jobs.start("start", &subject, work).await)
    }

    /// As systemd does with units, whom this asks, since it may have changed its mind an instant ago: one that
    /// runs is what was wanted, and one on its way is waited for.
    async fn bring_up(&self, name: &VmName, progress: &Progress) -> Result<()> {
        if !self.0.units.is_active(name).await? {
            return self.start_unit(name, progress).await;
        }
        match self.state_of(name)? {
            State::Paused => {
                Err(ErrorKind::VmPaused
                    .error(format!("{name} is paused; `banger resume {name}` lets it go on")))
            }
            _ => Ok(()),
        }
    }

    /// For whoever means a run of its own.
    ///
    /// # Errors
    /// `VmRunning` if somebody was quicker.
    pub(super) async fn start_locked(&self, name: &VmName, progress: &Progress) -> Result<()> {
        let state = self.state_of(name)?;
        if state.is_up() {
            return Err(ErrorKind::VmRunning.error(format!("{name} is {} already", state.as_str())));
        }
        self.start_unit(name, progress).await
    }

    pub(super) async fn start_unit(&self, name: &VmName, progress: &Progress) -> Result<()> {
        progress.stage(Stage::Start.as_str());
        failpoint!("start.begun");
        // Somebody wants it now: what it did before counts no longer against it.
        self.0.units.reset_failed(name).await;
        let interrupt = Arc::new(Notify::new());
        let requested_usec = now_usec();
        let start =
            Start { requested_usec, progress: progress.clone(), failure: None, interrupt: interrupt.clone() };
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
                failpoint!("start.ready");
                progress.stage(Stage::Ready.as_str());
                Ok(())
            }
            Ok(result) if result == INTERRUPTED => {
                self.0.units.end(name).await?;
                Err(ErrorKind::VmNotRunning.error(format!("{name} was stopped before it was up")))
            }
            Ok(result) => Err(failure.unwrap_or_else(|| self.boot_failure(name, &result, requested_usec))),
            Err(error) => {
                if error.kind() == ErrorKind::JobCanceled {
                    self.0.units.end(name).await?;
                }
                Err(error)
            }
        }
    }

    /// Why a VM did not come up that was wanted at this time (microseconds since 1970). How it ended before that says
    /// nothing: a unit that systemd does not even begin to start has no end of its own.
    pub(super) fn boot_failure(&self, name: &VmName, result: &str, wanted_usec: u64) -> Error {
        let status = self.0.units.view(name).status;
        let ended = self.get(name).ok().and_then(|row| row.ended.filter(|ended| ended.usec >= wanted_usec));
        let ended = ended.map_or_else(|| format!("its unit ended with {result}"), |ended| ended.reason);
        let reason = match status.strip_prefix("failed: ") {
            Some(reason) => reason.to_owned(),
            None if is_stage(&status) => format!("{ended} (in the stage {status})"),
            None => ended,
        };
        ErrorKind::BootFailed
            .error(format!("{name} did not come up: {reason}; see journalctl -u {}", name.unit()))
    }

    /// Starts the job that stops a VM, if it runs. After `timeout` the guest is not asked any longer.
    pub async fn stop_job(&self, name: VmName, timeout: Option<Duration>) -> Result<(u32, OwnedObjectPath)> {
        self.get(&name)?;
        let this = self.clone();
        let subject = name.to_string();
        let work = |progress: Progress| async move {
            progress.stage("stop");
            this.interrupt(&name);
            let _guard = this.lock(&name).await;
            if this.0.units.is_up(&name).await? {
                this.stop_locked(&name, timeout).await?;
            }
            Ok(name.to_string())
        };
        Ok(self.0.context.jobs.start("stop", &subject, work).await)
    }

    /// # Errors
    /// `VmNotRunning`.
    pub(super) fn check_up(&self, name: &VmName) -> Result<State> {
        let state = self.state_of(name)?;
        if state.is_up() {
            return Ok(state);
        }
        Err(ErrorKind::VmNotRunning
            .error(format!("{name} does not run, it is {}; `banger start {name}` starts it", state.as_str())))
    }

    pub(super) async fn stop_locked(&self, name: &VmName, timeout: Option<Duration>) -> Result<()> {
        let stop = async {
            // A guest that stands still cannot shut down. Its unit tries as well, and has it killed in the end.
            if self.state_of(name)? == State::Paused
                && let Err(error) = self.resume_locked(name).await
            {
                tracing::warn!(vm = name.as_str(), "cannot be resumed before it is stopped: {error}");
            }
            failpoint!("stop.begun");
            self.0.units.stop(name).await
        };
        let stopped = match timeout {
            None => Ok(stop.await),
            // By value: a call that is cut off and kept holds up all others on the connection.
            Some(timeout) => tokio::time::timeout(timeout, stop).await,
        };
        match stopped {
            Ok(stopped) => stopped?,
            Err(_) => {
                tracing::warn!(vm = name.as_str(), "did not stop in time; killing it");
                self.0.units.end(name).await?;
            }
        }
        failpoint!("stop.down");
        Ok(())
    }

    /// Starts the job that stops a VM, if it runs, and starts it again.
    pub async fn restart_job(
        &self,
        name: VmName,
        timeout: Option<Duration>,
    ) -> Result<(u32, OwnedObjectPath)> {
        self.get(&name)?;
        let this = self.clone();
        let subject = name.to_string();
        let work = |progress: Progress| async move {
            progress.stage("stop");
            this.interrupt(&name);
            let _guard = this.lock(&name).await;
            if this.0.units.is_up(&name).await? {
                match this.stop_locked(&name, timeout).await {
                    // It comes up again already.
                    Err(error) if error.kind() == ErrorKind::VmRunning => {}
                    stopped => stopped?,
                }
            }
            this.bring_up(&name, &progress).await?;
            Ok(name.to_string())
        };
        Ok(self.0.context.jobs.start("restart", &subject, work).await)
    }

    /// Sends a signal to the VMM, whatever else is under way.
    pub async fn kill(&self, name: &VmName, signal: i32) -> Result<()> {
        if !(1..=64).contains(&signal) {
            return Err(ErrorKind::InvalidArgs.error(format!("there is no signal {signal}: use 1 to 64")));
        }
        self.check_up(name)?;
        self.interrupt(name);
        self.0.units.signal(name, signal).await
    }

    /// Makes the guest's CPUs stand still.
    pub async fn pause(&self, name: &VmName) -> Result<()> {
        self.get(name)?;
        let _guard = self.lock(name).await;
        match self.state_of(name)? {
            State::Paused => return Ok(()),
            State::Running => {}
            state => {
                return Err(ErrorKind::VmNotRunning
                    .error(format!("{name} is {}: only a running VM can be paused", state.as_str())));
            }
        }
        let mut control = self.control(name).await?;
        self.mark_paused(name)?;
        failpoint!("pause.marked");
        if let Err(error) = control.pause().await {
            // QEMU serves one client at a time.
            drop(control);
            self.wake(name).await;
            return Err(vmm_error(error));
        }
        failpoint!("pause.paused");
        Ok(())
    }

    pub async fn resume(&self, name: &VmName) -> Result<()> {
        self.get(name)?;
        let _guard = self.lock(name).await;
        match self.state_of(name)? {
            State::Running => Ok(()),
            State::Paused => self.resume_locked(name).await,
            state => Err(ErrorKind::VmNotRunning.error(format!("{name} is {}, not paused", state.as_str()))),
        }
    }

    /// For a VM whose VMM may have done what it did not answer: one that stands still is not to be taken for running.
    pub(super) async fn wake(&self, name: &VmName) {
        if let Err(error) = self.resume_locked(name).await {
            tracing::warn!(vm = name.as_str(), "it may stand still: {error}");
        }
    }

    async fn resume_locked(&self, name: &VmName) -> Result<()> {
        self.control(name).await?.resume().await.map_err(vmm_error)?;
        failpoint!("resume.resumed");
        self.unmark_paused(name)?;
        Ok(())
    }

    /// Before the VM is paused: to resume one that runs does no harm, but nobody would resume one
    /// that stands still and is taken for running; and nobody is to call into it any more.
    pub(super) fn mark_paused(&self, name: &VmName) -> Result<()> {
        runtime::mark_paused(&runtime_dir(name))?;
        lock(&self.0.paused).insert(name.clone());
        self.state_changed(name);
        Ok(())
    }

    /// Once the VM is not paused any longer.
    pub(super) fn unmark_paused(&self, name: &VmName) -> Result<()> {
        runtime::unmark_paused(&runtime_dir(name))?;
        self.forget_paused(name);
        Ok(())
    }

    /// For a VM whose run is over, or not begun: its mark goes, or went, with its runtime directory.
    pub(super) fn forget_paused(&self, name: &VmName) {
        if lock(&self.0.paused).remove(name) {
            self.state_changed(name);
        }
    }

    /// A VM that is being started need not come up before it is stopped, and one that runs only to be
    /// read need not be read to the end.
    fn interrupt(&self, name: &VmName) {
        if let Some(reading) = lock(&self.0.readings).get(name) {
            reading.notify_one();
        }
        if let Some(start) = lock(&self.0.starts).get(name) {
            start.interrupt.notify_one();
        }
    }

    /// Throws away what the guest wrote: the next start begins with the image as it is. The work
    /// disk and volumes stay.
    pub async fn reset(&self, name: &VmName) -> Result<()> {
        self.get(name)?;
        let _guard = self.lock(name).await;
        // Its unit needs nobody's lock to start, but this one for its disks.
        let _holding = self.0.holding.lock(name.as_str()).await;
        let row = self.get(name)?;
        if self.0.units.is_up(name).await? {
            return Err(ErrorKind::VmRunning.error(format!("{name} runs: stop it before its disk is reset")));
        }
        self.0.disks.reset(name, &row.spec).await?;
        failpoint!("reset.done");
        note(&Event::VmReset { vm: name.as_str() });
        Ok(())
    }

    pub async fn delete(&self, name: &VmName, force: bool) -> Result<()> {
        self.get(name)?;
        if force {
            self.interrupt(name);
        }
        let _guard = self.lock(name).await;
        // Somebody may have been quicker.
        let state = self.state_of(name)?;
        if state.is_up() {
            if !force {
                return Err(ErrorKind::VmRunning
                    .error(format!("{name} is {}: stop it first, or use force", state.as_str())));
            }
            self.0.units.end(name).await?;
            failpoint!("delete.ended");
        }
        self.unpublish(name).await
    }

    /// Removes a VM that does not run: everything it holds first, its row last, so that its name
    /// is free only when nothing of it is left.
    ///
    /// [`Supervisor::lift_limits`] among the rest: systemd keeps limits until the next boot, for whoever
    /// gets the name next.
    pub(super) async fn unpublish(&self, name: &VmName) -> Result<()> {
        self.doom(name).await?;
        failpoint!("delete.doomed");
        self.forget_forwards(name).await?;
        failpoint!("delete.forwards");
        self.0.peers.release_network(name.as_str()).await?;
        failpoint!("delete.network");
        self.0.disks.remove(name).await?;
        failpoint!("delete.disks");
        self.0.peers.release_image(name.as_str()).await?;
        failpoint!("delete.image");
        self.0.units.reset_failed(name).await;
        self.lift_limits(name).await;
        self.forget_paused(name);
        self.forget_timeline(name);
        // Before it is true: if this is cut off here, the next reconciliation tells it again.
        note(&Event::VmDeleted { vm: name.as_str() });
        self.0.store.remove(name).await?;
        failpoint!("delete.row");
        self.0.units.forget(name);
        let path = vm_path(name);
        self.0.context.hub.remove(&path).await;
        self.signal("VmRemoved", name, path);
        self.leave_word();
        Ok(())
    }

    /// Decides that a VM goes: from here on it does not start, and whatever cuts this off, the next
    /// reconciliation goes on.
    async fn doom(&self, name: &VmName) -> Result<()> {
        let _holding = self.0.holding.lock(name.as_str()).await;
        // Its unit needs nobody's lock to start.
        if self.0.units.is_up(name).await? {
            return Err(ErrorKind::VmRunning
                .error(format!("{name} was started meanwhile: stop it first, or use force")));
        }
        self.0.store.set_whole(name, false).await.map(drop)
    }
}

/// Whether a unit's status is a stage's name.
fn is_stage(status: &str) -> bool {
    [Stage::Kernel, Stage::Ready].iter().any(|stage| stage.as_str() == status)
        || guest::STAGES.contains(&status)
}
