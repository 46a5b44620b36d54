//! Named sessions: commands that do not hang on any connection.
//!
//! What they put out goes into a [`spool`], from which the host drains it, and from which whoever
//! attaches gets a copy. The host's services can come and go meanwhile; what is to be started again
//! is started again without them.

mod spool;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banger_api::agent::SessionStatus;
use banger_api::{Error, ErrorKind, Result};
use banger_core::session::{State, after_end, pause};
use banger_core::spec::Restart;
use banger_core::spool::{STDERR, STDOUT};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::process::{Exit, Launched, Request, Stream, Table, check_signal};
use crate::stream::deliver;
use crate::vsock::Connection;
use crate::{stats, sys};
use spool::Spool;

/// Sessions the agent knows, ended ones included.
const MAX_SESSIONS: usize = 64;
/// What may wait to be written to a command's input, in pieces of [`BUFFER`] at most.
const MAX_INPUT: usize = 16;
/// How long `SendSession` waits for a command that does not read its input.
const INPUT_PATIENCE: Duration = Duration::from_secs(10);
const BUFFER: usize = banger_core::spool::MAX_DATA;
/// How long an output may take to end after its command. Later, it is held by something else that
/// lives on, and only what it has already written belongs to the command.
const SETTLE: Duration = Duration::from_millis(200);
/// How often a full spool is looked at for readers whose time is up.
const LOOK: Duration = Duration::from_secs(1);
/// What a terminal takes for the end of input, unless its program says otherwise: Ctrl-D.
const END_OF_TRANSMISSION: u8 = 4;

/// All of them. Clones share them.
#[derive(Debug, Clone)]
pub struct Sessions {
    table: Table,
    known: Arc<Mutex<HashMap<String, Arc<Session>>>>,
    /// Of each spool, in bytes.
    capacity: usize,
}

#[derive(Debug)]
struct Session {
    policy: Restart,
    request: Mutex<Request>,
    spool: Mutex<Spool>,
    /// Something was added to the spool, or nothing ever will be any more.
    news: watch::Sender<()>,
    /// Somebody took something out of the spool.
    room: watch::Sender<()>,
    status: watch::Sender<Status>,
    told_to_stop: watch::Sender<bool>,
    forgotten: watch::Sender<bool>,
    /// The connection that drains; others before it give up.
    drainer: watch::Sender<u64>,
    input: mpsc::Sender<Input>,
    /// Where input goes: the present command's, while there is one.
    stdin: watch::Sender<Option<Arc<AsyncFd<OwnedFd>>>>,
    input_ended: AtomicBool,
    /// The id of the present command.
    process: Mutex<String>,
}

#[derive(Debug, Clone)]
struct Status {
    serial: u32,
    state: State,
    exit: Exit,
    started_usec: u64,
    ended_usec: u64,
    restarts: u32,
    /// Of its output, when it ended.
    end: u64,
    /// Nothing can come any more.
    closed: bool,
}

#[derive(Debug)]
enum Input {
    Data(Vec<u8>),
    End,
}

/// One side of a command's output, and the task that copies it into the spool.
#[derive(Debug)]
struct Output {
    from: Arc<AsyncFd<OwnedFd>>,
    /// Something was read and is not in the spool yet.
    busy: Arc<AtomicBool>,
    copying: JoinHandle<()>,
}

/// A stream that the host may connect to.
#[derive(Debug)]
pub struct View {
    session: Arc<Session>,
    from: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// For the host's files: it says how far it has them.
    Drain,
    /// For somebody who looks on, and types unless it is read-only.
    Attach { read_only: bool },
}

impl Sessions {
    pub fn new(table: Table) -> Self {
        Self { table, known: Arc::default(), capacity: capacity(stats::memory_total()) }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Arc<Session>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, id: &str) -> Result<Arc<Session>> {
        self.known().get(id).cloned().ok_or_else(|| no_such(id))
    }

