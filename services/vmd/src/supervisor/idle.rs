//! When a VM has last done something. vmd does not stay in between, so what it saw the last time is
//! in its runtime directory.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use banger_api::{Error, Result};
use banger_core::name::VmName;
use serde::{Deserialize, Serialize};

const USEC_PER_SEC: u64 = 1_000_000;

/// What was seen of a VM. Times are microseconds since the host's boot, without those it was
/// suspended: neither a change of the clock nor a night's sleep makes a VM idle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Which of its runs: when that began, microseconds since 1970.
    run: Option<u64>,
    at_usec: u64,
    cpu_usec: u64,
    /// When it was last busy.
    busy_usec: u64,
}

impl Sample {
    /// What is seen now. Busy is a VM that has only started, or took at least `percent` of a CPU since it was
    /// seen before.
    pub fn after(before: Option<&Self>, run: Option<u64>, at_usec: u64, cpu_usec: u64, percent: u32) -> Self {
        let fresh = Self { run, at_usec, cpu_usec, busy_usec: at_usec };
        let Some(before) = before.filter(|before| before.run == run) else { return fresh };
        let took = u128::from(cpu_usec.saturating_sub(before.cpu_usec)) * 100;
        let span = u128::from(at_usec.saturating_sub(before.at_usec));
        if took >= span * u128::from(percent) { fresh } else { Self { busy_usec: before.busy_usec, ..fresh } }
    }

    pub fn run(&self) -> Option<u64> {
        self.run
    }

    /// Something happened in it `ago_usec` before it was seen.
    pub fn was_busy(&mut self, ago_usec: u64) {
        self.busy_usec = self.busy_usec.max(self.at_usec.saturating_sub(ago_usec));
    }

    pub fn is_busy(&self) -> bool {
        self.busy_usec == self.at_usec
    }

    /// Whole seconds since it was last busy.
    pub fn idle_seconds(&self) -> u64 {
        self.at_usec.saturating_sub(self.busy_usec) / USEC_PER_SEC
    }
}

pub type Samples = BTreeMap<VmName, Sample>;

/// What was written last; nothing if that makes no sense to this version.
pub fn load(path: &Path) -> Result<Samples> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Samples::new()),
        Err(error) => Err(Error::from(error).context(path.display())),
    }
}

pub fn save(path: &Path, samples: &Samples) -> Result<()> {
    let bytes = serde_json::to_vec(samples).map_err(Error::internal)?;
    fs::write(path, bytes).map_err(|error| Error::from(error).context(path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: u64 = USEC_PER_SEC;

    fn after(before: &Sample, at: u64, cpu_percent: u64) -> Sample {
        let took = (at * SEC - before.at_usec) * cpu_percent / 100;
        Sample::after(Some(before), Some(7), at * SEC, before.cpu_usec + took, 3)
    }

    #[test]
    fn idle_is_who_takes_little_for_long() {
        let first = Sample::after(None, Some(7), 100 * SEC, 5, 3);
        assert!(first.is_busy());
        let second = after(&first, 130, 2);
        let third = after(&second, 160, 2);
        assert_eq!((second.idle_seconds(), third.idle_seconds()), (30, 60));
        let busy = after(&third, 190, 3);
        assert!(busy.is_busy());
        assert_eq!(after(&busy, 220, 0).idle_seconds(), 30);
    }

    #[test]
    fn another_run_begins_anew() {
        let first = Sample::after(None, Some(7), 100 * SEC, 5, 3);
        assert!(Sample::after(Some(&first), Some(8), 900 * SEC, 5, 3).is_busy());
    }

    #[test]
    fn a_command_in_it_counts() {
        let mut sample = after(&Sample::after(None, Some(7), 100 * SEC, 5, 3), 200, 0);
        sample.was_busy(40 * SEC);
        assert_eq!(sample.idle_seconds(), 40);
        sample.was_busy(90 * SEC);
        assert_eq!(sample.idle_seconds(), 40);
    }

    #[test]
    fn samples_outlive_vmd() {
        let directory = tempfile::tempdir().expect("makes");
        let path = directory.path().join("idle.json");
        assert!(load(&path).expect("loads").is_empty());
        let name = VmName::new("web").expect("a name");
        let samples = Samples::from([(name, Sample::after(None, None, 1, 2, 3))]);
        save(&path, &samples).expect("saves");
        assert_eq!(load(&path).expect("loads"), samples);
        fs::write(&path, "{").expect("writes");
        assert!(load(&path).expect("loads").is_empty());
    }
}
