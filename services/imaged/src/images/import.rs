//! Images from files.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::build::{Layer, Making, check_diff_ids};
use super::layout;
use super::publish::Claim;
use crate::digest;
use crate::error::{Error, Result};
use crate::files::spool;
use crate::layers::LayerIndex;
use crate::layers::stream::Source;
use crate::registry::manifest::RootFs;
use crate::registry::{Config, Descriptor, Manifest, Platform};
use crate::service::{Progress, Service, blocking, watched};
use crate::store::ImageRow;

impl Service {
    /// Imports a file: a tar of a root filesystem, or of an OCI layout; compressed or not. What is no
    /// regular file (a pipe) is stored first, for it has to be read twice.
    pub async fn import_file(&self, file: File, name: &str, progress: &dyn Progress) -> Result<ImageRow> {
        let claim = Claim::new(name, "")?;
        self.check_claim(&claim).await?;
        progress.stage("read");
        let making = Making::new(self, progress);
        let (files, limits) = (self.0.files.clone(), self.0.settings.limits.clone());
        let cancel = making.cancel.clone();
        let file = Arc::new(blocking(move || spool(file, &files, limits.blob, &cancel)).await?);
        let size = file.metadata().map_err(Error::io("cannot look at the file"))?.len();

        let read = Arc::new(AtomicU64::new(0));
        let indexed = making.index(Layer::File(file.clone()), 0, read.clone());
        let indexed = watched(progress, &read, size, indexed).await?;
        if layout::is_layout(&indexed) {
            let staged = self.0.files.stage()?;
            let (limits, cancel) = (self.0.settings.limits.clone(), making.cancel.clone());
            let staged = blocking(move || layout::unpack(&file, staged, &limits, cancel)).await?;
            return self.import_layout(staged.path(), claim, progress).await;
        }
        self.import_root(Layer::File(file), indexed, size, claim, &making, progress).await
    }

    /// Imports by path: a file as [`Service::import_file`], or the directory of an OCI layout.
    pub async fn import_path(&self, path: &Path, name: &str, progress: &dyn Progress) -> Result<ImageRow> {
        if !path.is_absolute() {
            return Err(Error::BadArgument(format!("the path {} is not absolute", path.display())));
        }
        let unreadable = |error: std::io::Error| Error::Unreadable {
            what: path.display().to_string(),
            reason: format!("{error}; pass it as a file descriptor if only you may read it"),
        };
        let file = File::open(path).map_err(unreadable)?;
        if !file.metadata().map_err(unreadable)?.is_dir() {
            return self.import_file(file, name, progress).await;
        }
        let claim = Claim::new(name, "")?;
        self.check_claim(&claim).await?;
        self.import_layout(path, claim, progress).await
    }

    /// Makes an image of one layer of this machine's architecture, whose id comes from its content.
    async fn import_root(
        &self,
        layer: Layer,
        indexed: LayerIndex,
        size: u64,
        claim: Claim,
        making: &Making<'_>,
        progress: &dyn Progress,
    ) -> Result<ImageRow> {
        let config = Config {
            architecture: Platform::host().architecture,
            os: "linux".into(),
            rootfs: RootFs { diff_ids: vec![format!("sha256:{}", indexed.diff_id)] },
            ..Config::default()
        };
        let id = digest::sha256(&serde_json::to_vec(&config).map_err(banger_api::Error::internal)?);
        let _build = self.0.builds.lock(&format!("image {id}")).await;
        if let Some(image) = self.claim_existing(&id, &claim).await? {
            return Ok(image);
        }
        let built = making.build(&id, &config, vec![indexed], vec![layer], size).await?;
        self.publish(built, Vec::new(), claim, progress).await
    }

    async fn import_layout(&self, dir: &Path, claim: Claim, progress: &dyn Progress) -> Result<ImageRow> {
        progress.stage("read");
        let (limits, from) = (self.0.settings.limits.clone(), dir.to_owned());
        let (manifest, digest, config) =
            blocking(move || layout::read(&from, &Platform::host(), &limits)).await?;
        let pins = self.guard(self.0.blobs.pin(manifest.hexes()));
        let id = digest::id(&digest);
        let outcome = self.import_layers(dir, &manifest, &config, &id, claim, progress).await;
        pins.release().await?;
        outcome
    }

    async fn import_layers(
        &self,
        dir: &Path,
        manifest: &Manifest,
        config: &Config,
        id: &str,
        claim: Claim,
        progress: &dyn Progress,
    ) -> Result<ImageRow> {
        let _build = self.0.builds.lock(&format!("image {id}")).await;
        if let Some(image) = self.claim_existing(id, &claim).await? {
            return Ok(image);
        }
        let making = Making::new(self, progress);
        let mut indexes = Vec::new();
        for (number, blob) in manifest.layers.iter().enumerate() {
            self.import_blob(dir, blob, &making).await?;
            let layer = Layer::Blob(blob.hex().to_owned());
            indexes.push(making.index(layer, number, Arc::default()).await?);
        }
        check_diff_ids(&indexes, config)?;
        let layers = manifest.hexes().map(Layer::Blob).collect();
        let built = making.build(id, config, indexes, layers, manifest.size()).await?;
        self.publish(built, manifest.hexes().collect(), claim, progress).await
    }

    async fn import_blob(&self, dir: &Path, blob: &Descriptor, making: &Making<'_>) -> Result<()> {
        let (blobs, blob, dir) = (self.0.blobs.clone(), blob.clone(), dir.to_owned());
        let cancel = making.cancel.clone();
        blocking(move || {
            let file = layout::open_blob(&dir, &blob)?;
            blobs.import(Source::new(file, cancel, Arc::default()), &blob)
        })
        .await
    }
}
