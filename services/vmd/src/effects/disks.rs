//! The disks of VMs: one sparse file each, an empty ext4 that takes the writes of the guest.
//!
//! Making one writes a few hundred kilobytes of metadata, whatever its size and its image's.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use banger_api::{Error, Result};
use banger_core::acl;
use banger_core::name::VmName;
use rustix::fs::{XattrFlags, setxattr};
use tokio::fs;
use tokio::process::Command;

/// Options of mke2fs: nothing is written that can be written later, no blocks are kept for root.
const MKE2FS: &[&str] =
    &["-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"];

/// The directory of all VMs' disks.
#[derive(Debug, Clone)]
pub struct Disks(PathBuf);

impl Disks {
    pub async fn open(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory).await?;
        Ok(Self(directory))
    }

    pub fn path(&self, name: &VmName) -> PathBuf {
        self.directory(name).join("disk.img")
    }

    fn directory(&self, name: &VmName) -> PathBuf {
        self.0.join(name.as_str())
    }

    /// Makes the VM's disk if it has none.
    pub async fn ensure(&self, name: &VmName, bytes: u64) -> Result<()> {
        let disk = self.path(name);
        if fs::try_exists(&disk).await? {
            return Ok(());
        }
        let directory = self.directory(name);
        fs::create_dir_all(&directory).await?;
        // The VM's user passes through it to its disk. Nobody else comes this far: what is above is
        // closed, and a VM sees no other VM's directory.
        fs::set_permissions(&directory, Permissions::from_mode(0o711)).await?;
        // Under its own name only when it is whole: a disk that exists is a disk that works.
        let draft = disk.with_extension("new");
        fs::File::create(&draft).await?.set_len(bytes).await?;
        format(&draft).await?;
        fs::File::open(&draft).await?.sync_all().await?;
        fs::rename(&draft, &disk).await?;
        fs::File::open(directory).await?.sync_all().await?;
        Ok(())
    }

    /// Opens the disk to one user, whoever had it before; `None` closes it to all.
    pub fn grant(&self, name: &VmName, user: Option<u32>) -> Result<()> {
        let users: Vec<u32> = user.into_iter().collect();
        let list = acl::only(acl::READ_WRITE, &users);
        match setxattr(self.path(name), acl::ACCESS, &list, XattrFlags::empty()) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::NOENT) if user.is_none() => Ok(()),
            Err(error) => Err(Error::internal(format!(
                "cannot open {} to the VM's user: {error}; its filesystem must support POSIX access lists",
                self.path(name).display()
            ))),
        }
    }

    /// Deletes the VM's disk.
    pub async fn remove(&self, name: &VmName) -> Result<()> {
        match fs::remove_dir_all(self.directory(name)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The names that have a directory here.
    pub async fn list(&self) -> Result<Vec<VmName>> {
        let mut names = Vec::new();
        let mut entries = fs::read_dir(&self.0).await?;
        while let Some(entry) = entries.next_entry().await? {
            names.extend(entry.file_name().to_str().and_then(|name| VmName::new(name).ok()));
        }
        Ok(names)
    }
}

async fn format(disk: &Path) -> Result<()> {
    let output = Command::new("mke2fs")
        .args(MKE2FS)
        .arg(disk)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|error| Error::internal(format!("cannot run mke2fs (package e2fsprogs): {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(Error::internal(format!("mke2fs {}: {}", disk.display(), message.trim())))
}
