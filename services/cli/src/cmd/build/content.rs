//! Files of the host that are copied into an image: regular files, symbolic links and directories.
//!
//! Their times are not kept: every checkout would be another build.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use banger_api::{Error, ErrorKind, Result};
use banger_core::tar::{self, Header, Kind};
use sha2::{Digest, Sha256};

use super::file::Copy;
use crate::cmd::hex;

/// 1980-01-01: zip knows no earlier time.
const MTIME: i64 = 315_532_800;

/// What a copy consists of, without the content of the files.
#[derive(Debug)]
pub struct Content {
    /// From the top down: path in the guest, mode.
    pub directories: Vec<(String, u32)>,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    /// On the host.
    source: PathBuf,
    /// In the guest, without a slash at the beginning.
    path: Vec<u8>,
    mode: u32,
    /// Target of a symbolic link.
    link: Option<Vec<u8>>,
}

impl Content {
    /// Looks at what there is to copy.
    ///
    /// # Errors
    /// `InvalidArgs` for what cannot be read or copied.
    pub fn find(directory: &Path, copy: &Copy) -> Result<Self> {
        let source = directory.join(&copy.from);
        let metadata = fs::metadata(&source).map_err(|error| unreadable(&source, &error))?;
        let mut content = Self { directories: Vec::new(), entries: Vec::new() };
        if metadata.is_dir() {
            if copy.mode.is_some() {
                return Err(ErrorKind::InvalidArgs
                    .error(format!("{} is a directory: mode is that of one file", source.display())));
            }
            content.tree(&source, copy.to.trim_end_matches('/'), &metadata)?;
        } else {
            // Into a directory, if that is what the path says.
            let name = source.file_name().filter(|_| copy.to.ends_with('/')).and_then(|name| name.to_str());
            let to = format!("{}{}", copy.to, name.unwrap_or_default());
            if to.ends_with('/') {
                return Err(
                    ErrorKind::InvalidArgs.error(format!("{} names no file: {to:?}", source.display()))
                );
            }
            let parent = to.rsplit_once('/').map_or("", |(parent, _)| parent);
            if !parent.is_empty() {
                content.directories.push((parent.to_owned(), 0o755));
            }
            content.file(source, &to, &metadata, copy.mode)?;
        }
        Ok(content)
    }

    fn tree(&mut self, source: &Path, to: &str, metadata: &Metadata) -> Result<()> {
        if !to.is_empty() {
            self.directories.push((to.to_owned(), metadata.permissions().mode() & 0o7777));
        }
        let entries = fs::read_dir(source).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = entries.map_err(|error| unreadable(source, &error))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let source = entry.path();
            let metadata = entry.metadata().map_err(|error| unreadable(&source, &error))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                return Err(ErrorKind::InvalidArgs.error(format!("{} is not UTF-8", source.display())));
            };
            let to = format!("{to}/{name}");
            if metadata.is_dir() {
                self.tree(&source, &to, &metadata)?;
            } else {
                self.file(source, &to, &metadata, None)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, source: PathBuf, to: &str, metadata: &Metadata, mode: Option<u32>) -> Result<()> {
        let link = match metadata.file_type() {
            kind if kind.is_file() => None,
            kind if kind.is_symlink() => {
                let target = fs::read_link(&source).map_err(|error| unreadable(&source, &error))?;
                Some(target.into_os_string().into_vec())
            }
            _ => {
                let reason = "is neither a file, a directory nor a symbolic link";
                return Err(ErrorKind::InvalidArgs.error(format!("{} {reason}", source.display())));
            }
        };
        let mode = mode.unwrap_or_else(|| metadata.permissions().mode() & 0o7777);
        self.entries.push(Entry { source, path: to.trim_start_matches('/').into(), mode, link });
        Ok(())
    }

    /// The digest of everything but the owner.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn digest(&self) -> Result<String> {
        self.write(&mut io::sink(), (0, 0))
    }

    /// Writes a tar in which everything belongs to `owner`, and returns the digest of everything else.
    ///
    /// # Errors
    /// If a file cannot be read, or nobody reads the tar.
    pub fn write(&self, out: &mut impl Write, owner: (u32, u32)) -> Result<String> {
        let mut hash = Sha256::new();
        for (path, mode) in &self.directories {
            hash.update(format!("{mode:o} {path}\0"));
        }
        for entry in &self.entries {
            entry.write(out, owner, &mut hash).map_err(|error| unreadable(&entry.source, &error))?;
        }
        out.write_all(&tar::END).and_then(|()| out.flush()).map_err(Error::from)?;
        Ok(hex(&hash.finalize()))
    }
}

