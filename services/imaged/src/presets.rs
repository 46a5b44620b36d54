//! Images by short names that the distribution or the admin chose: `[presets.NAME]` of `imaged.conf`.

use std::collections::BTreeMap;

use banger_core::reference::{InvalidReference, Reference};
use serde::Deserialize;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preset {
    #[serde(deserialize_with = "reference")]
    pub image: Reference,
    #[serde(default)]
    pub description: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Presets(BTreeMap<String, Preset>);

impl Presets {
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Preset)> {
        self.0.iter()
    }

    /// What somebody means: a preset, perhaps with a tag or a digest of its own, or a reference as it is.
    pub fn reference(&self, wanted: &str) -> Result<Reference, InvalidReference> {
        let end = wanted.find([':', '@']).unwrap_or(wanted.len());
        let (name, version) = wanted.split_at(end);
        match self.0.get(name) {
            Some(preset) if version.is_empty() => Ok(preset.image.clone()),
            Some(preset) => format!("{}{version}", preset.image.name()).parse(),
            None => wanted.parse(),
        }
    }
}

fn reference<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Reference, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presets() -> Presets {
        let preset =
            |image: &str| Preset { image: image.parse().expect("parses"), description: String::new() };
        Presets(BTreeMap::from([
            ("fedora".to_owned(), preset("registry.example/fedora:latest")),
            ("debian".to_owned(), preset("docker.io/library/debian:stable")),
        ]))
    }

    #[test]
    fn presets_stand_for_references() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (wanted, meant) in [
            ("fedora", "registry.example/fedora:latest"),
            ("fedora:41", "registry.example/fedora:41"),
            (&format!("fedora@{digest}"), &format!("registry.example/fedora@{digest}")),
            ("debian", "docker.io/library/debian:stable"),
            ("alpine", "docker.io/library/alpine:latest"),
            ("localhost:5000/fedora", "localhost:5000/fedora:latest"),
            ("me/fedora", "docker.io/me/fedora:latest"),
        ] {
            assert_eq!(presets().reference(wanted).expect("parses").to_string(), meant, "{wanted}");
        }
        assert!(presets().reference("fedora:").is_err() && presets().reference("").is_err());
    }

    /// What is shipped says nothing wrong.
    #[test]
    fn the_shipped_ones() {
        let text = include_str!("../../../packaging/config/imaged.conf");
        let config: crate::config::Config = toml::from_str(text).expect("parses");
        assert!(config.presets.iter().all(|(_, preset)| !preset.description.is_empty()));
        let debian = config.presets.reference("debian").expect("parses");
        assert_eq!(debian.to_string(), "docker.io/library/debian:stable");
    }
}
