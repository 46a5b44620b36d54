//! What is known of a workspace that was prepared: where it came from, and what was sent.
//!
//! It is kept for the caller alone, on the host, for what a guest says of itself is no proof: one file per VM in
//! `$XDG_STATE_HOME/banger/workspaces`, a line of JSON and two lists in the form of `banger_files::listing`.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use banger_api::{Error, Result};
use banger_files::listing::{self, Listing};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::cmd::copy::listed::MAX_ENTRIES;
use crate::dirs::directory;

/// How a workspace is made of a repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The directory as it is, with its own .git and all that is ignored
    FullCopy,
    /// The history of what is checked out, and the files as they are, changed and new ones, too
    #[default]
    Clone,
    /// The same without history before the last commit
    Shallow,
}

/// One repository: the one asked for, or a submodule in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Where it is below the first; empty for that.
    pub prefix: PathBuf,
    /// What was checked out.
    pub head: String,
    /// A commit of the files as they were sent, without ignored ones.
    pub commit: String,
    /// What stands for the guest's .git; empty if that is a copy of the host's.
    pub history: String,
    /// The commits whose parents the guest does not have.
    pub shallow: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The host's directory.
    pub repository: PathBuf,
    /// The guest's.
    pub path: String,
    pub mode: Mode,
    /// Whether the last that was begun was also ended.
    pub whole: bool,
    pub parts: Vec<Part>,
    /// Tools that the guest got for it, and digests of what they were got for.
    #[serde(default)]
    pub tools: BTreeMap<String, String>,
    /// The host's files as they were sent.
    #[serde(skip)]
    pub sent: Listing,
    /// The guest's files as they were then, and of its .git what is checked out.
    #[serde(skip)]
    pub landed: Listing,
}

/// Where the record of a VM's workspace is.
///
/// # Errors
/// `NotReady` without a home.
pub fn path(vm: &str) -> Result<PathBuf> {
    Ok(directory("XDG_STATE_HOME", ".local/state")?.join("banger/workspaces").join(vm))
}

impl Record {
    /// Reads a record; `None` if there is none.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        let file = match std::fs::File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|error| banger_files::failure(path, &error))?,
        };
        let mut file = BufReader::new(file);
        let damaged = |what: &dyn std::fmt::Display| {
            Error::internal(format!(
                "{}: {what}; remove the file and prepare the workspace again",
                path.display()
            ))
        };
        let mut json = serde_json::Deserializer::from_reader(&mut file);
        let mut record = Self::deserialize(&mut json).map_err(|error| damaged(&error))?;
        file.read_exact(&mut [0]).map_err(|error| damaged(&error))?;
        record.sent = listing::read(&mut file, MAX_ENTRIES).map_err(|error| damaged(&error))?;
        record.landed = listing::read(&mut file, MAX_ENTRIES).map_err(|error| damaged(&error))?;
        Ok(Some(record))
    }

    /// Replaces the file as a whole.
    pub fn save(&self, path: &Path) -> Result<()> {
        let new = path.with_extension("new");
        let write = || -> io::Result<()> {
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            let file =
                std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            let mut file = io::BufWriter::new(file);
            serde_json::to_writer(&mut file, self)?;
            file.write_all(b"\n")?;
            listing::write(&self.sent, &mut file)?;
            listing::write(&self.landed, &mut file)?;
            file.into_inner().map_err(io::IntoInnerError::into_error)?;
            std::fs::rename(&new, path)
        };
        write().map_err(|error| banger_files::failure(path, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_files::listing::{Entry, Kind};

    #[test]
    fn a_record_is_what_was_written() {
        let scratch = tempfile::tempdir().expect("makes");
        let path = scratch.path().join("deep/vm");
        assert_eq!(Record::load(&path).expect("none"), None);
        let entry = |kind| Entry { kind, mode: 0o644, size: 3, mtime: 5, ctime: -7, target: "x y".into() };
        let mut record = Record {
            repository: "/src/a\nb".into(),
            path: "/workspace".into(),
            mode: Mode::Shallow,
            whole: true,
            parts: vec![Part { head: "abc".into(), ..Part::default() }],
            ..Record::default()
        };
        record.sent.insert("link".into(), entry(Kind::Symlink));
        record.landed.insert("link".into(), Entry { ctime: 9, ..entry(Kind::Symlink) });
        record.save(&path).expect("saves");
        assert_eq!(Record::load(&path).expect("loads").as_ref(), Some(&record));
        let whole = std::fs::read(&path).expect("reads");
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).expect("writes");
            assert!(Record::load(&path).is_err(), "cut at {length}");
        }
    }
}
