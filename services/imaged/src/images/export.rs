//! Images as files: an OCI layout in a tar, which every tool reads, or a bundle.
//!
//! An image that was pulled comes out as it went in, byte for byte. Of one that was imported the root
//! filesystem becomes one layer; `sqfs2tar` of squashfs-tools-ng reads it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::bundle;
use super::rootfs_name;
use crate::blobs::Blobs;
use crate::digest;
use crate::error::{Error, Result};
use crate::files::{Files, remove};
use crate::layers::stream::{Cancel, Source};
use crate::limits::Limits;
use crate::progress::{Progress, watched};
use crate::registry::manifest::{Document, OCI_CONFIG, OCI_MANIFEST};
use crate::service::{Service, blocking};
use crate::store::ImageRow;
use crate::tar::TarWriter;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// An OCI layout, as a tar.
    Oci,
    /// A bundle of banger, compressed with zstd.
    Bundle,
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "oci" => Ok(Self::Oci),
            "bundle" => Ok(Self::Bundle),
            _ => Err(Error::BadArgument(format!("the format {text:?} is neither \"oci\" nor \"bundle\""))),
        }
    }
}

/// A blob of a layout.
struct Blob {
    media_type: String,
    hex: String,
    size: u64,
    file: File,
}

impl Blob {
    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": format!("sha256:{}", self.hex), "size": self.size })
    }
}

impl Service {
    /// Writes an image to a file or a pipe.
    pub async fn export_image(
        &self,
        wanted: &str,
        format: Format,
        to: File,
        progress: &dyn Progress,
    ) -> Result<ImageRow> {
        let image = self.image(wanted).await?;
        let cancel = Cancel::default();
        let _cancel = cancel.on_drop();
        let exporter = |read: &Arc<AtomicU64>| Exporter {
            files: self.0.files.clone(),
            blobs: self.0.blobs.clone(),
            limits: self.0.settings.limits.clone(),
            cancel: cancel.clone(),
            read: read.clone(),
        };
        let (row, read) = (image.clone(), Arc::default());
        let exporting = exporter(&read);
        if format == Format::Bundle {
            progress.stage("write");
            let work = blocking(move || exporting.bundle(&row, &to));
            watched(progress, &read, image.size, work).await?;
            return Ok(image);
        }
        progress.stage("read");
        let work = blocking(move || exporting.blobs(&row));
        let blobs = watched(progress, &read, image.size, work).await?;
        progress.stage("write");
        let (row, read) = (image.clone(), Arc::default());
        let exporting = exporter(&read);
        let size = blobs.iter().map(|blob| blob.size).sum();
        let work = blocking(move || exporting.layout(&row, blobs, &to));
        watched(progress, &read, size, work).await?;
        Ok(image)
    }
}

/// What an export needs, beside the event loop.
struct Exporter {
    files: Files,
    blobs: Blobs,
    limits: Limits,
    cancel: Cancel,
    /// Bytes that were read.
    read: Arc<AtomicU64>,
}

impl Exporter {
    fn rootfs(&self, image: &ImageRow) -> Result<File> {
        let path = self.files.image(&image.id).join(rootfs_name(&image.fstype));
        File::open(path).map_err(Error::io("cannot read the root filesystem"))
    }

    fn source(&self, file: File) -> Source {
        Source::new(file, self.cancel.clone(), self.read.clone())
    }

    fn bundle(&self, image: &ImageRow, to: &File) -> Result<()> {
        let name = rootfs_name(&image.fstype);
        let manifest = bundle::Manifest {
            version: bundle::VERSION,
            architecture: image.architecture.clone(),
            config: image.process.clone(),
            rootfs: bundle::Rootfs { file: name.clone(), sha256: digest::id(&image.rootfs_digest) },
        };
        let manifest = serde_json::to_vec_pretty(&manifest).map_err(banger_api::Error::internal)?;
        let rootfs = self.rootfs(image)?;
        let write = || -> io::Result<()> {
            let mut tar = TarWriter::new(zstd::Encoder::new(to, 3)?);
            tar.file(bundle::MANIFEST, manifest.len() as u64, manifest.as_slice())?;
            tar.file(&name, image.size, self.source(rootfs))?;
            tar.finish()?.finish().map(drop)
        };
        write().map_err(unwritten)
    }

    /// What an image is made of as OCI, the manifest first.
    fn blobs(&self, image: &ImageRow) -> Result<Vec<Blob>> {
        match self.pulled(image)? {
            Some(blobs) => Ok(blobs),
            None => self.made(image),
        }
    }

    fn layout(&self, image: &ImageRow, blobs: Vec<Blob>, to: &File) -> Result<()> {
        let mut manifest = blobs[0].descriptor();
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": image.name() });
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string();
        let write = || -> io::Result<()> {
            let mut tar = TarWriter::new(to);
            let mark = br#"{"imageLayoutVersion":"1.0.0"}"#;
            tar.file("oci-layout", mark.len() as u64, mark.as_slice())?;
            tar.file("index.json", index.len() as u64, index.as_bytes())?;
            for blob in blobs {
                tar.file(&format!("blobs/sha256/{}", blob.hex), blob.size, self.source(blob.file))?;
            }
            tar.finish().map(drop)
        };
        write().map_err(unwritten)
    }

