//! `netd.conf`.

use std::net::Ipv4Addr;

use banger_core::network::Ports;
use ipnet::Ipv4Net;
use serde::{Deserialize, Deserializer, de};

use crate::dns::zone::Name;

/// The admin's file, named in messages that ask for a change.
pub const FILE: &str = "/etc/banger/netd.conf";

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of the bridge.
    #[serde(deserialize_with = "bridge")]
    pub bridge: String,
    /// The network of the guests.
    #[serde(deserialize_with = "range")]
    pub range: Ipv4Net,
    /// Whether guests have IPv6 as well, where the host has it.
    pub ipv6: bool,
    /// TAPs made in advance.
    #[serde(deserialize_with = "pool")]
    pub pool: usize,
    /// Whether leases that do not say otherwise let their guest leave the host.
    pub nat: bool,
    /// Name servers of the guests; `None` has them ask us.
    pub dns: Option<Vec<Ipv4Addr>>,
    /// VMs are found as `NAME.domain`.
    #[serde(deserialize_with = "domain")]
    pub domain: Name,
    pub host: Host,
}

/// The host, as guests see it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Host {
    /// What they reach there besides what banger itself offers.
    pub allow: Vec<Ports>,
}

impl Default for Config {
    fn default() -> Self {
        let range = Ipv4Net::new_assert(Ipv4Addr::new(10, 209, 0, 0), 16);
        let domain = parse_domain("banger.internal").expect("a domain");
        Self {
            bridge: "banger0".into(),
            range,
            ipv6: true,
            pool: 8,
            nat: true,
            dns: None,
            domain,
            host: Host::default(),
        }
    }
}

fn range<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Ipv4Net, D::Error> {
    parse_range(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

fn bridge<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    check_bridge(&name).map_err(de::Error::custom)?;
    Ok(name)
}

/// Each is an interface of the host's that everything which lists them will show.
const MAX_POOL: usize = 256;

fn pool<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let size = usize::deserialize(deserializer)?;
    if size <= MAX_POOL {
        return Ok(size);
    }
    Err(de::Error::custom(format!("a pool of {size} TAPs is too large: {MAX_POOL} at most")))
}

fn domain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
    parse_domain(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

/// Leaves room for names below it, and for all that is said about one to pass over UDP without EDNS.
const MAX_DOMAIN: usize = 100;

fn parse_domain(text: &str) -> Result<Name, String> {
    let is_label = |label: &str| {
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        (1..=63).contains(&label.len())
            && label.chars().all(valid)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() > MAX_DOMAIN || !text.split('.').all(is_label) {
        return Err(format!(
            "domain {text:?} is no domain such as banger.internal: labels of a-z, 0-9 and '-', joined by '.', \
             at most {MAX_DOMAIN} characters"
        ));
    }
    let top = text.rsplit('.').next().unwrap_or(text);
    if ["local", "localhost", "arpa"].contains(&top) {
        return Err(format!("domain {text:?} cannot be used: {top} has a meaning of its own"));
    }
    text.parse().map_err(|error| format!("domain {text:?}: {error}"))
}

fn parse_range(text: &str) -> Result<Ipv4Net, String> {
    let range: Ipv4Net =
        text.parse().map_err(|_| format!("range {text:?} is not an IPv4 network such as 10.209.0.0/16"))?;
    if range.addr() != range.network() {
        return Err(format!("range {text:?} has host bits set; did you mean {}?", range.trunc()));
    }
    if !(8..=30).contains(&range.prefix_len()) {
        return Err(format!("range {text:?} must have a prefix length from 8 to 30"));
    }
    if range.network().is_loopback() || range.network().is_multicast() || range.network().is_unspecified() {
        return Err(format!("range {text:?} cannot be used for hosts"));
    }
    Ok(range)
}

fn check_bridge(name: &str) -> Result<(), String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 15 || !name.chars().all(valid) || name.starts_with('.') {
        return Err(format!("bridge {name:?} must have 1 to 15 letters, digits, '-', '_' or '.'"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_has_every_key_and_its_default() {
        let text = include_str!("../../../docs/formats/netd.conf");
        assert_eq!(banger_config::reference::check::<Config>(text), Ok(()));
        assert_eq!(toml::from_str::<Config>(text).expect("parses"), Config::default());
    }

    fn refusal(text: &str) -> String {
        toml::from_str::<Config>(text).expect_err("refused").message().to_owned()
    }

    #[test]
    fn values_are_checked() {
        assert_eq!(
            refusal("range = \"10.209.0.5/16\"\n"),
            "range \"10.209.0.5/16\" has host bits set; did you mean 10.209.0.0/16?"
        );
        assert!(refusal("bridge = \"a name that is too long\"").contains("1 to 15"));
        assert!(refusal("range = \"10.0.0.0/31\"").contains("from 8 to 30"));
        for domain in ["", "a..b", "Vm", "a_b", "-a", "a-", "x.", &"a.".repeat(51)] {
            assert!(refusal(&format!("domain = {domain:?}\n")).contains("is no domain"), "{domain}");
        }
        assert!(refusal("domain = \"vm.local\"").contains("a meaning of its own"));
        assert!(refusal("[host]\nallow = [\"tcp/0\"]").contains("tcp/0"));
        assert!(refusal("pool = 257").contains("256 at most"));
        assert!(refusal("rnge = \"10.0.0.0/8\"").contains("unknown field"));
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let config: Config =
            toml::from_str("dns = []\nrange = \"192.168.77.0/24\"\ndomain = \"vm\"").expect("parses");
        let range = "192.168.77.0/24".parse().expect("network");
        assert_eq!(
            config,
            Config { range, dns: Some(vec![]), domain: "vm".parse().expect("a name"), ..Config::default() }
        );
    }
}
