//! Images: pull, import, find, remove.
//!
//! Whatever takes long (network, unpacking, syncing) holds no lock that another image would need.
//! Publication is one database transaction: the name is looked at again, the finished and synced
//! directory is renamed into its place, the rows are written. Two that race to one name meet there
//! and the later one fails; its staging directory goes when it is dropped.

mod build;
mod bundle;
mod derive;
mod disk;
mod docker;
mod export;
mod filesystem;
mod import;
mod layout;
mod prune;
mod publish;
mod pull;
mod usage;
mod verify;

use banger_core::event::Event as Happened;
use banger_daemon::event::note;

use crate::error::{Error, Result};
use crate::presets::{Preset, Presets};
use crate::registry::Reference;
use crate::service::{Event, Service};
use crate::store::{self, ImageRow};

pub use export::Format;
pub use import::ImportOptions;
pub(crate) use import::open_path;
pub use prune::{Cost, Filter, Prune, Pruned};
pub(crate) use pull::Images;
pub use pull::PullOptions;
pub use usage::Usage;

/// The type of root filesystems that we make.
pub const FSTYPE: &str = "squashfs";

/// The root filesystem in an image's directory, by its type.
pub fn rootfs_name(fstype: &str) -> String {
    format!("rootfs.{fstype}")
}

/// An image that lost a name or a lease.
#[derive(Debug)]
pub(crate) struct Freed {
    pub image: String,
    pub deleted: bool,
    /// Blobs it named, if it was deleted.
    pub blobs: Vec<String>,
}

impl Service {
    /// What somebody means who wants to pull it.
    pub fn reference(&self, wanted: &str) -> Result<Reference> {
        Ok(self.0.settings.presets.reference(wanted)?)
    }

    /// Name, reference and description of each preset.
    pub fn presets(&self) -> Vec<(String, String, String)> {
        let row = |(name, preset): (&String, &Preset)| {
            (name.clone(), preset.image.to_string(), preset.description.clone())
        };
        self.0.settings.presets.iter().map(row).collect()
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
        let (wanted, presets) = (wanted.to_owned(), self.0.settings.presets.clone());
        Ok(self.0.store.transact(move |t| Ok(find(t, &presets, &wanted)?.0)).await?)
    }

    /// Removes a name, and the image with its last name. By id, all names go.
    pub async fn remove_image(&self, wanted: &str) -> Result<()> {
        let (wanted, presets) = (wanted.to_owned(), self.0.settings.presets.clone());
        let (freed, names) = self
            .0
            .store
            .transact(move |t| {
                let (image, name) = find(t, &presets, &wanted)?;
                let others = image.names.iter().filter(|other| name.as_ref() != Some(*other)).count();
                if let (Some(name), true) = (&name, others > 0) {
                    store::delete_name(t, name)?;
                    let freed = Freed { image: image.id, deleted: false, blobs: Vec::new() };
                    return Ok((freed, vec![name.clone()]));
                }
                if !image.holders.is_empty() {
                    let error = Error::ImageInUse { image: image.name().to_owned(), holders: image.holders };
                    return Err(error.into());
                }
                store::delete_names_of(t, &image.id)?;
                Ok((delete(t, image.id)?, image.names))
            })
            .await?;
        for name in &names {
            note(&Happened::ImageUntagged { image: name, id: &freed.image });
        }
        self.moved(Some(freed)).await
    }

    /// Chooses the kernel of an image's VMs; the empty name is the default one.
    pub async fn set_image_kernel(&self, wanted: &str, kernel: &str) -> Result<()> {
        let (wanted, kernel, presets) =
            (wanted.to_owned(), kernel.to_owned(), self.0.settings.presets.clone());
        let id = self
            .0
            .store
            .transact(move |t| {
                let (image, _) = find(t, &presets, &wanted)?;
                if !kernel.is_empty() {
                    crate::kernel::find(t, &kernel)?;
                }
                store::set_image_kernel(t, &image.id, &kernel)?;
                Ok(image.id)
            })
            .await?;
        self.touch(Event::Image(id)).await;
        Ok(())
    }

    pub(crate) async fn lease_released(&self, freed: Option<Freed>) -> Result<()> {
        self.moved(freed).await
    }
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
    presets: &Presets,
    wanted: &str,
) -> banger_api::Result<(ImageRow, Option<String>)> {
    let by_name = |name: &str| -> banger_api::Result<Option<(ImageRow, Option<String>)>> {
        let Some(row) = store::name(t, name)? else { return Ok(None) };
        Ok(store::image(t, &row.image)?.map(|image| (image, Some(name.to_owned()))))
    };
    if let Some(found) = by_name(wanted)? {
        return Ok(found);
    }
    if let Ok(reference) = presets.reference(wanted)
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
