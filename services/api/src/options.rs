//! The trailing `a{sv}` of a method: optional arguments by name. Unknown names are refused, so
//! that a typing error never passes silently.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use zbus::{Fd, OwnedVariant, Variant};

use crate::{Error, ErrorKind, Result};

/// Options as they came in; take each known one, then [`Options::finish`].
#[derive(Debug, Default)]
pub struct Options(HashMap<String, OwnedVariant>);

impl From<HashMap<String, OwnedVariant>> for Options {
    fn from(options: HashMap<String, OwnedVariant>) -> Self {
        Self(options)
    }
}

impl Options {
    /// Takes an option out, or `None` if it was not given.
    ///
    /// # Errors
    /// `InvalidArgs` if it has another type.
    pub fn take<T>(&mut self, name: &str) -> Result<Option<T>>
    where
        T: TryFrom<OwnedVariant> + zbus::wire::Type,
    {
        let Some(value) = self.0.remove(name) else { return Ok(None) };
        let found = value.value_signature().to_string();
        T::try_from(value).map(Some).map_err(|_| {
            ErrorKind::InvalidArgs.error(format!(
                "option {name:?} has type {found:?}; it must be {:?}",
                T::SIGNATURE.to_string()
            ))
        })
    }

    /// Takes a file descriptor out, or `None` if it was not given.
    ///
    /// # Errors
    /// `InvalidArgs` if it is something else.
    pub fn take_fd(&mut self, name: &str) -> Result<Option<OwnedFd>> {
        let Some(fd) = self.take::<Fd<'static>>(name)? else { return Ok(None) };
        OwnedFd::try_from(fd).map(Some).map_err(Error::internal)
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// `InvalidArgs` naming the options nobody knows.
    pub fn finish(self) -> Result<()> {
        let mut unknown: Vec<_> = self.0.into_keys().collect();
        if unknown.is_empty() {
            return Ok(());
        }
        unknown.sort();
        Err(ErrorKind::InvalidArgs.error(format!("unknown option {}", unknown.join(", "))))
    }
}

/// A client's side of the same: builds an `a{sv}`.
#[derive(Debug, Default, Clone)]
pub struct OptionsBuilder<'a>(HashMap<&'a str, Variant<'a>>);

impl<'a> OptionsBuilder<'a> {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `name` if there is a value.
    pub fn set<T: Into<Variant<'a>>>(mut self, name: &'a str, value: Option<T>) -> Self {
        if let Some(value) = value {
            self.0.insert(name, value.into());
        }
        self
    }

    pub fn build(self) -> HashMap<&'a str, Variant<'a>> {
        self.0
    }
}
