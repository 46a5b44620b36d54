//! What is in a directory, without the contents: enough to see which files have changed.
//!
//! As a stream, each entry is a line of ASCII and the path, both ended by a NUL as in what `find -print0` writes: kind (`f`, `d`, `l`
//! or `o`), mode (octal), size (bytes), times of the last change of the content and of the file (nanoseconds
//! since 1970); a symbolic link's target follows as a third field. An empty line and no path end the listing, and only one that is whole.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use banger_api::{Error, ErrorKind, Result};
use nix::fcntl::{AtFlags, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};

use crate::pack::{about, enters, names};
use crate::{DIRECTORY, check_depth, kind_of};

/// The longest field: a path of 4095 bytes from the root, or a link's target.
const MAX_FIELD: u64 = 8192;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    /// Device, FIFO, socket.
    Other,
}

/// One file. Two entries of a path that are equal mean that it was not touched in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    pub mode: u32,
    /// Bytes; 0 of what is no file.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime: i64,
    pub ctime: i64,
    /// Of a symbolic link.
    pub target: PathBuf,
}

/// All files below a directory, by their paths in it.
pub type Listing = BTreeMap<PathBuf, Entry>;

impl Entry {
    /// The entry of a file that was looked at without following a link.
    pub fn new(stat: &FileStat, target: PathBuf) -> Self {
        let kind = match kind_of(stat) {
            SFlag::S_IFREG => Kind::File,
            SFlag::S_IFDIR => Kind::Directory,
            SFlag::S_IFLNK => Kind::Symlink,
            _ => Kind::Other,
        };
        // A directory changes with what is in it, which is listed itself.
        let times = kind != Kind::Directory;
        let nanoseconds = |seconds: i64, more: i64| {
            if times { seconds.saturating_mul(1_000_000_000).saturating_add(more) } else { 0 }
        };
        Self {
            kind,
            mode: stat.st_mode & 0o7777,
            size: if kind == Kind::File { stat.st_size as u64 } else { 0 },
            mtime: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
            ctime: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
            target,
        }
    }

    /// Whether this can be a copy of `original`, by all but the content and the owner.
    pub fn is_copy_of(&self, original: &Self) -> bool {
        // Bits that give rights come with the owner.
        const MODE: u32 = 0o1777;
        let of = |entry: &Self| match entry.kind {
            Kind::File => Some((entry.kind, entry.size, entry.mtime, entry.mode & MODE)),
            Kind::Symlink => Some((entry.kind, 0, 0, 0)),
            Kind::Directory | Kind::Other => None,
        };
        of(self).is_some() && of(self) == of(original) && self.target == original.target
    }

    /// What `name` in a directory is.
    ///
    /// # Errors
    /// Of the file system.
    pub fn of(directory: &OwnedFd, name: &OsStr) -> io::Result<Self> {
        let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let target = match kind_of(&stat) {
            SFlag::S_IFLNK => readlinkat(directory, name)?.into(),
            _ => PathBuf::new(),
        };
        Ok(Self::new(&stat, target))
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::File => 'f',
            Kind::Directory => 'd',
            Kind::Symlink => 'l',
            Kind::Other => 'o',
        };
        write!(f, "{kind} {:o} {} {} {}", self.mode, self.size, self.mtime, self.ctime)
    }
}

/// Lists what is in a directory, and how many entries that are. What goes away meanwhile is left out.
///
/// # Errors
/// Of the file system, with the path; of the stream.
pub fn list(directory: &OwnedFd, out: &mut impl Write) -> io::Result<u64> {
    let device = fstatat(directory, ".", AtFlags::AT_SYMLINK_NOFOLLOW)?.st_dev;
    let mut count = 0;
    walk(directory, Path::new(""), device, 0, &mut |path, entry| {
        count += 1;
        write_entry(out, path, &entry)
    })?;
    end(out)?;
    Ok(count)
}

