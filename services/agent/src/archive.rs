//! The root filesystem as a stream of tar, for an image to be made of it.
//!
//! It is what lies on the VM's disk, over its image: what is mounted in it, be it `/proc`, a
//! volume or a tmpfs at `/tmp`, is not in it, but the directory below that is. What banger itself
//! puts into every root filesystem is not what a user made of this one: it is left out, or is as
//! the image has it. Sockets are left out, too: they are nothing without who listens.
//!
//! Two blocks of zeros end the stream, and only one that is whole.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use banger_files::pack::{Packer, Times, about, names, open};
use banger_files::{check_depth, kind_of};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::libc;
use nix::sys::stat::{Mode, SFlag, fstatat};

use crate::disks::Disks;
use crate::{etc, provision};

/// The biggest file that is searched for a block of banger's.
const MAX_MANAGED: u64 = 16 << 20;
const BUFFER: usize = 128 << 10;

/// What stands in the archive for a file that banger wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instead {
    /// The image's file, or none.
    Image,
    /// The file, without content.
    Empty,
    /// The file without the block of lines that is banger's; the image's, or none, if nothing else
    /// was in it.
    WithoutBlock,
}

/// How far a stream is, and whether it is still to be.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    written: Arc<AtomicU64>,
    abandoned: Arc<AtomicBool>,
}

impl Meter {
    /// Nothing is written any more once `abandoned` is set.
    pub fn new(abandoned: Arc<AtomicBool>) -> Self {
        Self { written: Arc::default(), abandoned }
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

/// Looks into every directory.
///
/// overlayfs tidies up directories in which it has left marks when somebody looks into them, and
/// would wait for that if the disk was frozen by then.
pub fn settle() -> io::Result<()> {
    fn look_into(directory: &OwnedFd, depth: usize) -> io::Result<()> {
        check_depth(depth)?;
        for name in names(directory)? {
            match openat(directory, name.as_os_str(), DIRECTORY, Mode::empty()) {
                Ok(inner) => look_into(&inner, depth + 1)?,
                // No directory, or none any more.
                Err(Errno::ENOTDIR | Errno::ELOOP | Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
    look_into(&bare_root()?, 0)
}

/// Writes the archive. Nobody else may write to the disk meanwhile. `login` is the user that
/// keys for SSH are given to.
pub fn write(disks: &Disks, login: &str, to: OwnedFd, meter: Meter) -> io::Result<()> {
    let root = bare_root()?;
    let mut instead = HashMap::new();
    for (path, what) in etc::traces(disks).into_iter().chain(provision::traces(disks, login)) {
        if let Some(path) = real(&path) {
            instead.insert(path, what);
        }
    }
    let out = BufWriter::with_capacity(BUFFER, Metered { to: File::from(to), meter });
    let mut archive = Archive { packer: Packer::new(out, Times::Seconds), image: disks.image()?, instead };
    archive.packer.add(&root, OsStr::new("."), Path::new("."))?;
    archive.directory(&root, Path::new(""), 0)?;
    archive.packer.finish()?;
    Ok(())
}

/// The root filesystem without what is mounted in it: a mount of its own that no path leads to.
fn bare_root() -> io::Result<OwnedFd> {
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
    // SAFETY: the path is a string, and the descriptor is new and nobody else's.
    let tree = unsafe {
        let fd = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), flags);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd as i32)
    };
    // What it gives is a place; to look into it takes an open directory.
    Ok(openat(&tree, ".", DIRECTORY, Mode::empty())?)
}

const DIRECTORY: OFlag = banger_files::DIRECTORY.union(OFlag::O_NOATIME);

/// The path, below the root, of what `path` leads to in the end.
fn real(path: &Path) -> Option<PathBuf> {
    let parent = std::fs::canonicalize(path.parent()?).ok()?;
    let path = parent.join(path.file_name()?);
    // Where a link stands for a file, what is written to is the file.
    let path = std::fs::canonicalize(&path).unwrap_or(path);
    path.strip_prefix("/").ok().map(Path::to_owned)
}

struct Archive<W: Write> {
    packer: Packer<W>,
    /// The image's root directory.
    image: OwnedFd,
    instead: HashMap<PathBuf, Instead>,
}

impl<W: Write> Archive<W> {
    /// Writes what is in a directory.
    fn directory(&mut self, directory: &OwnedFd, path: &Path, depth: usize) -> io::Result<()> {
        check_depth(depth)?;
        for name in names(directory)? {
            let path = path.join(&name);
            self.managed(directory, &name, &path).map_err(|error| about(&path, error))?;
            let stat = fstatat(directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
            if kind_of(&stat) == SFlag::S_IFDIR {
                let inner = openat(directory, name.as_os_str(), DIRECTORY, Mode::empty())?;
                self.directory(&inner, &path, depth + 1)?;
            }
        }
        Ok(())
    }

    /// Writes one entry, or what stands for it.
    fn managed(&mut self, directory: &OwnedFd, name: &OsStr, path: &Path) -> io::Result<()> {
        let regular = || {
            let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            Ok::<_, io::Error>((kind_of(&stat) == SFlag::S_IFREG).then_some(stat))
        };
        match self.instead.get(path) {
            None => self.packer.add(directory, name, path),
            Some(Instead::Image) => self.add_of_image(path),
            Some(Instead::Empty) => match regular()? {
                Some(stat) => self.packer.add_content(&stat, path, b""),
                None => self.packer.add(directory, name, path),
            },
            Some(Instead::WithoutBlock) => {
                let Some(stat) = regular()?.filter(|stat| stat.st_size as u64 <= MAX_MANAGED) else {
                    return self.packer.add(directory, name, path);
                };
                let mut content = Vec::new();
                open(directory, name)?.take(MAX_MANAGED).read_to_end(&mut content)?;
                match provision::without_block(&content) {
                    rest if rest == content => self.packer.add(directory, name, path),
                    rest if rest.is_empty() => self.add_of_image(path),
                    rest => self.packer.add_content(&stat, path, &rest),
                }
            }
        }
    }

    /// Writes what the image has at a path, if it is there and no directory.
    fn add_of_image(&mut self, path: &Path) -> io::Result<()> {
        let mut directory = self.image.try_clone()?;
        for name in path.parent().into_iter().flatten() {
            directory = match openat(&directory, name, DIRECTORY, Mode::empty()) {
                Ok(inner) => inner,
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
        }
        let Some(name) = path.file_name() else { return Ok(()) };
        match fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if kind_of(&stat) == SFlag::S_IFDIR => Ok(()),
            Ok(_) => self.packer.add(&directory, name, path),
            Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Counts what is written.
struct Metered {
    to: File,
    meter: Meter,
}

impl Write for Metered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.meter.abandoned.load(Ordering::Relaxed) {
            return Err(io::Error::other("the disk is in use again"));
        }
        let n = self.to.write(bytes)?;
        self.meter.written.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
