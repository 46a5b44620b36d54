//! The commands started for the host: how they are spawned, watched and remembered.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banger_api::{Error, ErrorKind, Result};
use banger_core::guest::ProcessDefaults;
use banger_core::resource::Limits;
use nix::libc;
use nix::pty::{Winsize, openpty};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::builtin::{self, Program};
use crate::session::View;
use crate::{command, sys, users};

/// Commands running at once.
const MAX_RUNNING: usize = 512;
/// Ended commands remembered, and for how long.
const MAX_ENDED: usize = 1024;
const MEMORY: Duration = Duration::from_secs(600);
/// How long a client may take to connect the streams of a command it started.
const CONNECT: Duration = Duration::from_secs(30);
/// The biggest `/etc/passwd` or `/etc/group` we read.
const MAX_USERS_FILE: u64 = 4 << 20;

/// How a command ended: `(exit status, signal)`, one of them 0.
pub type Exit = (i32, i32);

/// What a client wants started.
#[derive(Debug, Default)]
pub struct Request {
    pub argv: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub user: String,
    pub directory: String,
    /// Rows and columns.
    pub terminal: Option<(u16, u16)>,
    pub limits: Limits,
}

/// The guest's end of a stream, waiting for the host's.
#[derive(Debug)]
pub enum Stream {
    /// We write to the command's standard input.
    Input(OwnedFd),
    /// We read its standard output or error.
    Output(OwnedFd),
    /// We do both on the master side of its terminal.
    Terminal(OwnedFd),
    /// A session's, whose command has no stream of its own to the host.
    Session(View),
}

/// A command that was started, and our ends of its streams.
#[derive(Debug)]
pub struct Launched {
    pub id: String,
    pub streams: Vec<(&'static str, Stream)>,
}

#[derive(Debug)]
struct Process {
    argv: Vec<String>,
    started_usec: u64,
    pid: Pid,
    /// For resizing; given up when the terminal is hung up.
    terminal: Option<OwnedFd>,
    exit: watch::Sender<Option<Exit>>,
    ended: Option<Instant>,
    /// It is a session's, and listed as such.
    of_session: bool,
}

#[derive(Debug, Default)]
struct State {
    processes: HashMap<String, Process>,
    /// Streams nobody has connected yet, by token; with the id of the process.
    streams: HashMap<String, (String, Stream)>,
    defaults: ProcessDefaults,
    stopping: bool,
}

/// All commands. Clones share them.
#[derive(Debug, Clone)]
pub struct Table {
    state: Arc<Mutex<State>>,
}

impl Table {
    pub fn new(defaults: ProcessDefaults) -> Self {
        Self { state: Arc::new(Mutex::new(State { defaults, ..State::default() })) }
    }

    /// Changes what is started from now on.
    pub fn set_defaults(&self, defaults: ProcessDefaults) {
        self.lock().defaults = defaults;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent between statements, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a command; returns its id and the tokens of its streams.
    pub fn start(&self, request: Request) -> Result<(String, BTreeMap<String, String>)> {
        let mut state = self.lock();
        let Launched { id, streams } = state.launch(&request, false)?;
        let mut tokens = BTreeMap::new();
        for (name, stream) in streams {
            let token = sys::to_hex(&sys::random::<16>()?);
            state.streams.insert(token.clone(), (id.clone(), stream));
            tokens.insert(name.to_owned(), token);
        }
        drop(state);
        self.give_up_late(id.clone());
        Ok((id, tokens))
    }

    /// Starts a session's command.
    pub fn launch(&self, request: &Request) -> Result<Launched> {
        self.lock().launch(request, true)
    }

    /// Offers a stream that is no command's; returns its token.
    pub fn offer(&self, stream: Stream) -> Result<String> {
        let mut state = self.lock();
        let (id, token) = (state.new_id()?, sys::to_hex(&sys::random::<16>()?));
        state.streams.insert(token.clone(), (id.clone(), stream));
        drop(state);
        self.give_up_late(id);
        Ok(token)
    }

    fn give_up_late(&self, id: String) {
        let table = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(CONNECT).await;
            table.give_up(&id);
        });
    }

    /// Kills a command whose streams were not all connected in time.
    fn give_up(&self, id: &str) {
        let mut state = self.lock();
        let before = state.streams.len();
        state.streams.retain(|_, (owner, _)| owner != id);
        if state.streams.len() == before {
            return;
        }
        if let Some(process) = state.processes.get_mut(id).filter(|process| process.ended.is_none()) {
            sys::log!(sys::WARNING, "command {id} is killed: its streams were not connected");
            let _ = killpg(process.pid, Signal::SIGKILL);
        }
    }