/// The same, kept in memory.
///
/// # Errors
/// Of the file system, with the path.
pub fn collect(directory: &OwnedFd) -> io::Result<Listing> {
    let device = fstatat(directory, ".", AtFlags::AT_SYMLINK_NOFOLLOW)?.st_dev;
    let mut listing = Listing::new();
    walk(directory, Path::new(""), device, 0, &mut |path, entry| {
        listing.insert(path.to_owned(), entry);
        Ok(())
    })?;
    Ok(listing)
}

/// Writes a listing as [`read`] reads it.
///
/// # Errors
/// Of the stream.
pub fn write(listing: &Listing, out: &mut impl Write) -> io::Result<()> {
    listing.iter().try_for_each(|(path, entry)| write_entry(out, path, entry))?;
    end(out)
}

/// Reads a listing of at most `limit` entries.
///
/// # Errors
/// `InvalidArchive` if it is none, ends early, is too long, or names something outside of the directory.
pub fn read(stream: &mut impl BufRead, limit: usize) -> Result<Listing> {
    let mut listing = Listing::new();
    loop {
        let line = field(stream)?;
        if line.is_empty() {
            return if is_tree(&listing) {
                Ok(listing)
            } else {
                Err(invalid("has something below what is no directory"))
            };
        }
        if listing.len() == limit {
            return Err(invalid(format!("has more than {limit} entries")));
        }
        let mut entry = parse(&line).ok_or_else(|| invalid("has a line of no known form"))?;
        let path = PathBuf::from(std::ffi::OsString::from_vec(field(stream)?));
        if path.as_os_str().is_empty() || !path.components().all(|part| matches!(part, Component::Normal(_)))
        {
            return Err(invalid("names something outside of the directory"));
        }
        if entry.kind == Kind::Symlink {
            entry.target = std::ffi::OsString::from_vec(field(stream)?).into();
        }
        listing.insert(path, entry);
    }
}

/// Whether files are only in directories: who makes such a tree, one by one, is led nowhere by its links.
fn is_tree(listing: &Listing) -> bool {
    let above = |path: &Path| {
        path.ancestors()
            .skip(1)
            .all(|path| listing.get(path).is_none_or(|entry| entry.kind == Kind::Directory))
    };
    listing.keys().all(|path| above(path))
}

fn walk(
    directory: &OwnedFd,
    path: &Path,
    device: u64,
    depth: usize,
    visit: &mut dyn FnMut(&Path, Entry) -> io::Result<()>,
) -> io::Result<()> {
    check_depth(depth).map_err(|error| about(path, error))?;
    for name in names(directory).map_err(|error| about(path, error))? {
        let path = path.join(&name);
        let entry = match Entry::of(directory, &name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entry => entry.map_err(|error| about(&path, error))?,
        };
        let is_directory = entry.kind == Kind::Directory;
        visit(&path, entry)?;
        if !is_directory {
            continue;
        }
        let inner = match openat(directory, name.as_os_str(), DIRECTORY, Mode::empty()) {
            // It has just become something else.
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR | nix::errno::Errno::ELOOP) => {
                continue;
            }
            inner => inner.map_err(|error| about(&path, error.into()))?,
        };
        if enters(&inner, device)? {
            walk(&inner, &path, device, depth + 1, visit)?;
        }
    }
    Ok(())
}

fn write_entry(out: &mut impl Write, path: &Path, entry: &Entry) -> io::Result<()> {
    write!(out, "{entry}\0")?;
    out.write_all(path.as_os_str().as_bytes())?;
    out.write_all(b"\0")?;
    if entry.kind == Kind::Symlink {
        out.write_all(entry.target.as_os_str().as_bytes())?;
        out.write_all(b"\0")?;
    }
    Ok(())
}

fn end(out: &mut impl Write) -> io::Result<()> {
    out.write_all(b"\0")?;
    out.flush()
}

