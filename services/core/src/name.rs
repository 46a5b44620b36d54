//! Names of VMs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest VM name: the VM's user on the host is `bvm-NAME`, and user names end at 31.
pub const MAX_LENGTH: usize = 27;

/// The name of a VM, which is also its host name, a DNS label and the instance of its unit:
/// lowercase letters, digits and inner hyphens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

/// Why a string is not a VM name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.of("VM"))]
pub struct InvalidName(String);

impl InvalidName {
    /// The same of something else whose names have this form, such as a volume.
    #[must_use]
    pub fn of(&self, what: &str) -> String {
        format!(
            "{:?} is not a {what} name: use 1 to {MAX_LENGTH} lowercase letters, digits and hyphens, \
             with a letter or digit at both ends",
            self.0
        )
    }
}

impl VmName {
    /// # Errors
    /// If the string is not a lowercase DNS label.
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        let end = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let bytes = name.as_bytes();
        let valid = bytes.len() <= MAX_LENGTH
            && end(bytes.first())
            && end(bytes.last())
            && bytes.iter().copied().all(inner);
        if valid { Ok(Self(name.to_owned())) } else { Err(InvalidName(name.chars().take(80).collect())) }
    }

    /// A readable name made of a number that should be random.
    pub fn generated(seed: u64) -> Self {
        let adjective = ADJECTIVES[(seed % ADJECTIVES.len() as u64) as usize];
        let noun = NOUNS[(seed / 64 % NOUNS.len() as u64) as usize];
        let number = seed / 4096 % 1000;
        Self(format!("{adjective}-{noun}-{number}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The unit that is this VM.
    pub fn unit(&self) -> String {
        format!("{UNIT_PREFIX}{}{UNIT_SUFFIX}", self.0)
    }

    /// The pattern that matches the units of all VMs.
    pub fn unit_pattern() -> &'static str {
        "banger-vm@*.service"
    }

    /// The VM behind a unit's name.
    pub fn from_unit(unit: &str) -> Option<Self> {
        Self::new(unit.strip_prefix(UNIT_PREFIX)?.strip_suffix(UNIT_SUFFIX)?).ok()
    }
}

const UNIT_PREFIX: &str = "banger-vm@";
const UNIT_SUFFIX: &str = ".service";

const ADJECTIVES: [&str; 32] = [
    "amber", "bold", "brisk", "calm", "clear", "crisp", "dapper", "deft", "eager", "early", "fair", "fleet",
    "fond", "frank", "glad", "grand", "handy", "keen", "lively", "lucid", "mellow", "merry", "neat",
    "nimble", "plucky", "proud", "quiet", "rapid", "spry", "sunny", "tidy", "vivid",
];
const NOUNS: [&str; 32] = [
    "badger", "beetle", "bison", "crane", "falcon", "ferret", "finch", "fox", "gecko", "hare", "heron",
    "ibex", "jay", "koala", "lark", "lemur", "lynx", "marten", "mole", "newt", "otter", "owl", "panda",
    "puffin", "raven", "robin", "seal", "stoat", "swift", "tern", "vole", "wren",
];

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for VmName {
    type Error = InvalidName;

    fn try_from(name: String) -> Result<Self, InvalidName> {
        Self::new(&name)
    }
}

impl From<VmName> for String {
    fn from(name: VmName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dns_labels_only() {
        for good in ["a", "web", "web-1", "0", &"x".repeat(MAX_LENGTH)] {
            assert_eq!(VmName::new(good).map(String::from), Ok(good.to_owned()));
        }
        for bad in
            ["", "-", "a-", "-a", "Web", "a.b", "a/b", "../a", "a b", "ä", "a\0", &"x".repeat(MAX_LENGTH + 1)]
        {
            assert!(VmName::new(bad).is_err(), "{bad:?}");
        }
        let error = VmName::new("A b").expect_err("invalid");
        assert!(error.to_string().starts_with("\"A b\" is not a VM name: use 1 to 27 "));
        assert!(error.of("volume").contains("is not a volume name"));
    }

    #[test]
    fn units_and_back() {
        let name = VmName::new("my-web").expect("valid");
        assert_eq!(name.unit(), "banger-vm@my-web.service");
        assert_eq!(VmName::from_unit("banger-vm@my-web.service"), Some(name));
        assert_eq!(VmName::from_unit("banger-vm@A.service"), None);
        assert_eq!(VmName::from_unit("ssh.service"), None);
    }

    proptest! {
        #[test]
        fn generated_names_are_valid(seed: u64) {
            let name = VmName::generated(seed);
            prop_assert_eq!(VmName::new(name.as_str()), Ok(name));
        }

        #[test]
        fn never_panics(name: String) {
            let _ = VmName::new(&name);
            let _ = VmName::from_unit(&name);
        }
    }
}
