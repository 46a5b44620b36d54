//! What work disks begin with: images of a directory of the host's.
//!
//! ```text
//! seeds/FINGERPRINT.img   an ext4 with the directory's content, never written again
//! ```
//!
//! The fingerprint is of the directory's entries, not of their bytes: finding out whether an image
//! is still good takes no longer than a look at each of them. New work disks are copies that share
//! blocks with the image where the filesystem can; the guest lets them grow to their size.

use std::ffi::OsStr;
use std::fmt::Write;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use banger_api::{Error, ErrorKind, Result};
use banger_core::units::MIB;
use rustix::fs::Access;
use sha2::{Digest, Sha256};
use tokio::fs;
use tokio::sync::RwLock;

use super::disks::{copy, mke2fs, publish, room};

/// Goes into the fingerprints. To be changed with the way in which images are made.
const FORMAT: &str = "1";

/// How often a directory that changes while it is copied is tried again.
const TRIES: usize = 3;

const BLOCK: u64 = 4096;

/// Bytes for which mke2fs makes an inode. No image has fewer for each of its entries.
const BYTES_PER_INODE: u64 = 16384;

#[derive(Debug)]
pub struct Seeds {
    directory: PathBuf,
    /// Held for writing while images come and go, for reading while they are copied.
    lock: RwLock<()>,
}

impl Seeds {
    /// Opens the directory of the images, without what an instance that was cut off has left there.
    pub async fn open(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory).await?;
        let seeds = Self { directory, lock: RwLock::default() };
        seeds.keep(|file| file.extension().is_some_and(|extension| extension == "img")).await?;
        Ok(seeds)
    }

    /// Makes the file `disk` a copy of `source`'s image, of `bytes`.
    ///
    /// # Errors
    /// - `NotReady` if the directory is not there, cannot be read, or does not hold still.
    /// - `InvalidArgs` if the disk is too small for it.
    /// - `NoSpace`.
    pub async fn plant(&self, source: &Path, disk: &Path, bytes: u64) -> Result<()> {
        let lock = self.lock.write().await;
        let image = self.image(source).await?;
        let _reading = lock.downgrade();
        let least = fs::metadata(&image).await?.len();
        if bytes < least {
            return Err(ErrorKind::InvalidArgs.error(format!(
                "a work disk of {} MiB is too small for what is in {}: give it at least {} MiB",
                bytes / MIB,
                source.display(),
                least.div_ceil(MIB)
            )));
        }
        copy(&image, disk).await?;
        Ok(fs::File::options().write(true).open(disk).await?.set_len(bytes).await?)
    }

    /// The image of a directory as it is now; made if there is none. All others go: disks are
    /// copies and need none.
    async fn image(&self, source: &Path) -> Result<PathBuf> {
        let mut survey = survey(source).await?;
        for _ in 0..TRIES {
            let image = self.directory.join(format!("{}.img", survey.fingerprint));
            self.keep(|file| file == image).await?;
            if fs::try_exists(&image).await? {
                return Ok(image);
            }
            let draft = self.make(source, &survey).await?;
            let after = self::survey(source).await?;
            if after == survey {
                publish(&draft, &image).await?;
                tracing::info!(source = %source.display(), image = %image.display(), "made the seed of work disks");
                return Ok(image);
            }
            survey = after;
        }
        Err(ErrorKind::NotReady.error(format!(
            "the seed of work disks, {}, changes while it is copied: let what writes there come to its end first",
            source.display()
        )))
    }

    /// Removes all files but these.
    async fn keep(&self, these: impl Fn(&Path) -> bool) -> Result<()> {
        let mut entries = fs::read_dir(&self.directory).await?;
        while let Some(entry) = entries.next_entry().await? {
            if !these(&entry.path()) {
                fs::remove_file(entry.path()).await?;
            }
        }
        Ok(())
    }

    /// Makes an image under a name of its own: what is cut off is in nobody's way.
    async fn make(&self, source: &Path, survey: &Survey) -> Result<PathBuf> {
        let room = room(&self.directory)?;
        if room < survey.content {
            return Err(ErrorKind::NoSpace.error(format!(
                "{} MiB are left in {}, less than the {} MiB of {}: free some space",
                room / MIB,
                self.directory.display(),
                survey.content / MIB,
                source.display()
            )));
        }
        let draft = self.directory.join(format!("{}.new", uuid::Uuid::new_v4().simple()));
        fs::File::create(&draft).await?.set_len(survey.image_size()).await?;
        let extended = format!(",root_owner={}:{}", survey.owner.0, survey.owner.1);
        let (block, inode) = (BLOCK.to_string(), BYTES_PER_INODE.to_string());
        let options = ["-b", &block, "-i", &inode, "-d"].map(OsStr::new);
        let options: Vec<&OsStr> = options.into_iter().chain([source.as_os_str()]).collect();
        if let Err(error) = mke2fs(&draft, &extended, &options).await {
            let _ = fs::remove_file(&draft).await;
            return Err(error.into());
        }
        Ok(draft)
    }
}

/// A directory at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Survey {
    /// SHA-256, hexadecimal.
    fingerprint: String,
    /// Bytes of all files, in whole blocks.
    content: u64,
    entries: u64,
    /// User and group of the directory itself.
    owner: (u32, u32),
}

impl Survey {
    /// Bytes of an image that holds all of it, with some to spare for the filesystem's own.
    fn image_size(&self) -> u64 {
        let needed = self.content + self.entries * BYTES_PER_INODE;
        (needed + needed / 10 + 64 * MIB).next_multiple_of(MIB)
    }
}

async fn survey(source: &Path) -> Result<Survey> {
    let path = source.to_owned();
    let surveyed = tokio::task::spawn_blocking(move || look(&path)).await.map_err(Error::internal)?;
    surveyed.map_err(|(path, error)| explain(source, &path, &error))
}

