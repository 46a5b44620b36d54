//! `banger cp`.
//!
//! The files of the host are read and written here, with the caller's own rights; those of the VM by
//! its agent. In between is a stream of tar, which leads straight into the guest.

pub mod listed;
mod meter;
mod place;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, IsTerminal, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use banger_api::files::{Copied, DIRECTORY, FILE, Stat};
use banger_api::options::OptionsBuilder;
use banger_api::{Error, ErrorKind, Result};
use banger_files::listing::{self, Entry};
use banger_files::pack::{self, Packer, Times};
use banger_files::unpack::{self, Owner, Rules, Unpacker};
use serde_json::json;
use tokio::sync::oneshot;
use zbus::Variant;

use crate::Context;
use crate::args::Cp;
use crate::output::size;
use crate::patience;
use crate::stream::{close_write, copy_counting};
pub use meter::Meter;
pub use place::Place;
use place::{Landing, Source, There, landing, means_contents, means_directory};

const BUFFER: usize = 256 << 10;

pub async fn copy(context: &Context, arguments: Cp) -> Result<()> {
    if arguments.resume && [&arguments.source, &arguments.destination].contains(&&Place::Stream) {
        return Err(
            ErrorKind::InvalidArgs.error("a stream cannot be resumed; copy the directory by its name")
        );
    }
    match (arguments.source.clone(), arguments.destination.clone()) {
        (Place::Host(source), Place::Guest { vm, path }) => {
            upload(context, &arguments, &source, &vm, &path).await
        }
        (Place::Stream, Place::Guest { vm, path }) => write_stream(context, &arguments, &vm, &path).await,
        (Place::Guest { vm, path }, Place::Host(destination)) => {
            check_download(&arguments)?;
            download(context, &arguments, &vm, &path, &destination).await
        }
        (Place::Guest { vm, path }, Place::Stream) => {
            check_download(&arguments)?;
            read_stream(context, &arguments, &vm, &path).await
        }
        (Place::Guest { .. }, Place::Guest { .. }) => {
            Err(ErrorKind::NotSupported
                .error("from VM to VM: banger cp VM:PATH - | banger cp - VM:PATH does it"))
        }
        _ => {
            Err(ErrorKind::InvalidArgs.error("neither SRC nor DEST is VM:PATH; use cp for files of the host"))
        }
    }
}

fn check_download(arguments: &Cp) -> Result<()> {
    if arguments.chown.is_some() {
        return Err(ErrorKind::InvalidArgs
            .error("--chown is for files that go into a VM; those that come out are the caller's"));
    }
    Ok(())
}

/// From the host into a VM.
async fn upload(context: &Context, arguments: &Cp, source: &OsStr, vm: &str, path: &str) -> Result<()> {
    let follow = arguments.follow_link || means_directory(source);
    let from = Path::new(source);
    let metadata = if follow { std::fs::metadata(from) } else { std::fs::symlink_metadata(from) };
    let metadata = metadata.map_err(|error| banger_files::failure(from, &error))?;
    let sessions = context.bus.sessions().await?;
    let there = match sessions.stat_file(vm, path, true).await.map_err(Error::from) {
        Ok(Stat { kind, .. }) if kind == DIRECTORY => There::Directory,
        Ok(_) => There::Something,
        Err(error) if error.kind() == ErrorKind::NoSuchFile => There::Nothing,
        Err(error) => return Err(error),
    };
    let is_directory = metadata.is_dir();
    let Landing { directory, name } = landing(Source { path: source, is_directory }, OsStr::new(path), there)
        .map_err(|error| error.context(vm))?;
    let (at, found) = pack::locate(from, follow).map_err(|error| banger_files::failure(from, &error))?;

    let there = match arguments.resume && is_directory {
        true => listed::list(context, vm, &directory.join(&name).to_string_lossy()).await?,
        false => None,
    };
    let directory = directory.to_string_lossy();
    let (id, stream) = sessions.open_write(vm, &directory, write_options(arguments)).await?;
    let (meter, stream) = (Meter::default(), OwnedFd::from(stream));
    let counted = meter.clone();
    let source = from.to_owned();
    let packing = on_thread(move || {
        let out = BufWriter::with_capacity(BUFFER, counted.on(File::from(stream.try_clone()?)));
        let packer = Packer::new(out, Times::Nanoseconds);
        let mut packer = packer.but(Path::new(&name), there.unwrap_or_default());
        let packed = packer.add_tree(&at, &found, Path::new(&name)).and_then(|()| packer.finish());
        let packed = packed.map_err(|error| pack::failure(&source, error))?;
        close_write(&stream);
        Ok(packed.remarks())
    });
    let total = if is_directory { 0 } else { metadata.len() };
    let transfer = Transfer::new(context, vm, &id);
    let copied = meter.show(context, &format!("copy to {vm}"), total, transfer.sent(packing)).await?;
    transfer.report(copied)
}

