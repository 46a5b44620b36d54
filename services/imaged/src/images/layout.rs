//! OCI layouts: an image as a directory, or as an archive of one.
//! <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::build::rewound;
use crate::digest;
use crate::error::{Error, Result};
use crate::files::{self, Staged, create, open_theirs};
use crate::layers::stream::{Cancel, Source, decompress};
use crate::layers::{LayerIndex, index};
use crate::limits::Limits;
use crate::registry::manifest::Document;
use crate::registry::{Config, Descriptor, Manifest, Platform};
use crate::tar::{Header, Kind, TarReader, without_dot};

const BLOBS: &str = "blobs/sha256";

/// Whether the archive is that of an OCI layout rather than of a root filesystem.
pub(super) fn is_layout(index: &LayerIndex) -> bool {
    let has = |name: &[u8]| index.top.iter().any(|file| file == name);
    has(b"oci-layout") && has(b"index.json")
}

/// Takes an OCI layout out of its archive: only files with the names a layout has.
pub(super) fn unpack(file: &File, staged: Staged, limits: &Limits, cancel: Cancel) -> Result<Staged> {
    let explain = |error| index::explain(error, 0);
    let source = Source::new(rewound(file)?, cancel, std::sync::Arc::default());
    let mut tar = TarReader::new(decompress(source).map_err(|error| explain(error.into()))?);
    fs::create_dir_all(staged.path().join(BLOBS)).map_err(Error::io("cannot make a directory"))?;
    let mut buffer = vec![0; 128 << 10];
    while let Some(entry) = tar.next_entry().map_err(explain)? {
        let Some(target) = target(&entry, staged.path(), limits) else { continue };
        files::remove(&target);
        let mut out = create(&target)?;
        loop {
            match tar.read(&mut buffer).map_err(explain)? {
                0 => break,
                got => out.write_all(&buffer[..got]).map_err(Error::io("cannot store a blob"))?,
            }
        }
    }
    Ok(staged)
}

/// Where an entry of the archive belongs, if it is part of the layout.
fn target(entry: &Header, dir: &Path, limits: &Limits) -> Option<PathBuf> {
    if entry.kind != Kind::File || entry.size > limits.blob {
        return None;
    }
    let path = str::from_utf8(without_dot(&entry.path)).ok()?;
    match path.strip_prefix(BLOBS).and_then(|rest| rest.strip_prefix('/')) {
        Some(hex) => digest::is_hex64(hex).then(|| dir.join(BLOBS).join(hex)),
        None => (path == "index.json").then(|| dir.join(path)),
    }
}

/// Manifest, its digest, and config of the one image in a layout that fits the platform.
pub(super) fn read(dir: &Path, platform: &Platform, limits: &Limits) -> Result<(Manifest, String, Config)> {
    let what = dir.display().to_string();
    let mut bytes = document(&dir.join("index.json"), limits)?;
    let mut digest = String::new();
    // index.json, perhaps an index of platforms, the manifest.
    for _ in 0..3 {
        match Document::parse(&bytes, limits)? {
            Document::Manifest(manifest) if !digest.is_empty() => {
                let config = verified(dir, &manifest.config, limits)?;
                let config = Config::parse(&config, manifest.layers.len())?;
                return Ok((manifest, digest, config));
            }
            Document::Manifest(_) => break,
            Document::Index(offers) => {
                refuse_several(&offers, &what)?;
                let chosen = Document::choose(&offers, platform, &what)?;
                bytes = verified(dir, chosen, limits)?;
                digest = chosen.digest.clone();
            }
        }
    }
    Err(Error::InvalidManifest(format!("{what} leads to no manifest")))
}

/// Several images, rather than one for several platforms.
fn refuse_several(offers: &[Descriptor], what: &str) -> Result<()> {
    if offers.len() > 1 && offers.iter().all(|offer| offer.platform.is_none()) {
        return Err(Error::BadArgument(format!(
            "{what} holds {} images; make a layout of one, as `skopeo copy oci:{what}:TAG oci:OTHER` does",
            offers.len()
        )));
    }
    Ok(())
}

/// A small blob, whole.
fn verified(dir: &Path, descriptor: &Descriptor, limits: &Limits) -> Result<Vec<u8>> {
    let bytes = document(&dir.join(BLOBS).join(descriptor.hex()), limits)?;
    let found = format!("sha256:{}", digest::sha256(&bytes));
    if found != descriptor.digest {
        let (what, wanted) = (dir.display().to_string(), descriptor.digest.clone());
        return Err(Error::DigestMismatch { what, wanted, found });
    }
    Ok(bytes)
}

fn document(path: &Path, limits: &Limits) -> Result<Vec<u8>> {
    let unreadable = |error: io::Error| Error::Unreadable {
        what: path.display().to_string(),
        reason: format!("{error}; an OCI layout has index.json and {BLOBS}"),
    };
    let mut bytes = Vec::new();
    let file = open_theirs(path).map_err(unreadable)?;
    file.take(limits.document + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > limits.document {
        let (path, limit) = (path.display(), limits.document);
        return Err(Error::TooLarge(format!("{path} has more than {limit} bytes")));
    }
    Ok(bytes)
}

pub(super) fn blob_size(dir: &Path, hex: &str) -> Result<u64> {
    let path = dir.join(BLOBS).join(hex);
    let metadata = fs::metadata(&path);
    metadata
        .map(|metadata| metadata.len())
        .map_err(|error| Error::Unreadable { what: path.display().to_string(), reason: error.to_string() })
}

pub(super) fn open_blob(dir: &Path, blob: &Descriptor) -> Result<File> {
    let path = dir.join(BLOBS).join(blob.hex());
    open_theirs(&path)
        .map_err(|error| Error::Unreadable { what: path.display().to_string(), reason: error.to_string() })
}
