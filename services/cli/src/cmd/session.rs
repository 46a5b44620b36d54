//! `banger exec` and `banger shell`.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io::{stderr, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use banger_api::options::OptionsBuilder;
use banger_api::{Error, ErrorKind, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::Context;
use crate::args::{Exec, Process, Settings, Shell};
use crate::exit::Status;
use crate::terminal::{self, RawMode};
use crate::{exit, patience, stream};

/// After so many signals that the guest has not heard nobody waits for the command: a guest that stands still hears none.
const IMPATIENCE: u32 = 3;
const NOT_BEGUN: &str = "the guest did not begin the command before a signal came";

pub async fn exec(context: &Context, arguments: Exec) -> Result<u8> {
    let Exec { process, vm, command } = arguments;
    Ok(command_in(context, &vm, &command, &process).await?.code())
}

pub async fn shell(context: &Context, arguments: Shell) -> Result<u8> {
    let Shell { settings, vm, command } = arguments;
    Ok(on_terminal(context, &vm, &command, &settings).await?.code())
}

/// Runs a command in a VM as `exec` does; with no command at all, a shell.
pub async fn command_in(
    context: &Context,
    vm: &str,
    command: &[String],
    process: &Process,
) -> Result<Status> {
    if process.tty {
        return on_terminal(context, vm, command, &process.settings).await;
    }
    let sessions = context.bus.sessions().await?;
    let argv: Vec<&str> = command.iter().map(String::as_str).collect();
    let environment = environment(&process.settings, false)?;
    let options = options(&process.settings).build();
    let mut signals = Signals::new()?;
    let starting = sessions.exec(vm, &argv, &environment, options);
    let (id, _, stdin, out, err) = signals.interrupts.or_cancel(starting, NOT_BEGUN).await?;
    let (stdin, out, err) = (OwnedFd::from(stdin), OwnedFd::from(out), OwnedFd::from(err));
    if process.no_stdin {
        stream::close_write(&stdin);
    } else {
        stream::feed(stdin);
    }
    let streams = async {
        let (out, err) = tokio::join!(
            stream::drain(out, stdout().as_fd().try_clone_to_owned()?),
            stream::drain(err, stderr().as_fd().try_clone_to_owned()?),
        );
        out.and(err)
    };
    conduct(context, vm, &id, streams, &mut signals).await
}

/// Runs a command, or the user's shell, on a terminal of its own in the VM.
pub async fn on_terminal(
    context: &Context,
    vm: &str,
    command: &[String],
    settings: &Settings,
) -> Result<Status> {
    let sessions = context.bus.sessions().await?;
    let argv: Vec<&str> = command.iter().map(String::as_str).collect();
    let environment = environment(settings, true)?;
    let mut signals = Signals::new()?;
    let (rows, columns) = terminal::size().unwrap_or((24, 80));
    let options = options(settings).set("rows", Some(rows)).set("columns", Some(columns)).build();
    let starting = sessions.open_shell(vm, &argv, &environment, options);
    let (id, _, pty) = signals.interrupts.or_cancel(starting, NOT_BEGUN).await?;
    let pty = OwnedFd::from(pty);
    let raw = RawMode::enter()?;
    stream::type_into(pty.try_clone()?);
    let streams = async { stream::drain(pty, stdout().as_fd().try_clone_to_owned()?).await };
    let status = conduct(context, vm, &id, streams, &mut signals).await;
    drop(raw);
    status
}

/// Whatever is started in a VM has these.
pub fn options(settings: &Settings) -> OptionsBuilder<'_> {
    let limits: HashMap<&str, u64> =
        settings.limits.iter().map(|(name, limit)| (name.as_str(), *limit)).collect();
    OptionsBuilder::new()
        .set("user", settings.user.as_deref())
        .set("directory", settings.workdir.as_deref())
        .set("limits", Some(limits).filter(|limits| !limits.is_empty()))
}

/// Waits for the end of a session, passing signals on meanwhile. Everything that the command
/// wrote has been copied when this returns.
async fn conduct(
    context: &Context,
    vm: &str,
    id: &str,
    streams: impl Future<Output = std::io::Result<()>>,
    signals: &mut Signals,
) -> Result<Status> {
    let ended = async {
        let (copied, status) = tokio::join!(streams, wait(context, vm, id));
        let status = status?;
        copied.map_err(|error| Error::from(error).context("the output of the command"))?;
        Ok(status)
    };
    let unheard = AtomicU32::new(0);
    let (events, to_pass) = mpsc::unbounded_channel();
    let passing = pass_on(context, vm, id, to_pass, &unheard);
    tokio::pin!(ended, passing);
    loop {
        let event = tokio::select! {
            status = &mut ended => return status,
            never = &mut passing => match never {},
            event = signals.next() => event,
        };
        if matches!(event, Event::Signal(_)) && unheard.fetch_add(1, Ordering::Relaxed) + 1 == IMPATIENCE {
            let unheard = format!("{vm} does not hear of signals; its command is not waited for any more");
            return Err(ErrorKind::JobCanceled.error(unheard));
        }
        let _ = events.send(event);
    }
}

