//! Where images come from.
//!
//! - [`manifest`]: the documents that describe images
//! - [`host`], [`places`]: what this host says of registries: mirrors, certificates, credentials
//! - [`client`], [`challenge`], [`retry`]: the OCI distribution protocol, as far as pulling needs it

mod challenge;
pub mod client;
pub mod host;
pub mod manifest;
mod places;
pub mod retry;

pub use banger_core::credentials::{AuthFile, Credentials};
pub use banger_core::reference::Reference;
pub use client::Endpoint;
pub use host::Host;
pub use manifest::{Config, Descriptor, Manifest, Platform};
pub use places::Source;