fn explain(source: &Path, path: &Path, error: &io::Error) -> Error {
    let (source, path) = (source.display(), path.display());
    ErrorKind::NotReady.error(match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "the seed of work disks: vmd may not read {path}; `setfacl -R -m u:banger-vmd:rX {source}` lets it"
        ),
        io::ErrorKind::NotFound => format!(
            "the seed of work disks, {path}, is not there: make it, or take `seed` out of [work] in vmd.conf"
        ),
        _ => format!("the seed of work disks: cannot read {path}: {error}"),
    })
}

/// Looks at everything in a directory once.
fn look(source: &Path) -> std::result::Result<Survey, (PathBuf, io::Error)> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| (path, error)
    };
    let top = std::fs::metadata(source).map_err(at(source))?;
    if !top.is_dir() {
        return Err((source.to_owned(), io::Error::from(io::ErrorKind::NotADirectory)));
    }
    let mut hash = Sha256::new_with_prefix(FORMAT);
    let (mut content, mut entries) = (0, 1);
    let mut directories = vec![source.to_owned()];
    hash_entry(&mut hash, source, &top, None);
    while let Some(directory) = directories.pop() {
        let listed = std::fs::read_dir(&directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut paths: Vec<PathBuf> = listed.map_err(at(&directory))?.iter().map(|it| it.path()).collect();
        paths.sort();
        for path in paths {
            let metadata = path.symlink_metadata().map_err(at(&path))?;
            let mut target = None;
            if metadata.is_symlink() {
                target = Some(std::fs::read_link(&path).map_err(at(&path))?);
            } else if metadata.is_dir() {
                directories.push(path.clone());
            } else if metadata.is_file() {
                rustix::fs::access(&path, Access::READ_OK).map_err(|error| at(&path)(error.into()))?;
                content += metadata.len().next_multiple_of(BLOCK);
            }
            entries += 1;
            hash_entry(&mut hash, &path, &metadata, target.as_deref());
        }
    }
    let mut fingerprint = String::new();
    for byte in hash.finalize() {
        let _ = write!(fingerprint, "{byte:02x}");
    }
    Ok(Survey { fingerprint, content, entries, owner: (top.uid(), top.gid()) })
}

/// Paths and targets end with a byte that they cannot contain.
fn hash_entry(hash: &mut Sha256, path: &Path, metadata: &std::fs::Metadata, target: Option<&Path>) {
    hash.update(path.as_os_str().as_bytes());
    hash.update([0]);
    hash.update(target.map(|target| target.as_os_str().as_bytes()).unwrap_or_default());
    hash.update([0]);
    for number in [metadata.mode(), metadata.uid(), metadata.gid()] {
        hash.update(number.to_le_bytes());
    }
    // A change that leaves size and time as they were shows in the time of the change.
    for number in [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()] {
        hash.update(number.to_le_bytes());
    }
    // How large a directory is differs from filesystem to filesystem, and says nothing.
    let size = if metadata.is_dir() { 0 } else { metadata.len() };
    for number in [size, metadata.rdev()] {
        hash.update(number.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn every_change_has_another_fingerprint() {
        let directory = tempfile::tempdir().expect("makes");
        let path = |name: &str| directory.path().join(name);
        let look = || look(directory.path()).expect("looks");
        let mut seen = vec![look()];
        let mut changed = |what: &str| {
            let survey = look();
            assert!(!seen.contains(&survey), "{what}");
            assert_eq!(survey, look(), "{what}");
            seen.push(survey);
        };
        std::fs::create_dir(path("sub")).expect("makes");
        changed("a directory");
        std::fs::write(path("sub/file"), "one").expect("writes");
        changed("a file");
        std::fs::write(path("sub/file"), "two").expect("writes");
        changed("content");
        std::fs::rename(path("sub/file"), path("sub/other")).expect("renames");
        changed("a name");
        symlink("other", path("sub/link")).expect("links");
        changed("a link");
        std::fs::remove_file(path("sub/link")).expect("removes");
        symlink("else", path("sub/link")).expect("links");
        changed("its target");
    }

    #[test]
    fn images_have_room_for_all() {
        let survey =
            |content, entries| Survey { fingerprint: String::new(), content, entries, owner: (0, 0) };
        assert_eq!(survey(0, 1).image_size(), 65 * MIB);
        let many = survey(100_000 * BLOCK, 100_000);
        assert!(many.image_size() / BYTES_PER_INODE > many.entries);
        assert!(many.image_size() > many.content + many.entries * BLOCK);
    }

    #[tokio::test]
    async fn what_was_cut_off_goes() {
        let directory = tempfile::tempdir().expect("makes");
        for name in ["a.img", "b.new"] {
            std::fs::write(directory.path().join(name), "").expect("writes");
        }
        Seeds::open(directory.path().to_owned()).await.expect("opens");
        assert!(directory.path().join("a.img").exists() && !directory.path().join("b.new").exists());
    }

    #[tokio::test]
    async fn what_is_not_there_is_named() {
        let directory = tempfile::tempdir().expect("makes");
        let seeds = Seeds::open(directory.path().join("seeds")).await.expect("opens");
        let refused = async |source: &Path| {
            let disk = directory.path().join("work.new");
            seeds.plant(source, &disk, 1 << 30).await.expect_err("refused")
        };
        let error = refused(Path::new("/no/such")).await;
        assert_eq!(error.kind(), ErrorKind::NotReady);
        assert!(error.message().contains("/no/such, is not there: make it"), "{error}");
        let file = directory.path().join("file");
        std::fs::write(&file, "").expect("writes");
        assert!(refused(&file).await.message().contains("ot a directory"));
    }
}
