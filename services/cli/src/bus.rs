//! The way to the services: the system bus, or the socket of each, here or elsewhere.

use std::os::unix::net::UnixStream;

use banger_api::image::ImagesProxy;
use banger_api::network::NetworkProxy;

use banger_api::vm::ManagerProxy;
use banger_api::{Error, ErrorKind, IMAGED, NETD, Result, SESSIOND, Service, VMD};
use tokio::sync::OnceCell;
use zbus::Connection;
use zbus::connection::Builder;
use zbus::proxy::{CacheProperties, Defaults, ProxyImpl};

use banger_api::session::ManagerProxy as SessionsProxy;

use crate::away::Away;

/// Connections, made when they are needed.
pub struct Bus {
    peer: bool,
    away: Option<Away>,
    system: OnceCell<Connection>,
    vmd: OnceCell<Connection>,
    imaged: OnceCell<Connection>,
}

impl Bus {
    pub fn new(peer: bool, away: Option<Away>) -> Self {
        Self { peer, away, system: OnceCell::new(), vmd: OnceCell::new(), imaged: OnceCell::new() }
    }

    /// What is on a bus that somebody has connected to.
    pub fn over(bus: Connection) -> Self {
        Self { system: OnceCell::new_with(Some(bus)), ..Self::new(false, None) }
    }

    /// The same way with new connections, after one broke.
    pub fn renewed(&self) -> Self {
        Self::new(self.peer, self.away.clone())
    }

    /// A connection on which the service's objects are. The bus starts it if need be.
    pub async fn connect(&self, service: Service) -> Result<Connection> {
        if !self.peer {
            return self.system().await;
        }
        // Jobs live as long as their service's connection is held: where there are jobs, keep it.
        match service {
            VMD => self.vmd.get_or_try_init(|| self.peer(service)).await.cloned(),
            IMAGED => self.imaged.get_or_try_init(|| self.peer(service)).await.cloned(),
            _ => self.peer(service).await,
        }
    }

    /// The system bus, for whoever else is on it.
    pub async fn system(&self) -> Result<Connection> {
        let connected = async || match &self.away {
            None => system().await,
            Some(away) => {
                let bus = Builder::unix_stream(away.connect(None)?).build();
                bus.await.map_err(|error| away.unreachable(Error::from(error)))
            }
        };
        self.system.get_or_try_init(connected).await.cloned()
    }

    async fn peer(&self, service: Service) -> Result<Connection> {
        let Some(away) = &self.away else { return peer(service).await };
        let peer = Builder::unix_stream(away.connect(Some(service.socket))?).p2p().build();
        peer.await.map_err(|error| away.unreachable(Error::from(error)))
    }

    /// Whether file descriptors get to the services.
    pub fn takes_descriptors(&self) -> bool {
        self.away.as_ref().is_none_or(Away::takes_descriptors)
    }

    pub async fn vms(&self) -> Result<ManagerProxy<'static>> {
        Ok(ManagerProxy::new(&self.connect(VMD).await?).await?)
    }

    pub async fn images(&self) -> Result<ImagesProxy<'static>> {
        Ok(ImagesProxy::new(&self.connect(IMAGED).await?).await?)
    }

    pub async fn network(&self) -> Result<NetworkProxy<'static>> {
        Ok(NetworkProxy::new(&self.connect(NETD).await?).await?)
    }

    pub async fn sessions(&self) -> Result<SessionsProxy<'static>> {
        Ok(SessionsProxy::new(&self.connect(SESSIOND).await?).await?)
    }

    /// The proxy of an object that a service told us about.
    pub async fn object<P>(&self, service: Service, path: &str) -> Result<P>
    where
        P: ProxyImpl<'static> + From<zbus::Proxy<'static>> + Defaults,
    {
        let connection = self.connect(service).await?;
        Ok(P::builder(&connection)
            .destination(service.bus_name)
            .path(path.to_owned())
            .cache_properties(CacheProperties::No)
            .build()
            .await?)
    }
}

async fn system() -> Result<Connection> {
    zbus::connection::Builder::system().build().await.map_err(|error| {
        ErrorKind::ServiceUnavailable.error(format!(
            "cannot connect to the system bus: {}; without a bus, use --peer",
            Error::from(error)
        ))
    })
}

async fn peer(service: Service) -> Result<Connection> {
    let socket = service.socket;
    let stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => ErrorKind::AccessDenied
            .error(format!("not allowed to open {socket}: join the group banger, or leave out --peer")),
        _ => ErrorKind::ServiceUnavailable.error(format!(
            "cannot connect to {socket}: {error}; try systemctl start banger-{}.socket",
            service.id
        )),
    })?;
    Ok(Builder::unix_stream(stream).p2p().build().await?)
}
