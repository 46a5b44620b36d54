//! A stretch of network between imaged and a registry on which a test decides what happens: a proxy
//! for one request per connection, that can cut, hold up, put off or send elsewhere.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// A request on its way.
#[derive(Debug, Clone)]
pub struct Request {
    pub when: Instant,
    /// As it came in, up to the empty line.
    pub head: String,
}

impl Request {
    /// The path, or with a proxy the URL.
    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub fn is_blob(&self) -> bool {
        self.path().contains("/blobs/")
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// Where a request by range begins; without one at 0.
    pub fn offset(&self) -> u64 {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        range.map_or(0, |offset| offset.parse().expect("an offset"))
    }
}

/// What becomes of a request.
#[derive(Debug, Clone)]
pub enum Fate {
    Pass,
    /// The connection breaks after so many bytes of the answer.
    Cut(u64),
    /// After so many bytes the answer waits for [`Between::release`].
    Hold(u64),
    /// It is answered here.
    Answer(Vec<u8>),
    /// It is answered here, with a beginning and then with the same bytes for ever.
    Flood(Vec<u8>, Vec<u8>),
    /// It passes with another Authorization header.
    Forge(String),
}

type Judge = dyn Fn(&Request, usize) -> Fate + Send + Sync;

#[derive(Default)]
struct Seen {
    requests: Vec<Request>,
    released: bool,
    /// Held answers that nobody waits for any more.
    abandoned: usize,
}

struct Shared {
    target: String,
    judge: Box<Judge>,
    seen: Mutex<Seen>,
    changed: Condvar,
}

/// Stands as long as the test runs.
#[derive(Clone)]
pub struct Between {
    pub port: u16,
    shared: Arc<Shared>,
}

impl Between {
    /// In front of `HOST:PORT`. `judge` is told how many requests of this path there were before.
    pub fn open(target: &str, judge: impl Fn(&Request, usize) -> Fate + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").expect("listens");
        let port = listener.local_addr().expect("bound").port();
        let (seen, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { target: target.to_owned(), judge: Box::new(judge), seen, changed });
        let between = Self { port, shared };
        let doorman = between.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let between = doorman.clone();
                // A client that breaks off is its own affair.
                std::thread::spawn(move || drop(between.handle(&stream)));
            }
        });
        between
    }

    /// What came by so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.seen.lock().expect("no panic").requests.clone()
    }

    pub fn blobs(&self) -> Vec<Request> {
        self.requests().into_iter().filter(Request::is_blob).collect()
    }

    /// Lets held answers go on.
    pub fn release(&self) {
        self.shared.seen.lock().expect("no panic").released = true;
        self.shared.changed.notify_all();
    }

    /// How many held answers nobody waits for any more.
    pub fn abandoned(&self) -> usize {
        self.shared.seen.lock().expect("no panic").abandoned
    }

    fn handle(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let request = Request { when: Instant::now(), head: request_head(stream)? };
        if request.head.is_empty() || !request.head.contains(" HTTP/1.1\r\n") {
            // Somebody tries whether TLS is spoken here.
            return stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        }
        let before = {
            let mut seen = self.shared.seen.lock().expect("no panic");
            let before = seen.requests.iter().filter(|other| other.path() == request.path()).count();
            seen.requests.push(request.clone());
            before
        };
        match (self.shared.judge)(&request, before) {
            Fate::Pass => {
                std::io::copy(&mut self.ask(&request, None)?, &mut stream)?;
            }
            Fate::Forge(value) => {
                std::io::copy(&mut self.ask(&request, Some(&value))?, &mut stream)?;
            }
            Fate::Cut(bytes) => {
                std::io::copy(&mut self.body_of(&request, stream)?.take(bytes), &mut stream)?;
            }
            Fate::Hold(bytes) => {
                let mut body = self.body_of(&request, stream)?;
                std::io::copy(&mut Read::by_ref(&mut body).take(bytes), &mut stream)?;
                if self.wait_for_release(stream) {
                    std::io::copy(&mut body, &mut stream)?;
                }
            }
            Fate::Answer(bytes) => stream.write_all(&bytes)?,
            Fate::Flood(head, bytes) => {
                stream.write_all(&head)?;
                loop {
                    stream.write_all(&bytes)?;
                }
            }
        }
        Ok(())
    }

    /// Passes the answer's head on and returns its body.
    fn body_of(&self, request: &Request, mut stream: &TcpStream) -> std::io::Result<impl Read + use<>> {
        let mut answer = BufReader::new(self.ask(request, None)?);
        let mut head = String::new();
        while answer.read_line(&mut head)? > 2 {}
        stream.write_all(head.as_bytes())?;
        Ok(answer)
    }

    fn ask(&self, request: &Request, authorization: Option<&str>) -> std::io::Result<TcpStream> {
        let mut target = TcpStream::connect(&self.shared.target)?;
        let lower = |line: &str| line.to_ascii_lowercase();
        let kept = request.head.lines().filter(|line| {
            let forged = authorization.is_some() && lower(line).starts_with("authorization:");
            !line.is_empty() && !lower(line).starts_with("connection:") && !forged
        });
        let mut lines: Vec<String> = kept.map(str::to_owned).collect();
        lines.extend(authorization.map(|value| format!("Authorization: {value}")));
        target.write_all(format!("{}\r\nConnection: close\r\n\r\n", lines.join("\r\n")).as_bytes())?;
        Ok(target)
    }

    /// `false`: the client has gone.
    fn wait_for_release(&self, stream: &TcpStream) -> bool {
        stream.set_nonblocking(true).expect("a socket");
        let mut seen = self.shared.seen.lock().expect("no panic");
        while !seen.released {
            let left = matches!(stream.peek(&mut [0]), Ok(0))
                || stream.peek(&mut [0]).is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock);
            if left {
                seen.abandoned += 1;
                return false;
            }
            let wait = Duration::from_millis(50);
            (seen, _) = self.shared.changed.wait_timeout(seen, wait).expect("no panic");
        }
        stream.set_nonblocking(false).expect("a socket");
        true
    }
}

/// A request without a body, up to its empty line.
fn request_head(stream: &TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut lines = BufReader::new(stream.take(1 << 16));
    while lines.read_until(b'\n', &mut head)? > 2 {
        if !head.is_ascii() {
            break;
        }
    }
    Ok(String::from_utf8(head).unwrap_or_default())
}

/// A whole answer without a body.
pub fn answer(status: &str, headers: &[(&str, &str)]) -> Fate {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let text = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n");
    Fate::Answer(text.into_bytes())
}
