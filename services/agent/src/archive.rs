//! The root filesystem as a stream of tar, for an image to be made of it.
//!
//! It is what lies on the VM's disk, over its image: what is mounted in it, be it `/proc`, a
//! volume or a tmpfs at `/tmp`, is not in it, but the directory below that is. What banger itself
//! puts into every root filesystem is not what a user made of this one: it is left out, or is as
//! the image has it. Sockets are left out, too: they are nothing without who listens.
//!
//! Two blocks of zeros end the stream, and only one that is whole.

use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use banger_core::tar::{self, Header, Kind, Segment};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, major, minor};
use nix::unistd::{Whence, lseek};

use crate::disks::Disks;
use crate::{etc, provision, sys};

/// Directories within directories, each of which takes a descriptor.
const MAX_DEPTH: usize = 512;
/// The biggest file that is searched for a block of banger's.
const MAX_MANAGED: u64 = 16 << 20;
/// More pieces than this, and a file is written with its holes as zeros.
const MAX_SEGMENTS: usize = 4096;
const BUFFER: usize = 128 << 10;
/// The longest list and the longest value of extended attributes, `XATTR_LIST_MAX` and
/// `XATTR_SIZE_MAX`.
const XATTR: usize = 64 << 10;

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
    let mut archive = Archive { out, image: disks.image()?, instead, links: HashMap::new() };
    archive.add(&root, OsStr::new("."), Path::new("."))?;
    archive.directory(&root, Path::new(""), 0)?;
    archive.out.write_all(&tar::END)?;
    archive.out.flush()
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

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_NOATIME)
    .union(OFlag::O_CLOEXEC);

/// The path, below the root, of what `path` leads to in the end.
fn real(path: &Path) -> Option<PathBuf> {
    let parent = std::fs::canonicalize(path.parent()?).ok()?;
    let path = parent.join(path.file_name()?);
    // Where a link stands for a file, what is written to is the file.
    let path = std::fs::canonicalize(&path).unwrap_or(path);
    path.strip_prefix("/").ok().map(Path::to_owned)
}

fn check_depth(depth: usize) -> io::Result<()> {
    if depth <= MAX_DEPTH {
        return Ok(());
    }
    Err(io::Error::other(format!("directories are more than {MAX_DEPTH} deep")))
}

/// What is in a directory, sorted.
fn names(directory: &OwnedFd) -> io::Result<Vec<OsString>> {
    let entries = std::fs::read_dir(at(directory))?;
    let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

/// A path to an open file or directory, for this process.
fn at(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

struct Archive<W: Write> {
    out: W,
    /// The image's root directory.
    image: OwnedFd,
    instead: HashMap<PathBuf, Instead>,
    /// Where the first name of each file with several is, by device and number.
    links: HashMap<(u64, u64), PathBuf>,
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
            None => self.add(directory, name, path),
            Some(Instead::Image) => self.add_of_image(path),
            Some(Instead::Empty) => match regular()? {
                Some(stat) => self.add_content(&stat, path, b""),
                None => self.add(directory, name, path),
            },
            Some(Instead::WithoutBlock) => {
                let Some(stat) = regular()?.filter(|stat| stat.st_size as u64 <= MAX_MANAGED) else {
                    return self.add(directory, name, path);
                };
                let mut content = Vec::new();
                open(directory, name)?.take(MAX_MANAGED).read_to_end(&mut content)?;
                match provision::without_block(&content) {
                    rest if rest == content => self.add(directory, name, path),
                    rest if rest.is_empty() => self.add_of_image(path),
                    rest => self.add_content(&stat, path, &rest),
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
            Ok(_) => self.add(&directory, name, path),
            Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn add(&mut self, directory: &OwnedFd, name: &OsStr, path: &Path) -> io::Result<()> {
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
            _ => return Ok(()),
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
        let xattrs = match kind {
            Kind::HardLink => Vec::new(),
            _ => xattrs(&at(directory).join(name))?,
        };
        let header = header(&stat, kind, path, &link, &xattrs);
        match kind {
            Kind::File => self.add_file(&open(directory, name)?, &header, stat.st_size as u64),
            _ => self.out.write_all(&tar::head(&header, 0)?),
        }
    }

    fn add_content(&mut self, stat: &FileStat, path: &Path, content: &[u8]) -> io::Result<()> {
        let header = header(stat, Kind::File, path, OsStr::new(""), &[]);
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
}

fn header<'a>(
    stat: &FileStat,
    kind: Kind,
    path: &'a Path,
    link: &'a OsStr,
    xattrs: &'a [(Vec<u8>, Vec<u8>)],
) -> Header<'a> {
    Header {
        path: path.as_os_str().as_bytes(),
        link: link.as_bytes(),
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtime,
        xattrs,
    }
}

fn kind_of(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn open(directory: &OwnedFd, name: &OsStr) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOATIME | OFlag::O_CLOEXEC;
    Ok(openat(directory, name, flags, Mode::empty())?.into())
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
        position = (lseek(file, data as i64, Whence::SeekHole)? as u64).min(size);
        map.push(Segment { offset: data, length: position.saturating_sub(data) });
        if map.len() > MAX_SEGMENTS {
            return Ok(whole);
        }
    }
    // An empty file has no holes either.
    Ok(if size == 0 { whole } else { map })
}

/// The extended attributes of what is at a path, be it a link.
fn xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut list = vec![0; XATTR];
    // SAFETY: the path is a string, and pointer and length are those of the buffer.
    let length = unsafe { libc::llistxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    match length_of(length) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => return Ok(Vec::new()),
        length => list.truncate(length?),
    }
    let mut found = Vec::new();
    for name in list.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; XATTR];
        let key = CString::new(name)?;
        // SAFETY: as above, with the name as another string.
        let length =
            unsafe { libc::lgetxattr(path.as_ptr(), key.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        value.truncate(length_of(length)?);
        if name.contains(&b'=') {
            // An archive has no way to say it.
            sys::log!(sys::WARNING, "no archive can have the attribute {}", String::from_utf8_lossy(name));
            continue;
        }
        found.push((name.to_vec(), value));
    }
    Ok(found)
}

fn length_of(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn about(path: &Path, error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return error;
    }
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn file() -> File {
        let path = std::env::temp_dir().join(format!("banger-holes-{}", std::process::id()));
        let options = std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        std::fs::remove_file(&path).expect("removes");
        options.expect("makes")
    }

    #[test]
    fn holes_are_found() {
        let file = file();
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
