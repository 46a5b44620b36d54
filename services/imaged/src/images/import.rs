//! Images from files.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use banger_api::ImageSettings;
use banger_daemon::failpoint;

use super::build::{Layer, Making, check_diff_ids};
use super::disk::{self, Content};
use super::docker::{self, Saved};
use super::filesystem::{self, Gone};
use super::publish::Claim;
use super::{bundle, layout};
use crate::digest;
use crate::error::{Error, Result};
use crate::files::{is_regular, open_given, private_copy, remove};
use crate::kernel::{self, KernelOptions, KernelSource, NewKernel};
use crate::layers::LayerIndex;
use crate::layers::stream::{Cancel, Source};
use crate::progress::{Progress, watched};
use crate::registry::manifest::{Process, RootFs};
use crate::registry::{Config, Descriptor, Manifest, Platform};
use crate::service::{Service, blocking};
use crate::store::ImageRow;
use crate::trust::Claims;

/// What an import may be told beside the name.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    pub claims: Claims,
    /// Of a disk: which partition has the root filesystem.
    pub partition: Option<u32>,
    /// An image whose environment, command, user and so on the new one gets, if it says nothing of them.
    pub like: Option<String>,
    /// It is an archive of a root filesystem, whatever is in it, and whole only with its end.
    pub root: bool,
    /// Take the name from the image that has it.
    pub replace: bool,
    /// What it is to say of programs instead.
    pub settings: ImageSettings,
    /// The kernel that comes with it.
    pub kernel: Option<Arc<NewKernel>>,
}

/// What is known of an image beside its root filesystem.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    pub process: Process,
    /// Of VMs that name none; empty for the default one.
    pub kernel: String,
}

impl Service {
    /// Imports a file: an archive (tar, compressed or not) of a root filesystem, of an OCI layout, of
    /// `docker save`, or a bundle; a filesystem (squashfs, erofs, ext4); a disk with one (raw, qcow2).
    pub async fn import_file(
        &self,
        file: File,
        name: &str,
        options: ImportOptions,
        progress: &dyn Progress,
    ) -> Result<ImageRow> {
        let claim = Claim { kernel: options.kernel, ..Claim::new(name, "")?.replacing(options.replace) };
        self.check_claim(&claim).await?;
        let mut told = match &options.like {
            Some(image) => {
                let image = self.image(image).await?;
                Told { process: image.process.with(&options.settings), kernel: image.kernel }
            }
            None => Told { process: Process::default().with(&options.settings), ..Told::default() },
        };
        if let Some(kernel) = &claim.kernel {
            told.kernel = kernel.name().to_owned();
        }
        progress.stage("read");
        let making = Making::new(self, progress);
        let read = Arc::new(AtomicU64::new(0));
        let held = self.hold(file, &options.claims, &making.cancel, &read);
        let (file, copy) = watched(progress, &read, 0, held).await?;
        let is_ours = copy.is_some();
        if options.root {
            let file = self.own(file, is_ours, &making.cancel).await?;
            return self.import_root_archive(file, told, claim, &making, progress).await;
        }
        let file = match (disk::content(&file).map_err(Error::io("cannot read the file"))?, &copy) {
            (Content::Qcow2, Some(copy)) => self.unpack_qcow2(&copy.0, progress).await?,
            _ => file,
        };
        drop(copy);
        match filesystem::find(&file, options.partition)? {
            Some(place) => self.import_filesystem(file, place, told, claim, progress).await,
            None => {
                let file = self.own(file, is_ours, &making.cancel).await?;
                self.import_archive(file, told, &options.settings, claim, &making, progress).await
            }
        }
    }

    /// A file that can be read as often as needed and is what was claimed, and where it is if it is a copy
    /// of ours. What is no regular file (a pipe) is copied, for it has to be read twice; and what is looked
    /// at before it is used, for it must not change in between.
    async fn hold(
        &self,
        file: File,
        claims: &Claims,
        cancel: &Cancel,
        read: &Arc<AtomicU64>,
    ) -> Result<(File, Option<Gone>)> {
        let (files, limit) = (self.0.files.clone(), self.0.settings.limits.blob);
        let (claims, policy, cancel) = (claims.clone(), self.0.settings.trust.clone(), cancel.clone());
        let read = read.clone();
        blocking(move || {
            let is_checked = !claims.are_idle(&policy)
                || disk::content(&file).is_ok_and(|content| content == Content::Qcow2);
            if is_regular(&file)? && !is_checked {
                return Ok((file, None));
            }
            let (file, path) = private_copy(file, &files, limit, &cancel, &read)?;
            let copy = Gone(path);
            if is_checked {
                claims.check(&file, &policy)?;
            }
            Ok((file, Some(copy)))
        })
        .await
    }