/// From standard input into a directory of a VM.
async fn write_stream(context: &Context, arguments: &Cp, vm: &str, path: &str) -> Result<()> {
    if stdin().is_terminal() {
        return Err(ErrorKind::InvalidArgs.error("standard input is a terminal; it must be a tar stream"));
    }
    let sessions = context.bus.sessions().await?;
    let (id, stream) = sessions.open_write(vm, path, write_options(arguments)).await?;
    let (meter, stream) = (Meter::default(), OwnedFd::from(stream));
    let counted = meter.clone();
    let sending = on_thread(move || {
        copy_counting(stdin().as_fd(), stream.as_fd(), |bytes| counted.add(bytes))?;
        close_write(&stream);
        Ok(Vec::new())
    });
    let transfer = Transfer::new(context, vm, &id);
    let copied = meter.show(context, &format!("copy to {vm}"), 0, transfer.sent(sending)).await?;
    transfer.report(copied)
}

fn write_options(arguments: &Cp) -> HashMap<&str, Variant<'_>> {
    OptionsBuilder::new()
        .set("user", arguments.chown.as_deref())
        .set("archive", arguments.archive.then_some(true))
        .build()
}

/// From a VM onto the host.
async fn download(
    context: &Context,
    arguments: &Cp,
    vm: &str,
    path: &str,
    destination: &OsStr,
) -> Result<()> {
    if arguments.archive && !nix::unistd::geteuid().is_root() {
        return Err(ErrorKind::AccessDenied.error("only root can keep owners (--archive) on this host"));
    }
    let follow = arguments.follow_link || means_directory(OsStr::new(path));
    let sessions = context.bus.sessions().await?;
    let stat = sessions.stat_file(vm, path, follow).await?;
    let there = match std::fs::metadata(destination) {
        Ok(metadata) if metadata.is_dir() => There::Directory,
        Ok(_) => There::Something,
        Err(error) if error.kind() == io::ErrorKind::NotFound => There::Nothing,
        Err(error) => return Err(banger_files::failure(Path::new(destination), &error)),
    };
    let is_directory = stat.kind == DIRECTORY;
    let Landing { directory, name } =
        landing(Source { path: OsStr::new(path), is_directory }, destination, there)?;
    let owner = if arguments.archive { Owner::Archive } else { Owner::Caller };
    let landed = directory.join(&name);
    if arguments.resume && is_directory && landed.is_dir() {
        return download_rest(context, vm, path, &landed, owner).await;
    }
    let target = unpack::target(&directory)?;
    let shown = name.to_str().ok_or_else(|| {
        ErrorKind::InvalidArgs.error("the name of DEST is not UTF-8; copy into a directory instead")
    })?;
    let options =
        OptionsBuilder::new().set("name", Some(shown)).set("follow", follow.then_some(true)).build();
    let (id, stream) = sessions.open_read(vm, path, options).await?;

    let prefix = (name != ".").then(|| name.as_bytes().to_vec());
    let rules = Rules { owner, devices: false, name: prefix };
    let meter = Meter::default();
    let from = BufReader::with_capacity(BUFFER, meter.on(File::from(OwnedFd::from(stream))));
    let unpacking = on_thread(move || Ok(unpack::unpack(from, target, rules)?.0.remarks));
    let total = if stat.kind == FILE { stat.size } else { 0 };
    let transfer = Transfer::new(context, vm, &id);
    let (left, (entries, bytes, mut remarks)) =
        meter.show(context, &format!("copy from {vm}"), total, transfer.received(unpacking)).await?;
    remarks.extend(left);
    transfer.report((entries, bytes, remarks))
}

/// What is not there yet of a directory of a VM.
async fn download_rest(context: &Context, vm: &str, path: &str, landed: &Path, owner: Owner) -> Result<()> {
    let wanted = listed::list(context, vm, path).await?.unwrap_or_default();
    let target = unpack::target(landed)?;
    let there = listing::collect(&target).map_err(|error| pack::failure(landed, error))?;
    let is_there =
        |path: &PathBuf, entry: &Entry| there.get(path).is_some_and(|there| there.is_copy_of(entry));
    let missing: Vec<_> =
        wanted.into_iter().filter(|(path, entry)| !is_there(path, entry)).map(|(path, _)| path).collect();

    let began = Instant::now();
    let unpacker = Unpacker::new(target, Rules { owner, devices: false, name: None });
    let (unpacker, mut remarks) = listed::read(context, vm, path, &missing, unpacker).await?;
    let unpacked = unpacker.finish()?;
    remarks.extend(unpacked.remarks);
    report(context, began, (unpacked.entries, unpacked.bytes, remarks))
}

