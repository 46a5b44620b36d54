//! `vmd.conf`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use banger_api::Result;
use banger_core::guest::GitIdentity;
use banger_core::network::{Egress, EgressDefault, Rule};
use banger_core::spec::{Rates, Spec};
use banger_core::units;
use serde::{Deserialize, Deserializer, de};

use crate::request::none_if_zero;

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What a VM is made of unless its creator says otherwise.
    pub defaults: Defaults,
    /// What every guest is brought up with.
    pub sync: Sync,
    /// Files of the host that every guest has.
    pub file_sync: Vec<FileSync>,
    pub work: Work,
    pub reap: Reap,
}

/// What every guest is brought up with, besides whole files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sync {
    /// Files with public keys that may log in over SSH as the image's user.
    pub authorized_keys: Vec<PathBuf>,
    /// Who commits.
    pub git: Option<GitIdentity>,
    /// Files with certificates of authorities to trust, in PEM.
    pub ca_certificates: Vec<PathBuf>,
    /// A name such as `Europe/Berlin`; `host` is the host's, and empty the image's.
    pub timezone: String,
}

/// A file of the host that every guest has.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSync {
    pub host: PathBuf,
    /// Path in the guest, absolute.
    pub guest: String,
    /// The permission bits there, in octal.
    #[serde(default = "FileSync::default_mode", deserialize_with = "octal")]
    pub mode: u32,
    /// `user`, `uid`, `user:group` or `uid:gid` of the guest; empty is root.
    #[serde(default)]
    pub owner: String,
    /// Whether no guest starts without it.
    #[serde(default)]
    pub required: bool,
}

impl FileSync {
    fn default_mode() -> u32 {
        0o644
    }
}

/// What work disks begin with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Work {
    /// Directory of the host that new work disks are a copy of; none: they are empty.
    #[serde(deserialize_with = "directory")]
    pub seed: Option<PathBuf>,
}

/// Which VMs are stopped because nobody uses them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reap {
    /// Seconds for which a VM may be idle; 0: for ever.
    #[serde(deserialize_with = "span")]
    pub idle: u64,
    /// Percent of one CPU below which a VM is idle, on average.
    pub idle_cpu: u32,
}

impl Default for Reap {
    fn default() -> Self {
        Self { idle: 0, idle_cpu: 3 }
    }
}

