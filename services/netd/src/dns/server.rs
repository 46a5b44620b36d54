//! The sockets: systemd opens them and starts us for the first query; we read, decide and answer.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use banger_api::network::Problem;
use banger_api::{Error, Result};
use banger_daemon::Idle;
use nix::sys::socket::{SockType, getsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::Names;
use super::answer::{self, Decision, MAX_QUERY, answer, failure};
use super::limit::Limits;
use super::upstream::{Upstream, read_message, write_message};
use super::zone::{Client, Foreign};
use crate::leases::Leases;

/// `FileDescriptorName=` of our sockets.
const SOCKET_NAME: &str = "dns";

/// How long a TCP connection may be silent, or take for one message.
const TCP_PATIENCE: Duration = Duration::from_secs(10);

/// After an error of a socket, which is the host's trouble and not a guest's.
const PAUSE: Duration = Duration::from_millis(100);

/// The sockets on the gateway's address.
#[derive(Debug)]
pub struct Sockets {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

/// Has netd get its sockets again.
const RESTART: &str = "systemctl stop banger-netd.service && systemctl restart banger-netd-dns.socket";

impl Sockets {
    /// Takes what systemd passed, or says why guests get no answers.
    ///
    /// # Errors
    /// That, and what to do about it.
    pub fn take(passed: &[(String, OwnedFd)], gateway: Ipv4Addr) -> std::result::Result<Self, Problem> {
        let (mut udp, mut tcp, mut elsewhere) = (None, None, None);
        for (_, fd) in passed.iter().filter(|(name, _)| name == SOCKET_NAME) {
            let failed = |error| (format!("cannot take a socket: {error}"), RESTART.to_owned());
            let copy = || fd.try_clone().map_err(failed);
            let address = match getsockopt(fd, sockopt::SockType) {
                Ok(SockType::Datagram) => {
                    let socket = std::net::UdpSocket::from(copy()?);
                    let address = socket.local_addr();
                    if address.as_ref().is_ok_and(|address| address.ip() == gateway) {
                        udp = Some(socket);
                    }
                    address
                }
                _ => {
                    let socket = std::net::TcpListener::from(copy()?);
                    let address = socket.local_addr();
                    if address.as_ref().is_ok_and(|address| address.ip() == gateway) {
                        tcp = Some(socket);
                    }
                    address
                }
            };
            elsewhere = address.ok().or(elsewhere);
        }
        match (udp, tcp, elsewhere) {
            (Some(udp), Some(tcp), _) => Ok(Self { udp, tcp }),
            (_, _, Some(address)) => Err((
                format!("banger-netd-dns.socket listens on {}, the gateway is {gateway}", address.ip()),
                format!("systemctl daemon-reload && {RESTART}"),
            )),
            (_, _, None) => Err((
                format!("banger-netd-dns.socket does not listen (is port 53 of {gateway} in use?)"),
                format!("see systemctl status banger-netd-dns.socket, then {RESTART}"),
            )),
        }
    }
}

/// Answers queries until the runtime ends.
///
/// # Errors
/// If the runtime cannot watch the sockets.
pub fn serve(sockets: Sockets, leases: Leases, names: Names, gateway: Ipv4Addr, idle: Idle) -> Result<()> {
    sockets.udp.set_nonblocking(true)?;
    sockets.tcp.set_nonblocking(true)?;
    let udp = Arc::new(UdpSocket::from_std(sockets.udp)?);
    let tcp = TcpListener::from_std(sockets.tcp)?;
    let server = Arc::new(Server {
        leases,
        names,
        limits: Mutex::new(Limits::new()),
        upstream: Upstream::new(gateway),
        idle,
    });
    tokio::spawn(server.clone().serve_udp(udp));
    tokio::spawn(server.serve_tcp(tcp));
    Ok(())
}

struct Server {
    leases: Leases,
    names: Names,
    limits: Mutex<Limits>,
    upstream: Upstream,
    idle: Idle,
}

impl Server {
    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = [0; MAX_QUERY];
        loop {
            let (length, peer) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    pause_after("read a query", &error).await;
                    continue;
                }
            };
            let query = &buffer[..length];
            let Some(client) = self.admit(peer.ip()) else { continue };
            match self.decide(query, client) {
                Decision::Drop => {}
                Decision::Answer(answer) => send(&socket, &answer, peer).await,
                Decision::Forward(foreign) => {
                    let (server, socket, query) = (self.clone(), socket.clone(), query.to_vec());
                    // Asked already, so answered before we leave.
                    let call = self.idle.call();
                    tokio::spawn(async move {
                        if let Some(answer) = server.forward(&query, peer.ip(), foreign).await {
                            send(&socket, &answer::fit(answer, &query), peer).await;
                        }
                        drop(call);
                    });
                }
            }
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => self.clone().start_stream(stream, peer.ip()),
                Err(error) => pause_after("accept a connection", &error).await,
            }
        }
    }

    fn start_stream(self: Arc<Self>, stream: TcpStream, peer: IpAddr) {
        let known = self.client(peer).is_some();
        let Some(permit) = known.then(|| self.limits().connect(peer, Instant::now())).flatten() else {
            return;
        };
        let hold = self.idle.hold();
        tokio::spawn(async move {
            if let Err(error) = self.serve_stream(stream, peer).await {
                tracing::debug!("{peer}: {error}");
            }
            drop((permit, hold));
        });
    }

    async fn serve_stream(&self, mut stream: TcpStream, peer: IpAddr) -> std::io::Result<()> {
        loop {
            let query = timeout(TCP_PATIENCE, read_message(&mut stream, MAX_QUERY)).await??;
            // Who asks too much, or is no guest any more, may connect again.
            let Some(client) = self.admit(peer) else { return Ok(()) };
            let answer = match self.decide(&query, client) {
                Decision::Drop => return Ok(()),
                Decision::Answer(answer) => Some(answer),
                Decision::Forward(foreign) => self.forward(&query, peer, foreign).await,
            };
            let Some(answer) = answer else { return Ok(()) };
            timeout(TCP_PATIENCE, write_message(&mut stream, &answer)).await??;
        }
    }

    /// Who asks, if that may ask now. The host is not limited, as nothing of the guests' makes it ask.
    fn admit(&self, peer: IpAddr) -> Option<Client> {
        let client = self.client(peer)?;
        let admitted = match client {
            Client::Host => true,
            Client::Guest(address) => self.limits().admit(address, Instant::now()),
        };
        self.idle.touch();
        admitted.then_some(client)
    }

    fn client(&self, peer: IpAddr) -> Option<Client> {
        self.names.read().unwrap_or_else(PoisonError::into_inner).client(peer)
    }

    fn decide(&self, query: &[u8], client: Client) -> Decision {
        answer(query, client, &self.names.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the host's resolver says, or that it says nothing.
    async fn forward(&self, query: &[u8], guest: IpAddr, foreign: Foreign) -> Option<Vec<u8>> {
        let permit = self.limits().forward(guest, Instant::now());
        let answer = match &permit {
            Some(_) => self.upstream.ask(query).await,
            None => None,
        };
        let answer = answer.or_else(|| failure(query))?;
        // The way is there before the guest knows where to.
        if let Foreign::Way(name) = foreign
            && let Err(error) = self.leases.let_out(guest, name, answer::addresses(&answer)).await
        {
            tracing::warn!("{guest} is not told of a name that it may reach: {error}");
            return failure(query);
        }
        Some(answer)
    }

    fn limits(&self) -> MutexGuard<'_, Limits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], peer: SocketAddr) {
    if let Err(error) = socket.send_to(answer, peer).await {
        tracing::debug!("cannot answer {peer}: {error}");
    }
}

pub(super) async fn pause_after(what: &str, error: &std::io::Error) {
    tracing::warn!("{}", Error::internal(format!("cannot {what}: {error}")));
    tokio::time::sleep(PAUSE).await;
}
