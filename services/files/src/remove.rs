//! Files that are not to be there any more.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use banger_api::{Error, ErrorKind, Result};
use nix::errno::Errno;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::unpack::relative;
use crate::{beneath, failure, is_gone};

/// Removes files by their paths below a directory, through no link, and the directories that nothing is left in.
/// Returns how many files that were; what is not there is no error, and a directory with something in it stays.
///
/// # Errors
/// `InvalidArgs` for a path that leads out; others of the file system.
pub fn remove<'a>(root: &OwnedFd, paths: impl IntoIterator<Item = &'a [u8]>) -> Result<u64> {
    let mut removed = 0;
    for path in paths {
        let path = relative(path).map_err(|_| leads_out(path))?;
        removed += u64::from(remove_one(root, &path).map_err(|error| failure(&path, &error))?);
        prune(root, path.parent());
    }
    Ok(removed)
}

fn leads_out(path: &[u8]) -> Error {
    let path = String::from_utf8_lossy(path);
    ErrorKind::InvalidArgs.error(format!("{path:?} leads out of the directory"))
}

fn remove_one(root: &OwnedFd, path: &Path) -> io::Result<bool> {
    let Some(name) = path.file_name() else { return Ok(false) };
    let parent = match beneath(root, path.parent().unwrap_or(Path::new(""))).map_err(io::Error::from) {
        Err(error) if is_gone(&error) => return Ok(false),
        parent => parent?,
    };
    let removed = match unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => unlinkat(&parent, name, UnlinkatFlags::RemoveDir),
        removed => removed,
    };
    match removed {
        Ok(()) => Ok(true),
        Err(Errno::ENOENT | Errno::ENOTEMPTY) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Removes the directories above that have become empty; the first that has something in it ends it.
fn prune(root: &OwnedFd, mut directory: Option<&Path>) {
    while let Some(path) = directory
        && let Some(name) = path.file_name()
        && let Ok(parent) = beneath(root, path.parent().unwrap_or(Path::new("")))
        && unlinkat(&parent, name, UnlinkatFlags::RemoveDir).is_ok()
    {
        directory = path.parent();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_what_is_named_goes_and_nothing_outside() {
        let scratch = tempfile::tempdir().expect("makes");
        let at = |name: &str| scratch.path().join(name);
        for directory in ["outside", "in/a/b/c", "in/kept/full"] {
            std::fs::create_dir_all(at(directory)).expect("makes");
        }
        for file in ["outside/victim", "in/a/b/c/file", "in/kept/full/file", "in/kept/other"] {
            std::fs::write(at(file), "").expect("writes");
        }
        symlink("../outside", at("in/link")).expect("links");
        let root = crate::unpack::target(&at("in")).expect("opens");
        let removed = |paths: &[&str]| remove(&root, paths.iter().map(|path| path.as_bytes()));

        assert_eq!(removed(&["a/b/c/file", "kept/other", "no/such", "kept/full", "link/victim"]), Ok(2));
        assert!(!at("in/a").exists(), "empty directories go with their files");
        assert!(at("in/kept/full/file").exists() && at("outside/victim").exists());
        for path in ["../outside/victim", "/etc/passwd", "a/../../outside/victim"] {
            assert_eq!(removed(&[path]).expect_err("refused").kind(), ErrorKind::InvalidArgs, "{path}");
        }
        assert_eq!(removed(&["link"]), Ok(1));
        assert!(at("outside/victim").exists());
    }
}
