//! Names of images, and the moment an image is there.
//!
//! What happens in which order, and what is there after a crash or a loss of power in between:
//!
//! 1. The files in staging are synced, then the staging directory: nothing; staging is emptied at start.
//! 2. In the transaction, the directory is renamed to its place and the directory around it synced:
//!    files without a row, which the next start throws away.
//! 3. The rows are committed, which SQLite syncs: the whole image.
//!
//! Removal is the same backwards: rows first, then the files are renamed to staging, then removed.

use std::sync::Arc;

use banger_core::event::Event as Happened;
use banger_daemon::event::note;
use banger_daemon::failpoint;

use super::build::Built;
use super::{Freed, drop_unused, find};
use crate::digest;
use crate::error::{Error, Result};
use crate::files::{Files, Staged};
use crate::kernel::NewKernel;
use crate::progress::Progress;
use crate::service::{Event, Service, discard};
use crate::store::{self, ImageRow, NameRow};

/// A name for an image, and where the image comes from if it was pulled.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub name: String,
    /// Empty for an import. Only the same reference may move a name to other content.
    pub reference: String,
    /// Take it from whatever image has it.
    pub replace: bool,
    /// Comes with the image, in the same moment, and is that of its VMs.
    pub kernel: Option<Arc<NewKernel>>,
}

impl Claim {
    /// # Errors
    /// If no image may have this name.
    pub fn new(name: impl Into<String>, reference: impl Into<String>) -> Result<Self> {
        let (name, reference) = (name.into(), reference.into());
        check_name(&name)?;
        Ok(Self { name, reference, replace: false, kernel: None })
    }

    pub fn replacing(self, replace: bool) -> Self {
        Self { replace, ..self }
    }
}

impl Service {
    /// Fails early if the name cannot be had. What counts is the look in [`Service::publish`].
    pub(super) async fn check_claim(&self, claim: &Claim) -> Result<()> {
        let claim = claim.clone();
        Ok(self.0.store.transact(move |t| check_claim(t, &claim).map(drop)).await?)
    }

    /// Gives an image that is there the name. `None`: it is not there.
    pub(super) async fn claim_existing(&self, id: &str, claim: &Claim) -> Result<Option<ImageRow>> {
        let (key, claim) = (id.to_owned(), claim.clone());
        let claimed = self
            .0
            .store
            .transact(move |t| {
                if store::image(t, &key)?.is_none() {
                    return Ok(None);
                }
                check_no_kernel(t, &claim, &key)?;
                let taken = take_name(t, &claim, &key)?;
                Ok(store::image(t, &key)?.map(|image| (image, claim.name, taken)))
            })
            .await?;
        let Some((image, name, taken)) = claimed else { return Ok(None) };
        if taken.is_new {
            note(&Happened::ImageTagged { image: &name, id: &image.id });
        }
        self.touch(Event::Image(image.id.clone())).await;
        self.moved(taken.freed).await?;
        Ok(Some(image))
    }

    /// Gives an image one more name. Another image only loses the name if `replace` says so.
    pub async fn tag_image(&self, wanted: &str, name: &str, replace: bool) -> Result<ImageRow> {
        check_name(name)?;
        let (wanted, name, presets) = (wanted.to_owned(), name.to_owned(), self.0.settings.presets.clone());
        let given = name.clone();
        let (image, taken) = self
            .0
            .store
            .transact(move |t| {
                let (image, _) = find(t, &presets, &wanted)?;
                let before = store::name(t, &name)?;
                // A name that a pull gave goes on following its reference.
                if before.as_ref().is_some_and(|row| row.image == image.id) {
                    return Ok((image, Taken::default()));
                }
                if before.is_some() && !replace {
                    return Err(Error::NameTaken(name).into());
                }
                store::put_name(t, &name, &NameRow { image: image.id.clone(), reference: String::new() })?;
                let freed = before.map(|row| drop_unused(t, &row.image)).transpose()?;
                Ok((store::image(t, &image.id)?.unwrap_or(image), Taken { is_new: true, freed }))
            })
            .await?;
        failpoint!("name.moved");
        if taken.is_new {
            note(&Happened::ImageTagged { image: &given, id: &image.id });
        }
        self.touch(Event::Image(image.id.clone())).await;
        self.moved(taken.freed).await?;
        Ok(image)
    }

