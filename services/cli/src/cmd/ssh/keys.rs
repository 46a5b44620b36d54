//! The keys of banger's own, in a directory of the user's: one to log in with, and one for the server that ssh(1) talks to.

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use banger_api::{Error, ErrorKind, Result};
use banger_ssh::Key;
use tempfile::NamedTempFile;

use crate::dirs::directory;

/// What hosts that we serve are called in `known_hosts`.
pub const HOST_ALIAS: &str = "banger";
const COMMENT: &str = "banger";
const USER_KEY: &str = "id_ed25519";
const HOST_KEY: &str = "host_ed25519";

#[derive(Debug)]
pub struct Keys {
    directory: PathBuf,
    pub user: Key,
    pub host: Key,
}

impl Keys {
    /// Those that there are, or new ones.
    pub fn open() -> Result<Self> {
        Self::open_in(&directory("XDG_DATA_HOME", ".local/share")?.join("banger/ssh"))
    }

    fn open_in(directory: &Path) -> Result<Self> {
        let failed = |error: io::Error| Error::from(error).context(directory.display());
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let keys = Self {
            user: key(&directory.join(USER_KEY))?,
            host: key(&directory.join(HOST_KEY))?,
            directory: directory.to_owned(),
        };
        let known = format!("{HOST_ALIAS} {}\n", keys.host.line(COMMENT));
        let public = format!("{}\n", keys.user.line(COMMENT));
        for (file, content) in [(keys.known_hosts(), known), (directory.join("id_ed25519.pub"), public)] {
            if fs::read(&file).ok().as_deref() != Some(content.as_bytes()) {
                write(directory, content.as_bytes())
                    .and_then(|new| Ok(new.persist(&file)?))
                    .map_err(failed)?;
            }
        }
        Ok(keys)
    }

    pub fn user_file(&self) -> PathBuf {
        self.directory.join(USER_KEY)
    }

    pub fn known_hosts(&self) -> PathBuf {
        self.directory.join("known_hosts")
    }
}

/// The key in a file. Of several who make it at once, one does.
fn key(file: &Path) -> Result<Key> {
    let failed = |error: io::Error| Error::from(error).context(file.display());
    if !file.try_exists().map_err(failed)? {
        let content = Key::generate().map_err(Error::internal)?.to_file(COMMENT);
        let new = write(file.parent().unwrap_or(file), content.as_bytes()).map_err(failed)?;
        match new.persist_noclobber(file) {
            Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(error.error));
            }
            _ => {}
        }
    }
    let content = fs::read_to_string(file).map_err(failed)?;
    Key::from_file(&content).map_err(|error| {
        let file = file.display();
        ErrorKind::InvalidArgs.error(format!("{file}: {error}; banger makes a new one if you move it away"))
    })
}

/// A file that only the user can read, still without its name.
pub fn write(directory: &Path, content: &[u8]) -> io::Result<NamedTempFile> {
    let mut file = NamedTempFile::new_in(directory)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_are_made_once_whoever_is_first() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = place.path().join("banger/ssh");
        let made: Vec<_> = std::thread::scope(|scope| {
            let makers: Vec<_> =
                (0..8).map(|_| scope.spawn(|| Keys::open_in(&directory).expect("keys"))).collect();
            makers.into_iter().map(|maker| maker.join().expect("joins")).collect()
        });
        let first = &made[0];
        assert!(made.iter().all(|keys| keys.user.public() == first.user.public()));
        assert!(made.iter().all(|keys| keys.host.public() == first.host.public()));
        assert_ne!(first.user.public(), first.host.public());
        let mode = |path: &Path| fs::metadata(path).expect("is there").permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&first.user_file())), (0o700, 0o600));
        let names = fs::read_dir(&directory).expect("lists").count();
        assert_eq!(names, 4, "two private keys, a public one, known_hosts");

        fs::write(first.user_file(), "nonsense").expect("writes");
        let error = Keys::open_in(&directory).expect_err("refused");
        assert!(error.message().contains("id_ed25519"), "{error}");
    }
}
