//! Images whose root filesystem comes ready made: it is copied, where the filesystem beneath can by
//! sharing the blocks, and never changed.
//!
//! It is not hard-linked: whoever may write the original could then change the image.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use tokio::process::Command;

use super::build::{Built, describe, digest_of, row};
use super::disk::{self, Content, Filesystem};
use super::import::Told;
use super::publish::Claim;
use super::rootfs_name;
use crate::digest;
use crate::error::{Error, Result};
use crate::files::{Files, copy_range, create, remove};
use crate::limits::Limits;
use crate::progress::Progress;
use crate::registry::manifest::RootFs;
use crate::registry::{Config, Platform};
use crate::service::{Service, blocking};
use crate::store::ImageRow;

const BLOCK: u64 = 4096;

/// Where a root filesystem is in a file.
#[derive(Debug)]
pub(super) struct Place {
    pub start: u64,
    pub filesystem: Filesystem,
}

/// Finds the root filesystem in a file that is a filesystem or a disk. `None`: it is neither.
pub(super) fn find(file: &File, partition: Option<u32>) -> Result<Option<Place>> {
    let unusable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::InvalidData => Error::BadArgument(format!("the file cannot be used: {error}")),
        _ => Error::Io { what: "cannot read the file".into(), source: error },
    };
    let length = file.metadata().map_err(unusable)?.len();
    let place = match disk::content(file).map_err(unusable)? {
        Content::Filesystem(filesystem) => Place { start: 0, filesystem },
        Content::Disk(partitions) => {
            let found = disk::choose(file, &partitions, partition).map_err(unusable)?;
            let (partition, filesystem) = found.ok_or_else(|| {
                Error::BadArgument(format!(
                    "none of the disk's {} partitions that are meant has squashfs, erofs or ext4",
                    partitions.len()
                ))
            })?;
            Place { start: partition.start, filesystem }
        }
        Content::Qcow2 | Content::Other => return Ok(None),
    };
    if place.start.saturating_add(place.filesystem.size) > length {
        return Err(Error::Truncated {
            what: format!("the {}", place.filesystem.kind),
            wanted: place.start.saturating_add(place.filesystem.size),
            found: length,
        });
    }
    Ok(Some(place))
}

impl Service {
    /// Makes an image of a filesystem within a file.
    pub(super) async fn import_filesystem(
        &self,
        file: File,
        place: Place,
        told: Told,
        claim: Claim,
        progress: &dyn Progress,
    ) -> Result<ImageRow> {
        progress.stage("copy");
        let (files, limits) = (self.0.files.clone(), self.0.settings.limits.clone());
        let built = blocking(move || take(&file, &place, told, &files, &limits)).await?;
        let _build = self.0.builds.lock(&format!("image {}", built.image.id)).await;
        if let Some(image) = self.claim_existing(&built.image.id, &claim).await? {
            return Ok(image);
        }
        self.publish(&Arc::new(built), &claim, progress).await
    }

    /// A qcow2 as a raw disk. `qcow2` must be a copy that nobody else can change.
    pub(super) async fn unpack_qcow2(&self, qcow2: &Path, progress: &dyn Progress) -> Result<File> {
        progress.stage("convert");
        let file = File::open(qcow2).map_err(Error::io("cannot read the disk"))?;
        disk::check_qcow2(&file)
            .map_err(|error| Error::BadArgument(format!("the disk cannot be used: {error}")))?;
        let (raw, path) = self.0.files.temporary()?;
        let _gone = Gone(path.clone());
        let outcome = Command::new("qemu-img")
            .args(["convert", "-f", "qcow2", "-O", "raw"])
            .args([qcow2, path.as_path()])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await;
        let output = outcome.map_err(|error| {
            Error::BadArgument(format!(
                "qcow2 disks need qemu-img (package qemu-utils), which cannot be run: {error}"
            ))
        })?;
        if !output.status.success() {
            let reason =
                String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned();
            return Err(Error::BadArgument(format!("qemu-img cannot read the disk: {reason}")));
        }
        // It may have put another file in the place of ours.
        drop(raw);
        File::open(&path).map_err(Error::io("cannot read the disk"))
    }
}

/// A file in staging that goes when it is dropped.
pub(super) struct Gone(pub PathBuf);

impl Drop for Gone {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// The image of a root filesystem that came ready made: its id comes from that and what is told of it.
pub(super) fn of_rootfs(architecture: String, digest: &str, told: Told) -> Result<ImageRow> {
    let config = Config {
        architecture,
        os: "linux".into(),
        config: told.process,
        rootfs: RootFs { diff_ids: vec![digest.to_owned()] },
        ..Config::default()
    };
    let id = digest::sha256(&serde_json::to_vec(&config).map_err(banger_api::Error::internal)?);
    Ok(ImageRow { rootfs_digest: digest.to_owned(), kernel: told.kernel, ..row(&id, &config) })
}

fn take(file: &File, place: &Place, told: Told, files: &Files, limits: &Limits) -> Result<Built> {
    let Place { start, filesystem: Filesystem { kind, size } } = *place;
    if size > limits.unpacked {
        return Err(Error::TooLarge(format!("its {kind} has more than {} bytes", limits.unpacked)));
    }
    let staged = files.stage()?;
    let copy = create(&staged.path().join(rootfs_name(kind)))?;
    copy_range(file, start, size, &copy).map_err(Error::io("cannot copy the filesystem"))?;
    // A guest's disk has whole blocks only; a squashfs may end anywhere.
    let size = size.next_multiple_of(BLOCK);
    copy.set_len(size).map_err(Error::io("cannot copy the filesystem"))?;
    let digest = digest_of(copy)?;
    let mut image = of_rootfs(Platform::host().architecture, &digest, told)?;
    (image.size, image.fstype) = (size, kind.into());
    describe(&image, staged.path())?;
    staged.sync()?;
    Ok(Built { staged, image, blobs: Vec::new() })
}
