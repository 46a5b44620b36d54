//! One request of HTTP on standard input, which is a connection that systemd has accepted.

use std::io::{self, Read};

use super::text::TYPE;

/// The longest head of a request that is read.
const MAX_HEAD: usize = 8 * 1024;

/// What a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Metrics,
    /// Only what would be said before them.
    Head,
    /// Nothing that there is: status, and what to do about it.
    Refused(&'static str, &'static str),
}

/// Reads the head of a request: up to an empty line, so much and no more.
pub fn read(mut from: impl Read) -> io::Result<Asked> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > MAX_HEAD {
            return Ok(Asked::Refused("431 Request Header Fields Too Large", "ask for GET /metrics"));
        }
        match from.read(&mut part)? {
            0 => return Ok(MALFORMED),
            read => head.extend_from_slice(&part[..read]),
        }
    }
    Ok(asked(&String::from_utf8_lossy(&head)))
}

const MALFORMED: Asked = Asked::Refused("400 Bad Request", "this is no HTTP");

fn asked(head: &str) -> Asked {
    let line: Vec<&str> = head.lines().next().unwrap_or_default().split(' ').collect();
    let [method, target, version] = line[..] else { return MALFORMED };
    if !version.starts_with("HTTP/1.") {
        return MALFORMED;
    }
    let path = target.split('?').next().unwrap_or_default();
    match (path, method) {
        ("/metrics", "GET") => Asked::Metrics,
        ("/metrics", "HEAD") => Asked::Head,
        ("/metrics", _) => Asked::Refused("405 Method Not Allowed", "only GET and HEAD are"),
        _ => Asked::Refused("404 Not Found", "there is only /metrics"),
    }
}

/// The whole answer to a request; `metrics` are taken if they are asked for.
pub async fn answer(asked: Asked, metrics: impl Future<Output = String>) -> String {
    let (status, kind, body) = match asked {
        Asked::Metrics | Asked::Head => ("200 OK", TYPE, metrics.await),
        Asked::Refused(status, remedy) => {
            (status, "text/plain; charset=utf-8", format!("{status}: {remedy}\n"))
        }
    };
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
        body.len()
    );
    if asked == Asked::Head { head } else { head + &body }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(request: &str) -> String {
        let asked = read(request.as_bytes()).expect("reads");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runs");
        runtime.block_on(answer(asked, async { "# EOF\n".to_owned() }))
    }

    #[test]
    fn there_is_one_thing_to_get() {
        let answer = said("GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(
            answer,
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {TYPE}\r\nContent-Length: 6\r\nConnection: close\r\n\r\n# EOF\n"
            )
        );
        let head = said("HEAD /metrics HTTP/1.0\r\n\r\n");
        assert!(head.contains("Content-Length: 6\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[test]
    fn the_rest_is_refused() {
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcd", "405"),
            ("GET /metrics\r\n\r\n", "400"),
            ("GET /metrics HTTP/2\r\n\r\n", "400"),
            ("\r\n\r\n", "400"),
            ("GET /metrics HTTP/1.1\r\n", "400"),
            ("", "400"),
        ] {
            assert!(
                said(request).starts_with(&format!("HTTP/1.1 {status} ")),
                "{request:?}: {}",
                said(request)
            );
        }
        assert!(said("PUT /metrics HTTP/1.1\r\n\r\n").contains("\r\nAllow: GET, HEAD\r\n"));
        let endless = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(1 << 20));
        assert!(said(&endless).starts_with("HTTP/1.1 431 "));
    }
}
