//! Configuration files: TOML, merged key by key from the weakest to the strongest:
//!
//! 1. `NAME.conf` of the distribution, of this boot and of the admin (see [`DIRECTORIES`]);
//! 2. `NAME.conf.d/*.conf` of all three, in the order of the files' names; of those with the same
//!    name only the strongest directory's counts, so an empty file or a link to `/dev/null` takes
//!    another's place, as with systemd's drop-ins.
//!
//! All of them may be missing.

pub mod reference;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use banger_api::{Error, ErrorKind, Result};
use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// From the weakest to the strongest.
pub const DIRECTORIES: [&str; 3] = ["/usr/lib/banger", "/run/banger", "/etc/banger"];

/// Reads the configuration of `NAME`. What no file says comes from `T`'s defaults (`#[serde(default)]`);
/// what `T` does not know is refused (`#[serde(deny_unknown_fields)]`).
///
/// # Errors
/// `InvalidArgs` naming the file, the line and what is wrong there.
pub fn load<T: DeserializeOwned>(name: &str) -> Result<T> {
    load_from(&DIRECTORIES.map(Path::new), name)
}

/// The same from other directories, from the weakest to the strongest.
///
/// # Errors
/// As for [`load`].
pub fn load_from<T: DeserializeOwned>(directories: &[&Path], name: &str) -> Result<T> {
    let mut merged = Table::new();
    for path in files(directories, name)? {
        match std::fs::read_to_string(&path) {
            Ok(text) => merge(&mut merged, parse::<T>(&path, &text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::from(error).context(path.display())),
        }
    }
    merged.try_into().map_err(|error| Error::internal(format!("{name}.conf: {error}")))
}

/// Where there may be files of the configuration `NAME`, from the weakest to the strongest: for what
/// is not merged key by key.
///
/// # Errors
/// If a directory cannot be read.
pub fn files(directories: &[&Path], name: &str) -> Result<Vec<PathBuf>> {
    let mut drop_ins: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for directory in directories {
        let directory = directory.join(format!("{name}.conf.d"));
        let found = match std::fs::read_dir(&directory) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::from(error).context(directory.display())),
        };
        for entry in found {
            let entry = entry.map_err(|error| Error::from(error).context(directory.display()))?;
            if is_drop_in(Path::new(&entry.file_name())) {
                drop_ins.insert(entry.file_name(), entry.path());
            }
        }
    }
    let main = directories.iter().map(|directory| directory.join(format!("{name}.conf")));
    Ok(main.chain(drop_ins.into_values()).collect())
}

/// Neither what editors leave behind nor what package managers do.
fn is_drop_in(name: &Path) -> bool {
    name.extension().is_some_and(|extension| extension == "conf")
        && !name.as_os_str().as_encoded_bytes().starts_with(b".")
}

/// Lays `stronger` over `table`, tables key by key, everything else as a whole.
fn merge(table: &mut Table, stronger: Table) {
    for (key, value) in stronger {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

/// The keys of one file, each of which `T` takes.
fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<Table> {
    let refuse = |error: toml::de::Error| {
        refusal(path, text, error.span().map_or(0, |span| span.start), error.message())
    };
    toml::from_str::<T>(text).map_err(refuse)?;
    toml::from_str(text).map_err(refuse)
}

/// What is said of a mistake at a byte of a file's text: `FILE:LINE: MESSAGE`.
pub fn refusal(path: &Path, text: &str, position: usize, message: &str) -> Error {
    let line = text.get(..position).unwrap_or_default().matches('\n').count() + 1;
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    ErrorKind::InvalidArgs.error(format!("{}:{line}: {message}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        on: bool,
        name: String,
        limits: Limits,
    }

    #[derive(Debug, Default, PartialEq, Eq, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Limits {
        cpus: u32,
        memory: u32,
    }

    impl Default for Sample {
        fn default() -> Self {
            Self { on: true, name: "x".into(), limits: Limits::default() }
        }
    }

    #[test]
    fn mistakes_are_named_with_file_and_line() {
        let refusal =
            |text| parse::<Sample>(Path::new("/etc/x.conf"), text).expect_err("refused").to_string();
        let message = refusal("on = true\nnmae = \"y\"\n");
        assert!(message.starts_with("/etc/x.conf:2: unknown field `nmae`, expected"), "{message}");
        let message = refusal("# no\n\non = \"yes\"");
        assert!(message.starts_with("/etc/x.conf:3: ") && !message.contains('\n'), "{message}");
    }

    fn write(directory: &Path, name: &str, text: &str) {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("creates");
        std::fs::write(path, text).expect("writes");
    }

    #[test]
    fn files_add_up() {
        let (vendor, admin) = (tempfile::tempdir().expect("makes"), tempfile::tempdir().expect("makes"));
        let directories = [vendor.path(), Path::new("/nowhere"), admin.path()];
        let load = || load_from::<Sample>(&directories, "x");
        write(vendor.path(), "x.conf", "on = false\nname = \"vendor\"\n[limits]\ncpus = 2\nmemory = 3\n");
        write(admin.path(), "x.conf", "name = \"admin\"\n[limits]\ncpus = 4\n");
        let limits = Limits { cpus: 4, memory: 3 };
        assert_eq!(load(), Ok(Sample { on: false, name: "admin".into(), limits }));
        // A drop-in of the vendor is stronger than the admin's main file, and the names decide.
        write(vendor.path(), "x.conf.d/50-b.conf", "name = \"b\"\n");
        write(admin.path(), "x.conf.d/40-a.conf", "name = \"a\"\n[limits]\nmemory = 5\n");
        write(admin.path(), "x.conf.d/60-c.conf~", "nonsense");
        let limits = Limits { cpus: 4, memory: 5 };
        assert_eq!(load(), Ok(Sample { on: false, name: "b".into(), limits }));
        // The same name takes the place of the weaker directory's.
        std::os::unix::fs::symlink("/dev/null", admin.path().join("x.conf.d/50-b.conf")).expect("links");
        assert_eq!(load().map(|sample| sample.name), Ok("a".into()));
        write(admin.path(), "x.conf.d/70-d.conf", "\n[limits]\ndisks = 1\n");
        let message = load().expect_err("refused").to_string();
        assert!(message.contains("x.conf.d/70-d.conf:3: unknown field `disks`"), "{message}");
    }

    #[test]
    fn no_file_is_no_mistake() {
        assert_eq!(load::<Sample>("no-such-service").expect("loads"), Sample::default());
    }
}
