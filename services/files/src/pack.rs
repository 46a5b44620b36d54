//! Files and directories as a tar stream.
//!
//! Two blocks of zeros end the stream, and only one that is whole.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use banger_api::{Error, ErrorKind};
use banger_core::tar::{self, Header, Kind, Segment};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, major, minor};
use nix::sys::statfs::{self, FsType, fstatfs};
use nix::unistd::{Whence, lseek};

use crate::listing::{Entry, Listing};
use crate::{DIRECTORY, at, beneath, check_depth, is_gone, kind_of, xattr};

/// More pieces than this, and a file is written with its holes as zeros.
const MAX_SEGMENTS: usize = 4096;

/// Filesystems that the kernel makes up as they are read: directories below them are not looked
/// into from outside.
const MADE_UP: [FsType; 3] = [statfs::PROC_SUPER_MAGIC, statfs::SYSFS_MAGIC, statfs::CGROUP2_SUPER_MAGIC];

/// The times that the entries get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    Seconds,
    /// At the price of an extension header for every entry.
    Nanoseconds,
}

/// What went into an archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packed {
    pub entries: u64,
    /// Of files, without holes.
    pub bytes: u64,
    /// Sockets, which are nothing without who listens, and what is of the kernel's own making.
    pub left_out: u64,
}

impl Packed {
    /// What whoever copies is to know.
    pub fn remarks(&self) -> Vec<String> {
        match self.left_out {
            0 => Vec::new(),
            left => vec![format!("{left} sockets, or directories of the kernel's own making, left out")],
        }
    }
}

pub struct Packer<W: Write> {
    out: W,
    times: Times,
    /// Where the first name of each file with several is, by device and number.
    links: HashMap<(u64, u64), PathBuf>,
    /// What need not be sent, below a path.
    there: Option<(PathBuf, Listing)>,
    packed: Packed,
}

/// The directory that something is in, and its name there. With `follow` of what a link leads to.
///
/// # Errors
/// Of the file system.
pub fn locate(path: &Path, follow: bool) -> io::Result<(OwnedFd, OsString)> {
    let real;
    let path = if follow || path.file_name().is_none() {
        real = std::fs::canonicalize(path)?;
        real.as_path()
    } else {
        path
    };
    let directory = |path: &Path| {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        openat(AT_FDCWD, path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
    };
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((directory(parent)?, name.to_owned())),
        _ => Ok((directory(Path::new("/"))?, ".".into())),
    }
}

