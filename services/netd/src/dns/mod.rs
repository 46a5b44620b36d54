//! The name service of the guests, on port 53 of the gateway's address.
//!
//! VMs are found as `NAME.DOMAIN` and by their addresses while they have a lease. Guests that may leave the
//! host are told everything else by the host's own resolver; nobody else is answered at all.
//!
//! - [`zone`]: which names there are, and who asks (pure)
//! - [`answer`]: what is said to a query (pure; fuzzed by `tests/fuzz`)
//! - [`limit`]: how much one guest may ask
//! - [`upstream`]: asking the host's resolver
//! - [`server`]: the sockets
//! - [`hook`]: the same names for the host's systemd-resolved, without any packet

pub mod answer;
pub mod hook;
mod limit;
pub mod server;
mod upstream;
pub mod zone;

use std::sync::{Arc, RwLock};

/// The names, as the leases change them. Cheap to clone.
pub type Names = Arc<RwLock<zone::Zone>>;
