//! The VM that an image is built in. It is thrown away, whatever happens: by us, and if we are killed by
//! vmd, as its time is short and only we prolong it.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use banger_api::options::OptionsBuilder;
use banger_api::{Error, ErrorKind, Result, VMD};
use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};

use super::file::Machine;
use crate::Context;
use crate::cmd::session::Interrupts;
use crate::cmd::{session, vm};
use crate::exit::Status;
use crate::job;
use crate::lines::Lines;

/// How long a VM lives that nobody prolongs any more, and how often we do.
const TTL: Duration = Duration::from_secs(600);
const PERIOD: Duration = Duration::from_secs(150);
/// How much of a command's output is read at once.
const BUFFER: usize = 64 << 10;

/// The label of these VMs: the name of the image that is built.
pub const LABEL: &str = "banger.build";

/// What is said to who did not want to wait for a build.
const INTERRUPTED: &str = "the build was interrupted; what was done so far is kept for the next";

/// A command in the VM.
#[derive(Debug, Default)]
pub struct Command<'a> {
    pub argv: Vec<&'a str>,
    pub environment: BTreeMap<String, String>,
    /// `None`: as the image says.
    pub user: Option<&'a str>,
    pub directory: Option<&'a str>,
}

/// Writes the input of a command. Its error is told if the command did not fail by itself.
pub type Input = Box<dyn FnOnce(&mut dyn Write) -> Result<()> + Send>;

pub struct BuildVm<'a> {
    context: &'a Context,
    interrupts: &'a mut Interrupts,
    name: String,
    started: Instant,
}

impl<'a> BuildVm<'a> {
    /// A name for a VM that is not there yet.
    pub fn fresh_name() -> String {
        format!("build-{:x}-{:x}", std::process::id(), banger_api::now_usec() & 0xffff_ffff)
    }

    /// Creates and starts a VM.
    pub async fn start(
        context: &'a Context,
        interrupts: &'a mut Interrupts,
        name: String,
        image: &str,
        machine: &Machine,
        purpose: &str,
    ) -> Result<Self> {
        let labels = HashMap::from([(LABEL.to_owned(), purpose.to_owned())]);
        let options = OptionsBuilder::new()
            .set("cpus", machine.cpus)
            .set("memory", machine.memory)
            .set("disk", machine.disk)
            .set("network", machine.network)
            // Services of the image have nothing to do in it.
            .set("init", Some("agent"))
            .set("restart", Some("no"))
            .set("labels", Some(labels))
            .set("ttl", Some(TTL.as_secs()))
            .set("expiry", Some("delete"))
            .set("start", Some(true))
            .build();
        let created = context.bus.vms().await?.create_vm(&name, image, options).await?;
        let started = Instant::now();
        job::follow(context, VMD, created, &format!("start {name}")).await?;
        check(interrupts)?;
        Ok(Self { context, interrupts, name, started })
    }

    /// Makes an image of what its disk holds now.
    pub async fn promote(&mut self, image: &str) -> Result<()> {
        self.prolong().await?;
        let options = OptionsBuilder::new().set("replace", Some(true)).build();
        let promoting = self.context.bus.vms().await?.promote_vm(&self.name, image, options).await?;
        job::follow(self.context, VMD, promoting, "keep").await?;
        check(self.interrupts)
    }

