//! Reading kernels from packages, directories and the host.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::modules::{self, Known, Plan};
use super::{ar, bzimage};
use crate::error::{Error, Result};
use crate::layers::stream::decompress;
use crate::tar::{Kind, TarError, TarReader};

/// A compressed kernel; distributions' have 8 to 20 MB.
const MAX_IMAGE: u64 = 96 << 20;
const MAX_MODULE: u64 = 32 << 20;
const MAX_TEXT: u64 = 4 << 20;
/// Everything a package unpacks to.
const MAX_PACKAGE: u64 = 8 << 30;
/// Each pass finds a level of dependencies; the usual ones take one.
const MAX_PASSES: usize = 8;

pub enum Image {
    /// A bzImage.
    Packed(Vec<u8>),
    Elf(File),
}

/// All that is needed of a kernel.
pub struct Gathered {
    pub image: Image,
    pub version: String,
    pub config: Option<Vec<u8>>,
    /// In the order of loading, unpacked.
    pub modules: Modules,
}

/// Names and contents.
pub type Modules = Vec<(String, Vec<u8>)>;

/// One pass over a package or a directory.
#[derive(Default)]
struct Scan {
    image: Option<Vec<u8>>,
    config: Option<Vec<u8>>,
    files: BTreeSet<String>,
    builtin: BTreeSet<String>,
    content: BTreeMap<String, Vec<u8>>,
}

fn unsupported(what: &str, reason: impl ToString) -> Error {
    Error::KernelUnsupported(what.to_owned(), reason.to_string())
}

/// The kernel the host runs, or else the newest that has both an image and modules.
pub fn host() -> Result<Gathered> {
    let running = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut versions: Vec<String> = fs::read_dir("/boot")
        .map(|entries| {
            entries
                .filter_map(|entry| {
                    entry.ok()?.file_name().to_str()?.strip_prefix("vmlinuz-").map(str::to_owned)
                })
                .filter(|version| bzimage::is_version(version))
                .collect()
        })
        .unwrap_or_default();
    versions.sort_by(|a, b| by_version(b, a));
    versions.sort_by_key(|version| *version != running);
    let mut reasons = Vec::new();
    for version in versions {
        let image = PathBuf::from(format!("/boot/vmlinuz-{version}"));
        let modules = PathBuf::from(format!("/lib/modules/{version}"));
        let outcome = fs::read_dir(&modules)
            .map_err(|error| Error::Unreadable {
                what: modules.display().to_string(),
                reason: error.to_string(),
            })
            .and_then(|_| {
                File::open(&image).map_err(|error| Error::Unreadable {
                    what: image.display().to_string(),
                    reason: error.to_string(),
                })
            })
            .and_then(|file| from_file(file, &image.display().to_string(), Some(&modules)));
        match outcome {
            Ok(mut gathered) => {
                gathered.config = fs::read(format!("/boot/config-{version}")).ok();
                return Ok(gathered);
            }
            Err(error) => reasons.push(error.to_string()),
        }
    }
    if reasons.is_empty() {
        reasons.push("/boot has no vmlinuz-*".into());
    }
    Err(unsupported("of this host", format!("{}; import a linux-image .deb instead", reasons.join("; "))))
}

/// A package, a bzImage or an ELF kernel, by its first bytes.
pub fn from_file(mut file: File, what: &str, tree: Option<&Path>) -> Result<Gathered> {
    let unreadable =
        |error: io::Error| Error::Unreadable { what: what.to_owned(), reason: error.to_string() };
    let mut start = [0u8; 8];
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    let got = file.read(&mut start).map_err(unreadable)?;
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    if ar::is_ar(&start[..got]) {
        return from_package(&mut file, what);
    }
    let (image, version) = if bzimage::is_elf(&start[..got]) {
        let version = elf_version(&file).map_err(unreadable)?;
        (Image::Elf(file), version.ok_or_else(|| unsupported(what, "it names no version: no kernel"))?)
    } else {
        let image = read_limited(&mut file, MAX_IMAGE).map_err(unreadable)?;
        let version = bzimage::version(&image).map_err(|error| unsupported(what, error))?;
        (Image::Packed(image), version)
    };
    let modules = match tree {
        Some(tree) => collect(&version, |wanted| scan_tree(tree, wanted))?.1,
        // Nothing is known of what is built in; a guest that lacks something says so when it starts.
        None => Vec::new(),
    };
    Ok(Gathered { image, version, config: None, modules })
}

