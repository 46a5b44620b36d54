//! Which host answers for a registry: `registries.conf` in the format of
//! containers-registries.conf(5), version 2.
//!
//! What podman and skopeo are told holds for us as well; what stands in our own files replaces
//! their entry with the same prefix. Of theirs, keys that we do not know are passed over; in ours
//! they are refused. Short names always mean docker.io, so that a name means the same image
//! everywhere: `unqualified-search-registries` and aliases are not for us.

use std::collections::BTreeMap;

use banger_core::credentials::covers;
use banger_core::reference::{DOCKER, Reference, is_component, is_host};
use serde::Deserialize;

use crate::error::{Error, Result};

/// All entries, by prefix.
#[derive(Debug, Default)]
pub struct Registries(BTreeMap<String, Entry>);

/// Whom a file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    Containers,
    Banger,
}

#[derive(Debug, Deserialize)]
struct File {
    #[serde(default)]
    registry: Vec<Entry>,
    #[serde(flatten)]
    unknown: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Entry {
    /// `HOST[:PORT][/NAMESPACE…]` of the images that this is about, or `*.DOMAIN`.
    #[serde(default)]
    prefix: String,
    /// What takes the prefix's place in the image's name; empty: the prefix itself.
    #[serde(default)]
    location: String,
    /// Plain HTTP and unknown certificates are acceptable.
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(flatten)]
    unknown: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: PullFrom,
    #[serde(flatten)]
    unknown: BTreeMap<String, toml::Value>,
}

/// Which pulls a mirror is for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PullFrom {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

/// Where an image can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// How the image is called there.
    pub reference: Reference,
    /// Plain HTTP and unknown certificates are acceptable.
    pub insecure: bool,
}

impl Registries {
    /// Adds what stands in a file; `path` is for messages.
    ///
    /// # Errors
    /// If it is not of the expected form.
    pub fn add(&mut self, path: &str, text: &str, owner: Owner) -> Result<()> {
        let refuse = |reason: String| Error::BadConfig { path: path.to_owned(), reason };
        let file: File = toml::from_str(text).map_err(|error| refuse(error.to_string()))?;
        if owner == Owner::Banger {
            refuse_unknown(&file.unknown).map_err(refuse)?;
        }
        for entry in file.registry {
            entry.check(owner).map_err(refuse)?;
            self.0.insert(entry.prefix().to_owned(), entry);
        }
        Ok(())
    }

    /// Where to ask for an image, the best first.
    ///
    /// # Errors
    /// If pulling it is forbidden.
    pub fn sources(&self, reference: &Reference) -> Result<Vec<Source>> {
        let name = reference.name();
        let entries = self.0.values().filter_map(|entry| Some((entry.matches(&name)?, entry)));
        let Some((length, entry)) = entries.max_by_key(|(length, _)| *length) else {
            return Ok(vec![Source { reference: reference.clone(), insecure: false }]);
        };
        if entry.blocked {
            let prefix = entry.prefix().to_owned();
            return Err(Error::RegistryBlocked { reference: reference.to_string(), prefix });
        }
        let rest = &name[length..];
        let mirrors = entry.mirrors(reference).map(|mirror| Source {
            reference: moved(reference, &mirror.location, rest),
            insecure: mirror.insecure,
        });
        let itself = if entry.location.is_empty() { &name[..length] } else { &entry.location };
        let itself = Source { reference: moved(reference, itself, rest), insecure: entry.insecure };
        Ok(mirrors.chain([itself]).collect())
    }
}

impl Entry {
    fn prefix(&self) -> &str {
        if self.prefix.is_empty() { &self.location } else { &self.prefix }
    }

    /// How much of an image's name the prefix covers.
    fn matches(&self, name: &str) -> Option<usize> {
        let prefix = self.prefix();
        match prefix.strip_prefix('*') {
            Some(domain) => {
                let host = name.split('/').next().unwrap_or_default();
                (host.len() > domain.len() && host.ends_with(domain)).then_some(host.len())
            }
            None => covers(prefix, name).then_some(prefix.len()),
        }
    }

    fn mirrors(&self, reference: &Reference) -> impl Iterator<Item = &Mirror> {
        let pinned = reference.digest.is_some();
        let digests_only = self.mirror_by_digest_only;
        self.mirror.iter().filter(move |mirror| match mirror.pull_from_mirror {
            PullFrom::All => pinned || !digests_only,
            PullFrom::DigestOnly => pinned,
            PullFrom::TagOnly => !pinned && !digests_only,
        })
    }

    fn check(&self, owner: Owner) -> Result<(), String> {
        let prefix = self.prefix();
        let is_place = |text: &str| {
            let mut parts = text.split('/');
            parts.next().is_some_and(is_host) && parts.all(is_component)
        };
        let wildcard = prefix.strip_prefix("*.").is_some_and(is_host);
        if !wildcard && !is_place(prefix) && owner == Owner::Banger {
            return Err(format!("the prefix {prefix:?} is not HOST[:PORT][/NAMESPACE…] or *.DOMAIN"));
        }
        let locations = self.mirror.iter().map(|mirror| &mirror.location);
        for location in locations.chain([&self.location]).filter(|location| !location.is_empty()) {
            if !is_place(location) {
                return Err(format!("the location {location:?} is not HOST[:PORT][/NAMESPACE…]"));
            }
        }
        if owner == Owner::Banger {
            refuse_unknown(&self.unknown)?;
            self.mirror.iter().try_for_each(|mirror| refuse_unknown(&mirror.unknown))?;
        }
        Ok(())
    }
}

