//! VMs whose time is up. A timer of systemd asks for this, as vmd itself does not stay.

use banger_api::Result;
use banger_core::name::VmName;
use banger_core::spec::Expiry;
use banger_daemon::jobs::now_usec;

use super::Supervisor;
use crate::store::VmRow;

impl Supervisor {
    /// Stops or deletes every VM whose time is up; each in the background, as a guest may take its
    /// time. Returns their names.
    pub async fn reap(&self) -> Result<Vec<String>> {
        let now = now_usec();
        let mut reaped = Vec::new();
        for row in self.0.store.list() {
            let up = self.state(&row).is_up();
            if !is_over(&row, now) || (row.spec.expiry == Expiry::Stop && !up) {
                continue;
            }
            tracing::info!(vm = row.name.as_str(), "its time of {} s is up", row.spec.ttl);
            if up {
                self.end_of_time(row.name.clone(), row.spec.expiry).await?;
            } else {
                self.delete(&row.name, false).await?;
            }
            reaped.push(row.name.to_string());
        }
        Ok(reaped)
    }

    async fn end_of_time(&self, name: VmName, expiry: Expiry) -> Result<()> {
        let (this, subject) = (self.clone(), name.to_string());
        let work = |progress: banger_daemon::Progress| async move {
            progress.stage("stop");
            this.stop_now(&name).await?;
            if expiry == Expiry::Delete {
                this.delete(&name, true).await?;
            }
            Ok(name.to_string())
        };
        self.0.context.jobs.start("expire", &subject, work).await;
        Ok(())
    }
}

/// Whether a VM has had its time at `now`, microseconds since 1970.
fn is_over(row: &VmRow, now: u64) -> bool {
    const USEC: u64 = 1_000_000;
    let since = row.started_usec.unwrap_or(row.created_usec);
    row.spec.ttl > 0 && now >= since.saturating_add(row.spec.ttl.saturating_mul(USEC))
}
