//! Blobs by their digest. A blob is in its place only once its bytes are verified and durable, so
//! whoever finds one may trust it.
//!
//! Two that need the same blob share one download. A blob is kept while an image in the database
//! names it or a pull under way has pinned it. What arrived of one whose download broke off is kept
//! for a day, so that the next pull goes on from there, after a restart too.

mod partial;
mod receive;

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use banger_daemon::locks::{Held, Locks};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::digest;
use crate::error::{Error, Result};
use crate::files::{self, Files};
use crate::flights::{Flight, Flights};
use crate::registry::{Descriptor, Endpoint};
use crate::service::blocking;
use partial::Partial;
use receive::{layer_of, receive};

#[derive(Clone)]
pub struct Blobs {
    files: Files,
    flights: Flights<AtomicU64, ()>,
    locks: Locks,
    /// Of all pulls together.
    downloads: Arc<Semaphore>,
    pins: Arc<Mutex<HashMap<String, usize>>>,
}

/// Keeps blobs from being collected.
pub struct Pins {
    blobs: Blobs,
    digests: Vec<String>,
}

impl Blobs {
    /// With so many downloads at a time.
    pub fn new(files: Files, downloads: usize) -> Self {
        Self {
            files,
            flights: Flights::default(),
            locks: Locks::default(),
            downloads: Arc::new(Semaphore::new(downloads)),
            pins: Arc::default(),
        }
    }

    fn lock_pins(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn pin(&self, digests: impl IntoIterator<Item = String>) -> Pins {
        let digests: Vec<String> = digests.into_iter().collect();
        let mut pins = self.lock_pins();
        for digest in &digests {
            *pins.entry(digest.clone()).or_default() += 1;
        }
        Pins { blobs: self.clone(), digests }
    }

    pub fn open(&self, hex: &str) -> Result<File> {
        File::open(self.files.blob(hex)).map_err(Error::io(format!("cannot open the blob {hex}")))
    }

    /// Makes sure that a blob is there: joins its download, or begins it, unless it is there already.
    /// The flight's progress is the number of bytes that have arrived.
    pub fn fetch(&self, endpoint: &Arc<Endpoint>, blob: &Descriptor) -> Flight<AtomicU64, ()> {
        let name = format!("{} {}", blob.hex(), blob.size);
        self.flights.join(&name, |arrived| {
            let (blobs, endpoint, blob) = (self.clone(), endpoint.clone(), blob.clone());
            async move {
                // Whoever was here before may still be writing what had arrived.
                let mine = blobs.locks.lock(blob.hex()).await;
                if blobs.has(&blob) {
                    arrived.store(blob.size, Ordering::Relaxed);
                    return Ok(());
                }
                let _slot = blobs.downloads.acquire().await.map_err(|_| Error::Canceled)?;
                blobs.download(&endpoint, &blob, mine, &arrived).await
            }
        })
    }

    fn has(&self, blob: &Descriptor) -> bool {
        std::fs::metadata(self.files.blob(blob.hex())).is_ok_and(|found| found.len() == blob.size)
    }

    /// Goes on where an earlier download broke off. What is left of that is trusted only as far as
    /// the digest of the whole: if it does not come out right, everything is fetched again.
    async fn download(
        &self,
        endpoint: &Endpoint,
        blob: &Descriptor,
        mine: Held,
        arrived: &AtomicU64,
    ) -> Result<()> {
        let path = self.files.partial(blob.hex());
        let size = blob.size;
        let mut partial = blocking(move || Partial::open(path, size, mine)).await?;
        loop {
            let resumed = partial.length > 0;
            arrived.store(partial.length, Ordering::Relaxed);
            partial = receive(endpoint, blob, partial, arrived).await?;
            let (wanted, target) = (blob.hex().to_owned(), self.files.blob(blob.hex()));
            match blocking(move || partial.finish(&wanted, &target)).await? {
                None => return Ok(()),
                Some((emptied, _)) if resumed => partial = emptied,
                Some((_, found)) => {
                    let what = layer_of(endpoint, blob);
                    return Err(Error::DigestMismatch { what, wanted: blob.digest.clone(), found });
                }
            }
        }
    }

    /// Stores a blob that comes from a file, verifying it.
    pub fn import(&self, mut from: impl std::io::Read, blob: &Descriptor) -> Result<()> {
        if self.has(blob) {
            return Ok(());
        }
        let (mut file, path) = self.files.temporary()?;
        let temporary = Temporary(path);
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 128 << 10];
        let mut count = 0u64;
        loop {
            let got = from.read(&mut buffer).map_err(|error| Error::Unreadable {
                what: format!("blob {}", blob.digest),
                reason: error.to_string(),
            })?;
            if got == 0 {
                break;
            }
            count += got as u64;
            if count > blob.size {
                return Err(Error::InvalidManifest(format!("{} is longer than it promises", blob.digest)));
            }
            hash.update(&buffer[..got]);
            file.write_all(&buffer[..got]).map_err(Error::io("cannot store a blob"))?;
        }
        let what = format!("blob {}", blob.digest);
        if count < blob.size {
            return Err(Error::Truncated { what, wanted: blob.size, found: count });
        }
        let found = digest::hex(&hash.finalize());
        if found != blob.hex() {
            return Err(Error::DigestMismatch {
                what,
                wanted: blob.digest.clone(),
                found: format!("sha256:{found}"),
            });
        }
        keep(&file, &temporary.0, &self.files.blob(blob.hex()))
    }

    /// Removes the blobs that nobody has pinned and `is_used` does not know, out of `candidates`,
    /// or of all. To be called within a database transaction: then no image that names a blob can
    /// be published between the look and the removal.
    pub fn collect<E: From<Error>>(
        &self,
        candidates: Option<Vec<String>>,
        is_used: impl Fn(&str) -> Result<bool, E>,
    ) -> Result<(), E> {
        let candidates = match candidates {
            Some(candidates) => candidates,
            None => files::list(&self.files.blobs)?,
        };
        let pins = self.lock_pins();
        for blob in candidates {
            if !pins.contains_key(&blob) && !is_used(&blob)? {
                files::remove(&self.files.blob(&blob));
            }
        }
        Ok(())
    }
}

impl Pins {
    pub fn digests(&self) -> Vec<String> {
        self.digests.clone()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut pins = self.blobs.lock_pins();
        for digest in &self.digests {
            if let Some(count) = pins.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(digest);
                }
            }
        }
    }
}

struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        files::remove(&self.0);
    }
}

/// Makes a file durable in its place.
fn keep(file: &File, path: &Path, target: &Path) -> Result<()> {
    let store = || -> std::io::Result<()> {
        file.sync_all()?;
        std::fs::rename(path, target)?;
        files::sync_dir(target.parent().unwrap_or(target))
    };
    store().map_err(Error::io("cannot store a blob"))
}
