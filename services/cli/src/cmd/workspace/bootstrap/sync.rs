//! Files of the caller's home that go into that of a guest's user.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use banger_api::Result;
use banger_files::listing::{self, Entry, Kind};
use banger_files::pack::{self, Packer};
use banger_files::{beneath, failure};
use nix::errno::Errno;

/// What is there of the files that are wanted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Below the home, each after the directory that it is in.
    pub paths: BTreeSet<PathBuf>,
    /// Symbolic links, or what is behind such: nobody knows where that would lead.
    pub links: Vec<PathBuf>,
}

/// Looks for files and directories below a home.
///
/// # Errors
/// If what is there cannot be read.
pub fn find(home: &OwnedFd, wanted: &[PathBuf]) -> Result<Found> {
    let mut found = Found::default();
    for path in wanted {
        let looked = look(home, path, &mut found.paths);
        match looked.map_err(|error| failure(path, &error))? {
            Some(Kind::Symlink) => found.links.push(path.clone()),
            Some(Kind::File | Kind::Directory) => {
                let above = path.ancestors().filter(|path| !path.as_os_str().is_empty());
                found.paths.extend(above.map(Path::to_owned));
            }
            Some(Kind::Other) | None => {}
        }
    }
    Ok(found)
}

/// What a path is, `None` if it is not there. Of a directory what is in it is added.
fn look(home: &OwnedFd, path: &Path, paths: &mut BTreeSet<PathBuf>) -> io::Result<Option<Kind>> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    let entry = beneath(home, above).map_err(io::Error::from).and_then(|above| Entry::of(&above, name));
    let kind = match entry {
        Ok(entry) => entry.kind,
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => return Ok(Some(Kind::Symlink)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if kind == Kind::Directory {
        let inner = listing::collect(&beneath(home, path)?)?;
        let inner = inner.into_iter().filter(|(_, entry)| entry.kind != Kind::Other);
        paths.extend(inner.map(|(inner, _)| path.join(inner)));
    }
    Ok(Some(kind))
}

/// Packs what was found, under names with `prefix` before them.
///
/// # Errors
/// If a file cannot be read; those of the stream.
pub fn pack(
    mut packer: Packer<impl Write>,
    home: &OwnedFd,
    paths: &BTreeSet<PathBuf>,
    prefix: &Path,
) -> Result<()> {
    for path in paths {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { continue };
        let above = beneath(home, above).map_err(io::Error::from);
        let packed = above.and_then(|above| packer.add(&above, name, &prefix.join(path)));
        packed.map_err(|error| pack::failure(path, pack::about(path, error)))?;
    }
    packer.finish().map(drop).map_err(|error| pack::failure(prefix, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_files::pack::Times;
    use banger_files::unpack::{self, Owner, Rules};
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn files_go_along_and_links_do_not_lead_out() {
        let scratch = tempfile::tempdir().expect("makes");
        let at = |path: &str| scratch.path().join(path);
        for path in ["home/.agent/skills", "home/real", "out", "guest"] {
            fs::create_dir_all(at(path)).expect("makes");
        }
        for path in [
            "home/.agent.json",
            "home/.agent/skills/one",
            "home/.agent/other",
            "home/real/file",
            "out/secret",
        ] {
            fs::write(at(path), path).expect("writes");
        }
        fs::set_permissions(at("home/.agent.json"), fs::Permissions::from_mode(0o600)).expect("sets");
        fs::set_permissions(at("home/.agent"), fs::Permissions::from_mode(0o700)).expect("sets");
        symlink("../../../out", at("home/.agent/skills/link")).expect("links");
        symlink("../out", at("home/linked")).expect("links");
        symlink("../out/secret", at("home/.link")).expect("links");

        let home = unpack::target(&at("home")).expect("opens");
        let wanted = [".agent.json", ".agent/skills", "none", "real/file/below", "linked/secret", ".link"];
        let found = find(&home, &wanted.map(PathBuf::from)).expect("finds");
        let paths = [".agent", ".agent.json", ".agent/skills", ".agent/skills/link", ".agent/skills/one"];
        assert_eq!(found.paths, paths.map(PathBuf::from).into());
        assert_eq!(found.links, ["linked/secret", ".link"].map(PathBuf::from));

        let mut stream = Vec::new();
        pack(Packer::new(&mut stream, Times::Nanoseconds), &home, &found.paths, Path::new(""))
            .expect("packs");
        let rules = Rules { owner: Owner::Caller, devices: false, name: None };
        unpack::unpack(stream.as_slice(), unpack::target(&at("guest")).expect("opens"), rules)
            .expect("unpacks");
        let mode = |path: &str| fs::symlink_metadata(at(path)).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode("guest/.agent"), mode("guest/.agent.json")), (0o700, 0o600));
        assert_eq!(fs::read_link(at("guest/.agent/skills/link")).expect("a link"), Path::new("../../../out"));
        assert_eq!(fs::read(at("guest/.agent/skills/one")).expect("reads"), b"home/.agent/skills/one");
        assert!(!at("guest/.agent/other").exists() && !at("guest/.link").exists());
    }
}
