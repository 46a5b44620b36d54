//! The guest's side of a workspace: a directory that files are written to and read from.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use banger_api::files::DIRECTORY;
use banger_api::options::OptionsBuilder;
use banger_api::{Error, ErrorKind, Result};
use banger_files::listing::Listing;
use banger_files::pack::{self, Packer, Times};
use banger_files::unpack::{self, Owner, Rules, Unpacker};

use crate::Context;
use crate::cmd::copy::{Meter, Transfer, listed, on_thread};
use crate::stream::close_write;

const BUFFER: usize = 256 << 10;

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
        listed::list(self.context, self.vm, self.path).await
    }

    async fn write(&self, files: Vec<(PathBuf, PathBuf)>) -> Result<u64> {
        self.send(move |packer: Packer<_>, prefix: &Path| pack_files(packer, &files, prefix)).await
    }

    async fn read(&self, paths: &[PathBuf], into: &Path) -> Result<()> {
        let rules = Rules { owner: Owner::Caller, devices: false, name: None };
        let unpacker = Unpacker::new(unpack::target(into)?, rules);
        let (unpacker, _) = listed::read(self.context, self.vm, self.path, paths, unpacker).await?;
        unpacker.finish().map(drop)
    }

    async fn remove(&self, paths: &[PathBuf]) -> Result<()> {
        for paths in listed::chunks(paths) {
            let paths: Vec<_> = paths.iter().map(|path| path.as_os_str().as_bytes()).collect();
            self.context.bus.sessions().await?.remove_files(self.vm, self.path, &paths).await?;
        }
        Ok(())
    }
}

impl InVm<'_> {
    /// Writes what is packed under names with the prefix that it is told before them. Returns the bytes.
    pub async fn send(
        &self,
        pack: impl FnOnce(Packer<Box<dyn Write>>, &Path) -> Result<()> + Send + 'static,
    ) -> Result<u64> {
        let sessions = self.context.bus.sessions().await?;
        let (directory, prefix) = self.landing().await?;
        let options = OptionsBuilder::new().set("user", self.owner).build();
        let (id, stream) = sessions.open_write(self.vm, &directory, options).await?;
        let (meter, stream) = (Meter::default(), OwnedFd::from(stream));
        let counted = meter.clone();
        let packing = on_thread(move || {
            let out = BufWriter::with_capacity(BUFFER, counted.on(File::from(stream.try_clone()?)));
            pack(Packer::new(Box::new(out), Times::Nanoseconds), &prefix)?;
            close_write(&stream);
            Ok(Vec::new())
        });
        let transfer = Transfer::new(self.context, self.vm, &id);
        let (_, bytes, remarks) =
            meter.show(self.context, &format!("send to {}", self.vm), 0, transfer.sent(packing)).await?;
        remarks.iter().for_each(|remark| self.context.output.note(remark));
        Ok(bytes)
    }

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
