//! One pass over what a kernel comes in: packages, archives, directories of modules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::cpio::CpioReader;
use super::{ar, bzimage, modules, rpm};
use crate::error::{Error, Result};
use crate::files::{Files, remove};
use crate::layers::stream::decompress;
use crate::tar::{Kind, TarError, TarReader};

/// A kernel image: unpacked ones have been seen up to 120 MB.
pub(super) const MAX_IMAGE: u64 = 512 << 20;
const MAX_MODULE: u64 = 32 << 20;
/// All modules of a guest; distributions' take 5.
const MAX_MODULES: u64 = 64 << 20;
const MAX_TEXT: u64 = 4 << 20;
/// Everything a package unpacks to.
const MAX_PACKAGE: u64 = 8 << 30;
const MAX_DEPTH: usize = 32;

/// Something with pieces of a kernel in it.
pub enum Part {
    Deb(File),
    Rpm(File),
    /// A tar, compressed or not.
    Archive(File),
    /// What a kernel is given by a boot loader: archives of cpio one after the other, the last one
    /// compressed or not.
    Initrd(File),
    /// A directory such as `/lib/modules/6.1.0-40-cloud-amd64`.
    Tree(PathBuf),
}

/// What a path in a part is.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    Image,
    Config,
    Builtin,
    /// The kernel's version if the path names it, and the module's name.
    Module(&'a str, String),
    Other,
}

/// What a pass has found.
#[derive(Default)]
pub struct Scan {
    pub image: Option<File>,
    pub config: Option<Vec<u8>>,
    /// Names of all modules.
    pub files: BTreeSet<String>,
    pub builtin: BTreeSet<String>,
    /// The modules that were wanted, unpacked.
    pub content: BTreeMap<String, Vec<u8>>,
    /// Versions that directories of modules are named after.
    pub versions: BTreeSet<String>,
    bytes: u64,
}

/// Called with the path and the content of each regular file.
type Visit<'a> = dyn FnMut(&str, &mut dyn Read) -> Result<()> + 'a;

impl Part {
    /// What a file is by its first bytes; back as it is if it is none of these.
    pub fn of(mut file: File) -> io::Result<std::result::Result<Self, File>> {
        let mut start = [0u8; 512];
        file.seek(SeekFrom::Start(0))?;
        let mut got = 0;
        while got < start.len() {
            match file.read(&mut start[got..])? {
                0 => break,
                count => got += count,
            }
        }
        file.seek(SeekFrom::Start(0))?;
        let start = &start[..got];
        Ok(if ar::is_ar(start) {
            Ok(Self::Deb(file))
        } else if rpm::is_rpm(start) {
            Ok(Self::Rpm(file))
        } else if is_cpio(start) {
            Ok(Self::Initrd(file))
        } else if is_archive(start) {
            Ok(Self::Archive(file))
        } else {
            Err(file)
        })
    }

    /// Whether it was made to hold modules, so that none in it means that another file has them.
    pub fn is_package(&self) -> bool {
        matches!(self, Self::Deb(_) | Self::Rpm(_) | Self::Tree(_))
    }

    /// Adds what is in the part to what is known. Of the modules only those wanted are kept; the
    /// image and the texts are read in the first pass alone.
    pub fn scan(
        &self,
        scan: &mut Scan,
        what: &str,
        wanted: &BTreeSet<String>,
        files: Option<&Files>,
    ) -> Result<()> {
        self.walk(what, &mut |path, content| scan.take(what, path, content, wanted, files))
    }

    fn walk(&self, what: &str, visit: &mut Visit<'_>) -> Result<()> {
        let again = |file: &File, start: u64| -> Result<File> {
            let mut file = file.try_clone().map_err(Error::io("cannot read the file again"))?;
            file.seek(SeekFrom::Start(start)).map_err(Error::io("cannot read the file again"))?;
            Ok(file)
        };
        match self {
            Self::Deb(file) => {
                let (start, length) =
                    ar::find_data(&mut again(file, 0)?).map_err(|error| unsupported(what, error))?;
                walk_tar(again(file, start)?.take(length), what, visit)
            }
            Self::Rpm(file) => {
                let start =
                    rpm::find_payload(&mut again(file, 0)?).map_err(|error| unsupported(what, error))?;
                walk_cpio(again(file, start)?, what, visit)
            }
            Self::Archive(file) => walk_archive(again(file, 0)?, what, visit),
            Self::Initrd(file) => walk_initrd(again(file, 0)?, what, visit),
            Self::Tree(tree) => walk_tree(tree, visit),
        }
    }
}

