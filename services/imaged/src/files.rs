//! The state directory: staging, publication by rename, and what to sync when.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, SeekFrom, copy_file_range, open, renameat_with, seek};

use crate::error::{Error, Result};
use crate::layers::stream::{Cancel, Source};

/// Directories of the state directory.
#[derive(Debug, Clone)]
pub struct Files {
    pub images: PathBuf,
    pub kernels: PathBuf,
    pub blobs: PathBuf,
    /// What has arrived of blobs.
    pub partial: PathBuf,
    pub staging: PathBuf,
}

/// A directory in staging that goes when it is dropped, unless it was published before.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
}

/// How long a broken download waits to be gone on with.
const KEEP_PARTIAL: Duration = Duration::from_secs(24 * 3600);

static NEXT: AtomicU64 = AtomicU64::new(0);

impl Files {
    /// Makes what is missing and throws away what an earlier run left in staging.
    pub fn open(state: &Path) -> Result<Self> {
        let files = Self {
            images: state.join("images"),
            kernels: state.join("kernels"),
            blobs: state.join("blobs/sha256"),
            partial: state.join("blobs/partial"),
            staging: state.join("staging"),
        };
        for dir in [&files.images, &files.kernels, &files.blobs, &files.partial, &files.staging] {
            fs::create_dir_all(dir).map_err(Error::io(format!("cannot make {}", dir.display())))?;
        }
        // Rows are durable only as long as the directory is that their files are in.
        for dir in [state.to_owned(), state.join("blobs")] {
            sync_dir(&dir).map_err(Error::io(format!("cannot sync {}", dir.display())))?;
        }
        for entry in list(&files.staging)? {
            remove(&files.staging.join(entry));
        }
        for entry in list(&files.partial)? {
            let path = files.partial.join(entry);
            if is_older(&path, KEEP_PARTIAL) {
                remove(&path);
            }
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

    /// What has arrived of a blob.
    pub fn partial(&self, hex: &str) -> PathBuf {
        self.partial.join(hex)
    }

    /// A new file in staging, for reading and writing.
    pub fn temporary(&self) -> Result<(File, PathBuf)> {
        let path = self.fresh();
        let file = create(&path)?;
        Ok((file, path))
    }

    /// A new file without a name, for reading and writing: it goes when nobody has it open.
    pub fn nameless(&self) -> Result<File> {
        let (file, path) = self.temporary()?;
        remove(&path);
        Ok(file)
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

/// Whether nothing was written to it for a while.
fn is_older(path: &Path, than: Duration) -> bool {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > than))
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

/// Opens a file or a directory where somebody else decides what is there. To open a FIFO would wait for
/// its other end, and may never be done; so would be to read it.
pub(crate) fn open_theirs(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(open(path, flags, Mode::empty())?);
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_dir() {
        return Ok(file);
    }
    Err(io::Error::other("it is neither a file nor a directory"))
}

/// Opens what a caller gave the path of.
pub(crate) fn open_given(path: &Path) -> Result<File> {
    open_theirs(path).map_err(|error| Error::Unreadable {
        what: path.display().to_string(),
        reason: format!("{error}; pass what is no file, or what only you may read, as a file descriptor"),
    })
}

/// Copies a part of a file, without its holes, and shares the blocks where the filesystem can
/// (copy_file_range(2)).
pub(crate) fn copy_range(from: &File, start: u64, length: u64, to: &File) -> io::Result<()> {
    to.set_len(length)?;
    let end = start + length;
    let mut at = start;
    while at < end {
        // No more data: the rest is a hole.
        let data = match seek(from, SeekFrom::Data(at)) {
            Err(rustix::io::Errno::NXIO) => break,
            data => data?.max(at).min(end),
        };
        let hole = seek(from, SeekFrom::Hole(data))?.min(end);
        copy_data(from, data, hole, to, data - start)?;
        at = hole;
    }
    Ok(())
}

/// Copies what is no hole. Filesystems of different types do not share, so there the bytes pass by us.
fn copy_data(from: &File, mut source: u64, end: u64, to: &File, mut target: u64) -> io::Result<()> {
    use rustix::io::Errno;
    while source < end {
        let want = usize::try_from(end - source).unwrap_or(usize::MAX).min(1 << 30);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), want) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let mut buffer = vec![0; 256 << 10];
    while source < end {
        let want = (end - source).min(buffer.len() as u64) as usize;
        from.read_exact_at(&mut buffer[..want], source)?;
        to.write_all_at(&buffer[..want], target)?;
        source += want as u64;
        target += want as u64;
    }
    Ok(())
}

/// A copy in staging that only we can change, and its path.
pub(crate) fn private_copy(
    file: File,
    files: &Files,
    limit: u64,
    cancel: &Cancel,
    read: &Arc<AtomicU64>,
) -> Result<(File, PathBuf)> {
    let (copy, path) = files.temporary()?;
    let copied = match file.metadata() {
        Ok(metadata) if metadata.is_file() && metadata.len() > limit => {
            Err(Error::TooLarge(format!("it has more than {limit} bytes")))
        }
        Ok(metadata) if metadata.is_file() => {
            copy_range(&file, 0, metadata.len(), &copy).map_err(Error::io("cannot copy the file"))
        }
        _ => pour(file, &copy, limit, cancel, read),
    };
    match copied {
        Ok(()) => Ok((copy, path)),
        Err(error) => {
            remove(&path);
            Err(error)
        }
    }
}

/// Whether it is a file that can be read again and again, and no stream.
pub(crate) fn is_regular(file: &File) -> Result<bool> {
    let unreadable = |reason: String| Error::Unreadable { what: "the file".into(), reason };
    let metadata = file.metadata().map_err(|error| unreadable(error.to_string()))?;
    if metadata.is_dir() {
        return Err(unreadable("it is a directory; give its path".into()));
    }
    Ok(metadata.is_file())
}

/// A file that can be read twice: the one given, or a copy in staging that has no name.
/// `read` counts the bytes copied.
pub(crate) fn spool(
    file: File,
    files: &Files,
    limit: u64,
    cancel: &Cancel,
    read: &Arc<AtomicU64>,
) -> Result<File> {
    if is_regular(&file)? {
        return Ok(file);
    }
    let copy = files.nameless()?;
    pour(file, &copy, limit, cancel, read)?;
    Ok(copy)
}

/// Copies a stream.
fn pour(from: File, mut to: &File, limit: u64, cancel: &Cancel, read: &Arc<AtomicU64>) -> Result<()> {
    let mut source = Source::new(from, cancel.clone(), read.clone()).take(limit + 1);
    let count = io::copy(&mut source, &mut to).map_err(Error::io("cannot store what comes in"))?;
    if count > limit {
        return Err(Error::TooLarge(format!("it has more than {limit} bytes")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_and_directories_are_opened() {
        let dir = tempfile::tempdir().expect("tempdir");
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).expect("makes a FIFO");
        let error = open_given(&fifo).expect_err("a FIFO").to_string();
        assert!(error.contains("neither a file nor a directory; pass"), "{error}");
        assert!(open_given(Path::new("/dev/null")).is_err());
        assert!(open_given(dir.path()).is_ok_and(|dir| dir.metadata().is_ok_and(|found| found.is_dir())));
        fs::write(dir.path().join("file"), "text").expect("writes");
        let file = open_given(&dir.path().join("file")).expect("opens");
        assert_eq!(io::read_to_string(file).expect("reads"), "text");
    }

    #[test]
    fn holes_stay_holes() {
        use std::os::unix::fs::MetadataExt;
        let (from, to) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        from.set_len(64 << 20).expect("grows");
        from.write_all_at(b"data", 20 << 20).expect("writes");
        copy_range(&from, 10 << 20, 50 << 20, &to).expect("copies");
        let metadata = to.metadata().expect("is there");
        assert_eq!(metadata.len(), 50 << 20);
        assert!(metadata.blocks() * 512 < 1 << 20, "{}", metadata.blocks());
        let mut found = [0; 4];
        to.read_exact_at(&mut found, 10 << 20).expect("reads");
        assert_eq!(&found, b"data");
        assert!(copy_range(&from, 63 << 20, 1 << 20, &to).is_ok());
    }
}
