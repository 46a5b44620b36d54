//! The first pass over a layer: what its entries are called and what they are.

use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use super::spool::{Headers, Spool};
use super::stream::Meter;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::tar::{Header, Kind, TarError, TarReader, without_dot};

/// An archive that is none of a root filesystem has few files at its top.
const TOP: usize = 1000;

#[derive(Debug)]
pub struct LayerIndex {
    /// In the order of the archive; the ordinal of an entry is its place here.
    pub headers: Headers,
    /// SHA-256 of the tar stream, hexadecimal.
    pub diff_id: String,
    /// The files of the top directory, in order, the first of them: what kind of archive it is.
    pub top: Vec<Vec<u8>>,
    /// Whether it has the end that an archive gives itself; without it, it may have been cut off.
    pub ended: bool,
}

/// What the layers of one image may still take together.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    unpacked: AtomicU64,
    entries: AtomicU64,
    metadata: AtomicU64,
}

impl Budget {
    pub fn new(limits: Limits) -> Self {
        Self { limits, unpacked: AtomicU64::new(0), entries: AtomicU64::new(0), metadata: AtomicU64::new(0) }
    }

    fn take(&self, header: &Header) -> std::result::Result<(), String> {
        let memory: usize = header.path.len()
            + header.link.len()
            + header.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let spend = |counter: &AtomicU64, amount: u64, limit: u64, what: &str| {
            let before = counter.fetch_add(amount, Ordering::Relaxed);
            match before.checked_add(amount) {
                Some(total) if total <= limit => Ok(()),
                _ => Err(format!("its layers have more than {limit} {what}")),
            }
        };
        spend(&self.entries, 1, self.limits.entries, "entries")?;
        spend(&self.metadata, memory as u64, self.limits.metadata, "bytes of names and attributes")?;
        // A size near the end of the range must not wrap the counter.
        spend(&self.unpacked, header.size.min(1 << 62), self.limits.unpacked, "bytes unpacked")
    }
}

/// Reads a layer's tar stream to its end. Its headers go to `notes`, an empty file.
pub fn index(stream: impl Read, layer: usize, budget: &Budget, notes: File) -> Result<LayerIndex> {
    let failed = || Error::io("cannot note what is in a layer");
    let mut tar = TarReader::new(Meter::new(stream, budget.limits.unpacked));
    let mut spool = Spool::new(notes);
    let mut top = Vec::new();
    while let Some(header) = tar.next_entry().map_err(|error| explain(error, layer))? {
        budget.take(&header).map_err(Error::TooLarge)?;
        let name = without_dot(&header.path);
        if header.kind == Kind::File && top.len() < TOP && !name.contains(&b'/') {
            top.push(name.to_vec());
        }
        spool.add(&header).map_err(failed())?;
    }
    let ended = tar.is_ended();
    let diff_id = tar.into_inner().finish().map_err(|error| explain(error.into(), layer))?;
    let headers = spool.finish().map_err(failed())?;
    Ok(LayerIndex { headers, diff_id, top, ended })
}

/// A fault of a layer's stream. The blob behind it has been verified, so whatever cannot be read in
/// it was made that way; only what the host's own files say is not the image's fault.
pub fn explain(error: TarError, layer: usize) -> Error {
    let (entry, reason) = match error {
        TarError::Invalid { entry, reason } => (entry, reason),
        TarError::Truncated { entry } => (entry, "the archive ends within an entry".into()),
        TarError::Io(error) if error.raw_os_error().is_some() => {
            return Error::Io { what: format!("cannot read layer {layer}"), source: error };
        }
        TarError::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            return Error::TooLarge(format!("layer {layer} {error}"));
        }
        TarError::Io(error) => (String::new(), format!("cannot be decompressed: {error}")),
    };
    Error::InvalidLayer { layer, entry, reason }
}