impl Entry {
    fn write(&self, out: &mut impl Write, owner: (u32, u32), hash: &mut Sha256) -> io::Result<()> {
        let mut file = match &self.link {
            Some(_) => None,
            None => Some(File::open(&self.source)?),
        };
        let size = file.as_ref().map_or(Ok(0), |file| file.metadata().map(|metadata| metadata.len()))?;
        let header = Header {
            path: &self.path,
            link: self.link.as_deref().unwrap_or_default(),
            kind: if self.link.is_some() { Kind::Symlink } else { Kind::File },
            mode: self.mode,
            uid: 0,
            gid: 0,
            mtime: MTIME,
            mtime_nsec: 0,
            xattrs: &[],
        };
        hash.update(tar::gnu_head(&header, size)?);
        out.write_all(&tar::gnu_head(&Header { uid: owner.0, gid: owner.1, ..header }, size)?)?;
        let mut left = size;
        let mut buffer = vec![0; 256 << 10];
        while let (Some(file), true) = (&mut file, left > 0) {
            let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = file.read(&mut buffer[..want])?;
            if got == 0 {
                return Err(io::Error::other("it became shorter while it was read"));
            }
            hash.update(&buffer[..got]);
            out.write_all(&buffer[..got])?;
            left -= got as u64;
        }
        out.write_all(tar::padding(size))
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    let name = String::from_utf8_lossy(path.as_os_str().as_bytes());
    ErrorKind::InvalidArgs.error(format!("cannot copy {name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn copy(from: &str, to: &str, mode: Option<u32>) -> Copy {
        Copy { from: from.into(), to: to.into(), mode, owner: "0:0".into() }
    }

    #[test]
    fn a_tree_is_the_same_wherever_it_is() {
        let make = |content: &str| {
            let dir = tempfile::tempdir().expect("a directory");
            fs::create_dir_all(dir.path().join("app/sub")).expect("makes");
            fs::write(dir.path().join("app/sub/file"), content).expect("writes");
            symlink("sub/file", dir.path().join("app/link")).expect("links");
            dir
        };
        let (one, two, other) = (make("x"), make("x"), make("y"));
        let find = |dir: &tempfile::TempDir| {
            Content::find(dir.path(), &copy("app", "/srv/app/", None)).expect("found")
        };
        let digest = |dir| find(dir).digest().expect("reads");
        assert_eq!(digest(&one), digest(&two));
        assert_ne!(digest(&one), digest(&other));
        let content = find(&one);
        let paths: Vec<_> = content.directories.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, ["/srv/app", "/srv/app/sub"]);
        let mut tar = Vec::new();
        assert_eq!(content.write(&mut tar, (1000, 7)).expect("writes"), digest(&two));
        assert!(tar.starts_with(b"srv/app/link\0") && tar.len() % 512 == 0);
        assert_eq!(&tar[108..123], b"0001750\x000000007");
        fs::set_permissions(one.path().join("app/sub/file"), fs::Permissions::from_mode(0o600))
            .expect("sets");
        assert_ne!(digest(&one), digest(&two));
    }

    #[test]
    fn one_file_and_what_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("f"), "x").expect("writes");
        let find = |from: &str, to: &str, mode| Content::find(dir.path(), &copy(from, to, mode));
        let path = |to: &str| find("f", to, Some(0o4711)).expect("found").entries.remove(0);
        assert_eq!((path("/etc/g").path, path("/etc/g").mode), (b"etc/g".to_vec(), 0o4711));
        assert_eq!(path("/etc/").path, b"etc/f");
        assert_eq!(path("/g").path, b"g");
        assert!(find("nothing", "/g", None).is_err());
        assert!(find(".", "/g", Some(0o644)).is_err());
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("makes");
        assert!(find(".", "/g", None).is_err());
    }
}