    /// Starts a session, unless there is one with this id: a host that was cut off asks again.
    pub fn start(&self, id: &str, request: Request, policy: Restart) -> Result<()> {
        if !(1..=20).contains(&id.len()) || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(ErrorKind::InvalidArgs.error(format!("{id:?} cannot be the id of a session")));
        }
        let mut known = self.known();
        if known.contains_key(id) {
            return Ok(());
        }
        make_place(&mut known)?;
        let launched = self.table.launch(&request)?;
        let (input, inputs) = mpsc::channel(MAX_INPUT);
        let session = Arc::new(Session {
            policy,
            request: Mutex::new(request),
            spool: Mutex::new(Spool::new(self.capacity, Instant::now())),
            news: watch::Sender::new(()),
            room: watch::Sender::new(()),
            status: watch::Sender::new(Status {
                serial: 0,
                state: State::Starting,
                exit: (0, 0),
                started_usec: sys::realtime_usec(),
                ended_usec: 0,
                restarts: 0,
                end: 0,
                closed: false,
            }),
            told_to_stop: watch::Sender::new(false),
            forgotten: watch::Sender::new(false),
            drainer: watch::Sender::new(0),
            input,
            stdin: watch::Sender::new(None),
            input_ended: AtomicBool::new(false),
            process: Mutex::new(launched.id.clone()),
        });
        known.insert(id.to_owned(), session.clone());
        drop(known);
        tokio::spawn(session.clone().feed(inputs));
        tokio::spawn(session.run(self.table.clone(), launched));
        Ok(())
    }

    /// The session's status, once it has another serial number than `seen`.
    pub async fn watch(&self, id: &str, seen: u32) -> Result<(u32, SessionStatus)> {
        let session = self.get(id)?;
        let mut status = session.status.subscribe();
        let status = tokio::select! {
            status = status.wait_for(|status| status.serial != seen) => status.map(|status| status.clone()),
            () = session.until_forgotten() => return Err(no_such(id)),
        };
        let status = status.map_err(|_| no_such(id))?;
        let report = SessionStatus {
            state: status.state.as_str().to_owned(),
            exit_status: status.exit.0,
            exit_signal: status.exit.1,
            started_usec: status.started_usec,
            ended_usec: status.ended_usec,
            restarts: status.restarts,
            end: status.end,
            kept: Some(session.spool().kept()),
        };
        Ok((status.serial, report))
    }

    /// Hands data, and then the end if asked for, to the session's input.
    pub async fn send(&self, id: &str, data: Vec<u8>, end: bool) -> Result<()> {
        let session = self.get(id)?;
        session.check_going(id)?;
        if session.input_ended.load(Ordering::Relaxed) {
            return Err(ErrorKind::NotReady.error("the input of the command was ended before"));
        }
        if data.len() > BUFFER {
            return Err(ErrorKind::InvalidArgs.error(format!("send at most {BUFFER} bytes at once")));
        }
        let places = usize::from(!data.is_empty()) + usize::from(end);
        let places = timeout(INPUT_PATIENCE, session.input.reserve_many(places)).await.map_err(|_| {
            ErrorKind::NotReady.error("the command does not read its input; nothing was sent to it")
        })?;
        let mut places = places.map_err(|_| has_ended(id))?;
        let pieces = [(!data.is_empty()).then_some(Input::Data(data)), end.then_some(Input::End)];
        session.input_ended.fetch_or(end, Ordering::Relaxed);
        for piece in pieces.into_iter().flatten() {
            if let Some(place) = places.next() {
                place.send(piece);
            }
        }
        Ok(())
    }

    /// Ends a session for good: with `signal` first, and with force `grace` later.
    pub fn stop(&self, id: &str, signal: i32, grace: Duration) -> Result<()> {
        let session = self.get(id)?;
        session.check_going(id)?;
        check_signal(signal)?;
        session.told_to_stop.send_replace(true);
        session.set(|status| status.state = State::Stopping);
        let signal = if grace.is_zero() { libc::SIGKILL } else { signal };
        let told = session.kill(&self.table, signal);
        let table = self.table.clone();
        tokio::spawn(async move {
            sleep(grace).await;
            if session.check_going("").is_ok() {
                let _ = session.kill(&table, libc::SIGKILL);
            }
        });
        match told {
            // Between two runs, or at its end.
            Err(error) if error.kind() == ErrorKind::NoSuchProcess => Ok(()),
            told => told,
        }
    }

    pub fn kill(&self, id: &str, signal: i32) -> Result<()> {
        let session = self.get(id)?;
        session.check_going(id)?;
        session.kill(&self.table, signal)
    }

    /// For the present command and those started after it.
    pub fn resize(&self, id: &str, rows: u16, columns: u16) -> Result<()> {
        let session = self.get(id)?;
        let mut request = session.request.lock().unwrap_or_else(PoisonError::into_inner);
        if request.terminal.is_none() {
            return Err(ErrorKind::InvalidArgs.error(format!("session {id} has no terminal")));
        }
        request.terminal = Some((rows, columns));
        drop(request);
        match self.table.resize(&session.process(), rows, columns) {
            Err(error) if error.kind() == ErrorKind::NoSuchProcess => Ok(()),
            resized => resized,
        }
    }

    /// Offers the session's output from `from` on, or, without it, the last `scrollback` bytes and
    /// what follows; returns the stream's token.
    pub fn attach(&self, id: &str, from: Option<u64>, scrollback: u64, read_only: bool) -> Result<String> {
        let session = self.get(id)?;
        let from = from.unwrap_or_else(|| session.spool().last(scrollback));
        self.table.offer(Stream::Session(View { session, from, kind: Kind::Attach { read_only } }))
    }

    /// Offers the session's output from `from` on, to one who has all before it; returns the
    /// stream's token. Who has more than any drainer was sent has it from another guest, or from what this one did after
    /// the snapshot that it has gone on from.
    pub fn drain(&self, id: &str, from: u64) -> Result<String> {
        let session = self.get(id)?;
        let sent = session.spool().sent();
        if from > sent {
            return Err(ErrorKind::InvalidArgs.error(format!("{sent} bytes were sent, not {from}")));
        }
        self.table.offer(Stream::Session(View { session, from, kind: Kind::Drain }))
    }

    /// Forgets a session that has ended, and lets go of what still holds its outputs.
    pub fn forget(&self, id: &str) -> Result<()> {
        let session = self.get(id)?;
        if session.check_going(id).is_ok() {
            return Err(ErrorKind::NotReady.error(format!("session {id} has not ended")));
        }
        session.forgotten.send_replace(true);
        self.known().remove(id);
        Ok(())
    }
}