impl Config {
    /// Reads the files, which happens whenever something in them matters: changes need no restart,
    /// and mistakes are told to whom they concern.
    ///
    /// # Errors
    /// `InvalidArgs` naming the file, the line and what is wrong there.
    pub fn load() -> Result<Self> {
        banger_config::load("vmd")
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
    pub groups: BTreeSet<String>,
    pub egress: EgressDefault,
    pub egress_allow: BTreeSet<Rule>,
    #[serde(deserialize_with = "word")]
    pub restart: banger_core::spec::Restart,
    #[serde(deserialize_with = "span")]
    pub ttl: u64,
    #[serde(deserialize_with = "word")]
    pub expiry: banger_core::spec::Expiry,
    /// Of these, `0` is unlimited.
    #[serde(deserialize_with = "size_or_none")]
    pub disk_bandwidth: u64,
    pub disk_iops: u64,
    #[serde(deserialize_with = "size_or_none")]
    pub network_bandwidth: u64,
    pub network_packets: u64,
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
            groups: spec.groups,
            egress: spec.egress.default,
            egress_allow: spec.egress.allow,
            restart: spec.restart,
            ttl: spec.ttl,
            expiry: spec.expiry,
            disk_bandwidth: 0,
            disk_iops: 0,
            network_bandwidth: 0,
            network_packets: 0,
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
            groups: self.groups.clone(),
            egress: Egress { default: self.egress, allow: self.egress_allow.clone() },
            restart: self.restart,
            ttl: self.ttl,
            expiry: self.expiry,
            rates: Rates {
                disk_bandwidth: none_if_zero(self.disk_bandwidth),
                disk_iops: none_if_zero(self.disk_iops),
                network_bandwidth: none_if_zero(self.network_bandwidth),
                network_packets: none_if_zero(self.network_packets),
            },
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

fn octal<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<u32, D::Error> {
    let text = String::deserialize(deserializer)?;
    match u32::from_str_radix(&text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err(de::Error::custom(format!("{text:?} is not a mode: use octal digits such as \"0644\""))),
    }
}

/// An empty text takes the setting of a weaker file away.
fn directory<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    if !path.is_absolute() {
        return Err(de::Error::custom(format!("{path:?} is not an absolute path")));
    }
    Ok(Some(path))
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
    fn the_manual_has_every_key_and_its_default() {
        let text = include_str!("../../../docs/formats/vmd.conf");
        assert_eq!(banger_config::reference::check::<Config>(text), Ok(()));
        assert_eq!(toml::from_str::<Config>(text).expect("parses"), Config::default());
    }

    #[test]
    fn nothing_said_is_the_built_in_default() {
        assert_eq!(Config::default().defaults.spec(), Spec::default());
    }

    #[test]
    fn idle_vms_are_stopped_if_the_admin_says_so() {
        assert_eq!(Config::default().reap.idle, 0);
        let reap = toml::from_str::<Config>("[reap]\nidle = \"2h\"\n").expect("parses").reap;
        assert_eq!((reap.idle, reap.idle_cpu), (7200, 3));
        assert!(toml::from_str::<Config>("[reap]\nidle = \"late\"\n").is_err());
    }

    #[test]
    fn values_are_written_as_people_do() {
        let text = "[defaults]\nmemory = \"1G\"\nwork = \"0\"\nttl = \"2h\"\nrestart = \"on-failure\"\n\
                    disk_bandwidth = \"50M\"\nnetwork_packets = 1000\n";
        let spec = toml::from_str::<Config>(text).expect("parses").defaults.spec();
        assert_eq!((spec.memory, spec.work, spec.ttl), (1 << 30, 0, 7200));
        let rates = Rates { disk_bandwidth: Some(50 << 20), network_packets: Some(1000), ..Rates::default() };
        assert_eq!(spec.rates, rates);
        for wrong in ["memory = \"1X\"", "restart = \"maybe\"", "memroy = \"1G\"", "ttl = \"soon\""] {
            assert!(toml::from_str::<Config>(&format!("[defaults]\n{wrong}\n")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn where_guests_get_is_written_as_the_options_are() {
        let text = "[defaults]\negress = \"no-lan\"\negress_allow = [\"192.168.1.5:631/tcp\"]\n";
        let egress = toml::from_str::<Config>(text).expect("parses").defaults.spec().egress;
        assert_eq!(
            (egress.default, egress.shown_rules().concat()),
            (EgressDefault::NoLan, "192.168.1.5:631/tcp".into())
        );
        for wrong in ["egress = \"shut\"", "egress_allow = [\"192.168.1.5/8\"]"] {
            assert!(toml::from_str::<Config>(&format!("[defaults]\n{wrong}\n")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_guests_are_brought_up_with() {
        let text = "[sync]\ngit = { name = \"A\", email = \"a@b\" }\ntimezone = \"host\"\n\
                    [work]\nseed = \"/srv/seed\"\n\
                    [[file_sync]]\nhost = \"/etc/motd\"\nguest = \"/etc/motd\"\nmode = \"0600\"\n\
                    [[file_sync]]\nhost = \"/a\"\nguest = \"/b\"\nrequired = true\n";
        let config = toml::from_str::<Config>(text).expect("parses");
        assert_eq!(config.file_sync.iter().map(|file| file.mode).collect::<Vec<_>>(), [0o600, 0o644]);
        assert_eq!(config.work.seed, Some("/srv/seed".into()));
        assert_eq!(config.sync.git.expect("there").name, "A");
        let refused = |text: &str| toml::from_str::<Config>(text).expect_err("refused").to_string();
        let file = "[[file_sync]]\nhost = \"/a\"\nguest = \"/b\"\n";
        assert!(refused(&format!("{file}mode = \"rw\"")).contains("is not a mode"));
        assert!(refused("[[file_sync]]\nhost = \"/a\"\n").contains("guest"));
        assert!(refused("[work]\nseed = \"seed\"\n").contains("absolute"));
        assert_eq!(toml::from_str::<Config>("[work]\nseed = \"\"\n").expect("parses").work.seed, None);
    }
}
