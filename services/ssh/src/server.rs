//! What the client wants: to log in (RFC 4252), and channels with commands in them (RFC 4254).

use std::collections::{BTreeMap, VecDeque};

use banger_core::wire::{Reader, Writer};

use crate::exchange::{self, ECDH_INIT, KEXINIT, NEWKEYS, Said};
use crate::packet::{self, Cipher};
use crate::{Error, Key, key};

/// ssh(1) says that nobody reads a command's output any more ([`Request::Unread`]) only to those who begin like this.
const VERSION: &str = concat!("SSH-2.0-OpenSSH_banger_", env!("CARGO_PKG_VERSION"));
/// The longest line that a client may begin with: RFC 4253, section 4.2.
const MAX_VERSION: usize = 255;

/// How much a client may send into a channel before the guest has taken any of it.
pub const WINDOW: u32 = 2 << 20;
/// The most it may send at once, in bytes of data.
pub const MAX_DATA: u32 = 32 * 1024;

const DISCONNECT: u8 = 1;
const IGNORE: u8 = 2;
const UNIMPLEMENTED: u8 = 3;
const DEBUG: u8 = 4;
const SERVICE_REQUEST: u8 = 5;
const SERVICE_ACCEPT: u8 = 6;
const USERAUTH_REQUEST: u8 = 50;
const USERAUTH_FAILURE: u8 = 51;
const USERAUTH_SUCCESS: u8 = 52;
const USERAUTH_PK_OK: u8 = 60;
const GLOBAL_REQUEST: u8 = 80;
const REQUEST_FAILURE: u8 = 82;
const CHANNEL_OPEN: u8 = 90;
const CHANNEL_OPEN_CONFIRMATION: u8 = 91;
const CHANNEL_OPEN_FAILURE: u8 = 92;
const CHANNEL_WINDOW_ADJUST: u8 = 93;
const CHANNEL_DATA: u8 = 94;
const CHANNEL_EXTENDED_DATA: u8 = 95;
const CHANNEL_EOF: u8 = 96;
const CHANNEL_CLOSE: u8 = 97;
const CHANNEL_REQUEST: u8 = 98;
const CHANNEL_SUCCESS: u8 = 99;
const CHANNEL_FAILURE: u8 = 100;

const EXTENDED_STDERR: u32 = 1;
const UNKNOWN_CHANNEL_TYPE: u32 = 3;

