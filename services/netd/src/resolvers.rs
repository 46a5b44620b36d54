//! Which name servers there are: those that a guest can reach, and those that we ask for guests.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// What resolved itself asks, instead of what it shows to the host's programs.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
/// Is there once resolved has run since boot.
const STUB: (&str, Ipv4Addr) = ("/run/systemd/resolve/stub-resolv.conf", Ipv4Addr::new(127, 0, 0, 53));

/// More than this, resolvers in guests ignore.
const MAX: usize = 3;

/// The host's upstream name servers as far as a guest can reach them, possibly none.
pub fn for_guests() -> Vec<Ipv4Addr> {
    [BEHIND_RESOLVED, RESOLV_CONF]
        .iter()
        .map(|path| reachable(&read(path)))
        .find(|servers| !servers.is_empty())
        .unwrap_or_default()
}

/// The host's resolver: resolved, which knows what goes to a VPN and what does not, then whatever other
/// programs of the host ask, then what resolved would ask, for it may have ended. One that does not run
/// refuses at once.
pub fn for_us(ourselves: Ipv4Addr) -> Vec<IpAddr> {
    let stub = Path::new(STUB.0).exists().then_some(IpAddr::V4(STUB.1));
    let mut servers: Vec<IpAddr> = Vec::new();
    for server in stub.into_iter().chain(read(RESOLV_CONF)).chain(read(BEHIND_RESOLVED)) {
        if server != ourselves && !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers.truncate(MAX);
    servers
}

fn read(path: &str) -> Vec<IpAddr> {
    parse(&std::fs::read_to_string(path).unwrap_or_default())
}

/// The servers in a resolv.conf(5). One with a scope (`fe80::1%eth0`) is passed over.
fn parse(text: &str) -> Vec<IpAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let Some(Ok(server)) = words.next().map(str::parse::<IpAddr>) else { continue };
        if !server.is_unspecified() && !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers
}

/// Those that are not the host itself by a loopback address.
fn reachable(servers: &[IpAddr]) -> Vec<Ipv4Addr> {
    let of_v4 = |server: &IpAddr| match server {
        IpAddr::V4(server) if !server.is_loopback() => Some(*server),
        _ => None,
    };
    servers.iter().filter_map(of_v4).take(MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_that_guests_can_reach() {
        let text = "# x\nsearch a.b\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\n\
                    nameserver 192.0.2.1\nnameserver\nnameserver 2001:db8::1\noptions edns0\n\
                    nameserver 0.0.0.0\nnameserver 192.0.2.2\n";
        assert_eq!(reachable(&parse(text)), [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)]);
        let ours = ["127.0.0.53", "192.0.2.1", "2001:db8::1", "192.0.2.2"];
        assert_eq!(parse(text), ours.map(|server| server.parse::<IpAddr>().expect("an address")));
        assert!(parse("").is_empty());
    }
}
