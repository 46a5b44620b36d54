//! Port forwards: where the host listens for a guest.
//!
//! Each is a socket unit of systemd, which holds the port, and a service that starts with the first
//! connection. The address is the instance's name, so that the units' files need not change.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::network::Protocol;

/// From a port of the host to a port of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    #[serde(flatten)]
    pub listen: Listen,
    /// Port of the guest.
    pub port: u16,
    /// Whether it listens while the VM does not run, and starts it.
    #[serde(default)]
    pub on_demand: bool,
}

/// Where a forward listens on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Listen {
    pub protocol: Protocol,
    #[serde(rename = "listen")]
    pub address: SocketAddr,
}

/// Why a text is no forward.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidForward {
    #[error("{0:?} is not a forward: use [ADDRESS:]PORT:GUEST-PORT[/tcp|/udp][,on-demand]")]
    Form(String),
    #[error("{0:?} is not a protocol: use tcp or udp")]
    Protocol(String),
    #[error("{0:?} is not where a forward can listen: use ADDRESS:PORT with a port that is not 0")]
    Listen(String),
}

const UNIT_PREFIX: &str = "banger-forward-";

impl Listen {
    /// # Errors
    /// If it is none, or the port is 0.
    pub fn new(protocol: &str, address: &str) -> Result<Self, InvalidForward> {
        let protocol = Protocol::parse(protocol).ok_or_else(|| InvalidForward::Protocol(text(protocol)))?;
        // A zone would only hold for some interfaces, of which there may be none at boot.
        let usable = |listen: &SocketAddr| {
            listen.port() != 0 && !matches!(listen, SocketAddr::V6(listen) if listen.scope_id() != 0)
        };
        match address.parse().ok().filter(usable) {
            Some(address) => Ok(Self { protocol, address }),
            None => Err(InvalidForward::Listen(text(address))),
        }
    }

    #[must_use]
    pub fn socket_unit(&self) -> String {
        self.unit("socket")
    }

    #[must_use]
    pub fn service_unit(&self) -> String {
        self.unit("service")
    }

    fn unit(&self, kind: &str) -> String {
        // The only characters of addresses that systemd.unit(5) wants escaped.
        let instance = self.address.to_string().replace('[', "\\x5b").replace(']', "\\x5d");
        format!("{UNIT_PREFIX}{}@{instance}.{kind}", self.protocol.as_str())
    }

    /// The pattern of the sockets of all forwards.
    #[must_use]
    pub fn socket_pattern() -> &'static str {
        "banger-forward-*@*.socket"
    }

    /// Where the socket of this name listens.
    #[must_use]
    pub fn from_socket_unit(unit: &str) -> Option<Self> {
        let (protocol, instance) =
            unit.strip_prefix(UNIT_PREFIX)?.strip_suffix(".socket")?.split_once('@')?;
        Self::new(protocol, &instance.replace("\\x5b", "[").replace("\\x5d", "]")).ok()
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.protocol.as_str())
    }
}

/// As [`FromStr`] takes it, with everything said.
impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Listen { protocol, address } = self.listen;
        write!(f, "{address}:{}/{}", self.port, protocol.as_str())?;
        if self.on_demand { f.write_str(",on-demand") } else { Ok(()) }
    }
}

/// `[ADDRESS:]PORT:GUEST-PORT[/tcp|/udp][,on-demand]`; without an address it is for the host alone.
impl FromStr for Forward {
    type Err = InvalidForward;

    fn from_str(whole: &str) -> Result<Self, InvalidForward> {
        let form = || InvalidForward::Form(text(whole));
        let (rest, on_demand) = match whole.strip_suffix(",on-demand") {
            Some(rest) => (rest, true),
            None => (whole, false),
        };
        let (rest, protocol) = rest.split_once('/').unwrap_or((rest, "tcp"));
        let (listen, port) = rest.rsplit_once(':').ok_or_else(form)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(form)?;
        let listen = match listen.parse::<u16>() {
            Ok(own) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), own).to_string(),
            Err(_) => listen.to_owned(),
        };
        Ok(Self { listen: Listen::new(protocol, &listen)?, port, on_demand })
    }
}

/// What is shown of a text that somebody sent.
fn text(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn forward(text: &str) -> Result<String, String> {
        text.parse::<Forward>().map(|forward| forward.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_left_out_is_the_host_alone_and_tcp() {
        assert_eq!(forward("8080:80").as_deref(), Ok("127.0.0.1:8080:80/tcp"));
        assert_eq!(forward("53:5353/udp").as_deref(), Ok("127.0.0.1:53:5353/udp"));
        assert_eq!(forward("0.0.0.0:80:80,on-demand").as_deref(), Ok("0.0.0.0:80:80/tcp,on-demand"));
        assert_eq!(forward("[::1]:80:80/tcp").as_deref(), Ok("[::1]:80:80/tcp"));
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "",
            "80",
            "80:",
            ":80",
            "0:80",
            "80:0",
            "80:80/sctp",
            "a:80:80",
            "1.2.3.4:80",
            "80:80,",
            "::1:1:1",
            "70000:80",
            "80:70000",
            "[fe80::1%2]:80:80",
            "80:80/tcp,on-demand,on-demand",
        ] {
            assert!(forward(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn units_and_back() {
        let listen = Listen::new("tcp", "127.0.0.1:8080").expect("valid");
        assert_eq!(listen.socket_unit(), "banger-forward-tcp@127.0.0.1:8080.socket");
        assert_eq!(listen.service_unit(), "banger-forward-tcp@127.0.0.1:8080.service");
        let listen = Listen::new("udp", "[fd00::1]:53").expect("valid");
        assert_eq!(listen.socket_unit(), "banger-forward-udp@\\x5bfd00::1\\x5d:53.socket");
        assert_eq!(Listen::from_socket_unit(&listen.socket_unit()), Some(listen));
        assert_eq!(Listen::from_socket_unit("banger-forward-tcp@x.socket"), None);
    }

    proptest! {
        #[test]
        fn texts_of_strangers_do_no_harm(text: String) {
            if let Ok(forward) = text.parse::<Forward>() {
                prop_assert_eq!(forward.to_string().parse(), Ok(forward));
            }
        }
    }
}