    /// Puts what was built in its place, unless somebody who waited for the same has done so, and
    /// gives it the name.
    pub(super) async fn publish(
        &self,
        built: &Arc<Built>,
        claim: &Claim,
        progress: &dyn Progress,
    ) -> Result<ImageRow> {
        progress.stage("publish");
        failpoint!("publish.synced");
        let (files, built, claim) = (self.0.files.clone(), built.clone(), claim.clone());
        let kernel = claim.kernel.as_ref().map(|kernel| kernel.name().to_owned());
        let (id, name) = (built.image.id.clone(), claim.name.clone());
        let published = self
            .0
            .store
            .transact(move |t| {
                check_claim(t, &claim)?;
                check_no_kernel(t, &claim, &built.image.id)?;
                let kernel = claim.kernel.as_ref().map(|kernel| kernel.install(t, &files)).transpose()?;
                let is_new = store::image(t, &built.image.id)?.is_none();
                let trash = if is_new { put_in_place(t, &files, &built)? } else { None };
                let taken = take_name(t, &claim, &built.image.id)?;
                failpoint!(blocking "publish.rows");
                let image = store::image(t, &built.image.id)?.unwrap_or_else(|| built.image.clone());
                Ok((image, is_new, taken, (trash, kernel.flatten())))
            })
            .await;
        failpoint!("publish.done");
        let (image, is_new, taken, trash) = match published {
            Ok(published) => published,
            Err(error) => {
                // What is to be told is why it was not published.
                if let Err(second) = self.sweep(&id).await {
                    tracing::warn!(image = name, "cannot remove what is left of image {id}: {second}");
                }
                if let Some(kernel) = kernel
                    && let Err(second) = self.sweep_kernel(&kernel).await
                {
                    tracing::warn!(kernel, "cannot remove what is left of it: {second}");
                }
                return Err(error.into());
            }
        };
        if let Some(kernel) = &kernel {
            note(&Happened::KernelPublished { kernel });
        }
        match (is_new, taken.is_new) {
            (true, _) => note(&Happened::ImagePublished { image: &name, id: &image.id }),
            (false, true) => note(&Happened::ImageTagged { image: &name, id: &image.id }),
            (false, false) => {}
        }
        discard(trash).await?;
        if let Some(kernel) = kernel {
            self.touch(Event::Kernel(kernel)).await;
        }
        self.touch(Event::Image(image.id.clone())).await;
        self.moved(taken.freed).await?;
        Ok(image)
    }

    /// After a name went from one image to another: the other may be gone now.
    pub(super) async fn moved(&self, freed: Option<Freed>) -> Result<()> {
        if let Some(freed) = freed {
            self.touch(Event::Image(freed.image.clone())).await;
            if freed.deleted {
                note(&Happened::ImageDeleted { id: &freed.image });
                failpoint!("remove.rows");
                self.sweep(&freed.image).await?;
                failpoint!("remove.files");
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
        discard(trash).await
    }
}

/// Files without a row are what a removal has not got to yet; they are returned, to be dropped.
fn put_in_place(
    t: &rusqlite::Transaction<'_>,
    files: &Files,
    built: &Built,
) -> banger_api::Result<Option<Staged>> {
    // Somebody who waited for the same has published it, and it was removed since.
    if !built.staged.path().exists() {
        return Err(Error::NoSuchImage(built.image.id.clone()).into());
    }
    if !built.image.kernel.is_empty() {
        crate::kernel::find(t, &built.image.kernel)?;
    }
    let target = files.image(&built.image.id);
    let trash = files.withdraw(&target)?;
    built.staged.publish(&target)?;
    failpoint!(blocking "publish.renamed");
    store::insert_image(t, &built.image, &built.blobs)?;
    Ok(trash)
}

/// Whether the claim may have its name: `Some` with the image that has it now.
fn check_claim(t: &rusqlite::Transaction<'_>, claim: &Claim) -> banger_api::Result<Option<NameRow>> {
    let Some(row) = store::name(t, &claim.name)? else { return Ok(None) };
    let is_same = !claim.reference.is_empty() && row.reference == claim.reference;
    if !is_same && !claim.replace {
        return Err(Error::NameTaken(claim.name.clone()).into());
    }
    Ok(Some(row))
}

/// An image has one kernel, whatever names it has, and nobody asked those who use it.
fn check_no_kernel(t: &rusqlite::Transaction<'_>, claim: &Claim, id: &str) -> banger_api::Result<()> {
    match store::image(t, id)? {
        Some(image) if claim.kernel.is_some() => Err(Error::BadArgument(format!(
            "the root filesystem is there already, as {}: import the kernel (banger kernel import), and choose it with `banger image set`",
            image.name()
        ))
        .into()),
        _ => Ok(()),
    }
}

/// What became of a name that an image was to have.
#[derive(Debug, Default)]
struct Taken {
    /// The image did not have it before.
    is_new: bool,
    /// The image that had it.
    freed: Option<Freed>,
}

/// Gives the name to the image, taking it from the one that had it.
fn take_name(t: &rusqlite::Transaction<'_>, claim: &Claim, id: &str) -> banger_api::Result<Taken> {
    let before = check_claim(t, claim)?;
    if before.as_ref().is_some_and(|row| row.image == id) {
        return Ok(Taken::default());
    }
    store::put_name(t, &claim.name, &NameRow { image: id.to_owned(), reference: claim.reference.clone() })?;
    let freed = before.map(|row| drop_unused(t, &row.image)).transpose()?;
    Ok(Taken { is_new: true, freed })
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
