//! `imaged.conf`.

use std::path::PathBuf;

use serde::Deserialize;

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The guest's agent, a static program.
    pub agent: PathBuf,
    /// Registries (`HOST[:PORT]`) that may be spoken to without TLS. Those on this host always may.
    pub insecure_registries: Vec<String>,
    pub signatures: Signatures,
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
            insecure_registries: vec![],
            signatures: Signatures::default(),
        }
    }
}
