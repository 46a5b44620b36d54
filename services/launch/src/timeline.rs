//! The file that tells how a start went on, see [`banger_core::timeline`].

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use banger_api::now_usec;
use banger_core::timeline::{FILE, line};

/// Appends to the file. A start does not fail because its times cannot be written.
pub struct Timeline {
    path: PathBuf,
    /// Each stage is written once, so that no guest can fill the disk with them.
    told: HashSet<String>,
}

impl Timeline {
    pub fn new(runtime_dir: &Path) -> Self {
        Self { path: runtime_dir.join(FILE), told: HashSet::new() }
    }

    /// The stage begins now.
    pub fn mark(&mut self, stage: &str) {
        self.mark_at(stage, now_usec());
    }

    pub fn mark_at(&mut self, stage: &str, usec: u64) {
        if !self.told.insert(stage.to_owned()) {
            return;
        }
        // The group's bits are the mask of the access list that lets vmd read it.
        let file = OpenOptions::new().append(true).create(true).mode(0o660).open(&self.path);
        if let Err(error) = file.and_then(|mut file| file.write_all(line(stage, usec).as_bytes())) {
            eprintln!("cannot write {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_written_once() {
        let directory = tempfile::tempdir().expect("makes");
        let mut timeline = Timeline::new(directory.path());
        for (stage, usec) in [("unit", 1), ("vmm", 2), ("unit", 3)] {
            timeline.mark_at(stage, usec);
        }
        let text = std::fs::read_to_string(directory.path().join(FILE)).expect("reads");
        assert_eq!(text, "1 unit\n2 vmm\n");
    }
}
