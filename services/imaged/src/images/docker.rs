//! Archives as `docker save` writes them: `manifest.json` names a config and layers, which are files of the
//! same archive. Newer ones are an OCI layout as well, and are read as that.
//! <https://github.com/moby/docker-image-spec/blob/main/spec.md#combined-image-json--filesystem-changeset-format>

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use serde::Deserialize;

use super::build::rewound;
use crate::error::{Error, Result};
use crate::files::{Files, remove};
use crate::layers::spool::Headers;
use crate::layers::stream::{Cancel, Source, decompress};
use crate::layers::{LayerIndex, index};
use crate::limits::Limits;
use crate::tar::{Header, Kind, TarReader, without_dot};

const MANIFEST: &str = "manifest.json";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    #[serde(default)]
    layers: Vec<String>,
}

/// The one image of an archive.
pub(super) struct Saved {
    pub config: Vec<u8>,
    /// In staging, without names.
    pub layers: Vec<Arc<File>>,
}

/// Whether the archive is of this kind.
pub(super) fn is_saved(index: &LayerIndex) -> bool {
    let has = |test: &dyn Fn(&[u8]) -> bool| index.top.iter().any(|file| test(file));
    has(&|path| path == MANIFEST.as_bytes())
        && has(&|path| path.ends_with(b".json") && path != MANIFEST.as_bytes())
}

/// Takes the image out of an archive with these entries.
pub(super) fn unpack(
    archive: &File,
    entries: Headers,
    files: &Files,
    limits: &Limits,
    cancel: &Cancel,
) -> Result<Saved> {
    let manifest = small(archive, MANIFEST, limits, cancel)?;
    let images: Vec<Image> = serde_json::from_slice(&manifest).map_err(|error| {
        Error::InvalidManifest(format!("{MANIFEST} is not of the expected form: {error}"))
    })?;
    let [image] = images.as_slice() else {
        return Err(Error::BadArgument(format!(
            "the archive holds {} images; save one alone, as `docker save IMAGE` does",
            images.len()
        )));
    };
    if image.layers.len() > limits.layers {
        return Err(Error::TooLarge(format!("it has more than {} layers", limits.layers)));
    }
    let config = small(archive, &image.config, limits, cancel)?;
    let names = names_of_files(&image.layers, entries)?;
    let found = layers(archive, &names, files, limits, cancel)?;
    let layers = names.iter().map(|name| {
        let missing = || Error::InvalidManifest(format!("the archive lacks {name}, a layer of {MANIFEST}"));
        found.get(name).cloned().ok_or_else(missing)
    });
    Ok(Saved { config, layers: layers.collect::<Result<_>>()? })
}

fn open(archive: &File, cancel: &Cancel) -> Result<TarReader<Box<dyn io::Read + Send>>> {
    let source = Source::new(rewound(archive)?, cancel.clone(), Arc::default());
    Ok(TarReader::new(decompress(source).map_err(|error| index::explain(error.into(), 0))?))
}

/// A file of the archive, whole.
fn small(archive: &File, name: &str, limits: &Limits, cancel: &Cancel) -> Result<Vec<u8>> {
    let explain = |error| index::explain(error, 0);
    let mut tar = open(archive, cancel)?;
    while let Some(entry) = tar.next_entry().map_err(explain)? {
        if entry.kind == Kind::File && without_dot(&entry.path) == name.as_bytes() {
            if entry.size > limits.document {
                return Err(Error::TooLarge(format!("{name} has more than {} bytes", limits.document)));
            }
            return tar.read_all(limits.document).map_err(explain);
        }
    }
    Err(Error::InvalidManifest(format!("the archive lacks {name}")))
}

/// The files that layers are in. Before Docker 25, a layer that is there already is written as a symbolic
/// link, `ID/layer.tar` to `../OTHER/layer.tar`, and the other may be that of another image.
fn names_of_files(
    layers: &[String],
    entries: impl Iterator<Item = io::Result<Header>>,
) -> Result<Vec<String>> {
    let mut names = layers.to_vec();
    for entry in entries {
        let entry = entry.map_err(Error::io("cannot read what was noted of the archive"))?;
        if entry.kind != Kind::Symlink {
            continue;
        }
        let linked = layers.iter().zip(&mut names);
        for (layer, name) in linked.filter(|(layer, _)| without_dot(&entry.path) == layer.as_bytes()) {
            let target = str::from_utf8(&entry.link).ok().and_then(|target| resolve(layer, target));
            let nowhere =
                || Error::InvalidManifest(format!("{layer} is a link that leads out of the archive"));
            *name = target.ok_or_else(nowhere)?;
        }
    }
    Ok(names)
}

/// What a symbolic link leads to, as the archive names it. `None`: to nothing within.
fn resolve(link: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = link.split('/').collect();
    parts.pop();
    if target.starts_with('/') {
        return None;
    }
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

fn layers(
    archive: &File,
    names: &[String],
    files: &Files,
    limits: &Limits,
    cancel: &Cancel,
) -> Result<HashMap<String, Arc<File>>> {
    let explain = |error| index::explain(error, 0);
    let mut tar = open(archive, cancel)?;
    let mut found = HashMap::new();
    let mut buffer = vec![0; 128 << 10];
    while let Some(entry) = tar.next_entry().map_err(explain)? {
        let Some(name) = names.iter().find(|name| without_dot(&entry.path) == name.as_bytes()) else {
            continue;
        };
        if entry.kind != Kind::File || found.contains_key(name) {
            continue;
        }
        if entry.size > limits.blob {
            return Err(Error::TooLarge(format!("{name} has more than {} bytes", limits.blob)));
        }
        let (mut out, path) = files.temporary()?;
        remove(&path);
        loop {
            match tar.read(&mut buffer).map_err(explain)? {
                0 => break,
                got => out.write_all(&buffer[..got]).map_err(Error::io("cannot store a layer"))?,
            }
        }
        found.insert(name.clone(), Arc::new(out));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_files_of_the_archive() {
        for (link, target, found) in [
            ("a/layer.tar", "../b/layer.tar", Some("b/layer.tar")),
            ("a/layer.tar", "other.tar", Some("a/other.tar")),
            ("layer.tar", "./b//layer.tar", Some("b/layer.tar")),
            ("a/layer.tar", "../../b", None),
            ("a/layer.tar", "/b/layer.tar", None),
        ] {
            assert_eq!(resolve(link, target).as_deref(), found, "{link} -> {target}");
        }
    }
}
