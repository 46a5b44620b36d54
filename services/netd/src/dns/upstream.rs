//! Asking the host's resolver, for guests.
//!
//! What a guest asks goes on as it came, so EDNS and all that comes with it does, too. Only its id is
//! another: a random one, as the port is, for what we take an answer by must not be the guest's to choose.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use domain::base::Message;
use domain::base::iana::Rcode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::resolvers;

/// How long one server is waited for, and all of them together: less than a guest waits for us.
const PATIENCE: Duration = Duration::from_secs(2);
const ALL_PATIENCE: Duration = Duration::from_millis(4500);

/// How long the list of servers is believed.
const FRESH: Duration = Duration::from_secs(1);

const PORT: u16 = 53;

/// The host's resolver. Which that is, is looked up as we go: hosts move between networks.
pub struct Upstream {
    /// Never asked, being ourselves.
    gateway: Ipv4Addr,
    servers: Mutex<Option<(Instant, Arc<[IpAddr]>)>>,
}

impl Upstream {
    pub fn new(gateway: Ipv4Addr) -> Self {
        Self { gateway, servers: Mutex::default() }
    }

    /// The answer to a query, with its id. `None` if nobody gives one in time.
    pub async fn ask(&self, query: &[u8]) -> Option<Vec<u8>> {
        let servers = self.servers();
        let mut failure = None;
        let asked = async {
            for server in servers.iter().chain(servers.iter()) {
                match ask_one(SocketAddr::new(*server, PORT), query).await {
                    Ok(answer) if is_failure(&answer) => failure = Some(answer),
                    Ok(answer) => return Some(answer),
                    Err(error) => tracing::debug!("no answer from {server}: {error}"),
                }
            }
            None
        };
        let answer = timeout(ALL_PATIENCE, asked).await.ok().flatten();
        let mut answer = answer.or(failure)?;
        answer.get_mut(..2)?.copy_from_slice(query.get(..2)?);
        Some(answer)
    }

    fn servers(&self) -> Arc<[IpAddr]> {
        let mut known = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((when, servers)) if when.elapsed() < FRESH => servers.clone(),
            _ => {
                let servers: Arc<[IpAddr]> = resolvers::for_us(self.gateway).into();
                *known = Some((Instant::now(), servers.clone()));
                servers
            }
        }
    }
}

/// Whether another server may do better.
fn is_failure(answer: &[u8]) -> bool {
    Message::from_slice(answer)
        .is_ok_and(|answer| matches!(answer.header().rcode(), Rcode::SERVFAIL | Rcode::REFUSED))
}

async fn ask_one(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut query = query.to_vec();
    let id = getrandom::u32().map_err(io::Error::other)?.to_be_bytes();
    query[..2].copy_from_slice(&id[..2]);
    let answer = over_udp(server, &query).await?;
    if Message::from_slice(&answer).is_ok_and(|answer| answer.header().tc()) {
        return over_tcp(server, &query).await;
    }
    Ok(answer)
}

async fn over_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // The kernel chooses a random port, and lets in what comes from the server alone.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let received = async {
        loop {
            let length = socket.recv(&mut buffer).await?;
            if is_answer(&buffer[..length], query) {
                return io::Result::Ok(length);
            }
        }
    };
    let length = timeout(PATIENCE, received).await??;
    buffer.truncate(length);
    Ok(buffer)
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let exchanged = async {
        let mut stream = TcpStream::connect(server).await?;
        write_message(&mut stream, query).await?;
        let answer = read_message(&mut stream, usize::from(u16::MAX)).await?;
        if !is_answer(&answer, query) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to another query"));
        }
        Ok(answer)
    };
    timeout(PATIENCE, exchanged).await?
}

/// Whether this answers that: by the id and by the question.
fn is_answer(answer: &[u8], query: &[u8]) -> bool {
    match (Message::from_slice(answer), Message::from_slice(query)) {
        (Ok(answer), Ok(query)) => answer.is_answer(query),
        _ => false,
    }
}

/// A message over TCP has its length before it.
///
/// # Errors
/// If the stream breaks off, or `InvalidData` if the message is longer than `max`.
pub async fn read_message(stream: &mut TcpStream, max: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too long"));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// # Errors
/// If the stream breaks off, or `InvalidData` if the message is longer than DNS allows.
pub async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let framed = [&length.to_be_bytes(), message].concat();
    stream.write_all(&framed).await
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// For example.org, without an id of its own.
    const QUERY: &[u8] = b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x07example\x03org\0\0\x01\0\x01";

    fn answer_to(query: &[u8], flags: u8) -> Vec<u8> {
        let mut answer = query.to_vec();
        answer[2] |= flags;
        answer
    }

    #[tokio::test]
    async fn only_the_answer_to_this_query_is_one() {
        let server = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        let address = server.local_addr().expect("an address");
        let stranger = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        let serving = async {
            let mut buffer = [0; 512];
            let mut ids = Vec::new();
            for _ in 0..8 {
                let (length, peer) = server.recv_from(&mut buffer).await.expect("receives");
                let query = &buffer[..length];
                ids.push([query[0], query[1]]);
                let mut other_id = answer_to(query, 0x80);
                other_id[1] ^= 1;
                let mut other_name = answer_to(query, 0x80);
                other_name[13] = b'f';
                let mut right = answer_to(query, 0x80);
                // Names are the same in capitals.
                right[13] = b'E';
                stranger.send_to(&answer_to(query, 0x80), peer).await.expect("sends");
                for answer in [other_id, other_name, query.to_vec(), right] {
                    server.send_to(&answer, peer).await.expect("sends");
                }
            }
            ids
        };
        let asking = async {
            for _ in 0..8 {
                let answer = ask_one(address, QUERY).await.expect("answers");
                assert_eq!((answer[13], answer[2] & 0x80), (b'E', 0x80));
            }
        };
        let (ids, ()) = tokio::join!(serving, asking);
        // Eight equal ones of 65536 do not happen by chance.
        assert!(ids.iter().any(|id| *id != ids[0]), "{ids:?}");
    }

    #[tokio::test]
    async fn what_is_cut_off_is_asked_for_over_tcp() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = tcp.local_addr().expect("an address");
        let udp = UdpSocket::bind(address).await.expect("binds");
        let serving = async {
            let mut buffer = [0; 512];
            let (length, peer) = udp.recv_from(&mut buffer).await.expect("receives");
            udp.send_to(&answer_to(&buffer[..length], 0x82), peer).await.expect("sends");
            let (mut stream, _) = tcp.accept().await.expect("accepts");
            let query = read_message(&mut stream, 512).await.expect("reads");
            assert_eq!(query, &buffer[..length]);
            let mut answer = answer_to(&query, 0x80);
            answer.resize(5000, 0);
            write_message(&mut stream, &answer).await.expect("writes");
        };
        let (answer, ()) = tokio::join!(ask_one(address, QUERY), serving);
        assert_eq!(answer.expect("answers").len(), 5000);
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_noticed_at_once() {
        let gone = UdpSocket::bind("127.0.0.1:0").await.expect("binds").local_addr().expect("an address");
        let error = ask_one(gone, QUERY).await.expect_err("nobody there");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
