//! `HOST[:PORT]/REPO[:TAG|@DIGEST]`, and short names as Docker understands them.

use std::fmt;
use std::str::FromStr;

pub const DOCKER: &str = "docker.io";

/// Why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not an image reference: {why}; use HOST[:PORT]/REPO[:TAG|@DIGEST] or a short name such as debian:12"
)]
pub struct InvalidReference {
    text: String,
    why: &'static str,
}

/// The hexadecimal part of `sha256:<64 digits>`, which is also safe as a file name.
pub fn sha256_hex(digest: &str) -> Option<&str> {
    digest.strip_prefix("sha256:").filter(|hex| is_hex64(hex))
}

pub fn is_hex64(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Host and port as they were written.
    pub registry: String,
    pub repository: String,
    /// The tag, unless a digest says it all.
    pub tag: Option<String>,
    /// `sha256:…`
    pub digest: Option<String>,
}

impl Reference {
    /// The same without tag and digest: `HOST[:PORT]/REPO`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Host and port that answer for the registry.
    pub fn endpoint(&self) -> &str {
        if self.registry == DOCKER { "registry-1.docker.io" } else { &self.registry }
    }

    /// What to ask the registry for: the digest, or else the tag.
    pub fn version(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }

    /// Whether the registry is on this host, where nobody listens between us and it.
    pub fn is_loopback(&self) -> bool {
        let host = match self.registry.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => self.registry.split(':').next().unwrap_or_default(),
        };
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match (&self.tag, &self.digest) {
            (_, Some(digest)) => write!(f, "@{digest}"),
            (Some(tag), None) => write!(f, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let bad = |why| InvalidReference { text: text.chars().take(300).collect(), why };
        if text.is_empty() || text.len() > 512 {
            return Err(bad("it is empty or too long"));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|digest| sha256_hex(digest).is_none()) {
            return Err(bad("the digest must be sha256: and 64 lowercase hexadecimal digits"));
        }
        let (registry, rest) = match name.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
            _ => (DOCKER, name),
        };
        if !is_host(registry) {
            return Err(bad("the registry is no host name with an optional port"));
        }
        let (repository, tag) = match rest.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if !tag.is_none_or(is_tag) {
            return Err(bad("the tag may have letters, digits, . _ and -, at most 128"));
        }
        if !repository.split('/').all(is_component) || repository.len() > 255 {
            return Err(bad("the repository may have lowercase letters, digits, . _ - and / between them"));
        }
        let repository = match (registry, repository.contains('/')) {
            (DOCKER | "index.docker.io", false) => format!("library/{repository}"),
            _ => repository.to_owned(),
        };
        let registry = if registry == "index.docker.io" { DOCKER } else { registry };
        let tag = match (tag, digest) {
            (_, Some(_)) => None,
            (tag, None) => Some(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest: digest.map(str::to_owned) })
    }
}

/// A host with an optional port.
pub fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => {
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            ("v6", port.strip_prefix(':').or(if port.is_empty() { None } else { Some("x") }))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    !host.is_empty()
        && host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        })
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn is_tag(tag: &str) -> bool {
    !tag.is_empty()
        && tag.len() <= 128
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// A part of a repository's name.
pub fn is_component(part: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    edge(part.bytes().next())
        && edge(part.bytes().last())
        && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_names() {
        for (text, full) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("user/app:1.0", "docker.io/user/app:1.0"),
            ("index.docker.io/debian", "docker.io/library/debian:latest"),
            ("localhost:5000/debian:12", "localhost:5000/debian:12"),
            ("localhost/x", "localhost/x:latest"),
            ("[::1]:5000/x/y", "[::1]:5000/x/y:latest"),
            ("ghcr.io/a/b/c:T_1", "ghcr.io/a/b/c:T_1"),
        ] {
            assert_eq!(text.parse::<Reference>().expect(text).to_string(), full);
        }
        let digest = format!("sha256:{}", "a".repeat(64));
        let pinned: Reference = format!("r.io/a:1@{digest}").parse().expect("pinned");
        assert_eq!((pinned.version(), pinned.tag.as_deref()), (digest.as_str(), None));
    }

    #[test]
    fn refuses() {
        for text in [
            "",
            "UPPER",
            "a b",
            "r.io/",
            "r.io/a:",
            "r.io/a@sha256:12",
            "r.io/../x",
            "a//b",
            "r.io:0/a",
            "r.io:99999/a",
            "-/a",
            "a:-x",
            "r.io/a@md5:aa",
            "[::1/a",
            "[::1]x/a",
            "http://r.io/a",
            ".io/a",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?} passed");
        }
    }

    #[test]
    fn loopback() {
        for (text, is) in [
            ("localhost:5000/a", true),
            ("127.0.0.2/a", true),
            ("[::1]:5/a", true),
            ("localhost.evil.com/a", false),
            ("10.0.0.1/a", false),
            ("a", false),
        ] {
            assert_eq!(text.parse::<Reference>().expect(text).is_loopback(), is, "{text}");
        }
    }
}