impl Session {
    fn spool(&self) -> MutexGuard<'_, Spool> {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn process(&self) -> String {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn kill(&self, table: &Table, signal: i32) -> Result<()> {
        table.kill(&self.process(), signal)
    }

    fn check_going(&self, id: &str) -> Result<()> {
        if self.status.borrow().state.is_final() { Err(has_ended(id)) } else { Ok(()) }
    }

    fn set(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(|status| {
            change(status);
            status.serial = status.serial.wrapping_add(1);
        });
    }

    async fn until_forgotten(&self) {
        // An error cannot be: the sender is ours.
        let _ = self.forgotten.subscribe().wait_for(|forgotten| *forgotten).await;
    }

    /// The life of a session.
    async fn run(self: Arc<Self>, table: Table, mut launched: Launched) {
        let mut outputs = Vec::new();
        let mut paused = None;
        loop {
            let began = Instant::now();
            let latest = match self.connect(launched.streams) {
                Ok(latest) => latest,
                Err(error) => {
                    sys::log!(sys::WARNING, "session: {error}");
                    let _ = table.kill(&launched.id, libc::SIGKILL);
                    Vec::new()
                }
            };
            // Also if it was told to stop before it ran.
            let stopping = *self.told_to_stop.borrow();
            self.set(|status| status.state = if stopping { State::Stopping } else { State::Running });
            if stopping {
                let _ = table.kill(&launched.id, libc::SIGKILL);
            }
            let exit = table.wait(&launched.id).await.unwrap_or((0, libc::SIGKILL));
            settle(&latest).await;
            self.stdin.send_replace(None);
            outputs.retain(|output: &Output| !output.copying.is_finished());
            outputs.extend(latest);
            if table.is_stopping() {
                // It ends because the machine does, and that is what the host is to see.
                return std::future::pending().await;
            }
            let stopped = *self.told_to_stop.borrow();
            if let Some(state) = after_end(self.policy, stopped, exit) {
                return self.end(state, exit, outputs).await;
            }
            self.set(|status| {
                status.state = State::Starting;
                status.exit = exit;
                status.restarts += 1;
            });
            let rest = pause(paused, began.elapsed());
            paused = Some(rest);
            let mut told_to_stop = self.told_to_stop.subscribe();
            let told = timeout(rest, told_to_stop.wait_for(|told| *told)).await.is_ok();
            if told {
                return self.end(State::Exited, exit, outputs).await;
            }
            let again = table.launch(&self.request.lock().unwrap_or_else(PoisonError::into_inner));
            match again {
                Ok(again) => {
                    *self.process.lock().unwrap_or_else(PoisonError::into_inner) = again.id.clone();
                    self.input_ended.store(false, Ordering::Relaxed);
                    launched = again;
                }
                Err(error) => {
                    sys::log!(sys::WARNING, "session: cannot start its command again: {error}");
                    return self.end(State::Failed, exit, outputs).await;
                }
            }
        }
    }

    /// Lets input and outputs of a command flow.
    fn connect(self: &Arc<Self>, streams: Vec<(&'static str, Stream)>) -> std::io::Result<Vec<Output>> {
        let mut outputs = Vec::new();
        for (name, stream) in streams {
            match stream {
                Stream::Input(pipe) => {
                    self.stdin.send_replace(Some(Arc::new(sys::watch(pipe)?)));
                }
                Stream::Terminal(master) => {
                    let master = Arc::new(sys::watch(master)?);
                    self.stdin.send_replace(Some(master.clone()));
                    outputs.push(self.copy(master, STDOUT));
                }
                Stream::Output(pipe) => {
                    let stream = if name == "stderr" { STDERR } else { STDOUT };
                    outputs.push(self.copy(Arc::new(sys::watch(pipe)?), stream));
                }
                Stream::Session(_) => {}
            }
        }
        Ok(outputs)
    }

    fn copy(self: &Arc<Self>, from: Arc<AsyncFd<OwnedFd>>, stream: u8) -> Output {
        let busy = Arc::new(AtomicBool::new(false));
        let (session, source, working) = (self.clone(), from.clone(), busy.clone());
        let copying = tokio::spawn(async move {
            let copy = async {
                let mut buffer = vec![0; BUFFER];
                loop {
                    let read = source.async_io(Interest::READABLE, |fd| sys::read(fd, &mut buffer));
                    match read.await {
                        // A terminal ends with EIO.
                        Ok(0) | Err(_) => return,
                        Ok(n) => {
                            working.store(true, Ordering::Relaxed);
                            session.put(stream, &buffer[..n]).await;
                            working.store(false, Ordering::Relaxed);
                        }
                    }
                }
            };
            tokio::select! {
                () = copy => {}
                () = session.until_forgotten() => {}
            }
        });
        Output { from, busy, copying }
    }

    /// Adds to the spool, when there is room.
    async fn put(&self, stream: u8, data: &[u8]) {
        let mut room = self.room.subscribe();
        loop {
            room.borrow_and_update();
            if self.spool().push(stream, data, sys::realtime_usec(), Instant::now()) {
                self.news.send_replace(());
                return;
            }
            let _ = timeout(LOOK, room.changed()).await;
        }
    }

    async fn end(&self, state: State, exit: Exit, outputs: Vec<Output>) {
        let end = self.spool().end();
        self.set(|status| {
            status.state = state;
            status.exit = exit;
            status.ended_usec = sys::realtime_usec();
            status.end = end;
        });
        for output in outputs {
            let _ = output.copying.await;
        }
        self.set(|status| status.closed = true);
        self.news.send_replace(());
    }

    /// Writes what comes in to the present command, one after the other.
    async fn feed(self: Arc<Self>, mut inputs: mpsc::Receiver<Input>) {
        let mut status = self.status.subscribe();
        let feed = async {
            while let Some(input) = inputs.recv().await {
                match input {
                    Input::Data(data) => self.write(&data).await,
                    Input::End if self.has_terminal() => self.write(&[END_OF_TRANSMISSION]).await,
                    Input::End => drop(self.stdin.send_replace(None)),
                }
            }
        };
        tokio::select! {
            () = feed => {}
            _ = status.wait_for(|status| status.state.is_final()) => {}
        }
    }

    fn has_terminal(&self) -> bool {
        self.request.lock().unwrap_or_else(PoisonError::into_inner).terminal.is_some()
    }

    async fn write(&self, data: &[u8]) {
        let mut stdin = self.stdin.subscribe();
        let target = match stdin.wait_for(Option::is_some).await {
            Ok(target) => target.clone(),
            Err(_) => None,
        };
        let Some(target) = target else { return };
        let write = async {
            let mut rest = data;
            while !rest.is_empty() {
                match target.async_io(Interest::WRITABLE, |fd| sys::write(fd, rest)).await {
                    Ok(n) => rest = &rest[n..],
                    Err(_) => return,
                }
            }
        };
        tokio::select! {
            () = write => {}
            // The command has ended: what it did not read goes with it.
            _ = stdin.changed() => {}
        }
    }

    /// Sends records from `next` on until the last there will be; says whether it came to that. `begins` hears up to where
    /// before it is sent, `taken` after that.
    async fn send(
        &self,
        connection: &Connection,
        mut next: u64,
        begins: impl Fn(u64),
        taken: impl Fn(u64),
    ) -> bool {
        let mut news = self.news.subscribe();
        loop {
            news.borrow_and_update();
            let record = self.spool().at(next);
            let Some(record) = record else {
                if self.status.borrow().closed {
                    return true;
                }
                tokio::select! {
                    _ = news.changed() => continue,
                    () = self.until_forgotten() => return true,
                }
            };
            let header = record.header();
            begins(header.end());
            if !deliver(connection, &[&header.encode()[..], &record.data].concat()).await {
                return false;
            }
            next = header.end();
            taken(next);
        }
    }

    /// Takes the host's word for how far it has everything.
    async fn acknowledged(&self, connection: &Connection, drainer: u64) {
        let mut number = [0; 8];
        let mut have = 0;
        loop {
            match connection.read(&mut number[have..]).await {
                Ok(0) | Err(_) => return,
                Ok(n) => have += n,
            }
            if have == number.len() {
                have = 0;
                self.spool().drained(drainer, u64::from_le_bytes(number), Instant::now());
                self.room.send_replace(());
            }
        }
    }

    /// Takes what somebody types.
    async fn typed(&self, connection: &Connection) {
        let mut buffer = vec![0; BUFFER];
        loop {
            match connection.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) if self.input_ended.load(Ordering::Relaxed) => {}
                // Nobody reads it any more once the session has ended.
                Ok(n) => drop(self.input.send(Input::Data(buffer[..n].to_vec())).await),
            }
        }
    }
}

