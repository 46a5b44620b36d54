//! `netd.conf`: TOML, `/etc/banger` over `/usr/lib/banger`, key by key.

use std::net::Ipv4Addr;
use std::path::Path;

use banger_api::{Error, ErrorKind, Result};
use ipnet::Ipv4Net;
use serde::Deserialize;

/// The admin's file, named in messages that ask for a change.
pub const FILE: &str = "/etc/banger/netd.conf";

const FILES: [&str; 2] = [FILE, "/usr/lib/banger/netd.conf"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of the bridge.
    pub bridge: String,
    /// The network of the guests.
    pub range: Ipv4Net,
    /// Whether leases that do not say otherwise let their guest leave the host.
    pub nat: bool,
    /// Name servers of the guests; `None` takes the host's.
    pub dns: Option<Vec<Ipv4Addr>>,
}

/// One file; what it leaves out comes from the next.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    bridge: Option<String>,
    range: Option<String>,
    nat: Option<bool>,
    dns: Option<Vec<Ipv4Addr>>,
}

/// Reads the configuration.
///
/// # Errors
/// `InvalidArgs` naming the file and the line.
pub fn load() -> Result<Config> {
    let mut merged = File::default();
    for path in FILES {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::from(error).context(path)),
        };
        let file = parse(path, &text)?;
        merged = File {
            bridge: merged.bridge.or(file.bridge),
            range: merged.range.or(file.range),
            nat: merged.nat.or(file.nat),
            dns: merged.dns.or(file.dns),
        };
    }
    Ok(resolve(merged))
}

/// One file, every value of it checked.
fn parse(path: &str, text: &str) -> Result<File> {
    let file: File = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        refuse(path, text, at, error.message())
    })?;
    // The position of a key whose value is refused: good enough for a file of four lines.
    let line_of = |key: &str| {
        text.lines().take_while(|line| !line.trim_start().starts_with(key)).map(|line| line.len() + 1).sum()
    };
    if let Some(range) = &file.range {
        parse_range(range).map_err(|error| refuse(path, text, line_of("range"), &error))?;
    }
    if let Some(bridge) = &file.bridge {
        check_bridge(bridge).map_err(|error| refuse(path, text, line_of("bridge"), &error))?;
    }
    Ok(file)
}

fn refuse(path: &str, text: &str, position: usize, message: &str) -> Error {
    let before = text.get(..position.min(text.len())).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    ErrorKind::InvalidArgs.error(format!("{}:{line}: {message}", Path::new(path).display()))
}

fn resolve(file: File) -> Config {
    let range = file.range.as_deref().unwrap_or("10.209.0.0/16");
    Config {
        bridge: file.bridge.unwrap_or_else(|| "banger0".into()),
        range: parse_range(range).expect("checked when the file was parsed"),
        nat: file.nat.unwrap_or(true),
        dns: file.dns,
    }
}

fn parse_range(text: &str) -> std::result::Result<Ipv4Net, String> {
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

fn check_bridge(name: &str) -> std::result::Result<(), String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 15 || !name.chars().all(valid) || name.starts_with('.') {
        return Err(format!("bridge {name:?} must have 1 to 15 letters, digits, '-', '_' or '.'"));
    }
    Ok(())
}

#[cfg(test)]
impl Config {
    /// The built-in defaults.
    pub fn built_in() -> Self {
        resolve(File::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        parse("/etc/x.conf", text).expect_err("refused").to_string()
    }

    #[test]
    fn mistakes_are_named_with_file_and_line() {
        let message = refusal("nat = true\nrnge = \"10.0.0.0/8\"\n");
        assert!(message.starts_with("/etc/x.conf:2: unknown field `rnge`, expected one of"), "{message}");
        let message = refusal("# guests\nrange = \"10.209.0.5/16\"\n");
        assert_eq!(
            message,
            "/etc/x.conf:2: range \"10.209.0.5/16\" has host bits set; did you mean 10.209.0.0/16?"
        );
        let message = refusal("nat = \"yes\"");
        assert!(message.starts_with("/etc/x.conf:1: "), "{message}");
        assert!(!message.contains('\n'));
        assert!(refusal("bridge = \"a name that is too long\"").contains("1 to 15"));
        assert!(refusal("range = \"10.0.0.0/31\"").contains("from 8 to 30"));
        assert!(refusal("dns = [\"resolver\"]").starts_with("/etc/x.conf:1: "));
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let config = resolve(parse("x", "dns = []\nrange = \"192.168.77.0/24\"").expect("parses"));
        assert_eq!(
            config,
            Config {
                bridge: "banger0".into(),
                range: "192.168.77.0/24".parse().expect("network"),
                nat: true,
                dns: Some(vec![]),
            }
        );
    }
}
