//! Kernels: import from where distributions put them, unpack, make the initramfs.
//!
//! - [`ar`], [`rpm`], [`cpio`], [`bzimage`], [`elf`]: the file formats
//! - [`modules`]: which modules, in which order (pure)
//! - [`scan`]: what is in packages, archives and directories
//! - [`source`]: from there, or from the host, to a kernel

pub mod ar;
pub mod bzimage;
pub mod cpio;
pub mod elf;
pub mod modules;
pub mod rpm;
pub mod scan;
pub mod source;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use banger_core::event::Event as Happened;
use banger_daemon::event::note;
use banger_daemon::failpoint;

use crate::digest;
use crate::error::{Error, Result};
use crate::files::{self, Files, Staged, create, open_given, private_copy, spool, write_file};
use crate::images::PullOptions;
use crate::layers::stream::Cancel;
use crate::progress::Progress;
use crate::service::{Event, Inner, Service, blocking, discard};
use crate::store::{self, KernelRow};
use crate::trust::{Claims, Policy};
use banger_api::now_usec;
use cpio::Cpio;
use source::{Gathered, Image, Named};

pub const VMLINUZ: &str = "vmlinuz";
pub const VMLINUX: &str = "vmlinux";
pub const INITRAMFS: &str = "initramfs.img";
/// Digest of the agent in the initramfs.
const AGENT_DIGEST: &str = "initramfs.agent";
/// The needed modules, each file's name beginning with its place in the order of loading.
const MODULES: &str = "modules";

const MAX_NAME: usize = 64;

/// A file a kernel comes in, such as a package with all its modules.
const MAX_GIVEN: u64 = 2 << 30;

/// Where a kernel comes from.
#[derive(Debug)]
pub enum KernelSource {
    /// The kernel this host runs, or the newest it has.
    Host,
    /// Packages, archives, a bzImage or an ELF kernel; and a directory of modules.
    Paths(Vec<PathBuf>, Option<PathBuf>),
    Files(Vec<File>, Option<PathBuf>),
}

/// What an import may be told.
#[derive(Debug, Default)]
pub struct KernelOptions {
    /// Empty: the kernel's version.
    pub name: String,
    /// Instead of what the kernel says of itself.
    pub description: Option<String>,
    /// What the given files must be, in their order, hexadecimal; of an empty one anything. Nothing is
    /// checked without any.
    pub sha256: Vec<String>,
}

/// A kernel in staging.
#[derive(Debug)]
pub struct NewKernel {
    staged: Staged,
    row: KernelRow,
}

impl NewKernel {
    pub fn name(&self) -> &str {
        &self.row.name
    }

    /// Puts it in its place, and returns what was there without a row. A transaction that fails afterwards
    /// leaves files for [`Service::sweep_kernel`].
    pub(crate) fn install(
        &self,
        t: &rusqlite::Transaction<'_>,
        files: &Files,
    ) -> banger_api::Result<Option<Staged>> {
        if store::kernel(t, &self.row.name)?.is_some() {
            return Err(Error::NameTaken(self.row.name.clone()).into());
        }
        let target = files.kernel(&self.row.name);
        let trash = files.withdraw(&target)?;
        self.staged.publish(&target)?;
        failpoint!(blocking "kernel.renamed");
        let is_default = store::kernel(t, "")?.is_none();
        store::insert_kernel(t, &KernelRow { is_default, ..self.row.clone() })?;
        Ok(trash)
    }
}

impl Service {
    /// Makes everything of a kernel but its row. An empty name stands for its version.
    pub(crate) async fn prepare_kernel(
        &self,
        source: KernelSource,
        options: KernelOptions,
        progress: &dyn Progress,
    ) -> Result<NewKernel> {
        if !options.name.is_empty() {
            check_name(&options.name)?;
            self.check_kernel_name(&options.name).await?;
        }
        progress.stage("read");
        let cancel = Cancel::default();
        let _cancel = cancel.on_drop();
        let staged = self.0.files.stage()?;
        let files = self.0.files.clone();
        let agent = self.0.settings.agent.clone();
        blocking(move || {
            let gathered = gather(source, &options.sha256, &files, &cancel)?;
            let dir = staged.path();
            write_kernel(dir, &gathered)?;
            build_initramfs(dir, &agent, &gathered.version)?;
            let row = describe(dir, gathered, options)?;
            failpoint!(blocking "kernel.written");
            staged.sync()?;
            Ok(NewKernel { staged, row })
        })
        .await
    }