    /// Manifest, config and layers as the registry gave them; `None` if they were never all here.
    fn pulled(&self, image: &ImageRow) -> Result<Option<Vec<Blob>>> {
        let Some(mut manifest) = self.stored("", &image.id) else { return Ok(None) };
        let mut bytes = Vec::new();
        let read = Read::take(&mut manifest.file, self.limits.document).read_to_end(&mut bytes);
        read.and_then(|_| manifest.file.rewind()).map_err(Error::io("cannot read a blob"))?;
        let Document::Manifest(parsed) = Document::parse(&bytes, &self.limits)? else { return Ok(None) };
        manifest.media_type.clone_from(&parsed.media_type);
        let mut blobs = vec![manifest];
        let mut seen = std::collections::HashSet::new();
        for descriptor in std::iter::once(&parsed.config).chain(&parsed.layers) {
            if !seen.insert(descriptor.hex()) {
                continue;
            }
            match self.stored(&descriptor.media_type, descriptor.hex()) {
                Some(blob) => blobs.push(blob),
                None => return Ok(None),
            }
        }
        Ok(Some(blobs))
    }

    fn stored(&self, media_type: &str, hex: &str) -> Option<Blob> {
        let file = self.blobs.open(hex).ok()?;
        let size = file.metadata().ok()?.len();
        Some(Blob { media_type: media_type.to_owned(), hex: hex.to_owned(), size, file })
    }

    /// An image of one layer, made of the root filesystem.
    fn made(&self, image: &ImageRow) -> Result<Vec<Blob>> {
        if image.fstype != "squashfs" {
            return Err(Error::BadArgument(format!(
                "a root filesystem that was imported as {} cannot be exported as OCI: use the format bundle",
                image.fstype
            )));
        }
        let (layer, diff_id) = self.layer(image)?;
        let config = json!({
            "architecture": image.architecture,
            "os": "linux",
            "config": image.process,
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff_id}")] },
        });
        let config = self.small(OCI_CONFIG, &config)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config.descriptor(),
            "layers": [layer.descriptor()],
        });
        Ok(vec![self.small(OCI_MANIFEST, &manifest)?, config, layer])
    }

    fn small(&self, media_type: &str, content: &Value) -> Result<Blob> {
        let content = content.to_string();
        let mut file = self.temporary()?;
        file.write_all(content.as_bytes()).and_then(|()| file.rewind()).map_err(unwritten)?;
        let hex = digest::sha256(content.as_bytes());
        Ok(Blob { media_type: media_type.to_owned(), hex, size: content.len() as u64, file })
    }

    /// The root filesystem as a compressed tar, and the digest of the tar itself.
    fn layer(&self, image: &ImageRow) -> Result<(Blob, String)> {
        let path = self.files.image(&image.id).join(rootfs_name(&image.fstype));
        let mut reader = Reader::start(&path, self.temporary()?)?;
        let mut packed = GzEncoder::new(digest::Hashing::new(self.temporary()?), Compression::fast());
        let mut plain = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            if self.cancel.is_set() {
                return Err(Error::Canceled);
            }
            let got =
                reader.output().read(&mut buffer).map_err(Error::io("cannot read the root filesystem"))?;
            if got == 0 {
                break;
            }
            plain.update(&buffer[..got]);
            self.read.fetch_add(got as u64, Ordering::Relaxed);
            packed.write_all(&buffer[..got]).map_err(unwritten)?;
        }
        reader.finish()?;
        let (mut file, hex, size) = packed.finish().map_err(unwritten)?.finish();
        file.seek(SeekFrom::Start(0)).map_err(unwritten)?;
        let blob = Blob { media_type: LAYER.to_owned(), hex, size, file };
        Ok((blob, digest::hex(&plain.finalize())))
    }

    fn temporary(&self) -> Result<File> {
        let (file, path) = self.files.temporary()?;
        remove(&path);
        Ok(file)
    }
}

fn unwritten(error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Error::Canceled;
    }
    Error::Io { what: "cannot write the image".into(), source: error }
}

/// `sqfs2tar` at work; it goes when it is dropped.
struct Reader {
    child: std::process::Child,
    /// What it says. Not a pipe, which it could fill.
    said: File,
}

impl Reader {
    fn start(rootfs: &Path, said: File) -> Result<Self> {
        let stderr = said.try_clone().map_err(Error::io("cannot run sqfs2tar"))?;
        let child = Command::new("sqfs2tar")
            .arg("--no-skip")
            .arg(rootfs)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn();
        child.map(|child| Self { child, said }).map_err(|error| {
            Error::BadArgument(format!(
                "an imported image is exported as OCI by sqfs2tar (package squashfs-tools-ng), which cannot be run: {error}"
            ))
        })
    }

    fn output(&mut self) -> impl Read {
        let stdout: Box<dyn Read> = match &mut self.child.stdout {
            Some(stdout) => Box::new(stdout),
            None => Box::new(io::empty()),
        };
        stdout
    }

    fn finish(mut self) -> Result<()> {
        let mut said = String::new();
        let status = self.child.wait().map_err(Error::io("cannot wait for sqfs2tar"))?;
        if status.success() {
            return Ok(());
        }
        let read =
            self.said.rewind().and_then(|()| Read::take(&mut self.said, 4096).read_to_string(&mut said));
        read.map_err(Error::io("cannot read what sqfs2tar says"))?;
        let reason = said.lines().last().unwrap_or("it says nothing").to_owned();
        Err(Error::Base(banger_api::Error::internal(format!(
            "sqfs2tar cannot read the root filesystem: {reason}"
        ))))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
