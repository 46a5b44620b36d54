//! Images and kernels: everything `banger-imaged` does, as a library so that tests reach it.
//!
//! - [`registry`]: references, manifests, download
//! - [`tar`], [`layers`], [`tree`]: layers merged into one tree; pure but for reading streams
//! - [`squashfs`], [`rootfs`]: the tree as a read-only filesystem
#![forbid(unsafe_code)]

pub mod blobs;
pub mod bus;
pub mod config;
pub mod digest;
pub mod error;
pub mod files;
pub mod flights;
pub mod images;
pub mod kernel;
pub mod layers;
pub mod leases;
pub mod limits;
pub mod presets;
pub mod progress;
pub mod registry;
pub mod rootfs;
pub mod service;
pub mod squashfs;
pub mod store;
pub mod tar;
pub mod tree;
pub mod trust;
