//! VMs whose time is up, and VMs that nobody uses. A timer of systemd asks for this, as vmd itself
//! does not stay.

use std::time::Duration;

use banger_api::{Result, now_usec};
use banger_core::health::Health;
use banger_core::name::VmName;
use banger_core::spec::Expiry;
use banger_core::vm::State;
use futures_util::future::join_all;
use tokio::time::timeout;

use super::idle::{self, Sample, Samples};
use super::stats::monotonic_usec;
use super::{Supervisor, lock};
use crate::config::{Config, Reap};
use crate::store::VmRow;

/// How long a guest may take to say which commands run in it.
const GUEST: Duration = Duration::from_secs(5);

impl Supervisor {
    /// Stops or deletes every VM whose time is up, and stops those that are idle for longer than the
    /// admin likes; each in the background, as a guest may take its time. Returns their names.
    pub async fn reap(&self) -> Result<Vec<String>> {
        let mut reaped = self.reap_over().await?;
        reaped.extend(self.reap_idle(&Config::load()?.reap).await?);
        Ok(reaped)
    }

    async fn reap_over(&self) -> Result<Vec<String>> {
        let now = now_usec();
        let mut reaped = Vec::new();
        for row in self.0.store.list() {
            let state = self.state(&row);
            // The time of one that starts begins anew.
            let is_on_its_way = matches!(state, State::Starting | State::Stopping);
            if !is_over(&row, now) || is_on_its_way || (row.spec.expiry == Expiry::Stop && !state.is_up()) {
                continue;
            }
            tracing::info!(vm = row.name.as_str(), "its time of {} s is up", row.spec.ttl);
            if state.is_up() {
                self.put_down_job(row.name.clone(), Cause::Over).await;
            } else if let Err(error) = self.put_down(&row.name, Cause::Over).await {
                // The others' time is up all the same, and the timer comes again.
                tracing::warn!(vm = row.name.as_str(), "cannot delete it: {error}");
                continue;
            }
            reaped.push(row.name.to_string());
        }
        Ok(reaped)
    }

    async fn reap_idle(&self, limits: &Reap) -> Result<Vec<String>> {
        if limits.idle == 0 {
            return Ok(Vec::new());
        }
        let path = self.0.context.runtime_dir.join("idle.json");
        let before = idle::load(&path)?;
        let rows = self.0.store.list();
        // Whoever waits for room has something to do.
        let works = |row: &&VmRow| self.state(row) == State::Running && self.health(row) != Health::Stalled;
        let running = rows.iter().filter(works);
        let seen = running.map(|row| async {
            let sample = self.look(row, before.get(&row.name), limits.idle_cpu).await;
            sample.map(|sample| (row.name.clone(), sample))
        });
        let samples: Samples = join_all(seen).await.into_iter().flatten().collect();
        idle::save(&path, &samples)?;
        let mut reaped = Vec::new();
        for (name, sample) in samples {
            let seconds = sample.idle_seconds();
            if seconds >= limits.idle {
                tracing::info!(vm = name.as_str(), "idle for {seconds} s: stopping it");
                reaped.push(name.to_string());
                self.put_down_job(name, Cause::Idle { run: sample.run() }).await;
            }
        }
        Ok(reaped)
    }

    /// Looks whether a VM does something. Nothing is known of one that systemd does not account for.
    async fn look(&self, row: &VmRow, before: Option<&Sample>, percent: u32) -> Option<Sample> {
        let cpu_usec = self.0.units.accounting(&row.name).await.ok()?.cpu_usec?;
        let mut sample = Sample::after(before, row.started_usec, monotonic_usec(), cpu_usec, percent);
        if !sample.is_busy()
            && let Some(started_usec) = self.last_command(&row.name).await
        {
            sample.was_busy(now_usec().saturating_sub(started_usec));
        }
        Some(sample)
    }

    /// When the last command was started in a guest, if it says so.
    async fn last_command(&self, name: &VmName) -> Option<u64> {
        let asked = timeout(GUEST, async { self.agent(name).await.ok()?.list().await.ok() });
        asked.await.ok()??.into_iter().map(|(.., started_usec)| started_usec).max()
    }

    async fn put_down_job(&self, name: VmName, cause: Cause) {
        let (this, subject) = (self.clone(), name.to_string());
        let work = |progress: banger_daemon::Progress| async move {
            progress.stage("stop");
            this.put_down(&name, cause).await?;
            Ok(name.to_string())
        };
        self.0.context.jobs.start(cause.kind(), &subject, work).await;
    }

    /// Ends a VM's run, and lets the run's end have that reason; unless somebody who had the VM's lock before wants it
    /// to go on.
    async fn put_down(&self, name: &VmName, cause: Cause) -> Result<()> {
        let _guard = self.lock(name).await;
        let Ok(row) = self.get(name) else { return Ok(()) };
        if !cause.holds(&row) {
            return Ok(());
        }
        match State::of(&self.0.units.active_state(name).await?, true) {
            // The timer comes again.
            State::Starting | State::Stopping => return Ok(()),
            State::Running => {
                lock(&self.0.reasons).insert(name.clone(), cause.reason());
                let stopped = self.stop_locked(name, None).await;
                lock(&self.0.reasons).remove(name);
                stopped?;
            }
            _ => {}
        }
        if cause.deletes(&row) { self.unpublish(name).await } else { Ok(()) }
    }
}

/// Why a VM is put down.
#[derive(Debug, Clone, Copy)]
enum Cause {
    Over,
    /// In the run that began then.
    Idle {
        run: Option<u64>,
    },
}

impl Cause {
    /// Of the job.
    fn kind(self) -> &'static str {
        match self {
            Cause::Over => "expire",
            Cause::Idle { .. } => "idle",
        }
    }

    /// How the run ends.
    fn reason(self) -> &'static str {
        match self {
            Cause::Over => "stopped, as its time was up",
            Cause::Idle { .. } => "stopped, as it was idle",
        }
    }

    /// Whether it still is one: who starts the VM again, or gives it more time, wants it.
    fn holds(self, row: &VmRow) -> bool {
        match self {
            Cause::Over => is_over(row, now_usec()),
            Cause::Idle { run } => row.started_usec == run,
        }
    }

    fn deletes(self, row: &VmRow) -> bool {
        matches!(self, Cause::Over) && row.spec.expiry == Expiry::Delete
    }
}

/// Whether a VM has had its time at `now`, microseconds since 1970.
fn is_over(row: &VmRow, now: u64) -> bool {
    const USEC: u64 = 1_000_000;
    let since = row.started_usec.unwrap_or(row.created_usec);
    row.spec.ttl > 0 && now >= since.saturating_add(row.spec.ttl.saturating_mul(USEC))
}
