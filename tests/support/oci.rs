//! Hand-made OCI images, for what no well-behaved tool would make.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::run;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image of one layer in the lab's registry.
#[derive(Debug)]
pub struct Crafted {
    pub reference: String,
    /// Digest of the layer, without `sha256:`.
    pub layer: String,
}

/// Pushes an image whose one layer has these bytes, whatever they are, as `localhost:5000/NAME`. Its label
/// `title` is the name.
pub fn push(name: &str, layer: &[u8]) -> Crafted {
    let dir = tempfile::tempdir().expect("tempdir");
    let digest = titled(dir.path(), layer, name);
    let reference = format!("localhost:5000/{name}:latest");
    let source = format!("oci:{}:latest", dir.path().display());
    let target = format!("docker://{reference}");
    run("skopeo", &["copy", "-q", "--preserve-digests", "--dest-tls-verify=false", &source, &target]).ok();
    Crafted { reference, layer: digest }
}

/// Writes an OCI layout with one layer and returns the layer's digest.
pub fn layout(dir: &Path, layer: &[u8]) -> String {
    titled(dir, layer, "layout")
}

fn titled(dir: &Path, layer: &[u8], title: &str) -> String {
    let gzip = layer.starts_with(&[0x1f, 0x8b]);
    let media_type = if gzip { LAYER_GZIP } else { LAYER };
    let (layer_digest, layer_size) = blob(dir, layer);
    let config = json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
        "os": "linux",
        "config": { "Cmd": ["sh"], "Labels": { "title": title } },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
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
        "layers": [{ "mediaType": media_type, "digest": format!("sha256:{layer_digest}"), "size": layer_size }],
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
    layer_digest
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
    let mut archive = Vec::new();
    for (name, content) in files {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive.extend(header);
        archive.extend(*content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}