/// From a VM to standard output.
async fn read_stream(context: &Context, arguments: &Cp, vm: &str, path: &str) -> Result<()> {
    if stdout().is_terminal() {
        return Err(
            ErrorKind::InvalidArgs.error("standard output is a terminal; a tar stream is not for one")
        );
    }
    let follow = arguments.follow_link || means_directory(OsStr::new(path));
    let name = means_contents(OsStr::new(path)).then_some(".");
    let options = OptionsBuilder::new().set("name", name).set("follow", follow.then_some(true)).build();
    let (id, stream) = context.bus.sessions().await?.open_read(vm, path, options).await?;
    let meter = Meter::default();
    let (counted, stream) = (meter.clone(), OwnedFd::from(stream));
    let reading =
        on_thread(move || Ok(copy_counting(stream.as_fd(), stdout().as_fd(), |bytes| counted.add(bytes))?));
    let transfer = Transfer::new(context, vm, &id);
    let ((), (.., remarks)) =
        meter.show(context, &format!("copy from {vm}"), 0, transfer.received(reading)).await?;
    remarks.iter().for_each(|remark| context.output.note(remark));
    Ok(())
}

/// One copy, as the session service knows it.
pub struct Transfer<'a> {
    context: &'a Context,
    vm: &'a str,
    id: &'a str,
    began: Instant,
}

impl<'a> Transfer<'a> {
    pub fn new(context: &'a Context, vm: &'a str, id: &'a str) -> Self {
        Self { context, vm, id, began: Instant::now() }
    }

    /// Waits until the guest has what is sent to it. It may refuse in the middle, and knows why.
    pub async fn sent(&self, sending: impl Future<Output = Result<Vec<String>>>) -> Result<Copied> {
        let arrived = self.outcome();
        tokio::pin!(sending, arrived);
        let (sent, arrived) = tokio::select! {
            arrived = &mut arrived => {
                let arrived = arrived?;
                (sending.await, arrived)
            }
            sent = &mut sending => match sent {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                sent => (sent, arrived.await?),
            },
        };
        let (entries, bytes, mut remarks) = arrived;
        remarks.extend(sent?);
        Ok((entries, bytes, remarks))
    }

    /// Waits until everything has come out of the guest. If it ended too early, the guest knows why.
    pub async fn received<T>(&self, receiving: impl Future<Output = Result<T>>) -> Result<(T, Copied)> {
        let received = match receiving.await {
            Err(error) if matches!(error.kind(), ErrorKind::InvalidArchive | ErrorKind::Interrupted) => {
                self.outcome().await.and(Err(error))
            }
            received => received,
        }?;
        Ok((received, self.outcome().await?))
    }

    /// What the guest says became of it. It remembers, so a session service that was restarted in
    /// between can be asked again.
    async fn outcome(&self) -> Result<Copied> {
        let bus = &self.context.bus;
        let copied =
            patience::ask(async || Ok(bus.sessions().await?.wait_transfer(self.vm, self.id).await?));
        copied.await.map_err(|error| error.context(self.vm))
    }

    fn report(&self, copied: Copied) -> Result<()> {
        report(self.context, self.began, copied)
    }
}

/// Says what was copied.
fn report(context: &Context, began: Instant, (entries, bytes, remarks): Copied) -> Result<()> {
    let output = &context.output;
    let seconds = began.elapsed().as_secs_f64();
    if output.json {
        return output.value(&json!({
            "entries": entries, "bytes": bytes, "remarks": remarks, "usec": (seconds * 1e6) as u64,
        }));
    }
    remarks.iter().for_each(|remark| output.note(remark));
    let rate = size((bytes as f64 / seconds.max(0.001)) as u64);
    let files = if entries == 1 { "1 file".to_owned() } else { format!("{entries} files") };
    output.note(&format!("{files}, {} in {seconds:.1}s ({rate}/s)", size(bytes)));
    Ok(())
}

/// Does blocking work beside everything else. Not on the runtime's own threads: those it would wait
/// for at the end, though nobody may be at the other end of the stream any more.
pub fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> impl Future<Output = Result<T>> {
    let (done, outcome) = oneshot::channel();
    std::thread::spawn(move || drop(done.send(work())));
    async { outcome.await.unwrap_or_else(|_| Err(Error::internal("the copying thread ended"))) }
}