/// What has come from the client, for whoever carries it out. Channels go by our own numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A channel for a command.
    Session { channel: u32 },
    /// A channel that is to lead somewhere.
    Connect { channel: u32, to: Destination },
    /// If `reply` is set it wants an answer, by [`Server::reply`].
    Request { channel: u32, request: Request, reply: bool },
    /// For [`Server::consumed`], when it has arrived where it is to go.
    Data { channel: u32, data: Vec<u8> },
    /// No more data will come.
    Eof { channel: u32 },
    /// So many bytes more may be sent. It comes for the first time when the channel is opened.
    Window { channel: u32, bytes: u32 },
    /// The client has no more use for the channel.
    Closed { channel: u32 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    Tcp { host: String, port: u16 },
    Unix { path: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Environment {
        name: String,
        value: String,
    },
    Terminal {
        kind: String,
        rows: u16,
        columns: u16,
    },
    Resize {
        rows: u16,
        columns: u16,
    },
    Shell,
    Exec(String),
    Subsystem(String),
    /// By its name, without `SIG`.
    Signal(String),
    /// Nobody reads its output any more: `eow@openssh.com`, in OpenSSH's `PROTOCOL`, section 2.1.
    Unread,
    /// Something that there is not here.
    Other(String),
}

#[derive(Debug)]
enum Stage {
    /// The line that every client begins with is awaited.
    Version,
    /// The client's `KEXINIT` is awaited, and this is ours.
    Init(Vec<u8>),
    /// The client's half of the key is awaited; this is what both have said. The one message that comes
    /// before may have to be passed over.
    Half { ours: Vec<u8>, theirs: Vec<u8>, pass_over: bool },
    /// `NEWKEYS` is awaited, after which this applies.
    NewKeys(Box<Cipher>),
    /// Both ends have keys.
    Ready,
}

#[derive(Debug)]
struct Channel {
    /// The client's number.
    theirs: u32,
    /// What the client may still send.
    window: u32,
    /// Consumed, but not yet said so.
    consumed: u32,
    /// The most it takes at once.
    max_data: u32,
    is_closing: bool,
}

/// One client's connection.
#[derive(Debug)]
pub struct Server {
    host: Key,
    /// The public key of those who may log in.
    authorized: Vec<u8>,
    stage: Stage,
    client_version: Vec<u8>,
    session: Option<Vec<u8>>,
    user: Option<String>,
    opener: Option<Cipher>,
    sealer: Option<Cipher>,
    received: u32,
    input: Vec<u8>,
    output: Vec<u8>,
    /// What was to be sent during an exchange of keys.
    deferred: Vec<Vec<u8>>,
    channels: BTreeMap<u32, Channel>,
    events: VecDeque<Event>,
}

impl Server {
    /// A server with a key of its own, for clients that have the key with this public half (see
    /// [`Key::public`]).
    #[must_use]
    pub fn new(host: Key, authorized: Vec<u8>) -> Self {
        Self {
            host,
            authorized,
            stage: Stage::Version,
            client_version: Vec::new(),
            session: None,
            user: None,
            opener: None,
            sealer: None,
            received: 0,
            input: Vec::new(),
            output: format!("{VERSION}\r\n").into(),
            deferred: Vec::new(),
            channels: BTreeMap::new(),
            events: VecDeque::new(),
        }
    }

    /// Whom the client has logged in as.
    #[must_use]
    pub fn user(&self) -> &str {
        self.user.as_deref().unwrap_or_default()
    }

    /// What is to be sent to the client; take out what was.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Takes what came from the client.
    ///
    /// # Errors
    /// If there can be no conversation; a message for the client may be in the output.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.input.extend_from_slice(bytes);
        if matches!(self.stage, Stage::Version) && !self.receive_version()? {
            return Ok(());
        }
        while let Some(message) = packet::open(self.opener.as_mut(), &mut self.input)? {
            let number = *message.first().ok_or(Error::Malformed)?;
            self.handle(number, &message)?;
            self.received = self.received.wrapping_add(1);
        }
        Ok(())
    }

    /// What has come of it, one after the other.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Answers a request.
    pub fn reply(&mut self, channel: u32, success: bool) -> Result<(), Error> {
        let number = if success { CHANNEL_SUCCESS } else { CHANNEL_FAILURE };
        self.say(channel, number, |writer| writer)
    }

    /// Sends output, for which there has to be room: [`Event::Window`].
    pub fn data(&mut self, channel: u32, data: &[u8]) -> Result<(), Error> {
        for piece in data.chunks(self.piece(channel)) {
            self.say(channel, CHANNEL_DATA, |writer| writer.string(piece))?;
        }
        Ok(())
    }

    /// The same, to where errors go.
    pub fn stderr(&mut self, channel: u32, data: &[u8]) -> Result<(), Error> {
        for piece in data.chunks(self.piece(channel)) {
            self.say(channel, CHANNEL_EXTENDED_DATA, |writer| writer.uint32(EXTENDED_STDERR).string(piece))?;
        }
        Ok(())
    }

    fn piece(&self, channel: u32) -> usize {
        self.channels.get(&channel).map_or(1, |channel| channel.max_data.max(1)) as usize
    }

    /// So many bytes of the client's data have arrived, and it may send as many more.
    pub fn consumed(&mut self, channel: u32, bytes: u32) -> Result<(), Error> {
        let Some(known) = self.channels.get_mut(&channel) else { return Ok(()) };
        known.consumed = known.consumed.saturating_add(bytes);
        // Not a message for every little bit.
        if known.consumed < WINDOW / 8 {
            return Ok(());
        }
        let bytes = std::mem::take(&mut known.consumed);
        known.window = known.window.saturating_add(bytes);
        self.say(channel, CHANNEL_WINDOW_ADJUST, |writer| writer.uint32(bytes))
    }

    pub fn eof(&mut self, channel: u32) -> Result<(), Error> {
        self.say(channel, CHANNEL_EOF, |writer| writer)
    }

    /// How a channel's command ended: by itself, or by a signal, named without `SIG`.
    pub fn exited(&mut self, channel: u32, end: Result<u8, &str>) -> Result<(), Error> {
        self.say(channel, CHANNEL_REQUEST, |writer| match end {
            Ok(status) => writer.string("exit-status").boolean(false).uint32(status.into()),
            Err(signal) => writer
                .string("exit-signal")
                .boolean(false)
                .string(signal)
                .boolean(false)
                .string("")
                .string(""),
        })
    }

    /// Closes a channel, on which nothing may be said any more.
    pub fn close(&mut self, channel: u32) -> Result<(), Error> {
        self.say(channel, CHANNEL_CLOSE, |writer| writer)?;
        if let Some(known) = self.channels.get_mut(&channel) {
            known.is_closing = true;
        }
        Ok(())
    }

    /// A message about a channel, unless it has been closed.
    fn say(&mut self, channel: u32, number: u8, rest: impl FnOnce(Writer) -> Writer) -> Result<(), Error> {
        match self.channels.get(&channel) {
            Some(channel) if !channel.is_closing => {
                let message = rest(Writer::message(number).uint32(channel.theirs));
                self.send(message.0)
            }
            _ => Ok(()),
        }
    }

    /// Sends a message, or keeps it until there are keys again.
    fn send(&mut self, message: Vec<u8>) -> Result<(), Error> {
        match self.stage {
            Stage::NewKeys(_) | Stage::Ready => self.send_now(&message),
            Stage::Version | Stage::Init(_) | Stage::Half { .. } => {
                self.deferred.push(message);
                Ok(())
            }
        }
    }

    fn send_now(&mut self, message: &[u8]) -> Result<(), Error> {
        packet::seal(self.sealer.as_mut(), message, &mut self.output)
    }

    fn send_init(&mut self) -> Result<Vec<u8>, Error> {
        let ours = exchange::init()?;
        self.send_now(&ours)?;
        Ok(ours)
    }

    /// Says whether the whole line was there.
    fn receive_version(&mut self) -> Result<bool, Error> {
        let Some(end) = self.input.iter().position(|&byte| byte == b'\n') else {
            return if self.input.len() > MAX_VERSION { Err(Error::Version) } else { Ok(false) };
        };
        let line: Vec<u8> = self.input.drain(..=end).collect();
        let line = line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]);
        if !line.starts_with(b"SSH-2.0-") || line.len() > MAX_VERSION {
            return Err(Error::Version);
        }
        self.client_version = line.to_vec();
        self.stage = Stage::Init(self.send_init()?);
        Ok(true)
    }

    fn handle(&mut self, number: u8, message: &[u8]) -> Result<(), Error> {
        match number {
            DISCONNECT => {
                let mut reader = Reader(&message[1..]);
                reader.uint32()?;
                return Err(Error::Disconnected(String::from_utf8_lossy(reader.string()?).into_owned()));
            }
            IGNORE | UNIMPLEMENTED | DEBUG => return Ok(()),
            _ => {}
        }
        match std::mem::replace(&mut self.stage, Stage::Ready) {
            Stage::Half { ours, theirs, pass_over: true } => {
                self.stage = Stage::Half { ours, theirs, pass_over: false };
                Ok(())
            }
            Stage::Half { ours, theirs, .. } if number == ECDH_INIT => self.finish(&ours, &theirs, message),
            Stage::NewKeys(opener) if number == NEWKEYS => {
                self.opener = Some(*opener);
                Ok(())
            }
            Stage::Init(ours) if number == KEXINIT => self.begin(ours, message),
            Stage::Ready if number == KEXINIT => {
                let ours = self.send_init()?;
                self.begin(ours, message)
            }
            Stage::Ready if self.user.is_some() => self.connected(number, message),
            Stage::Ready => self.log_in(number, &message[1..]),
            Stage::Version | Stage::Init(_) | Stage::Half { .. } | Stage::NewKeys(_) => {
                Err(Error::Unexpected(number))
            }
        }
    }

    fn begin(&mut self, ours: Vec<u8>, message: &[u8]) -> Result<(), Error> {
        let pass_over = exchange::agree(message)?;
        self.stage = Stage::Half { ours, theirs: message.to_vec(), pass_over };
        Ok(())
    }

    fn finish(&mut self, ours: &[u8], theirs: &[u8], message: &[u8]) -> Result<(), Error> {
        let said = Said {
            client_version: &self.client_version,
            server_version: VERSION.as_bytes(),
            client_init: theirs,
            server_init: ours,
        };
        let outcome = exchange::finish(&self.host, &said, message, self.session.as_deref())?;
        self.send_now(&outcome.reply)?;
        self.send_now(&[NEWKEYS])?;
        self.sealer = Some(outcome.to_client);
        self.session.get_or_insert(outcome.hash);
        self.stage = Stage::NewKeys(Box::new(outcome.from_client));
        for message in std::mem::take(&mut self.deferred) {
            self.send_now(&message)?;
        }
        Ok(())
    }

    fn log_in(&mut self, number: u8, body: &[u8]) -> Result<(), Error> {
        let mut reader = Reader(body);
        match number {
            SERVICE_REQUEST => {
                let service = reader.string()?;
                self.send(Writer::message(SERVICE_ACCEPT).string(service).0)
            }
            USERAUTH_REQUEST => {
                let (user, service) = (reader.text()?, reader.text()?);
                let method = reader.text()?;
                if service != "ssh-connection" {
                    return Err(Error::Unexpected(number));
                }
                let failure = Writer::message(USERAUTH_FAILURE).string("publickey").boolean(false);
                if method != "publickey" {
                    return self.send(failure.0);
                }
                let (is_signed, algorithm, public) = (reader.boolean()?, reader.text()?, reader.string()?);
                let reply = if algorithm != key::ALGORITHM || public != self.authorized {
                    failure
                } else if !is_signed {
                    Writer::message(USERAUTH_PK_OK).string(algorithm).string(public)
                } else {
                    let request = &body[..body.len() - reader.0.len()];
                    let session = self.session.as_deref().unwrap_or_default();
                    let signed = Writer::default().string(session).byte(number).raw(request);
                    if key::verify(public, &signed.0, reader.string()?) {
                        self.user = Some(user.to_owned());
                        Writer::message(USERAUTH_SUCCESS)
                    } else {
                        failure
                    }
                };
                self.send(reply.0)
            }
            _ => Err(Error::Unexpected(number)),
        }
    }

    /// What comes from a client that has logged in.
    fn connected(&mut self, number: u8, message: &[u8]) -> Result<(), Error> {
        let mut reader = Reader(&message[1..]);
        match number {
            GLOBAL_REQUEST => {
                reader.string()?;
                if reader.boolean()? { self.send(vec![REQUEST_FAILURE]) } else { Ok(()) }
            }
            CHANNEL_OPEN => self.open(reader),
            CHANNEL_WINDOW_ADJUST
            | CHANNEL_DATA
            | CHANNEL_EXTENDED_DATA
            | CHANNEL_EOF
            | CHANNEL_CLOSE
            | CHANNEL_REQUEST => {
                let channel = reader.uint32()?;
                if !self.channels.contains_key(&channel) {
                    return Err(Error::Unexpected(number));
                }
                self.about(channel, number, reader)
            }
            // As it may be once more after it was granted.
            USERAUTH_REQUEST => Ok(()),
            _ => self.send(Writer::message(UNIMPLEMENTED).uint32(self.received).0),
        }
    }

    fn open(&mut self, mut reader: Reader) -> Result<(), Error> {
        let (kind, theirs, window, max_data) =
            (reader.text()?, reader.uint32()?, reader.uint32()?, reader.uint32()?);
        let ours = (0..).find(|number| !self.channels.contains_key(number)).unwrap_or(u32::MAX);
        let event = match kind {
            "session" => Event::Session { channel: ours },
            "direct-tcpip" => {
                let (host, port) = (reader.text()?.to_owned(), reader.uint32()?);
                let port = u16::try_from(port).map_err(|_| Error::Malformed)?;
                Event::Connect { channel: ours, to: Destination::Tcp { host, port } }
            }
            "direct-streamlocal@openssh.com" => {
                Event::Connect { channel: ours, to: Destination::Unix { path: reader.text()?.to_owned() } }
            }
            _ => {
                let refusal =
                    Writer::message(CHANNEL_OPEN_FAILURE).uint32(theirs).uint32(UNKNOWN_CHANNEL_TYPE);
                return self.send(refusal.string(format!("there is no {kind:?} here")).string("").0);
            }
        };
        let max_data = max_data.min(MAX_DATA);
        let channel = Channel { theirs, window: WINDOW, consumed: 0, max_data, is_closing: false };
        self.channels.insert(ours, channel);
        self.events.extend([event, Event::Window { channel: ours, bytes: window }]);
        let confirmation = Writer::message(CHANNEL_OPEN_CONFIRMATION).uint32(theirs).uint32(ours);
        self.send(confirmation.uint32(WINDOW).uint32(MAX_DATA).0)
    }

    /// What is about a channel that there is.
    fn about(&mut self, channel: u32, number: u8, mut reader: Reader) -> Result<(), Error> {
        let event = match number {
            CHANNEL_WINDOW_ADJUST => Event::Window { channel, bytes: reader.uint32()? },
            CHANNEL_DATA => {
                let data = reader.string()?.to_vec();
                let length = u32::try_from(data.len()).map_err(|_| Error::Window)?;
                if let Some(known) = self.channels.get_mut(&channel) {
                    known.window = known.window.checked_sub(length).ok_or(Error::Window)?;
                }
                Event::Data { channel, data }
            }
            CHANNEL_EOF => Event::Eof { channel },
            CHANNEL_CLOSE => {
                self.close(channel)?;
                self.channels.remove(&channel);
                Event::Closed { channel }
            }
            CHANNEL_REQUEST => {
                let (kind, reply) = (reader.text()?, reader.boolean()?);
                Event::Request { channel, request: request(kind, reader)?, reply }
            }
            // Clients have no errors to tell.
            _ => return Err(Error::Unexpected(number)),
        };
        self.events.push_back(event);
        Ok(())
    }
}

