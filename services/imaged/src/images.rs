//! Images: pull, import, find, remove.
//!
//! Whatever takes long (network, unpacking, syncing) holds no lock that another image would need.
//! Publication is one database transaction: the name is looked at again, the finished and synced
//! directory is renamed into its place, the rows are written. Two that race to one name meet there
//! and the later one fails; its staging directory goes when it is dropped.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::digest;
use crate::error::{Error, Result};
use crate::files::{Files, Staged};
use crate::layers::merge::Merge;
use crate::layers::stream::{Cancel, Source, decompress};
use crate::layers::{Budget, LayerIndex, index};
use crate::limits::Limits;
use crate::registry::manifest::{Document, Process, RootFs};
use crate::registry::{Config, Descriptor, Manifest, Platform, Reference};
use crate::rootfs;
use crate::service::{Event, Inner, Progress, Service, blocking, now_usec, watched};
use crate::store::{self, ImageRow, NameRow};
use crate::tar::{Kind, TarReader};

/// The root filesystem in an image's directory.
pub const ROOTFS: &str = "rootfs.squashfs";
pub const FSTYPE: &str = "squashfs";

#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// Instead of the normalised reference.
    pub name: Option<String>,
    pub platform: Option<Platform>,
    /// Plain HTTP is acceptable.
    pub insecure: bool,
}

/// A name for an image, and where the image comes from if it was pulled.
#[derive(Debug, Clone)]
struct Claim {
    name: String,
    /// Empty for an import. Only the same reference may move a name to other content.
    reference: String,
}

/// A layer that can be read again and again.
#[derive(Clone)]
enum Layer {
    Blob(String),
    File(Arc<File>),
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

/// A root filesystem in staging.
struct Built {
    staged: Staged,
    image: ImageRow,
}

impl Service {
    /// Pulls an image, or finds that there is nothing to do.
    pub async fn pull(
        &self,
        reference: &str,
        options: PullOptions,
        progress: &dyn Progress,
    ) -> Result<ImageRow> {
        let Inner { registry, settings, .. } = &*self.0;
        let reference: Reference = reference.parse()?;
        let name = options.name.unwrap_or_else(|| reference.to_string());
        check_name(&name)?;
        let claim = Claim { name, reference: reference.to_string() };
        progress.stage("resolve");
        self.check_claim(&claim).await?;

        let insecure = options.insecure;
        let platform = options.platform.unwrap_or_else(Platform::host);
        let (bytes, digest) = registry.document(&reference, reference.version(), insecure).await?;
        let (manifest, digest) = match Document::parse(&bytes, &settings.limits)? {
            Document::Manifest(manifest) => (manifest, digest),
            Document::Index(offers) => {
                let chosen = Document::choose(&offers, &platform, &reference.to_string())?;
                let (bytes, digest) = registry.document(&reference, &chosen.digest, insecure).await?;
                match Document::parse(&bytes, &settings.limits)? {
                    Document::Manifest(manifest) => (manifest, digest),
                    Document::Index(_) => {
                        return Err(Error::InvalidManifest("an index within an index".into()));
                    }
                }
            }
        };
        let id = digest::parse(&digest).unwrap_or_default().to_owned();
        if let Some(image) = self.image_by_id(&id).await? {
            check_platform("linux", &image.architecture, &platform, &reference)?;
            if let Some(image) = self.claim_existing(&id, &claim).await? {
                return Ok(image);
            }
        }

        let pins = self.guard(self.0.blobs.pin(manifest.layers.iter().map(|layer| layer.hex().to_owned())));
        let outcome =
            self.pull_layers(&reference, insecure, &manifest, &platform, &id, claim, progress).await;
        pins.release().await?;
        outcome
    }

