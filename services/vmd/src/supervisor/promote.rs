//! Images of what VMs' disks hold.
//!
//! The guest's agent writes its root filesystem to a stream, which goes to imaged as it is. While
//! a VM runs, nothing else that is done to it waits for that: if it goes down, the image is not
//! made. A VM that does not run is started for it, with nothing but the agent in it, and nobody is
//! told of that run: it has no start, no end and no network.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use banger_api::{Error, ErrorKind, ImageSettings, Result};
use banger_core::name::VmName;
use banger_core::vm::State;
use banger_daemon::{Progress, failpoint};
use tokio::sync::Notify;
use zbus::OwnedObjectPath;

use super::{Supervisor, lock, plan};
use crate::store::VmRow;

/// What is to become of a VM's disk.
#[derive(Debug)]
pub struct Promotion {
    /// Name of the image.
    pub image: String,
    /// Take the name from the image that has it.
    pub replace: bool,
    /// Where it is not to be like the VM's image.
    pub settings: ImageSettings,
}

impl Supervisor {
    /// Starts the job that makes an image of a VM's disk.
    pub async fn promote_job(&self, name: VmName, wanted: Promotion) -> Result<(u32, OwnedObjectPath)> {
        self.get(&name)?;
        if !wanted.replace {
            self.0.peers.check_image_name(&wanted.image).await?;
        }
        let (this, subject) = (self.clone(), name.to_string());
        let work = |progress: Progress| async move {
            this.promote(&name, &wanted, &progress).await?;
            tracing::info!(vm = name.as_str(), image = wanted.image, "promoted");
            Ok(wanted.image)
        };
        Ok(self.0.context.jobs.start("promote", &subject, work).await)
    }

    async fn promote(&self, name: &VmName, wanted: &Promotion, progress: &Progress) -> Result<()> {
        let guard = progress.cancelable(async { Ok(self.lock(name).await) }).await?;
        let row = self.get(name)?;
        match self.state(&row) {
            State::Running => {
                drop(guard);
                self.stream(&row, wanted, progress).await
            }
            State::Paused => Err(ErrorKind::VmPaused.error(format!(
                "{name} is paused, so that nobody in it can read its disk: resume it with `banger resume {name}`, or stop it"
            ))),
            state if state.is_up() => Err(ErrorKind::NotReady
                .error(format!("{name} is {}: wait until it is up, or down", state.as_str()))),
            _ => self.promote_stopped(&row, wanted, progress).await,
        }
    }

    /// Reads a VM, whose lock the caller holds, that runs for nothing else.
    async fn promote_stopped(&self, row: &VmRow, wanted: &Promotion, progress: &Progress) -> Result<()> {
        let name = &row.name;
        let interrupt = Arc::new(Notify::new());
        self.0.reading_marks.set(name)?;
        lock(&self.0.readings).insert(name.clone(), interrupt.clone());
        failpoint!("promote.marked");
        let read = async {
            self.start_locked(name, progress).await?;
            failpoint!("promote.started");
            tokio::select! {
                read = self.stream(row, wanted, progress) => read,
                () = interrupt.notified() => Err(went_down(name)),
            }
        };
        let read = read.await;
        let ended = self.end_reading(name).await;
        read.and(ended)
    }

    /// Has a VM, whose lock the caller holds, be as it was before it was read.
    async fn end_reading(&self, name: &VmName) -> Result<()> {
        // It may be deleted by now.
        if self.state_of(name).is_ok_and(State::is_up) {
            match self.stop_locked(name, None).await {
                // It comes up again for whoever wants that, as what it is.
                Err(error) if error.kind() == ErrorKind::VmRunning => {}
                stopped => stopped?,
            }
        }
        failpoint!("promote.stopped");
        self.0.reading_marks.clear(name)?;
        lock(&self.0.readings).remove(name);
        Ok(())
    }

    /// Ends what an instance before this one left.
    pub(super) fn end_readings(&self) {
        let names: Vec<VmName> = lock(&self.0.readings).keys().cloned().collect();
        for name in names {
            let (this, hold) = (self.clone(), self.0.context.idle.hold());
            tokio::spawn(async move {
                let _guard = this.lock(&name).await;
                if let Err(error) = this.end_reading(&name).await {
                    tracing::warn!(vm = name.as_str(), "it still runs, only to be read: {error}");
                }
                drop(hold);
            });
        }
    }

    /// Whether a VM runs, or is about to, only to be read.
    pub(super) fn is_read(&self, name: &VmName) -> bool {
        lock(&self.0.readings).contains_key(name)
    }

    /// A VM as it is to be started now.
    pub(super) fn to_start(&self, row: VmRow) -> VmRow {
        if self.is_read(&row.name) { VmRow { spec: plan::for_reading(&row.spec), ..row } } else { row }
    }

    async fn stream(&self, row: &VmRow, wanted: &Promotion, progress: &Progress) -> Result<()> {
        let name = &row.name;
        progress.stage("read");
        let archive = async { self.agent(name).await?.archive().await };
        let archive = UnixStream::from(progress.cancelable(archive).await?);
        let open = Wanted(archive.try_clone()?);
        failpoint!("promote.streaming");
        let imported = self.0.peers.import(OwnedFd::from(archive), wanted, &row.image_id, progress).await;
        drop(open);
        match imported {
            // Its stream ended too early.
            Err(error)
                if error.kind() == ErrorKind::InvalidImage && !self.0.units.is_active(name).await? =>
            {
                Err(went_down(name))
            }
            imported => imported,
        }
    }
}

/// A stream that ends, at both ends, once nobody wants it: imaged may be waiting for more of it.
struct Wanted(UnixStream);

impl Drop for Wanted {
    fn drop(&mut self) {
        // One that has ended by itself is no longer connected.
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

fn went_down(name: &VmName) -> Error {
    ErrorKind::VmNotRunning
        .error(format!("{name} went down before all of its disk was read: there is no image"))
}