    /// Imports a kernel. The first becomes the default.
    pub async fn import_kernel(
        &self,
        source: KernelSource,
        options: KernelOptions,
        progress: &dyn Progress,
    ) -> Result<KernelRow> {
        let kernel = self.prepare_kernel(source, options, progress).await?;
        progress.stage("publish");
        let files = self.0.files.clone();
        let name = kernel.name().to_owned();
        let key = name.clone();
        let published =
            self.0.store.transact(move |t| Ok((kernel.install(t, &files)?, find(t, &key)?))).await;
        failpoint!("kernel.done");
        let (trash, row) = match published {
            Ok(published) => published,
            Err(error) => {
                // What is to be told is why it was not published.
                if let Err(second) = self.sweep_kernel(&name).await {
                    tracing::warn!(kernel = name, "cannot remove what is left of it: {second}");
                }
                return Err(error.into());
            }
        };
        note(&Happened::KernelPublished { kernel: &row.name });
        discard(trash).await?;
        self.touch(Event::Kernel(row.name.clone())).await;
        Ok(row)
    }

    /// Pulls a kernel: the layers of an image that has `boot/` and `lib/modules/`, or the files of an artifact.
    pub async fn pull_kernel(
        &self,
        reference: &str,
        pull: PullOptions,
        options: KernelOptions,
        progress: &dyn Progress,
    ) -> Result<KernelRow> {
        let (parts, pins) = self.pull_parts(reference, pull, progress).await?;
        let outcome = self.import_kernel(KernelSource::Files(parts, None), options, progress).await;
        pins.release().await?;
        outcome
    }

    async fn check_kernel_name(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        let work = move |t: &rusqlite::Transaction<'_>| match store::kernel(t, &name)? {
            Some(_) => Err(Error::NameTaken(name).into()),
            None => Ok(()),
        };
        Ok(self.0.store.transact(work).await?)
    }

    pub async fn kernels(&self) -> Result<Vec<KernelRow>> {
        Ok(self.0.store.transact(store::kernels).await?)
    }

    /// The kernel of a name; the empty name is the default.
    pub async fn kernel(&self, name: &str) -> Result<KernelRow> {
        let name = name.to_owned();
        Ok(self.0.store.transact(move |t| find(t, &name)).await?)
    }

    pub async fn kernel_if_any(&self, name: &str) -> Result<Option<KernelRow>> {
        let name = name.to_owned();
        Ok(self.0.store.transact(move |t| store::kernel(t, &name)).await?)
    }

    pub async fn set_default_kernel(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        let touched = self
            .0
            .store
            .transact(move |t| {
                let before = store::kernel(t, "")?;
                let kernel = find(t, &name)?;
                store::set_default_kernel(t, &kernel.name)?;
                Ok([before.map(|kernel| kernel.name), Some(kernel.name)])
            })
            .await?;
        for name in touched.into_iter().flatten() {
            self.touch(Event::Kernel(name)).await;
        }
        Ok(())
    }

    /// Removes a kernel that no VM uses. If it was the default, the newest other one is.
    pub async fn remove_kernel(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        let (gone, successor) = self
            .0
            .store
            .transact(move |t| {
                let kernel = find(t, &name)?;
                if !kernel.holders.is_empty() {
                    return Err(Error::KernelInUse { kernel: kernel.name, holders: kernel.holders }.into());
                }
                let images = store::images_of_kernel(t, &kernel.name)?;
                if !images.is_empty() {
                    return Err(Error::KernelOfImages { kernel: kernel.name, images }.into());
                }
                store::delete_kernel(t, &kernel.name)?;
                let successor = match kernel.is_default {
                    true => store::kernels(t)?.into_iter().next().map(|kernel| kernel.name),
                    false => None,
                };
                if let Some(successor) = &successor {
                    store::set_default_kernel(t, successor)?;
                }
                Ok((kernel.name, successor))
            })
            .await?;
        failpoint!("kernel.removed");
        note(&Happened::KernelDeleted { kernel: &gone });
        self.sweep_kernel(&gone).await?;
        self.touch(Event::Kernel(gone)).await;
        if let Some(successor) = successor {
            self.touch(Event::Kernel(successor)).await;
        }
        Ok(())
    }

    /// Removes a kernel's files if it has no row.
    pub(crate) async fn sweep_kernel(&self, name: &str) -> Result<()> {
        let (files, name) = (self.0.files.clone(), name.to_owned());
        let work = move |t: &rusqlite::Transaction<'_>| match store::kernel(t, &name)? {
            Some(_) => Ok(None),
            None => Ok(files.withdraw(&files.kernel(&name))?),
        };
        discard(self.0.store.transact(work).await?).await
    }

    /// Makes a kernel's initramfs anew if the agent is another one than when it was made.
    pub async fn refresh_initramfs(&self, kernel: &KernelRow) -> Result<()> {
        let Inner { files, settings, builds, .. } = &*self.0;
        let _build = builds.lock(&format!("kernel {}", kernel.name)).await;
        let (dir, agent, files, version) =
            (files.kernel(&kernel.name), settings.agent.clone(), files.clone(), kernel.version.clone());
        blocking(move || refresh(&dir, &agent, &files, &version)).await
    }
}