    /// Hands out the stream with this token, once.
    pub fn claim(&self, token: &str) -> Option<(String, Stream)> {
        self.lock().streams.remove(token)
    }

    /// Waits for a command's end.
    pub async fn wait(&self, id: &str) -> Result<Exit> {
        let mut exit = self.lock().get(id)?.exit.subscribe();
        let exit = exit.wait_for(Option::is_some).await;
        // The sender goes when the command is forgotten, which happens only after its end.
        exit.ok().and_then(|exit| *exit).ok_or_else(|| no_such(id))
    }

    pub fn kill(&self, id: &str, signal: i32) -> Result<()> {
        check_signal(signal)?;
        let state = self.lock();
        let process = state.get(id)?;
        if process.ended.is_some() {
            // Its number may have been given to another process since.
            return Err(ErrorKind::NoSuchProcess.error(format!("command {id} has ended")));
        }
        // nix knows no real-time signals.
        // SAFETY: a plain system call.
        match unsafe { libc::killpg(process.pid.as_raw(), signal) } {
            0 => Ok(()),
            _ => Err(match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ESRCH) => no_such(id),
                error => error.into(),
            }),
        }
    }

    pub fn resize(&self, id: &str, rows: u16, columns: u16) -> Result<()> {
        let state = self.lock();
        let process = state.get(id)?;
        match &process.terminal {
            Some(terminal) => Ok(set_size(terminal, rows, columns)?),
            None if process.ended.is_some() => Ok(()),
            None => Err(ErrorKind::InvalidArgs.error(format!("command {id} has no terminal"))),
        }
    }

    /// Gives up our own handle of a terminal, so that closing the other one hangs it up.
    pub fn release_terminal(&self, id: &str) {
        if let Some(process) = self.lock().processes.get_mut(id) {
            process.terminal = None;
        }
    }

    pub fn list(&self) -> Vec<(String, String, Vec<String>, u64)> {
        let mut state = self.lock();
        state.forget_old();
        let describe = |(id, process): (&String, &Process)| {
            let state = if process.ended.is_some() { "exited" } else { "running" };
            (id.clone(), state.to_owned(), process.argv.clone(), process.started_usec)
        };
        let of_host = state.processes.iter().filter(|(_, process)| !process.of_session);
        let mut list: Vec<_> = of_host.map(describe).collect();
        list.sort_by_key(|entry| entry.3);
        list
    }

    /// Starts nothing any more.
    pub fn stop(&self) {
        self.lock().stopping = true;
    }

    pub fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// Collects every child that has ended: our commands, and as PID 1 all orphans. Says whether
    /// children are left.
    pub fn reap(&self) -> bool {
        loop {
            let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, status)) => (pid, (status, 0)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, (0, signal as i32)),
                Ok(WaitStatus::StillAlive) => return true,
                Ok(_) => continue,
                Err(nix::Error::EINTR) => continue,
                Err(nix::Error::EINVAL) => continue,
                Err(_) => return false,
            };
            self.lock().ended(pid, exit);
        }
    }
}

impl State {
    fn launch(&mut self, request: &Request, of_session: bool) -> Result<Launched> {
        self.forget_old();
        if self.stopping {
            return Err(ErrorKind::VmNotRunning.error("the machine is shutting down"));
        }
        if self.processes.values().filter(|process| process.ended.is_none()).count() >= MAX_RUNNING {
            return Err(ErrorKind::NotSupported
                .error(format!("{MAX_RUNNING} commands run already; end one of them first")));
        }
        let spawned = spawn(request, &self.defaults)?;
        let id = self.new_id()?;
        self.processes.insert(
            id.clone(),
            Process {
                argv: spawned.argv,
                started_usec: sys::realtime_usec(),
                pid: spawned.pid,
                terminal: spawned.terminal,
                exit: watch::Sender::new(None),
                ended: None,
                of_session,
            },
        );
        Ok(Launched { id, streams: spawned.streams })
    }

    fn get(&self, id: &str) -> Result<&Process> {
        self.processes.get(id).ok_or_else(|| no_such(id))
    }

    /// Random, so that a host that remembers an id from before a restart of the VM does not take
    /// another command for it.
    fn new_id(&self) -> io::Result<String> {
        const DIGITS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        loop {
            let digit = |byte: &u8| DIGITS[usize::from(byte % 32)] as char;
            let id: String = sys::random::<6>()?.iter().map(digit).collect();
            if !self.processes.contains_key(&id) {
                return Ok(id);
            }
        }
    }

    fn ended(&mut self, pid: Pid, exit: Exit) {
        let process =
            self.processes.values_mut().find(|process| process.pid == pid && process.ended.is_none());
        if let Some(process) = process {
            process.ended = Some(Instant::now());
            process.terminal = None;
            process.exit.send_replace(Some(exit));
        }
        self.forget_old();
    }

