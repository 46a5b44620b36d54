//! An archive from a guest, unpacked on the host. The directory has a symbolic link that leads to another one,
//! in which nothing may change, whatever the archive says.
#![no_main]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

#[path = "../../../services/imaged/tests/inputs/mod.rs"]
#[allow(dead_code)]
mod inputs;

use banger_files::unpack::{Owner, Rules, target, unpack};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for owner in [Owner::Caller, Owner::As(1, 1), Owner::Archive] {
        let dir = tempfile::tempdir().expect("a directory");
        let (outside, inside) = (dir.path().join("outside"), dir.path().join("inside"));
        fs::create_dir(&outside).expect("a directory");
        fs::write(outside.join("file"), "kept").expect("a file");
        fs::create_dir(&inside).expect("a directory");
        symlink("../outside", inside.join("link")).expect("a link");
        symlink("../outside/file", inside.join("f")).expect("a link");
        let before = state(&outside);

        let rules = Rules { owner, devices: false, name: None };
        let archive = if bytes.len() < 512 { bytes.to_vec() } else { inputs::summed(bytes.to_vec()) };
        let _ = unpack(&archive[..], target(&inside).expect("opens"), rules);

        assert_eq!(state(&outside), before);
        assert_eq!(fs::read(outside.join("file")).expect("reads"), b"kept");
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 2);
    }
});

/// What would tell of a change: links, mode, owner and times of the directory and of its file.
fn state(outside: &Path) -> Vec<(u64, u32, u32, i64, i64)> {
    [outside.to_owned(), outside.join("file")]
        .map(|path| fs::symlink_metadata(path).expect("is there"))
        .map(|found| (found.nlink(), found.mode(), found.uid(), found.ctime(), found.ctime_nsec()))
        .to_vec()
}
