//! The record of a job, which outlives the service: a memfd in the file descriptor store that
//! systemd keeps for it.
//!
//! systemd hands the store to the next instance after a crash or a restart. A record is a line of
//! JSON when the job begins and another when it ends; one without the second tells that the service
//! ended first. Writing to memory costs next to nothing and needs no cleaning up after a boot,
//! which no job survives.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;

use banger_api::{Error, Result};
use rustix::fs::{MemfdFlags, memfd_create};
use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};

/// Names in the store begin like this; the job's id follows.
pub(crate) const PREFIX: &str = "job-";

/// Longer lines are not kept, so that no caller fills the memory with what it calls things.
const LINE_LIMIT: usize = 64 * 1024;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begun {
    pub id: u32,
    pub kind: String,
    pub subject: String,
}

/// The second line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// When, in microseconds since 1970.
    pub usec: u64,
    outcome: String,
    /// D-Bus name of the error; empty without one.
    error_name: String,
    error_message: String,
}

impl Ended {
    pub fn new(usec: u64, outcome: &Result<String>) -> Self {
        let (outcome, error_name, error_message) = match outcome {
            Ok(outcome) => (outcome.as_str(), "", ""),
            Err(error) => ("", error.kind().name(), error.message()),
        };
        Self {
            usec,
            outcome: outcome.to_owned(),
            error_name: error_name.to_owned(),
            error_message: error_message.to_owned(),
        }
    }

    pub fn outcome(self) -> Result<String> {
        if self.error_name.is_empty() {
            return Ok(self.outcome);
        }
        Err(Error::from_reply(&self.error_name, &self.error_message))
    }
}

/// A record that is still to be ended.
#[derive(Debug)]
pub(crate) struct Record {
    name: String,
    file: File,
}

impl Record {
    /// Writes the first line and gives the record to systemd. `None` if that fails: then the job is
    /// forgotten with this process, which is no reason not to do it.
    pub fn begin(begun: &Begun) -> Option<Self> {
        let name = format!("{PREFIX}{}", begun.id);
        let begin = || -> io::Result<File> {
            let mut file = File::from(memfd_create(&name, MemfdFlags::CLOEXEC)?);
            append(&mut file, begun)?;
            let state = [NotifyState::FdStore, NotifyState::FdName(&name)];
            sd_notify::notify_with_fds(&state, &[file.as_fd()])?;
            Ok(file)
        };
        match begin() {
            Ok(file) => Some(Self { file, name }),
            Err(error) => {
                tracing::debug!("cannot store {name}: {error}");
                None
            }
        }
    }

    /// Reads a record that came back from the store. One that makes no sense is removed from it.
    pub fn restore(name: String, mut file: File) -> Option<(Self, Begun, Option<Ended>)> {
        match read(&mut file) {
            Ok((begun, ended)) => Some((Self { name, file }, begun, ended)),
            Err(error) => {
                tracing::debug!("cannot read {name}: {error}");
                remove(&name);
                None
            }
        }
    }

    /// Writes the second line.
    pub fn end(mut self, ended: &Ended) {
        if let Err(error) = append(&mut self.file, ended) {
            tracing::debug!("cannot end {}: {error}", self.name);
            // Better none than one that tells of an interruption that there was not.
            remove(&self.name);
        }
    }
}

/// Removes the record of a job from the store, if it is there.
pub(crate) fn forget(id: u32) {
    remove(&format!("{PREFIX}{id}"));
}

fn remove(name: &str) {
    if let Err(error) = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]) {
        tracing::debug!("cannot remove {name} from the store: {error}");
    }
}

/// Adds a line in one piece.
fn append(file: &mut File, line: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(line)?;
    line.push(b'\n');
    if line.len() > LINE_LIMIT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "too long to be kept"));
    }
    file.seek(SeekFrom::End(0))?;
    file.write_all(&line)
}

/// Reads a record, and drops a last line that was cut short.
fn read(file: &mut File) -> io::Result<(Begun, Option<Ended>)> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0))?;
    Read::by_ref(file).take(2 * LINE_LIMIT as u64).read_to_string(&mut text)?;
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    file.set_len(whole as u64)?;
    let mut lines = text[..whole].lines();
    let begun = serde_json::from_str(lines.next().unwrap_or_default())?;
    let ended = lines.next().map(serde_json::from_str).transpose()?;
    Ok((begun, ended))
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_api::ErrorKind;

    fn begun() -> Begun {
        Begun { id: 7, kind: "pull".into(), subject: "debian:12\n".into() }
    }

    fn file(text: &str) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(text.as_bytes()).expect("writes");
        file
    }

    #[test]
    fn what_is_written_is_read() {
        let mut file = file("");
        append(&mut file, &begun()).expect("writes");
        assert_eq!(read(&mut file).expect("reads"), (begun(), None));
        let outcome = Err(ErrorKind::NameTaken.error("taken"));
        append(&mut file, &Ended::new(5, &outcome)).expect("writes");
        let (_, ended) = read(&mut file).expect("reads");
        let ended = ended.expect("ended");
        assert_eq!((ended.usec, ended.outcome()), (5, outcome));
        assert_eq!(Ended::new(5, &Ok("web".into())).outcome(), Ok("web".into()));
    }

    #[test]
    fn a_line_that_was_cut_short_does_not_count() {
        let mut file = file("{\"id\":7,\"kind\":\"pull\",\"subject\":\"x\"}\n{\"usec\":5,\"outc");
        assert_eq!(read(&mut file).expect("reads").1, None);
        append(&mut file, &Ended::new(9, &Ok("x".into()))).expect("writes");
        assert_eq!(read(&mut file).expect("reads").1.map(|ended| ended.usec), Some(9));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "{\"id\":7", "{}\n", "job 7\n", "{\"id\":7,\"kind\":\"k\",\"subject\":\"s\"}\n?\n"] {
            assert!(read(&mut file(text)).is_err(), "{text}");
        }
        let long = Begun { subject: "x".repeat(LINE_LIMIT), ..begun() };
        assert!(append(&mut file(""), &long).is_err());
    }
}
