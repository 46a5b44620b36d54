//! The way from the host into a guest: its agent's D-Bus interface, and byte streams.
//!
//! Every VM has a Unix socket that stands for its vsock ports: write `CONNECT port`, read
//! `OK port`, and the connection is the guest's. The guest is not trusted: whatever is read here
//! is bounded in size and in time, and what a guest says about itself is made printable before
//! anybody sees it.

mod dial;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_api::agent::{AgentProxy, Port, SessionStatus, Stats};
use banger_api::files::{Copied, Stat};
use banger_api::{Error, ErrorKind, Result};
use banger_core::guest::{AGENT_PORT, GuestConfig, PROTOCOL, STREAM_PORT};
use banger_core::resource::Limits;
use futures_util::future::try_join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use zbus::connection::Builder;
use zbus::connection::socket::{ReadHalf, Socket, Split, WriteHalf};
use zbus::export::async_trait::async_trait;
use zbus::proxy::CacheProperties;

use crate::dial::dial;

/// How long a guest may take to answer, except where waiting is the point. A guest without
/// hardware virtualisation on a busy host is slow.
const PATIENCE: Duration = Duration::from_secs(20);
/// The biggest D-Bus message taken from a guest.
const MAX_MESSAGE: usize = 1 << 20;
/// The longest line in a handshake.
const MAX_LINE: usize = 256;
/// The longest message of an error that is passed on.
const MAX_ERROR: usize = 500;
/// The most commands that an agent keeps: 512 that run and 1024 that have ended.
const MAX_LISTED: usize = 512 + 1024;

/// A command that an agent knows of: id, state, command line, start time.
type Listed = (String, String, Vec<String>, u64);

/// A connection to the agent of one guest.
#[derive(Debug)]
pub struct Agent {
    vsock: PathBuf,
    proxy: AgentProxy<'static>,
}

/// A started command.
#[derive(Debug)]
pub struct Started {
    /// What the agent calls it.
    pub id: String,
    /// The connected streams by name.
    pub streams: BTreeMap<String, OwnedFd>,
}

/// What to start; see [`AgentProxy::start`].
#[derive(Debug, Default)]
pub struct Command<'a> {
    pub argv: &'a [&'a str],
    pub environment: BTreeMap<String, String>,
    pub user: &'a str,
    pub directory: &'a str,
    /// Rows and columns.
    pub terminal: Option<(u16, u16)>,
    pub limits: Limits,
}

/// Where somebody who attaches to a session begins.
#[derive(Debug, Clone, Copy)]
pub enum Scrollback {
    /// This many bytes ago.
    Bytes(u64),
    /// At this offset.
    Offset(u64),
}

impl Agent {
    /// Connects to the agent of the VM with this vsock socket.
    ///
    /// # Errors
    /// `AgentUnreachable`, or `AgentProtocol` if what answers is none of ours.
    pub async fn connect(vsock: &Path) -> Result<Self> {
        let agent = Self::reach(vsock).await?;
        let protocol = in_time(async { agent.proxy.protocol().await.map_err(from_guest) }).await?;
        if protocol != PROTOCOL {
            return Err(protocol_error(format!(
                "the guest's agent speaks protocol {protocol}, this host {PROTOCOL}; restart the VM"
            )));
        }
        Ok(agent)
    }

    /// Connects to an agent of whichever protocol.
    async fn reach(vsock: &Path) -> Result<Self> {
        let mut stream = dial(vsock, AGENT_PORT).await?;
        let connection = in_time(async {
            let guid = authenticate(&mut stream).await?;
            Builder::authenticated_socket(Bounded(stream), guid.as_str())
                .p2p()
                .build()
                .await
                .map_err(from_guest)
        })
        .await?;
        let proxy = AgentProxy::builder(&connection).cache_properties(CacheProperties::No).build();
        let proxy = in_time(async { proxy.await.map_err(from_guest) }).await?;
        Ok(Self { vsock: vsock.to_owned(), proxy })
    }

