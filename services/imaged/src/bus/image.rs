//! `org.banger.Image1.Image`.

use banger_api::{Error, Result};
use banger_daemon::{Gate, Jobs};
use tokio::sync::watch;
use zbus::message::Header;
use zbus::{Connection, OwnedObjectPath, interface};

use crate::service::Service;
use crate::store::ImageRow;

#[derive(Clone)]
pub struct ImageObject {
    pub service: Service,
    pub gate: Gate,
    pub jobs: Jobs,
    pub row: watch::Receiver<ImageRow>,
}

#[interface(name = "org.banger.Image1.Image")]
impl ImageObject {
    /// Removes the image with all its names. Refused while VMs use it.
    async fn remove(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let (id, name) = (self.id(), self.name());
        let _call = self.gate.enter(&header, connection, &[("image", &name)]).await?;
        Ok(self.service.remove_image(&id).await?)
    }

    /// Chooses the kernel of VMs that are made of the image and name none; the empty name is the
    /// default kernel again. VMs that exist keep theirs.
    async fn set_kernel(
        &self,
        kernel: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call =
            self.gate.enter(&header, connection, &[("image", &self.name()), ("kernel", &kernel)]).await?;
        Ok(self.service.set_image_kernel(&self.id(), &kernel).await?)
    }

    /// Reads the stored root filesystem and compares it with `RootfsDigest`. Changes nothing. The
    /// job fails with `ImageDamaged` if they differ; its outcome is the image's name.
    #[zbus(out_args("job_id", "job"))]
    async fn verify(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let (id, name) = (self.id(), self.name());
        let _call = self.gate.enter(&header, connection, &[("image", &name)]).await?;
        let (service, subject) = (self.service.clone(), name.clone());
        let work = move |progress: banger_daemon::Progress| async move {
            let verify = async { Ok(service.verify_image(&id, &progress).await?) };
            progress.cancelable(verify).await.map(|()| name)
        };
        Ok(self.jobs.start("verify", &subject, work).await)
    }

    /// Everything about the image as JSON.
    #[zbus(out_args("json"))]
    async fn describe(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        let row = self.row.borrow().clone();
        let process = &row.process;
        let description = serde_json::json!({
            "id": row.id,
            "short_id": row.short_id(),
            "name": row.name(),
            "names": row.names,
            "architecture": row.architecture,
            "size": row.size,
            "kernel": row.kernel,
            "created_usec": row.created_usec,
            "used_usec": row.used_usec,
            "rootfs_type": row.fstype,
            "rootfs_digest": row.rootfs_digest,
            "config": {
                "env": process.env,
                "entrypoint": process.entrypoint,
                "cmd": process.cmd,
                "user": process.user,
                "working_directory": process.working_dir,
                "stop_signal": process.stop_signal,
                "labels": process.labels,
            },
            "leases": row.holders,
        });
        serde_json::to_string(&description).map_err(Error::internal)
    }

    /// SHA-256 of the image's manifest, 64 hexadecimal digits.
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> String {
        self.row.borrow().id.clone()
    }

    /// The first of its names; `<none>` for an image that only VMs keep.
    #[zbus(property)]
    fn name(&self) -> String {
        self.row.borrow().name().to_owned()
    }

    #[zbus(property)]
    fn names(&self) -> Vec<String> {
        self.row.borrow().names.clone()
    }

    /// Such as `amd64`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn architecture(&self) -> String {
        self.row.borrow().architecture.clone()
    }

    /// Bytes of the root filesystem.
    #[zbus(property(emits_changed_signal = "const"))]
    fn size(&self) -> u64 {
        self.row.borrow().size
    }

    /// Digest of the root filesystem, `sha256:…`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn rootfs_digest(&self) -> String {
        self.row.borrow().rootfs_digest.clone()
    }

    /// Such as `squashfs`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn rootfs_type(&self) -> String {
        self.row.borrow().fstype.clone()
    }

    /// Kernel of VMs that name none; empty for the default one.
    #[zbus(property)]
    fn kernel(&self) -> String {
        self.row.borrow().kernel.clone()
    }

    /// When it was pulled or imported, microseconds since 1970.
    #[zbus(property(emits_changed_signal = "const"))]
    fn created_timestamp(&self) -> u64 {
        self.row.borrow().created_usec
    }

    /// When it came, or a VM last took or gave it up, microseconds since 1970.
    #[zbus(property)]
    fn used_timestamp(&self) -> u64 {
        self.row.borrow().used_usec
    }

    /// Environment of processes, `KEY=value`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn environment(&self) -> Vec<String> {
        self.row.borrow().process.env.clone()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn entrypoint(&self) -> Vec<String> {
        self.row.borrow().process.entrypoint.clone()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn command(&self) -> Vec<String> {
        self.row.borrow().process.cmd.clone()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn user(&self) -> String {
        self.row.borrow().process.user.clone()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn working_directory(&self) -> String {
        self.row.borrow().process.working_dir.clone()
    }

    /// Signal that stops the image's main process, such as `SIGTERM`; empty if it does not say.
    #[zbus(property(emits_changed_signal = "const"))]
    fn stop_signal(&self) -> String {
        self.row.borrow().process.stop_signal.clone()
    }

    /// Who uses the image.
    #[zbus(property)]
    fn leases(&self) -> Vec<String> {
        self.row.borrow().holders.clone()
    }
}