impl View {
    pub async fn serve(self, connection: Connection) {
        let Self { session, from, kind } = self;
        let whole = match kind {
            Kind::Drain => drain(&session, from, &connection).await,
            Kind::Attach { read_only } => attach(&session, from, read_only, &connection).await,
        };
        if whole {
            connection.finish().await;
        }
    }
}

async fn drain(session: &Session, from: u64, connection: &Connection) -> bool {
    let Some(drainer) = session.spool().start_draining(from, Instant::now()) else { return false };
    session.room.send_replace(());
    session.drainer.send_replace(drainer);
    let mut latest = session.drainer.subscribe();
    let whole = tokio::select! {
        whole = session.send(connection, from, |next| session.spool().sending(next), |_| {}) => whole,
        () = session.acknowledged(connection, drainer) => false,
        _ = latest.wait_for(|latest| *latest != drainer) => false,
    };
    session.spool().stop_draining(drainer, Instant::now());
    whole
}

async fn attach(session: &Session, from: u64, read_only: bool, connection: &Connection) -> bool {
    let reader = session.spool().attach(from, Instant::now());
    let taken = |next| {
        session.spool().taken(reader, next, Instant::now());
        session.room.send_replace(());
    };
    let typed = async {
        match read_only {
            true => crate::stream::hang_up(connection).await,
            false => session.typed(connection).await,
        }
    };
    let whole = tokio::select! {
        whole = session.send(connection, from, |_| {}, taken) => whole,
        () = typed => false,
    };
    session.spool().detach(reader);
    session.room.send_replace(());
    whole
}

