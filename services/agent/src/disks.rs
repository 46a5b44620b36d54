//! The VM's disks: mounted at the start, grown when their devices are, held still for a snapshot,
//! read-only at the end.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use banger_core::guest::{GuestConfig, Mount, Rootfs, WORK};
use nix::libc;
use nix::mount::{MsFlags, mount};

use crate::sys;

/// How long a disk may take to appear after its driver.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where the root filesystem is put together, below the initramfs: nobody in the guest sees these
/// mounts.
const IMAGE: &str = "/mnt/image";
const OVERLAY: &str = "/mnt/overlay";
pub const ROOT: &str = "/mnt/root";

/// Where ext2 and its successors keep the superblock, and how much of it is read.
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_SIZE: usize = 1024;

/// What is mounted.
pub struct Disks {
    overlay_device: String,
    /// The root directory of the overlay disk, which no path leads to.
    overlay: File,
    /// The root directory of the image, to which no path leads either.
    image: File,
    others: Vec<Mounted>,
}

struct Mounted {
    device: String,
    path: String,
    writable: bool,
    /// Ours to grow, as the work disk is. What a user brings along keeps its size.
    grows: bool,
}

impl Disks {
    /// Lays the overlay disk over the image, at [`ROOT`].
    pub fn mount_root(rootfs: &Rootfs) -> anyhow::Result<Self> {
        for directory in ["/mnt", IMAGE, OVERLAY, ROOT] {
            sys::make_directory(directory)?;
        }
        mount_disk(&rootfs.image, IMAGE, &rootfs.fstype, true)?;
        mount_disk(&rootfs.overlay, OVERLAY, "ext4", false)?;
        let (upper, work) = (format!("{OVERLAY}/upper"), format!("{OVERLAY}/work"));
        sys::make_directory(&work)?;
        if !Path::new(&upper).exists() {
            // The root directory's owner and mode are the upper layer's.
            let image = fs::metadata(IMAGE)?;
            let fresh = format!("{OVERLAY}/upper.new");
            sys::make_directory(&fresh)?;
            chown(&fresh, Some(image.uid()), Some(image.gid()))?;
            fs::set_permissions(&fresh, fs::Permissions::from_mode(image.mode() & 0o7777))?;
            fs::rename(&fresh, &upper)?;
        }
        let data = format!("lowerdir={IMAGE},upperdir={upper},workdir={work}");
        mount(Some("overlay"), ROOT, Some("overlay"), MsFlags::empty(), Some(data.as_str()))
            .context("cannot lay the overlay over the image")?;
        let (overlay, image) = (File::open(OVERLAY)?, File::open(IMAGE)?);
        Ok(Self { overlay_device: rootfs.overlay.clone(), overlay, image, others: Vec::new() })
    }

    /// Mounts the work disk and the others, in the root filesystem that is `/` by now.
    pub fn mount_others(&mut self, config: &GuestConfig) -> anyhow::Result<()> {
        let work = config.work.iter().map(|device| Mount {
            device: device.clone(),
            path: WORK.into(),
            fstype: "ext4".into(),
            read_only: false,
        });
        let others = config.mounts.iter().cloned();
        for (wanted, grows) in work.map(|disk| (disk, true)).chain(others.map(|disk| (disk, false))) {
            let Mount { device, path, fstype, read_only } = wanted;
            ensure!(path.starts_with('/') && path != "/", "a disk cannot be mounted at {path:?}");
            await_disk(&device)?;
            let fstype = if fstype.is_empty() { probe(&device)? } else { fstype };
            fs::create_dir_all(&path).with_context(|| format!("cannot make {path} to mount {device}"))?;
            mount_disk(&device, &path, &fstype, read_only)?;
            self.others.push(Mounted { device, path, writable: !read_only, grows });
        }
        Ok(())
    }

