//! The objects of a service, served alike on the system bus and on every peer connection.
//!
//! zbus has one object server per connection. The hub keeps the list of all objects, gives it to
//! each new connection before its first message is read, and sends every later change (object
//! added, removed, signal) through one queue per connection. So all clients see the same events in
//! the same order, `InterfacesAdded` before the first `PropertiesChanged`, and a client that does
//! not read its socket delays nobody: it is cut off after [`STALL`].

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use zbus::connection::Builder;
use zbus::export::serde::Serialize;
use zbus::object_server::Interface;
use zbus::wire::DynamicType;
use zbus::{Connection, OwnedObjectPath, OwnedVariant};

/// How long one operation on one connection may take before the connection is given up.
const STALL: Duration = Duration::from_secs(5);

/// How many operations may wait for one peer before it is given up.
const BACKLOG: usize = 4096;

type Work = Pin<Box<dyn Future<Output = zbus::Result<()>> + Send>>;
type Operation = Arc<dyn Fn(Connection) -> Work + Send + Sync>;

/// The registry of objects and connections. Cheap to clone.
#[derive(Clone, Default)]
pub struct Hub(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    objects: Vec<Object>,
    lines: HashMap<u64, mpsc::Sender<Queued>>,
    next_line: u64,
}

struct Queued {
    operation: Operation,
    done: Option<oneshot::Sender<()>>,
}

#[derive(Clone)]
struct Object {
    path: OwnedObjectPath,
    instance: Arc<dyn Servable>,
}

/// A message body that can be sent on several connections.
pub trait Body: Serialize + DynamicType + Send + Sync + 'static {}

impl<T: Serialize + DynamicType + Send + Sync + 'static> Body for T {}

/// An interface instance of which every connection gets a clone.
trait Servable: Send + Sync {
    fn build<'a>(&self, builder: Builder<'a>, path: OwnedObjectPath) -> Builder<'a>;
    fn serve(&self, connection: Connection, path: OwnedObjectPath) -> Work;
    fn withdraw(&self, connection: Connection, path: OwnedObjectPath) -> Work;
}

struct Instance<I>(I);

impl<I: Interface + Clone> Servable for Instance<I> {
    fn build<'a>(&self, builder: Builder<'a>, path: OwnedObjectPath) -> Builder<'a> {
        builder.serve_at(path, self.0.clone())
    }

    fn serve(&self, connection: Connection, path: OwnedObjectPath) -> Work {
        let instance = self.0.clone();
        Box::pin(async move { connection.object_server().at(path, instance).await.map(drop) })
    }

    fn withdraw(&self, connection: Connection, path: OwnedObjectPath) -> Work {
        Box::pin(async move { connection.object_server().remove::<I, _>(path).await.map(drop) })
    }
}

impl Hub {
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves `instance` at `path` on every connection, now and later. Returns once the present
    /// connections have it, so that a reply naming the path never arrives before the object.
    pub async fn add<I>(&self, path: &str, instance: I)
    where
        I: Interface + Clone,
    {
        let path = object_path(path);
        let object = Object { path: path.clone(), instance: Arc::new(Instance(instance)) };
        let operation: Operation = {
            let object = object.clone();
            Arc::new(move |connection| object.instance.serve(connection, object.path.clone()))
        };
        let done = {
            let mut state = self.state();
            state.objects.push(object);
            state.send_all(&operation)
        };
        for done in done {
            let _ = done.await;
        }
    }

    /// Withdraws everything at `path`.
    pub async fn remove(&self, path: &str) {
        let path = object_path(path);
        let done = {
            let mut state = self.state();
            let (gone, kept) = std::mem::take(&mut state.objects)
                .into_iter()
                .partition::<Vec<_>, _>(|object| object.path == path);
            state.objects = kept;
            let mut done = Vec::new();
            for object in gone {
                let operation: Operation =
                    Arc::new(move |connection| object.instance.withdraw(connection, object.path.clone()));
                done.extend(state.send_all(&operation));
            }
            done
        };
        for done in done {
            let _ = done.await;
        }
    }

