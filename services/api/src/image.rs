//! `org.banger.Image1`: images and kernels.

use std::collections::HashMap;

use zbus::{DeserializeDict, OwnedFd, OwnedObjectPath, SerializeDict, Type, Variant, proxy};

use crate::access::{Access, Entry, IMAGE_MANAGE};

pub const MANAGER: &str = "org.banger.Image1.Manager";
pub const IMAGE: &str = "org.banger.Image1.Image";
pub const KERNEL: &str = "org.banger.Image1.Kernel";

/// What the names of images begin with that only builds know: `build/` and the digest of what was done.
pub const BUILD_PREFIX: &str = "build/";

pub const IMAGE_PREFIX: &str = "/org/banger/Image1/image";
pub const KERNEL_PREFIX: &str = "/org/banger/Image1/kernel";

pub const ACCESS: &[Entry] = &[
    (MANAGER, "Pull", Access::Action(IMAGE_MANAGE)),
    (MANAGER, "Import", Access::Action(IMAGE_MANAGE)),
    (MANAGER, "ImportFd", Access::Action(IMAGE_MANAGE)),
    (MANAGER, "RegisterImage", Access::Action(IMAGE_MANAGE)),
    (MANAGER, "RegisterImageFd", Access::Action(IMAGE_MANAGE)),
    (MANAGER, "Export", Access::Action(IMAGE_MANAGE)),
    (MANAGER, "ListPresets", Access::Read),
    (MANAGER, "ListImages", Access::Read),
    (MANAGER, "ListImagesFiltered", Access::Read),
    (MANAGER, "GetImage", Access::Read),
    (MANAGER, "TagImage", Access::Action(IMAGE_MANAGE)),
    (MANAGER, "DeriveImage", Access::Action(IMAGE_MANAGE)),
    (MANAGER, "PruneImages", Access::Action(IMAGE_MANAGE)),
    (MANAGER, "DiskUsage", Access::Read),
    (MANAGER, "RemoveImage", Access::Action(IMAGE_MANAGE)),
    (MANAGER, "ImportKernel", Access::Action(IMAGE_MANAGE)),
    (MANAGER, "ImportKernelFd", Access::Action(IMAGE_MANAGE)),
    (MANAGER, "PullKernel", Access::Action(IMAGE_MANAGE)),
    (MANAGER, "ListKernels", Access::Read),
    (MANAGER, "GetKernel", Access::Read),
    (MANAGER, "RemoveKernel", Access::Action(IMAGE_MANAGE)),
    (MANAGER, "SetDefaultKernel", Access::Action(IMAGE_MANAGE)),
    (MANAGER, "AcquireLease", Access::Internal),
    (MANAGER, "ReleaseLease", Access::Internal),
    (MANAGER, "ListLeases", Access::Read),
    (IMAGE, "Remove", Access::Action(IMAGE_MANAGE)),
    (IMAGE, "SetKernel", Access::Action(IMAGE_MANAGE)),
    (IMAGE, "Verify", Access::Action(IMAGE_MANAGE)),
    (IMAGE, "Describe", Access::Read),
    (KERNEL, "Remove", Access::Action(IMAGE_MANAGE)),
    (KERNEL, "Describe", Access::Read),
    (crate::job::INTERFACE, "Cancel", Access::Action(IMAGE_MANAGE)),
];

/// One image as `ListImages` returns it: name, id, size in bytes, created (microseconds since
/// 1970), number of leases, path.
pub type ImageRow = (String, String, u64, u64, u32, OwnedObjectPath);

/// One image that `PruneImages` removed: id, name, bytes set free.
pub type PrunedRow = (String, String, u64);

/// One line of `DiskUsage`: `image`, `build` or `kernel`, name, id (of images), own bytes, shared bytes,
/// number of leases.
pub type UsageRow = (String, String, String, u64, u64, u32);

/// One kernel as `ListKernels` returns it: name, version, architecture, description, whether it is
/// the default, number of leases, path.
pub type KernelRow = (String, String, String, String, bool, u32, OwnedObjectPath);