    fn forget_old(&mut self) {
        forget_old(&mut self.processes, |process| process.ended);
    }
}

/// Forgets what ended long ago, and the oldest of what is too much to remember.
pub fn forget_old<T>(known: &mut HashMap<String, T>, ended: impl Fn(&T) -> Option<Instant>) {
    let now = Instant::now();
    known.retain(|_, one| ended(one).is_none_or(|ended| now - ended < MEMORY));
    let remembered = known.values().filter(|one| ended(one).is_some()).count();
    for _ in MAX_ENDED..remembered {
        let oldest = known.iter().filter_map(|(id, one)| Some((ended(one)?, id))).min();
        let oldest = oldest.map(|(_, id)| id.clone());
        oldest.map(|id| known.remove(&id));
    }
}

pub fn check_signal(signal: i32) -> Result<()> {
    match signal == 0 || (1..=libc::SIGRTMAX()).contains(&signal) {
        true => Ok(()),
        false => Err(ErrorKind::InvalidArgs.error(format!("there is no signal {signal}"))),
    }
}

fn no_such(id: &str) -> Error {
    ErrorKind::NoSuchProcess.error(format!("no command {id:?}; it may have ended long ago"))
}

struct Spawned {
    pid: Pid,
    argv: Vec<String>,
    streams: Vec<(&'static str, Stream)>,
    terminal: Option<OwnedFd>,
}

fn spawn(request: &Request, defaults: &ProcessDefaults) -> Result<Spawned> {
    let user = if request.user.is_empty() { &defaults.user } else { &request.user };
    let user = find_user(user).map_err(|missing| {
        ErrorKind::NoSuchUser.error(match missing {
            users::Missing::User(user) => format!("no user {user:?} in the image's /etc/passwd"),
            users::Missing::Group(group) => format!("no group {group:?} in the image's /etc/group"),
        })
    })?;
    let environment =
        command::environment(&user, &defaults.env, &request.environment, request.terminal.is_some());
    let login = request.argv.is_empty();
    let argv = if login { vec![user.shell.clone()] } else { request.argv.clone() };
    command::check(&argv, &environment)?;

    let home = if login { user.home.as_str() } else { "" };
    let directory = [request.directory.as_str(), defaults.working_directory.as_str(), home, "/"]
        .into_iter()
        .find(|directory| !directory.is_empty())
        .unwrap_or("/");
    if !directory.starts_with('/') || directory.contains('\0') {
        return Err(ErrorKind::InvalidArgs.error(format!("{directory:?} is not an absolute path")));
    }
    if !std::fs::metadata(directory).is_ok_and(|metadata| metadata.is_dir()) {
        return Err(ErrorKind::NoSuchDirectory.error(format!("no directory {directory} in the guest")));
    }
    let program = Program::of_command(&argv[0]);
    let binary = match program {
        Some(_) => builtin::BINARY.into(),
        None => command::find(&argv[0], directory, &environment["PATH"])?,
    };

    let mut child = Command::new(&binary);
    child.args(&argv[1..]).env_clear().envs(&environment);
    if let Some(program) = program {
        child.arg0(program.process());
    } else if login {
        let name = argv[0].rsplit('/').next().unwrap_or_default();
        child.arg0(format!("-{name}"));
    } else {
        child.arg0(&argv[0]);
    }

    let mut streams = Vec::new();
    let mut terminal = None;
    if let Some((rows, columns)) = request.terminal {
        let pty = openpty(None, None).map_err(io::Error::from)?;
        // Only this thread forks, so there is no moment in which a child could inherit them.
        sys::set_cloexec(&pty.master)?;
        sys::set_cloexec(&pty.slave)?;
        set_size(&pty.master, rows, columns)?;
        give_terminal(&pty.slave, user.uid);
        terminal = Some(clone(&pty.master)?);
        sys::set_nonblocking(&pty.master)?;
        streams.push(("pty", Stream::Terminal(pty.master)));
        child.stdin(clone(&pty.slave)?).stdout(clone(&pty.slave)?).stderr(pty.slave);
    } else {
        let (stdin, ours) = pipe()?;
        child.stdin(stdin);
        sys::set_nonblocking(&ours)?;
        streams.push(("stdin", Stream::Input(ours)));
        for name in ["stdout", "stderr"] {
            let (ours, theirs) = pipe()?;
            sys::set_nonblocking(&ours)?;
            let theirs = Stdio::from(theirs);
            if name == "stdout" {
                child.stdout(theirs)
            } else {
                child.stderr(theirs)
            };
            streams.push((name, Stream::Output(ours)));
        }
    }
    let cwd = std::ffi::CString::new(directory).expect("checked above");
    let has_terminal = request.terminal.is_some();
    let (uid, gid, groups) = (user.uid, user.gid, user.groups);
    let limits = limits(&request.limits)?;
    // SAFETY: the closure only makes system calls, on memory prepared before the fork.
    unsafe {
        child.pre_exec(move || become_command(has_terminal, uid, gid, &groups, &limits, &cwd));
    }
    let child = child.spawn().map_err(|error| match error.raw_os_error() {
        Some(number) if number >= CHDIR_FAILED => ErrorKind::NoSuchDirectory.error(format!(
            "cannot enter {directory} as {}: {}",
            user.name,
            nix::Error::from_raw(number - CHDIR_FAILED).desc()
        )),
        _ => command::exec_error(&argv[0], &error),
    })?;
    Ok(Spawned { pid: Pid::from_raw(child.id() as i32), argv, streams, terminal })
}

/// A user by the image's files, see [`users::resolve`].
pub fn find_user(spec: &str) -> std::result::Result<users::User, users::Missing> {
    let file = |path| sys::read_bounded(path, MAX_USERS_FILE).unwrap_or_default();
    users::resolve(spec, &file("/etc/passwd"), &file("/etc/group"))
}

/// Added to the error number of chdir(2) on its way from the child, to tell it from exec's.
const CHDIR_FAILED: i32 = 1 << 16;

/// The child's part between fork and exec.
fn become_command(
    terminal: bool,
    uid: u32,
    gid: u32,
    groups: &[u32],
    limits: &[(Resource, u64)],
    cwd: &std::ffi::CStr,
) -> io::Result<()> {
    let check = |result: libc::c_int| match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    };
    // SAFETY: plain system calls on valid arguments; all are async-signal-safe.
    unsafe {
        check(libc::setsid())?;
        if terminal {
            check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
        }
        // The agent itself is not to be killed for memory; its commands are.
        let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if score >= 0 {
            libc::write(score, c"0".as_ptr().cast(), 1);
            libc::close(score);
        }
        // As long as we are root, who may raise them, too.
        for &(resource, limit) in limits {
            setrlimit(resource, limit, limit)?;
        }
        libc::umask(0o022);
        check(libc::setgroups(groups.len(), groups.as_ptr()))?;
        check(libc::setgid(gid))?;
        check(libc::setuid(uid))?;
        if libc::chdir(cwd.as_ptr()) == -1 {
            let error = io::Error::last_os_error().raw_os_error().unwrap_or(0);
            return Err(io::Error::from_raw_os_error(CHDIR_FAILED + error));
        }
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    Ok(())
}

/// What is to be limited, for setrlimit(2).
fn limits(limits: &Limits) -> Result<Vec<(Resource, u64)>> {
    let unknown = |name| ErrorKind::InvalidArgs.error(format!("{name:?} cannot be limited"));
    limits.iter().map(|(name, limit)| Ok((by_name(name).ok_or_else(|| unknown(name))?, *limit))).collect()
}

fn by_name(name: &str) -> Option<Resource> {
    Some(match name {
        "as" => Resource::RLIMIT_AS,
        "core" => Resource::RLIMIT_CORE,
        "cpu" => Resource::RLIMIT_CPU,
        "data" => Resource::RLIMIT_DATA,
        "fsize" => Resource::RLIMIT_FSIZE,
        "memlock" => Resource::RLIMIT_MEMLOCK,
        "nofile" => Resource::RLIMIT_NOFILE,
        "nproc" => Resource::RLIMIT_NPROC,
        "stack" => Resource::RLIMIT_STACK,
        _ => return None,
    })
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

fn clone(fd: &OwnedFd) -> Result<OwnedFd> {
    Ok(fd.as_fd().try_clone_to_owned()?)
}

/// Like login(1): the terminal belongs to its user, and others may only write to it as group tty.
fn give_terminal(slave: &OwnedFd, uid: u32) {
    const TTY: u32 = 5;
    let result = nix::unistd::fchown(slave, Some(uid.into()), Some(TTY.into()))
        .and_then(|()| nix::sys::stat::fchmod(slave, nix::sys::stat::Mode::from_bits_truncate(0o620)));
    if let Err(error) = result {
        sys::log!(sys::WARNING, "cannot hand over a terminal: {error}");
    }
}

fn set_size(terminal: &OwnedFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` is what the request reads.
    match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_can_be_asked_for_is_known() {
        for name in banger_core::resource::NAMES {
            assert!(by_name(name).is_some(), "{name}");
        }
    }
}
