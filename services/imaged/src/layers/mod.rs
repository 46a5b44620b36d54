//! From layers to a root filesystem, without unpacking anything.
//!
//! 1. [`index`] reads every layer once and keeps what its entries say, not what is in them.
//! 2. [`merge`] is pure: it applies the indexes to a [`crate::tree::Tree`] as an extraction would
//!    apply the layers to a directory.
//! 3. [`crate::rootfs`] reads the layers again and writes the content that is still wanted.

pub mod index;
pub mod merge;
pub mod spool;
pub mod stream;

pub use index::{Budget, LayerIndex};
