//! The files of snapshots.
//!
//! ```text
//! vms/NAME/snapshots/SNAPSHOT/     what a guest was at a moment
//!     snapshot.json                what it was made of; its being there makes the snapshot whole
//!     state, memory                as the VMM wrote them (QEMU has all in state)
//!     disk.img, work.img           the disks of that moment
//! vms/NAME/restore/                state and memory of the start under way, by hard links
//! ```
//!
//! They are in the VM's own directory because its VMM, which writes and reads some of them, sees
//! nothing else.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use banger_api::{Error, ErrorKind, Result};
use banger_core::acl;
use banger_core::name::VmName;
use banger_core::snapshot::Snapshot;
use banger_vmm::control::{MEMORY, STATE};
use rustix::fs::{XattrFlags, setxattr};
use tokio::fs;

use super::disks::{DRAFT, Disks, copy, publish, share};

const META: &str = "snapshot.json";
const RESTORE: &str = "restore";

impl Disks {
    fn snapshots(&self, name: &VmName) -> PathBuf {
        self.directory(name).join("snapshots")
    }

    pub fn snapshot(&self, name: &VmName, snapshot: &VmName) -> PathBuf {
        self.snapshots(name).join(snapshot.as_str())
    }

    /// Makes the directory of a snapshot in which the VMM, as `user`, can write.
    ///
    /// # Errors
    /// `NameTaken`.
    pub async fn begin_snapshot(&self, name: &VmName, snapshot: &VmName, user: u32) -> Result<PathBuf> {
        let directory = self.snapshot(name, snapshot);
        if fs::try_exists(directory.join(META)).await? {
            return Err(ErrorKind::NameTaken.error(format!(
                "{name} has a snapshot {snapshot} already: choose another name, or delete it with `banger snapshot rm`"
            )));
        }
        // Without its description it is what a crash has left.
        self.remove_snapshot(name, snapshot).await?;
        fs::create_dir_all(&directory).await?;
        for path in [self.snapshots(name), directory.clone()] {
            pass_through(&path).await?;
        }
        for file in [STATE, MEMORY] {
            let path = directory.join(file);
            fs::File::create(&path).await?;
            setxattr(&path, acl::ACCESS, &acl::only(acl::READ_WRITE, &[user]), XattrFlags::empty())
                .map_err(io::Error::from)?;
        }
        Ok(directory)
    }

    /// Copies the VM's disks into a snapshot. Blocks are shared where the filesystem can.
    pub async fn copy_into_snapshot(&self, name: &VmName, directory: &Path) -> io::Result<()> {
        for disk in own_disks(&self.directory(name)).await? {
            copy(&self.directory(name).join(&disk), &directory.join(&disk)).await?;
        }
        Ok(())
    }

    /// Closes the files to the VMM and writes down what the snapshot is of, which makes it one.
    pub async fn finish_snapshot(&self, directory: &Path, snapshot: &Snapshot) -> Result<()> {
        for file in [STATE, MEMORY] {
            share(&directory.join(file))?;
        }
        // What the description says is whole is to be so after a power failure, too. No fork outlives one.
        if !snapshot.fork {
            for disk in own_disks(directory).await? {
                fs::File::open(directory.join(disk)).await?.sync_all().await?;
            }
        }
        let draft = directory.join("snapshot.new");
        fs::write(&draft, serde_json::to_vec(snapshot).map_err(Error::internal)?).await?;
        publish(&draft, &directory.join(META)).await
    }

    /// # Errors
    /// `NoSuchSnapshot`.
    pub async fn read_snapshot(&self, name: &VmName, snapshot: &VmName) -> Result<Snapshot> {
        self.whole_snapshot(name, snapshot).await?.ok_or_else(|| {
            ErrorKind::NoSuchSnapshot
                .error(format!("{name} has no snapshot {snapshot}; `banger snapshot ls {name}` lists all"))
        })
    }