    /// A path to the root directory of the overlay disk, for this process alone.
    pub fn overlay(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.overlay.as_raw_fd()))
    }

    /// The root directory of the image.
    pub fn image(&self) -> io::Result<OwnedFd> {
        Ok(self.image.try_clone()?.into())
    }

    /// Mount point and device of each disk that is still mounted where we put it, the overlay
    /// disk as the root it carries.
    pub fn mounted(&self) -> Vec<(String, String)> {
        let others = self.others.iter().filter(|disk| disk.open().is_ok());
        std::iter::once(("/".to_owned(), self.overlay_device.clone()))
            .chain(others.map(|disk| (disk.path.clone(), disk.device.clone())))
            .collect()
    }

    /// Grows the filesystems of the overlay and the work disk to the size of their devices.
    /// Returns each one's device and its size before and after.
    pub fn grow(&self) -> Vec<(String, anyhow::Result<(u64, u64)>)> {
        let mut grown = vec![(self.overlay_device.clone(), grow(&self.overlay_device, &self.overlay))];
        for disk in self.others.iter().filter(|disk| disk.grows) {
            let result = disk.open().map_err(Into::into).and_then(|root| grow(&disk.device, &root));
            grown.push((disk.device.clone(), result));
        }
        grown
    }

    /// Writes everything out and lets nothing be written until [`Self::thaw`]. What is frozen
    /// already stays so.
    pub fn freeze(&self) -> io::Result<()> {
        let frozen = self.writable().iter().try_for_each(freeze);
        if frozen.is_err() {
            self.thaw();
        }
        frozen
    }

    /// As [`Self::freeze`], but only the disk that the root filesystem is on.
    pub fn freeze_root(&self) -> io::Result<()> {
        freeze(&self.overlay)
    }

    pub fn thaw(&self) {
        for root in self.writable() {
            match thaw(&root) {
                // It was not frozen.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => sys::log!(sys::ERR, "cannot thaw a disk: {error}"),
                Ok(()) => {}
            }
        }
    }

    fn writable(&self) -> Vec<File> {
        let others = self.others.iter().filter(|disk| disk.writable).filter_map(|disk| disk.open().ok());
        self.overlay.try_clone().ok().into_iter().chain(others).collect()
    }

    /// Makes everything read-only, as far as nothing is open for writing.
    pub fn make_read_only(&self) {
        for disk in self.others.iter().filter(|disk| disk.writable && disk.open().is_ok()) {
            make_read_only(&disk.path);
        }
        make_read_only("/");
        make_read_only(&self.overlay().to_string_lossy());
    }
}

impl Mounted {
    /// The root directory, unless the guest has unmounted the disk. It is not kept open, which
    /// would keep an init from unmounting the disk in order.
    fn open(&self) -> io::Result<File> {
        let root = File::open(&self.path)?;
        if root.metadata()?.dev() == fs::metadata(&self.device)?.rdev() {
            Ok(root)
        } else {
            Err(io::Error::other(format!("{} is no longer mounted at {}", self.device, self.path)))
        }
    }
}

fn make_read_only(path: &str) {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if let Err(error) = mount::<str, str, str, str>(None, path, None, flags, None) {
        sys::log!(sys::INFO, "cannot make {path} read-only: {error}");
    }
}

fn await_disk(disk: &str) -> anyhow::Result<()> {
    let deadline = sys::uptime() + PATIENCE;
    while !Path::new(disk).exists() {
        if sys::uptime() >= deadline {
            bail!("no disk {disk} after {PATIENCE:?}; does the kernel have its driver?");
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn mount_disk(disk: &str, at: &str, fstype: &str, read_only: bool) -> anyhow::Result<()> {
    await_disk(disk)?;
    let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::MS_RELATIME };
    // Blocks of deleted files go back to the host.
    let discard = !read_only && ["ext4", "xfs"].contains(&fstype) && takes_discard(disk);
    let data = if discard { "discard" } else { "" };
    mount(Some(disk), at, Some(fstype), flags, Some(data)).map_err(|error| match error {
        nix::Error::ENODEV => anyhow::anyhow!("cannot mount {disk}: the kernel has no {fstype}"),
        error => anyhow::Error::new(error).context(format!("cannot mount {disk} as {fstype}")),
    })
}

/// Whether the VMM takes blocks back; Firecracker does not.
fn takes_discard(disk: &str) -> bool {
    let name = disk.rsplit('/').next().unwrap_or_default();
    let limit = sys::read_bounded(format!("/sys/class/block/{name}/queue/discard_max_bytes"), 64);
    limit.is_ok_and(|limit| !matches!(limit.trim_ascii(), b"" | b"0"))
}

fn probe(device: &str) -> anyhow::Result<String> {
    let mut start = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(File::open(device)?, 4096), &mut start)
        .with_context(|| format!("cannot read {device}"))?;
    match filesystem(&start) {
        Some(fstype) => Ok(fstype.into()),
        None => bail!("{device} holds no filesystem known here (ext4, xfs, squashfs, erofs)"),
    }
}

/// The type of the filesystem that a disk begins with.
fn filesystem(start: &[u8]) -> Option<&'static str> {
    let at = |offset: usize, magic: &[u8]| start.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    [
        ("squashfs", 0, &b"hsqs"[..]),
        ("xfs", 0, b"XFSB"),
        ("ext4", 1080, &[0x53, 0xef]),
        ("erofs", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ]
    .into_iter()
    .find(|(_, offset, magic)| at(*offset, magic))
    .map(|(fstype, ..)| fstype)
}

/// Grows a mounted ext4, whose root directory is `root`.
fn grow(device: &str, root: &File) -> anyhow::Result<(u64, u64)> {
    let block_device = File::open(device)?;
    let mut bytes = 0;
    // SAFETY: the request writes the u64 it is given.
    unsafe { blkgetsize64(block_device.as_raw_fd(), &raw mut bytes) }
        .with_context(|| format!("cannot ask {device} for its size"))?;
    let (blocks, block_size) = ext4_size(&block_device)?;
    let room = bytes / block_size;
    if room <= blocks {
        return Ok((blocks * block_size, blocks * block_size));
    }
    // SAFETY: the request reads the u64 it is given.
    unsafe { ext4_resize(root.as_raw_fd(), &raw const room) }
        .with_context(|| format!("cannot grow the filesystem of {device}"))?;
    let (grown, _) = ext4_size(&block_device)?;
    sys::log!(sys::INFO, "{device} grew from {} to {} bytes", blocks * block_size, grown * block_size);
    Ok((blocks * block_size, grown * block_size))
}

/// The number of blocks and the size of one, from the superblock. Reads through the cache that a
/// mounted filesystem keeps it in.
fn ext4_size(device: &File) -> anyhow::Result<(u64, u64)> {
    let mut superblock = [0; SUPERBLOCK_SIZE];
    device.read_exact_at(&mut superblock, SUPERBLOCK)?;
    parse_superblock(&superblock).context("not an ext4 superblock")
}

/// See <https://docs.kernel.org/filesystems/ext4/super.html>.
fn parse_superblock(superblock: &[u8; SUPERBLOCK_SIZE]) -> Option<(u64, u64)> {
    const INCOMPAT_64BIT: u32 = 0x80;
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| superblock[at + i]));
    let (magic, log_block_size) = (&superblock[0x38..0x3a], word(0x18));
    if magic != [0x53, 0xef] || log_block_size > 6 {
        return None;
    }
    let high = if word(0x60) & INCOMPAT_64BIT != 0 { word(0x150) } else { 0 };
    Some((u64::from(high) << 32 | u64::from(word(0x4)), 1024 << log_block_size))
}