fn refuse_unknown(unknown: &BTreeMap<String, toml::Value>) -> Result<(), String> {
    match unknown.keys().next() {
        Some(key) => Err(format!("unknown key {key:?}")),
        None => Ok(()),
    }
}

/// The same image below another place.
fn moved(reference: &Reference, place: &str, rest: &str) -> Reference {
    let name = format!("{place}{rest}");
    let (registry, repository) = name.split_once('/').unwrap_or((&name, ""));
    let registry = if registry == "index.docker.io" { DOCKER } else { registry };
    Reference { registry: registry.to_owned(), repository: repository.to_owned(), ..reference.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"
        unqualified-search-registries = ["quay.io"]
        short-name-mode = "enforcing"

        [[registry]]
        prefix = "docker.io"
        location = "docker.io"
        [[registry.mirror]]
        location = "mirror.lan:5000/hub"
        insecure = true
        [[registry.mirror]]
        location = "pinned.lan"
        pull-from-mirror = "digest-only"

        [[registry]]
        location = "r.lan/team"
        insecure = true

        [[registry]]
        prefix = "r.lan/team/secret"
        blocked = true

        [[registry]]
        prefix = "*.example.com"
        future-key = 1
    "#;

    fn registries(text: &str, owner: Owner) -> Result<Registries> {
        let mut registries = Registries::default();
        registries.add("/etc/x.conf", text, owner)?;
        Ok(registries)
    }

    fn sources(registries: &Registries, reference: &str) -> Vec<String> {
        let show = |source: Source| match source.insecure {
            true => format!("{} insecure", source.reference),
            false => source.reference.to_string(),
        };
        let sources = registries.sources(&reference.parse().expect(reference)).expect(reference);
        sources.into_iter().map(show).collect()
    }

    #[test]
    fn mirrors_come_first_and_the_longest_prefix_counts() {
        let registries = registries(SAMPLE, Owner::Containers).expect("reads");
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(
            sources(&registries, "debian:12"),
            ["mirror.lan:5000/hub/library/debian:12 insecure", "docker.io/library/debian:12"]
        );
        assert_eq!(
            sources(&registries, &format!("debian@{digest}")),
            [
                format!("mirror.lan:5000/hub/library/debian@{digest} insecure"),
                format!("pinned.lan/library/debian@{digest}"),
                format!("docker.io/library/debian@{digest}")
            ]
        );
        assert_eq!(sources(&registries, "r.lan/team/app"), ["r.lan/team/app:latest insecure"]);
        assert_eq!(sources(&registries, "r.lan/teams/app"), ["r.lan/teams/app:latest"]);
        assert_eq!(sources(&registries, "r.lan:5000/team/app"), ["r.lan:5000/team/app:latest"]);
        assert_eq!(sources(&registries, "a.example.com/x"), ["a.example.com/x:latest"]);
        let blocked = registries.sources(&"r.lan/team/secret/x".parse().expect("reference"));
        assert!(matches!(blocked, Err(Error::RegistryBlocked { .. })), "{blocked:?}");
    }

    #[test]
    fn a_later_file_replaces_entries() {
        let mut registries = registries(SAMPLE, Owner::Containers).expect("reads");
        let own = "[[registry]]\nprefix = \"docker.io\"\nlocation = \"hub.lan/proxy\"\n";
        registries.add("/etc/banger/registries.conf", own, Owner::Banger).expect("reads");
        assert_eq!(sources(&registries, "debian"), ["hub.lan/proxy/library/debian:latest"]);
        assert_eq!(sources(&registries, "r.lan/team/app"), ["r.lan/team/app:latest insecure"]);
    }

    #[test]
    fn our_own_files_are_held_to_the_letter() {
        for (text, word) in [
            (SAMPLE, "short-name-mode"),
            ("[[registry]]\nprefix = \"*.a.io\"\nfuture-key = 1\n", "future-key"),
            ("[[registry]]\nprefix = \"a.io\"\n[[registry.mirror]]\nlocation = \"b.io\"\nx = 1\n", "x"),
            ("[[registry]]\nprefix = \"a.io/x:tag\"\n", "a.io/x:tag"),
            ("[[registry]]\nlocation = \"https://a.io\"\n", "https://a.io"),
            ("[[registry]]\ninsecure = \"yes\"\n", "insecure"),
            ("[[registry]]\n", "prefix"),
        ] {
            let error = registries(text, Owner::Banger).expect_err(word).to_string();
            assert!(error.starts_with("/etc/x.conf: ") && error.contains(word), "{error}");
        }
    }
}