pub(crate) fn find(t: &rusqlite::Transaction<'_>, name: &str) -> banger_api::Result<KernelRow> {
    store::kernel(t, name)?.ok_or_else(|| {
        let shown: String = name.chars().take(100).collect();
        if name.is_empty() { Error::NoKernel.into() } else { Error::NoSuchKernel(shown).into() }
    })
}

/// A kernel's name that says which image it came with.
pub(crate) fn name_like(image: &str) -> String {
    let usable = |c: char| if c.is_ascii_alphanumeric() || "._+~-".contains(c) { c } else { '-' };
    image.trim_start_matches('[').chars().map(usable).take(MAX_NAME).collect()
}

fn check_name(name: &str) -> Result<()> {
    let fine = name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+~-".contains(&b));
    if fine { Ok(()) } else { Err(Error::BadName(name.chars().take(100).collect())) }
}

fn gather(source: KernelSource, digests: &[String], files: &Files, cancel: &Cancel) -> Result<Gathered> {
    let (given, modules): (Vec<Named>, _) = match source {
        KernelSource::Host if digests.is_empty() => return source::host(files),
        KernelSource::Host => {
            return Err(Error::BadArgument("the host's own kernel has no digest to be checked".into()));
        }
        KernelSource::Paths(paths, modules) => {
            (paths.iter().map(|path| open(path)).collect::<Result<_>>()?, modules)
        }
        KernelSource::Files(given, modules) => {
            let spooled = |file| {
                let file = spool(file, files, MAX_GIVEN, cancel, &std::sync::Arc::default())?;
                Ok(Named { file, what: "the file".into() })
            };
            (given.into_iter().map(spooled).collect::<Result<_>>()?, modules)
        }
    };
    if !digests.is_empty() && digests.len() != given.len() {
        let (digests, given) = (digests.len(), given.len());
        return Err(Error::BadArgument(format!("there are {digests} digests for {given} files")));
    }
    let mut checked = Vec::new();
    for (place, named) in given.into_iter().enumerate() {
        let digest = digests.get(place).filter(|digest| !digest.is_empty());
        checked.push(match digest {
            Some(digest) => check(named, digest, files, cancel)?,
            None => named,
        });
    }
    source::from_files(checked, modules.as_deref(), files)
}

/// A copy of a file that is what it was said to be, which nobody can change afterwards.
fn check(named: Named, digest: &str, files: &Files, cancel: &Cancel) -> Result<Named> {
    let (file, path) = private_copy(named.file, files, MAX_GIVEN, cancel, &std::sync::Arc::default())?;
    files::remove(&path);
    let claims = Claims { sha256: Some(digest.to_owned()), signature: None };
    claims.check(&file, &Policy::default()).map_err(|error| match error {
        Error::DigestMismatch { wanted, found, .. } => {
            Error::DigestMismatch { what: named.what.clone(), wanted, found }
        }
        error => error,
    })?;
    Ok(Named { file, what: named.what })
}

fn open(path: &Path) -> Result<Named> {
    let what = path.display().to_string();
    if !path.is_absolute() {
        return Err(Error::BadArgument(format!(
            "the source {what:?} is neither \"host\" nor an absolute path"
        )));
    }
    Ok(Named { file: open_given(path)?, what })
}

/// Puts everything but the initramfs into the kernel's directory.
fn write_kernel(dir: &Path, gathered: &Gathered) -> Result<()> {
    let unsupported = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => {
            Error::KernelUnsupported(gathered.version.clone(), error.to_string())
        }
        _ => Error::Io { what: "cannot write the kernel".into(), source: error },
    };
    match &gathered.image {
        Image::Packed(image) => {
            write_file(&dir.join(VMLINUZ), image)?;
            let mut out = std::io::BufWriter::with_capacity(1 << 20, create(&dir.join(VMLINUX))?);
            bzimage::unpack(image, &mut out).map_err(unsupported)?;
            out.flush().map_err(unsupported)?;
        }
        // VMMs that want a bzImage take an ELF as well.
        Image::Elf(file) => {
            let mut out = create(&dir.join(VMLINUX))?;
            let mut file = file;
            std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(0)).map_err(unsupported)?;
            std::io::copy(&mut file, &mut out).map_err(unsupported)?;
            fs::hard_link(dir.join(VMLINUX), dir.join(VMLINUZ)).map_err(unsupported)?;
        }
    }
    let modules = dir.join(MODULES);
    fs::create_dir(&modules).map_err(unsupported)?;
    for (place, (name, content)) in gathered.modules.iter().enumerate() {
        write_file(&modules.join(format!("{place:02}-{name}.ko")), content)?;
    }
    Ok(())
}