/// Waits until all that a command wrote before its end is in the spool.
async fn settle(outputs: &[Output]) {
    let since = Instant::now();
    loop {
        let late = since.elapsed() >= SETTLE;
        let is_settled = |output: &Output| {
            let empty = || !output.busy.load(Ordering::Relaxed) && !is_readable(&output.from);
            output.copying.is_finished() || late && empty()
        };
        if outputs.iter().all(is_settled) {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
}

fn is_readable(fd: &AsyncFd<OwnedFd>) -> bool {
    let mut fds = [PollFd::new(fd.get_ref().as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Makes a place for another session: of those that have ended, the oldest goes.
fn make_place(known: &mut HashMap<String, Arc<Session>>) -> Result<()> {
    if known.len() < MAX_SESSIONS {
        return Ok(());
    }
    let ended = known.iter().filter(|(_, session)| session.status.borrow().closed);
    let oldest =
        ended.min_by_key(|(_, session)| session.status.borrow().ended_usec).map(|(id, _)| id.clone());
    match oldest.and_then(|id| known.remove(&id)) {
        Some(session) => {
            session.forgotten.send_replace(true);
            Ok(())
        }
        None => Err(ErrorKind::NotSupported
            .error(format!("{MAX_SESSIONS} sessions run in the guest already; end one of them first"))),
    }
}

/// How much one spool may hold: all of them together at most an eighth of the memory.
fn capacity(memory: u64) -> usize {
    let share = memory / 8 / MAX_SESSIONS as u64;
    share.clamp(4 * BUFFER as u64, 4 << 20) as usize
}

fn no_such(id: &str) -> Error {
    ErrorKind::NoSuchProcess.error(format!("no session {id:?} in this guest"))
}

fn has_ended(id: &str) -> Error {
    ErrorKind::NoSuchProcess.error(format!("session {id:?} has ended"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spools_are_a_share_of_the_memory() {
        assert_eq!(capacity(0), 256 << 10);
        assert_eq!(capacity(128 << 20), 256 << 10);
        assert_eq!(capacity(1 << 30), 2 << 20);
        assert_eq!(capacity(64 << 30), 4 << 20);
    }
}
