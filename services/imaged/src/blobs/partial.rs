//! What has arrived of a blob: a file that grows, with the digest of its bytes so far.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use banger_daemon::locks::Held;
use sha2::{Digest, Sha256};

use super::keep;
use crate::digest;
use crate::error::{Error, Result};
use crate::files;

pub struct Partial {
    /// Bytes in it.
    pub length: u64,
    file: File,
    path: PathBuf,
    hash: Sha256,
    /// Nobody else writes to it meanwhile.
    _mine: Held,
}

impl Partial {
    /// Opens what an earlier download left of a blob of `size` bytes, or begins.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(path: PathBuf, size: u64, mine: Held) -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(&path)
            .map_err(failed(&path))?;
        let mut hash = Sha256::new();
        let mut length = hash_all(&mut file, &mut hash).map_err(failed(&path))?;
        // A whole one would have been moved to its place, unless it was wrong.
        if length >= size {
            (hash, length) = (Sha256::new(), 0);
            empty(&mut file).map_err(failed(&path))?;
        }
        Ok(Self { length, file, path, hash, _mine: mine })
    }

    /// # Errors
    /// If it cannot be stored. Then nothing is left: the disk may be full.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|error| {
            files::remove(&self.path);
            failed(&self.path)(error)
        })
    }

    /// Moves it to its place if it is the blob with this digest. If not, it comes back empty, with the
    /// digest that was found.
    ///
    /// # Errors
    /// If it cannot be made durable.
    pub fn finish(mut self, wanted: &str, target: &Path) -> Result<Option<(Self, String)>> {
        let found = digest::hex(&std::mem::take(&mut self.hash).finalize());
        if found == wanted {
            keep(&self.file, &self.path, target).inspect_err(|_| files::remove(&self.path))?;
            return Ok(None);
        }
        empty(&mut self.file).map_err(failed(&self.path))?;
        self.length = 0;
        Ok(Some((self, format!("sha256:{found}"))))
    }
}

/// A file without bytes is of no use to anybody.
impl Drop for Partial {
    fn drop(&mut self) {
        if self.length == 0 {
            files::remove(&self.path);
        }
    }
}

fn empty(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0)).map(drop)
}

fn hash_all(file: &mut File, hash: &mut Sha256) -> io::Result<u64> {
    let mut buffer = vec![0; 128 << 10];
    let mut length = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(length),
            got => {
                hash.update(&buffer[..got]);
                length += got as u64;
            }
        }
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    Error::io(format!("cannot store {}", path.display()))
}
