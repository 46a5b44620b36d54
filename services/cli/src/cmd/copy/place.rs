//! What SRC and DEST mean.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use banger_api::{ErrorKind, Result};
use banger_core::name::VmName;

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Standard input or output.
    Stream,
    /// As it was typed: a slash at the end says something.
    Host(OsString),
    /// The path is absolute, and as it was typed otherwise.
    Guest { vm: String, path: String },
}

impl Place {
    /// `-`, `VM:PATH` or a path. What comes before a colon is a VM only if it could be one's name, so
    /// `./a:b` is a path.
    pub fn parse(text: OsString) -> std::result::Result<Self, String> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        let bytes = text.as_bytes();
        let colon = bytes.iter().position(|&byte| byte == b':');
        let vm = colon.and_then(|colon| VmName::new(std::str::from_utf8(&bytes[..colon]).ok()?).ok());
        let (Some(vm), Some(colon)) = (vm, colon) else {
            return if text.is_empty() { Err("a path is missing".into()) } else { Ok(Self::Host(text)) };
        };
        let path = String::from_utf8(bytes[colon + 1..].to_vec())
            .map_err(|_| "paths in VMs must be UTF-8 here; copy the directory around it".to_owned())?;
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        Ok(Self::Guest { vm: vm.to_string(), path })
    }
}

/// What is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source<'a> {
    /// As it was typed.
    pub path: &'a OsStr,
    pub is_directory: bool,
}

/// What is at the destination before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum There {
    Nothing,
    Directory,
    Something,
}

/// Where a copy goes: the directory that it is unpacked into, and its name there; `.` if it is what
/// is in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landing {
    pub directory: PathBuf,
    pub name: OsString,
}

/// Whether a path stands for what is in a directory rather than for the directory.
pub fn means_contents(path: &OsStr) -> bool {
    path == "." || path.as_bytes().ends_with(b"/.") || Path::new(path).file_name().is_none()
}

/// Whether a link at the end of a path is meant to be followed.
pub fn means_directory(path: &OsStr) -> bool {
    path.as_bytes().ends_with(b"/") || means_contents(path)
}

/// As with `docker cp`: into a directory that is there; else it becomes that name.
///
/// # Errors
/// `NoSuchDirectory`, `FileInTheWay`.
pub fn landing(source: Source<'_>, destination: &OsStr, there: There) -> Result<Landing> {
    let shown = destination.to_string_lossy();
    if means_directory(source.path) && !source.is_directory {
        let path = source.path.to_string_lossy();
        return Err(ErrorKind::NoSuchDirectory.error(format!("{path} is not a directory")));
    }
    let path = Path::new(destination);
    match there {
        There::Directory => {
            let name = match Path::new(source.path).file_name() {
                Some(name) if !means_contents(source.path) => name,
                _ => OsStr::new("."),
            };
            return Ok(Landing { directory: path.to_owned(), name: name.to_owned() });
        }
        There::Something if source.is_directory || means_directory(destination) => {
            return Err(ErrorKind::FileInTheWay.error(format!("{shown} is there and is not a directory")));
        }
        There::Nothing if !source.is_directory && means_directory(destination) => {
            return Err(
                ErrorKind::NoSuchDirectory.error(format!("there is no directory {shown}; make it first"))
            );
        }
        There::Nothing | There::Something => {}
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::NoSuchDirectory.error(format!("there is no directory {shown}")));
    };
    let directory = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    Ok(Landing { directory: directory.to_owned(), name: OsString::from_vec(name.as_bytes().to_vec()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let guest = |vm: &str, path: &str| Place::Guest { vm: vm.into(), path: path.into() };
        let host = |path: &str| Place::Host(path.into());
        for (text, place) in [
            ("-", Place::Stream),
            ("web:/etc/", guest("web", "/etc/")),
            ("web:etc", guest("web", "/etc")),
            ("web:", guest("web", "/")),
            ("web:/a:b", guest("web", "/a:b")),
            ("./a:b", host("./a:b")),
            ("/a:b", host("/a:b")),
            ("A:b", host("A:b")),
            ("file", host("file")),
            ("./-", host("./-")),
        ] {
            assert_eq!(Place::parse(text.into()).expect(text), place, "{text}");
        }
        assert!(Place::parse(OsString::from_vec(b"web:/\xff".to_vec())).is_err());
        assert!(Place::parse("".into()).is_err());
        assert_eq!(
            Place::parse(OsString::from_vec(b"\xff:a".to_vec())),
            Ok(Place::Host(OsString::from_vec(b"\xff:a".to_vec())))
        );
    }

    #[test]
    fn destinations() {
        use There::{Directory, Nothing, Something};
        let goes = |source: &str, is_directory, destination: &str, there| {
            landing(Source { path: source.as_ref(), is_directory }, destination.as_ref(), there)
                .map(|landing| format!("{} {}", landing.directory.display(), landing.name.display()))
                .map_err(|error| error.kind())
        };
        let ok = |text: &str| Ok(text.to_owned());
        let file = |destination, there| goes("dir/file", false, destination, there);
        assert_eq!(file("/to", Directory), ok("/to file"));
        assert_eq!(file("/to", Something), ok("/ to"));
        assert_eq!(file("/to", Nothing), ok("/ to"));
        assert_eq!(file("to", Nothing), ok(". to"));
        assert_eq!(file("a/to", Nothing), ok("a to"));
        assert_eq!(file("/to/", Nothing), Err(ErrorKind::NoSuchDirectory));
        assert_eq!(file("/to/", Something), Err(ErrorKind::FileInTheWay));
        assert_eq!(file("..", Directory), ok(".. file"));

        let tree = |source, destination, there| goes(source, true, destination, there);
        assert_eq!(tree("a/dir", "/to", Directory), ok("/to dir"));
        assert_eq!(tree("a/dir/", "/to", Directory), ok("/to dir"));
        assert_eq!(tree("a/dir/.", "/to", Directory), ok("/to ."));
        assert_eq!(tree(".", "/to", Directory), ok("/to ."));
        assert_eq!(tree("..", "/to", Directory), ok("/to ."));
        assert_eq!(tree("/", "/to", Directory), ok("/to ."));
        assert_eq!(tree("a/dir", "/new", Nothing), ok("/ new"));
        assert_eq!(tree("a/dir", "/new/", Nothing), ok("/ new"));
        assert_eq!(tree("a/dir/.", "/new", Nothing), ok("/ new"));
        assert_eq!(tree("a/dir", "/to", Something), Err(ErrorKind::FileInTheWay));
        assert_eq!(goes("a/file/.", false, "/to", Directory), Err(ErrorKind::NoSuchDirectory));
        assert_eq!(goes("a/file/", false, "/to", Directory), Err(ErrorKind::NoSuchDirectory));
    }
}