fn field(stream: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut field = Vec::new();
    let read = stream.take(MAX_FIELD).read_until(0, &mut field);
    read.map_err(|error| invalid(format!("broke off: {error}")))?;
    match field.pop() {
        Some(0) => Ok(field),
        Some(_) if field.len() as u64 + 1 == MAX_FIELD => Err(invalid("has an entry that is too long")),
        _ => Err(invalid("ended too early")),
    }
}

fn parse(line: &[u8]) -> Option<Entry> {
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let kind = match words.next()? {
        "f" => Kind::File,
        "d" => Kind::Directory,
        "l" => Kind::Symlink,
        "o" => Kind::Other,
        _ => return None,
    };
    let mode = u32::from_str_radix(words.next()?, 8).ok().filter(|mode| mode & !0o7777 == 0)?;
    let entry = Entry {
        kind,
        mode,
        size: words.next()?.parse().ok()?,
        mtime: words.next()?.parse().ok()?,
        ctime: words.next()?.parse().ok()?,
        target: PathBuf::new(),
    };
    words.next().is_none().then_some(entry)
}

fn invalid(what: impl fmt::Display) -> Error {
    ErrorKind::InvalidArchive.error(format!("the listing {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_tree_is_listed_and_read_back() {
        let scratch = tempfile::tempdir().expect("makes");
        let at = |name: &str| scratch.path().join(name);
        std::fs::create_dir_all(at("a/b")).expect("makes");
        std::fs::write(at("a/b/file"), "four").expect("writes");
        std::fs::write(scratch.path().join(OsStr::from_bytes(b"odd \xff\n")), "").expect("writes");
        symlink("../no where", at("a/link")).expect("links");
        nix::unistd::mkfifo(&at("fifo"), Mode::S_IRUSR).expect("makes");

        let directory = crate::unpack::target(scratch.path()).expect("opens");
        let mut bytes = Vec::new();
        assert_eq!(list(&directory, &mut bytes).expect("lists"), 6);
        let listing = read(&mut bytes.as_slice(), 6).expect("reads");
        assert_eq!(listing, collect(&directory).expect("lists"));
        let mut again = Vec::new();
        write(&listing, &mut again).expect("writes");
        assert_eq!(bytes, again);
        let entry = |name: &str| &listing[Path::new(name)];
        assert_eq!((entry("a/b/file").kind, entry("a/b/file").size), (Kind::File, 4));
        assert_eq!(entry("a/link").target, Path::new("../no where"));
        assert_eq!((entry("a/b").kind, entry("fifo").kind), (Kind::Directory, Kind::Other));

        std::fs::write(at("a/b/file"), "FOUR").expect("writes");
        let now = collect(&directory).expect("lists");
        assert_ne!(now[Path::new("a/b/file")], *entry("a/b/file"));
        assert_eq!(now[Path::new("a/b")], *entry("a/b"), "a directory is what it was");

        assert!(read(&mut bytes.as_slice(), 5).is_err(), "too many");
        for end in 0..bytes.len() {
            assert!(read(&mut &bytes[..end], 6).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn hostile_listings() {
        let refused = |bytes: &[u8]| {
            let error = read(&mut &bytes[..], 10).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::InvalidArchive, "{error}");
        };
        assert!(read(&mut &b"f 644 0 0 0\0a\0\0"[..], 10).is_ok());
        for path in ["/etc/passwd", "../up", "a/../../up", ".", ""] {
            refused(format!("f 644 0 0 0\0{path}\0\0").as_bytes());
        }
        for line in
            ["f", "f 644 0 0", "f 644 0 0 0 0", "x 644 0 0 0", "f 77777 0 0 0", "f 644 -1 0 0", "f 9 0 0 0"]
        {
            refused(format!("{line}\0a\0\0").as_bytes());
        }
        refused(b"l 777 0 0 0\0a\0/etc\0f 644 0 0 0\0a/passwd\0\0");
        refused(b"f 644 0 0 0\0a/b/c\0f 644 0 0 0\0a\0\0");
        refused(&vec![b'f'; 100_000]);
    }
}
