//! Files that are copied out of the guest and into it, each as a tar stream of its own.
//!
//! The work is done on a thread, at the other end of a pipe from the stream. What became of it is
//! remembered for a while, as it is of commands.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banger_api::files::Copied;
use banger_api::{Error, ErrorKind, Result, files};
use banger_files::listing;
use banger_files::pack::{self, Packer, Times};
use banger_files::unpack::{self, Owner, Rules};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::SFlag;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::process::{self, Stream, Table};
use crate::sys;
use crate::users::Missing;

/// Transfers at once.
const MAX_RUNNING: usize = 64;
const BUFFER: usize = 256 << 10;
/// Between the thread and the stream, which are switched between less often with a bigger one.
const PIPE: libc::c_int = 1 << 20;
/// How soon one that waits for the host notices that the machine goes down, in milliseconds, and how
/// long the machine waits for all to have noticed.
const LOOK: u16 = 100;
const GRACE: Duration = Duration::from_secs(2);

type Outcome = Option<Result<Copied>>;

struct Transfer {
    outcome: watch::Receiver<Outcome>,
    ended: Option<Instant>,
}

/// All transfers. Clones share them.
#[derive(Clone)]
pub struct Transfers {
    table: Table,
    known: Arc<Mutex<HashMap<String, Transfer>>>,
    stopping: Arc<AtomicBool>,
}

impl Transfers {
    pub fn new(table: Table) -> Self {
        Self { table, known: Arc::default(), stopping: Arc::default() }
    }

    /// Has `path` written to a stream; returns the transfer's id and the stream's token.
    pub async fn pack(&self, path: String, name: String, follow: bool) -> Result<(String, String)> {
        check_absolute(&path)?;
        let (directory, found) = run(move || {
            let path = Path::new(&path);
            let found = pack::locate(path, follow).map_err(|error| banger_files::failure(path, &error))?;
            // Told now rather than by a stream that just ends.
            nix::sys::stat::fstatat(&found.0, found.1.as_os_str(), nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(|error| banger_files::failure(path, &error.into()))?;
            Ok(found)
        })
        .await?;
        let name = if name.is_empty() { found.clone() } else { name.into() };
        let (output, to) = pipe()?;
        let to = self.end(to);
        self.start(Stream::Output(output), move || {
            let mut packer = Packer::new(BufWriter::with_capacity(BUFFER, to), Times::Nanoseconds);
            let packed = packer
                .add_tree(&directory, &found, Path::new(&name))
                .and_then(|()| packer.finish())
                .map_err(|error| pack::failure(Path::new(&name), error))?;
            Ok((packed.entries, packed.bytes, packed.remarks()))
        })
    }

    /// Has single files below a directory written to a stream.
    pub async fn pack_files(&self, directory: String, paths: Vec<Vec<u8>>) -> Result<(String, String)> {
        let root = open(directory).await?;
        let (output, to) = pipe()?;
        let to = self.end(to);
        self.start(Stream::Output(output), move || {
            let mut packer = Packer::new(BufWriter::with_capacity(BUFFER, to), Times::Nanoseconds);
            let packed = paths
                .iter()
                .try_for_each(|path| packer.add_beneath(&root, Path::new(OsStr::from_bytes(path))))
                .and_then(|()| packer.finish())
                .map_err(|error| pack::failure(Path::new("."), error))?;
            Ok((packed.entries, packed.bytes, packed.remarks()))
        })
    }

    /// Has what is in a directory listed to a stream.
    pub async fn list(&self, directory: String) -> Result<(String, String)> {
        let root = open(directory).await?;
        let (output, to) = pipe()?;
        let to = self.end(to);
        self.start(Stream::Output(output), move || {
            let listed = listing::list(&root, &mut BufWriter::with_capacity(BUFFER, to));
            Ok((listed.map_err(|error| pack::failure(Path::new("."), error))?, 0, Vec::new()))
        })
    }

    /// Has a stream unpacked into a directory; returns the transfer's id and the stream's token.
    pub async fn unpack(&self, directory: String, user: String, archive: bool) -> Result<(String, String)> {
        check_absolute(&directory)?;
        let (target, owner) = run(move || {
            let owner = if archive { Owner::Archive } else { owner(&user)? };
            Ok((unpack::target(Path::new(&directory))?, owner))
        })
        .await?;
        let (from, input) = pipe()?;
        let from = self.end(from);
        self.start(Stream::Input(input), move || {
            let rules = Rules { owner, devices: true, name: None };
            let from = BufReader::with_capacity(BUFFER, from);
            let (unpacked, mut rest) = unpack::unpack(from, target, rules)?;
            // Archivers fill up their last record. Whoever sends that is not to be told that nobody reads.
            io::copy(&mut rest, &mut io::sink())?;
            Ok((unpacked.entries, unpacked.bytes, unpacked.remarks))
        })
    }

    /// Waits for the end of a transfer.
    pub async fn wait(&self, id: &str) -> Result<Copied> {
        let known = self.lock().get(id).map(|transfer| transfer.outcome.clone());
        let mut outcome = known.ok_or_else(|| {
            ErrorKind::NoSuchTransfer.error(format!("no files are copied as {id:?}, or it is long ago"))
        })?;
        let ended = outcome.wait_for(Option::is_some).await.map_err(Error::internal)?;
        ended.clone().unwrap_or_else(|| Err(Error::internal("it ended without an outcome")))
    }

    /// Ends all transfers, for the machine goes down: files that are open for writing keep
    /// a filesystem from becoming read-only.
    pub async fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + GRACE;
        while self.running() > 0 && Instant::now() < deadline {
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn running(&self) -> usize {
        self.lock().values().filter(|transfer| transfer.ended.is_none()).count()
    }

    /// Our end of a stream's pipe.
    fn end(&self, pipe: OwnedFd) -> End {
        End { pipe: File::from(pipe), stopping: self.stopping.clone() }
    }

    fn start(
        &self,
        stream: Stream,
        work: impl FnOnce() -> Result<Copied> + Send + 'static,
    ) -> Result<(String, String)> {
        let (sender, outcome) = watch::channel(None);
        if self.stopping.load(Ordering::Relaxed) {
            return Err(ErrorKind::VmNotRunning.error("the machine is shutting down"));
        }
        if self.running() >= MAX_RUNNING {
            return Err(ErrorKind::NotReady
                .error(format!("{MAX_RUNNING} transfers are under way; wait for the end of one")));
        }
        let id = sys::to_hex(&sys::random::<6>()?);
        let mut known = self.lock();
        process::forget_old(&mut known, |transfer| transfer.ended);
        known.insert(id.clone(), Transfer { outcome, ended: None });
        drop(known);
        // Nobody who connects in time is the end of the pipe, and that of the work.
        let token = match self.table.offer(stream) {
            Ok(token) => token,
            Err(error) => {
                self.lock().remove(&id);
                return Err(error);
            }
        };
        let (transfers, key) = (self.clone(), id.clone());
        tokio::spawn(async move {
            let done = run(work).await;
            if let Some(transfer) = transfers.lock().get_mut(&key) {
                transfer.ended = Some(Instant::now());
            }
            sender.send_replace(Some(done));
        });
        Ok((id, token))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Transfer>> {
        // The map is consistent between statements, so a panic elsewhere does not spoil it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the host, but not beyond the end of the machine.
struct End {
    pipe: File,
    stopping: Arc<AtomicBool>,
}

impl End {
    fn when(
        &mut self,
        ready: PollFlags,
        mut work: impl FnMut(&mut File) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            if self.stopping.load(Ordering::Relaxed) {
                return Err(io::Error::other("the machine is shutting down"));
            }
            match work(&mut self.pipe) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(self.pipe.as_fd(), ready)], PollTimeout::from(LOOK))?;
                }
                done => return done,
            }
        }
    }
}

