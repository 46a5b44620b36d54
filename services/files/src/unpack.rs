//! A tar stream as files.
//!
//! Whoever made the stream may want to write elsewhere. So nothing leads out of the directory that is
//! unpacked into: no absolute name, no `..`, no symbolic link on the way, be it there before or made by the
//! archive itself (openat2(2), `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`). A file takes its
//! place when it is whole, and is never written through what was there before.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use banger_api::{Error, ErrorKind, Result};
use banger_core::tar::read::{Header, Kind, TarError, TarReader, lossy};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, futimens, makedev, mkdirat, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{LinkatFlags, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};

use crate::{DIRECTORY, at, beneath, failure, xattr};

const BUFFER: usize = 256 << 10;
/// Remarks kept of one archive.
const MAX_REMARKS: usize = 20;

/// Whose the files become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Whoever unpacks.
    Caller,
    /// User and group.
    As(u32, u32),
    /// As the archive says. Only then set-user-ID and set-group-ID bits, capabilities and access
    /// lists are kept, too: they mean something only together with the owner.
    Archive,
}

#[derive(Debug, Clone)]
pub struct Rules {
    pub owner: Owner,
    /// Whether devices are made, if the owner is kept.
    pub devices: bool,
    /// The one name that all names must begin with.
    pub name: Option<Vec<u8>>,
}

/// What came out of an archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unpacked {
    pub entries: u64,
    /// Of files, without holes.
    pub bytes: u64,
    /// What was left out, and why; no more than some.
    pub remarks: Vec<String>,
}

/// Opens the directory to unpack into, by a path of the caller's own.
///
/// # Errors
/// `NoSuchFile`, `NoSuchDirectory` and others of the file system.
pub fn target(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    openat(AT_FDCWD, path, flags, Mode::empty()).map_err(|error| failure(path, &error.into()))
}

/// Unpacks a stream up to the end that it gives itself.
///
/// # Errors
/// `InvalidArchive` if it is none, ends early or wants to lead out of the directory; `NoSpace`,
/// `FileInTheWay` and others of the file system.
pub fn unpack<R: Read>(stream: R, root: OwnedFd, rules: Rules) -> Result<(Unpacked, R)> {
    let mut unpacker = Unpacker::new(root, rules);
    let rest = unpacker.add(stream)?;
    Ok((unpacker.finish()?, rest))
}

/// Unpacks one stream after the other into the same directory.
pub struct Unpacker {
    root: OwnedFd,
    rules: Rules,
    /// The directory of the last entry, which most often is the next one's, too.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Directories get what they are to be when nothing more is written into them.
    directories: Vec<(PathBuf, Header)>,
    buffer: Vec<u8>,
    unpacked: Unpacked,
}

impl Unpacker {
    pub fn new(root: OwnedFd, rules: Rules) -> Self {
        Self {
            root,
            rules,
            parent: None,
            directories: Vec::new(),
            buffer: vec![0; BUFFER],
            unpacked: Unpacked::default(),
        }
    }

    /// Unpacks a stream; returns what is behind its end.
    ///
    /// # Errors
    /// Those of [`unpack`].
    pub fn add<R: Read>(&mut self, stream: R) -> Result<R> {
        let mut reader = TarReader::new(stream);
        while let Some(header) = reader.next_entry().map_err(invalid)? {
            self.entry(&header, &mut reader)?;
        }
        if !reader.is_ended() {
            return Err(ErrorKind::InvalidArchive.error("the stream ended before its archive did"));
        }
        Ok(reader.into_inner())
    }

    fn entry<R: Read>(&mut self, header: &Header, reader: &mut TarReader<R>) -> Result<()> {
        let path = self.checked(&header.path)?;
        let Some(name) = path.file_name() else {
            // The directory itself, which is the caller's.
            return Ok(());
        };
        let parent = self.parent(path.parent().unwrap_or(Path::new("")))?;
        let made = match header.kind {
            Kind::Directory => self.directory(&parent, name, &path, header),
            Kind::File => self.file(&parent, name, &path, header, reader),
            Kind::HardLink => self.hard_link(&parent, name, &path, header),
            Kind::Symlink | Kind::Fifo => self.special(&parent, name, &path, header),
            Kind::CharDevice | Kind::BlockDevice
                if self.rules.devices && self.rules.owner == Owner::Archive =>
            {
                self.special(&parent, name, &path, header)
            }
            Kind::CharDevice | Kind::BlockDevice => {
                self.remark(&path, "a device, left out");
                Ok(())
            }
        };
        self.parent = Some((path.parent().map(Path::to_owned).unwrap_or_default(), parent));
        made?;
        self.unpacked.entries += 1;
        Ok(())
    }

