//! The server that ssh(1) finds as `NAME.banger`: it runs as the user who called ssh, between a pipe of theirs and the session
//! service, which asks polkit as it does for `banger exec`. So nothing new can be done by it, and images need no sshd.
//!
//! One loop carries messages; each channel is a task of its own in it. Nobody buffers more than some pieces: a client may
//! send as much as a channel's window, which opens again when the guest has taken it, and of a guest no more is read
//! than the client has room for.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;

use banger_api::options::OptionsBuilder;
use banger_api::session::ManagerProxy as SessionsProxy;
use banger_api::{Error, ErrorKind, Result};
use banger_ssh::{Destination, Event, Request, Server};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::unistd::{read, write};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use super::keys::Keys;
use super::{IMAGE_USER, vm_of};
use crate::Context;
use crate::cmd::session::wait;
use crate::exit::{self, Status};

/// Makes of a command for ssh what sshd(8) makes of it: the user's shell has it, at their home.
const IN_HOME: &str = "cd \"${HOME:-/}\" 2>/dev/null; exec \"${SHELL:-/bin/sh}\" \"$@\"";
/// Programs that the agent brings along.
const SFTP: &str = "@sftp";
const CONNECT: &str = "@connect";

const BUFFER: usize = 64 * 1024;
/// What may wait for the client to read it before more is taken from guests.
const BACKLOG: usize = 256 * 1024;
/// Pieces of guests' output that may wait.
const PIECES: usize = 4;
/// What a terminal takes for the end of input: Ctrl-D.
const END_OF_TRANSMISSION: u8 = 4;

pub async fn proxy(context: &Context, host: &str) -> Result<()> {
    let vm = vm_of(host)?;
    let keys = Keys::open()?;
    // What is wrong with the VM is to be heard before there is any SSH.
    context.bus.sessions().await?.stat_file(vm, "/", false).await?;
    let (sender, news) = mpsc::channel(PIECES);
    let server = Server::new(keys.host, keys.user.public());
    let proxy =
        Proxy { context, vm, server, channels: HashMap::new(), sender, tasks: FuturesUnordered::new() };
    proxy.run(news).await
}

struct Proxy<'a> {
    context: &'a Context,
    vm: &'a str,
    server: Server,
    channels: HashMap<u32, Channel>,
    sender: mpsc::Sender<(u32, News)>,
    /// The channels' commands.
    tasks: FuturesUnordered<Pin<Box<dyn Future<Output = ()> + 'a>>>,
}

/// What a channel is to become, until its command is started, and the way to it from then on.
struct Channel {
    /// Whether the client knows that it is a command, and of its errors and its end.
    is_session: bool,
    environment: BTreeMap<String, String>,
    /// Rows and columns.
    terminal: Option<(u16, u16)>,
    /// Bytes that the client has room for.
    room: Arc<Semaphore>,
    /// Says that it does not read what comes.
    unread: Arc<Notify>,
    input: Option<mpsc::UnboundedSender<Vec<u8>>>,
    /// What the command is to read.
    inputs: Option<mpsc::UnboundedReceiver<Vec<u8>>>,
    /// What the service calls it.
    id: Option<String>,
    /// Whether a request waits for word of the start.
    reply: bool,
    /// Its command is let go when this goes.
    _held: oneshot::Sender<()>,
    released: Option<oneshot::Receiver<()>>,
}

/// What a channel's command tells.
enum News {
    Started(String),
    Output(Vec<u8>),
    /// The command has closed its standard output. It may go on.
    OutputEnded,
    Stderr(Vec<u8>),
    Consumed(u32),
    Ended(Result<Status>),
}

