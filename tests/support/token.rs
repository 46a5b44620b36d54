//! A door in front of the lab's registry that opens only to a token, as the large public
//! registries have one: whoever comes without is told where to get it (anonymously).
//!
//! The protocol is that of <https://distribution.github.io/distribution/spec/auth/token/>.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const REGISTRY: &str = "127.0.0.1:5000";
const TOKEN: &str = "c2VzYW1l";

/// The door; it stands as long as the test runs.
#[derive(Debug)]
pub struct Door {
    pub port: u16,
    /// How many tokens have been given out.
    pub tokens: Arc<AtomicUsize>,
}

impl Door {
    pub fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let port = listener.local_addr().expect("bound").port();
        let tokens = Arc::new(AtomicUsize::new(0));
        let counter = tokens.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counter = counter.clone();
                // A client that breaks off is its own affair.
                std::thread::spawn(move || drop(answer(&stream, port, &counter)));
            }
        });
        Self { port, tokens }
    }
}

/// Answers one request and closes.
fn answer(mut stream: &TcpStream, port: u16, tokens: &AtomicUsize) -> std::io::Result<()> {
    let head = request_head(stream)?;
    let path = head.split(' ').nth(1).unwrap_or_default();
    let authorized =
        head.to_ascii_lowercase().contains(&format!("authorization: bearer {}", TOKEN.to_lowercase()));
    if path.starts_with("/token?") {
        assert!(path.contains("scope=repository%3A") || path.contains("scope=repository:"), "{path}");
        tokens.fetch_add(1, Ordering::SeqCst);
        let body = format!(r#"{{"token":"{TOKEN}"}}"#);
        return write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    }
    if !authorized {
        let repository = path.trim_start_matches("/v2/").split("/manifests/").next().unwrap_or_default();
        return write!(
            stream,
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://localhost:{port}/token\",service=\"lab\",scope=\"repository:{repository}:pull\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    let mut registry = TcpStream::connect(REGISTRY)?;
    let kept =
        head.lines().filter(|line| !line.is_empty() && !line.to_ascii_lowercase().starts_with("connection:"));
    let forwarded = kept.collect::<Vec<_>>().join("\r\n") + "\r\nConnection: close\r\n\r\n";
    registry.write_all(forwarded.as_bytes())?;
    std::io::copy(&mut registry, &mut stream).map(drop)
}

/// A request without a body, up to its empty line.
fn request_head(stream: &TcpStream) -> std::io::Result<String> {
    let mut head = String::new();
    let mut lines = BufReader::new(stream.take(1 << 16));
    while lines.read_line(&mut head)? > 2 {}
    Ok(head)
}
