//! Images from registries.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use futures_util::future::try_join_all;

use super::build::{Layer, Making, check_diff_ids};
use super::publish::Claim;
use crate::digest;
use crate::error::{Error, Result};
use crate::layers::LayerIndex;
use crate::registry::manifest::Document;
use crate::registry::{Config, Manifest, Platform, Reference};
use crate::service::{Inner, Progress, Service, watched};
use crate::store::ImageRow;

#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// Instead of the normalised reference.
    pub name: Option<String>,
    pub platform: Option<Platform>,
    /// Plain HTTP is acceptable.
    pub insecure: bool,
}

/// What is pulled, and from where.
struct Pull {
    reference: Reference,
    platform: Platform,
    insecure: bool,
}

impl Service {
    /// Pulls an image, or finds that there is nothing to do.
    pub async fn pull(
        &self,
        reference: &str,
        options: PullOptions,
        progress: &dyn Progress,
    ) -> Result<ImageRow> {
        let reference: Reference = reference.parse()?;
        let name = options.name.unwrap_or_else(|| reference.to_string());
        let claim = Claim::new(name, reference.to_string())?;
        let platform = options.platform.unwrap_or_else(Platform::host);
        let pull = Pull { reference, platform, insecure: options.insecure };

        progress.stage("resolve");
        self.check_claim(&claim).await?;
        let (manifest, id) = self.resolve(&pull).await?;
        if let Some(image) = self.image_by_id(&id).await? {
            pull.check_platform("linux", &image.architecture)?;
            if let Some(image) = self.claim_existing(&id, &claim).await? {
                return Ok(image);
            }
        }

        let pins = self.guard(self.0.blobs.pin(manifest.hexes()));
        let outcome = self.pull_layers(&pull, &manifest, &id, claim, progress).await;
        pins.release().await?;
        outcome
    }

    /// The manifest for the platform, and its digest, which is the image's id.
    async fn resolve(&self, pull: &Pull) -> Result<(Manifest, String)> {
        let Inner { registry, settings, .. } = &*self.0;
        let Pull { reference, platform, insecure } = pull;
        let (bytes, digest) = registry.document(reference, reference.version(), *insecure).await?;
        let offers = match Document::parse(&bytes, &settings.limits)? {
            Document::Manifest(manifest) => return Ok((manifest, digest::id(&digest))),
            Document::Index(offers) => offers,
        };
        let chosen = Document::choose(&offers, platform, &reference.to_string())?;
        let (bytes, digest) = registry.document(reference, &chosen.digest, *insecure).await?;
        match Document::parse(&bytes, &settings.limits)? {
            Document::Manifest(manifest) => Ok((manifest, digest::id(&digest))),
            Document::Index(_) => Err(Error::InvalidManifest("an index within an index".into())),
        }
    }

    async fn pull_layers(
        &self,
        pull: &Pull,
        manifest: &Manifest,
        id: &str,
        claim: Claim,
        progress: &dyn Progress,
    ) -> Result<ImageRow> {
        let Inner { registry, builds, .. } = &*self.0;
        // Who else wants this very image waits here, and then has only its name to add.
        let _build = builds.lock(&format!("image {id}")).await;
        if let Some(image) = self.claim_existing(id, &claim).await? {
            return Ok(image);
        }
        progress.stage("download");
        let config = registry.blob(&pull.reference, &manifest.config.digest, pull.insecure).await?;
        let config = Config::parse(&config, manifest.layers.len())?;
        pull.check_platform(&config.os, &config.architecture)?;

        let making = Making::new(self, progress);
        let indexes = self.download(pull, manifest, &making, progress).await?;
        check_diff_ids(&indexes, &config)?;
        let layers = manifest.hexes().map(Layer::Blob).collect();
        let built = making.build(id, &config, indexes, layers, manifest.size()).await?;
        self.publish(built, manifest.hexes().collect(), claim, progress).await
    }

    /// Fetches all layers, and reads each for the first time while others still arrive.
    async fn download(
        &self,
        pull: &Pull,
        manifest: &Manifest,
        making: &Making<'_>,
        progress: &dyn Progress,
    ) -> Result<Vec<LayerIndex>> {
        let Inner { registry, blobs, .. } = &*self.0;
        let arrived = &AtomicU64::new(0);
        let layers = manifest.layers.iter().enumerate().map(|(number, blob)| async move {
            blobs.fetch(registry, &pull.reference, blob, pull.insecure, arrived).await?;
            making.index(Layer::Blob(blob.hex().to_owned()), number, Arc::default()).await
        });
        watched(progress, arrived, manifest.size(), try_join_all(layers)).await
    }
}

impl Pull {
    fn check_platform(&self, os: &str, architecture: &str) -> Result<()> {
        let same = |found: &str, wanted: &str| found.is_empty() || found == wanted;
        if same(os, &self.platform.os) && same(architecture, &self.platform.architecture) {
            return Ok(());
        }
        Err(Error::NoSuchPlatform {
            image: self.reference.to_string(),
            platform: self.platform.to_string(),
            offers: format!("{os}/{architecture}"),
        })
    }
}
