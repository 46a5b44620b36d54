//! Limits of a command in a guest, see setrlimit(2), by the names of prlimit(1).

use std::collections::BTreeMap;

/// What can be limited: `as`, `core`, `data`, `fsize`, `memlock` and `stack` in bytes, `cpu` in seconds, `nofile` and
/// `nproc` by number. Each process has its own, but for `nproc`, which counts those of a user.
pub const NAMES: [&str; 9] = ["as", "core", "cpu", "data", "fsize", "memlock", "nofile", "nproc", "stack"];

/// The value that is no limit.
pub const UNLIMITED: u64 = u64::MAX;

/// By name: what a process may have at most, and cannot raise again.
pub type Limits = BTreeMap<String, u64>;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} cannot be limited; there are {names}", names = NAMES.join(", "))]
pub struct UnknownResource(String);

/// # Errors
/// If a name is none of [`NAMES`].
pub fn check(limits: &Limits) -> Result<(), UnknownResource> {
    match limits.keys().find(|name| !NAMES.contains(&name.as_str())) {
        Some(unknown) => Err(UnknownResource(unknown.clone())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_resources_are_named() {
        let limits = |name: &str| Limits::from([(name.to_owned(), 1)]);
        assert_eq!(check(&limits("nofile")), Ok(()));
        let error = check(&limits("files")).unwrap_err().to_string();
        assert_eq!(
            error,
            "\"files\" cannot be limited; there are as, core, cpu, data, fsize, memlock, nofile, nproc, stack"
        );
    }
}
