//! Trees of files as tar streams: packed from a file system, and unpacked into one.
//!
//! The same code works on both sides: in guests, as root, whose users may change the tree meanwhile,
//! and on the host, as whoever calls, with streams that a hostile guest made. So no path is ever
//! walked by name: everything is relative to an open directory, and no symbolic link is followed.
//!
//! - [`pack`]: files to a stream
//! - [`unpack`]: a stream to files
//! - [`listing`]: what there is, as a stream
//! - [`remove`]: what is not to be there any more
//! - `xattr`: extended attributes

pub mod listing;
pub mod pack;
pub mod remove;
pub mod unpack;
mod xattr;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use banger_api::{Error, ErrorKind};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, SFlag};

/// Directories within directories, each of which takes a descriptor.
pub const MAX_DEPTH: usize = 512;

/// How directories are opened to look into them.
pub const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// # Errors
/// If so many directories within directories are too many.
pub fn check_depth(depth: usize) -> io::Result<()> {
    if depth <= MAX_DEPTH {
        return Ok(());
    }
    Err(io::Error::other(format!("directories are more than {MAX_DEPTH} deep")))
}

pub fn kind_of(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// What went wrong with a file, as a caller can act on it.
pub fn failure(path: &Path, error: &io::Error) -> Error {
    let path = path.display();
    let kind = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => ErrorKind::NoSuchFile,
        Some(Errno::ENOTDIR) => ErrorKind::NoSuchDirectory,
        Some(Errno::ENOSPC | Errno::EDQUOT) => ErrorKind::NoSpace,
        Some(Errno::EEXIST | Errno::EISDIR | Errno::ENOTEMPTY) => {
            return ErrorKind::FileInTheWay
                .error(format!("{path}: there is a directory of this name; move it away first"));
        }
        Some(Errno::ELOOP) => {
            return ErrorKind::FileInTheWay
                .error(format!("{path}: a symbolic link is in the way, and none is followed"));
        }
        _ => ErrorKind::FileFailed,
    };
    kind.error(format!("{path}: {error}"))
}

/// A path to an open file or directory, for this process.
fn at(fd: &impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()).into()
}

/// Opens a directory below another, through nothing but directories.
pub fn beneath(root: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC);
    let how = how.resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    loop {
        match openat2(root, path, how) {
            // Somebody moved directories about meanwhile.
            Err(Errno::EAGAIN) => {}
            opened => return opened,
        }
    }
}

/// Whether an error says that there is nothing of this path, or something else on the way to it.
fn is_gone(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO))
}