impl Scan {
    fn take(
        &mut self,
        what: &str,
        path: &str,
        content: &mut dyn Read,
        wanted: &BTreeSet<String>,
        files: Option<&Files>,
    ) -> Result<()> {
        let damaged = |error: io::Error| unsupported(what, format!("{path}: {error}"));
        match (piece(path), files) {
            (Piece::Image, Some(files)) if self.image.is_none() => {
                self.image = Some(spool(content, files).map_err(|error| match error {
                    Spool::Read(error) => damaged(error),
                    Spool::Other(error) => error,
                })?);
            }
            (Piece::Config, Some(_)) => self.config = Some(read_limited(content, MAX_TEXT).map_err(damaged)?),
            (Piece::Builtin, Some(_)) => {
                let text = read_limited(content, MAX_TEXT).map_err(damaged)?;
                self.builtin.extend(String::from_utf8_lossy(&text).lines().filter_map(modules::name_of));
            }
            (Piece::Module(version, name), _) => {
                if wanted.contains(&name) && !self.content.contains_key(&name) {
                    let module = unpack_module(read_limited(content, MAX_MODULE).map_err(damaged)?)
                        .map_err(damaged)?;
                    self.bytes += module.len() as u64;
                    if self.bytes > MAX_MODULES {
                        return Err(unsupported(what, "its modules are too large"));
                    }
                    self.content.insert(name.clone(), module);
                }
                self.files.insert(name);
                if !version.is_empty() {
                    self.versions.insert(version.to_owned());
                }
            }
            _ => {}
        }
        Ok(())
    }
}

pub fn unsupported(what: &str, reason: impl ToString) -> Error {
    Error::KernelUnsupported(what.to_owned(), reason.to_string())
}

/// Debian puts `boot/vmlinuz-VERSION` into packages, Fedora and Arch `lib/modules/VERSION/vmlinuz`,
/// kernels for Firecracker are often called `vmlinux`.
fn piece(path: &str) -> Piece<'_> {
    let path = path.trim_start_matches(['.', '/']);
    let path = path.strip_prefix("usr/").unwrap_or(path);
    let is_image = |name: &str| {
        ["vmlinuz", "vmlinux", "bzImage"].iter().any(|stem| {
            name.strip_prefix(stem).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
        })
    };
    if let Some(rest) = path.strip_prefix("lib/modules/") {
        let (version, rest) = rest.split_once('/').unwrap_or((rest, ""));
        return match rest {
            "vmlinuz" => Piece::Image,
            "config" => Piece::Config,
            "modules.builtin" => Piece::Builtin,
            _ => modules::name_of(rest).map_or(Piece::Other, |name| Piece::Module(version, name)),
        };
    }
    match path.strip_prefix("boot/").unwrap_or(path) {
        name if name.contains('/') => Piece::Other,
        name if is_image(name) => Piece::Image,
        name if name == "config" || name.starts_with("config-") => Piece::Config,
        _ => Piece::Other,
    }
}

fn is_archive(start: &[u8]) -> bool {
    let packed: [&[u8]; 3] = [&[0x1f, 0x8b], &[0x28, 0xb5, 0x2f, 0xfd], b"\xfd7zXZ\0"];
    packed.iter().any(|magic| start.starts_with(magic)) || start.get(257..262) == Some(b"ustar")
}

/// Where a tar entry is read from.
struct TarEntry<'a, R>(&'a mut TarReader<R>);

impl<R: Read> Read for TarEntry<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error {
            TarError::Io(error) => error,
            error => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
        })
    }
}

/// Whether an archive of cpio begins here (newc, with or without checksums).
fn is_cpio(start: &[u8]) -> bool {
    start.starts_with(b"070701") || start.starts_with(b"070702")
}

/// A tar, or an initrd that is compressed as a whole.
fn walk_archive(mut file: File, what: &str, visit: &mut Visit<'_>) -> Result<()> {
    let unreadable = |error| torn(what, error);
    let mut start = [0; 6];
    let mut unpacked = decompress(file.try_clone().map_err(unreadable)?).map_err(unreadable)?;
    let found = unpacked.read_exact(&mut start);
    drop(unpacked);
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    match found {
        Ok(()) if is_cpio(&start) => walk_cpio(file, what, visit),
        _ => walk_tar(file, what, visit),
    }
}