    #[allow(clippy::too_many_arguments)]
    async fn pull_layers(
        &self,
        reference: &Reference,
        insecure: bool,
        manifest: &Manifest,
        platform: &Platform,
        id: &str,
        claim: Claim,
        progress: &dyn Progress,
    ) -> Result<ImageRow> {
        let Inner { registry, blobs, builds, .. } = &*self.0;
        // Who else wants this very image waits here, and then has only its name to add.
        let _build = builds.lock(&format!("image {id}")).await;
        if let Some(image) = self.claim_existing(id, &claim).await? {
            return Ok(image);
        }
        progress.stage("download");
        let config = registry.blob(reference, &manifest.config.digest, insecure).await?;
        let config = Config::parse(&config, manifest.layers.len())?;
        check_platform(&config.os, &config.architecture, platform, reference)?;

        let cancel = Cancel::default();
        let _cancel = cancel.on_drop();
        let budget = Arc::new(Budget::new(self.0.settings.limits.clone()));
        let arrived = AtomicU64::new(0);
        let layers = manifest.layers.iter().enumerate().map(|(number, blob)| {
            let (arrived, budget, cancel) = (&arrived, budget.clone(), cancel.clone());
            async move {
                blobs.fetch(registry, reference, blob, insecure, arrived).await?;
                // Read for the first time while others still arrive.
                self.index(Layer::Blob(blob.hex().to_owned()), number, budget, cancel).await
            }
        });
        let indexes = watched(progress, &arrived, manifest.size(), try_join_all(layers)).await?;
        check_diff_ids(&indexes, &config)?;
        let sources = manifest.layers.iter().map(|blob| Layer::Blob(blob.hex().to_owned())).collect();
        let built = self.build(id, &config, indexes, sources, manifest.size(), cancel, progress).await?;
        let blobs = manifest.layers.iter().map(|blob| blob.hex().to_owned()).collect();
        self.publish(built, blobs, claim, progress).await
    }

    /// Imports a file: a tar of a root filesystem, or of an OCI layout; compressed or not. What is no
    /// regular file (a pipe) is stored first, for it has to be read twice.
    pub async fn import_file(&self, file: File, name: &str, progress: &dyn Progress) -> Result<ImageRow> {
        check_name(name)?;
        let claim = Claim { name: name.to_owned(), reference: String::new() };
        self.check_claim(&claim).await?;
        progress.stage("read");
        let cancel = Cancel::default();
        let _cancel = cancel.on_drop();
        let files = self.0.files.clone();
        let limit = self.0.settings.limits.blob;
        let stop = cancel.clone();
        let file = Arc::new(blocking(move || spool(file, &files, limit, &stop)).await?);
        let size = file.metadata().map_err(Error::io("cannot look at the file"))?.len();

        let budget = Arc::new(Budget::new(self.0.settings.limits.clone()));
        let read = Arc::new(AtomicU64::new(0));
        let layer = Layer::File(file.clone());
        let indexed = self.index_counted(layer.clone(), 0, budget, cancel.clone(), read.clone());
        let indexed = watched(progress, &read, size, indexed).await?;
        if is_layout(&indexed) {
            let staged = self.0.files.stage()?;
            let (limits, stop) = (self.0.settings.limits.clone(), cancel.clone());
            let staged = blocking(move || unpack_layout(&file, staged, &limits, stop)).await?;
            return self.import_layout(staged.path(), claim, progress).await;
        }
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
        let built = self.build(&id, &config, vec![indexed], vec![layer], size, cancel, progress).await?;
        self.publish(built, Vec::new(), claim, progress).await
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
        check_name(name)?;
        let claim = Claim { name: name.to_owned(), reference: String::new() };
        self.check_claim(&claim).await?;
        self.import_layout(path, claim, progress).await
    }

