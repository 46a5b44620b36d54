//! What the unit of a forward executes once somebody connects.
//!
//! TCP is systemd-socket-proxyd(8)'s, which this becomes: the kernel moves the bytes. For UDP there is no
//! such program; [`relay`] gives each client a socket of its own towards the guest.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, UdpSocket as StdUdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use banger_core::forward::Listen;
use banger_core::network::Protocol;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::{ask_vmd, block_on};

const PROXY: &str = "/usr/lib/systemd/systemd-socket-proxyd";
/// After so long without a connection the proxy leaves; the next one brings it back.
const IDLE: Duration = Duration::from_secs(60);
/// Clients of UDP that are told apart at a time; of more, datagrams are dropped.
const MAX_FLOWS: usize = 1024;
const MAX_DATAGRAM: usize = 65_536;

/// The first descriptor that systemd passes, see sd_listen_fds(3).
const LISTEN_FDS_START: i32 = 3;

pub fn forward(protocol: &str, listen: &str) -> Result<()> {
    let listen = Listen::new(protocol, listen)?;
    if std::env::var("LISTEN_FDS").as_deref() != Ok("1") {
        bail!("it was not started by its socket: connect to {listen} instead");
    }
    let address = listen.address.to_string();
    let guest = match ask_vmd(async |vmd| vmd.prepare_forward(protocol, &address).await) {
        Ok((guest, port)) => SocketAddr::new(guest.parse()?, port),
        Err(error) => {
            refuse(listen.protocol)?;
            return Err(error);
        }
    };
    match listen.protocol {
        Protocol::Tcp => {
            let idle = format!("--exit-idle-time={}s", IDLE.as_secs());
            let error = Command::new(PROXY).arg(idle).arg(guest.to_string()).exec();
            Err(error).with_context(|| format!("cannot execute {PROXY}"))
        }
        Protocol::Udp => block_on(async {
            let socket = StdUdpSocket::from(socket());
            socket.set_nonblocking(true)?;
            relay(UdpSocket::from_std(socket)?, guest, IDLE).await
        }),
    }
}

/// The socket that systemd listens on. To be called once.
fn socket() -> OwnedFd {
    // SAFETY: systemd passed one descriptor, which nobody else here uses.
    unsafe { OwnedFd::from_raw_fd(LISTEN_FDS_START) }
}

/// Turns away who waits, or systemd would start this again for them at once.
fn refuse(protocol: Protocol) -> Result<()> {
    match protocol {
        Protocol::Tcp => {
            let listener = TcpListener::from(socket());
            listener.set_nonblocking(true)?;
            while listener.accept().is_ok() {}
        }
        Protocol::Udp => {
            let socket = StdUdpSocket::from(socket());
            socket.set_nonblocking(true)?;
            while socket.recv(&mut [0; 1]).is_ok() {}
        }
    }
    Ok(())
}

/// Carries datagrams between clients and a guest, until nobody has sent any for `idle`.
async fn relay(socket: UdpSocket, guest: SocketAddr, idle: Duration) -> Result<()> {
    let socket = Arc::new(socket);
    let mut flows: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let (ended, mut ends) = mpsc::unbounded_channel();
    let mut datagram = vec![0; MAX_DATAGRAM];
    loop {
        let received = tokio::select! {
            Some(client) = ends.recv() => {
                flows.remove(&client);
                continue;
            }
            received = timeout(idle, socket.recv_from(&mut datagram)) => received,
        };
        let (length, client) = match received {
            Ok(Ok(received)) => received,
            // What a client said of an answer; it says nothing of the others.
            Ok(Err(_)) => continue,
            Err(_) if flows.is_empty() => return Ok(()),
            Err(_) => continue,
        };
        let flow = match flows.get(&client) {
            Some(flow) => flow.clone(),
            None if flows.len() >= MAX_FLOWS => continue,
            None => {
                // One that cannot be had is the loss of a datagram, not of all others.
                let Ok(flow) = UdpSocket::bind("0.0.0.0:0").await else { continue };
                if flow.connect(guest).await.is_err() {
                    continue;
                }
                let flow = Arc::new(flow);
                flows.insert(client, flow.clone());
                let (socket, answers, ended) = (socket.clone(), flow.clone(), ended.clone());
                tokio::spawn(async move {
                    answer(&answers, &socket, client, idle).await;
                    let _ = ended.send(client);
                });
                flow
            }
        };
        // As anywhere on the way, it may be lost.
        let _ = flow.send(&datagram[..length]).await;
    }
}

/// Carries a guest's answers back to a client, until there have been none for `idle`.
async fn answer(flow: &UdpSocket, socket: &UdpSocket, client: SocketAddr, idle: Duration) {
    let mut datagram = vec![0; MAX_DATAGRAM];
    while let Ok(received) = timeout(idle, flow.recv(&mut datagram)).await {
        // That nothing listens in the guest may change.
        if let Ok(length) = received {
            let _ = socket.send_to(&datagram[..length], client).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn datagrams_find_their_way_back() {
        let guest = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        let address = guest.local_addr().expect("an address");
        tokio::spawn(async move {
            let mut datagram = [0; 100];
            while let Ok((length, from)) = guest.recv_from(&mut datagram).await {
                datagram[..length].reverse();
                guest.send_to(&datagram[..length], from).await.expect("sends");
            }
        });
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        let listen = socket.local_addr().expect("an address");
        let relayed = tokio::spawn(relay(socket, address, Duration::from_millis(200)));
        let clients = [b"abc", b"xyz"].map(|said| async move {
            let client = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
            client.send_to(said, listen).await.expect("sends");
            let mut heard = [0; 100];
            let length = client.recv(&mut heard).await.expect("hears");
            heard[..length].to_vec()
        });
        for (client, heard) in clients.into_iter().zip([b"cba", b"zyx"]) {
            assert_eq!(client.await, heard);
        }
        relayed.await.expect("ends").expect("when nobody sends any more");
    }
}
