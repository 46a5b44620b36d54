//! How much an image may ask of us. Everything that grows with untrusted input is held against
//! one of these.

use banger_core::units;
use serde::{Deserialize, Deserializer, de};

/// Bounds on one image: `[limits]` of `imaged.conf`. Bytes are written such as `"4M"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of one manifest, index or config.
    #[serde(deserialize_with = "size")]
    pub document: u64,
    pub layers: usize,
    /// Bytes of one layer as it is stored (compressed).
    #[serde(deserialize_with = "size")]
    pub blob: u64,
    /// Bytes of all layers unpacked, holes of sparse files included.
    #[serde(deserialize_with = "size")]
    pub unpacked: u64,
    /// Entries of all layers.
    pub entries: u64,
    /// Bytes of names, link targets and extended attributes of all layers: what is noted on disk.
    #[serde(deserialize_with = "size")]
    pub metadata: u64,
    /// Bytes in memory for the merged tree: some 300,000 files in ordinary directories.
    #[serde(deserialize_with = "size")]
    pub memory: u64,
    /// Directories within directories.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            document: 4 << 20,
            layers: 512,
            blob: 32 << 30,
            unpacked: 64 << 30,
            entries: 1_000_000,
            metadata: 256 << 20,
            memory: 80 << 20,
            depth: 512,
        }
    }
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    units::parse_size(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

/// NAME_MAX of Linux.
pub const NAME: usize = 255;