impl Proxy<'_> {
    async fn run(mut self, mut news: mpsc::Receiver<(u32, News)>) -> Result<()> {
        let (input, output) = (Pipe::of(io::stdin())?, Pipe::of(io::stdout())?);
        let mut buffer = vec![0; BUFFER];
        loop {
            let waiting = self.server.output().len();
            tokio::select! {
                length = input.read(&mut buffer) => match length? {
                    0 => return Ok(()),
                    length => match self.server.receive(&buffer[..length]) {
                        // As it does when it is done.
                        Err(banger_ssh::Error::Disconnected(_)) => return Ok(()),
                        received => {
                            received.map_err(refused)?;
                            self.carry_out()?;
                        }
                    },
                },
                written = output.write(self.server.output()), if waiting > 0 => {
                    let written = written?;
                    self.server.output().drain(..written);
                }
                Some((channel, news)) = news.recv(), if waiting < BACKLOG => {
                    self.tell(channel, news).map_err(refused)?;
                }
                Some(()) = self.tasks.next(), if !self.tasks.is_empty() => {}
            }
        }
    }

    /// Does what the client asks for.
    fn carry_out(&mut self) -> Result<()> {
        while let Some(event) = self.server.next_event() {
            match event {
                Event::Session { channel } => drop(self.channels.insert(channel, Channel::new(true))),
                Event::Connect { channel, to } => {
                    self.channels.insert(channel, Channel::new(false));
                    let argv = match to {
                        Destination::Tcp { host, port } => vec![CONNECT.to_owned(), host, port.to_string()],
                        Destination::Unix { path } => vec![CONNECT.to_owned(), path],
                    };
                    self.start(channel, argv);
                }
                Event::Request { channel, request, reply } => {
                    self.request(channel, request, reply).map_err(refused)?;
                }
                Event::Data { channel, data } => {
                    if let Some(input) = self.channels.get(&channel).and_then(|known| known.input.as_ref()) {
                        // A command that has ended reads nothing any more.
                        let _ = input.send(data);
                    }
                }
                Event::Eof { channel } => {
                    if let Some(known) = self.channels.get_mut(&channel) {
                        known.input = None;
                    }
                }
                Event::Window { channel, bytes } => {
                    if let Some(known) = self.channels.get(&channel) {
                        let room = &known.room;
                        room.add_permits(
                            (bytes as usize).min(Semaphore::MAX_PERMITS - room.available_permits()),
                        );
                    }
                }
                Event::Closed { channel } => drop(self.channels.remove(&channel)),
            }
        }
        Ok(())
    }

    fn request(
        &mut self,
        channel: u32,
        request: Request,
        reply: bool,
    ) -> std::result::Result<(), banger_ssh::Error> {
        let Some(known) = self.channels.get_mut(&channel) else { return Ok(()) };
        let shell = |arguments: &[&str]| {
            let argv = [&["/bin/sh", "-c", IN_HOME, "sh"], arguments].concat();
            Some(argv.into_iter().map(str::to_owned).collect())
        };
        let is_fresh = known.inputs.is_some();
        let argv = match &request {
            Request::Shell => shell(&["-l"]),
            Request::Exec(command) => shell(&["-c", command]),
            Request::Subsystem(name) if name == "sftp" => Some(vec![SFTP.to_owned()]),
            _ => None,
        };
        if let Some(argv) = argv.filter(|_| is_fresh) {
            known.reply = reply;
            self.start(channel, argv);
            return Ok(());
        }
        let done = match request {
            Request::Environment { name, value } if is_fresh => {
                known.environment.insert(name, value);
                true
            }
            Request::Terminal { kind, rows, columns } if is_fresh => {
                known.environment.insert("TERM".to_owned(), kind);
                known.terminal = Some((rows, columns));
                true
            }
            Request::Resize { rows, columns } => {
                known.terminal = Some((rows, columns));
                self.resize(channel, rows, columns)
            }
            Request::Signal(name) => self.signal(channel, &name),
            Request::Unread => {
                known.unread.notify_one();
                true
            }
            _ => false,
        };
        if reply { self.server.reply(channel, done) } else { Ok(()) }
    }

    fn start(&mut self, channel: u32, argv: Vec<String>) {
        let Some(known) = self.channels.get_mut(&channel) else { return };
        let (Some(inputs), Some(released)) = (known.inputs.take(), known.released.take()) else { return };
        let user = self.server.user();
        let command = Command {
            context: self.context,
            vm: self.vm,
            argv,
            environment: std::mem::take(&mut known.environment),
            user: (user != IMAGE_USER).then(|| user.to_owned()),
            terminal: known.terminal,
            room: known.room.clone(),
            unread: known.unread.clone(),
            teller: Teller { channel, sender: self.sender.clone() },
        };
        self.tasks.push(Box::pin(async move {
            tokio::select! {
                () = command.run(inputs) => {}
                _ = released => {}
            }
        }));
    }

    /// Tells the client what has become of a command.
    fn tell(&mut self, channel: u32, news: News) -> std::result::Result<(), banger_ssh::Error> {
        let Some(known) = self.channels.get_mut(&channel) else { return Ok(()) };
        match news {
            News::Started(id) => {
                known.id = Some(id);
                let (size, reply) = (known.terminal, std::mem::take(&mut known.reply));
                if let Some((rows, columns)) = size {
                    // It may have changed meanwhile.
                    self.resize(channel, rows, columns);
                }
                if reply { self.server.reply(channel, true) } else { Ok(()) }
            }
            News::Output(data) => self.server.data(channel, &data),
            News::Stderr(data) if known.is_session => self.server.stderr(channel, &data),
            News::Stderr(data) => {
                exit::say(&String::from_utf8_lossy(&data));
                Ok(())
            }
            // Of a command the end of both is told, with its own.
            News::OutputEnded if known.is_session => Ok(()),
            News::OutputEnded => self.server.eof(channel),
            News::Consumed(bytes) => self.server.consumed(channel, bytes),
            News::Ended(outcome) => {
                if std::mem::take(&mut known.reply) {
                    self.server.reply(channel, false)?;
                }
                match outcome {
                    Ok(_) if !known.is_session => {}
                    Ok(status) => {
                        self.server.eof(channel)?;
                        let name = signal_name(status.signal);
                        let end = if status.signal == 0 { Ok(status.code()) } else { Err(name.as_str()) };
                        self.server.exited(channel, end)?;
                    }
                    Err(error) => exit::complain(&error),
                }
                self.server.close(channel)
            }
        }
    }

    /// Whether there is a command that can be told.
    fn signal(&mut self, channel: u32, name: &str) -> bool {
        let number = format!("SIG{name}").parse::<Signal>();
        match (number, self.id(channel)) {
            (Ok(signal), Some(id)) => {
                self.call(async move |sessions, vm| sessions.kill_session(vm, &id, signal as i32).await);
                true
            }
            _ => false,
        }
    }

    fn resize(&mut self, channel: u32, rows: u16, columns: u16) -> bool {
        let Some(id) = self.id(channel) else { return false };
        self.call(async move |sessions, vm| sessions.resize_session(vm, &id, rows, columns).await);
        true
    }

    fn id(&self, channel: u32) -> Option<String> {
        self.channels.get(&channel)?.id.clone()
    }

    /// Calls the session service. The command may just have ended; how shows in a moment.
    fn call(&self, call: impl AsyncFnOnce(SessionsProxy<'static>, &str) -> zbus::Result<()> + 'static) {
        let (context, vm) = (self.context, self.vm);
        self.tasks.push(Box::pin(async move {
            if let Ok(sessions) = context.bus.sessions().await {
                let _ = call(sessions, vm).await;
            }
        }));
    }
}

