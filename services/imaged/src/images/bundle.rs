//! Bundles: a root filesystem and what is to be known of it, in one archive. `bundle.json` comes first:
//!
//! ```json
//! {"version": 1, "architecture": "amd64", "config": {"Cmd": ["sh"]},
//!  "rootfs": {"file": "rootfs.squashfs", "sha256": "…"}}
//! ```
//!
//! `config` is as in an OCI image's config. The root filesystem is whatever can be imported by itself: a
//! filesystem, a disk, a tar.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::build::rewound;
use crate::digest;
use crate::error::{Error, Result};
use crate::files::{Files, remove};
use crate::layers::stream::{Cancel, Source, decompress};
use crate::layers::{LayerIndex, index};
use crate::limits::Limits;
use crate::registry::manifest::Process;
use crate::tar::{Kind, TarReader, without_dot};

pub const MANIFEST: &str = "bundle.json";
pub const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
pub struct Manifest {
    pub version: u32,
    pub architecture: String,
    #[serde(default)]
    pub config: Process,
    pub rootfs: Rootfs,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Rootfs {
    pub file: String,
    /// Hexadecimal.
    pub sha256: String,
}

pub(super) fn is_bundle(index: &LayerIndex) -> bool {
    index.top.first().is_some_and(|file| file == MANIFEST.as_bytes())
}

/// Reads the manifest, and the root filesystem into staging, verified.
pub(super) fn unpack(
    archive: &File,
    files: &Files,
    limits: &Limits,
    cancel: &Cancel,
) -> Result<(Manifest, File)> {
    let explain = |error| index::explain(error, 0);
    let invalid = |reason: String| Error::InvalidManifest(format!("{MANIFEST}: {reason}"));
    let source = Source::new(rewound(archive)?, cancel.clone(), Arc::default());
    let mut tar = TarReader::new(decompress(source).map_err(|error| explain(error.into()))?);
    tar.next_entry().map_err(explain)?;
    let text = tar.read_all(limits.document).map_err(explain)?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
    if manifest.version != VERSION {
        return Err(invalid(format!("it is of version {}, and banger reads {VERSION}", manifest.version)));
    }
    let wanted = &manifest.rootfs;
    while let Some(entry) = tar.next_entry().map_err(explain)? {
        if entry.kind != Kind::File || without_dot(&entry.path) != wanted.file.as_bytes() {
            continue;
        }
        if entry.size > limits.unpacked {
            return Err(Error::TooLarge(format!("{} has more than {} bytes", wanted.file, limits.unpacked)));
        }
        let (mut out, path) = files.temporary()?;
        remove(&path);
        let mut hash = sha2::Sha256::default();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let got = tar.read(&mut buffer).map_err(explain)?;
            if got == 0 {
                break;
            }
            sha2::Digest::update(&mut hash, &buffer[..got]);
            out.write_all(&buffer[..got]).map_err(Error::io("cannot store the root filesystem"))?;
        }
        let found = digest::hex(&sha2::Digest::finalize(hash));
        if found != wanted.sha256 {
            let (what, wanted) = (wanted.file.clone(), wanted.sha256.clone());
            return Err(Error::DigestMismatch { what, wanted, found });
        }
        return Ok((manifest, out));
    }
    Err(invalid(format!("the bundle lacks {}", wanted.file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_has_every_key() {
        let page = include_str!("../../../../docs/formats/banger-bundle.5");
        let rootfs = Rootfs { file: String::new(), sha256: String::new() };
        let manifest =
            Manifest { version: VERSION, architecture: String::new(), config: Process::default(), rootfs };
        let json = serde_json::to_value(&manifest).expect("JSON");
        let keys =
            json.as_object().into_iter().chain(json["rootfs"].as_object()).flat_map(|object| object.keys());
        for key in keys {
            assert!(page.contains(&format!("\\fB{key}\\fR")), "{key}");
        }
        assert!(page.contains(&format!("The number {VERSION}.")) && page.contains(MANIFEST));
    }
}
