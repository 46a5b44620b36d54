//! Directories of the user's, by the XDG Base Directory Specification.

use std::path::PathBuf;

use banger_api::{ErrorKind, Result};

/// The directory that a variable names, or one below the user's home.
///
/// # Errors
/// `NotReady` without a home.
pub fn directory(variable: &str, below_home: &str) -> Result<PathBuf> {
    let named = absolute(variable).or_else(|| Some(absolute("HOME")?.join(below_home)));
    named.ok_or_else(|| ErrorKind::NotReady.error(format!("neither {variable} nor HOME is set")))
}

/// The user's home.
///
/// # Errors
/// `NotReady` without one.
pub fn home() -> Result<PathBuf> {
    absolute("HOME").ok_or_else(|| ErrorKind::NotReady.error("HOME is not set"))
}

/// What does not begin with `/` is to be ignored, says the specification.
fn absolute(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}