    async fn import_layout(&self, layout: &Path, claim: Claim, progress: &dyn Progress) -> Result<ImageRow> {
        progress.stage("read");
        let limits = self.0.settings.limits.clone();
        let dir = layout.to_owned();
        let platform = Platform::host();
        let wish = platform.clone();
        let (manifest, digest, config) = blocking(move || read_layout(&dir, &wish, &limits)).await?;
        let id = digest::parse(&digest).unwrap_or_default().to_owned();
        let hexes: Vec<String> = manifest.layers.iter().map(|layer| layer.hex().to_owned()).collect();
        let pins = self.guard(self.0.blobs.pin(hexes.clone()));
        let outcome = async {
            let _build = self.0.builds.lock(&format!("image {id}")).await;
            if let Some(image) = self.claim_existing(&id, &claim).await? {
                return Ok(image);
            }
            let cancel = Cancel::default();
            let _cancel = cancel.on_drop();
            let budget = Arc::new(Budget::new(self.0.settings.limits.clone()));
            let mut indexes = Vec::new();
            for (number, layer) in manifest.layers.iter().enumerate() {
                let (blobs, blob, from) = (self.0.blobs.clone(), layer.clone(), layout.join("blobs/sha256"));
                let stop = cancel.clone();
                blocking(move || {
                    let file = open_blob(&from, &blob)?;
                    blobs.import(Source::new(file, stop, Arc::default()), &blob)
                })
                .await?;
                let layer = Layer::Blob(layer.hex().to_owned());
                indexes.push(self.index(layer, number, budget.clone(), cancel.clone()).await?);
            }
            check_diff_ids(&indexes, &config)?;
            let sources = hexes.iter().cloned().map(Layer::Blob).collect();
            let built = self.build(&id, &config, indexes, sources, manifest.size(), cancel, progress).await?;
            self.publish(built, hexes.clone(), claim, progress).await
        }
        .await;
        pins.release().await?;
        outcome
    }

    async fn index(
        &self,
        layer: Layer,
        number: usize,
        budget: Arc<Budget>,
        cancel: Cancel,
    ) -> Result<LayerIndex> {
        self.index_counted(layer, number, budget, cancel, Arc::default()).await
    }

    async fn index_counted(
        &self,
        layer: Layer,
        number: usize,
        budget: Arc<Budget>,
        cancel: Cancel,
        read: Arc<AtomicU64>,
    ) -> Result<LayerIndex> {
        let _slot = self.0.unpacks.acquire().await.map_err(|_| Error::Canceled)?;
        let blobs = self.0.blobs.clone();
        blocking(move || {
            let stream = open_layer(&blobs, &layer, number, &cancel, &read)?;
            index::index(stream, number, &budget)
                .map_err(|error| if cancel.is_set() { Error::Canceled } else { error })
        })
        .await
    }

    /// Merges the layers and writes the root filesystem into staging, synced.
    #[allow(clippy::too_many_arguments)]
    async fn build(
        &self,
        id: &str,
        config: &Config,
        indexes: Vec<LayerIndex>,
        layers: Vec<Layer>,
        size: u64,
        cancel: Cancel,
        progress: &dyn Progress,
    ) -> Result<Built> {
        progress.stage("unpack");
        let _slot = self.0.unpacks.acquire().await.map_err(|_| Error::Canceled)?;
        let staged = self.0.files.stage()?;
        let read = Arc::new(AtomicU64::new(0));
        let counter = read.clone();
        let blobs = self.0.blobs.clone();
        let max_depth = self.0.settings.limits.depth;
        let mut image = ImageRow {
            id: id.to_owned(),
            names: Vec::new(),
            architecture: config.architecture.clone(),
            size: 0,
            rootfs_digest: String::new(),
            fstype: FSTYPE.into(),
            created_usec: now_usec(),
            process: config.config.clone(),
            holders: Vec::new(),
        };
        let work = blocking(move || {
            let mut merge = Merge::new(max_depth);
            for (layer, index) in indexes.into_iter().enumerate() {
                let invalid = |invalid: crate::layers::merge::Invalid| Error::InvalidLayer {
                    layer,
                    entry: invalid.entry,
                    reason: invalid.reason,
                };
                merge.apply(index).map_err(invalid)?;
            }
            let tree = merge.finish();
            let file = create(&staged.path().join(ROOTFS))?;
            let open = |layer: usize| open_layer(&blobs, &layers[layer], layer, &cancel, &counter);
            let (mut file, length) = rootfs::write(file, &tree, layers.len(), open)
                .map_err(|error| if cancel.is_set() { Error::Canceled } else { error })?;
            drop(tree);
            let failed = || Error::io("cannot read the root filesystem back");
            file.seek(SeekFrom::Start(0)).map_err(failed())?;
            let mut hash = Sha256::new();
            std::io::copy(&mut file, &mut HashSink(&mut hash)).map_err(failed())?;
            image.size = length;
            image.rootfs_digest = format!("sha256:{}", digest::hex(&hash.finalize()));
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
            write_file(&staged.path().join("image.json"), &json)?;
            staged.sync()?;
            Ok(Built { staged, image })
        });
        watched(progress, &read, size, work).await
    }

