//! SHA-256 digests in the forms they come in.

use std::fmt::Write;

pub use banger_core::reference::{is_hex64, sha256_hex as parse};
use sha2::{Digest as _, Sha256};

/// Lowercase hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The hexadecimal part of a digest that was checked before: an image's id.
pub fn id(digest: &str) -> String {
    parse(digest).unwrap_or_default().to_owned()
}
