//! Names, specifications, state machines and planners: the part of banger that is pure.
//!
//! Nothing here does I/O, reads a clock or knows of D-Bus; time, randomness and the outside
//! world enter as arguments, so that everything can be tested with plain values.
#![forbid(unsafe_code)]

pub mod acl;
pub mod address;
pub mod credentials;
pub mod ending;
pub mod event;
pub mod forward;
pub mod glob;
pub mod guest;
pub mod health;
pub mod kernel;
pub mod name;
pub mod network;
pub mod reference;
pub mod resource;
pub mod session;
pub mod snapshot;
pub mod spec;
pub mod spool;
pub mod tar;
pub mod timeline;
pub mod units;
pub mod vm;
pub mod wire;