fn from_package(file: &mut File, what: &str) -> Result<Gathered> {
    let (start, length) = ar::find_data(file).map_err(|error| unsupported(what, error))?;
    let (scan, modules) = collect(what, |wanted| {
        let mut part = file.try_clone().map_err(Error::io("cannot read the package again"))?;
        part.seek(SeekFrom::Start(start)).map_err(Error::io("cannot read the package again"))?;
        scan_package(part.take(length), what, wanted)
    })?;
    let image = scan.image.ok_or_else(|| unsupported(what, "the package has no /boot/vmlinuz-*"))?;
    let version = bzimage::version(&image).map_err(|error| unsupported(what, error))?;
    Ok(Gathered { image: Image::Packed(image), version, config: scan.config, modules })
}

/// Scans until all needed modules are read. Returns the first scan, and the modules in order.
fn collect(what: &str, mut scan: impl FnMut(&BTreeSet<String>) -> Result<Scan>) -> Result<(Scan, Modules)> {
    let mut wanted: BTreeSet<String> = [modules::ESSENTIAL, modules::OPTIONAL, modules::USUAL]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect();
    let mut first = None;
    let mut content = BTreeMap::new();
    let mut known = Known::default();
    for _ in 0..MAX_PASSES {
        let mut scan = scan(&wanted)?;
        for (name, module) in std::mem::take(&mut scan.content) {
            let depends =
                modules::depends(&module).map_err(|reason| unsupported(what, format!("{name}: {reason}")))?;
            known.depends.insert(name.clone(), depends);
            content.insert(name, module);
        }
        if first.is_none() {
            known.files = scan.files.clone();
            known.builtin = scan.builtin.clone();
            first = Some(scan);
        }
        let missing = |name: String| {
            unsupported(what, format!("it lacks the module {name}, without which no guest can start"))
        };
        match modules::plan(&known).map_err(missing)? {
            Plan::Load(order) => {
                let modules = order.into_iter().filter_map(|name| content.remove_entry(&name)).collect();
                return Ok((first.unwrap_or_default(), modules));
            }
            Plan::Read(more) => wanted = more,
        }
    }
    Err(unsupported(what, "its modules need each other without end"))
}

fn scan_package(data: impl Read + Send + 'static, what: &str, wanted: &BTreeSet<String>) -> Result<Scan> {
    let explain = |error: TarError| match error {
        TarError::Io(error) if error.raw_os_error().is_some() => {
            Error::Io { what: "cannot read the package".into(), source: error }
        }
        error => unsupported(what, format!("the package is damaged: {error}")),
    };
    let stream = decompress(data).map_err(|error| explain(error.into()))?;
    let mut tar = TarReader::new(stream.take(MAX_PACKAGE));
    let mut scan = Scan::default();
    while let Some(entry) = tar.next_entry().map_err(explain)? {
        if entry.kind != Kind::File {
            continue;
        }
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        let path = path.trim_start_matches(['.', '/']);
        if path.starts_with("boot/vmlinuz-") {
            scan.image = Some(tar.read_all(MAX_IMAGE).map_err(explain)?);
        } else if path.starts_with("boot/config-") {
            scan.config = Some(tar.read_all(MAX_TEXT).map_err(explain)?);
        } else if path.contains("lib/modules/") {
            if path.ends_with("/modules.builtin") {
                scan.builtin = builtin(&tar.read_all(MAX_TEXT).map_err(explain)?);
            } else if let Some(name) = modules::name_of(path) {
                if wanted.contains(&name) {
                    let module = unpack_module(tar.read_all(MAX_MODULE).map_err(explain)?)
                        .map_err(|error| unsupported(what, format!("{path}: {error}")))?;
                    scan.content.insert(name.clone(), module);
                }
                scan.files.insert(name);
            }
        }
    }
    Ok(scan)
}

