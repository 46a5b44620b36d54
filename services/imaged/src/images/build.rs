//! From layers to a root filesystem in staging.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use banger_daemon::failpoint;
use serde::{Deserialize, Serialize};

use super::{FSTYPE, rootfs_name};
use crate::blobs::Blobs;
use crate::digest;
use crate::error::{Error, Result};
use crate::files::{Staged, create, write_file};
use crate::layers::merge::{Invalid, Merge};
use crate::layers::stream::{Cancel, CancelOnDrop, Source, decompress};
use crate::layers::{Budget, LayerIndex, index};
use crate::limits::Limits;
use crate::progress::{Progress, watched};
use crate::registry::Config;
use crate::registry::manifest::Process;
use crate::rootfs;
use crate::service::{Inner, Service, blocking};
use crate::store::ImageRow;
use banger_api::now_usec;

/// A layer that can be read again and again, and is the same each time: nobody else can write to it.
#[derive(Clone)]
pub(super) enum Layer {
    Blob(String),
    File(Arc<File>),
}

impl Layer {
    fn blob(&self) -> Option<String> {
        match self {
            Self::Blob(hex) => Some(hex.clone()),
            Self::File(_) => None,
        }
    }
}

/// A root filesystem in staging.
pub(crate) struct Built {
    pub staged: Staged,
    pub image: ImageRow,
    /// Blobs that it was made of, or keeps for an export.
    pub blobs: Vec<String>,
}

impl Built {
    pub fn keeping(mut self, blobs: impl IntoIterator<Item = String>) -> Self {
        self.blobs.extend(blobs);
        self
    }
}

/// What stands in `image.json` beside the root filesystem, for people and for repair.
#[derive(Debug, Serialize, Deserialize)]
struct ImageFile {
    id: String,
    architecture: String,
    fstype: String,
    size: u64,
    rootfs_digest: String,
    created_usec: u64,
    process: Process,
}

/// One image in the making: what the steps to it share. Dropped, it cancels what still runs.
pub(super) struct Making<'a> {
    service: &'a Service,
    progress: &'a dyn Progress,
    budget: Arc<Budget>,
    pub cancel: Cancel,
    _cancel: CancelOnDrop,
}

impl<'a> Making<'a> {
    pub fn new(service: &'a Service, progress: &'a dyn Progress) -> Self {
        let cancel = Cancel::default();
        Self {
            service,
            progress,
            budget: Arc::new(Budget::new(service.0.settings.limits.clone())),
            _cancel: cancel.on_drop(),
            cancel,
        }
    }

    /// Reads a layer for the first time; `read` counts its bytes as they are stored.
    pub async fn index(&self, layer: Layer, number: usize, read: Arc<AtomicU64>) -> Result<LayerIndex> {
        let _slot = self.service.0.unpacks.acquire().await.map_err(|_| Error::Canceled)?;
        let Inner { blobs, files, .. } = &*self.service.0;
        let (blobs, files, budget) = (blobs.clone(), files.clone(), self.budget.clone());
        let cancel = self.cancel.clone();
        blocking(move || {
            let stream = open_layer(&blobs, &layer, number, &cancel, &read)?;
            let notes = files.nameless()?;
            let indexed =
                index::index(stream, number, &budget, notes).map_err(|error| canceled_or(&cancel, error));
            failpoint!(blocking "layer.indexed");
            indexed
        })
        .await
    }

    /// Merges the layers, `size` bytes as they are stored, and writes the root filesystem into
    /// staging, synced.
    pub async fn build(
        &self,
        id: &str,
        config: &Config,
        indexes: Vec<LayerIndex>,
        layers: Vec<Layer>,
        size: u64,
    ) -> Result<Built> {
        failpoint!("build.begun");
        self.progress.stage("unpack");
        let Self { service, cancel, .. } = self;
        let _slot = service.0.unpacks.acquire().await.map_err(|_| Error::Canceled)?;
        let staged = service.0.files.stage()?;
        let read = Arc::new(AtomicU64::new(0));
        let (blobs, counter, cancel) = (service.0.blobs.clone(), read.clone(), cancel.clone());
        let limits = service.0.settings.limits.clone();
        let mut image = row(id, config);
        let used = layers.iter().filter_map(Layer::blob).collect();
        let work = blocking(move || {
            let open = |layer: usize| open_layer(&blobs, &layers[layer], layer, &cancel, &counter);
            let file = create(&staged.path().join(rootfs_name(FSTYPE)))?;
            let (file, length) =
                write_rootfs(file, indexes, &limits, open).map_err(|error| canceled_or(&cancel, error))?;
            image.size = length;
            image.rootfs_digest = digest_of(file)?;
            describe(&image, staged.path())?;
            failpoint!(blocking "build.written");
            staged.sync()?;
            Ok(Built { staged, image, blobs: used })
        });
        watched(self.progress, &read, size, work).await
    }
}