/// What is in a directory, sorted.
///
/// # Errors
/// Of the file system.
pub fn names(directory: &OwnedFd) -> io::Result<Vec<OsString>> {
    let entries = std::fs::read_dir(at(directory))?;
    let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

impl<W: Write> Packer<W> {
    pub fn new(out: W, times: Times) -> Self {
        Self { out, times, links: HashMap::new(), there: None, packed: Packed::default() }
    }

    /// Leaves out what is there already: `listing` is of the directory that becomes `path` in the archive.
    pub fn but(mut self, path: &Path, listing: Listing) -> Self {
        // "." stands for what is in it, not for a name before theirs.
        let path = if path == Path::new(".") { Path::new("") } else { path };
        self.there = Some((path.to_owned(), listing));
        self
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// Of the stream.
    pub fn finish(mut self) -> io::Result<Packed> {
        self.out.write_all(&tar::END)?;
        self.out.flush()?;
        Ok(self.packed)
    }

    /// Adds what `name` in a directory is as `path`, and all that is in it. What goes away
    /// meanwhile is left out.
    ///
    /// # Errors
    /// Of the file system, with the path; of the stream.
    pub fn add_tree(&mut self, directory: &OwnedFd, name: &OsStr, path: &Path) -> io::Result<()> {
        self.add(directory, name, path).map_err(|error| about(path, error))?;
        let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if kind_of(&stat) != SFlag::S_IFDIR {
            return Ok(());
        }
        let inner = open_directory(directory, name).map_err(|error| about(path, error))?;
        // "." stands for what is in it, not for a name before theirs.
        let path = if path == Path::new(".") { Path::new("") } else { path };
        self.add_below(&inner, path, stat.st_dev, 0)
    }

    fn add_below(&mut self, directory: &OwnedFd, path: &Path, device: u64, depth: usize) -> io::Result<()> {
        check_depth(depth).map_err(|error| about(path, error))?;
        for name in names(directory).map_err(|error| about(path, error))? {
            let path = path.join(&name);
            match self.add_one(directory, &name, &path, device, depth) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                added => added?,
            }
        }
        Ok(())
    }

    fn add_one(
        &mut self,
        directory: &OwnedFd,
        name: &OsStr,
        path: &Path,
        device: u64,
        depth: usize,
    ) -> io::Result<()> {
        self.add(directory, name, path).map_err(|error| about(path, error))?;
        let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if kind_of(&stat) != SFlag::S_IFDIR {
            return Ok(());
        }
        let inner = open_directory(directory, name).map_err(|error| about(path, error))?;
        if !enters(&inner, device)? {
            self.packed.left_out += 1;
            return Ok(());
        }
        self.add_below(&inner, path, stat.st_dev, depth + 1)
    }

    /// Adds one entry by its path below a directory, under the same path, through no link. What is not there is left out.
    ///
    /// # Errors
    /// Of the file system, with the path; of the stream.
    pub fn add_beneath(&mut self, root: &OwnedFd, path: &Path) -> io::Result<()> {
        let Some(name) = path.file_name() else { return Ok(()) };
        let parent = beneath(root, path.parent().unwrap_or(Path::new("")));
        match parent.map_err(io::Error::from).and_then(|parent| self.add(&parent, name, path)) {
            // Where a link is in the way, there is nothing of this path.
            Err(error) if is_gone(&error) => Ok(()),
            added => added.map_err(|error| about(path, error)),
        }
    }

    /// Adds one entry. Of a directory only itself.
    ///
    /// # Errors
    /// Of the file system and of the stream.
    pub fn add(&mut self, directory: &impl AsFd, name: &OsStr, path: &Path) -> io::Result<()> {
        let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let mut link = OsString::new();
        let mut kind = match kind_of(&stat) {
            SFlag::S_IFREG => Kind::File,
            SFlag::S_IFDIR => Kind::Directory,
            SFlag::S_IFLNK => {
                link = readlinkat(directory, name)?;
                Kind::Symlink
            }
            SFlag::S_IFCHR => Kind::CharDevice(major(stat.st_rdev) as u32, minor(stat.st_rdev) as u32),
            SFlag::S_IFBLK => Kind::BlockDevice(major(stat.st_rdev) as u32, minor(stat.st_rdev) as u32),
            SFlag::S_IFIFO => Kind::Fifo,
            _ => {
                self.packed.left_out += 1;
                return Ok(());
            }
        };
        if kind != Kind::Directory && stat.st_nlink > 1 {
            let file = (stat.st_dev, stat.st_ino);
            match self.links.get(&file) {
                Some(first) => {
                    link = first.clone().into_os_string();
                    kind = Kind::HardLink;
                }
                None => drop(self.links.insert(file, path.to_owned())),
            }
        }
        if self.is_there(path, &stat, &link, kind == Kind::Symlink) {
            return Ok(());
        }
        // What cannot be read is found out before anything is said of it.
        let file = if kind == Kind::File { Some(open(directory, name)?) } else { None };
        let xattrs = match kind {
            Kind::HardLink => Vec::new(),
            _ => xattr::get(&at(directory).join(name))?,
        };
        let header = self.header(&stat, kind, path, &link, &xattrs);
        self.packed.entries += 1;
        match file {
            Some(file) => self.add_file(&file, &header, stat.st_size as u64),
            None => self.out.write_all(&tar::head(&header, 0)?),
        }
    }

    fn is_there(&self, path: &Path, stat: &FileStat, link: &OsStr, is_link: bool) -> bool {
        let Some((prefix, listing)) = &self.there else { return false };
        let there = path.strip_prefix(prefix).ok().and_then(|path| listing.get(path));
        let target = if is_link { PathBuf::from(link) } else { PathBuf::new() };
        there.is_some_and(|there| there.is_copy_of(&Entry::new(stat, target)))
    }

    /// Adds a file with another content than it has.
    ///
    /// # Errors
    /// Of the stream.
    pub fn add_content(&mut self, stat: &FileStat, path: &Path, content: &[u8]) -> io::Result<()> {
        let header = self.header(stat, Kind::File, path, OsStr::new(""), &[]);
        self.packed.entries += 1;
        self.packed.bytes += content.len() as u64;
        self.out.write_all(&tar::head(&header, content.len() as u64)?)?;
        self.out.write_all(content)?;
        self.out.write_all(tar::padding(content.len() as u64))
    }

    fn add_file(&mut self, file: &File, header: &Header<'_>, size: u64) -> io::Result<()> {
        let map = segments(file, size)?;
        let data = match map.as_slice() {
            [Segment { offset: 0, length }] if *length == size => {
                self.out.write_all(&tar::head(header, size)?)?;
                size
            }
            map => {
                let (head, data) = tar::sparse_head(header, size, map)?;
                self.out.write_all(&head)?;
                data
            }
        };
        for Segment { offset, length } in map {
            self.copy(file, offset, length)?;
        }
        self.packed.bytes += data;
        self.out.write_all(tar::padding(data))
    }

    fn copy(&mut self, mut file: &File, offset: u64, length: u64) -> io::Result<()> {
        file.seek(SeekFrom::Start(offset))?;
        let copied = io::copy(&mut file.take(length), &mut self.out)?;
        if copied == length {
            return Ok(());
        }
        Err(io::Error::other("it became shorter while it was read"))
    }

    fn header<'a>(
        &self,
        stat: &FileStat,
        kind: Kind,
        path: &'a Path,
        link: &'a OsStr,
        xattrs: &'a [(Vec<u8>, Vec<u8>)],
    ) -> Header<'a> {
        let mtime_nsec = match self.times {
            Times::Seconds => 0,
            Times::Nanoseconds => stat.st_mtime_nsec as u32,
        };
        Header {
            path: path.as_os_str().as_bytes(),
            link: link.as_bytes(),
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: stat.st_mtime,
            mtime_nsec,
            xattrs,
        }
    }
}

