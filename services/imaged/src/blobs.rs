//! Blobs by their digest. A blob is in its place only once its bytes are verified and durable, so
//! whoever finds one may trust it.
//!
//! Two that need the same blob share one download: the second waits for the first and finds it
//! done, or goes on if the first was canceled. A blob is kept while an image in the database names
//! it or a pull under way has pinned it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, mpsc};

use crate::digest;
use crate::error::{Error, Result};
use crate::files::{self, Files};
use crate::keyed::Keyed;
use crate::registry::client::{back_off, unreachable};
use crate::registry::{Descriptor, Reference, Registry};

/// Downloads at a time, of all pulls together.
const DOWNLOADS: usize = 4;
/// How often one blob's download goes on after it broke off.
const RESUMES: u32 = 5;
/// Chunks between the network and the disk.
const QUEUE: usize = 16;

#[derive(Clone)]
pub struct Blobs {
    files: Files,
    locks: Keyed,
    downloads: Arc<Semaphore>,
    pins: Arc<Mutex<HashMap<String, usize>>>,
}

/// Keeps blobs from being collected.
pub struct Pins {
    blobs: Blobs,
    digests: Vec<String>,
}

impl Blobs {
    pub fn new(files: Files) -> Self {
        Self {
            files,
            locks: Keyed::default(),
            downloads: Arc::new(Semaphore::new(DOWNLOADS)),
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

    /// Makes sure that a blob is there. `progress` counts its bytes as they arrive; all at once
    /// if nothing has to be fetched.
    pub async fn fetch(
        &self,
        registry: &Registry,
        reference: &Reference,
        blob: &Descriptor,
        insecure: bool,
        progress: &AtomicU64,
    ) -> Result<()> {
        let _mine = self.locks.lock(blob.hex()).await;
        if self.has(blob) {
            progress.fetch_add(blob.size, Ordering::Relaxed);
            return Ok(());
        }
        let _slot = self.downloads.acquire().await.map_err(|_| Error::Canceled)?;
        self.download(registry, reference, blob, insecure, progress).await
    }

    fn has(&self, blob: &Descriptor) -> bool {
        std::fs::metadata(self.files.blob(blob.hex())).is_ok_and(|found| found.len() == blob.size)
    }

    async fn download(
        &self,
        registry: &Registry,
        reference: &Reference,
        blob: &Descriptor,
        insecure: bool,
        progress: &AtomicU64,
    ) -> Result<()> {
        let (file, path) = self.files.temporary()?;
        let temporary = Temporary(path);
        // Hashing and writing happen beside the event loop, which must never wait for a disk.
        let (chunks, mut incoming) = mpsc::channel::<Vec<u8>>(QUEUE);
        let writer = tokio::task::spawn_blocking(move || -> Result<(File, String)> {
            let mut file = file;
            let mut hash = Sha256::new();
            while let Some(chunk) = incoming.blocking_recv() {
                hash.update(&chunk);
                file.write_all(&chunk).map_err(Error::io("cannot store a blob"))?;
            }
            Ok((file, digest::hex(&hash.finalize())))
        });

        let what = || format!("layer {} of {reference}", &blob.digest[..blob.digest.len().min(19)]);
        let mut received = 0u64;
        let mut resumes = 0;
        'connection: while received < blob.size {
            let mut response = match registry.open_blob(reference, &blob.digest, received, insecure).await {
                // It gave a part, and has no more: what it stores is cut.
                Err(Error::RegistryFailed { .. }) if received > 0 => {
                    return Err(Error::Truncated { what: what(), wanted: blob.size, found: received });
                }
                response => response?,
            };
            // A registry that ignores the range sends everything again: skip what is there.
            let mut skip =
                if response.status() == reqwest::StatusCode::PARTIAL_CONTENT { 0 } else { received };
            loop {
                let broke = match response.chunk().await {
                    Ok(Some(chunk)) => {
                        let chunk = if skip >= chunk.len() as u64 {
                            skip -= chunk.len() as u64;
                            continue;
                        } else {
                            let rest = &chunk[skip as usize..];
                            skip = 0;
                            rest.to_vec()
                        };
                        received += chunk.len() as u64;
                        if received > blob.size {
                            return Err(Error::InvalidManifest(format!(
                                "{} is longer than the {} bytes it promises",
                                what(),
                                blob.size
                            )));
                        }
                        progress.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                        if chunks.send(chunk).await.is_err() {
                            break 'connection;
                        }
                        continue;
                    }
                    Ok(None) if received == blob.size => break 'connection,
                    Ok(None) => None,
                    Err(error) => Some(error),
                };
                resumes += 1;
                if resumes > RESUMES {
                    return Err(match broke {
                        Some(error) if received == 0 => unreachable(reference, &error),
                        _ => Error::Truncated { what: what(), wanted: blob.size, found: received },
                    });
                }
                tokio::time::sleep(back_off(resumes)).await;
                continue 'connection;
            }
        }
        drop(chunks);
        let (file, found) = writer.await??;
        if found != blob.hex() {
            return Err(Error::DigestMismatch {
                what: what(),
                wanted: blob.digest.clone(),
                found: format!("sha256:{found}"),
            });
        }
        let target = self.files.blob(blob.hex());
        tokio::task::spawn_blocking(move || keep(&file, &temporary, target)).await?
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
        keep(&file, &temporary, self.files.blob(blob.hex()))
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

fn keep(file: &File, temporary: &Temporary, target: PathBuf) -> Result<()> {
    let store = || -> std::io::Result<()> {
        file.sync_all()?;
        std::fs::rename(&temporary.0, &target)?;
        files::sync_dir(target.parent().unwrap_or(&target))
    };
    store().map_err(Error::io("cannot store a blob"))
}
