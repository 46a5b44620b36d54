//! Hand-made OCI images, for what no well-behaved tool would make.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::run;
use crate::tar::Tar;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image in the lab's registry.
#[derive(Debug)]
pub struct Crafted {
    pub reference: String,
    /// Digest of the lowest layer, without `sha256:`.
    pub layer: String,
}

/// Pushes an image whose one layer has these bytes, whatever they are, as `localhost:5000/NAME`. Its label
/// `title` is the name.
pub fn push(name: &str, layer: &[u8]) -> Crafted {
    push_layers(name, &[layer])
}

/// The same with several layers, the lowest first.
pub fn push_layers(name: &str, layers: &[&[u8]]) -> Crafted {
    let dir = tempfile::tempdir().expect("tempdir");
    let digest = titled(dir.path(), layers, name);
    let reference = format!("localhost:5000/{name}:latest");
    let source = format!("oci:{}:latest", dir.path().display());
    let target = format!("docker://{reference}");
    run("skopeo", &["copy", "-q", "--preserve-digests", "--dest-tls-verify=false", &source, &target]).ok();
    Crafted { reference, layer: digest }
}

/// Writes an OCI layout with one layer and returns the layer's digest.
pub fn layout(dir: &Path, layer: &[u8]) -> String {
    layout_of(dir, &[layer])
}

/// The same with several layers; returns the digest of the lowest.
pub fn layout_of(dir: &Path, layers: &[&[u8]]) -> String {
    titled(dir, layers, "layout")
}

fn titled(dir: &Path, layers: &[&[u8]], title: &str) -> String {
    let layers: Vec<(String, usize, &str)> = layers
        .iter()
        .map(|layer| {
            let gzip = layer.starts_with(&[0x1f, 0x8b]);
            let (digest, size) = blob(dir, layer);
            (format!("sha256:{digest}"), size, if gzip { LAYER_GZIP } else { LAYER })
        })
        .collect();
    let diff_ids: Vec<&str> = layers.iter().map(|(digest, ..)| digest.as_str()).collect();
    let descriptors: Vec<_> = layers
        .iter()
        .map(|(digest, size, kind)| json!({ "mediaType": kind, "digest": digest, "size": size }))
        .collect();
    let config = json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
        "os": "linux",
        "config": { "Cmd": ["sh"], "Labels": { "title": title } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let (config_digest, config_size) = blob(dir, config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": format!("sha256:{config_digest}"),
            "size": config_size,
        },
        "layers": descriptors,
    });
    let (manifest_digest, manifest_size) = blob(dir, manifest.to_string().as_bytes());
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": format!("sha256:{manifest_digest}"),
            "size": manifest_size,
            "annotations": { "org.opencontainers.image.ref.name": "latest" },
        }],
    });
    fs::write(dir.join("index.json"), index.to_string()).expect("writes");
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("writes");
    diff_ids.first().map(|digest| digest["sha256:".len()..].to_owned()).unwrap_or_default()
}

fn blob(dir: &Path, bytes: &[u8]) -> (String, usize) {
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("creates");
    fs::write(blobs.join(&digest), bytes).expect("writes");
    (digest, bytes.len())
}

/// Where the registry keeps a blob.
pub fn registry_file(digest: &str) -> PathBuf {
    let blobs = "/var/lib/docker-registry/docker/registry/v2/blobs/sha256";
    Path::new(blobs).join(&digest[..2]).join(digest).join("data")
}

/// A tar archive of regular files, with names that tar(1) would refuse to write.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    files.iter().fold(Tar::default(), |tar, (name, content)| tar.file(name, content)).finish()
}