    /// A file for what is read more than once and relied on to be the same each time, as an archive: a copy,
    /// if others can change the one that there is.
    async fn own(&self, file: File, is_ours: bool, cancel: &Cancel) -> Result<File> {
        if is_ours {
            return Ok(file);
        }
        let (files, cancel) = (self.0.files.clone(), cancel.clone());
        blocking(move || {
            // What it may hold is judged when it is read.
            let (file, path) = private_copy(file, &files, u64::MAX, &cancel, &Arc::default())?;
            remove(&path);
            Ok(file)
        })
        .await
    }

    async fn import_root_archive(
        &self,
        file: File,
        told: Told,
        claim: Claim,
        making: &Making<'_>,
        progress: &dyn Progress,
    ) -> Result<ImageRow> {
        let file = Arc::new(file);
        let (indexed, size) = index_file(&file, making, progress).await?;
        if !indexed.ended {
            return Err(Error::InvalidLayer {
                layer: 0,
                entry: String::new(),
                reason: "the archive was cut off: it has no end".into(),
            });
        }
        self.import_root(Layer::File(file), indexed, size, told, claim, making, progress).await
    }

    async fn import_archive(
        &self,
        file: File,
        told: Told,
        settings: &ImageSettings,
        claim: Claim,
        making: &Making<'_>,
        progress: &dyn Progress,
    ) -> Result<ImageRow> {
        let file = Arc::new(file);
        let (indexed, size) = index_file(&file, making, progress).await?;
        let (files, limits) = (self.0.files.clone(), self.0.settings.limits.clone());
        let cancel = making.cancel.clone();
        if claim.kernel.is_some() && (layout::is_layout(&indexed) || docker::is_saved(&indexed)) {
            return Err(Error::BadArgument(
                "the file has no root filesystem but layers: import it and the kernel, and choose that with `banger image set`"
                    .into(),
            ));
        }
        if !settings.is_empty() && (layout::is_layout(&indexed) || docker::is_saved(&indexed)) {
            return Err(not_to_be_changed());
        }
        if layout::is_layout(&indexed) {
            let staged = self.0.files.stage()?;
            let staged = blocking(move || layout::unpack(&file, staged, &limits, cancel)).await?;
            failpoint!("layout.unpacked");
            return self.import_layout(staged.path(), claim, progress).await;
        }
        if docker::is_saved(&indexed) {
            let entries = indexed.headers;
            let saved = blocking(move || docker::unpack(&file, entries, &files, &limits, &cancel)).await?;
            return self.import_saved(saved, claim, making, progress).await;
        }
        if bundle::is_bundle(&indexed) {
            let (manifest, root) = blocking(move || bundle::unpack(&file, &files, &limits, &cancel)).await?;
            let told = Told { process: manifest.config.with(settings), kernel: told.kernel };
            Platform::host().check("the file", "linux", &manifest.architecture)?;
            return self.import_bundle(root, told, claim, making, progress).await;
        }
        self.import_root(Layer::File(file), indexed, size, told, claim, making, progress).await
    }

    async fn import_saved(
        &self,
        saved: Saved,
        claim: Claim,
        making: &Making<'_>,
        progress: &dyn Progress,
    ) -> Result<ImageRow> {
        let config = Config::parse(&saved.config, saved.layers.len())?;
        Platform::host().check("the file", &config.os, &config.architecture)?;
        let id = digest::sha256(&saved.config);
        let _build = self.0.builds.lock(&format!("image {id}")).await;
        if let Some(image) = self.claim_existing(&id, &claim).await? {
            return Ok(image);
        }
        let (mut indexes, mut size) = (Vec::new(), 0);
        for (number, layer) in saved.layers.iter().enumerate() {
            size += layer.metadata().map_err(Error::io("cannot look at a layer"))?.len();
            indexes.push(making.index(Layer::File(layer.clone()), number, Arc::default()).await?);
        }
        check_diff_ids(&indexes, &config)?;
        let layers = saved.layers.into_iter().map(Layer::File).collect();
        let built = making.build(&id, &config, indexes, layers, size).await?;
        self.publish(&Arc::new(built), &claim, progress).await
    }

    async fn import_bundle(
        &self,
        root: File,
        told: Told,
        claim: Claim,
        making: &Making<'_>,
        progress: &dyn Progress,
    ) -> Result<ImageRow> {
        if let Some(place) = filesystem::find(&root, None)? {
            return self.import_filesystem(root, place, told, claim, progress).await;
        }
        let size = root.metadata().map_err(Error::io("cannot look at the file"))?.len();
        let layer = Layer::File(Arc::new(root));
        let indexed = making.index(layer.clone(), 0, Arc::default()).await?;
        self.import_root(layer, indexed, size, told, claim, making, progress).await
    }

