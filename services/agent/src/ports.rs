//! Who listens on which port: `/proc/net` names sockets by inode, `/proc/PID/fd` says whose they
//! are.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use banger_api::agent::Port;

use crate::sys;

/// Listeners reported, and the biggest table that is read for them.
const MAX_PORTS: usize = 1024;
const MAX_TABLE: u64 = 16 << 20;

/// One open socket of a table that waits for somebody to begin.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Listening {
    protocol: &'static str,
    address: SocketAddr,
    inode: u64,
}

pub fn listening() -> Vec<Port> {
    let mut found = Vec::new();
    for protocol in ["tcp", "tcp6", "udp", "udp6"] {
        let table = sys::read_bounded(format!("/proc/net/{protocol}"), MAX_TABLE).unwrap_or_default();
        found.extend(parse(protocol, &String::from_utf8_lossy(&table)));
    }
    found.sort_by_key(|socket| (socket.protocol, socket.address.port(), socket.address.ip()));
    found.truncate(MAX_PORTS);
    let mut owners = owners(&found);
    let describe = |socket: Listening| {
        let (pid, name) = owners.remove(&socket.inode).unwrap_or_default();
        (socket.protocol.to_owned(), socket.address.ip().to_string(), socket.address.port(), name, pid)
    };
    found.into_iter().map(describe).collect()
}

/// The sockets of a table of proc(5): of TCP those that listen; of UDP, which does not, those that
/// are bound and not connected.
fn parse(protocol: &'static str, table: &str) -> Vec<Listening> {
    const TCP_LISTEN: &str = "0A";
    const UDP_UNCONNECTED: &str = "07";
    let wanted = if protocol.starts_with("tcp") { TCP_LISTEN } else { UDP_UNCONNECTED };
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, state, _, _, _, _, _, inode, ..] = fields.as_slice() else { return None };
        let (address, inode) = (address(local)?, inode.parse().ok()?);
        (*state == wanted).then_some(Listening { protocol, address, inode })
    };
    table.lines().filter_map(line).collect()
}

/// `0100007F:1F90`: words of the address as the machine holds them, the port as one reads it.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let bytes: Vec<u8> = sys::from_hex(ip)?
        .chunks(4)
        .filter_map(|word| Some(u32::from_be_bytes(word.try_into().ok()?).to_ne_bytes()))
        .flatten()
        .collect();
    let ip = match bytes.len() {
        4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// The process that has each socket open; of several the eldest, which is who opened it.
fn owners(sockets: &[Listening]) -> HashMap<u64, (u32, String)> {
    let mut owners = HashMap::new();
    let mut pids: Vec<u32> = sys::processes().collect();
    pids.sort_unstable();
    for pid in pids {
        // The process may have ended since.
        for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let Some(inode) = socket_inode(&target.to_string_lossy()) else { continue };
            if sockets.iter().any(|socket| socket.inode == inode) {
                owners.entry(inode).or_insert_with(|| (pid, name(pid)));
            }
        }
    }
    owners
}

fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn name(pid: u32) -> String {
    let name = sys::read_bounded(format!("/proc/{pid}/comm"), 256).unwrap_or_default();
    String::from_utf8_lossy(&name).chars().filter(|letter| !letter.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1234 1 0 100 0 0 10 0\n   \
            1: 0202000A:0016 0102000A:C000 01 00000000:00000000 00:00000000 00000000     0        0 1235 1 0 20 4 30 10 -1\n";
        let found = parse("tcp", table);
        assert_eq!(
            found,
            [Listening { protocol: "tcp", address: "127.0.0.1:8080".parse().unwrap(), inode: 1234 }]
        );
    }

    #[test]
    fn udp6() {
        let table = "  sl  local_address                         remote_address                        st tx_queue\n \
            70: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 99 2 0 0\n \
            71: 00000000000000000000000000000000:0035 00000000000000000000000001000000:0001 01 00000000:00000000 00:00000000 00000000     0        0 98 2 0 0\n";
        let found = parse("udp6", table);
        assert_eq!(found, [Listening { protocol: "udp6", address: "[::1]:53".parse().unwrap(), inode: 99 }]);
    }

    #[test]
    fn nonsense_is_passed_over() {
        for text in ["", ":", "0100007F", "0100007F:", "0100007F:12345", "01:0001", "0100007g:0001", "ää:1"]
        {
            assert_eq!(address(text), None, "{text}");
        }
        assert_eq!(socket_inode("socket:[12]"), Some(12));
        assert_eq!(socket_inode("pipe:[12]"), None);
        assert_eq!(parse("tcp", "1 2 3\n"), []);
    }
}
