//! The locks of workspaces: one file per VM, locked by flock(2).
//!
//! Whoever gets the lock gets the open file itself. The kernel releases it with the last copy of the descriptor, so
//! it outlives this service, and ends with whoever holds it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use banger_api::{Error, ErrorKind, Result};
use banger_core::name::VmName;
use banger_daemon::gate::Caller;

/// Longer than what is written by [`lock`].
const MAX_NOTE: u64 = 100;

/// Takes the lock, or says who has it.
///
/// # Errors
/// `WorkspaceBusy`.
pub fn lock(runtime: &Path, vm: &VmName, caller: Caller, shared: bool) -> Result<OwnedFd> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path(runtime, vm.as_str()))?;
    match if shared { file.try_lock_shared() } else { file.try_lock() } {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(busy(&mut file, vm)),
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    note(&mut file, caller, shared)?;
    Ok(file.into())
}

/// Removes the lock of a VM that is deleted, which nobody asks for any more.
pub fn forget(runtime: &Path, vm: &str) {
    if VmName::new(vm).is_ok() {
        let _ = std::fs::remove_file(path(runtime, vm));
    }
}

fn path(runtime: &Path, vm: &str) -> PathBuf {
    runtime.join(format!("workspace-{vm}"))
}

/// For whoever comes next.
fn note(file: &mut File, caller: Caller, shared: bool) -> io::Result<()> {
    let process = caller.pid.map(|pid| format!(", process {pid}")).unwrap_or_default();
    let work = if shared { "is read" } else { "is prepared" };
    file.set_len(0)?;
    file.write_all(format!("{work} by user {}{process}", caller.uid).as_bytes())
}

fn busy(file: &mut File, vm: &VmName) -> Error {
    let mut note = String::new();
    // Whoever holds the lock can write the file.
    let read = file.take(MAX_NOTE).read_to_string(&mut note);
    if read.is_err() || note.is_empty() || note.chars().any(char::is_control) {
        "is in use".clone_into(&mut note);
    }
    ErrorKind::WorkspaceBusy.error(format!("the workspace of VM {vm} {note}; try again when that has ended"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_writes_or_several_read() {
        let runtime = tempfile::tempdir().unwrap();
        let [web, db] = ["web", "db"].map(|name| VmName::new(name).unwrap());
        let caller = Caller { uid: 1000, pid: Some(7) };
        let take = |vm, shared| lock(runtime.path(), vm, caller, shared);
        let writer = take(&web, false).unwrap();
        let refused = take(&web, true).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::WorkspaceBusy);
        assert!(refused.message().contains("web is prepared by user 1000, process 7"), "{refused}");
        take(&db, false).unwrap();
        let copy = writer.try_clone().unwrap();
        drop(writer);
        assert!(take(&web, false).is_err(), "as long as anybody has it");
        drop(copy);
        let readers = [take(&web, true).unwrap(), take(&web, true).unwrap()];
        assert!(take(&web, false).unwrap_err().message().contains("is read by"));
        drop(readers);
        take(&web, false).unwrap();
    }
}
