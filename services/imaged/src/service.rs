//! What images and kernels share: the database, the files, and how the bus is told of changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_daemon::{Locks, Store};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::blobs::{Blobs, Pins};
use crate::error::{Error, Result};
use crate::files::{self, Files};
use crate::images::Images;
use crate::limits::Limits;
use crate::presets::Presets;
use crate::registry::Host;
use crate::store;
use crate::trust::Policy;

/// Layers that are decompressed at a time. Each takes a core and up to 32 MiB.
const UNPACKS: usize = 2;

/// Where this service finds things.
#[derive(Debug, Clone)]
pub struct Settings {
    pub state_dir: PathBuf,
    /// The guest's agent, which goes into every initramfs.
    pub agent: PathBuf,
    /// What this host says of registries.
    pub host: Host,
    /// Layers that are fetched at a time, of all pulls together.
    pub downloads: usize,
    pub trust: Policy,
    pub presets: Arc<Presets>,
    pub limits: Limits,
}

/// Something changed; look it up to see how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Image(String),
    Kernel(String),
}

pub type Events = mpsc::UnboundedReceiver<(Event, oneshot::Sender<()>)>;

/// Images and kernels. Cheap to clone.
#[derive(Clone)]
pub struct Service(pub(crate) Arc<Inner>);

pub struct Inner {
    pub settings: Settings,
    pub store: Store,
    pub files: Files,
    pub blobs: Blobs,
    /// Images being pulled.
    pub(crate) pulls: Images,
    /// One build of an image, and one of a kernel's initramfs, at a time.
    pub builds: Locks,
    pub unpacks: Semaphore,
    events: mpsc::UnboundedSender<(Event, oneshot::Sender<()>)>,
}

impl Service {
    /// Opens the state directory and puts it in order: what an earlier run was killed in the middle
    /// of is gone, or whole, afterwards.
    ///
    /// # Errors
    /// If the directory or the database cannot be used.
    pub async fn open(settings: Settings) -> Result<(Self, Events)> {
        let files = Files::open(&settings.state_dir)?;
        let store = Store::open(&settings.state_dir.join("imaged.db"), store::MIGRATIONS)?;
        let (events, receiver) = mpsc::unbounded_channel();
        let service = Self(Arc::new(Inner {
            blobs: Blobs::new(files.clone(), settings.downloads),
            settings,
            store,
            files,
            pulls: Images::default(),
            builds: Locks::default(),
            unpacks: Semaphore::new(UNPACKS),
            events,
        }));
        service.reconcile().await?;
        Ok((service, receiver))
    }

    /// Files without a row were never acknowledged, or are no longer wanted: they go. A row without
    /// files is a fault from outside; it goes as well, unless a VM holds it, which is then told
    /// when it starts.
    async fn reconcile(&self) -> Result<()> {
        let Inner { files, blobs, store, .. } = &*self.0;
        let (files, blobs) = (files.clone(), blobs.clone());
        let trash = store
            .transact(move |t| {
                let mut trash = Vec::new();
                for id in files::list(&files.images)? {
                    if store::image(t, &id)?.is_none() {
                        trash.extend(files.withdraw(&files.image(&id))?);
                    }
                }
                for name in files::list(&files.kernels)? {
                    if name.is_empty() || store::kernel(t, &name)?.is_none() {
                        trash.extend(files.withdraw(&files.kernel(&name))?);
                    }
                }
                for image in store::images(t)? {
                    if !files.image(&image.id).join(crate::images::rootfs_name(&image.fstype)).exists() {
                        tracing::error!(image = image.name(), "its files are gone; pull it again");
                        if image.holders.is_empty() {
                            store::delete_names_of(t, &image.id)?;
                            store::delete_image(t, &image.id)?;
                        }
                    }
                }
                for kernel in store::kernels(t)? {
                    if !files.kernel(&kernel.name).exists() {
                        tracing::error!(kernel = kernel.name, "its files are gone; import it again");
                        if kernel.holders.is_empty() {
                            store::delete_kernel(t, &kernel.name)?;
                        }
                    }
                }
                let used = store::used_blobs(t)?;
                blobs.collect::<banger_api::Error>(None, |blob| Ok(used.contains(blob)))?;
                Ok(trash)
            })
            .await?;
        discard(trash).await
    }

    /// Tells the bus, and returns once it knows, so that a reply never comes before the object it
    /// speaks of.
    pub(crate) async fn touch(&self, event: Event) {
        let (done, told) = oneshot::channel();
        if self.0.events.send((event, done)).is_ok() {
            let _ = told.await;
        }
    }

    /// Removes blobs that nobody needs any more.
    pub(crate) async fn collect(&self, candidates: Vec<String>) -> Result<()> {
        let blobs = self.0.blobs.clone();
        let work = move |t: &rusqlite::Transaction<'_>| {
            blobs.collect(Some(candidates), |blob| store::is_blob_used(t, blob))
        };
        Ok(self.0.store.transact(work).await?)
    }

    pub(crate) fn guard(&self, pins: Pins) -> PinGuard {
        PinGuard { service: self.clone(), pins: Some(pins) }
    }

    pub fn state_dir(&self) -> &Path {
        &self.0.settings.state_dir
    }
}

/// Pins that are given back, and their blobs collected, however the work on them ends.
pub(crate) struct PinGuard {
    service: Service,
    pins: Option<Pins>,
}

impl PinGuard {
    pub async fn release(mut self) -> Result<()> {
        match self.pins.take() {
            Some(pins) => release(&self.service, pins).await,
            None => Ok(()),
        }
    }
}

async fn release(service: &Service, pins: Pins) -> Result<()> {
    let digests = pins.digests();
    drop(pins);
    service.collect(digests).await
}

impl Drop for PinGuard {
    fn drop(&mut self) {
        let Some(pins) = self.pins.take() else { return };
        let service = self.service.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = release(&service, pins).await {
                    tracing::warn!("cannot collect blobs: {error}");
                }
            });
        }
    }
}

/// Runs what would hold up the event loop beside it. What it logs is still for the job that it is done for.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work)).await.map_err(Error::from)?
}

/// Drops what removes files, which may take long, beside the event loop.
pub(crate) async fn discard<T: Send + 'static>(trash: T) -> Result<()> {
    blocking(move || {
        drop(trash);
        Ok(())
    })
    .await
}
