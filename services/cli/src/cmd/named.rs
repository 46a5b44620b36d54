//! `banger session`: commands in guests that go on by themselves.

use std::collections::HashMap;
use std::io::{ErrorKind as IoError, Read, stderr, stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banger_api::options::OptionsBuilder;
use banger_api::session::LogRecord;
use banger_api::{Error, ErrorKind, Result};
use banger_core::spool::{Parser, STDERR};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use zbus::Variant;

use super::session::{Event, Signals, environment, outcome, wait};
use crate::Context;
use crate::args::{Session, SessionAttach, SessionLogs, SessionSend, SessionStart, Which};
use crate::detach::{self, Typed};
use crate::exit::{SUCCESS, Status};
use crate::output::{ago, headline, or_dash, tell, utc};
use crate::terminal::{self, RawMode};
use crate::{patience, stream};

/// How much is sent at once.
const PIECE: usize = 64 * 1024;
/// How long a session whose output has ended may take to be known as ended. Later, only the
/// connection was lost.
const LAST_WORD: Duration = Duration::from_secs(5);

pub async fn dispatch(context: &Context, command: Session) -> Result<u8> {
    match command {
        Session::Start(arguments) => return start(context, arguments).await,
        Session::Attach(arguments) => return attach(context, arguments).await,
        Session::Wait { session } => {
            return Ok(outcome(wait(context, &session.vm, &session.name).await));
        }
        Session::Ls { vm } => list(context, vm.as_deref()).await?,
        Session::Show { session } => show(context, &session).await?,
        Session::Logs(arguments) => logs(context, arguments).await?,
        Session::Send(arguments) => send(context, arguments).await?,
        Session::Stop { timeout, signal, session } => {
            let options = OptionsBuilder::new()
                .set("signal", Some(signal))
                .set("timeout_usec", Some(u64::from(timeout) * 1_000_000))
                .build();
            context.bus.sessions().await?.stop_session(&session.vm, &session.name, options).await?;
        }
        Session::Kill { signal, session } => {
            context.bus.sessions().await?.kill_session(&session.vm, &session.name, signal).await?;
        }
        Session::Rm { force, vm, sessions } => {
            let (bus, vm) = (&context.bus, &vm);
            return super::each(sessions, |name| async move {
                let options = OptionsBuilder::new().set("force", force.then_some(true)).build();
                Ok(bus.sessions().await?.remove_session(vm, &name, options).await?)
            })
            .await;
        }
    }
    Ok(SUCCESS)
}

/// Starts a session and returns its name.
pub async fn begin(context: &Context, wanted: &SessionStart) -> Result<String> {
    let SessionStart { name, tty, restart, settings, vm, command, .. } = wanted;
    let argv: Vec<&str> = command.iter().map(String::as_str).collect();
    let environment = environment(settings, *tty)?;
    let (rows, columns) = terminal::size().unwrap_or((24, 80));
    let options = super::session::options(settings)
        .set("terminal", tty.then_some(true))
        .set("rows", tty.then_some(rows))
        .set("columns", tty.then_some(columns))
        .set("restart", restart.map(crate::args::RestartPolicy::word))
        .build();
    let sessions = context.bus.sessions().await?;
    let name = name.as_deref().unwrap_or_default();
    let (name, _) = sessions.start_session(vm, name, &argv, &environment, options).await?;
    Ok(name)
}

async fn start(context: &Context, arguments: SessionStart) -> Result<u8> {
    let name = begin(context, &arguments).await?;
    let SessionStart { attach, vm, .. } = arguments;
    if !attach {
        match context.output.json {
            true => context.output.value(&serde_json::json!({"name": name}))?,
            false => context.output.line(&name),
        }
        return Ok(SUCCESS);
    }
    let detach_keys = detach::parse(detach::DEFAULT).map_err(Error::internal)?;
    let session = Which { vm, name };
    // All there is: it has just begun.
    let of = Which { vm: session.vm.clone(), name: session.name.clone() };
    let arguments = SessionAttach { read_only: false, scrollback: u64::MAX, detach_keys, session };
    match self::attach(context, arguments).await {
        // It was quicker than we were: all it put out is in its log.
        Err(error) if error.kind() == ErrorKind::SessionEnded => {
            let status = wait(context, &of.vm, &of.name).await;
            let all = SessionLogs { follow: true, since: None, tail: None, timestamps: false, session: of };
            logs(context, all).await?;
            Ok(outcome(status))
        }
        attached => attached,
    }
}

#[derive(Serialize)]
struct Row {
    vm: String,
    id: String,
    state: String,
    command: Vec<String>,
    started_usec: u64,
}

async fn list(context: &Context, of: Option<&str>) -> Result<()> {
    let rows: Vec<Row> = context
        .bus
        .sessions()
        .await?
        .list_sessions()
        .await?
        .into_iter()
        .filter(|(vm, ..)| of.is_none_or(|of| of == vm))
        .map(|(vm, id, state, command, started_usec, _)| Row { vm, id, state, command, started_usec })
        .collect();
    context.output.rows(&rows, &["VM", "SESSION", "STATE", "STARTED", "COMMAND"], |row| {
        vec![
            row.vm.clone(),
            row.id.clone(),
            row.state.clone(),
            ago(row.started_usec),
            or_dash(&headline(&row.command.join(" "))),
        ]
    })
}

async fn show(context: &Context, session: &Which) -> Result<()> {
    let description = context.bus.sessions().await?.describe_session(&session.vm, &session.name).await?;
    context.output.description(&description)
}

/// What we have to know of a session.
#[derive(Deserialize)]
struct Description {
    terminal: bool,
    output_bytes: u64,
}

async fn describe(context: &Context, session: &Which) -> Result<Description> {
    let description = context.bus.sessions().await?.describe_session(&session.vm, &session.name).await?;
    serde_json::from_str(&description).map_err(Error::internal)
}

async fn send(context: &Context, arguments: SessionSend) -> Result<()> {
    let SessionSend { file, eof, no_newline, session, text } = arguments;
    let mut from: Box<dyn Read> = match (text, file) {
        (Some(text), _) => {
            let newline = if no_newline { "" } else { "\n" };
            Box::new(std::io::Cursor::new(format!("{text}{newline}").into_bytes()))
        }
        (None, Some(path)) if path.as_os_str() != "-" => Box::new(
            std::fs::File::open(&path)
                .map_err(|error| Error::from(error).context(format!("cannot read {}", path.display())))?,
        ),
        (None, None) if eof => Box::new(std::io::empty()),
        (None, _) => Box::new(stdin()),
    };
    let sessions = context.bus.sessions().await?;
    let mut buffer = vec![0; PIECE];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        sessions.send_session(&session.vm, &session.name, &buffer[..n], HashMap::new()).await?;
    }
    if eof {
        let options = OptionsBuilder::new().set("end", Some(true)).build();
        sessions.send_session(&session.vm, &session.name, &[], options).await?;
    }
    Ok(())
}