    async fn whole_snapshot(&self, name: &VmName, snapshot: &VmName) -> Result<Option<Snapshot>> {
        match fs::read(self.snapshot(name, snapshot).join(META)).await {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(Error::internal),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The whole snapshots of a VM, oldest first, each with the bytes it takes.
    pub async fn list_snapshots(&self, name: &VmName) -> Result<Vec<(VmName, Snapshot, u64)>> {
        let mut entries = match fs::read_dir(self.snapshots(name)).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut snapshots = Vec::new();
        while let Some(entry) = entries.next_entry().await? {
            let file = entry.file_name();
            let Some(snapshot) = file.to_str().and_then(|file| VmName::new(file).ok()) else { continue };
            if let Some(meta) = self.whole_snapshot(name, &snapshot).await? {
                snapshots.push((snapshot, meta, size(&entry.path()).await?));
            }
        }
        snapshots.sort_by_key(|(_, snapshot, _)| snapshot.created_usec);
        Ok(snapshots)
    }

    /// The directories of what is no whole snapshot, and of what was made for forks but those of `forks`.
    pub async fn broken_snapshots(&self, name: &VmName, forks: &HashSet<VmName>) -> Result<Vec<PathBuf>> {
        let mut entries = match fs::read_dir(self.snapshots(name)).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut broken = Vec::new();
        while let Some(entry) = entries.next_entry().await? {
            let file = entry.file_name();
            let snapshot = file.to_str().and_then(|file| VmName::new(file).ok());
            let whole = match &snapshot {
                Some(snapshot) => self.whole_snapshot(name, snapshot).await?,
                None => None,
            };
            let wanted = |whole: Snapshot| !whole.fork || snapshot.is_some_and(|name| forks.contains(&name));
            if !whole.is_some_and(wanted) {
                broken.push(entry.path());
            }
        }
        Ok(broken)
    }

    /// Deletes a snapshot, whole or not.
    pub async fn remove_snapshot(&self, name: &VmName, snapshot: &VmName) -> Result<()> {
        let directory = self.snapshot(name, snapshot);
        // First what makes it a snapshot, so that half of one is never taken for one.
        for gone in [fs::remove_file(directory.join(META)).await, fs::remove_dir_all(&directory).await] {
            match gone {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the disks of `name` those of a snapshot of `of`, and has its next start go on from
    /// there.
    pub async fn restore_from(&self, name: &VmName, of: &VmName, snapshot: &VmName) -> Result<()> {
        let from = self.snapshot(of, snapshot);
        let directory = self.directory(name);
        fs::create_dir_all(&directory).await?;
        pass_through(&directory).await?;
        let disks = own_disks(&from).await?;
        let draft = |disk: &String| directory.join(disk).with_extension(DRAFT);
        for disk in &disks {
            if let Err(error) = copy(&from.join(disk), &draft(disk)).await {
                // Most likely there is no room for all of them: the VM stays what it was.
                for disk in &disks {
                    let _ = fs::remove_file(draft(disk)).await;
                }
                return Err(error.into());
            }
        }
        for disk in &disks {
            publish(&draft(disk), &directory.join(disk)).await?;
        }
        self.forget_restore(name).await?;
        let restore = directory.join(RESTORE);
        fs::create_dir(&restore).await?;
        pass_through(&restore).await?;
        for file in [STATE, MEMORY] {
            fs::hard_link(from.join(file), restore.join(file)).await?;
        }
        Ok(())
    }

    /// The directory from which the start under way goes on, if it does not begin with a boot.
    pub fn restore(&self, name: &VmName) -> Option<PathBuf> {
        Some(self.directory(name).join(RESTORE)).filter(|restore| restore.exists())
    }

    /// The next start begins with a boot.
    pub async fn forget_restore(&self, name: &VmName) -> Result<()> {
        match fs::remove_dir_all(self.directory(name).join(RESTORE)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// The VM's user passes through to files whose names it knows.
async fn pass_through(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory, std::fs::Permissions::from_mode(0o711)).await
}

/// The names of a VM's own disks in a directory. Volumes are nobody's own.
async fn own_disks(directory: &Path) -> io::Result<Vec<String>> {
    let mut disks = Vec::new();
    for disk in ["disk.img", "work.img"] {
        if fs::try_exists(directory.join(disk)).await? {
            disks.push(disk.to_owned());
        }
    }
    Ok(disks)
}

/// Bytes that the files of a directory take.
async fn size(directory: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut entries = fs::read_dir(directory).await?;
    let mut bytes = 0;
    while let Some(entry) = entries.next_entry().await? {
        bytes += entry.metadata().await?.blocks() * 512;
    }
    Ok(bytes)
}