/// What is known of an image before its root filesystem.
pub(super) fn row(id: &str, config: &Config) -> ImageRow {
    ImageRow {
        id: id.to_owned(),
        names: Vec::new(),
        architecture: config.architecture.clone(),
        size: 0,
        rootfs_digest: String::new(),
        fstype: FSTYPE.into(),
        kernel: String::new(),
        created_usec: now_usec(),
        used_usec: now_usec(),
        process: config.config.clone(),
        holders: Vec::new(),
    }
}

fn write_rootfs(
    file: File,
    indexes: Vec<LayerIndex>,
    limits: &Limits,
    open: impl FnMut(usize) -> Result<Box<dyn Read + Send>>,
) -> Result<(File, u64)> {
    let layers = indexes.len();
    let mut merge = Merge::new(limits);
    for (layer, index) in indexes.into_iter().enumerate() {
        for header in index.headers {
            let header = header.map_err(Error::io("cannot read what was noted of a layer"))?;
            let invalid = |Invalid { entry, reason }| Error::InvalidLayer { layer, entry, reason };
            merge.entry(&header).map_err(invalid)?;
        }
        merge.end_layer();
    }
    rootfs::write(file, &merge.finish(), layers, open)
}

/// Digest of a whole file, as an image's row has it.
pub(super) fn digest_of(mut file: File) -> Result<String> {
    file.seek(SeekFrom::Start(0))
        .and_then(|_| digest_of_stream(file))
        .map_err(Error::io("cannot read the root filesystem back"))
}

pub(super) fn digest_of_stream(mut source: impl Read) -> io::Result<String> {
    let mut hashing = digest::Hashing::new(io::sink());
    io::copy(&mut source, &mut hashing)?;
    let (_, hex, _) = hashing.finish();
    Ok(format!("sha256:{hex}"))
}

pub(super) fn describe(image: &ImageRow, dir: &Path) -> Result<()> {
    let json = ImageFile {
        id: image.id.clone(),
        architecture: image.architecture.clone(),
        fstype: image.fstype.clone(),
        size: image.size,
        rootfs_digest: image.rootfs_digest.clone(),
        created_usec: image.created_usec,
        process: image.process.clone(),
    };
    let json = serde_json::to_vec_pretty(&json).map_err(banger_api::Error::internal)?;
    write_file(&dir.join("image.json"), &json)
}

/// A reader that was canceled fails with something; what counts is why.
fn canceled_or(cancel: &Cancel, error: Error) -> Error {
    if cancel.is_set() { Error::Canceled } else { error }
}

/// Whether the layers unpack to what the config says.
pub(super) fn check_diff_ids(indexes: &[LayerIndex], config: &Config) -> Result<()> {
    for (layer, (index, wanted)) in indexes.iter().zip(&config.rootfs.diff_ids).enumerate() {
        let found = format!("sha256:{}", index.diff_id);
        if found != *wanted {
            let what = format!("layer {layer}, unpacked,");
            return Err(Error::DigestMismatch { what, wanted: wanted.clone(), found });
        }
    }
    Ok(())
}

fn open_layer(
    blobs: &Blobs,
    layer: &Layer,
    number: usize,
    cancel: &Cancel,
    read: &Arc<AtomicU64>,
) -> Result<Box<dyn Read + Send>> {
    let file = match layer {
        Layer::Blob(hex) => blobs.open(hex)?,
        Layer::File(file) => rewound(file)?,
    };
    decompress(Source::new(file, cancel.clone(), read.clone()))
        .map_err(|error| index::explain(error.into(), number))
}

/// The same open file from its beginning. Its passes come one after the other, so they may share
/// the offset.
pub(super) fn rewound(file: &File) -> Result<File> {
    let failed = || Error::io("cannot read the file again");
    let mut again = file.try_clone().map_err(failed())?;
    again.seek(SeekFrom::Start(0)).map_err(failed())?;
    Ok(again)
}
