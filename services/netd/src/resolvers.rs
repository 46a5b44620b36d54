//! Name servers for the guests: the host's own upstream ones, as far as a guest can reach them.

use std::net::Ipv4Addr;

/// What resolved asks itself comes before what it shows to the host's programs (127.0.0.53).
const FILES: [&str; 2] = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"];

/// More than this, resolvers in guests ignore.
const MAX: usize = 3;

/// The host's upstream name servers, possibly none.
pub fn of_host() -> Vec<Ipv4Addr> {
    FILES
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .map(|text| parse(&text))
        .find(|servers| !servers.is_empty())
        .unwrap_or_default()
}

/// The servers in a resolv.conf(5) that are not the host itself by a loopback address.
fn parse(text: &str) -> Vec<Ipv4Addr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let Some(Ok(server)) = words.next().map(str::parse::<Ipv4Addr>) else { continue };
        if !server.is_loopback() && !server.is_unspecified() && !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers.truncate(MAX);
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_that_guests_can_reach() {
        let text = "# x\nsearch a.b\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\n\
                    nameserver 192.0.2.1\nnameserver\noptions edns0\nnameserver 192.0.2.2\n";
        assert_eq!(parse(text), [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)]);
        assert!(parse("").is_empty());
    }
}
