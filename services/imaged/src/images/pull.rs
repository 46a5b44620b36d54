//! Images from registries.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::try_join_all;
use tokio::sync::Semaphore;

use super::build::{Built, Layer, Making, check_diff_ids};
use super::publish::Claim;
use crate::digest;
use crate::error::{Error, Result};
use crate::flights::Flights;
use crate::progress::{Part, Progress, Relay, periodically};
use crate::registry::host::not_json;
use crate::registry::manifest::Document;
use crate::registry::{
    AuthFile, Config, Credentials, Descriptor, Endpoint, Manifest, Platform, Reference, Source,
};
use crate::service::{PinGuard, Service, blocking};
use crate::store::ImageRow;

/// Layers of one pull that are fetched at a time: a slow registry leaves room for others.
const DOWNLOADS: usize = 4;

/// Bytes of credentials that a caller may pass.
const CREDENTIALS: u64 = 64 << 10;

/// What is being pulled and made, by the image's id and the platform that it must be for.
pub(crate) type Images = Flights<Relay, Arc<Built>>;

#[derive(Debug, Default)]
pub struct PullOptions {
    /// Instead of the normalised reference.
    pub name: Option<String>,
    pub platform: Option<Platform>,
    /// Plain HTTP and unknown certificates are acceptable.
    pub insecure: bool,
    /// The caller's credentials: a file of the form of `auth.json`.
    pub credentials: Option<File>,
}

/// What is pulled, and how.
struct Pull {
    reference: Reference,
    platform: Platform,
    insecure: bool,
    /// Of the caller, for the registry that the reference names.
    credentials: Option<Credentials>,
    /// Whether it may be something else than an image.
    any: bool,
}

/// An image found in a registry.
#[derive(Clone)]
struct Found {
    id: String,
    manifest: Arc<Manifest>,
    /// The manifest as it came.
    document: Arc<Vec<u8>>,
    endpoint: Arc<Endpoint>,
    platform: Platform,
}

impl Service {
    /// Pulls an image, or finds that there is nothing to do.
    pub async fn pull(
        &self,
        reference: &str,
        options: PullOptions,
        progress: &dyn Progress,
    ) -> Result<ImageRow> {
        let reference = self.0.settings.presets.reference(reference)?;
        let name = options.name.clone().unwrap_or_else(|| reference.to_string());
        let claim = Claim::new(name, reference.to_string())?;
        progress.stage("resolve");
        self.check_claim(&claim).await?;
        let found = self.find(&Pull::new(reference, options, false).await?).await?;
        if let Some(image) = self.image_by_id(&found.id).await? {
            found.check_platform("linux", &image.architecture)?;
        }
        let pins =
            self.guard(self.0.blobs.pin(found.manifest.hexes().chain(found.manifest.documents(&found.id))));
        let outcome = self.pull_found(&found, &claim, progress).await;
        pins.release().await?;
        outcome
    }

    /// Fetches the parts of something that need be no image, and keeps them until the guard is released.
    pub(crate) async fn pull_parts(
        &self,
        reference: &str,
        options: PullOptions,
        progress: &dyn Progress,
    ) -> Result<(Vec<File>, PinGuard)> {
        progress.stage("resolve");
        let pull = Pull::new(reference.parse()?, options, true).await?;
        let found = &self.find(&pull).await?;
        let pins = self.guard(self.0.blobs.pin(found.manifest.hexes()));
        progress.stage("download");
        let open = |_, blob: &Descriptor| std::future::ready(self.0.blobs.open(blob.hex()));
        let files = self.download(found, open, progress).await?;
        Ok((files, pins))
    }