impl Channel {
    fn new(is_session: bool) -> Self {
        let (input, inputs) = mpsc::unbounded_channel();
        let (held, released) = oneshot::channel();
        Self {
            is_session,
            environment: BTreeMap::new(),
            terminal: None,
            room: Arc::new(Semaphore::new(0)),
            unread: Arc::default(),
            input: Some(input),
            inputs: Some(inputs),
            id: None,
            reply: false,
            _held: held,
            released: Some(released),
        }
    }
}

/// A command to start and to follow to its end.
struct Command<'a> {
    context: &'a Context,
    vm: &'a str,
    argv: Vec<String>,
    environment: BTreeMap<String, String>,
    user: Option<String>,
    terminal: Option<(u16, u16)>,
    room: Arc<Semaphore>,
    unread: Arc<Notify>,
    teller: Teller,
}

/// The way of news from a channel's task to the loop.
#[derive(Clone)]
struct Teller {
    channel: u32,
    sender: mpsc::Sender<(u32, News)>,
}

impl Teller {
    async fn tell(&self, news: News) {
        // It is our own loop that listens.
        let _ = self.sender.send((self.channel, news)).await;
    }
}

impl Command<'_> {
    async fn run(self, inputs: mpsc::UnboundedReceiver<Vec<u8>>) {
        let ended = match self.terminal {
            Some((rows, columns)) => self.on_terminal(rows, columns, inputs).await,
            None => self.on_pipes(inputs).await,
        };
        self.teller.tell(News::Ended(ended)).await;
    }

    async fn on_pipes(&self, inputs: mpsc::UnboundedReceiver<Vec<u8>>) -> Result<Status> {
        let sessions = self.context.bus.sessions().await?;
        let argv: Vec<&str> = self.argv.iter().map(String::as_str).collect();
        let options = OptionsBuilder::new().set("user", self.user.as_deref()).build();
        let (id, _, stdin, out, err) = sessions.exec(self.vm, &argv, &self.environment, options).await?;
        self.teller.tell(News::Started(id.clone())).await;
        let (stdin, out, err) = (connection(stdin.into())?, connection(out.into())?, connection(err.into())?);
        let ended = async {
            let out = async {
                tokio::select! {
                    () = self.drain(out, News::Output) => self.teller.tell(News::OutputEnded).await,
                    // To close it is a broken pipe to the command.
                    () = self.unread.notified() => {}
                }
            };
            let outputs = async { tokio::join!(out, self.drain(err, News::Stderr)) };
            tokio::join!(outputs, wait(self.context, self.vm, &id)).1
        };
        tokio::pin!(ended);
        // What is sent after the command's end goes nowhere, but is taken.
        tokio::select! {
            ended = &mut ended => ended,
            () = self.feed(stdin, inputs) => ended.await,
        }
    }

    async fn on_terminal(
        &self,
        rows: u16,
        columns: u16,
        inputs: mpsc::UnboundedReceiver<Vec<u8>>,
    ) -> Result<Status> {
        let sessions = self.context.bus.sessions().await?;
        let argv: Vec<&str> = self.argv.iter().map(String::as_str).collect();
        let options = OptionsBuilder::new()
            .set("user", self.user.as_deref())
            .set("rows", Some(rows))
            .set("columns", Some(columns))
            .build();
        let (id, _, pty) = sessions.open_shell(self.vm, &argv, &self.environment, options).await?;
        self.teller.tell(News::Started(id.clone())).await;
        let (output, mut input) = connection(pty.into())?.into_split();
        let ended =
            async { tokio::join!(self.drain(output, News::Output), wait(self.context, self.vm, &id)).1 };
        tokio::pin!(ended);
        let typed = async {
            self.pass_on(&mut input, inputs).await;
            let _ = input.write_all(&[END_OF_TRANSMISSION]).await;
        };
        let status = tokio::select! {
            ended = &mut ended => return ended,
            // To close the input would hang up.
            () = typed => ended.await,
        };
        drop(input);
        status
    }

    async fn feed(&self, mut to: UnixStream, inputs: mpsc::UnboundedReceiver<Vec<u8>>) {
        self.pass_on(&mut to, inputs).await;
        let _ = to.shutdown().await;
    }

    /// Passes on what the client sends, to its end.
    async fn pass_on(
        &self,
        to: &mut (impl AsyncWrite + Unpin),
        mut inputs: mpsc::UnboundedReceiver<Vec<u8>>,
    ) {
        let mut is_read = true;
        while let Some(data) = inputs.recv().await {
            // A command that does not read its input is none of our business.
            is_read = is_read && to.write_all(&data).await.is_ok();
            self.teller.tell(News::Consumed(u32::try_from(data.len()).unwrap_or(u32::MAX))).await;
        }
    }

    /// Passes on what a command puts out, to its end, as fast as the client has room for it.
    async fn drain(&self, mut from: impl AsyncRead + Unpin, news: fn(Vec<u8>) -> News) {
        let mut buffer = vec![0; BUFFER];
        loop {
            let Ok(first) = self.room.acquire().await else { return };
            first.forget();
            let more = self.room.available_permits().min(BUFFER - 1);
            // Nobody else takes any in between: all of this is one thread.
            let room = 1 + self.room.forget_permits(more);
            match from.read(&mut buffer[..room]).await {
                // A vsock is broken off when its guest is gone; how the command ended tells.
                Ok(0) | Err(_) => return self.room.add_permits(room),
                Ok(length) => {
                    self.room.add_permits(room - length);
                    self.teller.tell(news(buffer[..length].to_vec())).await;
                }
            }
        }
    }
}

