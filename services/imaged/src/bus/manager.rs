//! `org.banger.Image1.Manager`.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use banger_api::image::{BootSet, ImageRow, KernelRow, PrunedRow, UsageRow};
use banger_api::{ImageSettings, Options, Result};
use banger_daemon::{Gate, Jobs, Progress};
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, interface};

use super::{image_path, kernel_path};
use crate::images::{Filter, Format, ImportOptions, Prune, PullOptions, Usage, open_path};
use crate::kernel::{KernelOptions, KernelSource};
use crate::service::Service;
use crate::trust::Claims;

#[derive(Clone)]
pub struct Manager {
    service: Service,
    gate: Gate,
    jobs: Jobs,
}

type Given = HashMap<String, OwnedVariant>;

impl Manager {
    pub fn new(service: Service, gate: Gate, jobs: Jobs) -> Self {
        Self { service, gate, jobs }
    }

    /// A row for each name that fits.
    async fn rows(&self, filter: &Filter) -> Result<Vec<ImageRow>> {
        let mut rows = Vec::new();
        for image in self.service.images().await? {
            let leases = image.holders.len() as u32;
            for name in filter.names(&image) {
                let path = image_path(&image.id);
                rows.push((name, image.id.clone(), image.size, image.created_usec, leases, path));
            }
        }
        Ok(rows)
    }

    async fn start_kernel(
        &self,
        source: KernelSource,
        options: KernelOptions,
        subject: &str,
    ) -> (u32, OwnedObjectPath) {
        let work = |service: Service, progress| async move {
            service.import_kernel(source, options, &progress).await.map(|kernel| kernel.name)
        };
        self.begin("import-kernel", subject, work).await
    }

