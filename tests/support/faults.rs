//! Services that end at the places which have names in their sources (`make failpoints`).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::{Done, banger, eventually, run, sh};

/// A service built with failpoints, until this is dropped.
#[derive(Debug)]
pub struct Mortal {
    service: &'static str,
}

impl Mortal {
    pub fn new(service: &'static str) -> Self {
        let mortal = Self { service };
        let binaries = std::env::var("BANGER_FAILPOINTS").expect("set by make check-system");
        // The build directory may be in a home directory, which the unit does not see.
        let binary = format!("/usr/local/libexec/banger-{service}");
        run("install", &["-D", &format!("{binaries}/banger-{service}"), &binary]).ok();
        fs::create_dir_all(mortal.drop_in()).expect("creates");
        let text = format!("[Service]\nExecStart=\nExecStart={binary}\n");
        fs::write(format!("{}/failpoint.conf", mortal.drop_in()), text).expect("writes");
        mortal.restart();
        mortal
    }

    fn unit(&self) -> String {
        format!("banger-{}.service", self.service)
    }

    fn drop_in(&self) -> String {
        format!("/run/systemd/system/{}.d", self.unit())
    }

    fn failpoint(&self) -> String {
        format!("/run/banger/{}/failpoint", self.service)
    }

    fn restart(&self) {
        run("systemctl", &["daemon-reload"]).ok();
        run("systemctl", &["restart", &self.unit()]).ok();
    }

    /// Whoever comes to this place waits there for so long.
    pub fn delays(&self, point: &str, milliseconds: u64) {
        fs::write(self.failpoint(), format!("delay {point} {milliseconds}\n")).expect("writes");
    }

    /// Lets everybody pass.
    pub fn delays_nobody(&self) {
        let _ = fs::remove_file(self.failpoint());
    }

    /// Runs a command of the CLI during which the service dies at this place.
    #[track_caller]
    pub fn dies(&self, point: &str, command: &[&str]) -> Done {
        fs::write(self.failpoint(), format!("{point}\n")).expect("writes");
        let cut = banger(command);
        // What is done in the background, or by a VM's unit, may come to the place later.
        let what = format!("{} comes to {point}: {cut}", self.service);
        eventually(&what, || !Path::new(&self.failpoint()).exists());
        // So many deaths look like a service that cannot start.
        let _ = run("systemctl", &["reset-failed", &self.unit()]);
        cut
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.failpoint());
        let _ = fs::remove_dir_all(self.drop_in());
        self.restart();
    }
}

/// The names of all places in a service's sources.
#[track_caller]
pub fn failpoints(service: &str) -> BTreeSet<String> {
    let sources = format!("{}/../services/{service}/src", env!("CARGO_MANIFEST_DIR"));
    let found =
        sh(&format!("grep -rhoE 'failpoint!\\((blocking )?\"[a-z.]+\"' {sources} | cut -d '\"' -f 2")).ok();
    found.lines().map(str::to_owned).collect()
}