fn freeze(root: &File) -> io::Result<()> {
    // SAFETY: the request ignores its argument.
    match unsafe { fifreeze(root.as_raw_fd(), &mut 0) } {
        // Frozen already.
        Err(nix::Error::EBUSY) => Ok(()),
        result => Ok(result.map(drop)?),
    }
}

fn thaw(root: &File) -> io::Result<()> {
    // SAFETY: the request ignores its argument.
    Ok(unsafe { fithaw(root.as_raw_fd(), &mut 0) }.map(drop)?)
}

// linux/fs.h, and fs/ext4/ext4.h of the kernel.
nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
nix::ioctl_readwrite!(fifreeze, b'X', 119, libc::c_int);
nix::ioctl_readwrite!(fithaw, b'X', 120, libc::c_int);
nix::ioctl_write_ptr!(ext4_resize, b'f', 16, u64);

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(fields: &[(usize, u32)]) -> [u8; SUPERBLOCK_SIZE] {
        let mut bytes = [0; SUPERBLOCK_SIZE];
        bytes[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        for (at, value) in fields {
            bytes[*at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn sizes_of_ext4() {
        assert_eq!(parse_superblock(&superblock(&[(0x4, 1000)])), Some((1000, 1024)));
        assert_eq!(parse_superblock(&superblock(&[(0x4, 7), (0x18, 2)])), Some((7, 4096)));
        // The upper half counts only where the filesystem says so.
        assert_eq!(parse_superblock(&superblock(&[(0x4, 7), (0x150, 1)])), Some((7, 1024)));
        assert_eq!(
            parse_superblock(&superblock(&[(0x4, 7), (0x60, 0x80), (0x150, 1)])),
            Some(((1 << 32) + 7, 1024))
        );
        assert_eq!(parse_superblock(&superblock(&[(0x18, 60)])), None);
        assert_eq!(parse_superblock(&[0; SUPERBLOCK_SIZE]), None);
    }

    #[test]
    fn filesystems_by_their_magic() {
        let disk = |offset: usize, magic: &[u8]| {
            let mut bytes = vec![0; 4096];
            bytes[offset..offset + magic.len()].copy_from_slice(magic);
            filesystem(&bytes)
        };
        assert_eq!(disk(0, b"hsqs"), Some("squashfs"));
        assert_eq!(disk(0, b"XFSB"), Some("xfs"));
        assert_eq!(disk(1080, b"\x53\xef"), Some("ext4"));
        assert_eq!(disk(1024, b"\xe2\xe1\xf5\xe0"), Some("erofs"));
        assert_eq!(disk(0, b"hsq"), None);
        assert_eq!(filesystem(b""), None);
    }
}