    /// Begins a job, which ends wherever it waits when it is canceled.
    async fn begin<F, Fut>(&self, kind: &'static str, subject: &str, work: F) -> (u32, OwnedObjectPath)
    where
        F: FnOnce(Service, Progress) -> Fut,
        Fut: Future<Output = crate::error::Result<String>> + Send + 'static,
    {
        let service = self.service.clone();
        let work = |progress: Progress| {
            let done = work(service, progress.clone());
            async move { progress.cancelable(async { Ok(done.await?) }).await }
        };
        self.jobs.start(kind, subject, work).await
    }
}

impl Manager {
    async fn start_register(
        &self,
        rootfs: File,
        source: impl FnOnce(Option<PathBuf>) -> KernelSource,
        name: String,
        options: Given,
    ) -> Result<(u32, OwnedObjectPath)> {
        let mut given = Options::from(options);
        let kernel = KernelOptions {
            name: given.take("kernel_name")?.unwrap_or_default(),
            description: given.take("description")?,
            sha256: given.take("kernel_sha256")?.unwrap_or_default(),
        };
        let kernel = (source(modules(&mut given)?), kernel);
        let options = import_options(given)?;
        let subject = name.clone();
        let work = |service: Service, progress| async move {
            service.register_image(rootfs, &name, options, kernel, &progress).await.map(|_| name)
        };
        Ok(self.begin("register", &subject, work).await)
    }
}

#[interface(name = "org.banger.Image1.Manager")]
impl Manager {
    /// Pulls `HOST[:PORT]/REPO[:TAG|@DIGEST]`, a preset, or a short name of docker.io. The job's outcome is
    /// the image's name.
    ///
    /// Options: `name s` (instead of the full reference), `platform s` (such as `linux/amd64`),
    /// `insecure b` (plain HTTP and unknown certificates are acceptable), `credentials h` (a regular
    /// file or memfd of the form of containers-auth.json(5); what it has for the registry goes before
    /// what the host has).
    #[zbus(out_args("job_id", "job"))]
    async fn pull(
        &self,
        reference: String,
        options: Given,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("image", &reference)]).await?;
        let mut given = Options::from(options);
        let options = PullOptions { name: given.take("name")?, ..pull_options(given)? };
        let parsed = self.service.reference(&reference)?;
        let name = options.name.clone().unwrap_or_else(|| parsed.to_string());
        let subject = name.clone();
        let work = |service: Service, progress| async move {
            service.pull(&reference, options, &progress).await.map(|_| name)
        };
        Ok(self.begin("pull", &subject, work).await)
    }

    /// Images by short names, which the configuration has: name, reference, description.
    #[zbus(out_args("presets"))]
    async fn list_presets(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<(String, String, String)>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        Ok(self.service.presets())
    }

    /// Imports a file by its absolute path: an archive (tar, perhaps compressed) of a root filesystem, of an
    /// OCI layout, of `docker save`, or a bundle; a filesystem (squashfs, erofs, ext4), or a disk with one
    /// (raw, qcow2); or the directory of an OCI layout.
    ///
    /// Options: `sha256 s` (what the file must be, hexadecimal), `signature s` (content of the file's
    /// `.minisig`), `partition u` (of a disk, the one with the root filesystem), `like s` (an image whose
    /// environment, command and user the new one gets, if the file says nothing of them), `root b` (it is
    /// a tar of a root filesystem, whatever is in it, and must have the block of zeros that a tar ends with),
    /// `replace b` (take the name from the image that has it); and what the image is to say of programs
    /// instead, as `DeriveImage` has it, unless the file is of layers (OCI, `docker save`).
    #[zbus(out_args("job_id", "job"))]
    async fn import(
        &self,
        path: String,
        name: String,
        options: Given,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("image", &name)]).await?;
        let options = import_options(Options::from(options))?;
        let subject = name.clone();
        let work = |service: Service, progress| async move {
            service.import_path(Path::new(&path), &name, options, &progress).await.map(|_| name)
        };
        Ok(self.begin("import", &subject, work).await)
    }

    /// Imports as `Import`, from an open file or pipe.
    #[zbus(out_args("job_id", "job"))]
    async fn import_fd(
        &self,
        file: zbus::OwnedFd,
        name: String,
        options: Given,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("image", &name)]).await?;
        let options = import_options(Options::from(options))?;
        let (file, subject) = (into_file(file), name.clone());
        let work = |service: Service, progress| async move {
            service.import_file(file, &name, options, &progress).await.map(|_| name)
        };
        Ok(self.begin("import", &subject, work).await)
    }

    /// Makes an image of a root filesystem (a file by its absolute path, as `Import` takes it, but no layers) and of
    /// the kernel of its VMs (files by their absolute paths, as `ImportKernel` takes them; the modules may be in an
    /// initrd). Both are there in the same moment, or neither. The job's outcome is the image's name.
    ///
    /// Options: those of `Import` but `root`; `kernel_name s` (by default like the image's), `kernel_sha256 as` (what
    /// the kernel's files must be, in their order, hexadecimal; an empty one is not checked), `modules s` and
    /// `description s` as of `ImportKernel`.
    #[zbus(out_args("job_id", "job"))]
    async fn register_image(
        &self,
        rootfs: String,
        kernel: Vec<String>,
        name: String,
        options: Given,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("image", &name)]).await?;
        let rootfs = open_path(Path::new(&rootfs)).await?;
        let paths = kernel.into_iter().map(PathBuf::from).collect();
        self.start_register(rootfs, |modules| KernelSource::Paths(paths, modules), name, options).await
    }

    /// Registers as `RegisterImage`, from open files or pipes.
    #[zbus(out_args("job_id", "job"))]
    async fn register_image_fd(
        &self,
        rootfs: zbus::OwnedFd,
        kernel: Vec<zbus::OwnedFd>,
        name: String,
        options: Given,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("image", &name)]).await?;
        let files = kernel.into_iter().map(into_file).collect();
        let source = |modules| KernelSource::Files(files, modules);
        self.start_register(into_file(rootfs), source, name, options).await
    }

    /// Writes an image to an open file or pipe. The job's outcome is the image's name.
    ///
    /// Option: `format s`: `oci` (a tar of an OCI layout, as skopeo's `oci-archive:`; the default) or `bundle`
    /// (what `Import` reads; compressed with zstd, to be signed with minisign).
    #[zbus(out_args("job_id", "job"))]
    async fn export(
        &self,
        image: String,
        file: zbus::OwnedFd,
        options: Given,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("image", &image)]).await?;
        let mut given = Options::from(options);
        let format = given.take::<String>("format")?.map_or(Ok(Format::Oci), |format| format.parse())?;
        given.finish()?;
        let (file, subject) = (into_file(file), image.clone());
        let work = |service: Service, progress| async move {
            service.export_image(&image, format, file, &progress).await.map(|image| image.name().to_owned())
        };
        Ok(self.begin("export", &subject, work).await)
    }

    /// All images and names: name (`<none>` without one), id, size in bytes, when it came
    /// (microseconds since 1970), number of leases, object path. An image with several names is
    /// listed under each.
    #[zbus(out_args("images"))]
    async fn list_images(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<ImageRow>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.rows(&Filter::default()).await
    }

    /// As `ListImages`, but only those that fit. Options: `pattern s` (of the name or its last part, with `*`
    /// and `?`), `labels as` (each `KEY` or `KEY=VALUE`), `unused b` (that no VM uses).
    #[zbus(out_args("images"))]
    async fn list_images_filtered(
        &self,
        options: Given,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<ImageRow>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        let mut given = Options::from(options);
        let filter = Filter {
            pattern: given.take("pattern")?,
            labels: given.take("labels")?.unwrap_or_default(),
            unused: given.take("unused")?.unwrap_or_default(),
        };
        given.finish()?;
        self.rows(&filter).await
    }

    /// Gives an image one more name, which other images keep unless the option `replace b` is set.
    async fn tag_image(
        &self,
        image: String,
        name: String,
        options: Given,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("image", &image), ("name", &name)]).await?;
        let mut given = Options::from(options);
        let replace = given.take("replace")?.unwrap_or_default();
        given.finish()?;
        self.service.tag_image(&image, &name, replace).await?;
        Ok(())
    }

    /// Makes an image that differs from another only in what it says of programs; they share the root
    /// filesystem.
    ///
    /// Options: `environment a{ss}` and `labels a{ss}` (added to what there is), `user s` (`user`, `uid`,
    /// `user:group` or `uid:gid`), `working_directory s`, `entrypoint as`, `command as`, and `replace b` (take
    /// the name from the image that has it).
    async fn derive_image(
        &self,
        image: String,
        name: String,
        options: Given,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("image", &image), ("name", &name)]).await?;
        let mut given = Options::from(options);
        let replace = given.take("replace")?.unwrap_or_default();
        let settings = ImageSettings::take(&mut given)?;
        given.finish()?;
        self.service.derive_image(&image, &name, &settings, replace).await?;
        Ok(())
    }

    /// Removes images that no VM uses, with all their names, and returns of each its id, its name and the
    /// bytes set free.
    ///
    /// Options: `labels as` (each `KEY` or `KEY=VALUE`), `unused_for t` (only those that nobody has used
    /// for so many seconds), `max_size t` (only so many, used longest ago first, that all images take no
    /// more bytes), `build_cache b` (only what builds keep to be faster the next time), `dry_run b` (only
    /// say which).
    #[zbus(out_args("removed"))]
    async fn prune_images(
        &self,
        options: Given,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<PrunedRow>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        let mut given = Options::from(options);
        let prune = Prune {
            labels: given.take("labels")?.unwrap_or_default(),
            unused_for: given.take::<u64>("unused_for")?.map(|seconds| seconds.saturating_mul(1_000_000)),
            max_size: given.take("max_size")?,
            build_cache: given.take("build_cache")?.unwrap_or_default(),
        };
        let dry_run = given.take("dry_run")?.unwrap_or_default();
        given.finish()?;
        let removed = self.service.prune_images(&prune, dry_run).await?.into_iter();
        Ok(removed
            .map(|pruned| (pruned.image.id.clone(), pruned.image.name().to_owned(), pruned.bytes))
            .collect())
    }

    /// What images and kernels take of the disk: `image`, `build` (what builds keep) or `kernel`, name, id (of images), bytes that
    /// would be free without it, bytes it shares with other images, number of leases.
    #[zbus(out_args("usage"))]
    async fn disk_usage(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<UsageRow>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        let images = self.service.image_usage().await?.into_iter().map(|Usage { row, own, shared }| {
            let kind = if row.is_build_cache() { "build" } else { "image" };
            (kind.into(), row.name().to_owned(), row.id, own, shared, row.holders.len() as u32)
        });
        let kernels = self.service.kernel_usage().await?.into_iter().map(|Usage { row, own, shared }| {
            ("kernel".into(), row.name, String::new(), own, shared, row.holders.len() as u32)
        });
        Ok(images.chain(kernels).collect())
    }

    /// The object path of an image: by name, reference (`debian:12` for
    /// `docker.io/library/debian:12`), or unique beginning of the id.
    #[zbus(out_args("image"))]
    async fn get_image(
        &self,
        name: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        Ok(image_path(&self.service.image(&name).await?.id))
    }

    /// Removes a name, and with its last name the image; by id, all its names. The image stays,
    /// and the call is refused, while VMs use it.
    async fn remove_image(
        &self,
        name: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("image", &name)]).await?;
        Ok(self.service.remove_image(&name).await?)
    }

    /// Imports a kernel: `host` (the one this host runs, or its newest), or the absolute path of a
    /// package (.deb or .rpm), of an archive (tar) with `boot/` and `lib/modules/`, of a vmlinuz or of
    /// an ELF vmlinux. An empty name stands for the kernel's version. The first kernel becomes the
    /// default.
    ///
    /// Options: `with as` (paths of further files, such as the package with the modules),
    /// `modules s` (a directory of modules, such as `/lib/modules/VERSION`), `description s` (instead
    /// of what the kernel says of itself), `sha256 as` (what the files must be, in their order, hexadecimal; an
    /// empty one is not checked).
    #[zbus(out_args("job_id", "job"))]
    async fn import_kernel(
        &self,
        source: String,
        name: String,
        options: Given,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("kernel", &name)]).await?;
        let mut given = Options::from(options);
        let further = given.take::<Vec<String>>("with")?.unwrap_or_default();
        let (modules, options) = kernel_options(name, given)?;
        let from = match source.as_str() {
            "host" => KernelSource::Host,
            path => {
                let paths = std::iter::once(path).chain(further.iter().map(String::as_str));
                KernelSource::Paths(paths.map(PathBuf::from).collect(), modules)
            }
        };
        Ok(self.start_kernel(from, options, &source).await)
    }

    /// Imports as `ImportKernel`, from open files or pipes, which takes the place of the option `with`.
    #[zbus(out_args("job_id", "job"))]
    async fn import_kernel_fd(
        &self,
        files: Vec<zbus::OwnedFd>,
        name: String,
        options: Given,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("kernel", &name)]).await?;
        let subject = name.clone();
        let (modules, options) = kernel_options(name, Options::from(options))?;
        let files = files.into_iter().map(into_file).collect();
        Ok(self.start_kernel(KernelSource::Files(files, modules), options, &subject).await)
    }

    /// Pulls a kernel: an image that has `boot/` and `lib/modules/`, or an artifact whose files are a kernel's,
    /// as `ImportKernel` takes them.
    ///
    /// Options: those of `Pull` but `name`, and `description s`.
    #[zbus(out_args("job_id", "job"))]
    async fn pull_kernel(
        &self,
        reference: String,
        name: String,
        options: Given,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u32, OwnedObjectPath)> {
        let _call = self.gate.enter(&header, connection, &[("kernel", &name)]).await?;
        let mut given = Options::from(options);
        let description = given.take("description")?;
        let options = KernelOptions { name, description, ..KernelOptions::default() };
        let pull = pull_options(given)?;
        let subject = reference.clone();
        let work = |service: Service, progress| async move {
            service.pull_kernel(&reference, pull, options, &progress).await.map(|kernel| kernel.name)
        };
        Ok(self.begin("pull-kernel", &subject, work).await)
    }

    /// All kernels: name, version, architecture, description, whether it is the default, number of
    /// leases, object path.
    #[zbus(out_args("kernels"))]
    async fn list_kernels(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<KernelRow>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        let row = |kernel: crate::store::KernelRow| {
            let (leases, path) = (kernel.holders.len() as u32, kernel_path(&kernel.name));
            (
                kernel.name,
                kernel.version,
                kernel.architecture,
                kernel.description,
                kernel.is_default,
                leases,
                path,
            )
        };
        Ok(self.service.kernels().await?.into_iter().map(row).collect())
    }

    /// The object path of a kernel; the empty name is the default.
    #[zbus(out_args("kernel"))]
    async fn get_kernel(
        &self,
        name: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        Ok(kernel_path(&self.service.kernel(&name).await?.name))
    }

    /// Removes a kernel. Refused while VMs use it. If it was the default, the newest other one is.
    async fn remove_kernel(
        &self,
        name: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("kernel", &name)]).await?;
        Ok(self.service.remove_kernel(&name).await?)
    }

    /// Makes a kernel the one that VMs get which name none.
    async fn set_default_kernel(
        &self,
        name: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[("kernel", &name)]).await?;
        Ok(self.service.set_default_kernel(&name).await?)
    }

    /// Keeps an image and a kernel (the empty name is the default) for `holder`, and tells where
    /// they are. Asking again gives the same; asking for others replaces the holder's lease. The
    /// kernel's initramfs is made anew if the agent has changed since.
    #[zbus(out_args("boot_set"))]
    async fn acquire_lease(
        &self,
        holder: String,
        image: String,
        kernel: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<BootSet> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        Ok(self.service.acquire_lease(&holder, &image, &kernel).await?)
    }

    /// Gives a lease back. Nothing happens if there is none.
    async fn release_lease(
        &self,
        holder: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        Ok(self.service.release_lease(&holder).await?)
    }

    /// All leases: holder, image id, kernel name.
    #[zbus(out_args("leases"))]
    async fn list_leases(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<(String, String, String)>> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        let leases = self.service.leases().await?;
        Ok(leases.into_iter().map(|lease| (lease.holder, lease.image, lease.kernel)).collect())
    }

    #[zbus(signal)]
    async fn image_new(emitter: &SignalEmitter<'_>, id: String, image: OwnedObjectPath) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn image_removed(
        emitter: &SignalEmitter<'_>,
        id: String,
        image: OwnedObjectPath,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn kernel_new(
        emitter: &SignalEmitter<'_>,
        name: String,
        kernel: OwnedObjectPath,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn kernel_removed(
        emitter: &SignalEmitter<'_>,
        name: String,
        kernel: OwnedObjectPath,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn job_new(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        kind: String,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        subject: String,
        result: String,
    ) -> zbus::Result<()>;
}

/// What pulls of images and kernels have in common.
fn pull_options(mut given: Options) -> Result<PullOptions> {
    let options = PullOptions {
        name: None,
        platform: given.take::<String>("platform")?.map(|platform| platform.parse()).transpose()?,
        insecure: given.take("insecure")?.unwrap_or_default(),
        credentials: given.take_fd("credentials")?.map(File::from),
    };
    given.finish()?;
    Ok(options)
}

fn import_options(mut given: Options) -> Result<ImportOptions> {
    let claims = Claims { sha256: given.take("sha256")?, signature: given.take("signature")? };
    let options = ImportOptions {
        claims,
        partition: given.take("partition")?,
        like: given.take("like")?,
        root: given.take("root")?.unwrap_or_default(),
        replace: given.take("replace")?.unwrap_or_default(),
        settings: ImageSettings::take(&mut given)?,
        kernel: None,
    };
    given.finish()?;
    Ok(options)
}

/// What imports of kernels have in common: where the modules are, and the rest.
fn kernel_options(name: String, mut given: Options) -> Result<(Option<PathBuf>, KernelOptions)> {
    let modules = modules(&mut given)?;
    let sha256 = given.take("sha256")?.unwrap_or_default();
    let options = KernelOptions { name, description: given.take("description")?, sha256 };
    given.finish()?;
    Ok((modules, options))
}

/// The directory of modules.
fn modules(given: &mut Options) -> Result<Option<PathBuf>> {
    let modules = given.take::<String>("modules")?.map(PathBuf::from);
    if modules.as_ref().is_some_and(|path| !path.is_absolute()) {
        return Err(banger_api::ErrorKind::InvalidArgs.error("the option modules is not an absolute path"));
    }
    Ok(modules)
}

fn into_file(file: zbus::OwnedFd) -> File {
    File::from(std::os::fd::OwnedFd::from(file))
}
