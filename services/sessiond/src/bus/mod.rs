//! sessiond's interfaces: thin layers that authorise, call [`crate::sessions::Sessions`] and map
//! the result.

mod manager;
mod session;

pub use manager::Manager;
pub use session::SessionObject;