    /// Gives the image the name, once it is there.
    async fn pull_found(&self, found: &Found, claim: &Claim, progress: &dyn Progress) -> Result<ImageRow> {
        loop {
            if let Some(image) = self.claim_existing(&found.id, claim).await? {
                return Ok(image);
            }
            // For another platform the same may be refused.
            let name = format!("{} {}", found.id, found.platform);
            let flight = self.0.pulls.join(&name, |relay| self.clone().make(found.clone(), relay));
            let (relay, joined) = (flight.progress.clone(), flight.joined);
            match relay.follow(progress, flight.land()).await {
                Ok(built) => return self.publish(&built, claim, progress).await,
                // It failed with the registry and the rights of somebody else.
                Err(error) if joined && error.is_of_registry() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks one place after the other for the image.
    async fn find(&self, pull: &Pull) -> Result<Found> {
        let (host, reference) = (self.0.settings.host.clone(), pull.reference.clone());
        let mut sources = blocking(move || host.sources(&reference)).await?.into_iter().peekable();
        loop {
            let Some(source) = sources.next() else { return Err(Error::Canceled) };
            let place = source.reference.to_string();
            match self.find_at(pull, source).await {
                Err(error) if sources.peek().is_some() => {
                    tracing::warn!(image = %pull.reference, "{place} is no mirror of it: {error}");
                }
                outcome => return outcome,
            }
        }
    }

    async fn find_at(&self, pull: &Pull, mut source: Source) -> Result<Found> {
        let itself = source.reference == pull.reference;
        // Callers may be careless with their own credentials, but not with the host's.
        let careless = pull.insecure && itself && !source.insecure;
        source.insecure |= careless;
        // The caller's are for the registry that they asked for, and for no mirror of it.
        let given = pull.credentials.clone().filter(|_| itself);
        let (host, reference) = (self.0.settings.host.clone(), source.reference.clone());
        let (tls, ours) =
            blocking(move || Ok((host.tls(&reference.registry)?, host.credentials(&reference)?))).await?;
        let credentials = given.or(ours.filter(|_| !careless));
        let limits = &self.0.settings.limits;
        let endpoint = Endpoint::open(source, tls, credentials, limits.document).await?;
        let (manifest, document, digest) = self.resolve(&endpoint, pull).await?;
        Ok(Found {
            id: digest::id(&digest),
            manifest: Arc::new(manifest),
            document: Arc::new(document),
            endpoint: Arc::new(endpoint),
            platform: pull.platform.clone(),
        })
    }

    /// The manifest for the platform, read and as it came, and its digest, which is the image's id.
    async fn resolve(&self, endpoint: &Endpoint, pull: &Pull) -> Result<(Manifest, Vec<u8>, String)> {
        let parse = if pull.any { Document::parse_any } else { Document::parse };
        let (limits, reference) = (&self.0.settings.limits, endpoint.reference());
        let (bytes, digest) = endpoint.document(reference.version()).await?;
        let offers = match parse(&bytes, limits)? {
            Document::Manifest(manifest) => return Ok((manifest, bytes, digest)),
            Document::Index(offers) => offers,
        };
        let chosen = Document::choose(&offers, &pull.platform, &reference.to_string())?;
        let (bytes, digest) = endpoint.document(&chosen.digest).await?;
        match parse(&bytes, limits)? {
            Document::Manifest(manifest) => Ok((manifest, bytes, digest)),
            Document::Index(_) => Err(Error::InvalidManifest("an index within an index".into())),
        }
    }

    /// Fetches what is missing and builds the image: once for all who want it at the time.
    async fn make(self, found: Found, progress: Arc<Relay>) -> Result<Arc<Built>> {
        let _build = self.0.builds.lock(&format!("image {}", found.id)).await;
        progress.stage("download");
        let Found { manifest, endpoint, .. } = &found;
        let document = endpoint.blob(&manifest.config.digest).await?;
        let config = Config::parse(&document, manifest.layers.len())?;
        found.check_platform(&config.os, &config.architecture)?;

        let making = Making::new(&self, &*progress);
        let index = |number, blob: &Descriptor| {
            making.index(Layer::Blob(blob.hex().to_owned()), number, Arc::default())
        };
        let indexes = self.download(&found, index, &*progress).await?;
        check_diff_ids(&indexes, &config)?;
        let layers = manifest.hexes().map(Layer::Blob).collect();
        let built = making.build(&found.id, &config, indexes, layers, manifest.size()).await?;
        let documents = self.keep_documents(&found, document).await?;
        Ok(Arc::new(built.keeping(documents)))
    }

    /// Keeps manifest and config as they came, and says under which names.
    async fn keep_documents(&self, found: &Found, config: Vec<u8>) -> Result<[String; 2]> {
        let (blobs, manifest) = (self.0.blobs.clone(), found.document.clone());
        let names = found.manifest.documents(&found.id);
        blocking(move || {
            for (name, text) in names.iter().zip([manifest.as_slice(), &config]) {
                blobs.import(text, &Descriptor::of(name, text.len() as u64))?;
            }
            Ok(names)
        })
        .await
    }

    /// Fetches all layers, and does with each as soon as it is there what is to be done.
    async fn download<'a, T, F: Future<Output = Result<T>>>(
        &self,
        found: &'a Found,
        then: impl Fn(usize, &'a Descriptor) -> F + Sync,
        progress: &dyn Progress,
    ) -> Result<Vec<T>> {
        let blobs = &found.manifest.layers;
        let arrivals: &Vec<_> = &blobs.iter().map(|_| Arrived::default()).collect();
        let (slots, then) = (&Semaphore::new(DOWNLOADS), &then);
        let done = blobs.iter().enumerate().map(|(number, blob)| async move {
            self.fetch(&found.endpoint, blob, slots, &arrivals[number]).await?;
            then(number, blob).await
        });
        periodically(|| tell(blobs, arrivals, progress), try_join_all(done)).await
    }

    async fn fetch(
        &self,
        endpoint: &Arc<Endpoint>,
        blob: &Descriptor,
        slots: &Semaphore,
        arrived: &Arrived,
    ) -> Result<()> {
        let _slot = slots.acquire().await.map_err(|_| Error::Canceled)?;
        loop {
            let flight = self.0.blobs.fetch(endpoint, blob);
            let joined = flight.joined;
            arrived.watch(flight.progress.clone());
            match flight.land().await {
                Err(error) if joined && error.is_of_registry() => {}
                outcome => return outcome,
            }
        }
    }
}

impl Pull {
    async fn new(reference: Reference, options: PullOptions, any: bool) -> Result<Self> {
        let PullOptions { name: _, platform, insecure, credentials } = options;
        let credentials = match credentials {
            Some(file) => own_credentials(file, reference.clone()).await?,
            None => None,
        };
        let platform = platform.unwrap_or_else(Platform::host);
        Ok(Self { reference, platform, insecure, credentials, any })
    }
}

/// How much of a layer has arrived, by whoever fetches it.
#[derive(Default)]
struct Arrived(Mutex<Arc<AtomicU64>>);

impl Arrived {
    fn watch(&self, counter: Arc<AtomicU64>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = counter;
    }

    fn bytes(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).load(Ordering::Relaxed)
    }
}

impl Found {
    fn check_platform(&self, os: &str, architecture: &str) -> Result<()> {
        self.platform.check(&self.endpoint.reference().to_string(), os, architecture)
    }
}

/// Tells how much of each layer has arrived, and of all.
fn tell(blobs: &[Descriptor], arrivals: &[Arrived], progress: &dyn Progress) {
    let part = |(blob, arrived): (&Descriptor, &Arrived)| -> Part {
        (blob.digest.clone(), arrived.bytes().min(blob.size), blob.size)
    };
    let parts: Vec<Part> = blobs.iter().zip(arrivals).map(part).collect();
    progress.parts(&parts);
    let sum = |figure: fn(&Part) -> u64| parts.iter().map(figure).sum();
    progress.bytes(sum(|part| part.1), sum(|part| part.2));
}

/// The credentials for an image in a file that the caller passed.
async fn own_credentials(file: File, reference: Reference) -> Result<Option<Credentials>> {
    let refuse = |reason: String| Error::BadArgument(format!("option \"credentials\": {reason}"));
    let bytes = blocking(move || {
        let length =
            file.metadata().ok().filter(|metadata| metadata.is_file()).map(|metadata| metadata.len());
        let length = length.filter(|length| *length <= CREDENTIALS).ok_or_else(|| {
            refuse(format!("not a regular file, or a memfd, of at most {CREDENTIALS} bytes"))
        })?;
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, 0).map_err(|error| refuse(error.to_string()))?;
        Ok(bytes)
    })
    .await?;
    let file: AuthFile = serde_json::from_slice(&bytes).map_err(|error| refuse(not_json(&error)))?;
    file.find(&reference).map_err(|error| refuse(error.to_string()))
}
