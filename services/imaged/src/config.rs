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
}

impl Default for Config {
    fn default() -> Self {
        Self { agent: "/usr/libexec/banger/banger-agent".into(), insecure_registries: vec![] }
    }
}
