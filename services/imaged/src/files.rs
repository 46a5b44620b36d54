//! The state directory: staging, publication by rename, and what to sync when.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::error::{Error, Result};
use crate::layers::stream::{Cancel, Source};

/// Directories of the state directory.
#[derive(Debug, Clone)]
pub struct Files {
    pub images: PathBuf,
    pub kernels: PathBuf,
    pub blobs: PathBuf,
    pub staging: PathBuf,
}

/// A directory in staging that goes when it is dropped, unless it was published before.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
}

static NEXT: AtomicU64 = AtomicU64::new(0);

impl Files {
    /// Makes what is missing and throws away what an earlier run left in staging.
    pub fn open(state: &Path) -> Result<Self> {
        let files = Self {
            images: state.join("images"),
            kernels: state.join("kernels"),
            blobs: state.join("blobs/sha256"),
            staging: state.join("staging"),
        };
        for dir in [&files.images, &files.kernels, &files.blobs, &files.staging] {
            fs::create_dir_all(dir).map_err(Error::io(format!("cannot make {}", dir.display())))?;
        }
        for entry in list(&files.staging)? {
            remove(&files.staging.join(entry));
        }
        Ok(files)
    }

    pub fn stage(&self) -> Result<Staged> {
        let path = self.fresh();
        fs::create_dir(&path).map_err(Error::io(format!("cannot make {}", path.display())))?;
        Ok(Staged { path })
    }

    fn fresh(&self) -> PathBuf {
        self.staging.join(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    pub fn image(&self, id: &str) -> PathBuf {
        self.images.join(id)
    }

    pub fn kernel(&self, name: &str) -> PathBuf {
        self.kernels.join(name)
    }

    pub fn blob(&self, hex: &str) -> PathBuf {
        self.blobs.join(hex)
    }

    /// A new file in staging, for reading and writing.
    pub fn temporary(&self) -> Result<(File, PathBuf)> {
        let path = self.fresh();
        let file = create(&path)?;
        Ok((file, path))
    }

    /// Moves something out of the way; what is dropped then removes it. `None`: there was nothing.
    pub fn withdraw(&self, path: &Path) -> io::Result<Option<Staged>> {
        let trash = self.fresh();
        match fs::rename(path, &trash) {
            Ok(()) => Ok(Some(Staged { path: trash })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Staged {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory and the files in it durable. What is published must have been.
    pub fn sync(&self) -> Result<()> {
        sync_tree(&self.path).map_err(Error::io("cannot write to disk"))
    }

    /// Renames the directory into place, where nothing may be yet, and makes that durable.
    pub fn publish(&self, target: &Path) -> io::Result<()> {
        renameat_with(CWD, &self.path, CWD, target, RenameFlags::NOREPLACE)?;
        sync_dir(target.parent().unwrap_or(Path::new("/")))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        match entry.file_type()? {
            kind if kind.is_dir() => sync_tree(&entry.path())?,
            kind if kind.is_file() => File::open(entry.path())?.sync_all()?,
            _ => {}
        }
    }
    sync_dir(path)
}

pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Names in a directory.
pub fn list(dir: &Path) -> Result<Vec<String>> {
    let failed = || format!("cannot read {}", dir.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io(failed()))? {
        let entry = entry.map_err(Error::io(failed()))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Removes a file or directory, whatever it is. That it could not be removed is only logged: it is
/// in staging, and the next start tries again.
pub fn remove(path: &Path) {
    let outcome = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!("cannot remove {}: {error}", path.display());
        }
        _ => {}
    }
}

/// A new file, for reading and writing.
pub(crate) fn create(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o640)
        .open(path)
        .map_err(Error::io(format!("cannot make {}", path.display())))
}

pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = create(path)?;
    file.write_all(bytes).map_err(Error::io(format!("cannot write {}", path.display())))
}

/// A file that can be read twice: the one given, or a copy in staging that has no name.
pub(crate) fn spool(file: File, files: &Files, limit: u64, cancel: &Cancel) -> Result<File> {
    let unreadable =
        |error: io::Error| Error::Unreadable { what: "the file".into(), reason: error.to_string() };
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(Error::Unreadable {
            what: "the file".into(),
            reason: "it is a directory; give its path".into(),
        });
    }
    if metadata.is_file() {
        return Ok(file);
    }
    let (mut copy, path) = files.temporary()?;
    remove(&path);
    let mut source = Source::new(file, cancel.clone(), Arc::default()).take(limit + 1);
    let count = io::copy(&mut source, &mut copy).map_err(Error::io("cannot store what comes in"))?;
    if count > limit {
        return Err(Error::TooLarge(format!("it has more than {limit} bytes")));
    }
    Ok(copy)
}
