//! The D-Bus objects. Each method lets the caller in, calls [`crate::leases`] and returns.

pub mod lease;
pub mod manager;