    /// Fails early if the name cannot be had. What counts is the look in [`Service::publish`].
    async fn check_claim(&self, claim: &Claim) -> Result<()> {
        let claim = claim.clone();
        Ok(self.0.store.transact(move |t| check_claim(t, &claim).map(drop)).await?)
    }

    /// Gives an image that is there the name. `None`: it is not there.
    async fn claim_existing(&self, id: &str, claim: &Claim) -> Result<Option<ImageRow>> {
        let (key, claim) = (id.to_owned(), claim.clone());
        let claimed = self
            .0
            .store
            .transact(move |t| {
                if store::image(t, &key)?.is_none() {
                    return Ok(None);
                }
                let freed = take_name(t, &claim, &key)?;
                Ok(store::image(t, &key)?.map(|image| (image, freed)))
            })
            .await?;
        let Some((image, freed)) = claimed else { return Ok(None) };
        self.touch(Event::Image(image.id.clone())).await;
        self.moved(freed).await?;
        Ok(Some(image))
    }

    async fn publish(
        &self,
        built: Built,
        blobs: Vec<String>,
        claim: Claim,
        progress: &dyn Progress,
    ) -> Result<ImageRow> {
        progress.stage("publish");
        let files = self.0.files.clone();
        let id = built.image.id.clone();
        let published = self
            .0
            .store
            .transact(move |t| {
                check_claim(t, &claim)?;
                let target = files.image(&built.image.id);
                // Files without a row are what a removal has not got to yet.
                let trash = files.withdraw(&target)?;
                built.staged.publish(&target)?;
                store::insert_image(t, &built.image, &blobs)?;
                let freed = take_name(t, &claim, &built.image.id)?;
                let image = store::image(t, &built.image.id)?.unwrap_or(built.image);
                Ok((image, freed, trash))
            })
            .await;
        let (image, freed, trash) = match published {
            Ok(published) => published,
            Err(error) => {
                self.sweep(&id).await?;
                return Err(error.into());
            }
        };
        blocking(move || {
            drop(trash);
            Ok(())
        })
        .await?;
        self.touch(Event::Image(image.id.clone())).await;
        self.moved(freed).await?;
        Ok(image)
    }

    /// After a name went from one image to another: the other may be gone now.
    async fn moved(&self, freed: Option<Freed>) -> Result<()> {
        if let Some(freed) = freed {
            self.touch(Event::Image(freed.image.clone())).await;
            if freed.deleted {
                self.sweep(&freed.image).await?;
                self.collect(freed.blobs).await?;
            }
        }
        Ok(())
    }

    /// Removes an image's files if it has no row.
    async fn sweep(&self, id: &str) -> Result<()> {
        let (files, id) = (self.0.files.clone(), id.to_owned());
        let trash = self
            .0
            .store
            .transact(move |t| match store::image(t, &id)? {
                Some(_) => Ok(None),
                None => Ok(files.withdraw(&files.image(&id))?),
            })
            .await?;
        blocking(move || {
            drop(trash);
            Ok(())
        })
        .await
    }

    pub async fn images(&self) -> Result<Vec<ImageRow>> {
        Ok(self.0.store.transact(store::images).await?)
    }

    pub async fn image_by_id(&self, id: &str) -> Result<Option<ImageRow>> {
        let id = id.to_owned();
        Ok(self.0.store.transact(move |t| store::image(t, &id)).await?)
    }

    /// Finds an image by name, reference, or the beginning of its id.
    pub async fn image(&self, wanted: &str) -> Result<ImageRow> {
        let wanted = wanted.to_owned();
        Ok(self.0.store.transact(move |t| Ok(find(t, &wanted)?.0)).await?)
    }