    /// Starts a command and connects its streams.
    pub async fn start(&self, command: &Command<'_>) -> Result<Started> {
        let (rows, columns) = command.terminal.unwrap_or_default();
        let (id, tokens) = in_time(async {
            self.proxy
                .start(
                    command.argv,
                    &command.environment,
                    command.user,
                    command.directory,
                    command.terminal.is_some(),
                    rows,
                    columns,
                    &command.limits,
                )
                .await
                .map_err(from_guest)
        })
        .await?;
        check_id(&id)?;
        let expected: &[&str] =
            if command.terminal.is_some() { &["pty"] } else { &["stdin", "stdout", "stderr"] };
        let tokens = &tokens;
        let streams = try_join_all(expected.iter().map(|&name| async move {
            let token = tokens
                .get(name)
                .ok_or_else(|| protocol_error(format!("the guest's agent names no stream {name}")))?;
            Ok::<_, Error>((name.to_owned(), self.stream(token).await?))
        }));
        Ok(Started { id, streams: streams.await?.into_iter().collect() })
    }

    /// Whether the connection is of no use any more: the VM has gone down.
    pub fn is_closed(&self) -> bool {
        self.proxy.inner().connection().is_closed()
    }

    /// Waits for the end of a command, however long it takes.
    pub async fn wait(&self, id: &str) -> Result<(i32, i32)> {
        self.proxy.wait(id).await.map_err(from_guest)
    }

    pub async fn kill(&self, id: &str, signal: i32) -> Result<()> {
        in_time(async { self.proxy.kill(id, signal).await.map_err(from_guest) }).await
    }

    pub async fn resize(&self, id: &str, rows: u16, columns: u16) -> Result<()> {
        in_time(async { self.proxy.resize(id, rows, columns).await.map_err(from_guest) }).await
    }

    /// The commands the agent knows of.
    pub async fn list(&self) -> Result<Vec<Listed>> {
        let list = in_time(async { self.proxy.list().await.map_err(from_guest) }).await?;
        Ok(credible(list))
    }

    /// Starts a session; see [`AgentProxy::start_session`].
    pub async fn start_session(&self, id: &str, command: &Command<'_>, restart: &str) -> Result<()> {
        let (rows, columns) = command.terminal.unwrap_or_default();
        let call = self.proxy.start_session(
            id,
            command.argv,
            &command.environment,
            command.user,
            command.directory,
            command.terminal.is_some(),
            rows,
            columns,
            &command.limits,
            restart,
        );
        in_time(async { call.await.map_err(from_guest) }).await
    }

    /// Waits until a session's status has another serial number, however long it takes.
    pub async fn watch_session(&self, id: &str, serial: u32) -> Result<(u32, SessionStatus)> {
        self.proxy.watch_session(id, serial).await.map_err(from_guest)
    }

    pub async fn send_session(&self, id: &str, data: &[u8], end: bool) -> Result<()> {
        in_time(async { self.proxy.send_session(id, data, end).await.map_err(from_guest) }).await
    }

    pub async fn stop_session(&self, id: &str, signal: i32, grace: Duration) -> Result<()> {
        let grace = u64::try_from(grace.as_micros()).unwrap_or(u64::MAX);
        in_time(async { self.proxy.stop_session(id, signal, grace).await.map_err(from_guest) }).await
    }

    pub async fn kill_session(&self, id: &str, signal: i32) -> Result<()> {
        in_time(async { self.proxy.kill_session(id, signal).await.map_err(from_guest) }).await
    }

    pub async fn resize_session(&self, id: &str, rows: u16, columns: u16) -> Result<()> {
        in_time(async { self.proxy.resize_session(id, rows, columns).await.map_err(from_guest) }).await
    }

    /// Connects to a session's output, in records, and its input. See [`AgentProxy::attach_session`].
    pub async fn attach_session(&self, id: &str, from: Scrollback, read_only: bool) -> Result<OwnedFd> {
        let token = in_time(async {
            let token = match from {
                Scrollback::Bytes(bytes) => self.proxy.attach_session(id, bytes, read_only).await,
                Scrollback::Offset(offset) => self.proxy.resume_session(id, offset, read_only).await,
            };
            token.map_err(from_guest)
        });
        self.stream(&token.await?).await
    }

    /// Connects to a session's output from an offset on, to keep it; see [`AgentProxy::drain_session`].
    pub async fn drain_session(&self, id: &str, from: u64) -> Result<UnixStream> {
        let token = in_time(async { self.proxy.drain_session(id, from).await.map_err(from_guest) }).await?;
        let stream = std::os::unix::net::UnixStream::from(self.stream(&token).await?);
        stream.set_nonblocking(true)?;
        Ok(UnixStream::from_std(stream)?)
    }

    pub async fn forget_session(&self, id: &str) -> Result<()> {
        in_time(async { self.proxy.forget_session(id).await.map_err(from_guest) }).await
    }

