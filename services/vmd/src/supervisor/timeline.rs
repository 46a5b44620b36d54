//! How the last start of a VM went on. While the VM runs, the file is where its unit writes it;
//! after the end a copy is kept, until the next start or the next boot of the host.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use banger_api::{Result, now_usec};
use banger_core::name::VmName;
use banger_core::timeline::{self, FILE, MAX_FILE};
use rustix::fs::OFlags;

use super::{Supervisor, lock, runtime_dir};

/// Stages, and when each began.
pub type Timeline = Vec<(String, u64)>;

impl Supervisor {
    /// The stages of the VM's last start; none if there was none.
    pub fn timeline(&self, name: &VmName) -> Result<Timeline> {
        self.get(name)?;
        let text = match read(&runtime_dir(name).join(FILE))? {
            Some(text) => Some(text),
            None => read(&self.kept_timeline(name))?,
        };
        let stages = timeline::parse(&text.unwrap_or_default());
        Ok(stages.into_iter().map(|(stage, usec)| (stage.to_owned(), usec)).collect())
    }

    /// The stages of a start of which the unit knows nothing: what was before it asks vmd, and now.
    pub(super) fn begin_timeline(&self, name: &VmName) -> Timeline {
        self.forget_timeline(name);
        let requested = lock(&self.0.starts).get(name).map(|start| start.requested_usec);
        let mut stages = Vec::new();
        stages.extend(requested.map(|usec| (timeline::REQUEST.to_owned(), usec)));
        stages.push((timeline::PREPARE.to_owned(), now_usec()));
        stages
    }

    /// Copies what goes with the VM's runtime directory.
    pub(super) fn keep_timeline(&self, name: &VmName) {
        let keep = || -> io::Result<()> {
            let Some(text) = read(&runtime_dir(name).join(FILE))? else { return Ok(()) };
            let kept = self.kept_timeline(name);
            fs::create_dir_all(kept.parent().unwrap_or(&kept))?;
            fs::write(kept, text)
        };
        if let Err(error) = keep() {
            tracing::warn!(vm = name.as_str(), "cannot keep its timeline: {error}");
        }
    }

    pub(super) fn forget_timeline(&self, name: &VmName) {
        let kept = self.kept_timeline(name);
        match fs::remove_file(&kept) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove {}: {error}", kept.display());
            }
            _ => {}
        }
    }

    fn kept_timeline(&self, name: &VmName) -> PathBuf {
        self.0.context.runtime_dir.join("timelines").join(name.as_str())
    }
}

/// Reads a file in a directory of a VMM's, which could put anything there: only an ordinary file
/// counts, of ordinary size.
fn read(path: &Path) -> io::Result<Option<String>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = match fs::OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other(format!("{} is no ordinary file", path.display())));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ordinary_files_are_read() {
        let directory = tempfile::tempdir().expect("makes");
        let file = directory.path().join("timeline");
        assert_eq!(read(&file).expect("reads"), None);
        fs::write(&file, "x".repeat(10_000)).expect("writes");
        assert_eq!(read(&file).expect("reads").map(|text| text.len()), Some(4096));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&file, &link).expect("links");
        assert!(read(&link).is_err());
        assert!(read(directory.path()).is_err());
    }
}