    /// Removes a name, and the image with its last name. By id, all names go.
    pub async fn remove_image(&self, wanted: &str) -> Result<()> {
        let wanted = wanted.to_owned();
        let freed = self
            .0
            .store
            .transact(move |t| {
                let (image, name) = find(t, &wanted)?;
                let others = image.names.iter().filter(|other| name.as_ref() != Some(*other)).count();
                if let (Some(name), true) = (&name, others > 0) {
                    store::delete_name(t, name)?;
                    return Ok(Freed { image: image.id, deleted: false, blobs: Vec::new() });
                }
                if !image.holders.is_empty() {
                    let error = Error::ImageInUse { image: image.name().to_owned(), holders: image.holders };
                    return Err(error.into());
                }
                store::delete_names_of(t, &image.id)?;
                delete(t, image.id)
            })
            .await?;
        self.moved(Some(freed)).await
    }

    pub(crate) async fn lease_released(&self, freed: Option<Freed>) -> Result<()> {
        self.moved(freed).await
    }
}

/// An image that lost a name or a lease.
#[derive(Debug)]
pub(crate) struct Freed {
    pub image: String,
    pub deleted: bool,
    /// Blobs it named, if it was deleted.
    pub blobs: Vec<String>,
}

/// Whether the claim may have its name: `Some` with the image that has it now.
fn check_claim(t: &rusqlite::Transaction<'_>, claim: &Claim) -> banger_api::Result<Option<NameRow>> {
    let Some(row) = store::name(t, &claim.name)? else { return Ok(None) };
    if claim.reference.is_empty() || row.reference != claim.reference {
        return Err(Error::NameTaken(claim.name.clone()).into());
    }
    Ok(Some(row))
}

/// Gives the name to the image, taking it from the one that had it.
fn take_name(t: &rusqlite::Transaction<'_>, claim: &Claim, id: &str) -> banger_api::Result<Option<Freed>> {
    let before = check_claim(t, claim)?;
    if before.as_ref().is_some_and(|row| row.image == id) {
        return Ok(None);
    }
    store::put_name(t, &claim.name, &NameRow { image: id.to_owned(), reference: claim.reference.clone() })?;
    before.map(|row| drop_unused(t, &row.image)).transpose()
}

/// Deletes an image that neither a name nor a lease keeps.
pub(crate) fn drop_unused(t: &rusqlite::Transaction<'_>, id: &str) -> banger_api::Result<Freed> {
    match store::image(t, id)? {
        Some(image) if image.names.is_empty() && image.holders.is_empty() => delete(t, image.id),
        _ => Ok(Freed { image: id.to_owned(), deleted: false, blobs: Vec::new() }),
    }
}

fn delete(t: &rusqlite::Transaction<'_>, id: String) -> banger_api::Result<Freed> {
    let blobs = store::image_blobs(t, &id)?;
    store::delete_image(t, &id)?;
    Ok(Freed { image: id, deleted: true, blobs })
}

/// Finds an image; with the name if it was found by one.
pub(crate) fn find(
    t: &rusqlite::Transaction<'_>,
    wanted: &str,
) -> banger_api::Result<(ImageRow, Option<String>)> {
    let by_name = |name: &str| -> banger_api::Result<Option<(ImageRow, Option<String>)>> {
        let Some(row) = store::name(t, name)? else { return Ok(None) };
        Ok(store::image(t, &row.image)?.map(|image| (image, Some(name.to_owned()))))
    };
    if let Some(found) = by_name(wanted)? {
        return Ok(found);
    }
    if let Ok(reference) = wanted.parse::<Reference>()
        && let Some(found) = by_name(&reference.to_string())?
    {
        return Ok(found);
    }
    let digits = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    if (4..=64).contains(&digits.len())
        && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    {
        match &store::image_ids_by_prefix(t, digits)?[..] {
            [id] => {
                if let Some(image) = store::image(t, id)? {
                    return Ok((image, None));
                }
            }
            [] => {}
            _ => return Err(Error::Ambiguous(wanted.to_owned()).into()),
        }
    }
    Err(Error::NoSuchImage(wanted.chars().take(300).collect()).into())
}

/// Names are shown, logged and typed, so they are kept to what references are made of.
fn check_name(name: &str) -> Result<()> {
    let fine = (1..=255).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:/@+[]".contains(&byte))
        // It would be found in place of an image of this id.
        && !digest::is_hex64(name);
    if fine { Ok(()) } else { Err(Error::BadName(name.chars().take(300).collect())) }
}

fn check_platform(os: &str, architecture: &str, wish: &Platform, reference: &Reference) -> Result<()> {
    let same = |found: &str, wanted: &str| found.is_empty() || found == wanted;
    if same(os, &wish.os) && same(architecture, &wish.architecture) {
        return Ok(());
    }
    Err(Error::NoSuchPlatform {
        image: reference.to_string(),
        platform: wish.to_string(),
        offers: format!("{os}/{architecture}"),
    })
}

fn check_diff_ids(indexes: &[LayerIndex], config: &Config) -> Result<()> {
    for (layer, (index, wanted)) in indexes.iter().zip(&config.rootfs.diff_ids).enumerate() {
        let found = format!("sha256:{}", index.diff_id);
        if found != *wanted {
            return Err(Error::DigestMismatch {
                what: format!("layer {layer}, unpacked,"),
                wanted: wanted.clone(),
                found,
            });
        }
    }
    Ok(())
}

fn open_layer(
    blobs: &crate::blobs::Blobs,
    layer: &Layer,
    number: usize,
    cancel: &Cancel,
    read: &Arc<AtomicU64>,
) -> Result<Box<dyn std::io::Read + Send>> {
    let file = match layer {
        Layer::Blob(hex) => blobs.open(hex)?,
        Layer::File(file) => rewound(file)?,
    };
    decompress(Source::new(file, cancel.clone(), read.clone()))
        .map_err(|error| index::explain(error.into(), number))
}

/// The same open file from its beginning. Its passes come one after the other, so they may share
/// the offset.
fn rewound(file: &File) -> Result<File> {
    let failed = || Error::io("cannot read the file again");
    let mut again = file.try_clone().map_err(failed())?;
    again.seek(SeekFrom::Start(0)).map_err(failed())?;
    Ok(again)
}

/// A file that can be read twice: the one given, or a copy in staging that has no name.
pub(crate) fn spool(file: File, files: &Files, limit: u64, cancel: &Cancel) -> Result<File> {
    let unreadable =
        |error: std::io::Error| Error::Unreadable { what: "the file".into(), reason: error.to_string() };
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(Error::Unreadable {
            what: "the file".into(),
            reason: "it is a directory; give its path".into(),
        });
    }
    if metadata.is_file() {
        return Ok(file);
    }
    let (mut copy, path) = files.temporary()?;
    crate::files::remove(&path);
    let mut source = std::io::Read::take(Source::new(file, cancel.clone(), Arc::default()), limit + 1);
    let count = std::io::copy(&mut source, &mut copy).map_err(Error::io("cannot store what comes in"))?;
    if count > limit {
        return Err(Error::TooLarge(format!("it has more than {limit} bytes")));
    }
    Ok(copy)
}