    /// The guest's uptime in microseconds.
    pub async fn ping(&self) -> Result<u64> {
        in_time(async { self.proxy.ping().await.map_err(from_guest) }).await
    }

    pub async fn stats(&self) -> Result<Stats> {
        let mut stats = in_time(async { self.proxy.stats().await.map_err(from_guest) }).await?;
        for filesystem in &mut stats.filesystems {
            filesystem.mount_point = printable(&filesystem.mount_point);
            filesystem.device = printable(&filesystem.device);
        }
        stats.disks.iter_mut().for_each(|disk| disk.device = printable(&disk.device));
        stats.networks.iter_mut().for_each(|network| network.interface = printable(&network.interface));
        Ok(stats)
    }

    /// What listens in the guest's network.
    pub async fn listening_ports(&self) -> Result<Vec<Port>> {
        let mut ports = in_time(async { self.proxy.listening_ports().await.map_err(from_guest) }).await?;
        for (protocol, address, _, process, _) in &mut ports {
            for text in [protocol, address, process] {
                *text = printable(text);
            }
        }
        Ok(ports)
    }

    /// Lets filesystems fill their disks: device, bytes before and after of each.
    pub async fn grow_disks(&self) -> Result<Vec<(String, u64, u64)>> {
        in_time(async { self.proxy.grow_disks().await.map_err(from_guest) }).await
    }

    /// Writes everything to the disks and has writers wait until [`Agent::thaw`].
    pub async fn quiesce(&self) -> Result<()> {
        in_time(async { self.proxy.quiesce().await.map_err(from_guest) }).await
    }

    pub async fn thaw(&self) -> Result<()> {
        in_time(async { self.proxy.thaw().await.map_err(from_guest) }).await
    }

    /// Has the guest write its root filesystem, as a tar, to the stream returned. See
    /// [`AgentProxy::archive`].
    pub async fn archive(&self) -> Result<OwnedFd> {
        let token = in_time(async { self.proxy.archive().await.map_err(from_guest) }).await?;
        self.stream(&token).await
    }

    /// What is at a path. See [`AgentProxy::stat`].
    pub async fn stat(&self, path: &str, follow: bool) -> Result<Stat> {
        let mut stat = in_time(async { self.proxy.stat(path, follow).await.map_err(from_guest) }).await?;
        stat.kind = printable(&stat.kind);
        Ok(stat)
    }

    /// Has the guest write files, as a tar, to the stream returned; the id is for
    /// [`Self::wait_transfer`]. See [`AgentProxy::pack`].
    pub async fn pack(&self, path: &str, name: &str, follow: bool) -> Result<(String, OwnedFd)> {
        let call = async { self.proxy.pack(path, name, follow).await.map_err(from_guest) };
        let (id, token) = in_time(call).await?;
        check_id(&id)?;
        Ok((id, self.stream(&token).await?))
    }

    /// Has the guest write single files, as a tar, to the stream returned. See [`AgentProxy::pack_files`].
    pub async fn pack_files(&self, directory: &str, paths: &[&[u8]]) -> Result<(String, OwnedFd)> {
        let call = async { self.proxy.pack_files(directory, paths).await.map_err(from_guest) };
        let (id, token) = in_time(call).await?;
        check_id(&id)?;
        Ok((id, self.stream(&token).await?))
    }

    /// Has the guest list what is in a directory to the stream returned. See [`AgentProxy::list_files`].
    pub async fn list_files(&self, directory: &str) -> Result<(String, OwnedFd)> {
        let call = async { self.proxy.list_files(directory).await.map_err(from_guest) };
        let (id, token) = in_time(call).await?;
        check_id(&id)?;
        Ok((id, self.stream(&token).await?))
    }

    /// Removes files below a directory; returns how many. See [`AgentProxy::remove_files`].
    pub async fn remove_files(&self, directory: &str, paths: &[&[u8]]) -> Result<u64> {
        in_time(async { self.proxy.remove_files(directory, paths).await.map_err(from_guest) }).await
    }

    /// Has the guest unpack what is written to the stream returned. See [`AgentProxy::unpack`].
    pub async fn unpack(&self, directory: &str, user: &str, archive: bool) -> Result<(String, OwnedFd)> {
        let call = async { self.proxy.unpack(directory, user, archive).await.map_err(from_guest) };
        let (id, token) = in_time(call).await?;
        check_id(&id)?;
        Ok((id, self.stream(&token).await?))
    }

