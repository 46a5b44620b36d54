//! The service's own socket: the same objects peer to peer, without a bus.
//!
//! A peer connection has no bus on it, but `busctl --address=unix:path=…` and most D-Bus
//! libraries begin every conversation by talking to one. [`Shim`] answers the few calls they make,
//! as if the service were alone on a small bus with that client.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};

use banger_api::Service;
use zbus::connection::Builder;
use zbus::fdo;
use zbus::interface;
use zbus::names::{InterfaceName, OwnedBusName, OwnedUniqueName};

use crate::socket::PeerSocket;
use crate::{Hub, Idle};

/// How many peers are served at once; more are left waiting in the socket's backlog.
const MAX_PEERS: usize = 256;

/// The unique name the service has on a peer connection, and the client's.
const OURS: &str = ":1.0";
const THEIRS: &str = ":1.1";

/// Serves everybody who connects to `socket`.
pub(crate) async fn accept(socket: UnixListener, service: Service, hub: Hub, idle: Idle) {
    let listener =
        match socket.set_nonblocking(true).and_then(|()| tokio::net::UnixListener::from_std(socket)) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!("cannot listen on {}: {error}", service.socket);
                return;
            }
        };
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_PEERS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = listener.accept().await.and_then(|(stream, _)| stream.into_std());
        let builder = match accepted.and_then(|stream| server(stream, service)) {
            Ok(builder) => builder,
            Err(error) => {
                // Out of descriptors, most likely: give some time to get free.
                tracing::warn!("cannot accept a peer: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (hub, hold) = (hub.clone(), idle.hold());
        tokio::spawn(async move {
            let (_hold, _place) = (hold, place);
            if let Err(error) = hub.serve_peer(builder).await {
                tracing::debug!("peer: {error}");
            }
        });
    }
}

/// Our end of a peer connection, without the service's objects yet.
///
/// # Errors
/// If the runtime cannot watch the socket.
pub(crate) fn server(stream: UnixStream, service: Service) -> io::Result<Builder<'static>> {
    let builder = Builder::socket(PeerSocket::new(stream)?).server(zbus::Guid::generate()).p2p();
    Ok(builder.serve_at("/org/freedesktop/DBus", Shim { service }))
}

/// `org.freedesktop.DBus` for an audience of one.
struct Shim {
    service: Service,
}

impl Shim {
    fn owner(&self, name: &str) -> fdo::Result<OwnedUniqueName> {
        let owner = match name {
            "org.freedesktop.DBus" => "org.freedesktop.DBus",
            THEIRS => THEIRS,
            name if name == OURS || name == self.service.bus_name => OURS,
            _ => {
                return Err(fdo::Error::NameHasNoOwner(format!(
                    "{name} is not here; this is {}",
                    self.service.bus_name
                )));
            }
        };
        Ok(OwnedUniqueName::try_from(owner)?)
    }
}

#[interface(name = "org.freedesktop.DBus", introspection_docs = false)]
impl Shim {
    #[zbus(out_args("unique_name"))]
    fn hello(&self) -> &'static str {
        THEIRS
    }

    /// All signals go to all peers, who may ignore what they did not ask for.
    fn add_match(&self, _rule: &str) {}

    fn remove_match(&self, _rule: &str) {}

    #[zbus(out_args("unique_name"))]
    fn get_name_owner(&self, name: OwnedBusName) -> fdo::Result<OwnedUniqueName> {
        self.owner(&name)
    }

    #[zbus(out_args("has_owner"))]
    fn name_has_owner(&self, name: OwnedBusName) -> bool {
        self.owner(&name).is_ok()
    }

    #[zbus(out_args("names"))]
    fn list_names(&self) -> Vec<&'static str> {
        vec!["org.freedesktop.DBus", THEIRS, OURS, self.service.bus_name]
    }

    #[zbus(out_args("names"))]
    fn list_activatable_names(&self) -> Vec<&'static str> {
        vec![]
    }

    #[zbus(out_args("result"))]
    fn start_service_by_name(&self, name: OwnedBusName, _flags: u32) -> fdo::Result<u32> {
        const ALREADY_RUNNING: u32 = 2;
        self.owner(&name).map(|_| ALREADY_RUNNING)
    }

    #[zbus(out_args("id"))]
    fn get_id(&self) -> String {
        zbus::Guid::generate().to_string()
    }

    #[zbus(name = "GetConnectionUnixUser", out_args("uid"))]
    fn connection_unix_user(&self, name: OwnedBusName) -> fdo::Result<u32> {
        self.owner(&name)?;
        Ok(nix::unistd::getuid().as_raw())
    }

    #[zbus(out_args("credentials"))]
    fn get_connection_credentials(
        &self,
        name: OwnedBusName,
    ) -> fdo::Result<HashMap<String, zbus::OwnedVariant>> {
        self.owner(&name)?;
        Ok(HashMap::from([
            ("UnixUserID".into(), nix::unistd::getuid().as_raw().into()),
            ("ProcessID".into(), std::process::id().into()),
        ]))
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn features(&self) -> Vec<String> {
        vec![]
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn interfaces(&self) -> Vec<String> {
        vec![InterfaceName::from_static_str_unchecked("org.freedesktop.DBus").to_string()]
    }
}