fn request(kind: &str, mut reader: Reader) -> Result<Request, Error> {
    // Terminals of more than 65,535 rows are none.
    let size = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    let other = || Request::Other(kind.to_owned());
    // D-Bus carries no text that is not UTF-8.
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    Ok(match kind {
        "env" => match (text(reader.string()?), text(reader.string()?)) {
            (Some(name), Some(value)) => Request::Environment { name, value },
            _ => other(),
        },
        "pty-req" => {
            let kind = reader.text()?.to_owned();
            let (columns, rows) = (size(reader.uint32()?), size(reader.uint32()?));
            Request::Terminal { kind, rows, columns }
        }
        "window-change" => {
            let (columns, rows) = (size(reader.uint32()?), size(reader.uint32()?));
            Request::Resize { rows, columns }
        }
        "shell" => Request::Shell,
        "exec" => text(reader.string()?).map_or_else(other, Request::Exec),
        "subsystem" => Request::Subsystem(reader.text()?.to_owned()),
        "eow@openssh.com" => Request::Unread,
        "signal" => Request::Signal(reader.text()?.to_owned()),
        _ => other(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's connection before there are keys, so that everything can be read.
    struct Plain {
        server: Server,
        key: Key,
    }

    impl Plain {
        fn new() -> Self {
            let key = Key::generate().unwrap();
            let mut server = Server::new(Key::generate().unwrap(), key.public());
            server.stage = Stage::Ready;
            server.session = Some(b"session".to_vec());
            server.output.clear();
            Self { server, key }
        }

        fn logged_in() -> Self {
            let mut plain = Self::new();
            plain.server.user = Some("root".into());
            plain
        }

        /// Sends a message; returns what is answered.
        fn send(&mut self, message: Writer) -> Vec<Vec<u8>> {
            self.try_send(message).unwrap()
        }

        fn try_send(&mut self, message: Writer) -> Result<Vec<Vec<u8>>, Error> {
            let mut wire = Vec::new();
            packet::seal(None, &message.0, &mut wire)?;
            self.server.receive(&wire)?;
            Ok(self.answers())
        }

        fn answers(&mut self) -> Vec<Vec<u8>> {
            let output = self.server.output();
            std::iter::from_fn(|| packet::open(None, output).unwrap()).collect()
        }

        fn events(&mut self) -> Vec<Event> {
            std::iter::from_fn(|| self.server.next_event()).collect()
        }

        /// Opens a channel that the client calls 70, with a window of 1000.
        fn open(&mut self) -> u32 {
            let open = Writer::message(CHANNEL_OPEN).string("session").uint32(70).uint32(1000).uint32(400);
            assert_eq!(self.send(open)[0][0], CHANNEL_OPEN_CONFIRMATION);
            let events = self.events();
            let Event::Session { channel } = events[0] else { panic!("{events:?}") };
            assert_eq!(events[1], Event::Window { channel, bytes: 1000 });
            channel
        }

        fn log_in(&mut self, key: &Key, session: &[u8]) -> u8 {
            let request = |is_signed| {
                Writer::message(USERAUTH_REQUEST)
                    .string("me")
                    .string("ssh-connection")
                    .string("publickey")
                    .boolean(is_signed)
                    .string(key::ALGORITHM)
                    .string(key.public())
            };
            let asked = self.send(request(false))[0][0];
            if asked != USERAUTH_PK_OK {
                return asked;
            }
            let signature = key.sign(&Writer::default().string(session).raw(&request(true).0).0);
            self.send(request(true).string(signature))[0][0]
        }
    }

    fn about(number: u8, channel: u32) -> Writer {
        Writer::message(number).uint32(channel)
    }

    #[test]
    fn only_the_right_key_for_this_connection_lets_in() {
        let mut plain = Plain::new();
        let none = Writer::message(USERAUTH_REQUEST).string("me").string("ssh-connection").string("none");
        assert_eq!(plain.send(none)[0][0], USERAUTH_FAILURE);
        assert_eq!(plain.log_in(&Key::generate().unwrap(), b"session"), USERAUTH_FAILURE);
        let key = Key::from_file(&plain.key.to_file("")).unwrap();
        assert_eq!(plain.log_in(&key, b"another session"), USERAUTH_FAILURE);
        assert!(plain.try_send(Writer::message(CHANNEL_OPEN)).is_err(), "nothing before that");
        let mut plain = Plain { key, ..Plain::new() };
        plain.server.authorized = plain.key.public();
        let key = Key::from_file(&plain.key.to_file("")).unwrap();
        assert_eq!(plain.log_in(&key, b"session"), USERAUTH_SUCCESS);
        assert_eq!(plain.server.user(), "me");
    }

    #[test]
    fn requests_become_events() {
        let mut plain = Plain::logged_in();
        let channel = plain.open();
        let request = |kind: &str| about(CHANNEL_REQUEST, channel).string(kind).boolean(true);
        for (message, expected) in [
            (
                request("env").string("A").string("b"),
                Request::Environment { name: "A".into(), value: "b".into() },
            ),
            (
                request("pty-req").string("xterm").uint32(80).uint32(24).uint32(0).uint32(0).string(""),
                Request::Terminal { kind: "xterm".into(), rows: 24, columns: 80 },
            ),
            (
                request("window-change").uint32(1).uint32(u32::MAX),
                Request::Resize { rows: u16::MAX, columns: 1 },
            ),
            (request("exec").string("ls"), Request::Exec("ls".into())),
            (request("exec").string(b"\xff"), Request::Other("exec".into())),
            (request("shell"), Request::Shell),
            (request("subsystem").string("sftp"), Request::Subsystem("sftp".into())),
            (request("signal").string("TERM"), Request::Signal("TERM".into())),
            (request("eow@openssh.com"), Request::Unread),
            (request("x11-req"), Request::Other("x11-req".into())),
        ] {
            assert!(plain.send(message).is_empty(), "answers are not ours to give");
            assert_eq!(plain.events(), [Event::Request { channel, request: expected, reply: true }]);
        }
        plain.server.reply(channel, true).unwrap();
        plain.server.exited(channel, Ok(3)).unwrap();
        plain.server.exited(channel, Err("TERM")).unwrap();
        let status = about(CHANNEL_REQUEST, 70).string("exit-status").boolean(false).uint32(3).0;
        let answers = plain.answers();
        assert_eq!(answers[..2], [about(CHANNEL_SUCCESS, 70).0, status]);
        assert!(answers[2].windows(4).any(|window| window == b"TERM"));
        assert_eq!(plain.send(request("exec").string("x").raw(b"rest")).len(), 0);
        let cut = about(CHANNEL_REQUEST, channel).string("exec").boolean(true).uint32(9);
        assert_eq!(plain.try_send(cut), Err(Error::Malformed));
    }

    #[test]
    fn a_window_opens_when_the_guest_has_taken_what_came() {
        let mut plain = Plain::logged_in();
        let channel = plain.open();
        let data = vec![b'x'; WINDOW as usize / 16];
        for _ in 0..16 {
            assert!(plain.send(about(CHANNEL_DATA, channel).string(&data)).is_empty());
        }
        assert_eq!(plain.events().len(), 16);
        let one = || about(CHANNEL_DATA, channel).string("x");
        assert_eq!(plain.try_send(one()), Err(Error::Window), "it is full");
        plain.server.consumed(channel, WINDOW / 16).unwrap();
        assert!(plain.answers().is_empty(), "too little to say so");
        plain.server.consumed(channel, WINDOW / 16).unwrap();
        assert_eq!(plain.answers(), [about(CHANNEL_WINDOW_ADJUST, 70).uint32(WINDOW / 8).0]);
        assert!(plain.send(one()).is_empty());
    }

    #[test]
    fn output_goes_in_pieces_that_the_client_takes() {
        let mut plain = Plain::logged_in();
        let channel = plain.open();
        plain.server.data(channel, &[1; 1000]).unwrap();
        plain.server.stderr(channel, &[2; 3]).unwrap();
        let lengths: Vec<_> = plain.answers().iter().map(|answer| (answer[0], answer.len())).collect();
        let head = 1 + 4 + 4;
        assert_eq!(
            lengths,
            [
                (CHANNEL_DATA, head + 400),
                (CHANNEL_DATA, head + 400),
                (CHANNEL_DATA, head + 200),
                (CHANNEL_EXTENDED_DATA, head + 4 + 3)
            ]
        );
    }

    #[test]
    fn after_its_end_a_channel_is_silent_and_its_number_free() {
        let mut plain = Plain::logged_in();
        let channel = plain.open();
        plain.server.eof(channel).unwrap();
        plain.server.close(channel).unwrap();
        plain.server.data(channel, b"late").unwrap();
        assert_eq!(plain.answers(), [about(CHANNEL_EOF, 70).0, about(CHANNEL_CLOSE, 70).0]);
        assert!(plain.send(about(CHANNEL_CLOSE, channel)).is_empty());
        assert_eq!(plain.events(), [Event::Closed { channel }]);
        assert_eq!(plain.try_send(about(CHANNEL_EOF, channel)), Err(Error::Unexpected(CHANNEL_EOF)));
        assert_eq!(plain.open(), channel);
        // The client's end comes first.
        assert_eq!(plain.send(about(CHANNEL_CLOSE, channel)), [about(CHANNEL_CLOSE, 70).0]);
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let mut plain = Plain::logged_in();
        let open = Writer::message(CHANNEL_OPEN).string("x11").uint32(1).uint32(1).uint32(1);
        assert_eq!(plain.send(open)[0][0], CHANNEL_OPEN_FAILURE);
        let global = Writer::message(GLOBAL_REQUEST).string("tcpip-forward");
        assert_eq!(plain.send(global.clone().boolean(true)), [[REQUEST_FAILURE]]);
        assert!(plain.send(global.boolean(false)).is_empty());
        assert_eq!(plain.send(Writer::message(199))[0][0], UNIMPLEMENTED);
        let bye = Writer::message(DISCONNECT).uint32(11).string("bye").string("");
        assert_eq!(plain.try_send(bye), Err(Error::Disconnected("bye".into())));
    }

    #[test]
    fn what_is_sent_during_an_exchange_waits_for_its_end() {
        let mut plain = Plain::logged_in();
        let channel = plain.open();
        let answers = plain.send(Writer(exchange::init().unwrap()));
        assert_eq!(answers[0][0], KEXINIT);
        plain.server.data(channel, b"x").unwrap();
        assert!(plain.answers().is_empty());
        assert_eq!(plain.server.deferred.len(), 1);
        assert_eq!(plain.try_send(about(CHANNEL_EOF, channel)), Err(Error::Unexpected(CHANNEL_EOF)));
    }

    #[test]
    fn a_client_begins_with_a_line() {
        let new = || Server::new(Key::generate().unwrap(), Vec::new());
        let mut server = new();
        server.receive(b"SSH-2.0-x").unwrap();
        assert_eq!(server.output(), format!("{VERSION}\r\n").as_bytes());
        server.receive(b"\r\n").unwrap();
        assert_eq!(server.client_version, b"SSH-2.0-x");
        assert!(server.output().len() > VERSION.len() + 2, "the exchange of keys begins");
        assert_eq!(new().receive(b"GET / HTTP/1.0\r\n"), Err(Error::Version));
        assert_eq!(new().receive(&[b'x'; 300]), Err(Error::Version));
    }
}