    /// Waits for the end of a transfer, however long it takes.
    pub async fn wait_transfer(&self, id: &str) -> Result<Copied> {
        let (entries, bytes, mut remarks) = self.proxy.wait_transfer(id).await.map_err(from_guest)?;
        remarks.iter_mut().for_each(|remark| *remark = printable(remark));
        Ok((entries, bytes, remarks))
    }

    /// Makes a guest that woke up from a snapshot what the configuration says. Returns what could
    /// not be done.
    pub async fn reconfigure(&self, config: &GuestConfig) -> Result<Vec<String>> {
        let config = serde_json::to_string(config).map_err(Error::internal)?;
        let left = in_time(async { self.proxy.reconfigure(&config).await.map_err(from_guest) }).await?;
        Ok(left.iter().map(|line| printable(line)).collect())
    }

    /// Asks the agent of the VM with this vsock socket to power off, whichever protocol it speaks: an
    /// older one has to end in order, too.
    pub async fn power_off(vsock: &Path) -> Result<()> {
        let agent = Self::reach(vsock).await?;
        in_time(async { agent.proxy.power_off().await.map_err(from_guest) }).await
    }

    /// Connects one stream: the descriptor is the connection into the guest itself.
    async fn stream(&self, token: &str) -> Result<OwnedFd> {
        if token.is_empty() || token.len() > 64 || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(protocol_error("the guest's agent names a stream in no known form"));
        }
        let mut stream = dial(&self.vsock, STREAM_PORT).await?;
        in_time(async {
            stream.write_all(format!("{token}\n").as_bytes()).await.map_err(lost)?;
            match read_line(&mut stream).await?.as_str() {
                "OK" => Ok(()),
                other => Err(protocol_error(format!("the guest refuses a stream: {}", printable(other)))),
            }
        })
        .await?;
        let stream = stream.into_std()?;
        // Whoever gets it expects an ordinary, blocking descriptor.
        stream.set_nonblocking(false)?;
        Ok(stream.into())
    }
}