/// The kernel's row, and its configuration in its directory if there is one.
fn describe(dir: &Path, gathered: Gathered, options: KernelOptions) -> Result<KernelRow> {
    let vmlinux = File::open(dir.join(VMLINUX)).map_err(Error::io("cannot read the kernel"))?;
    let config = match gathered.config {
        Some(config) => Some(config),
        None => elf::config(&vmlinux).map_err(Error::io("cannot read the kernel"))?,
    };
    if let Some(config) = &config {
        write_file(&dir.join("config"), config)?;
    }
    let modules = gathered.modules.into_iter().map(|(name, _)| name).collect();
    let features =
        config.map(|config| banger_core::kernel::features(&String::from_utf8_lossy(&config), &modules));
    Ok(KernelRow {
        name: if options.name.is_empty() { gathered.version.clone() } else { options.name },
        version: gathered.version,
        architecture: crate::registry::Platform::host().architecture,
        description: options.description.unwrap_or(gathered.banner),
        features,
        is_default: false,
        created_usec: now_usec(),
        holders: Vec::new(),
    })
}

fn read_agent(agent: &Path) -> Result<Vec<u8>> {
    fs::read(agent)
        .map_err(|error| Error::NoAgent { path: agent.display().to_string(), reason: error.to_string() })
}

/// Makes the initramfs of a kernel from the agent and the modules in its directory.
fn build_initramfs(dir: &Path, agent: &Path, version: &str) -> Result<()> {
    let agent = read_agent(agent)?;
    let digest = digest::sha256(&agent);
    let archive = initramfs(&dir.join(MODULES), &agent)?;
    tracing::debug!("initramfs of {version}: {} bytes", archive.len());
    write_file(&dir.join(INITRAMFS), &archive)?;
    write_file(&dir.join(AGENT_DIGEST), digest.as_bytes())
}

fn refresh(dir: &Path, agent: &Path, files: &Files, version: &str) -> Result<()> {
    let noted = fs::read_to_string(dir.join(AGENT_DIGEST)).unwrap_or_default();
    // Reading some megabytes for every start of a VM would be felt; an unchanged file is not read.
    let stamp =
        fs::metadata(agent).map(|m| format!("{}-{}-{}-{}", m.dev(), m.ino(), m.size(), m.mtime())).ok();
    let stamp_path = dir.join("initramfs.stamp");
    if stamp.is_some() && fs::read_to_string(&stamp_path).ok() == stamp && dir.join(INITRAMFS).exists() {
        return Ok(());
    }
    let content = read_agent(agent)?;
    if digest::sha256(&content) != noted.trim() || !dir.join(INITRAMFS).exists() {
        let staged = files.stage()?;
        let archive = initramfs(&dir.join(MODULES), &content)?;
        write_file(&staged.path().join(INITRAMFS), &archive)?;
        write_file(&staged.path().join(AGENT_DIGEST), digest::sha256(&content).as_bytes())?;
        staged.sync()?;
        // VMs that run have read theirs long ago. Killed in between: the digest does not fit, and it is made again.
        for name in [INITRAMFS, AGENT_DIGEST] {
            fs::rename(staged.path().join(name), dir.join(name))
                .map_err(Error::io("cannot replace the initramfs"))?;
        }
        files::sync_dir(dir).map_err(Error::io("cannot replace the initramfs"))?;
        tracing::info!("made the initramfs of {version} anew for a changed agent");
    }
    files::remove(&stamp_path);
    match stamp {
        Some(stamp) => write_file(&stamp_path, stamp.as_bytes()),
        None => Ok(()),
    }
}

/// The archive: the agent as `/init`, the modules, the list of them in the order of loading.
fn initramfs(modules: &Path, agent: &[u8]) -> Result<Vec<u8>> {
    let mut content = BTreeMap::new();
    for file in files::list(modules)? {
        let path = modules.join(&file);
        let bytes = fs::read(&path).map_err(Error::io(format!("cannot read {}", path.display())))?;
        content.insert(file, bytes);
    }
    let mut cpio = Cpio::default();
    for dir in ["dev", "proc", "sys", "run", "mnt", "newroot", "modules"] {
        cpio.directory(dir);
    }
    // The kernel opens it for init before anything is mounted.
    cpio.char_device("dev/console", 0o600, 5, 1);
    cpio.char_device("dev/null", 0o666, 1, 3);
    cpio.file("init", true, agent);
    let mut list = String::new();
    for (file, bytes) in &content {
        list.push_str(&format!("/modules/{file}\n"));
        cpio.file(&format!("modules/{file}"), false, bytes);
    }
    cpio.file("modules.load", false, list.as_bytes());
    Ok(cpio.finish())
}
