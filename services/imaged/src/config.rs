//! `imaged.conf`.

use std::path::PathBuf;

use serde::Deserialize;

use crate::limits::Limits;
use crate::presets::Presets;

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The guest's agent, a static program.
    pub agent: PathBuf,
    /// Layers that are fetched at a time, of all pulls together.
    #[serde(deserialize_with = "at_least_one")]
    pub downloads: usize,
    /// How much one image may ask of us.
    pub limits: Limits,
    pub signatures: Signatures,
    /// Images by short names.
    pub presets: Presets,
}

/// `[signatures]`: of files that are imported as images.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Signatures {
    /// Whether a file without one is refused.
    pub required: bool,
}

impl Signatures {
    /// Where the public keys of those are who may sign.
    pub fn key_dirs(&self) -> Vec<PathBuf> {
        ["/etc/banger/keys.d", "/run/banger/keys.d", "/usr/lib/banger/keys.d"].map(PathBuf::from).into()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            agent: "/usr/libexec/banger/banger-agent".into(),
            downloads: 16,
            limits: Limits::default(),
            signatures: Signatures::default(),
            presets: Presets::default(),
        }
    }
}

fn at_least_one<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let value = usize::deserialize(deserializer)?;
    if (1..=256).contains(&value) { Ok(value) } else { Err(serde::de::Error::custom("use 1 to 256")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_has_every_key_and_its_default() {
        let text = include_str!("../../../docs/formats/imaged.conf");
        assert_eq!(banger_config::reference::check::<Config>(text), Ok(()));
        assert_eq!(toml::from_str::<Config>(text).expect("parses"), Config::default());
    }
}
