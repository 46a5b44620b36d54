//! `org.banger.Service1`: clients of the bus that listen to signals, for whom the service stays; and what runs here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use banger_api::{ErrorKind, Result};
use futures_util::StreamExt;
use tokio::task::AbortHandle;
use zbus::fdo::DBusProxy;
use zbus::message::Header;
use zbus::names::{OwnedUniqueName, UniqueName};
use zbus::{Connection, interface};

use crate::idle::Hold;
use crate::{Gate, Idle};

/// The subscribers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Subscribers {
    gate: Gate,
    idle: Idle,
    clients: Arc<Mutex<HashMap<OwnedUniqueName, Client>>>,
}

struct Client {
    /// Subscriptions that it has not taken back.
    count: u32,
    watch: AbortHandle,
    _hold: Hold,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Subscribers {
    pub fn new(gate: Gate, idle: Idle) -> Self {
        Self { gate, idle, clients: Arc::default() }
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<OwnedUniqueName, Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, name: OwnedUniqueName, bus: &Connection) {
        let mut clients = self.clients();
        if let Some(client) = clients.get_mut(&name) {
            client.count = client.count.saturating_add(1);
            return;
        }
        let (subscribers, bus, gone) = (self.clone(), bus.clone(), name.clone());
        let watch = tokio::spawn(async move {
            if let Err(error) = until_gone(&bus, &gone).await {
                tracing::debug!("cannot watch {gone}: {error}");
            }
            subscribers.clients().remove(&gone);
        });
        let client = Client { count: 1, watch: watch.abort_handle(), _hold: self.idle.hold() };
        clients.insert(name, client);
    }

    fn take_back(&self, name: &UniqueName<'_>) -> Result<()> {
        let mut clients = self.clients();
        let Some(client) = clients.get_mut(name.as_str()) else {
            return Err(ErrorKind::NotSubscribed.error("nothing to take back: call Subscribe first"));
        };
        client.count -= 1;
        if client.count == 0 {
            clients.remove(name.as_str());
        }
        Ok(())
    }
}

/// Returns once the client has left the bus.
async fn until_gone(bus: &Connection, name: &OwnedUniqueName) -> zbus::Result<()> {
    let proxy = DBusProxy::new(bus).await?;
    // Only this client's: all the bus's coming and going would keep the service awake.
    let mut left = proxy.receive_name_owner_changed_with_args(&[(0, name.as_str()), (2, "")]).await?;
    // It may have left before we listened.
    if proxy.name_has_owner(name.inner().clone().into()).await? {
        left.next().await;
    }
    Ok(())
}

#[interface(name = "org.banger.Service1")]
impl Subscribers {
    /// Keeps the service from leaving when it is idle, until the caller leaves the bus.
    async fn subscribe(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        // For a peer, the service stays anyway.
        if let Some(sender) = header.sender().filter(|_| connection.is_bus()) {
            self.add(sender.clone().into(), connection);
        }
        Ok(())
    }

    /// Takes back one `Subscribe` of the caller.
    async fn unsubscribe(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        match header.sender().filter(|_| connection.is_bus()) {
            Some(sender) => self.take_back(sender),
            None => Ok(()),
        }
    }

    /// How many clients of the bus have subscribed.
    #[zbus(property(emits_changed_signal = "false"))]
    fn subscribers(&self) -> u32 {
        u32::try_from(self.clients().len()).unwrap_or(u32::MAX)
    }

    /// Version of banger that runs.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }
}
