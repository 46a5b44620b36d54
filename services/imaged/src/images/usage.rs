//! What images and kernels take of the disk, and making room.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use banger_api::ErrorKind;
use banger_api::now_usec;

use super::prune::Sharing;
use super::{Cost, Prune, Pruned, rootfs_name};
use crate::error::Result;
use crate::service::Service;
use crate::store::{self, ImageRow, KernelRow};

/// What something takes of the disk.
#[derive(Debug)]
pub struct Usage<Row> {
    pub row: Row,
    /// Bytes that would be free without it.
    pub own: u64,
    /// Bytes of blobs, or of a root filesystem, that other images have as well.
    pub shared: u64,
}

impl Service {
    pub async fn image_usage(&self) -> Result<Vec<Usage<ImageRow>>> {
        let costs = self.image_costs().await?;
        let sharing = Sharing::of(&costs);
        let usage = costs.into_iter().map(|cost| {
            let shared = cost.blobs.iter().filter(|(digest, _)| sharing.is_shared(digest));
            let shared: u64 = shared.map(|(_, bytes)| bytes).sum();
            Usage { own: cost.all() - shared, shared, row: cost.image }
        });
        Ok(usage.collect())
    }

    async fn image_costs(&self) -> Result<Vec<Cost>> {
        let files = self.0.files.clone();
        let costs = self.0.store.transact(move |t| {
            let sized = |digest: String| {
                let bytes = allocated(&files.blob(&digest));
                (digest, bytes)
            };
            let cost = |image: ImageRow| -> banger_api::Result<Cost> {
                let directory = files.image(&image.id);
                let linked = linked(&directory.join(rootfs_name(&image.fstype)));
                let own = allocated(&directory) - linked.as_ref().map_or(0, |(_, bytes)| *bytes);
                let blobs = store::image_blobs(t, &image.id)?.into_iter().map(sized);
                Ok(Cost { own, blobs: blobs.chain(linked).collect(), image })
            };
            store::images(t)?.into_iter().map(cost).collect::<banger_api::Result<Vec<_>>>()
        });
        Ok(costs.await?)
    }

    pub async fn kernel_usage(&self) -> Result<Vec<Usage<KernelRow>>> {
        let kernels = self.kernels().await?.into_iter();
        let files = &self.0.files;
        Ok(kernels.map(|row| Usage { own: allocated(&files.kernel(&row.name)), row, shared: 0 }).collect())
    }

    /// Removes images that no VM uses, or only says which. One that is taken into use meanwhile stays.
    pub async fn prune_images(&self, prune: &Prune, dry_run: bool) -> Result<Vec<Pruned>> {
        let plan = prune.plan(self.image_costs().await?, now_usec());
        if dry_run {
            return Ok(plan);
        }
        let mut removed = Vec::new();
        for pruned in plan {
            match self.remove_image(&pruned.image.id).await {
                Ok(()) => removed.push(pruned),
                // Somebody was faster.
                Err(error) if matches!(error.kind(), ErrorKind::ImageInUse | ErrorKind::NoSuchImage) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }
}

/// The root filesystem in an image's directory, by what tells it from others, and its bytes, if it is linked from
/// another image's as well.
fn linked(rootfs: &Path) -> Option<(String, u64)> {
    let metadata = fs::metadata(rootfs).ok().filter(|metadata| metadata.nlink() > 1)?;
    Some((format!("inode {}", metadata.ino()), metadata.blocks() * 512))
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