    /// A name as a path below the directory.
    fn checked(&self, name: &[u8]) -> Result<PathBuf> {
        let path = relative(name)?;
        if let Some(prefix) = &self.rules.name
            && path.components().next().is_none_or(|first| first.as_os_str().as_bytes() != prefix.as_slice())
        {
            let prefix = lossy(prefix);
            return Err(ErrorKind::InvalidArchive
                .error(format!("{:?} is in the archive, but is not part of {prefix:?}", lossy(name))));
        }
        Ok(path)
    }

    /// Opens the directory that an entry belongs into; what is missing of it is made.
    fn parent(&mut self, path: &Path) -> Result<OwnedFd> {
        if let Some((known, fd)) = self.parent.take()
            && known == path
        {
            return Ok(fd);
        }
        match beneath(&self.root, path) {
            Err(Errno::ENOENT) => self.make(path),
            opened => opened.map_err(|error| failure(path, &error.into())),
        }
    }

    fn make(&self, path: &Path) -> Result<OwnedFd> {
        let mut done = PathBuf::new();
        let mut directory = beneath(&self.root, &done).map_err(|error| failure(path, &error.into()))?;
        for name in path.components() {
            done.push(name);
            let made = mkdirat(&directory, name.as_os_str(), Mode::from_bits_truncate(0o755));
            let next = beneath(&self.root, &done).map_err(|error| failure(&done, &error.into()))?;
            match made {
                Ok(()) => self.own(&directory, name.as_os_str(), None),
                Err(Errno::EEXIST) => Ok(()),
                Err(error) => Err(error),
            }
            .map_err(|error| failure(&done, &error.into()))?;
            directory = next;
        }
        Ok(directory)
    }

