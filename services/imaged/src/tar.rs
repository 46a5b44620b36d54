//! Tar streams: the reader that all of banger shares, and a writer of archives of regular files.

use std::io::{self, Read};

pub use banger_core::tar::read::{Header, Kind, TarError, TarReader, lossy, without_dot};

const BLOCK: usize = 512;

/// Writes archives of regular files (ustar; sizes beyond 8 GiB as GNU tar writes them).
pub struct TarWriter<W> {
    inner: W,
}

impl<W: io::Write> TarWriter<W> {
    pub fn new(inner: W) -> Self {
        Self { inner }
    }

    /// Adds a file of exactly `size` bytes. Its path must fit into 100.
    ///
    /// # Errors
    /// Also if the content has another length.
    pub fn file(&mut self, path: &str, size: u64, content: impl Read) -> io::Result<()> {
        let mut header = [0u8; BLOCK];
        let name = header.get_mut(..path.len().min(100)).filter(|_| path.len() <= 100);
        name.ok_or_else(|| io::Error::other("the path is too long"))?.copy_from_slice(path.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        if size < 1 << 33 {
            header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        } else {
            header[124] = 0x80;
            header[128..136].copy_from_slice(&size.to_be_bytes());
        }
        header[136..148].copy_from_slice(b"00000000000\0");
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.inner.write_all(&header)?;
        let written = io::copy(&mut content.take(size + 1), &mut self.inner)?;
        if written != size {
            return Err(io::Error::other(format!("{path} has not {size} bytes but {written}")));
        }
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        self.inner.write_all(&[0; BLOCK][..padding as usize])
    }

    /// Ends the archive and gives back what it was written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.inner.write_all(&[0; 2 * BLOCK])?;
        self.inner.flush()?;
        Ok(self.inner)
    }
}
