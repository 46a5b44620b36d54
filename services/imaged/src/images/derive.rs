//! Images that differ from another only in what they say of programs. They share its root filesystem:
//! a hard link, for nobody but imaged may write to that, and imaged does not.

use std::fs;
use std::io;
use std::sync::Arc;

use banger_api::ImageSettings;

use super::build::{Built, describe};
use super::filesystem::of_rootfs;
use super::import::Told;
use super::publish::Claim;
use super::rootfs_name;
use crate::error::{Error, Result};
use crate::files::Files;
use crate::service::{Service, blocking};
use crate::store::ImageRow;

impl Service {
    /// Makes an image of another's root filesystem. If nothing is to be different it is that other with
    /// one more name.
    pub async fn derive_image(
        &self,
        wanted: &str,
        name: &str,
        settings: &ImageSettings,
        replace: bool,
    ) -> Result<ImageRow> {
        let claim = Claim::new(name, "")?.replacing(replace);
        self.check_claim(&claim).await?;
        let parent = self.image(wanted).await?;
        let process = parent.process.clone().with(settings);
        if process == parent.process {
            return self.tag_image(&parent.id, name, replace).await;
        }
        let told = Told { process, kernel: parent.kernel.clone() };
        let image = of_rootfs(parent.architecture.clone(), &parent.rootfs_digest, told)?;
        let image = ImageRow { size: parent.size, fstype: parent.fstype.clone(), ..image };
        let _build = self.0.builds.lock(&format!("image {}", image.id)).await;
        if let Some(image) = self.claim_existing(&image.id, &claim).await? {
            return Ok(image);
        }
        let files = self.0.files.clone();
        let built = blocking(move || link(&parent, image, &files)).await?;
        self.publish(&Arc::new(built), &claim, &()).await
    }
}

fn link(parent: &ImageRow, image: ImageRow, files: &Files) -> Result<Built> {
    let staged = files.stage()?;
    let rootfs = rootfs_name(&image.fstype);
    fs::hard_link(files.image(&parent.id).join(&rootfs), staged.path().join(&rootfs)).map_err(|error| {
        match error.kind() {
            // Removed since it was found.
            io::ErrorKind::NotFound => Error::NoSuchImage(parent.name().to_owned()),
            _ => Error::Io { what: "cannot link the root filesystem".into(), source: error },
        }
    })?;
    describe(&image, staged.path())?;
    staged.sync()?;
    Ok(Built { staged, image, blobs: Vec::new() })
}
