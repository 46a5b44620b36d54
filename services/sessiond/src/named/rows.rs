//! What is on the disk of sessions: a directory for each, with its row.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use banger_api::{Error, Result};
use banger_core::name::VmName;
use banger_core::session::is_name;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::{Named, Status, What};
use crate::log::Log;

/// The file that says what a session is.
const ROW: &str = "session.json";

#[derive(Serialize, Deserialize)]
pub(super) struct Row {
    #[serde(flatten)]
    pub what: What,
    pub status: Status,
    /// How far the log is, if nothing comes any more.
    pub kept: u64,
}

/// What waits for a disk.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    Ok(spawn_blocking(work).await.map_err(Error::internal)??)
}

/// Replaces the file as a whole.
pub(super) fn write_row(directory: &Path, row: &Row) -> io::Result<()> {
    let new = directory.join(format!("{ROW}.new"));
    fs::write(&new, serde_json::to_vec(row)?)?;
    fs::rename(new, directory.join(ROW))
}

/// The sessions under a directory. What is none, because its beginning was cut off, is removed.
pub(super) fn load(root: &Path) -> io::Result<Vec<Named>> {
    let mut sessions = Vec::new();
    for vm in subdirectories(root)? {
        let Ok(vm_name) = VmName::new(&vm.file_name().to_string_lossy()) else { continue };
        for directory in subdirectories(&vm.path())? {
            let path = directory.path();
            let name = directory.file_name().to_string_lossy().into_owned();
            let row = fs::read(path.join(ROW)).ok().and_then(|row| serde_json::from_slice(&row).ok());
            let Some(Row { what, status, kept }) = row.filter(|_| is_name(&name)) else {
                tracing::warn!("{} is no session; removing it", path.display());
                fs::remove_dir_all(path)?;
                continue;
            };
            let kept = if status.open { Log::open(&path)?.next() } else { kept };
            sessions.push(Named {
                vm: vm_name.clone(),
                name,
                kept: watch::Sender::new(kept),
                directory: path,
                what,
                status: watch::Sender::new(status),
                keeper: Mutex::default(),
                turn: Arc::default(),
            });
        }
    }
    Ok(sessions)
}

fn subdirectories(directory: &Path) -> io::Result<Vec<fs::DirEntry>> {
    let entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    Ok(entries.into_iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).collect())
}

#[cfg(test)]
pub(super) mod tests {
    use banger_core::resource::Limits;

    use super::*;

    pub fn row() -> Row {
        let what = What {
            id: "0123456789abcdef".into(),
            vm_created_usec: 7,
            command: vec!["sh".into(), "-c".into(), "x".into()],
            user: String::new(),
            directory: "/tmp".into(),
            terminal: false,
            restart: "no".into(),
            limits: Limits::from([("nofile".into(), 64)]),
        };
        let status = Status { state: "running".into(), started_usec: 5, open: true, ..Status::default() };
        Row { what, status, kept: 0 }
    }

    #[test]
    fn sessions_are_found_again() {
        let root = tempfile::tempdir().unwrap();
        for name in ["build", "half"] {
            fs::create_dir_all(root.path().join("web").join(name)).unwrap();
        }
        fs::create_dir_all(root.path().join("Not A VM")).unwrap();
        write_row(&root.path().join("web/build"), &row()).unwrap();
        fs::write(root.path().join("web/half/session.json.new"), "{").unwrap();

        let found = load(root.path()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].vm.as_str(), found[0].name.as_str()), ("web", "build"));
        assert_eq!(*found[0].status.borrow(), row().status);
        assert_eq!(found[0].what.command, row().what.command);
        assert!(!root.path().join("web/half").exists());
    }
}
