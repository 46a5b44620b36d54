//! `imaged.conf`: TOML, `/etc/banger` over `/usr/lib/banger`, key by key.

use std::path::PathBuf;

use banger_api::{Error, ErrorKind, Result};
use serde::Deserialize;

const FILES: [&str; 2] = ["/etc/banger/imaged.conf", "/usr/lib/banger/imaged.conf"];
const AGENT: &str = "/usr/libexec/banger/banger-agent";

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The guest's agent, a static program.
    pub agent: Option<PathBuf>,
    /// Registries (`HOST[:PORT]`) that may be spoken to without TLS. Those on this host always may.
    pub insecure_registries: Option<Vec<String>>,
}

impl Config {
    /// # Errors
    /// `InvalidArgs` naming the file and what is wrong in it.
    pub fn load() -> Result<Self> {
        let mut merged = Self::default();
        for path in FILES {
            let text = match std::fs::read_to_string(path) {
                Ok(text) => text,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::from(error).context(path)),
            };
            let file: Self = toml::from_str(&text)
                .map_err(|error| ErrorKind::InvalidArgs.error(format!("{path}: {}", error.message())))?;
            merged = Self {
                agent: merged.agent.or(file.agent),
                insecure_registries: merged.insecure_registries.or(file.insecure_registries),
            };
        }
        Ok(merged)
    }

    pub fn agent(&self) -> PathBuf {
        self.agent.clone().unwrap_or_else(|| AGENT.into())
    }
}
