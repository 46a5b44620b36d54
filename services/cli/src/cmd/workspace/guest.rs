//! The guest's side of a workspace: a directory that files are written to and read from.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use banger_api::files::DIRECTORY;
use banger_api::options::OptionsBuilder;
use banger_api::{Error, ErrorKind, Result};
use banger_files::listing::{self, Listing};
use banger_files::pack::{self, Packer, Times};
use banger_files::unpack::{self, Owner, Rules};
use zbus::Variant;

use super::record::MAX_ENTRIES;
use crate::Context;
use crate::cmd::copy::{Meter, Transfer, on_thread};
use crate::stream::close_write;

const BUFFER: usize = 256 << 10;
/// Paths of one call, and bytes of all.
const PATHS: usize = 2048;
const PATH_BYTES: usize = 256 << 10;

/// A directory in a guest.
pub trait Guest {
    /// All that is in it; `None` if it is not there.
    async fn list(&self) -> Result<Option<Listing>>;
    /// Writes files: their paths in it, and where they are. Returns the bytes.
    async fn write(&self, files: Vec<(PathBuf, PathBuf)>) -> Result<u64>;
    /// Reads files into a directory of the host. What is not there any more is left out.
    async fn read(&self, paths: &[PathBuf], into: &Path) -> Result<()>;
    async fn remove(&self, paths: &[PathBuf]) -> Result<()>;
}

/// The directory of a VM.
pub struct InVm<'a> {
    pub context: &'a Context,
    pub vm: &'a str,
    pub path: &'a str,
    /// Whose the files become.
    pub owner: Option<&'a str>,
}

impl Guest for InVm<'_> {
    async fn list(&self) -> Result<Option<Listing>> {
        let opened = self.context.bus.sessions().await?.open_list(self.vm, self.path).await;
        let (id, stream) = match opened.map_err(Error::from) {
            Err(error) if error.kind() == ErrorKind::NoSuchFile => return Ok(None),
            opened => opened?,
        };
        let mut stream = BufReader::with_capacity(BUFFER, File::from(OwnedFd::from(stream)));
        let reading = on_thread(move || listing::read(&mut stream, MAX_ENTRIES));
        let (listing, _) = Transfer::new(self.context, self.vm, &id).received(reading).await?;
        Ok(Some(listing))
    }

    async fn write(&self, files: Vec<(PathBuf, PathBuf)>) -> Result<u64> {
        let sessions = self.context.bus.sessions().await?;
        let (directory, prefix) = self.landing().await?;
        let options = OptionsBuilder::new().set("user", self.owner).build();
        let (id, stream) = sessions.open_write(self.vm, &directory, options).await?;
        let (meter, stream) = (Meter::default(), OwnedFd::from(stream));
        let counted = meter.clone();
        let packing = on_thread(move || {
            let out = BufWriter::with_capacity(BUFFER, counted.on(File::from(stream.try_clone()?)));
            pack_files(Packer::new(out, Times::Nanoseconds), &files, &prefix)?;
            close_write(&stream);
            Ok(Vec::new())
        });
        let transfer = Transfer::new(self.context, self.vm, &id);
        let (_, bytes, remarks) =
            meter.show(self.context, &format!("send to {}", self.vm), 0, transfer.sent(packing)).await?;
        remarks.iter().for_each(|remark| self.context.output.note(remark));
        Ok(bytes)
    }

    async fn read(&self, paths: &[PathBuf], into: &Path) -> Result<()> {
        for paths in chunks(paths) {
            let only = paths.iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect::<Vec<_>>();
            let options = [("only", Variant::from(only))].into_iter().collect();
            let opened = self.context.bus.sessions().await?.open_read(self.vm, self.path, options).await?;
            let (id, stream) = opened;
            let target = unpack::target(into)?;
            let meter = Meter::default();
            let from = BufReader::with_capacity(BUFFER, meter.on(File::from(OwnedFd::from(stream))));
            let rules = Rules { owner: Owner::Caller, devices: false, name: None };
            let unpacking = on_thread(move || unpack::unpack(from, target, rules).map(drop));
            let transfer = Transfer::new(self.context, self.vm, &id);
            meter
                .show(self.context, &format!("read from {}", self.vm), 0, transfer.received(unpacking))
                .await?;
        }
        Ok(())
    }

    async fn remove(&self, paths: &[PathBuf]) -> Result<()> {
        for paths in chunks(paths) {
            let paths: Vec<_> = paths.iter().map(|path| path.as_os_str().as_bytes()).collect();
            self.context.bus.sessions().await?.remove_files(self.vm, self.path, &paths).await?;
        }
        Ok(())
    }
}

impl InVm<'_> {
    /// The nearest directory that is there, and the way from it.
    async fn landing(&self) -> Result<(String, PathBuf)> {
        let sessions = self.context.bus.sessions().await?;
        let path = Path::new(self.path);
        for directory in path.ancestors() {
            let Some(text) = directory.to_str() else { continue };
            match sessions.stat_file(self.vm, text, true).await.map_err(Error::from) {
                Ok(stat) if stat.kind == DIRECTORY => {
                    let prefix = path.strip_prefix(directory).unwrap_or(Path::new(""));
                    return Ok((text.to_owned(), prefix.to_owned()));
                }
                Ok(_) => {
                    return Err(ErrorKind::FileInTheWay
                        .error(format!("{text} in the VM is there and is not a directory")));
                }
                Err(error) if error.kind() == ErrorKind::NoSuchFile => {}
                Err(error) => return Err(error),
            }
        }
        Err(ErrorKind::NoSuchDirectory.error(format!("there is no directory above {}", self.path)))
    }
}

/// Packs files by where they are and what they will be called.
pub fn pack_files<W: std::io::Write>(
    mut packer: Packer<W>,
    files: &[(PathBuf, PathBuf)],
    prefix: &Path,
) -> Result<()> {
    let mut parent: Option<(&Path, OwnedFd)> = None;
    for (path, place) in files {
        let fail = |error| banger_files::failure(place, &error);
        let above = place.parent().unwrap_or(Path::new("/"));
        if parent.as_ref().is_none_or(|(known, _)| *known != above) {
            parent = Some((above, pack::locate(place, false).map_err(fail)?.0));
        }
        let (Some((_, directory)), Some(name)) = (&parent, place.file_name()) else { continue };
        match packer.add(directory, name, &prefix.join(path)) {
            // It has just gone, which shows when it is looked for again.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            added => added.map_err(|error| pack::failure(place, pack::about(place, error)))?,
        }
    }
    packer.finish().map(drop).map_err(|error| pack::failure(prefix, error))
}

/// So many as one call takes.
fn chunks(paths: &[PathBuf]) -> Vec<&[PathBuf]> {
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
