//! `org.banger.Service1`: what all services have at the object of their manager.

use zbus::proxy;

pub const INTERFACE: &str = "org.banger.Service1";

/// The destination and the path are those of the service, see [`crate::Service`].
#[proxy(interface = "org.banger.Service1", assume_defaults = false)]
pub trait Service {
    /// Keeps the service from leaving when it is idle, so that its signals go on coming from one
    /// and the same instance. It ends with `Unsubscribe`, or when the caller leaves the bus. Each
    /// call counts. A service that was killed knows no subscribers: subscribe again when its name
    /// gets a new owner.
    fn subscribe(&self) -> zbus::Result<()>;

    /// Takes back one `Subscribe` of the caller.
    fn unsubscribe(&self) -> zbus::Result<()>;

    /// How many clients of the bus have subscribed.
    #[zbus(property(emits_changed_signal = "false"))]
    fn subscribers(&self) -> zbus::Result<u32>;

    /// Version of banger that runs.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;
}
