//! Bytes of a blob from a registry to a file.

use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::{Response, StatusCode};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::partial::Partial;
use crate::error::{Error, Result};
use crate::registry::retry::back_off;
use crate::registry::{Descriptor, Endpoint};

/// How often one blob's download goes on after it broke off without bringing much.
const RESUMES: u32 = 5;
/// Bytes that are worth another connection.
const MUCH: u64 = 1 << 20;
/// Chunks between the network and the disk.
const QUEUE: usize = 16;

/// What a blob is called in messages.
pub fn layer_of(endpoint: &Endpoint, blob: &Descriptor) -> String {
    format!("layer {} of {}", &blob.digest[..blob.digest.len().min(19)], endpoint.reference())
}

/// Receives the rest of a blob, however often the connection breaks, as long as more arrives.
pub async fn receive(
    endpoint: &Endpoint,
    blob: &Descriptor,
    partial: Partial,
    arrived: &AtomicU64,
) -> Result<Partial> {
    let mut received = partial.length;
    let mut file = Writer::new(partial);
    let mut failures = 0;
    while received < blob.size {
        let before = received;
        let broke = match endpoint.open_blob(&blob.digest, received).await {
            Ok(response) => pour(endpoint, blob, response, &mut file, &mut received, arrived).await?,
            // It was there a moment ago.
            Err(error @ Error::RegistryUnreachable { .. }) if received > 0 => Some(error),
            // It gave a part, and has no more: what it stores is cut.
            Err(Error::RegistryFailed { .. }) if received > 0 => return Err(cut(endpoint, blob, received)),
            Err(error) => return Err(error),
        };
        failures = if received - before >= MUCH { 1 } else { failures + 1 };
        if received < blob.size {
            if failures > RESUMES {
                return Err(broke.unwrap_or_else(|| cut(endpoint, blob, received)));
            }
            tokio::time::sleep(back_off(failures)).await;
        }
    }
    file.close().await
}

fn cut(endpoint: &Endpoint, blob: &Descriptor, found: u64) -> Error {
    Error::Truncated { what: layer_of(endpoint, blob), wanted: blob.size, found }
}

/// Pours one answer into the file. Returns why it broke off, if it says.
async fn pour(
    endpoint: &Endpoint,
    blob: &Descriptor,
    mut response: Response,
    file: &mut Writer,
    received: &mut u64,
    arrived: &AtomicU64,
) -> Result<Option<Error>> {
    // A registry that ignores the range sends everything again: skip what is there.
    let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { *received };
    loop {
        let chunk = match response.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Ok(None),
            Err(error) => return Ok(Some(endpoint.unreachable(&error))),
        };
        let known = skip.min(chunk.len() as u64);
        skip -= known;
        let chunk = &chunk[known as usize..];
        *received += chunk.len() as u64;
        if *received > blob.size {
            let what = layer_of(endpoint, blob);
            let promise = blob.size;
            return Err(Error::InvalidManifest(format!(
                "{what} is longer than the {promise} bytes it promises"
            )));
        }
        if !chunk.is_empty() && !file.write(chunk.to_vec()).await {
            // Why, it says when it is closed.
            *received = blob.size;
            return Ok(None);
        }
        arrived.store(*received, Ordering::Relaxed);
    }
}

/// Hashes and writes beside the event loop, which must never wait for a disk. Dropped, it ends once
/// it has written what it was given.
struct Writer {
    chunks: mpsc::Sender<Vec<u8>>,
    end: JoinHandle<Result<Partial>>,
}

impl Writer {
    fn new(mut partial: Partial) -> Self {
        let (chunks, mut incoming) = mpsc::channel::<Vec<u8>>(QUEUE);
        let end = tokio::task::spawn_blocking(move || {
            while let Some(chunk) = incoming.blocking_recv() {
                partial.append(&chunk)?;
            }
            Ok(partial)
        });
        Self { chunks, end }
    }

    /// `false`: it has failed.
    async fn write(&mut self, chunk: Vec<u8>) -> bool {
        self.chunks.send(chunk).await.is_ok()
    }

    async fn close(self) -> Result<Partial> {
        drop(self.chunks);
        self.end.await?
    }
}