impl Read for End {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.when(PollFlags::POLLIN, |pipe| pipe.read(buffer))
    }
}

impl Write for End {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.when(PollFlags::POLLOUT, |pipe| pipe.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Removes files below a directory; says how many.
pub async fn remove(directory: String, paths: Vec<Vec<u8>>) -> Result<u64> {
    let root = open(directory).await?;
    run(move || banger_files::remove::remove(&root, paths.iter().map(Vec::as_slice))).await
}

async fn open(directory: String) -> Result<OwnedFd> {
    check_absolute(&directory)?;
    run(move || unpack::target(Path::new(&directory))).await
}

/// What is at a path.
pub async fn stat(path: String, follow: bool) -> Result<files::Stat> {
    check_absolute(&path)?;
    run(move || {
        let path = Path::new(&path);
        let stat = if follow { nix::sys::stat::stat(path) } else { nix::sys::stat::lstat(path) };
        let stat = stat.map_err(|error| banger_files::failure(path, &error.into()))?;
        let kind = match banger_files::kind_of(&stat) {
            SFlag::S_IFREG => files::FILE,
            SFlag::S_IFDIR => files::DIRECTORY,
            SFlag::S_IFLNK => files::SYMLINK,
            _ => files::OTHER,
        };
        let usec = stat.st_mtime.saturating_mul(1_000_000).saturating_add(stat.st_mtime_nsec / 1000);
        Ok(files::Stat {
            kind: kind.to_owned(),
            size: stat.st_size as u64,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_usec: usec,
        })
    })
    .await
}

/// The user that files are for, by the image's files; root if none is named.
fn owner(user: &str) -> Result<Owner> {
    match process::find_user(user) {
        Ok(user) => Ok(Owner::As(user.uid, user.gid)),
        Err(Missing::User(name)) => {
            Err(ErrorKind::NoSuchUser.error(format!("there is no user {name:?} in the guest")))
        }
        Err(Missing::Group(name)) => {
            Err(ErrorKind::NoSuchUser.error(format!("there is no group {name:?} in the guest")))
        }
    }
}

fn check_absolute(path: &str) -> Result<()> {
    if Path::new(path).is_absolute() && !path.contains('\0') {
        return Ok(());
    }
    Err(ErrorKind::InvalidArgs.error(format!("{path:?} is no absolute path")))
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (from, to) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    // A limit of the guest's may be lower; it is only slower then.
    let _ = fcntl(&to, FcntlArg::F_SETPIPE_SZ(PIPE));
    sys::set_nonblocking(&from)?;
    sys::set_nonblocking(&to)?;
    Ok((from, to))
}

async fn run<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}