/// A directory such as `/lib/modules/6.1.0-40-cloud-amd64`.
fn scan_tree(tree: &Path, wanted: &BTreeSet<String>) -> Result<Scan> {
    let unreadable = |path: &Path, error: io::Error| Error::Unreadable {
        what: path.display().to_string(),
        reason: error.to_string(),
    };
    let mut scan = Scan::default();
    if let Ok(text) = fs::read(tree.join("modules.builtin")) {
        scan.builtin = builtin(&text);
    }
    let kernel = tree.join("kernel");
    let mut stack = vec![if kernel.is_dir() { kernel } else { tree.to_owned() }];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).map_err(|error| unreadable(&dir, error))? {
            let entry = entry.map_err(|error| unreadable(&dir, error))?;
            let path = entry.path();
            // Links (such as `build`) are not followed.
            let kind = entry.file_type().map_err(|error| unreadable(&path, error))?;
            if kind.is_dir() {
                stack.push(path);
                continue;
            }
            let Some(name) = path.to_str().and_then(modules::name_of).filter(|_| kind.is_file()) else {
                continue;
            };
            if wanted.contains(&name) {
                let mut file = File::open(&path).map_err(|error| unreadable(&path, error))?;
                let bytes = read_limited(&mut file, MAX_MODULE).map_err(|error| unreadable(&path, error))?;
                let module = unpack_module(bytes).map_err(|error| unreadable(&path, error))?;
                scan.content.insert(name.clone(), module);
            }
            scan.files.insert(name);
        }
    }
    Ok(scan)
}

fn unpack_module(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    if bzimage::is_elf(&bytes) {
        return Ok(bytes);
    }
    let mut module = Vec::new();
    decompress(io::Cursor::new(bytes))?.take(MAX_MODULE + 1).read_to_end(&mut module)?;
    if module.len() as u64 > MAX_MODULE { Err(io::Error::other("it is too large")) } else { Ok(module) }
}

fn builtin(text: &[u8]) -> BTreeSet<String> {
    String::from_utf8_lossy(text).lines().filter_map(modules::name_of).collect()
}

fn read_limited(file: &mut File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        Err(io::Error::other(format!("it has more than {limit} bytes")))
    } else {
        Ok(bytes)
    }
}

/// Looks for the banner piece by piece; the pieces overlap by more than the banner is long.
fn elf_version(mut file: &File) -> io::Result<Option<String>> {
    const STEP: usize = 4 << 20;
    const OVERLAP: usize = 256;
    let mut buffer: Vec<u8> = Vec::new();
    loop {
        let keep = buffer.len().min(OVERLAP);
        buffer.drain(..buffer.len() - keep);
        if io::Read::take(&mut file, STEP as u64).read_to_end(&mut buffer)? == 0 {
            return Ok(None);
        }
        if let Some(version) = bzimage::elf_version(&buffer) {
            return Ok(Some(version));
        }
    }
}

/// Compares versions part by part, numbers as numbers.
fn by_version(a: &str, b: &str) -> std::cmp::Ordering {
    let parts = |text: &str| -> Vec<(u64, String)> {
        text.split(['.', '-', '+', '~'])
            .map(|part| {
                let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
                (part[..digits].parse().unwrap_or(0), part[digits..].to_owned())
            })
            .collect()
    };
    parts(a).cmp(&parts(b))
}

#[cfg(test)]
mod tests {
    use super::by_version;

    #[test]
    fn newer_is_greater() {
        let mut versions = ["6.1.0-9-amd64", "6.1.0-40-amd64", "6.12.1-1", "5.10.0-1"];
        versions.sort_by(|a, b| by_version(b, a));
        assert_eq!(versions, ["6.12.1-1", "6.1.0-40-amd64", "6.1.0-9-amd64", "5.10.0-1"]);
    }
}
