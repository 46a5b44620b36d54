//! Control of a running VMM through the socket in its runtime directory.
//!
//! QEMU is spoken to by QMP, Firecracker by HTTP; [`Control`] hides which it is. QEMU serves one
//! client at a time, so keep a [`Control`] for one operation only. Nothing here outlives the process
//! that calls it: a caller that dies in the middle of a [`Control::snapshot`] leaves a paused guest,
//! which [`Control::resume`] sets right.

mod firecracker;
mod qmp;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::RateLimit;
use firecracker::Api;
use qmp::Qmp;
pub use qmp::{finish, stalls};

/// Names of the VMMs' sockets in the runtime directory.
pub const QEMU_SOCKET: &str = "qmp.sock";
pub const FIRECRACKER_SOCKET: &str = "firecracker.sock";

/// Name of the socket at which QEMU tells a second client what happens, once it was sent [`QEMU_HELLO`].
pub const QEMU_EVENTS: &str = "events.sock";
pub const QEMU_HELLO: &[u8] = b"{\"execute\": \"qmp_capabilities\"}\n";
/// Has a guest go on that QEMU has stopped: what it could not write is written again.
pub const QEMU_GO_ON: &[u8] = b"{\"execute\": \"cont\"}\n";

/// Name of the file in the runtime directory that holds the [`Restore`] of a VM that starts from
/// a snapshot.
pub const RESTORE: &str = "restore.json";

/// Names of a snapshot's files in its directory: what the devices and CPUs hold (for QEMU the guest's
/// memory, too), and, for Firecracker alone, the guest's memory.
pub const STATE: &str = "state";
pub const MEMORY: &str = "memory";

/// How long a VMM may take to answer what it need not work for.
const ANSWER: Duration = Duration::from_secs(10);

/// How long writing or loading a guest's memory may take.
const TRANSFER: Duration = Duration::from_secs(600);

/// How often a VMM is asked for what it does not tell.
const POLL: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("{vmm} cannot do this: {what}")]
    Unsupported { what: String, vmm: &'static str },
    /// There is no VMM, or it does not answer in time, or not by its protocol.
    #[error("the VMM cannot be reached: {0}")]
    Unreachable(String),
    /// In the words of the VMM.
    #[error("the VMM refused: {0}")]
    Refused(String),
    /// A file of a snapshot, or the caller's own part of it.
    #[error("the snapshot failed: {0}")]
    Snapshot(#[source] io::Error),
}

pub type Result<T> = std::result::Result<T, ControlError>;

/// What a guest does, as its VMM says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// Not begun, or still being restored.
    Starting,
    Running,
    /// Its CPUs stand still, for whichever reason.
    Paused,
    /// Shut down or panicked.
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotKind {
    Full,
    /// Without the memory that was never touched, where the VMM can leave it out; such a snapshot is
    /// as complete as any. Only for a guest that has booted in this VMM, and only while nothing of it
    /// is swapped out: the VMM takes what is not in the host's memory for untouched.
    Sparse,
}

/// What to start a VM from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// Directory of the snapshot.
    pub dir: PathBuf,
    /// The TAP of this VM, which is another than that of the snapshot when the VM is a fork.
    pub tap: Option<String>,
}

/// A running VMM.
#[derive(Debug)]
pub enum Control {
    Qemu(Qmp),
    Firecracker(Api),
}

/// Calls the same method on whichever VMM it is.
macro_rules! either {
    ($self:ident, $vmm:ident => $call:expr) => {
        match $self {
            Control::Qemu($vmm) => $call,
            Control::Firecracker($vmm) => $call,
        }
    };
}

impl Control {
    /// The VMM whose socket is in `runtime_dir`.
    ///
    /// # Errors
    /// [`ControlError::Unreachable`], also when another client of QEMU keeps it busy.
    pub async fn connect(runtime_dir: &Path) -> Result<Self> {
        if runtime_dir.join(FIRECRACKER_SOCKET).exists() {
            return Ok(Control::Firecracker(Api::connect(runtime_dir).await?));
        }
        Ok(Control::Qemu(Qmp::connect(runtime_dir).await?))
    }

    pub async fn state(&mut self) -> Result<RunState> {
        either!(self, vmm => vmm.state().await)
    }

    /// Stops the guest's CPUs. No error if they stand still already.
    pub async fn pause(&mut self) -> Result<()> {
        either!(self, vmm => vmm.pause().await)
    }

    /// Lets the guest's CPUs run. No error if they do.
    pub async fn resume(&mut self) -> Result<()> {
        either!(self, vmm => vmm.resume().await)
    }

    /// Presses the machine's power button (QEMU), or Ctrl-Alt-Del (Firecracker, which has none: a
    /// guest that restarts ends its Firecracker). What comes of it is up to the guest.
    pub async fn power_button(&mut self) -> Result<()> {
        either!(self, vmm => vmm.power_button().await)
    }

    /// Tells the guest that a disk is `bytes` long now. Firecracker looks at the file, which must have
    /// been made longer before; QEMU does that itself if it was not.
    pub async fn grow_disk(&mut self, id: &str, bytes: u64) -> Result<()> {
        either!(self, vmm => vmm.grow_disk(id, bytes).await)
    }

    /// Asks the guest by its balloon to make do with `bytes` of its memory. Guests follow when they
    /// can, and only those with a driver for it.
    ///
    /// # Errors
    /// [`ControlError::Refused`] by Firecracker for a guest without that driver.
    pub async fn set_memory(&mut self, bytes: u64) -> Result<()> {
        either!(self, vmm => vmm.set_memory(bytes).await)
    }

    /// Replaces the limit of the disk with this id; the default is none.
    pub async fn limit_disk(&mut self, id: &str, limit: RateLimit) -> Result<()> {
        either!(self, vmm => vmm.limit_disk(id, limit).await)
    }

    /// Writes a snapshot into the directory `dir`, and runs `disks`, which copies the disks, while the
    /// guest stands still. The guest goes on afterwards as it did before, whatever happened.
    ///
    /// Connections into the guest break off: with QEMU before the snapshot, with Firecracker when
    /// the guest goes on. With QEMU it takes about seven seconds more, in which the guest runs on, for
    /// the vsock device has to be unplugged.
    ///
    /// Firecracker opens the files itself: it must be able to see and to write them.
    ///
    /// # Errors
    /// [`ControlError::Unsupported`] for a paused guest of QEMU.
    pub async fn snapshot(
        &mut self,
        dir: &Path,
        kind: SnapshotKind,
        disks: impl Future<Output = io::Result<()>>,
    ) -> Result<()> {
        either!(self, vmm => vmm.snapshot(dir, kind, disks).await)
    }

    /// Loads a snapshot into a VMM that was started for it, and lets the guest run.
    ///
    /// # Errors
    /// The VMM has to be ended then; some end by themselves.
    pub async fn restore(&mut self, restore: &Restore) -> Result<()> {
        either!(self, vmm => vmm.restore(restore).await)
    }

    /// Ends the VMM without asking the guest.
    ///
    /// # Errors
    /// [`ControlError::Unsupported`] with Firecracker, which has to be killed.
    pub async fn quit(&mut self) -> Result<()> {
        either!(self, vmm => vmm.quit().await)
    }
}

fn unreachable(error: impl std::fmt::Display) -> ControlError {
    ControlError::Unreachable(error.to_string())
}

/// `what`, but no longer than `within`.
async fn deadline<T>(within: Duration, what: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(within, what)
        .await
        .unwrap_or_else(|_| Err(unreachable(format_args!("no answer in {} s", within.as_secs()))))
}
