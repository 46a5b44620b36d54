//! Leases: a VM keeps an image and a kernel for as long as it exists.

use banger_api::image::BootSet;
use banger_api::now_usec;
use banger_daemon::failpoint;

use crate::error::{Error, Result};
use crate::images::{self, Freed, rootfs_name};
use crate::kernel::{self, INITRAMFS, VMLINUX, VMLINUZ};
use crate::service::{Event, Inner, Service};
use crate::store::{self, ImageRow, KernelRow, LeaseRow};

impl Service {
    /// Takes a lease, or the same one again. Another image or kernel replaces the holder's lease.
    pub async fn acquire_lease(&self, holder: &str, image: &str, kernel: &str) -> Result<BootSet> {
        let fine = (1..=255).contains(&holder.len()) && holder.bytes().all(|byte| byte.is_ascii_graphic());
        if !fine {
            return Err(Error::BadArgument("the holder must have 1 to 255 visible ASCII characters".into()));
        }
        let lessee = holder.to_owned();
        let (holder, image, kernel) = (holder.to_owned(), image.to_owned(), kernel.to_owned());
        let presets = self.0.settings.presets.clone();
        let (image, kernel, before, freed) = self
            .0
            .store
            .transact(move |t| {
                let (image, _) = images::find(t, &presets, &image)?;
                let kernel = kernel::find(t, &kernel)?;
                let before = store::lease(t, &holder)?;
                let lease = LeaseRow { holder, image: image.id.clone(), kernel: kernel.name.clone() };
                if before.as_ref() == Some(&lease) {
                    return Ok((image, kernel, None, None));
                }
                store::put_lease(t, &lease, now_usec())?;
                store::mark_image_used(t, &lease.image, now_usec())?;
                let freed = match &before {
                    Some(before) if before.image != lease.image => {
                        Some(images::drop_unused(t, &before.image)?)
                    }
                    _ => None,
                };
                Ok((image, kernel, Some(before), freed))
            })
            .await?;
        failpoint!("lease.taken");
        // From here on nobody removes them.
        if let Err(error) = self.refresh_initramfs(&kernel).await {
            // A new lease that was never handed out must not stay.
            if matches!(before, Some(None)) {
                self.release_lease(&lessee).await?;
            }
            return Err(error);
        }
        if let Some(before) = before {
            self.touch(Event::Image(image.id.clone())).await;
            self.touch(Event::Kernel(kernel.name.clone())).await;
            if let Some(before) = before {
                self.touch(Event::Kernel(before.kernel)).await;
            }
            self.lease_released(freed).await?;
        }
        self.boot_set(&image, &kernel)
    }

    fn boot_set(&self, image: &ImageRow, kernel: &KernelRow) -> Result<BootSet> {
        let Inner { files, .. } = &*self.0;
        let text = |path: std::path::PathBuf| -> Result<String> {
            if !path.exists() {
                return Err(Error::Base(banger_api::Error::internal(format!(
                    "{} is gone; import or pull it again",
                    path.display()
                ))));
            }
            Ok(path.to_string_lossy().into_owned())
        };
        let (image_dir, kernel_dir) = (files.image(&image.id), files.kernel(&kernel.name));
        Ok(BootSet {
            image_id: image.id.clone(),
            image_name: image.name().to_owned(),
            rootfs: text(image_dir.join(rootfs_name(&image.fstype)))?,
            rootfs_type: image.fstype.clone(),
            env: image.process.env.clone(),
            entrypoint: image.process.entrypoint.clone(),
            cmd: image.process.cmd.clone(),
            user: image.process.user.clone(),
            working_directory: image.process.working_dir.clone(),
            kernel: kernel.name.clone(),
            kernel_version: kernel.version.clone(),
            vmlinuz: text(kernel_dir.join(VMLINUZ))?,
            vmlinux: text(kernel_dir.join(VMLINUX))?,
            initramfs: text(kernel_dir.join(INITRAMFS))?,
        })
    }

    /// Gives a lease back; without one nothing happens. An image that has lost its names goes with
    /// its last lease.
    pub async fn release_lease(&self, holder: &str) -> Result<()> {
        let holder = holder.to_owned();
        let released = self
            .0
            .store
            .transact(move |t| {
                let Some(lease) = store::lease(t, &holder)? else { return Ok(None) };
                store::delete_lease(t, &holder)?;
                store::mark_image_used(t, &lease.image, now_usec())?;
                let freed: Freed = images::drop_unused(t, &lease.image)?;
                Ok(Some((lease, freed)))
            })
            .await?;
        failpoint!("lease.released");
        if let Some((lease, freed)) = released {
            self.touch(Event::Kernel(lease.kernel)).await;
            self.lease_released(Some(freed)).await?;
        }
        Ok(())
    }

    pub async fn leases(&self) -> Result<Vec<LeaseRow>> {
        Ok(self.0.store.transact(store::leases).await?)
    }
}
