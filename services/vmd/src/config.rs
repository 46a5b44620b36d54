//! `vmd.conf`.

use banger_api::Result;
use banger_core::spec::Spec;
use banger_core::units;
use serde::{Deserialize, Deserializer, de};

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What a VM is made of unless its creator says otherwise.
    pub defaults: Defaults,
}

impl Config {
    /// Reads the files, which happens whenever something in them matters: changes need no restart,
    /// and mistakes are told to whom they concern.
    ///
    /// # Errors
    /// `InvalidArgs` naming the file, the line and what is wrong there.
    pub fn load() -> Result<Self> {
        banger_daemon::config::load("vmd")
    }
}

/// The options of `CreateVm` that can have a default of the admin's.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Defaults {
    pub cpus: u32,
    #[serde(deserialize_with = "size")]
    pub memory: u64,
    #[serde(deserialize_with = "size")]
    pub disk: u64,
    /// `0` makes no work disk.
    #[serde(deserialize_with = "size_or_none")]
    pub work: u64,
    /// Name of a kernel; empty: imaged's default one.
    pub kernel: String,
    pub kernel_arguments: String,
    #[serde(deserialize_with = "word")]
    pub vmm: banger_core::spec::VmmChoice,
    #[serde(deserialize_with = "word")]
    pub init: banger_core::guest::Init,
    pub nat: bool,
    #[serde(deserialize_with = "word")]
    pub restart: banger_core::spec::Restart,
    #[serde(deserialize_with = "span")]
    pub ttl: u64,
    #[serde(deserialize_with = "word")]
    pub expiry: banger_core::spec::Expiry,
}

impl Default for Defaults {
    fn default() -> Self {
        let spec = Spec::default();
        Self {
            cpus: spec.cpus,
            memory: spec.memory,
            disk: spec.disk,
            work: spec.work,
            kernel: String::new(),
            kernel_arguments: spec.kernel_arguments,
            vmm: spec.vmm,
            init: spec.init,
            nat: spec.nat,
            restart: spec.restart,
            ttl: spec.ttl,
            expiry: spec.expiry,
        }
    }
}

impl Defaults {
    /// The specification of a VM about which nothing was said.
    pub fn spec(&self) -> Spec {
        Spec {
            cpus: self.cpus,
            memory: self.memory,
            disk: self.disk,
            work: self.work,
            kernel_arguments: self.kernel_arguments.clone(),
            vmm: self.vmm,
            init: self.init,
            nat: self.nat,
            restart: self.restart,
            ttl: self.ttl,
            expiry: self.expiry,
            ..Spec::default()
        }
    }
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<u64, D::Error> {
    units::parse_size(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

fn size_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<u64, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "0" => Ok(0),
        text => units::parse_size(text).map_err(de::Error::custom),
    }
}

fn span<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<u64, D::Error> {
    units::parse_seconds(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

fn word<'de, D, T>(deserializer: D) -> std::result::Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr<Err = banger_core::spec::InvalidSpec>,
{
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_said_is_the_built_in_default() {
        assert_eq!(Config::default().defaults.spec(), Spec::default());
    }

    #[test]
    fn values_are_written_as_people_do() {
        let text = "[defaults]\nmemory = \"1G\"\nwork = \"0\"\nttl = \"2h\"\nrestart = \"on-failure\"\n";
        let spec = toml::from_str::<Config>(text).expect("parses").defaults.spec();
        assert_eq!((spec.memory, spec.work, spec.ttl), (1 << 30, 0, 7200));
        for wrong in ["memory = \"1X\"", "restart = \"maybe\"", "memroy = \"1G\"", "ttl = \"soon\""] {
            assert!(toml::from_str::<Config>(&format!("[defaults]\n{wrong}\n")).is_err(), "{wrong}");
        }
    }
}
