//! Putting a kernel together from packages, archives, directories, the host.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::modules::{self, Known, Plan};
use super::scan::{MAX_IMAGE, Part, Scan, read_limited, unsupported};
use super::{bzimage, elf};
use crate::error::{Error, Result};
use crate::files::Files;

/// A compressed kernel; distributions' have 8 to 20 MB.
const MAX_PACKED: u64 = 64 << 20;
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
    /// What the kernel says of itself: who built it, when.
    pub banner: String,
    pub config: Option<Vec<u8>>,
    /// In the order of loading, unpacked.
    pub modules: Modules,
}

/// Names and contents.
pub type Modules = Vec<(String, Vec<u8>)>;

/// A file and what to call it in errors.
pub struct Named {
    pub file: File,
    pub what: String,
}

/// The kernel the host runs, or else the newest that has both an image and modules.
pub fn host(files: &Files) -> Result<Gathered> {
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
            .and_then(|file| {
                let file = Named { file, what: image.display().to_string() };
                from_files(vec![file], Some(&modules), files)
            });
        match outcome {
            Ok(mut gathered) => {
                gathered.config = fs::read(format!("/boot/config-{version}")).ok().or(gathered.config);
                return Ok(gathered);
            }
            Err(error) => reasons.push(error.to_string()),
        }
    }
    if reasons.is_empty() {
        reasons.push("/boot has no vmlinuz-*".into());
    }
    Err(unsupported("of this host", format!("{}; import a package of one instead", reasons.join("; "))))
}

/// A kernel whose pieces are in these files: packages, archives, a bzImage or an ELF kernel; and in a
/// directory of modules.
pub fn from_files(given: Vec<Named>, tree: Option<&Path>, files: &Files) -> Result<Gathered> {
    let what = given.first().map_or_else(String::new, |first| first.what.clone());
    let mut parts = Vec::new();
    let mut image = None;
    for Named { file, what } in given {
        let unreadable =
            |error: io::Error| Error::Unreadable { what: what.clone(), reason: error.to_string() };
        match Part::of(file).map_err(unreadable)? {
            Ok(part) => parts.push((what, part)),
            Err(_) if image.is_some() => {
                return Err(unsupported(&what, "there are two kernels, or it is none"));
            }
            Err(file) => image = Some(read_image(file, &what)?),
        }
    }
    if let Some(tree) = tree {
        parts.push((tree.display().to_string(), Part::Tree(tree.to_owned())));
    }
    let (scan, modules) = collect(&what, &parts, files)?;
    let (image, version, banner) = match (image, scan.image) {
        (Some(image), _) => image,
        (None, Some(file)) => read_image(file, &what)?,
        (None, None) => return Err(unsupported(&what, "no vmlinuz or vmlinux is in it")),
    };
    // Modules are told apart by their names alone: of two versions, some would be the wrong ones.
    if scan.versions.iter().any(|found| *found != version) {
        let versions: Vec<_> = scan.versions.into_iter().collect();
        return Err(unsupported(
            &what,
            format!("the kernel is {version}, but the modules are of {}", versions.join(" and ")),
        ));
    }
    Ok(Gathered { image, version, banner, config: scan.config, modules })
}

/// The image in a file, its version and its banner.
fn read_image(mut file: File, what: &str) -> Result<(Image, String, String)> {
    let unreadable =
        |error: io::Error| Error::Unreadable { what: what.to_owned(), reason: error.to_string() };
    let mut start = Vec::new();
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    io::Read::take(&mut file, 64).read_to_end(&mut start).map_err(unreadable)?;
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    bzimage::check_architecture(&start).map_err(|error| unsupported(what, error))?;
    if bzimage::is_elf(&start) {
        if file.metadata().map_err(unreadable)?.len() > MAX_IMAGE {
            return Err(unsupported(what, "it is too large for a kernel"));
        }
        let banner = elf::banner(&file).map_err(unreadable)?;
        let banner = banner.ok_or_else(|| unsupported(what, "it names no version: no kernel"))?;
        let version = banner.split(' ').next().unwrap_or_default().to_owned();
        return Ok((Image::Elf(file), version, banner));
    }
    let image = read_limited(&mut file, MAX_PACKED).map_err(unreadable)?;
    let banner = bzimage::banner(&image).map_err(|error| unsupported(what, error))?;
    let version = banner.split(' ').next().unwrap_or_default().to_owned();
    Ok((Image::Packed(image), version, banner))
}

/// Scans until all needed modules are read. Returns the first scan, and the modules in order.
fn collect(what: &str, parts: &[(String, Part)], files: &Files) -> Result<(Scan, Modules)> {
    let mut wanted: BTreeSet<String> = [modules::ESSENTIAL, modules::OPTIONAL, modules::USUAL]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect();
    let mut first: Option<Scan> = None;
    let mut content = BTreeMap::new();
    let mut known = Known::default();
    for _ in 0..MAX_PASSES {
        let mut scan = Scan::default();
        for (what, part) in parts {
            part.scan(&mut scan, what, &wanted, first.is_none().then_some(files))?;
        }
        for (name, module) in std::mem::take(&mut scan.content) {
            let depends =
                modules::depends(&module).map_err(|reason| unsupported(what, format!("{name}: {reason}")))?;
            known.depends.insert(name.clone(), depends);
            content.insert(name, module);
        }
        if first.is_none() {
            // A kernel by itself may have everything built in: its configuration says so, if it is known.
            let bare = scan.files.is_empty() && scan.builtin.is_empty();
            if bare && !parts.iter().any(|(_, part)| part.is_package()) {
                return Ok((scan, Vec::new()));
            }
            known.files = scan.files.clone();
            known.builtin = scan.builtin.clone();
            first = Some(scan);
        }
        match modules::plan(&known).map_err(|name| lacks(what, &name, &known))? {
            Plan::Load(order) => {
                let modules = order.into_iter().filter_map(|name| content.remove_entry(&name)).collect();
                return Ok((first.unwrap_or_default(), modules));
            }
            Plan::Read(more) => wanted = more,
        }
    }
    Err(unsupported(what, "its modules need each other without end"))
}

fn lacks(what: &str, name: &str, known: &Known) -> Error {
    if known.files.is_empty() {
        return unsupported(what, "it has no modules: give the package with its modules, too");
    }
    unsupported(what, format!("it lacks the module {name}, without which no guest can start"))
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