    /// Imports a root filesystem and the kernel of its VMs, both or nothing.
    pub async fn register_image(
        &self,
        rootfs: File,
        name: &str,
        options: ImportOptions,
        kernel: (KernelSource, KernelOptions),
        progress: &dyn Progress,
    ) -> Result<ImageRow> {
        let claim = Claim::new(name, "")?.replacing(options.replace);
        self.check_claim(&claim).await?;
        let (source, mut given) = kernel;
        if given.name.is_empty() {
            given.name = kernel::name_like(name);
        }
        let kernel = self.prepare_kernel(source, given, progress).await?;
        let options = ImportOptions { kernel: Some(Arc::new(kernel)), ..options };
        self.import_file(rootfs, name, options, progress).await
    }

    /// Imports by path: a file as [`Service::import_file`], or the directory of an OCI layout.
    pub async fn import_path(
        &self,
        path: &Path,
        name: &str,
        options: ImportOptions,
        progress: &dyn Progress,
    ) -> Result<ImageRow> {
        let file = open_path(path).await?;
        if !file.metadata().map_err(Error::io("cannot look at the file"))?.is_dir() {
            return self.import_file(file, name, options, progress).await;
        }
        if !options.claims.are_idle(&self.0.settings.trust) {
            return Err(Error::Untrusted("a directory cannot be verified: import an archive of it".into()));
        }
        if !options.settings.is_empty() {
            return Err(not_to_be_changed());
        }
        let claim = Claim::new(name, "")?.replacing(options.replace);
        self.check_claim(&claim).await?;
        self.import_layout(path, claim, progress).await
    }

    /// Makes an image of one layer of this machine's architecture, whose id comes from its content.
    #[allow(clippy::too_many_arguments)]
    async fn import_root(
        &self,
        layer: Layer,
        indexed: LayerIndex,
        size: u64,
        told: Told,
        claim: Claim,
        making: &Making<'_>,
        progress: &dyn Progress,
    ) -> Result<ImageRow> {
        let config = Config {
            architecture: Platform::host().architecture,
            os: "linux".into(),
            config: told.process,
            rootfs: RootFs { diff_ids: vec![format!("sha256:{}", indexed.diff_id)] },
            ..Config::default()
        };
        let id = digest::sha256(&serde_json::to_vec(&config).map_err(banger_api::Error::internal)?);
        let _build = self.0.builds.lock(&format!("image {id}")).await;
        if let Some(image) = self.claim_existing(&id, &claim).await? {
            return Ok(image);
        }
        let mut built = making.build(&id, &config, vec![indexed], vec![layer], size).await?;
        built.image.kernel = told.kernel;
        self.publish(&Arc::new(built), &claim, progress).await
    }

    async fn import_layout(&self, dir: &Path, claim: Claim, progress: &dyn Progress) -> Result<ImageRow> {
        progress.stage("read");
        let (limits, from) = (self.0.settings.limits.clone(), dir.to_owned());
        let (manifest, digest, config) =
            blocking(move || layout::read(&from, &Platform::host(), &limits)).await?;
        let id = digest::id(&digest);
        let pins = self.guard(self.0.blobs.pin(manifest.hexes().chain(manifest.documents(&id))));
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
        for name in manifest.documents(id) {
            let size = layout::blob_size(dir, &name)?;
            self.import_blob(dir, &Descriptor::of(&name, size), &making).await?;
        }
        let layers = manifest.hexes().map(Layer::Blob).collect();
        let built = making.build(id, config, indexes, layers, manifest.size()).await?;
        let built = built.keeping(manifest.documents(id));
        self.publish(&Arc::new(built), &claim, progress).await
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

/// What is in an archive, and its size.
async fn index_file(
    file: &Arc<File>,
    making: &Making<'_>,
    progress: &dyn Progress,
) -> Result<(LayerIndex, u64)> {
    let size = file.metadata().map_err(Error::io("cannot look at the file"))?.len();
    let read = Arc::new(AtomicU64::new(0));
    let indexed = making.index(Layer::File(file.clone()), 0, read.clone());
    Ok((watched(progress, &read, size, indexed).await?, size))
}

/// Opens a file or a directory of somebody's.
pub(crate) async fn open_path(path: &Path) -> Result<File> {
    if !path.is_absolute() {
        return Err(Error::BadArgument(format!("the path {} is not absolute", path.display())));
    }
    let path = path.to_owned();
    blocking(move || open_given(&path)).await
}

/// The id of an image of layers comes from what its file says.
fn not_to_be_changed() -> Error {
    Error::BadArgument(
        "the file says by itself what is to be run in the image: import it, then use DeriveImage (banger image derive)"
            .into(),
    )
}
