//! What vmd leaves and finds in the runtime directories of VMs, where the unit's attendant does the same.
//!
//! A directory is its VM's own and goes with its run, and a VMM may have been taken over by its guest: nothing
//! in it is followed or trusted beyond that VM.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind::{AlreadyExists, NotFound};
use std::path::Path;
use std::time::UNIX_EPOCH;

use banger_api::Result;
use banger_api::vm::{HEARTBEAT, PAUSE_MARK};

/// Whether the VM's CPUs stand still.
pub fn is_paused(directory: &Path) -> bool {
    directory.join(PAUSE_MARK).symlink_metadata().is_ok()
}

pub fn mark_paused(directory: &Path) -> Result<()> {
    // Made anew or not at all: a link would lead elsewhere.
    match OpenOptions::new().write(true).create_new(true).open(directory.join(PAUSE_MARK)) {
        Err(error) if error.kind() != AlreadyExists => Err(error.into()),
        _ => Ok(()),
    }
}

pub fn unmark_paused(directory: &Path) -> Result<()> {
    match fs::remove_file(directory.join(PAUSE_MARK)) {
        Err(error) if error.kind() != NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// When the guest last gave a sign of life, microseconds since 1970.
pub fn heartbeat(directory: &Path) -> Option<u64> {
    let modified = directory.join(HEARTBEAT).symlink_metadata().and_then(|file| file.modified()).ok()?;
    u64::try_from(modified.duration_since(UNIX_EPOCH).ok()?.as_micros()).ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_mark_stays_until_it_is_cleared() {
        let directory = tempfile::tempdir().expect("makes");
        let directory = directory.path();
        assert!(!is_paused(directory));
        unmark_paused(directory).expect("clears nothing");
        for _ in 0..2 {
            mark_paused(directory).expect("marks");
            assert!(is_paused(directory));
        }
        unmark_paused(directory).expect("clears");
        assert!(!is_paused(directory));
    }

    #[test]
    fn a_link_leads_nowhere() {
        let directory = tempfile::tempdir().expect("makes");
        let elsewhere = directory.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, directory.path().join(PAUSE_MARK)).expect("links");
        mark_paused(directory.path()).expect("is there");
        assert!(!elsewhere.exists());
        unmark_paused(directory.path()).expect("clears");
        assert!(!is_paused(directory.path()));
    }

    #[test]
    fn the_last_sign_of_life_is_the_time_of_a_file() {
        let directory = tempfile::tempdir().expect("makes");
        assert_eq!(heartbeat(directory.path()), None);
        let file = fs::File::create(directory.path().join(HEARTBEAT)).expect("creates");
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_007))
            .expect("sets");
        assert_eq!(heartbeat(directory.path()), Some(1_700_000_000_000_007));
    }
}
