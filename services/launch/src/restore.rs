//! Loads a snapshot into the VMM that `run` became, and says `READY=1` when the guest goes on. What the guest says of
//! itself waits until somebody listens.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use banger_core::event::Event;
use banger_core::name::VmName;
use banger_core::timeline;
use banger_vmm::control::{Control, ControlError, RESTORE, Restore};
use rustix::process::{Pid, Signal, getppid, kill_process};

use crate::timeline::Timeline;
use crate::{attend, block_on, note};

/// How long the VMM may take to open its socket, and how often it is tried.
const SOCKET: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(2);

pub fn restore(name: &VmName, runtime_dir: &Path) -> Result<()> {
    // `run` started this process and is the VMM now, or about to be.
    let vmm = getppid();
    let mut timeline = Timeline::new(runtime_dir);
    timeline.mark(timeline::RESTORE);
    let restored = load(runtime_dir);
    match &restored {
        Ok(()) => {
            timeline.mark(timeline::READY);
            note(&Event::VmReady { vm: name.as_str() });
            attend::tell(&[attend::READY.to_owned()]);
        }
        Err(error) => {
            attend::tell(&[format!("STATUS=failed: the snapshot cannot be loaded: {error:#}")]);
            end(vmm);
        }
    }
    restored
}

fn load(runtime_dir: &Path) -> Result<()> {
    let path = runtime_dir.join(RESTORE);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let restore: Restore = serde_json::from_str(&text).context("not what to restore")?;
    block_on(async {
        let mut control = connect(runtime_dir).await?;
        Ok(control.restore(&restore).await?)
    })
}

async fn connect(runtime_dir: &Path) -> Result<Control> {
    let connected = async {
        loop {
            match Control::connect(runtime_dir).await {
                Err(ControlError::Unreachable(_)) => tokio::time::sleep(RETRY).await,
                other => return other,
            }
        }
    };
    let control =
        tokio::time::timeout(SOCKET, connected).await.context("the VMM does not open its socket")?;
    Ok(control?)
}

/// A VMM without its guest is of no use. It may have ended already.
fn end(vmm: Option<Pid>) {
    let parent = getppid();
    if let (Some(vmm), true) = (vmm, parent == vmm && parent != Some(Pid::INIT)) {
        let _ = kill_process(vmm, Signal::TERM);
    }
}
