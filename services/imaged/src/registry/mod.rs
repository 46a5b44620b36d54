//! Where images come from: names of images, the documents that describe them, and the client of
//! the OCI distribution protocol.

pub mod client;
pub mod manifest;
pub mod reference;

pub use client::Registry;
pub use manifest::{Config, Descriptor, Manifest, Platform};
pub use reference::Reference;