async fn logs(context: &Context, arguments: SessionLogs) -> Result<()> {
    let SessionLogs { follow, since, tail, timestamps, session } = arguments;
    let until = if follow { u64::MAX } else { describe(context, &session).await?.output_bytes };
    let mut printer = Printer::new(timestamps);
    let mut options = OptionsBuilder::new()
        .set("since", since)
        .set("tail", tail)
        .set("wait", follow.then_some(true))
        .build();
    let mut from = 0;
    loop {
        let (records, next, end) = read_part(context, &session, from, &options).await?;
        let left_out = [options.remove("since"), options.remove("tail")];
        if left_out.iter().any(Option::is_some) {
            // What somebody asked to leave out is not lost.
            printer.next = records.first().map_or(next, |(offset, ..)| *offset);
        }
        for (offset, time_usec, stream, data) in &records {
            if !printer.print(&(*offset, *time_usec, *stream, data))? {
                return Ok(());
            }
        }
        if end || next >= until || !follow && records.is_empty() {
            return Ok(());
        }
        from = next;
    }
}

/// Reads all that a session puts out, until it has ended.
pub async fn follow(context: &Context, session: &Which, mut take: impl FnMut(LogRecord)) -> Result<()> {
    let options = OptionsBuilder::new().set("wait", Some(true)).build();
    let mut from = 0;
    loop {
        let (records, next, end) = read_part(context, session, from, &options).await?;
        records.into_iter().for_each(&mut take);
        if end {
            return Ok(());
        }
        from = next;
    }
}