    /// Runs a command, and tells each line of its output as it comes: with `stdout` or `stderr`.
    ///
    /// # Errors
    /// `JobCanceled` if somebody does not want to wait.
    pub async fn run(
        &mut self,
        command: &Command<'_>,
        input: Option<Input>,
        mut tell: impl FnMut(&'static str, &[u8]),
    ) -> Result<Status> {
        self.prolong().await?;
        let options =
            OptionsBuilder::new().set("user", command.user).set("directory", command.directory).build();
        let sessions = self.context.bus.sessions().await?;
        let starting = sessions.exec(&self.name, &command.argv, &command.environment, options);
        let (id, _, stdin, out, err) = self.interrupts.or_cancel(starting, INTERRUPTED).await?;
        let fed = feed(OwnedFd::from(stdin).into(), input);
        let (lines, mut received) = mpsc::channel(256);
        read_lines(OwnedFd::from(out).into(), "stdout", lines.clone());
        read_lines(OwnedFd::from(err).into(), "stderr", lines);

        let (context, name) = (self.context, self.name.clone());
        let ended = session::wait(context, &name, &id);
        tokio::pin!(ended);
        let mut status = None;
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_open = true;
        // What a command leaves running keeps its output open, but not the build waiting.
        while status.is_none() {
            tokio::select! {
                biased;
                _ = self.interrupts.next() => return Err(ErrorKind::JobCanceled.error(INTERRUPTED)),
                line = received.recv(), if is_open => match line {
                    Some((stream, line)) => tell(stream, &line),
                    None => is_open = false,
                },
                ended = &mut ended => status = Some(ended?),
                _ = ticks.tick() => self.prolong().await?,
            }
        }
        while is_open {
            let rest = tokio::time::timeout(Duration::from_secs(2), received.recv());
            match rest.await {
                Ok(Some((stream, line))) => tell(stream, &line),
                _ => is_open = false,
            }
        }
        let status = status.unwrap_or(Status { status: 0, signal: 0 });
        if status.code() == 0
            && let Some(fed) = fed
        {
            fed.await.unwrap_or_else(|_| Err(Error::internal("the input was not written")))?;
        }
        Ok(status)
    }

    /// Has it live on from now for as long as it lives without us.
    async fn prolong(&mut self) -> Result<()> {
        let ttl = (self.started.elapsed() + TTL).as_secs();
        let options = OptionsBuilder::new().set("ttl", Some(ttl)).build();
        let vms = self.context.bus.vms().await?;
        self.interrupts.or_cancel(vms.set_vm(&self.name, options), INTERRUPTED).await.map(drop)
    }
}

/// # Errors
/// `JobCanceled` if one came while a job listened to them itself.
fn check(interrupts: &mut Interrupts) -> Result<()> {
    match interrupts.next().now_or_never() {
        Some(_) => Err(ErrorKind::JobCanceled.error(INTERRUPTED)),
        None => Ok(()),
    }
}

/// Throws a VM away, whether it is there or not.
pub async fn discard(context: &Context, name: &str) -> Result<()> {
    match vm::remove_one(context, name, true).await {
        Err(error) if error.kind() == ErrorKind::NoSuchVm => Ok(()),
        outcome => outcome.map_err(|error| error.context(format!("{name} is not deleted"))),
    }
}

/// Writes a command's input on a thread of its own; without any, the command sees its end at once.
fn feed(mut stdin: UnixStream, input: Option<Input>) -> Option<oneshot::Receiver<Result<()>>> {
    let Some(input) = input else {
        crate::stream::close_write(&stdin.into());
        return None;
    };
    let (done, fed) = oneshot::channel();
    std::thread::spawn(move || {
        let outcome = stdin.set_nonblocking(false).map_err(Error::from).and_then(|()| input(&mut stdin));
        crate::stream::close_write(&stdin.into());
        // Nobody waits for it if the command failed.
        let _ = done.send(outcome);
    });
    Some(fed)
}

/// Sends the lines of a stream, on a thread of its own: nobody waits for it if the stream never ends.
fn read_lines(mut from: UnixStream, stream: &'static str, lines: mpsc::Sender<(&'static str, Vec<u8>)>) {
    std::thread::spawn(move || {
        let mut splitter = Lines::default();
        let mut buffer = vec![0; BUFFER];
        let mut send = |line: &[u8]| lines.blocking_send((stream, line.to_vec())).is_ok();
        // Reading ends with the VM, and how that ended is told elsewhere.
        let _ = from.set_nonblocking(false);
        while let Ok(got @ 1..) = from.read(&mut buffer) {
            if !splitter.push(&buffer[..got], &mut send) {
                return;
            }
        }
        splitter.end(&mut send);
    });
}