/// Microcode comes in an archive of its own before that with the modules; zeros are between them.
fn walk_initrd(file: File, what: &str, visit: &mut Visit<'_>) -> Result<()> {
    let unreadable = |error| torn(what, error);
    let mut file = BufReader::with_capacity(128 << 10, file);
    loop {
        let start = file.fill_buf().map_err(unreadable)?;
        match start {
            [] => return Ok(()),
            [0, ..] => {
                let zeros = start.iter().take_while(|&&byte| byte == 0).count();
                file.consume(zeros);
            }
            start if is_cpio(start) => visit_entries(&mut CpioReader::new(&mut file), what, visit)?,
            _ => return walk_cpio(file, what, visit),
        }
    }
}

fn walk_tar(data: impl Read + Send + 'static, what: &str, visit: &mut Visit<'_>) -> Result<()> {
    let explain = |error: TarError| match error {
        TarError::Io(error) => torn(what, error),
        error => unsupported(what, format!("it is damaged: {error}")),
    };
    let stream = decompress(data).map_err(|error| torn(what, error))?;
    let mut tar = TarReader::new(stream.take(MAX_PACKAGE));
    while let Some(entry) = tar.next_entry().map_err(explain)? {
        if entry.kind == Kind::File {
            visit(&String::from_utf8_lossy(&entry.path), &mut TarEntry(&mut tar))?;
        }
    }
    Ok(())
}

fn walk_cpio(data: impl Read + Send + 'static, what: &str, visit: &mut Visit<'_>) -> Result<()> {
    let stream = decompress(data).map_err(|error| torn(what, error))?;
    visit_entries(&mut CpioReader::new(stream.take(MAX_PACKAGE)), what, visit)
}

fn visit_entries<R: Read>(cpio: &mut CpioReader<R>, what: &str, visit: &mut Visit<'_>) -> Result<()> {
    while let Some((path, mode)) = cpio.next_entry().map_err(|error| torn(what, error))? {
        if mode & 0o170_000 == 0o100_000 {
            visit(&path, cpio)?;
        }
    }
    Ok(())
}

fn torn(what: &str, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(_) => Error::Io { what: format!("cannot read {what}"), source: error },
        None => unsupported(what, format!("it is damaged: {error}")),
    }
}

/// The files below a directory of modules, as an archive would name them. Its own name counts as a
/// version only where distributions put it.
fn walk_tree(tree: &Path, visit: &mut Visit<'_>) -> Result<()> {
    let unreadable = |path: &Path, error: io::Error| Error::Unreadable {
        what: path.display().to_string(),
        reason: error.to_string(),
    };
    let version = tree
        .parent()
        .filter(|parent| parent.ends_with("lib/modules"))
        .and_then(|_| tree.file_name()?.to_str())
        .unwrap_or_default();
    let mut stack = vec![(tree.to_owned(), format!("lib/modules/{version}"), 0)];
    while let Some((dir, inside, depth)) = stack.pop() {
        for entry in fs::read_dir(&dir).map_err(|error| unreadable(&dir, error))? {
            let entry = entry.map_err(|error| unreadable(&dir, error))?;
            let path = entry.path();
            let inside = format!("{inside}/{}", entry.file_name().to_string_lossy());
            // Links (such as `build`) are not followed.
            let kind = entry.file_type().map_err(|error| unreadable(&path, error))?;
            if kind.is_dir() && depth < MAX_DEPTH {
                stack.push((path, inside, depth + 1));
            } else if kind.is_file() && piece(&inside) != Piece::Other {
                visit(&inside, &mut OnDemand::Path(path))?;
            }
        }
    }
    Ok(())
}

/// A file that is opened when it is read; most modules never are.
enum OnDemand {
    Path(PathBuf),
    File(File),
}

impl Read for OnDemand {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Self::Path(path) = self {
            *self = Self::File(File::open(path)?);
        }
        match self {
            Self::File(file) => file.read(buffer),
            Self::Path(_) => Ok(0),
        }
    }
}

enum Spool {
    Read(io::Error),
    Other(Error),
}