/// Whether the archive is that of an OCI layout rather than of a root filesystem.
fn is_layout(index: &LayerIndex) -> bool {
    let has = |name: &str| {
        index.entries.iter().any(|entry| {
            let path = entry.path.strip_prefix(b"./").unwrap_or(&entry.path);
            entry.kind == Kind::File && path == name.as_bytes()
        })
    };
    has("oci-layout") && has("index.json")
}

/// Takes an OCI layout out of its archive: only files with the names a layout has.
fn unpack_layout(file: &File, staged: Staged, limits: &Limits, cancel: Cancel) -> Result<Staged> {
    let explain = |error| index::explain(error, 0);
    let stream =
        decompress(Source::new(rewound(file)?, cancel, Arc::default())).map_err(|e| explain(e.into()))?;
    let mut tar = TarReader::new(stream);
    let blobs = staged.path().join("blobs/sha256");
    std::fs::create_dir_all(&blobs).map_err(Error::io("cannot make a directory"))?;
    let mut buffer = vec![0; 128 << 10];
    while let Some(entry) = tar.next_entry().map_err(explain)? {
        let path =
            String::from_utf8_lossy(entry.path.strip_prefix(b"./").unwrap_or(&entry.path)).into_owned();
        let target = match path.strip_prefix("blobs/sha256/") {
            Some(hex) if digest::is_hex64(hex) => blobs.join(hex),
            None if path == "index.json" => staged.path().join("index.json"),
            _ => continue,
        };
        if entry.kind != Kind::File || entry.size > limits.blob {
            continue;
        }
        crate::files::remove(&target);
        let mut out = create(&target)?;
        loop {
            match tar.read(&mut buffer).map_err(explain)? {
                0 => break,
                got => std::io::Write::write_all(&mut out, &buffer[..got])
                    .map_err(Error::io("cannot store a blob"))?,
            }
        }
    }
    Ok(staged)
}