    /// Emits a signal on every connection.
    pub fn emit<B: Body>(&self, path: &str, interface: &'static str, member: &'static str, body: B) {
        let path = object_path(path);
        let body = Arc::new(body);
        let operation: Operation = Arc::new(move |connection| {
            let (path, body) = (path.clone(), body.clone());
            Box::pin(
                async move { connection.emit_signal(None::<&str>, path, interface, member, &*body).await },
            )
        });
        self.state().send_all(&operation);
    }

    /// Emits `PropertiesChanged` on every connection.
    pub fn changed(
        &self,
        path: &str,
        interface: &'static str,
        properties: Vec<(&'static str, OwnedVariant)>,
    ) {
        let properties: HashMap<&'static str, OwnedVariant> = properties.into_iter().collect();
        let invalidated: Vec<&'static str> = Vec::new();
        self.emit(
            path,
            "org.freedesktop.DBus.Properties",
            "PropertiesChanged",
            (interface, properties, invalidated),
        );
    }

    /// Puts all objects on the bus connection, which exists before there are any.
    pub(crate) async fn attach_bus(&self, bus: Connection) -> zbus::Result<()> {
        let (objects, queue, _) = self.open_line();
        for object in objects {
            object.instance.serve(bus.clone(), object.path).await?;
        }
        tokio::spawn(drain(bus, queue));
        Ok(())
    }

    /// Makes a peer connection that has all objects before it reads its first message, and feeds
    /// it until it closes. Returns after that.
    pub(crate) async fn serve_peer(&self, mut builder: Builder<'static>) -> zbus::Result<()> {
        let (objects, queue, line) = self.open_line();
        for object in objects {
            builder = object.instance.build(builder, object.path);
        }
        let served = async {
            let connection = tokio::time::timeout(STALL, builder.build())
                .await
                .map_err(|_| zbus::Error::Handshake("the peer did not authenticate in time".into()))??;
            tokio::select! {
                () = connection.closed() => {}
                () = drain(connection.clone(), queue) => {}
            }
            connection.close().await
        }
        .await;
        self.state().lines.remove(&line);
        served
    }

    /// From here on every change is queued; what there is so far comes back as a list.
    fn open_line(&self) -> (Vec<Object>, mpsc::Receiver<Queued>, u64) {
        let (sender, queue) = mpsc::channel(BACKLOG);
        let mut state = self.state();
        let line = state.next_line;
        state.next_line += 1;
        state.lines.insert(line, sender);
        (state.objects.clone(), queue, line)
    }
}

impl State {
    /// Queues an operation everywhere. A line that is full or gone is dropped, which ends it.
    fn send_all(&mut self, operation: &Operation) -> Vec<oneshot::Receiver<()>> {
        let mut waits = Vec::new();
        self.lines.retain(|_, line| {
            let (done, wait) = oneshot::channel();
            waits.push(wait);
            line.try_send(Queued { operation: operation.clone(), done: Some(done) }).is_ok()
        });
        waits
    }
}

/// Carries out what is queued for one connection, in order. Returns when the connection stalls or
/// the hub has given it up.
async fn drain(connection: Connection, mut queue: mpsc::Receiver<Queued>) {
    while let Some(Queued { operation, done }) = queue.recv().await {
        match tokio::time::timeout(STALL, operation(connection.clone())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("cannot tell a client: {error}"),
            Err(_) => {
                tracing::warn!("a client does not read its connection; closing it");
                return;
            }
        }
        if let Some(done) = done {
            let _ = done.send(());
        }
    }
}

fn object_path(path: &str) -> OwnedObjectPath {
    OwnedObjectPath::try_from(path.to_owned()).expect("object paths come from banger_api::path")
}