/// Copies an image into staging, under no name.
fn spool(content: &mut dyn Read, files: &Files) -> std::result::Result<File, Spool> {
    let (mut copy, path) = files.temporary().map_err(Spool::Other)?;
    remove(&path);
    let mut content = content.take(MAX_IMAGE + 1);
    let mut buffer = vec![0; 128 << 10];
    loop {
        let got = content.read(&mut buffer).map_err(Spool::Read)?;
        if got == 0 {
            break;
        }
        io::Write::write_all(&mut copy, &buffer[..got]).map_err(|error| {
            Spool::Other(Error::Io { what: "cannot store the kernel".into(), source: error })
        })?;
    }
    match content.limit() {
        0 => Err(Spool::Read(io::Error::other("it is too large for a kernel"))),
        _ => Ok(copy),
    }
}

fn unpack_module(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    if bzimage::is_elf(&bytes) {
        return Ok(bytes);
    }
    read_limited(&mut decompress(io::Cursor::new(bytes))?, MAX_MODULE)
}

pub fn read_limited(mut content: &mut dyn Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    Read::take(&mut content, limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it has more than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        io::Write::write_all(&mut file, bytes).expect("writes");
        file
    }

    #[test]
    fn an_initrd_may_be_several_archives() {
        let archive = |path: &str| {
            let mut cpio = crate::kernel::cpio::Cpio::default();
            cpio.file(path, false, path.as_bytes());
            cpio.finish()
        };
        let (early, main) =
            (archive("kernel/x86/microcode/GenuineIntel.bin"), archive("usr/lib/modules/6.1/a.ko"));
        let packed = zstd::encode_all(main.as_slice(), 1).expect("packs");
        let wanted = ["kernel/x86/microcode/GenuineIntel.bin", "usr/lib/modules/6.1/a.ko"];
        for (bytes, paths) in [
            (main.clone(), &wanted[1..]),
            (packed.clone(), &wanted[1..]),
            ([early.clone(), main.clone()].concat(), &wanted[..]),
            ([early.clone(), vec![0; 4096], packed].concat(), &wanted[..]),
        ] {
            let part = Part::of(file_of(&bytes)).expect("reads").unwrap_or_else(|_| panic!("no part"));
            let mut found = Vec::new();
            for _ in 0..2 {
                found.clear();
                part.walk("x", &mut |path, content| {
                    let mut text = String::new();
                    content.read_to_string(&mut text).expect("reads");
                    assert_eq!(text, path);
                    found.push(path.to_owned());
                    Ok(())
                })
                .expect("walks");
            }
            assert_eq!(found, paths);
        }
        for bad in [main[..200].to_vec(), [early, b"no cpio".to_vec()].concat()] {
            let part = Part::of(file_of(&bad)).expect("reads").unwrap_or_else(|_| panic!("no part"));
            assert!(part.walk("x", &mut |_, _| Ok(())).is_err());
        }
    }

    #[test]
    fn knows_the_places_of_distributions() {
        for image in [
            "./boot/vmlinuz-6.1.0-40-cloud-amd64",
            "lib/modules/6.11.4-301.fc41.x86_64/vmlinuz",
            "usr/lib/modules/6.11.4/vmlinuz",
            "/boot/vmlinux",
            "vmlinux-6.1.155",
            "vmlinux.bin",
            "boot/bzImage",
        ] {
            assert_eq!(piece(image), Piece::Image, "{image}");
        }
        for config in ["boot/config-6.1.0", "./lib/modules/6.11/config", "config"] {
            assert_eq!(piece(config), Piece::Config, "{config}");
        }
        for other in [
            "boot/vmlinuzfoo",
            "boot/grub/vmlinuz",
            "etc/config",
            "lib/modules/6.1/build",
            "boot/System.map-6.1",
        ] {
            assert_eq!(piece(other), Piece::Other, "{other}");
        }
        assert_eq!(piece("lib/modules/6.1/modules.builtin"), Piece::Builtin);
        assert_eq!(
            piece("usr/lib/modules/6.1/kernel/fs/ext4/ext4.ko.zst"),
            Piece::Module("6.1", "ext4".into())
        );
        assert_eq!(piece("lib/modules//kernel/ext4.ko"), Piece::Module("", "ext4".into()));
    }
}