/// Opens a file for reading, without leaving a trace of that where that is allowed.
///
/// # Errors
/// Of the file system; `ELOOP` for a link.
pub fn open(directory: &impl AsFd, name: &OsStr) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    Ok(without_trace(directory, name, flags)?.into())
}

/// Whether a directory below one on `device` is looked into.
pub(crate) fn enters(directory: &OwnedFd, device: u64) -> io::Result<bool> {
    let stat = nix::sys::stat::fstat(directory)?;
    Ok(stat.st_dev == device || !MADE_UP.contains(&fstatfs(directory)?.filesystem_type()))
}

fn open_directory(directory: &impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(without_trace(directory, name, DIRECTORY)?)
}

/// Only owner and root may leave the access time alone.
fn without_trace(directory: &impl AsFd, name: &OsStr, flags: OFlag) -> nix::Result<OwnedFd> {
    match openat(directory, name, flags | OFlag::O_NOATIME, Mode::empty()) {
        Err(Errno::EPERM) => openat(directory, name, flags, Mode::empty()),
        opened => opened,
    }
}

/// Where a file has data; all of it, if there are too many pieces to tell, or none are told.
fn segments(file: &File, size: u64) -> io::Result<Vec<Segment>> {
    let whole = vec![Segment { offset: 0, length: size }];
    let mut map = Vec::new();
    let mut position = 0;
    while position < size {
        let data = match lseek(file, position as i64, Whence::SeekData) {
            Ok(data) => data as u64,
            // Nothing but a hole.
            Err(Errno::ENXIO) => break,
            Err(Errno::EINVAL) => return Ok(whole),
            Err(error) => return Err(error.into()),
        };
        if data >= size {
            break;
        }
        position = (lseek(file, data as i64, Whence::SeekHole)? as u64).min(size);
        map.push(Segment { offset: data, length: position.saturating_sub(data) });
        if map.len() > MAX_SEGMENTS {
            return Ok(whole);
        }
    }
    if position < size {
        // How GNU tar knows of a hole at the end.
        map.push(Segment { offset: size, length: 0 });
    }
    // An empty file has no holes either.
    Ok(if size == 0 { whole } else { map })
}

/// Says in an error where it was.
pub fn about(path: &Path, error: io::Error) -> io::Error {
    match error.kind() {
        // The stream's, and what is looked for by its number.
        io::ErrorKind::BrokenPipe | io::ErrorKind::NotFound => error,
        kind => io::Error::new(kind, format!("{}: {error}", path.display())),
    }
}

/// What went wrong with packing, as a caller can act on it.
pub fn failure(source: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => crate::failure(source, &error),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            ErrorKind::Interrupted.error("nobody took the files any more")
        }
        _ => ErrorKind::FileFailed.error(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_are_found() {
        let file = tempfile::tempfile().expect("makes");
        assert_eq!(segments(&file, 0).expect("seeks"), [Segment { offset: 0, length: 0 }]);
        file.set_len(4 << 20).expect("grows");
        let empty = segments(&file, 4 << 20).expect("seeks");
        assert_eq!(empty.iter().map(|segment| segment.length).sum::<u64>(), 0);
        file.write_all_at(&[1; 4096], 2 << 20).expect("writes");
        let map = segments(&file, 4 << 20).expect("seeks");
        assert_eq!(map.iter().map(|segment| segment.length).sum::<u64>(), 4096, "{map:?}");
        assert_eq!(map[0].offset, 2 << 20);
    }
}