/// The client's side of D-Bus authentication, as anonymous; returns the server's id.
///
/// zbus has the same, but reads without a bound until a line ends.
async fn authenticate(stream: &mut UnixStream) -> Result<String> {
    stream.write_all(b"\0AUTH ANONYMOUS 62616e676572\r\n").await.map_err(lost)?;
    let line = read_line(stream).await?;
    let guid = line
        .strip_prefix("OK ")
        .map(str::trim_end)
        .filter(|guid| guid.len() == 32 && guid.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .ok_or_else(|| protocol_error("what answers in the guest is no agent of banger"))?;
    stream.write_all(b"BEGIN\r\n").await.map_err(lost)?;
    Ok(guid.to_owned())
}

/// Reads up to a newline and not a byte further: what follows may be a stream's first.
async fn read_line(stream: &mut UnixStream) -> Result<String> {
    let mut line = Vec::new();
    loop {
        let byte = stream.read_u8().await.map_err(lost)?;
        if byte == b'\n' {
            return String::from_utf8(line).map_err(|_| protocol_error("the guest answers in no text"));
        }
        if line.len() == MAX_LINE {
            return Err(protocol_error("the guest answers without end"));
        }
        line.push(byte);
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| {
        Err(ErrorKind::AgentUnreachable
            .error(format!("the guest's agent did not answer within {} s", PATIENCE.as_secs())))
    })
}

fn lost(error: io::Error) -> Error {
    ErrorKind::AgentUnreachable.error(format!("the connection into the guest broke: {error}"))
}

fn protocol_error(message: impl Into<String>) -> Error {
    ErrorKind::AgentProtocol.error(message)
}

/// Ids become parts of object paths and command lines.
fn check_id(id: &str) -> Result<()> {
    let valid = (1..=20).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if valid { Ok(()) } else { Err(protocol_error("the guest's agent names a command in no known form")) }
}

/// An error as the agent means it. Those that a guest has no business to raise become
/// `AgentProtocol`, so that no guest can make a client believe something about the host.
fn from_guest(error: zbus::Error) -> Error {
    if let zbus::Error::MethodError(name, ..) = &error
        && name.as_str() == "org.freedesktop.DBus.Error.UnknownMethod"
    {
        return ErrorKind::NotSupported.error(
            "the guest's agent is older than this host's services and cannot do this; restart the VM",
        );
    }
    let is_reply = matches!(error, zbus::Error::MethodError(..) | zbus::Error::FDO(_));
    let error = Error::from(error);
    let message = printable(error.message());
    match error.kind() {
        kind @ (ErrorKind::InvalidArgs
        | ErrorKind::NotSupported
        | ErrorKind::VmNotRunning
        | ErrorKind::NotReady
        | ErrorKind::NoSuchProcess
        | ErrorKind::NoSuchUser
        | ErrorKind::NoSuchDirectory
        | ErrorKind::NoSuchFile
        | ErrorKind::FileInTheWay
        | ErrorKind::FileFailed
        | ErrorKind::InvalidArchive
        | ErrorKind::NoSuchTransfer
        | ErrorKind::Interrupted
        | ErrorKind::NoSpace
        | ErrorKind::CommandNotFound
        | ErrorKind::NotExecutable)
            if is_reply =>
        {
            kind.error(message)
        }
        ErrorKind::ServiceUnavailable => {
            ErrorKind::AgentUnreachable.error(format!("the connection into the guest broke: {message}"))
        }
        _ => protocol_error(format!("the guest's agent: {message}")),
    }
}

/// What an agent can know: it keeps no more commands than these, and there are no other states. Their words are the guest's.
fn credible(mut list: Vec<Listed>) -> Vec<Listed> {
    list.retain(|(id, state, ..)| check_id(id).is_ok() && ["running", "exited"].contains(&state.as_str()));
    list.truncate(MAX_LISTED);
    let words = list.iter_mut().flat_map(|(_, _, argv, _)| argv);
    words.for_each(|word| *word = word.chars().map(|c| if c == '\n' { c } else { visible(c) }).collect());
    list
}

/// A terminal does what control characters say.
fn visible(c: char) -> char {
    if c.is_control() { '\u{fffd}' } else { c }
}

/// Text from a guest, fit for a terminal and a log.
fn printable(text: &str) -> String {
    text.chars().take(MAX_ERROR).map(visible).collect()
}

/// A stream that refuses D-Bus messages above [`MAX_MESSAGE`] before memory is set aside for
/// them; D-Bus itself allows 128 MiB.
#[derive(Debug)]
struct Bounded(UnixStream);

#[derive(Debug)]
struct BoundedReader {
    stream: OwnedReadHalf,
    frames: Frames,
}

#[derive(Debug)]
struct Writer(OwnedWriteHalf);

impl Socket for Bounded {
    type ReadHalf = BoundedReader;
    type WriteHalf = Writer;

    fn split(self) -> Split<BoundedReader, Writer> {
        let (read, write) = self.0.into_split();
        Split::new(BoundedReader { stream: read, frames: Frames::default() }, Writer(write))
    }
}

#[async_trait]
impl ReadHalf for BoundedReader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let n = self.stream.read(buffer).await?;
        self.frames.pass(&buffer[..n])?;
        Ok((n, Vec::new()))
    }
}

#[async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], _fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.0.write(buffer).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    async fn close(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }
}

/// Follows where one message ends and the next begins.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; 16],
    have: usize,
    /// Bytes of the message left after its header.
    rest: usize,
}

impl Frames {
    fn pass(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            if self.rest > 0 {
                let n = self.rest.min(data.len());
                self.rest -= n;
                data = &data[n..];
                continue;
            }
            let n = (16 - self.have).min(data.len());
            self.header[self.have..self.have + n].copy_from_slice(&data[..n]);
            self.have += n;
            data = &data[n..];
            if self.have == 16 {
                self.have = 0;
                self.rest =
                    length_after_header(&self.header).filter(|&length| length <= MAX_MESSAGE).ok_or_else(
                        || io::Error::new(io::ErrorKind::InvalidData, "a message from the guest is too big"),
                    )?;
            }
        }
        Ok(())
    }
}

