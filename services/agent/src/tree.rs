//! Writing as root into trees that belong to others.
//!
//! A user of the guest may put links where the agent is going to write, to have it write somewhere
//! else. So each path is walked component by component, and a link on the way is followed only if
//! root made it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, fchown, symlinkat, unlinkat};

/// Links followed in one path, as the kernel does it.
const MAX_LINKS: usize = 40;

/// What a file is made under, in its directory, before it takes its place.
const FRESH: &str = ".banger.new";

/// User, group, permission bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

/// Root's, for everybody to read.
pub const PUBLIC: Attributes = Attributes { uid: 0, gid: 0, mode: 0o644 };

#[derive(Debug)]
pub struct Directory(OwnedFd);

impl Directory {
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        walk(path.as_ref(), false)
    }

    /// As [`Self::open`], but what is missing of the path is made, for root with mode 0755.
    pub fn make(path: impl AsRef<Path>) -> io::Result<Self> {
        walk(path.as_ref(), true)
    }

    /// A directory in this one that is no link, made if it is missing.
    pub fn make_own(&self, name: &str, attributes: Attributes) -> io::Result<Self> {
        let made = mkdirat(&self.0, name, Mode::S_IRWXU);
        let directory = openat(&self.0, name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())?;
        match made {
            Ok(()) => give(&directory, attributes)?,
            Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Self(directory))
    }

    /// A regular file in it that is no link, if there is one.
    pub fn read(&self, name: impl AsRef<OsStr>, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = self.open_file(name.as_ref())? else { return Ok(None) };
        let mut content = Vec::new();
        file.take(limit + 1).read_to_end(&mut content)?;
        if content.len() as u64 > limit {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too big"));
        }
        Ok(Some(content))
    }

    fn open_file(&self, name: &OsStr) -> io::Result<Option<File>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&self.0, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        Ok(Some(file))
    }

    /// Puts a file in the place of whatever is there, at once and whole. What is right already is
    /// not written again.
    pub fn replace(&self, name: impl AsRef<OsStr>, content: &[u8], attributes: Attributes) -> io::Result<()> {
        let name = name.as_ref();
        if self.has(name, content, attributes) {
            return Ok(());
        }
        let _ = unlinkat(&self.0, FRESH, UnlinkatFlags::NoRemoveDir);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&self.0, FRESH, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        let written = file
            .write_all(content)
            .and_then(|()| give(&file, attributes))
            .and_then(|()| Ok(renameat(&self.0, FRESH, &self.0, name)?));
        if written.is_err() {
            let _ = unlinkat(&self.0, FRESH, UnlinkatFlags::NoRemoveDir);
        }
        written
    }

    fn has(&self, name: &OsStr, content: &[u8], attributes: Attributes) -> bool {
        let Ok(Some(file)) = self.open_file(name) else { return false };
        let same = file.metadata().is_ok_and(|file| {
            let there = Attributes { uid: file.uid(), gid: file.gid(), mode: file.mode() & 0o7777 };
            there == attributes && file.len() == content.len() as u64
        });
        same && self.read(name, content.len() as u64).is_ok_and(|there| there.as_deref() == Some(content))
    }

    /// Puts a symbolic link in the place of a file or link.
    pub fn link(&self, name: &str, target: &str) -> io::Result<()> {
        if readlinkat(&self.0, name).is_ok_and(|there| there == target) {
            return Ok(());
        }
        let _ = unlinkat(&self.0, FRESH, UnlinkatFlags::NoRemoveDir);
        symlinkat(target, &self.0, FRESH)?;
        Ok(renameat(&self.0, FRESH, &self.0, name)?)
    }

    /// Says whether there was something to remove.
    pub fn remove(&self, name: &str) -> io::Result<bool> {
        match unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    pub fn stat(&self, name: impl AsRef<OsStr>) -> io::Result<Option<FileStat>> {
        match fstatat(&self.0, name.as_ref(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The directory that `path` lies in and its name there, with links of root's followed at the end
/// of the path, too.
pub fn find(path: impl AsRef<Path>) -> io::Result<(Directory, OsString)> {
    let mut path = path.as_ref().to_path_buf();
    for _ in 0..MAX_LINKS {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::EINVAL.into());
        };
        let directory = Directory::open(parent)?;
        match directory.stat(name)? {
            Some(stat) if is_link(&stat) && stat.st_uid == 0 => {
                path = parent.join(readlinkat(&directory.0, name)?);
            }
            _ => return Ok((directory, name.to_owned())),
        }
    }
    Err(Errno::ELOOP.into())
}

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

fn walk(path: &Path, make: bool) -> io::Result<Directory> {
    let root = || open("/", DIRECTORY, Mode::empty());
    let mut at = root()?;
    // The next one last.
    let mut ahead = components(path);
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        let place = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let next = match openat(&at, name.as_os_str(), place, Mode::empty()) {
            Err(Errno::ENOENT) if make => {
                mkdirat(&at, name.as_os_str(), Mode::from_bits_truncate(0o755))?;
                openat(&at, name.as_os_str(), place, Mode::empty())?
            }
            next => next?,
        };
        let stat = fstat(&next)?;
        if !is_link(&stat) {
            at = next;
            continue;
        }
        links += 1;
        if links > MAX_LINKS || stat.st_uid != 0 {
            return Err(Errno::ELOOP.into());
        }
        let target = PathBuf::from(readlinkat(&next, "")?);
        if target.is_absolute() {
            at = root()?;
        }
        ahead.extend(components(&target));
    }
    Ok(Directory(openat(&at, ".", DIRECTORY, Mode::empty())?))
}

/// The components of a path, the first one last. `..` above the root is the root.
fn components(path: &Path) -> Vec<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(_) | Component::ParentDir => Some(component.as_os_str().to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    let mut components: Vec<OsString> = path.components().filter_map(name).collect();
    components.reverse();
    components
}

pub fn is_link(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK
}

fn give(file: impl AsFd, attributes: Attributes) -> io::Result<()> {
    // In this order: a change of owner clears the set-user-ID bit.
    fchown(&file, Some(attributes.uid.into()), Some(attributes.gid.into()))?;
    Ok(fchmod(&file, Mode::from_bits_truncate(attributes.mode & 0o7777))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn own(mode: u32) -> Attributes {
        Attributes { uid: nix::unistd::getuid().as_raw(), gid: nix::unistd::getgid().as_raw(), mode }
    }

    /// A directory of this test's own.
    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("banger-agent-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn files_are_replaced_whole() {
        let path = scratch("replace");
        let directory = Directory::make(path.join("a/b")).unwrap();
        directory.replace("file", b"one", own(0o640)).unwrap();
        let file = path.join("a/b/file");
        assert_eq!(fs::read(&file).unwrap(), b"one");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o640);
        let before = fs::metadata(&file).unwrap().ino();
        directory.replace("file", b"one", own(0o640)).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().ino(), before, "what is right is not written");
        directory.replace("file", b"one", own(0o600)).unwrap();
        assert_ne!(fs::metadata(&file).unwrap().ino(), before);
        // A link is replaced, not written through.
        fs::write(path.join("victim"), "safe").unwrap();
        symlink(path.join("victim"), path.join("a/b/link")).unwrap();
        directory.replace("link", b"two", own(0o600)).unwrap();
        assert_eq!(fs::read(path.join("victim")).unwrap(), b"safe");
        assert!(directory.read("link", 2).is_err(), "the limit");
        assert_eq!(directory.read("link", 3).unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(directory.read("missing", 3).unwrap(), None);
        assert!(directory.replace("..", b"", own(0o600)).is_err());
        fs::create_dir(path.join("a/b/directory")).unwrap();
        assert!(directory.replace("directory", b"", own(0o600)).is_err());
        assert!(!path.join("a/b").join(FRESH).exists(), "nothing is left behind");
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn only_roots_links_are_followed() {
        // /proc/self is a link of root's.
        assert!(Directory::open("/proc/self/task").is_ok());
        let path = scratch("links");
        fs::create_dir(path.join("real")).unwrap();
        symlink("real", path.join("link")).unwrap();
        symlink("loop", path.join("loop")).unwrap();
        if nix::unistd::getuid().is_root() {
            assert!(Directory::open(path.join("link")).is_ok());
            let (directory, name) = find(path.join("link")).unwrap();
            assert_eq!(
                (name.as_os_str(), directory.stat("real").unwrap().is_some()),
                ("real".as_ref(), true)
            );
            std::os::unix::fs::lchown(path.join("link"), Some(1), None).unwrap();
            chown(path.join("real"), Some(1), None).unwrap();
        }
        assert!(Directory::open(path.join("link")).is_err());
        assert!(Directory::make(path.join("link/below")).is_err());
        assert!(Directory::open(path.join("loop")).is_err());
        assert!(Directory::open(&path).unwrap().make_own("link", own(0o700)).is_err());
        assert!(Directory::open(&path).unwrap().make_own("real", own(0o700)).is_ok());
        assert!(Directory::open(path.join("missing")).is_err());
        fs::remove_dir_all(path).unwrap();
    }
}
