//! The contract of banger: bus names, object paths, wire types, errors and client proxies.
//!
//! Services and clients share this crate and nothing else. It is the one place where a D-Bus
//! name is spelled.
#![forbid(unsafe_code)]

pub mod access;
pub mod agent;
pub mod error;
pub mod files;
pub mod image;
pub mod job;
pub mod network;
pub mod options;
pub mod path;
pub mod service;
pub mod session;
pub mod settings;
pub mod vm;

use std::time::{SystemTime, UNIX_EPOCH};

pub use access::Access;
pub use error::{Error, ErrorKind};
pub use options::Options;
pub use settings::ImageSettings;

/// What every fallible call of this project returns.
pub type Result<T> = std::result::Result<T, Error>;

/// The wall clock, microseconds since 1970.
pub fn now_usec() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// A service of banger: its bus name, the object its manager lives at, and its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    /// Short name: of the binary (`banger-vmd`), the system user and the socket.
    pub id: &'static str,
    /// Well-known name on the system bus.
    pub bus_name: &'static str,
    /// Object path of the manager object.
    pub path: &'static str,
    /// Interface of the manager object.
    pub manager: &'static str,
    /// Unix socket that serves the same objects peer to peer.
    pub socket: &'static str,
}

/// The VM supervisor.
pub const VMD: Service = Service {
    id: "vmd",
    bus_name: "org.banger.Vm1",
    path: "/org/banger/Vm1",
    manager: "org.banger.Vm1.Manager",
    socket: "/run/banger/vmd.sock",
};

/// Images and kernels.
pub const IMAGED: Service = Service {
    id: "imaged",
    bus_name: "org.banger.Image1",
    path: "/org/banger/Image1",
    manager: "org.banger.Image1.Manager",
    socket: "/run/banger/imaged.sock",
};

/// Host networking.
pub const NETD: Service = Service {
    id: "netd",
    bus_name: "org.banger.Network1",
    path: "/org/banger/Network1",
    manager: "org.banger.Network1.Manager",
    socket: "/run/banger/netd.sock",
};

/// Commands and shells in guests.
pub const SESSIOND: Service = Service {
    id: "sessiond",
    bus_name: "org.banger.Session1",
    path: "/org/banger/Session1",
    manager: "org.banger.Session1.Manager",
    socket: "/run/banger/sessiond.sock",
};

pub const SERVICES: [Service; 4] = [VMD, IMAGED, NETD, SESSIOND];
