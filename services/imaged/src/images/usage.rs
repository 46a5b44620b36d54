//! What images and kernels take of the disk, and making room.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use banger_api::ErrorKind;

use super::{Cost, Prune};
use crate::error::Result;
use crate::files::Files;
use crate::service::{Service, now_usec};
use crate::store::{self, ImageRow, KernelRow};

/// What something takes of the disk.
#[derive(Debug)]
pub struct Usage<Row> {
    pub row: Row,
    /// Bytes that would be free without it.
    pub own: u64,
    /// Bytes of blobs that other images have as well.
    pub shared: u64,
}

impl Service {
    pub async fn image_usage(&self) -> Result<Vec<Usage<ImageRow>>> {
        let files = self.0.files.clone();
        let usage = self.0.store.transact(move |t| {
            let images = store::images(t)?.into_iter();
            images.map(|image| image_usage(t, &files, image)).collect::<banger_api::Result<Vec<_>>>()
        });
        Ok(usage.await?)
    }

    pub async fn kernel_usage(&self) -> Result<Vec<Usage<KernelRow>>> {
        let kernels = self.kernels().await?.into_iter();
        let files = &self.0.files;
        Ok(kernels.map(|row| Usage { own: allocated(&files.kernel(&row.name)), row, shared: 0 }).collect())
    }

    /// Removes images that no VM uses, or only says which. One that is taken into use meanwhile stays.
    pub async fn prune_images(&self, prune: &Prune, dry_run: bool) -> Result<Vec<Cost>> {
        let costs = self.image_usage().await?.into_iter();
        let costs = costs.map(|usage| Cost { image: usage.row, bytes: usage.own }).collect();
        let mut plan = prune.plan(costs, now_usec());
        if dry_run {
            return Ok(plan);
        }
        let mut removed = Vec::new();
        for cost in plan.drain(..) {
            match self.remove_image(&cost.image.id).await {
                Ok(()) => removed.push(cost),
                // Somebody was faster.
                Err(error) if matches!(error.kind(), ErrorKind::ImageInUse | ErrorKind::NoSuchImage) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }
}

fn image_usage(
    t: &rusqlite::Transaction<'_>,
    files: &Files,
    row: ImageRow,
) -> banger_api::Result<Usage<ImageRow>> {
    let (mut own, mut shared) = (allocated(&files.image(&row.id)), 0);
    for (digest, is_shared) in store::shared_blobs(t, &row.id)? {
        let bytes = allocated(&files.blob(&digest));
        if is_shared { shared += bytes } else { own += bytes }
    }
    Ok(Usage { row, own, shared })
}

/// Bytes on disk of a file, or of a directory and what is in it; a link to a file that was counted counts
/// again only if it is in another directory.
fn allocated(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        let mut seen = std::collections::HashSet::new();
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let inode = entry.metadata().map(|metadata| metadata.ino()).unwrap_or_default();
            if seen.insert(inode) {
                bytes += allocated(&entry.path());
            }
        }
    }
    bytes
}