/// Records of a log from an offset on, the offset after them, and whether that is the end of all.
async fn read_part(
    context: &Context,
    session: &Which,
    from: u64,
    options: &HashMap<&str, Variant<'_>>,
) -> Result<(Vec<LogRecord>, u64, bool)> {
    patience::ask(async || {
        let sessions = context.bus.sessions().await?;
        Ok(sessions.read_log(&session.vm, &session.name, from, options.clone()).await?)
    })
    .await
}

/// Puts records where they belong.
struct Printer {
    timestamps: bool,
    /// The offset that comes next if nothing is lost.
    next: u64,
    /// Whether standard output, and error, are at the beginning of a line.
    at_start: [bool; 2],
}

impl Printer {
    fn new(timestamps: bool) -> Self {
        Self { timestamps, next: 0, at_start: [true; 2] }
    }

    /// Says whether anybody reads it still.
    fn print(&mut self, record: &(u64, u64, u8, impl AsRef<[u8]>)) -> Result<bool> {
        let (offset, time_usec, stream, data) = record;
        let data = data.as_ref();
        if *offset > self.next {
            tell(format_args!("[{} bytes lost]", offset - self.next));
        }
        self.next = offset + data.len() as u64;
        let (out, err) = (stdout(), stderr());
        let to: BorrowedFd<'_> = if *stream == STDERR { err.as_fd() } else { out.as_fd() };
        let at_start = &mut self.at_start[usize::from(*stream == STDERR)];
        let written = match self.timestamps {
            true => stream::write_all(to, &with_times(data, &utc(*time_usec), at_start)),
            false => stream::write_all(to, data),
        };
        match written {
            Err(error) if error.kind() == IoError::BrokenPipe => Ok(false),
            written => Ok(written.map(|()| true)?),
        }
    }
}

/// The same with a time at the beginning of each line.
fn with_times(data: &[u8], time: &str, at_start: &mut bool) -> Vec<u8> {
    let mut lines = Vec::with_capacity(data.len() + 64);
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        if *at_start {
            lines.extend_from_slice(time.as_bytes());
            lines.push(b' ');
        }
        lines.extend_from_slice(line);
        *at_start = line.ends_with(b"\n");
    }
    lines
}

/// The stream that what is typed goes to; there may be another after the connection was lost.
type Target = Arc<Mutex<Arc<OwnedFd>>>;

async fn attach(context: &Context, arguments: SessionAttach) -> Result<u8> {
    let SessionAttach { read_only, scrollback, detach_keys, session } = arguments;
    let has_terminal = describe(context, &session).await?.terminal;
    let options = OptionsBuilder::new()
        .set("scrollback", Some(scrollback))
        .set("read_only", read_only.then_some(true))
        .build();
    let mut signals = Signals::new()?;
    let sessions = context.bus.sessions().await?;
    let attaching = sessions.attach_session(&session.vm, &session.name, options);
    let stream =
        signals.interrupts.or_cancel(attaching, "the guest did not answer before a signal came").await?;
    let mut stream = Arc::new(OwnedFd::from(stream));
    let raw = if has_terminal { Some(RawMode::enter()?) } else { None };
    if has_terminal && !read_only {
        resize(context, &session).await;
    }
    let target: Target = Arc::new(Mutex::new(stream.clone()));
    let (detached, mut detach) = mpsc::channel(1);
    if !read_only || has_terminal {
        let (target, keys) = (target.clone(), Typed::new(detach_keys));
        std::thread::spawn(move || type_into(&target, keys, read_only, &detached));
    }
    let mut from = None;
    loop {
        let mut shown = show_records(stream.clone(), from);
        let next = loop {
            let event = tokio::select! {
                shown = &mut shown => break shown.map_err(Error::internal)??,
                Some(()) = detach.recv() => {
                    drop(raw);
                    context.output.note(&format!("\ndetached; `banger session attach {} {}` comes back", session.vm, session.name));
                    return Ok(SUCCESS);
                }
                event = signals.next() => event,
            };
            match event {
                Event::Resized if has_terminal && !read_only => resize(context, &session).await,
                Event::Resized => {}
                // The command has nothing to do with what becomes of us.
                Event::Signal(signal) => return Ok(Status { status: 0, signal }.code()),
            }
        };
        let Some(next) = next else { return Ok(SUCCESS) };
        from = Some(next);
        let ended = tokio::time::timeout(LAST_WORD, wait(context, &session.vm, &session.name)).await;
        if let Ok(status) = ended {
            drop(raw);
            return Ok(outcome(status));
        }
        stream = Arc::new(reattach(context, &session, next, read_only).await?);
        *target.lock().unwrap_or_else(PoisonError::into_inner) = stream.clone();
    }
}