fn connection(fd: OwnedFd) -> Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    Ok(UnixStream::from_std(stream)?)
}

/// As RFC 4254 has it; signals that it does not know are ours to name.
fn signal_name(number: i32) -> String {
    const KNOWN: [&str; 13] =
        ["ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2"];
    let name = Signal::try_from(number).ok().and_then(|signal| signal.as_str().strip_prefix("SIG"));
    match name {
        Some(name) if KNOWN.contains(&name) => name.to_owned(),
        Some(name) => format!("{name}@banger"),
        None => format!("{number}@banger"),
    }
}

fn refused(error: banger_ssh::Error) -> Error {
    ErrorKind::InvalidArgs.error(error.to_string())
}

/// One of the ends that ssh(1) gives us.
struct Pipe(AsyncFd<OwnedFd>);

impl Pipe {
    fn of(fd: impl AsFd) -> Result<Self> {
        let fd = fd.as_fd().try_clone_to_owned()?;
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).map_err(io::Error::from)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(io::Error::from)?;
        // SAFETY: an `OwnedFd` is the same descriptor until it is dropped, which AsyncFd does after it has stopped
        // watching.
        let watched = unsafe { AsyncFd::register(fd) }.map_err(|_| {
            ErrorKind::InvalidArgs.error("this is for ssh, as its ProxyCommand; see banger ssh-config")
        })?;
        Ok(Self(watched))
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.async_io(tokio::io::Interest::READABLE, |fd| Ok(read(fd, &mut *buffer)?)).await
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.async_io(tokio::io::Interest::WRITABLE, |fd| Ok(write(fd, bytes)?)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_their_names() {
        assert_eq!(signal_name(15), "TERM");
        assert_eq!(signal_name(7), "BUS@banger");
        assert_eq!(signal_name(34), "34@banger");
    }
}
