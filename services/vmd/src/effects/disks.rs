//! The disks of VMs and volumes: sparse files, each an empty ext4 at first.
//!
//! ```text
//! vms/NAME/disk.img           takes the writes of the guest; a reset makes it anew
//! vms/NAME/work.img           mounted at /work; a reset keeps it
//! vms/NAME/volume-VOLUME.img  hard link to a volume's file while the VM has it
//! volumes/NAME.img            a disk that exists by itself
//! ```
//!
//! Making one writes a few hundred kilobytes of metadata, whatever its size and its image's. A VM
//! sees nothing but its own directory; that is why volumes are linked into it.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use banger_api::{Error, ErrorKind, Result};
use banger_core::acl;
use banger_core::name::VmName;
use banger_core::spec::Spec;
use banger_core::units::MIB;
use banger_daemon::failpoint;
use rustix::fs::{XattrFlags, removexattr, setxattr};
use tokio::fs;
use tokio::process::Command;

use super::seeds::Seeds;

/// Options of mke2fs: nothing is written that can be written later, no blocks are kept for root.
const MKE2FS: &[&str] = &["-q", "-F", "-t", "ext4", "-m", "0", "-E"];
const EXTENDED: &str = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";

/// A guest that cannot write its disk because the host's is full loses data, so none starts with
/// less than this much space left.
const ROOM: u64 = 128 * MIB;

/// What a disk is called until it is finished.
pub(super) const DRAFT: &str = "new";

/// The directories of all disks.
#[derive(Debug, Clone)]
pub struct Disks {
    vms: PathBuf,
    volumes: PathBuf,
    seeds: Arc<Seeds>,
}

/// One disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFile {
    /// Name by which the VMM knows it.
    pub id: String,
    pub path: PathBuf,
    pub read_only: bool,
}

impl Disks {
    /// Opens the directories below a service's state directory.
    pub async fn open(state_dir: PathBuf) -> Result<Self> {
        let seeds = Arc::new(Seeds::open(state_dir.join("seeds")).await?);
        let disks = Self { vms: state_dir.join("vms"), volumes: state_dir.join("volumes"), seeds };
        fs::create_dir_all(&disks.vms).await?;
        fs::create_dir_all(&disks.volumes).await?;
        Ok(disks)
    }

    pub(super) fn directory(&self, name: &VmName) -> PathBuf {
        self.vms.join(name.as_str())
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.volumes.join(format!("{name}.img"))
    }

    /// The VM's own disks in the order in which the guest sees them, after the image's.
    pub fn of(&self, name: &VmName, spec: &Spec) -> Vec<DiskFile> {
        let directory = self.directory(name);
        let own = |id: &str| DiskFile {
            id: id.to_owned(),
            path: directory.join(format!("{id}.img")),
            read_only: false,
        };
        let mut disks = vec![own("disk")];
        if spec.work > 0 {
            disks.push(own("work"));
        }
        disks.extend(spec.volumes.iter().map(|mount| DiskFile {
            read_only: mount.read_only,
            ..own(&format!("volume-{}", mount.volume))
        }));
        disks
    }

    /// Makes whichever disks of the VM are missing, and lets those grow that are to be larger. A
    /// new work disk begins with the content of the directory `seed`.
    pub async fn ensure(&self, name: &VmName, spec: &Spec, seed: Option<&Path>) -> Result<()> {
        let directory = self.directory(name);
        fs::create_dir_all(&directory).await?;
        // The VM's user passes through it to its disk. Nobody else comes this far: what is above is
        // closed, and a VM sees no other VM's directory.
        fs::set_permissions(&directory, Permissions::from_mode(0o711)).await?;
        make(&directory.join("disk.img"), spec.disk).await?;
        if spec.work > 0 {
            self.make_work(&directory.join("work.img"), spec.work, seed).await?;
        }
        self.link_volumes(&directory, spec).await
    }

    async fn make_work(&self, disk: &Path, bytes: u64, seed: Option<&Path>) -> Result<()> {
        match seed {
            Some(seed) if !fs::try_exists(disk).await? => {
                let draft = disk.with_extension(DRAFT);
                if let Err(error) = self.seeds.plant(seed, &draft, bytes).await {
                    let _ = fs::remove_file(&draft).await;
                    return Err(error);
                }
                publish(&draft, disk).await
            }
            _ => make(disk, bytes).await,
        }
    }

    /// Links the VM's volumes into its directory, and no others.
    async fn link_volumes(&self, directory: &Path, spec: &Spec) -> Result<()> {
        let mut entries = fs::read_dir(directory).await?;
        while let Some(entry) = entries.next_entry().await? {
            if entry.file_name().to_string_lossy().starts_with("volume-") {
                fs::remove_file(entry.path()).await?;
            }
        }
        for mount in &spec.volumes {
            let link = directory.join(format!("volume-{}.img", mount.volume));
            fs::hard_link(self.volume(&mount.volume), link).await?;
        }
        Ok(())
    }