/// Passes on what the caller is sent, one after the other.
async fn pass_on(
    context: &Context,
    vm: &str,
    id: &str,
    mut events: mpsc::UnboundedReceiver<Event>,
    unheard: &AtomicU32,
) -> Infallible {
    while let Some(event) = events.recv().await {
        let Ok(sessions) = context.bus.sessions().await else { continue };
        let passed_on = match event {
            Event::Signal(number) => sessions.kill_session(vm, id, number).await,
            Event::Resized => match terminal::size() {
                Some((rows, columns)) => sessions.resize_session(vm, id, rows, columns).await,
                None => Ok(()),
            },
        };
        // It may just have ended; how shows in a moment.
        if passed_on.is_ok() {
            unheard.store(0, Ordering::Relaxed);
        }
    }
    std::future::pending().await
}

/// How a session ended. The guest remembers it, so a session service that was restarted in
/// between can be asked again.
pub async fn wait(context: &Context, vm: &str, id: &str) -> Result<Status> {
    let ended = patience::ask(async || Ok(context.bus.sessions().await?.wait_session(vm, id).await?)).await;
    let (status, signal) = ended.map_err(|error| match error.kind() {
        // It says so itself.
        ErrorKind::NoSuchSession | ErrorKind::NoSuchVm => error,
        _ => error.context(format!("lost the command in {vm}")),
    })?;
    Ok(Status { status, signal })
}

/// The environment of a command.
pub fn environment(settings: &Settings, terminal: bool) -> Result<BTreeMap<String, String>> {
    let mut environment = variables(&settings.env)?;
    if terminal {
        let of_caller = || std::env::var("TERM").unwrap_or_else(|_| "linux".into());
        environment.entry("TERM".into()).or_insert_with(of_caller);
    }
    Ok(environment)
}

/// `NAME=VALUE`, and `NAME` with the caller's value.
pub fn variables(settings: &[String]) -> Result<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    for setting in settings {
        let (name, value) = match setting.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => match std::env::var(setting) {
                Ok(value) => (setting.as_str(), value),
                // As other tools do: what is not set here is not set there.
                Err(_) => continue,
            },
        };
        if name.is_empty() {
            return Err(ErrorKind::InvalidArgs.error(format!("{setting:?} names no variable")));
        }
        variables.insert(name.to_owned(), value);
    }
    Ok(variables)
}

pub enum Event {
    Signal(i32),
    Resized,
}

/// What the caller sends us while a command runs. It waits until it is asked for.
pub struct Signals {
    pub interrupts: Interrupts,
    resized: Signal,
}

impl Signals {
    pub fn new() -> Result<Self> {
        Ok(Self { interrupts: Interrupts::new()?, resized: signal(SignalKind::window_change())? })
    }

    pub async fn next(&mut self) -> Event {
        tokio::select! {
            number = self.interrupts.next() => Event::Signal(number),
            _ = self.resized.recv() => Event::Resized,
        }
    }
}

/// Signals of a caller who wants an end.
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
}

impl Interrupts {
    pub fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    pub async fn next(&mut self) -> i32 {
        let number = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hangup.recv() => SignalKind::hangup(),
            _ = self.quit.recv() => SignalKind::quit(),
        };
        number.as_raw_value()
    }

    /// Does work until it is done, or one of them comes.
    ///
    /// # Errors
    /// `JobCanceled` if one came, and `why`.
    pub async fn or_cancel<T, E>(
        &mut self,
        work: impl Future<Output = std::result::Result<T, E>>,
        why: &str,
    ) -> Result<T>
    where
        Error: From<E>,
    {
        tokio::select! {
            done = work => Ok(done?),
            _ = self.next() => Err(ErrorKind::JobCanceled.error(why)),
        }
    }
}

/// Does work that no signal is passed on to, unless one comes. Who has once listened to signals must do so from then on:
/// they do not end the program by themselves any more.
///
/// # Errors
/// `JobCanceled` if one came.
pub async fn unless_signaled<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    Interrupts::new()?.or_cancel(work, "interrupted by a signal").await
}

/// The exit code of a command, or of its failure; also said aloud.
pub fn outcome(status: Result<Status>) -> u8 {
    match status {
        Ok(status) => status.code(),
        Err(error) => {
            exit::complain(&error);
            exit::code(&error, true)
        }
    }
}