/// Everything a VM is booted from; the reply of `AcquireLease`.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "dict")]
pub struct BootSet {
    pub image_id: String,
    pub image_name: String,
    /// Path of the root filesystem.
    pub rootfs: String,
    /// Its type, such as `squashfs`.
    pub rootfs_type: String,
    /// Of the image's configuration: `KEY=value`.
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub user: String,
    pub working_directory: String,
    pub kernel: String,
    pub kernel_version: String,
    /// Paths: the compressed kernel, the ELF kernel, the initramfs.
    pub vmlinuz: String,
    pub vmlinux: String,
    pub initramfs: String,
}

#[proxy(
    interface = "org.banger.Image1.Manager",
    default_service = "org.banger.Image1",
    default_path = "/org/banger/Image1"
)]
pub trait Images {
    /// Pulls `HOST[:PORT]/REPO[:TAG|@DIGEST]`, or a short name of docker.io. The job's outcome is
    /// the image's name. Options: `name s`, `platform s`, `insecure b`, `credentials h`.
    #[zbus(allow_interactive_auth)]
    fn pull(
        &self,
        reference: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(u32, OwnedObjectPath)>;

    /// Imports a root filesystem archive or an OCI layout. Options: `sha256 s`, `signature s`,
    /// `partition u`, `like s`, `root b` (a root filesystem's archive and nothing else, with its end),
    /// `replace b`, and those of [`ImageSettings`](crate::ImageSettings).
    #[zbus(allow_interactive_auth)]
    fn import(
        &self,
        path: &str,
        name: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(u32, OwnedObjectPath)>;

    #[zbus(allow_interactive_auth)]
    fn import_fd(
        &self,
        file: OwnedFd,
        name: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(u32, OwnedObjectPath)>;

    /// Makes an image of a root filesystem and of the kernel of its VMs, both or nothing. Options: those of
    /// `Import` but `root`, `kernel_name s`, `kernel_sha256 as`, `modules s`, `description s`.
    #[zbus(allow_interactive_auth)]
    fn register_image(
        &self,
        rootfs: &str,
        kernel: &[&str],
        name: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(u32, OwnedObjectPath)>;

    #[zbus(allow_interactive_auth)]
    fn register_image_fd(
        &self,
        rootfs: OwnedFd,
        kernel: Vec<OwnedFd>,
        name: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(u32, OwnedObjectPath)>;

    /// Writes an image to a file or pipe. Option: `format s`, `oci` or `bundle`.
    #[zbus(allow_interactive_auth)]
    fn export(
        &self,
        image: &str,
        file: OwnedFd,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(u32, OwnedObjectPath)>;

    /// Images by short names: name, reference, description.
    fn list_presets(&self) -> zbus::Result<Vec<(String, String, String)>>;

    fn list_images(&self) -> zbus::Result<Vec<ImageRow>>;

    /// Options: `pattern s`, `labels as`, `unused b`.
    fn list_images_filtered(&self, options: HashMap<&str, Variant<'_>>) -> zbus::Result<Vec<ImageRow>>;

    /// One more name for an image. Option: `replace b`.
    #[zbus(allow_interactive_auth)]
    fn tag_image(&self, image: &str, name: &str, options: HashMap<&str, Variant<'_>>) -> zbus::Result<()>;

    /// Makes an image that differs from another only in what it says of programs. Options: `replace b`, and
    /// those of [`ImageSettings`](crate::ImageSettings).
    #[zbus(allow_interactive_auth)]
    fn derive_image(&self, image: &str, name: &str, options: HashMap<&str, Variant<'_>>) -> zbus::Result<()>;

    /// Options: `labels as`, `unused_for t` (seconds), `max_size t` (bytes), `build_cache b`, `dry_run b`.
    #[zbus(allow_interactive_auth)]
    fn prune_images(&self, options: HashMap<&str, Variant<'_>>) -> zbus::Result<Vec<PrunedRow>>;

    fn disk_usage(&self) -> zbus::Result<Vec<UsageRow>>;

    /// By name, reference (`debian:12` for `docker.io/library/debian:12`), or unique prefix of
    /// the id.
    fn get_image(&self, name: &str) -> zbus::Result<OwnedObjectPath>;

    #[zbus(allow_interactive_auth)]
    fn remove_image(&self, name: &str) -> zbus::Result<()>;

    /// Imports a kernel: `host`, or the path of a package, an archive, a vmlinuz or vmlinux. An empty
    /// name stands for the version. Options: `with as`, `modules s`, `description s`.
    #[zbus(allow_interactive_auth)]
    fn import_kernel(
        &self,
        source: &str,
        name: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(u32, OwnedObjectPath)>;

    #[zbus(allow_interactive_auth)]
    fn import_kernel_fd(
        &self,
        files: Vec<OwnedFd>,
        name: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(u32, OwnedObjectPath)>;

    /// Pulls a kernel from a registry. Options: `platform s`, `insecure b`, `credentials h`, `description s`.
    #[zbus(allow_interactive_auth)]
    fn pull_kernel(
        &self,
        reference: &str,
        name: &str,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(u32, OwnedObjectPath)>;

    fn list_kernels(&self) -> zbus::Result<Vec<KernelRow>>;

    /// By name; the empty name is the default kernel.
    fn get_kernel(&self, name: &str) -> zbus::Result<OwnedObjectPath>;

    #[zbus(allow_interactive_auth)]
    fn remove_kernel(&self, name: &str) -> zbus::Result<()>;

    #[zbus(allow_interactive_auth)]
    fn set_default_kernel(&self, name: &str) -> zbus::Result<()>;

    /// Keeps an image (by id) and a kernel (by name) for `holder` and tells where they are.
    fn acquire_lease(&self, holder: &str, image: &str, kernel: &str) -> zbus::Result<BootSet>;

    /// Gives them back; nothing happens if the holder has none.
    fn release_lease(&self, holder: &str) -> zbus::Result<()>;

    /// Holder, image id, kernel name.
    fn list_leases(&self) -> zbus::Result<Vec<(String, String, String)>>;

    #[zbus(signal)]
    fn image_new(&self, id: String, image: OwnedObjectPath) -> zbus::Result<()>;
    #[zbus(signal)]
    fn image_removed(&self, id: String, image: OwnedObjectPath) -> zbus::Result<()>;
    #[zbus(signal)]
    fn kernel_new(&self, name: String, kernel: OwnedObjectPath) -> zbus::Result<()>;
    #[zbus(signal)]
    fn kernel_removed(&self, name: String, kernel: OwnedObjectPath) -> zbus::Result<()>;
}

#[proxy(
    interface = "org.banger.Image1.Image",
    default_service = "org.banger.Image1",
    assume_defaults = false
)]
pub trait Image {
    #[zbus(allow_interactive_auth)]
    fn remove(&self) -> zbus::Result<()>;
    /// Chooses the kernel of VMs that name none; the empty name is the default kernel.
    #[zbus(allow_interactive_auth)]
    fn set_kernel(&self, kernel: &str) -> zbus::Result<()>;
    /// Reads the root filesystem and compares it with its digest.
    #[zbus(allow_interactive_auth)]
    fn verify(&self) -> zbus::Result<(u32, OwnedObjectPath)>;
    /// Everything about the image as JSON.
    fn describe(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn kernel(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn rootfs_type(&self) -> zbus::Result<String>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn name(&self) -> zbus::Result<String>;
}

#[proxy(
    interface = "org.banger.Image1.Kernel",
    default_service = "org.banger.Image1",
    assume_defaults = false
)]
pub trait Kernel {
    #[zbus(allow_interactive_auth)]
    fn remove(&self) -> zbus::Result<()>;
    /// Everything about the kernel as JSON.
    fn describe(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn features(&self) -> zbus::Result<Vec<String>>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> zbus::Result<String>;
}