    fn directory(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path, header: &Header) -> Result<()> {
        let fail = |error: Errno| failure(path, &error.into());
        let made = match mkdirat(parent, name, Mode::S_IRWXU) {
            Ok(()) => true,
            Err(Errno::EEXIST) => {
                openat(parent, name, OFlag::O_PATH | DIRECTORY, Mode::empty()).map_err(
                    |error| match error {
                        Errno::ENOTDIR | Errno::ELOOP => ErrorKind::FileInTheWay.error(format!(
                            "{}: there is something of this name that is no directory; move it away first",
                            path.display()
                        )),
                        error => fail(error),
                    },
                )?;
                false
            }
            Err(error) => return Err(fail(error)),
        };
        // One that was there stays what it is, unless all is to be as in the archive.
        if made || self.rules.owner == Owner::Archive {
            self.directories.push((path.to_owned(), header.clone()));
        }
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        header: &Header,
        reader: &mut TarReader<R>,
    ) -> Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // Rights that come with another owner it gets after that one.
        let mode = (self.mode(header) & Mode::from_bits_truncate(0o777)) | Mode::S_IRUSR | Mode::S_IWUSR;
        let fresh = Fresh::make(parent, path, |fresh| openat(parent, fresh, flags, mode))?;
        let (fresh, file) = (fresh.0, File::from(fresh.1));
        let (mut position, mut written) = (0, 0);
        loop {
            position += reader.skip_hole();
            let got = reader.read(&mut self.buffer).map_err(invalid)?;
            if got == 0 {
                break;
            }
            let done = file.write_all_at(&self.buffer[..got], position);
            done.map_err(|error| failure(path, &error))?;
            position += got as u64;
            written = position;
            self.unpacked.bytes += got as u64;
        }
        // A hole at the end is the one thing that was not written.
        let sized = if position > written { file.set_len(position) } else { Ok(()) };
        let sized = sized.and_then(|()| Ok(self.give(&file, header)?));
        sized.map_err(|error| failure(path, &error))?;
        self.attributes(parent, fresh.name(), path, header)?;
        // After the attributes: setting those changes the mode (an access list) and the times.
        self.settle(&file, header).map_err(|error| failure(path, &error.into()))?;
        fresh.place(name, path)
    }

    fn hard_link(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path, header: &Header) -> Result<()> {
        let target = self.checked(&header.link)?;
        let fail = |error: Errno| failure(&target, &error.into());
        let directory = beneath(&self.root, target.parent().unwrap_or(Path::new(""))).map_err(fail)?;
        let Some(file) = target.file_name() else { return Err(fail(Errno::EISDIR)) };
        let (fresh, ()) =
            Fresh::make(parent, path, |fresh| linkat(&directory, file, parent, fresh, LinkatFlags::empty()))?;
        // Of two names of one file, renaming leaves both: what is left goes with this value.
        fresh.rename(name, path)
    }

    /// A symbolic link, FIFO or device.
    fn special(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path, header: &Header) -> Result<()> {
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let device = makedev(header.major.into(), header.minor.into());
        let (fresh, ()) = Fresh::make(parent, path, |fresh| match header.kind {
            Kind::Symlink => symlinkat(OsStr::from_bytes(&header.link), parent, fresh),
            Kind::CharDevice => mknodat(parent, fresh, SFlag::S_IFCHR, mode, device),
            Kind::BlockDevice => mknodat(parent, fresh, SFlag::S_IFBLK, mode, device),
            _ => mknodat(parent, fresh, SFlag::S_IFIFO, mode, 0),
        })?;
        let fail = |error: Errno| failure(path, &error.into());
        self.own(parent, fresh.name(), Some(header)).map_err(fail)?;
        self.attributes(parent, fresh.name(), path, header)?;
        if header.kind != Kind::Symlink {
            // It was made a moment ago and is no link.
            let mode = self.mode(header);
            fchmodat(parent, fresh.name(), mode, FchmodatFlags::FollowSymlink).map_err(fail)?;
        }
        let time = time(header);
        utimensat(parent, fresh.name(), &time, &time, UtimensatFlags::NoFollowSymlink).map_err(fail)?;
        fresh.place(name, path)
    }

    /// Gives the directories what they are to be.
    ///
    /// # Errors
    /// Of the file system.
    pub fn finish(mut self) -> Result<Unpacked> {
        self.settle_directories()?;
        Ok(std::mem::take(&mut self.unpacked))
    }

    /// The inner ones first.
    fn settle_directories(&mut self) -> Result<()> {
        while let Some((path, header)) = self.directories.pop() {
            let fail = |error: Errno| failure(&path, &error.into());
            let parent = beneath(&self.root, path.parent().unwrap_or(Path::new(""))).map_err(fail)?;
            let Some(name) = path.file_name() else { continue };
            let directory = openat(&parent, name, DIRECTORY, Mode::empty()).map_err(fail)?;
            self.give(&directory, &header).map_err(fail)?;
            self.attributes(&parent, name, &path, &header)?;
            self.settle(&directory, &header).map_err(fail)?;
        }
        Ok(())
    }

    /// Whose an entry is to be, if that is not who makes it.
    fn owner(&self, header: Option<&Header>) -> Option<(u32, u32)> {
        match (self.rules.owner, header) {
            (Owner::Caller, _) | (Owner::Archive, None) => None,
            (Owner::As(uid, gid), _) => Some((uid, gid)),
            (Owner::Archive, Some(header)) => Some((header.uid, header.gid)),
        }
    }

    fn own(&self, parent: &OwnedFd, name: &OsStr, header: Option<&Header>) -> nix::Result<()> {
        let Some((uid, gid)) = self.owner(header) else { return Ok(()) };
        fchownat(parent, name, Some(uid.into()), Some(gid.into()), AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    fn give(&self, file: impl AsFd, header: &Header) -> nix::Result<()> {
        let Some((uid, gid)) = self.owner(Some(header)) else { return Ok(()) };
        fchown(file, Some(uid.into()), Some(gid.into()))
    }

    fn mode(&self, header: &Header) -> Mode {
        let kept = if self.rules.owner == Owner::Archive { 0o7777 } else { 0o1777 };
        Mode::from_bits_truncate(u32::from(header.mode) & kept)
    }

    fn attributes(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path, header: &Header) -> Result<()> {
        for (key, value) in &header.xattrs {
            let kept = self.keeps(key);
            if kept
                && xattr::set(&at(parent).join(name), key, value).map_err(|error| failure(path, &error))?
            {
                continue;
            }
            if kept {
                self.remark(path, &format!("the attribute {} was refused", lossy(key)));
            }
        }
        Ok(())
    }

    /// What a user gives a file, and, together with its owner, what gives rights.
    fn keeps(&self, attribute: &[u8]) -> bool {
        const RIGHTS: [&[u8]; 3] =
            [b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"];
        attribute.starts_with(b"user.") || (self.rules.owner == Owner::Archive && RIGHTS.contains(&attribute))
    }

    fn settle(&self, file: impl AsFd, header: &Header) -> nix::Result<()> {
        let mode = self.mode(header);
        // Most files were made with it, and changing it takes as long as making them.
        if fstat(&file)?.st_mode & 0o7777 != mode.bits() {
            fchmod(&file, mode)?;
        }
        let time = time(header);
        futimens(&file, &time, &time)
    }

    fn remark(&mut self, path: &Path, what: &str) {
        if self.unpacked.remarks.len() < MAX_REMARKS {
            self.unpacked.remarks.push(format!("{}: {what}", path.display()));
        }
    }
}

/// What broke off may be gone on with, by whomever the directories belong to.
impl Drop for Unpacker {
    fn drop(&mut self) {
        while self.settle_directories().is_err() {}
    }
}

/// Something under a name that nobody looks for, until it takes its place or is dropped.
struct Fresh<'a> {
    parent: &'a OwnedFd,
    name: String,
    /// Whether there is nothing of ours under that name, so nothing to remove.
    settled: bool,
}

impl<'a> Fresh<'a> {
    fn make<T>(
        parent: &'a OwnedFd,
        path: &Path,
        make: impl Fn(&OsStr) -> nix::Result<T>,
    ) -> Result<(Self, T)> {
        // Others may be unpacking here, too.
        for number in 0..10_000 {
            let name = format!(".banger-{}-{number}.part", std::process::id());
            match make(OsStr::new(&name)) {
                Ok(made) => return Ok((Self { parent, name, settled: false }, made)),
                Err(Errno::EEXIST) => {}
                Err(error) => return Err(failure(path, &error.into())),
            }
        }
        Err(failure(path, &Errno::EEXIST.into()))
    }

    fn name(&self) -> &OsStr {
        OsStr::new(&self.name)
    }

    fn place(mut self, name: &OsStr, path: &Path) -> Result<()> {
        self.rename(name, path)?;
        self.settled = true;
        Ok(())
    }

    fn rename(&self, name: &OsStr, path: &Path) -> Result<()> {
        renameat(self.parent, self.name(), self.parent, name).map_err(|error| failure(path, &error.into()))
    }
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        if !self.settled {
            let _ = unlinkat(self.parent, self.name(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// A name of an archive as a path that leads nowhere but down; empty for the directory itself.
pub(crate) fn relative(name: &[u8]) -> Result<PathBuf> {
    let refuse = |what: &str| {
        Err(ErrorKind::InvalidArchive
            .error(format!("{:?} in the archive {what}; nothing leads out", lossy(name))))
    };
    if name.starts_with(b"/") {
        return refuse("is an absolute name");
    }
    let mut path = PathBuf::new();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return refuse("leads upwards"),
            part => path.push(OsStr::from_bytes(part)),
        }
    }
    Ok(path)
}

fn time(header: &Header) -> TimeSpec {
    TimeSpec::new(header.mtime, header.mtime_nsec.into())
}

fn invalid(error: TarError) -> Error {
    match error {
        TarError::Io(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
            ErrorKind::Interrupted.error(format!("the stream broke off: {error}"))
        }
        TarError::Io(_) | TarError::Truncated { .. } => {
            ErrorKind::InvalidArchive.error("the stream ended before its archive did")
        }
        TarError::Invalid { entry, reason } if entry.is_empty() => {
            ErrorKind::InvalidArchive.error(format!("the archive's first entry {reason}"))
        }
        TarError::Invalid { entry, reason } => {
            ErrorKind::InvalidArchive.error(format!("the archive's entry {entry:?} {reason}"))
        }
    }
}

#[cfg(test)]
mod tests;
