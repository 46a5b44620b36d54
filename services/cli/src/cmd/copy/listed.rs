//! A directory in a guest by what is in it: the list of its files, and single ones of them.

use std::fs::File;
use std::io::BufReader;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use banger_api::{Error, ErrorKind, Result};
use banger_files::listing::{self, Listing};
use banger_files::unpack::Unpacker;
use zbus::Variant;

use super::{BUFFER, Meter, Transfer, on_thread};
use crate::Context;

/// Files of a directory that are kept in memory at most.
pub const MAX_ENTRIES: usize = 1_000_000;
/// Paths of one call, and bytes of all.
const PATHS: usize = 2048;
const PATH_BYTES: usize = 256 << 10;

/// All that is in a directory; `None` if it is not there.
pub async fn list(context: &Context, vm: &str, path: &str) -> Result<Option<Listing>> {
    let opened = context.bus.sessions().await?.open_list(vm, path).await;
    let (id, stream) = match opened.map_err(Error::from) {
        Err(error) if error.kind() == ErrorKind::NoSuchFile => return Ok(None),
        opened => opened?,
    };
    let mut stream = BufReader::with_capacity(BUFFER, File::from(OwnedFd::from(stream)));
    let reading = on_thread(move || listing::read(&mut stream, MAX_ENTRIES));
    let (listing, _) = Transfer::new(context, vm, &id).received(reading).await?;
    Ok(Some(listing))
}

/// Unpacks single files of a directory. What is not there any more is left out. Returns what the guest remarks.
pub async fn read(
    context: &Context,
    vm: &str,
    path: &str,
    paths: &[PathBuf],
    mut unpacker: Unpacker,
) -> Result<(Unpacker, Vec<String>)> {
    let meter = Meter::default();
    let counted = meter.clone();
    let reading = async move {
        let mut remarks = Vec::new();
        for paths in chunks(paths) {
            let only = paths.iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect::<Vec<_>>();
            let options = [("only", Variant::from(only))].into_iter().collect();
            let (id, stream) = context.bus.sessions().await?.open_read(vm, path, options).await?;
            let from = BufReader::with_capacity(BUFFER, counted.on(File::from(OwnedFd::from(stream))));
            let unpacking = on_thread(move || unpacker.add(from).map(|_| unpacker));
            let (used, (.., left)) = Transfer::new(context, vm, &id).received(unpacking).await?;
            unpacker = used;
            remarks.extend(left);
        }
        Ok((unpacker, remarks))
    };
    meter.show(context, &format!("copy from {vm}"), 0, reading).await
}

/// So many as one call takes.
pub fn chunks(paths: &[PathBuf]) -> Vec<&[PathBuf]> {
    let mut chunks = Vec::new();
    let (mut begin, mut bytes) = (0, 0);
    for (end, path) in paths.iter().enumerate() {
        if end - begin == PATHS || (end > begin && bytes + path.as_os_str().len() > PATH_BYTES) {
            chunks.push(&paths[begin..end]);
            (begin, bytes) = (end, 0);
        }
        bytes += path.as_os_str().len();
    }
    if begin < paths.len() {
        chunks.push(&paths[begin..]);
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_bounded_and_whole() {
        let paths: Vec<_> =
            (0..5000).map(|n| PathBuf::from(format!("{n}-{}", "x".repeat(n % 300)))).collect();
        let chunks = chunks(&paths);
        assert_eq!(chunks.concat(), paths);
        for chunk in chunks {
            let bytes: usize = chunk.iter().map(|path| path.as_os_str().len()).sum();
            assert!(chunk.len() <= PATHS && bytes <= PATH_BYTES && !chunk.is_empty());
        }
    }
}
