//! What a guest's network lets through: the policy of one VM.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most groups that a VM may be in: each costs the packets between guests a look-up.
const MAX_GROUPS: usize = 16;

/// What a guest reaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Whether it reaches addresses beyond the host.
    pub nat: bool,
    /// It reaches the guests that share one of these with it, and no others.
    pub groups: BTreeSet<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { nat: true, groups: BTreeSet::new() }
    }
}

/// Why a policy cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPolicy {
    #[error("{0:?} is not a name for a group: use 1 to 32 letters, digits, - and _, a letter or digit first")]
    Group(String),
    #[error("{0} groups: use at most {MAX_GROUPS}")]
    Groups(usize),
    #[error("{0:?} is no port: write tcp/443, udp/53 or a range such as tcp/8000-8080")]
    Ports(String),
}

/// A port, or a range of them, written `tcp/8080` or `udp/5000-5010`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ports {
    pub protocol: Protocol,
    pub first: u16,
    /// Not below `first`.
    pub last: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

impl FromStr for Ports {
    type Err = InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, InvalidPolicy> {
        let parse = || {
            let (protocol, ports) = text.split_once('/')?;
            let protocol =
                [Protocol::Tcp, Protocol::Udp].into_iter().find(|known| known.as_str() == protocol)?;
            let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (1 <= first && first <= last).then_some(Ports { protocol, first, last })
        };
        parse().ok_or_else(|| InvalidPolicy::Ports(text.chars().take(40).collect()))
    }
}

impl TryFrom<String> for Ports {
    type Error = InvalidPolicy;

    fn try_from(text: String) -> Result<Self, InvalidPolicy> {
        text.parse()
    }
}

impl From<Ports> for String {
    fn from(ports: Ports) -> Self {
        ports.to_string()
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol.as_str(), self.first)?;
        if self.first == self.last { Ok(()) } else { write!(f, "-{}", self.last) }
    }
}

impl Policy {
    /// # Errors
    /// The first thing that cannot be kept.
    pub fn check(&self) -> Result<(), InvalidPolicy> {
        if self.groups.len() > MAX_GROUPS {
            return Err(InvalidPolicy::Groups(self.groups.len()));
        }
        self.groups.iter().try_for_each(|name| check_group(name))
    }
}

fn check_group(name: &str) -> Result<(), InvalidPolicy> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let first = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if first && name.len() <= 32 && name.chars().all(inner) {
        return Ok(());
    }
    Err(InvalidPolicy::Group(name.chars().take(40).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_groups(names: &[&str]) -> Result<(), InvalidPolicy> {
        Policy { groups: names.iter().map(ToString::to_string).collect(), ..Policy::default() }.check()
    }

    #[test]
    fn groups_have_plain_names() {
        assert_eq!(in_groups(&["web", "ci-2_x", "9"]), Ok(()));
        for name in ["", "-a", "a b", "ä", "a/b", "a}", &"x".repeat(33)] {
            assert_eq!(in_groups(&[name]), Err(InvalidPolicy::Group(name.into())), "{name:?}");
        }
        let many: Vec<String> = (0..17).map(|number| number.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(in_groups(&many), Err(InvalidPolicy::Groups(17)));
    }

    #[test]
    fn ports_come_back() {
        for text in ["tcp/1", "udp/53", "tcp/8000-8080", "udp/65535"] {
            assert_eq!(text.parse::<Ports>().expect("parses").to_string(), text);
        }
        for text in ["", "tcp", "80", "tcp/0", "tcp/80-79", "tcp/65536", "icmp/1", "tcp/80,81", "TCP/80"] {
            assert_eq!(text.parse::<Ports>(), Err(InvalidPolicy::Ports(text.into())));
        }
    }

    #[test]
    fn policies_survive_storage() {
        let policy = Policy { nat: false, groups: BTreeSet::from(["web".to_owned()]) };
        let text = serde_json::to_string(&policy).expect("serializes");
        assert_eq!(serde_json::from_str::<Policy>(&text).expect("parses"), policy);
        assert_eq!(serde_json::from_str::<Policy>("{}").expect("parses"), Policy::default());
    }
}