/// Connects again after a connection was lost, where it was.
async fn reattach(context: &Context, session: &Which, from: u64, read_only: bool) -> Result<OwnedFd> {
    let may_come_back = |error: &Error| error.kind() != ErrorKind::SessionEnded;
    let stream = patience::ask_while(may_come_back, async || {
        let options =
            OptionsBuilder::new().set("from", Some(from)).set("read_only", read_only.then_some(true)).build();
        let sessions = context.bus.sessions().await?;
        Ok(sessions.attach_session(&session.vm, &session.name, options).await?)
    });
    Ok(stream.await?.into())
}

async fn resize(context: &Context, session: &Which) {
    let Some((rows, columns)) = terminal::size() else { return };
    let Ok(sessions) = context.bus.sessions().await else { return };
    // It may just have ended; that shows in a moment.
    let _ = sessions.resize_session(&session.vm, &session.name, rows, columns).await;
}

/// Shows a session's output on a thread of its own: a write to a terminal cannot be called off. Resolves at the end to the
/// offset after it, or to nothing if nobody reads what is shown.
fn show_records(from: Arc<OwnedFd>, next: Option<u64>) -> oneshot::Receiver<Result<Option<u64>>> {
    let (done, shown) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = done.send(copy_records(from.as_fd(), next));
    });
    shown
}

fn copy_records(from: BorrowedFd<'_>, next: Option<u64>) -> Result<Option<u64>> {
    let mut printer = Printer::new(false);
    printer.next = next.unwrap_or(u64::MAX);
    let mut parser = Parser::starting_at(next.unwrap_or(0));
    let mut buffer = vec![0; PIECE];
    loop {
        let n = stream::read_some(from, &mut buffer)?;
        if n == 0 {
            return Ok(Some(parser.next()));
        }
        parser.push(&buffer[..n]);
        while let Some((header, data)) =
            parser.record().map_err(|error| ErrorKind::AgentProtocol.error(error.to_string()))?
        {
            let record: LogRecord = (header.offset, header.time_usec, header.stream, data.to_vec());
            if !printer.print(&record)? {
                return Ok(None);
            }
        }
    }
}

/// Passes on what is typed until the keys that detach.
fn type_into(target: &Target, mut typed: Typed, read_only: bool, detached: &mpsc::Sender<()>) {
    let mut buffer = vec![0; PIECE];
    while let Ok(n @ 1..) = stream::read_some(stdin().as_fd(), &mut buffer) {
        let (passed, detach) = typed.pass(&buffer[..n]);
        if !read_only {
            let target = target.lock().unwrap_or_else(PoisonError::into_inner).clone();
            // A connection that was lost takes this with it, as a line that is cut does.
            let _ = stream::write_all(target.as_fd(), &passed);
        }
        if detach {
            let _ = detached.blocking_send(());
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_its_time_once() {
        let mut at_start = true;
        let mut lines = Vec::new();
        for (time, data) in [("1", "a\nb"), ("2", "c\n"), ("3", "\nd\n")] {
            lines.extend(with_times(data.as_bytes(), time, &mut at_start));
        }
        assert_eq!(String::from_utf8(lines).expect("text"), "1 a\n1 bc\n3 \n3 d\n");
        assert!(at_start);
    }
}
