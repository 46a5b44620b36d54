//! Whether an image is still what was published.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::build::digest_of_stream;
use super::rootfs_name;
use crate::error::{Error, Result};
use crate::layers::stream::{Cancel, Source};
use crate::progress::{Progress, watched};
use crate::service::{Service, blocking};
use crate::store::ImageRow;

impl Service {
    /// Reads an image's root filesystem and compares it with the digest that was noted when it was
    /// published. Changes nothing, and holds up nobody: the image may even be removed meanwhile.
    pub async fn verify_image(&self, id: &str, progress: &dyn Progress) -> Result<()> {
        let image = self.image(id).await?;
        progress.stage("verify");
        let path = self.0.files.image(&image.id).join(rootfs_name(&image.fstype));
        let file = File::open(path).map_err(|error| damaged(&image, format!("cannot be read: {error}")))?;
        let cancel = Cancel::default();
        let _cancel = cancel.on_drop();
        let read = Arc::new(AtomicU64::new(0));
        let source = Source::new(file, cancel, read.clone());
        // What the disk cannot give back any more is damage as well.
        let digest = blocking(move || Ok(digest_of_stream(source)));
        match watched(progress, &read, image.size, digest).await? {
            Ok(found) if found == image.rootfs_digest => Ok(()),
            Ok(found) => Err(damaged(&image, format!("has the digest {found}, not {}", image.rootfs_digest))),
            Err(error) => Err(damaged(&image, format!("cannot be read: {error}"))),
        }
    }
}

fn damaged(image: &ImageRow, fault: String) -> Error {
    // Without a name, it is found by its id.
    let name = image.names.first().cloned().unwrap_or_else(|| image.short_id().to_owned());
    Error::ImageDamaged { image: name, fault, holders: image.holders.clone() }
}