/// Of a D-Bus message, by the fixed part of its header: body length at 4, length of the header
/// fields at 12, padded to 8.
fn length_after_header(header: &[u8; 16]) -> Option<usize> {
    let number = |at: usize| {
        let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
        match header[0] {
            b'l' => Some(u32::from_le_bytes(bytes)),
            b'B' => Some(u32::from_be_bytes(bytes)),
            _ => None,
        }
    };
    let fields = (number(12)? as usize).checked_next_multiple_of(8)?;
    fields.checked_add(number(4)? as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(body: u32, fields: u32) -> [u8; 16] {
        let mut header = [0; 16];
        header[0] = b'l';
        header[4..8].copy_from_slice(&body.to_le_bytes());
        header[12..].copy_from_slice(&fields.to_le_bytes());
        header
    }

    #[test]
    fn a_guest_lists_what_can_be_and_can_be_shown() {
        let listed = |id: &str, state: &str| (id.to_owned(), state.to_owned(), vec!["a\x1b[2J".into()], 1);
        let list = credible(vec![
            listed("one", "running"),
            listed("../two", "running"),
            listed("three", "\x1b]0;x\x07"),
            listed("four", "exited"),
        ]);
        let shown: Vec<_> = list.iter().map(|(id, state, argv, _)| (&**id, &**state, &*argv[0])).collect();
        assert_eq!(shown, [("one", "running", "a\u{fffd}[2J"), ("four", "exited", "a\u{fffd}[2J")]);
        assert_eq!(credible(vec![listed("one", "running"); 20_000]).len(), MAX_LISTED);
    }

    #[test]
    fn frames_are_followed_in_any_pieces() {
        let mut bytes = Vec::new();
        for (body, fields) in [(3, 9), (0, 0), (100, 8)] {
            bytes.extend(header(body, fields));
            bytes.extend(vec![0xff; fields.next_multiple_of(8) as usize + body as usize]);
        }
        for piece in 1..=bytes.len() {
            let mut frames = Frames::default();
            for chunk in bytes.chunks(piece) {
                frames.pass(chunk).unwrap();
            }
            assert_eq!((frames.have, frames.rest), (0, 0), "pieces of {piece}");
        }
    }

    #[test]
    fn big_messages_are_refused() {
        assert!(Frames::default().pass(&header(MAX_MESSAGE as u32, 0)).is_ok());
        assert!(Frames::default().pass(&header(MAX_MESSAGE as u32, 1)).is_err());
        assert!(Frames::default().pass(&header(u32::MAX, u32::MAX)).is_err());
        assert!(Frames::default().pass(&[0; 16]).is_err());
    }

    #[test]
    fn guests_cannot_raise_errors_of_the_host() {
        let reply = |name: &str| {
            let message = zbus::Message::method_call("/", "M").build(&()).unwrap();
            let name = zbus::names::OwnedErrorName::try_from(name).unwrap();
            from_guest(zbus::Error::MethodError(name, Some("a\x1b[2J".into()), message)).kind()
        };
        assert_eq!(reply("org.banger.Error.NoSuchUser"), ErrorKind::NoSuchUser);
        assert_eq!(reply("org.banger.Error.NoSuchVm"), ErrorKind::AgentProtocol);
        assert_eq!(reply("org.freedesktop.DBus.Error.AccessDenied"), ErrorKind::AgentProtocol);
        assert_eq!(printable("a\x1b[2J\n"), "a\u{fffd}[2J\u{fffd}");
    }

    async fn against(script: &'static [(&'static str, &'static str)]) -> Error {
        let directory = std::env::temp_dir().join(format!("banger-{}-{:p}", std::process::id(), script));
        let _ = std::fs::remove_file(&directory);
        let listener = tokio::net::UnixListener::bind(&directory).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            for (expect, answer) in script {
                let mut got = vec![0; expect.len()];
                stream.read_exact(&mut got).await.unwrap();
                assert_eq!(got, expect.as_bytes());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        let error = Agent::connect(&directory).await.unwrap_err();
        std::fs::remove_file(&directory).unwrap();
        error
    }

    #[tokio::test(start_paused = true)]
    async fn hostile_agents() {
        let silent = against(&[("CONNECT 1024\n", "")]).await;
        assert_eq!(silent.kind(), ErrorKind::AgentUnreachable, "{silent}");
        let nonsense = against(&[("CONNECT 1024\n", "NO\n")]).await;
        assert_eq!(nonsense.kind(), ErrorKind::AgentProtocol, "{nonsense}");
        let ssh = against(&[("CONNECT 1024\n", "OK 1024\n"), ("\0AUTH", "SSH-2.0-OpenSSH\r\n")]).await;
        assert_eq!(ssh.kind(), ErrorKind::AgentProtocol, "{ssh}");
        let mute = against(&[
            ("CONNECT 1024\n", "OK 1024\n"),
            ("\0AUTH ANONYMOUS 62616e676572\r\n", "OK 0123456789abcdef0123456789abcdef\r\n"),
        ])
        .await;
        assert_eq!(mute.kind(), ErrorKind::AgentUnreachable, "{mute}");
    }
}