    /// Opens the VM's disks to one user, whoever had them before; `None` closes them to all. What
    /// several VMs may read is open to all who can see it.
    pub fn grant(&self, name: &VmName, spec: &Spec, user: Option<u32>) -> Result<()> {
        let users: Vec<u32> = user.into_iter().collect();
        for disk in self.of(name, spec) {
            let granted = if disk.read_only {
                share(&disk.path)
            } else {
                setxattr(&disk.path, acl::ACCESS, &acl::only(acl::READ_WRITE, &users), XattrFlags::empty())
                    .map_err(io::Error::from)
            };
            match granted {
                Err(error) if error.kind() == io::ErrorKind::NotFound && user.is_none() => {}
                Err(error) => {
                    return Err(Error::internal(format!(
                        "cannot open {} to the VM's user: {error}; its filesystem must support POSIX access lists",
                        disk.path.display()
                    )));
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Makes the VM's own disk anew; work disk and volumes stay.
    pub async fn reset(&self, name: &VmName, spec: &Spec) -> Result<()> {
        // Renamed into the old one's place, so that there is a whole one at every instant.
        let disk = self.directory(name).join("disk.img");
        let fresh = match draft(&disk, spec.disk).await {
            // Without room for both at once, the old one goes first. Until the new one is there the VM has
            // none, and does not start.
            Err(error) if error.kind() == ErrorKind::NoSpace => {
                match fs::remove_file(&disk).await {
                    // It went the last time, when there was no room even then.
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                    _ => draft(&disk, spec.disk).await?,
                }
            }
            drafted => drafted?,
        };
        publish(&fresh, &disk).await
    }

    /// Lets the VM's disk files grow to what the specification says. Returns the ids and sizes of
    /// those that did.
    pub async fn grow(&self, name: &VmName, spec: &Spec) -> Result<Vec<(String, u64)>> {
        let directory = self.directory(name);
        let mut grown = Vec::new();
        for (id, bytes) in [("disk", spec.disk), ("work", spec.work)] {
            if bytes > 0 && extend(&directory.join(format!("{id}.img")), bytes).await? {
                grown.push((id.to_owned(), bytes));
            }
        }
        Ok(grown)
    }

    /// # Errors
    /// `NoSpace` if hardly anything is left for what the guest will write.
    pub fn check_room(&self, name: &VmName) -> Result<()> {
        let room = room(&self.vms)?;
        if room >= ROOM {
            return Ok(());
        }
        Err(ErrorKind::NoSpace.error(format!(
            "{} MiB are left for the disk of {name} in {}, less than {} MiB: free some space",
            room / MIB,
            self.vms.display(),
            ROOM / MIB
        )))
    }

    /// Bytes on the host that the VM's own disks take.
    pub async fn used(&self, name: &VmName, spec: &Spec) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        let mut used = 0;
        for disk in self.of(name, &Spec { volumes: Vec::new(), ..spec.clone() }) {
            match fs::metadata(&disk.path).await {
                Ok(metadata) => used += metadata.blocks() * 512,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(used)
    }

    /// Removes what a VM that does not run needs no longer: disks that were never finished, links
    /// to volumes that it has no more, a restore that was cut off.
    pub async fn tidy(&self, name: &VmName, spec: &Spec) -> Result<()> {
        self.forget_restore(name).await?;
        for file in self.strays(name, spec).await? {
            fs::remove_file(file).await?;
        }
        Ok(())
    }

    /// Whether [`Self::tidy`] would remove anything.
    pub async fn has_strays(&self, name: &VmName, spec: &Spec) -> Result<bool> {
        Ok(self.restore(name).is_some() || !self.strays(name, spec).await?.is_empty())
    }

    async fn strays(&self, name: &VmName, spec: &Spec) -> Result<Vec<PathBuf>> {
        let wanted: Vec<PathBuf> = self.of(name, spec).into_iter().map(|disk| disk.path).collect();
        let mut strays = Vec::new();
        let mut entries = fs::read_dir(self.directory(name)).await?;
        while let Some(entry) = entries.next_entry().await? {
            let file = entry.file_name();
            let file = file.to_string_lossy();
            let ours =
                Path::new(&*file).extension().is_some_and(|end| end == DRAFT) || file.starts_with("volume-");
            if ours && !wanted.contains(&entry.path()) {
                strays.push(entry.path());
            }
        }
        Ok(strays)
    }

    /// Deletes the VM's disks. Volumes stay: only their links go.
    pub async fn remove(&self, name: &VmName) -> Result<()> {
        match fs::remove_dir_all(self.directory(name)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The names that have a directory here.
    pub async fn list(&self) -> Result<Vec<VmName>> {
        let mut names = Vec::new();
        let mut entries = fs::read_dir(&self.vms).await?;
        while let Some(entry) = entries.next_entry().await? {
            names.extend(entry.file_name().to_str().and_then(|name| VmName::new(name).ok()));
        }
        Ok(names)
    }

    /// Makes a volume's file anew: one that is there already is what a deletion left.
    pub async fn make_volume(&self, name: &VmName, bytes: u64) -> Result<()> {
        let disk = self.volume(name.as_str());
        let fresh = draft(&disk, bytes).await?;
        publish(&fresh, &disk).await
    }

    pub async fn remove_volume(&self, name: &VmName) -> Result<()> {
        let disk = self.volume(name.as_str());
        for file in [disk.with_extension(DRAFT), disk] {
            match fs::remove_file(file).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// The names of the volumes that have a file, if only an unfinished one.
    pub async fn list_volumes(&self) -> Result<Vec<VmName>> {
        let mut names = Vec::new();
        let mut entries = fs::read_dir(&self.volumes).await?;
        while let Some(entry) = entries.next_entry().await? {
            let file = entry.file_name();
            let name = file.to_str().and_then(|file| file.rsplit_once('.')).map(|(name, _)| name);
            names.extend(name.and_then(|name| VmName::new(name).ok()));
        }
        Ok(names)
    }
}

/// Makes a disk if there is none, and lets one grow that is too small.
async fn make(disk: &Path, bytes: u64) -> Result<()> {
    if fs::try_exists(disk).await? {
        return extend(disk, bytes).await.map(drop);
    }
    let fresh = draft(disk, bytes).await?;
    publish(&fresh, disk).await
}

/// Makes a disk beside the place where it is to be: one that has its name is whole.
async fn draft(disk: &Path, bytes: u64) -> Result<PathBuf> {
    let draft = disk.with_extension(DRAFT);
    fs::File::create(&draft).await?.set_len(bytes).await?;
    if let Err(error) = mke2fs(&draft, "", &[]).await {
        // On a full disk it would be in the way of the next one.
        let _ = fs::remove_file(&draft).await;
        return Err(error.into());
    }
    failpoint!("disk.drafted");
    Ok(draft)
}

/// Puts a finished file into its place, durably.
pub(super) async fn publish(draft: &Path, place: &Path) -> Result<()> {
    fs::File::open(draft).await?.sync_all().await?;
    fs::rename(draft, place).await?;
    failpoint!("disk.published");
    if let Some(directory) = place.parent() {
        fs::File::open(directory).await?.sync_all().await?;
    }
    Ok(())
}

/// Lets a file grow; the guest lets its filesystem follow. Returns whether it was smaller.
async fn extend(disk: &Path, bytes: u64) -> Result<bool> {
    let file = fs::File::options().write(true).open(disk).await?;
    let smaller = file.metadata().await?.len() < bytes;
    if smaller {
        file.set_len(bytes).await?;
    }
    Ok(smaller)
}

/// Lets everybody who can see the file read it, and nobody but its owner write it.
pub(super) fn share(path: &Path) -> io::Result<()> {
    match removexattr(path, acl::ACCESS) {
        Err(error) if error != rustix::io::Errno::NODATA => return Err(error.into()),
        _ => {}
    }
    std::fs::set_permissions(path, Permissions::from_mode(0o644))
}

/// Bytes that files in a directory can still take together.
pub(super) fn room(directory: &Path) -> Result<u64> {
    let filesystem = rustix::fs::statvfs(directory).map_err(io::Error::from)?;
    Ok(filesystem.f_bavail.saturating_mul(filesystem.f_frsize))
}

/// Makes a filesystem, with more extended and other options than all have.
pub(super) async fn mke2fs(disk: &Path, extended: &str, options: &[&OsStr]) -> io::Result<()> {
    let mut command = Command::new("mke2fs");
    command.args(MKE2FS).arg(format!("{EXTENDED}{extended}")).args(options).arg(disk);
    run(command, "e2fsprogs").await
}

/// Copies a sparse file, sharing blocks where the filesystem can.
pub(super) async fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut command = Command::new("cp");
    command.args(["--reflink=auto", "--sparse=always", "--no-preserve=all"]).args([from, to]);
    run(command, "coreutils").await
}

/// Runs a program of a package to its end.
async fn run(mut command: Command, package: &str) -> io::Result<()> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let output = command
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        // One whose outcome nobody waits for any longer leaves the disk alone.
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| io::Error::other(format!("cannot run {program} (package {package}): {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let message = format!("{program}: {}", message.split_whitespace().collect::<Vec<_>>().join(" "));
    // All that programs have to tell what went wrong is the text of the error.
    let full = message.contains("No space left on device");
    let kind = if full { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
    Err(io::Error::new(kind, message))
}