/// Manifest, its digest, and config of the one image in a layout that fits the platform.
fn read_layout(layout: &Path, platform: &Platform, limits: &Limits) -> Result<(Manifest, String, Config)> {
    let what = layout.display().to_string();
    let read = |path: &Path| -> Result<Vec<u8>> {
        let unreadable = |error: std::io::Error| Error::Unreadable {
            what: path.display().to_string(),
            reason: format!("{error}; an OCI layout has index.json and blobs/sha256"),
        };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(unreadable)?;
        std::io::Read::read_to_end(&mut std::io::Read::take(file, limits.document + 1), &mut bytes)
            .map_err(unreadable)?;
        if bytes.len() as u64 > limits.document {
            return Err(Error::TooLarge(format!(
                "{} has more than {} bytes",
                path.display(),
                limits.document
            )));
        }
        Ok(bytes)
    };
    let blob = |descriptor: &Descriptor| -> Result<Vec<u8>> {
        let bytes = read(&layout.join("blobs/sha256").join(descriptor.hex()))?;
        let found = format!("sha256:{}", digest::sha256(&bytes));
        if found != descriptor.digest {
            return Err(Error::DigestMismatch {
                what: what.clone(),
                wanted: descriptor.digest.clone(),
                found,
            });
        }
        Ok(bytes)
    };
    let mut bytes = read(&layout.join("index.json"))?;
    let mut digest = String::new();
    // index.json, perhaps an index of platforms, the manifest.
    for _ in 0..3 {
        match Document::parse(&bytes, limits)? {
            Document::Manifest(manifest) if !digest.is_empty() => {
                let config = Config::parse(&blob(&manifest.config)?, manifest.layers.len())?;
                return Ok((manifest, digest, config));
            }
            Document::Manifest(_) => break,
            Document::Index(offers) => {
                if offers.len() > 1 && offers.iter().all(|offer| offer.platform.is_none()) {
                    return Err(Error::BadArgument(format!(
                        "{what} holds {} images; make a layout of one, as `skopeo copy oci:{what}:TAG oci:OTHER` does",
                        offers.len()
                    )));
                }
                let chosen = Document::choose(&offers, platform, &what)?;
                bytes = blob(chosen)?;
                digest = chosen.digest.clone();
            }
        }
    }
    Err(Error::InvalidManifest(format!("{what} leads to no manifest")))
}

fn open_blob(dir: &Path, blob: &Descriptor) -> Result<File> {
    let path = dir.join(blob.hex());
    File::open(&path)
        .map_err(|error| Error::Unreadable { what: path.display().to_string(), reason: error.to_string() })
}

pub(crate) fn create(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o640)
        .open(path)
        .map_err(Error::io(format!("cannot make {}", path.display())))
}

pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = create(path)?;
    std::io::Write::write_all(&mut file, bytes).map_err(Error::io(format!("cannot write {}", path.display())))
}

struct HashSink<'a>(&'a mut Sha256);

impl std::io::Write for HashSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
