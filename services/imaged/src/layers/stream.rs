//! A layer as a stream of tar bytes, whatever it is compressed with.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};

/// The largest zstd window: 16 MiB, twice what level 19 uses. Memory for it is ours.
const ZSTD_WINDOW_LOG: u32 = 24;
/// The most an xz decoder may take, KiB.
const XZ_MEMORY: u32 = 70 << 10;

/// Set when nobody waits for the work any more; readers fail at their next step.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Cancels when it is dropped, as the future of an abandoned job is.
    pub fn on_drop(&self) -> CancelOnDrop {
        CancelOnDrop(self.clone())
    }
}

#[derive(Debug)]
pub struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Counts the bytes read from a file and stops when canceled.
pub struct Source {
    file: File,
    cancel: Cancel,
    read: Arc<AtomicU64>,
}

impl Source {
    pub fn new(file: File, cancel: Cancel, read: Arc<AtomicU64>) -> Self {
        Self { file, cancel, read }
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_set() {
            return Err(io::Error::other("canceled"));
        }
        let got = self.file.read(buffer)?;
        self.read.fetch_add(got as u64, Ordering::Relaxed);
        Ok(got)
    }
}

/// Decompresses by what the first bytes say: gzip, zstd, xz, or nothing.
pub fn decompress(source: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    let mut source = BufReader::with_capacity(128 << 10, source);
    let start = source.fill_buf()?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(source)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            Box::new(lzma_rust2::XzReader::new_mem_limit(source, true, XZ_MEMORY))
        }
        _ => Box::new(source),
    })
}

/// Hashes and counts what passes, and fails beyond a limit.
pub struct Meter<R> {
    inner: R,
    hash: Sha256,
    count: u64,
    limit: u64,
}

impl<R: Read> Meter<R> {
    pub fn new(inner: R, limit: u64) -> Self {
        Self { inner, hash: Sha256::new(), count: 0, limit }
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// Reads to the end and returns the digest of everything.
    pub fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(crate::digest::hex(&self.hash.finalize()))
    }
}

impl<R: Read> Read for Meter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.hash.update(&buffer[..got]);
        self.count += got as u64;
        if self.count > self.limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "unpacks to more than is allowed"));
        }
        Ok(got)
    }
}
