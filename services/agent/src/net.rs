//! The guest's network: one address of each kind on one interface, by the classic ioctls of netdevice(7)
//! and ipv6(7).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::Context;
use banger_core::guest::{Network, Network6};
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::sys;

/// The interface that virtio-net makes.
const INTERFACE: &str = "eth0";

/// More addresses than anybody gives an interface.
const MAX_ADDRESSES: usize = 1024;

pub fn up_loopback() -> anyhow::Result<()> {
    let socket = inet()?;
    set_up(&socket, "lo").context("cannot set up lo")
}

pub fn set_up_network(network: &Network) -> anyhow::Result<()> {
    let socket = inet()?;
    let mut request = request(INTERFACE);
    request.ifr_ifru.ifru_addr = address(network.address);
    ioctl(&socket, libc::SIOCSIFADDR, &request)
        .with_context(|| format!("cannot give {INTERFACE} the address {}", network.address))?;
    request.ifr_ifru.ifru_addr = address(netmask(network.prefix));
    ioctl(&socket, libc::SIOCSIFNETMASK, &request)
        .with_context(|| format!("cannot give {INTERFACE} the prefix {}", network.prefix))?;
    if network.mtu > 0 {
        request.ifr_ifru.ifru_mtu = network.mtu.cast_signed();
        ioctl(&socket, libc::SIOCSIFMTU, &request)
            .with_context(|| format!("cannot give {INTERFACE} an MTU of {}", network.mtu))?;
    }
    set_up(&socket, INTERFACE).with_context(|| format!("cannot set up {INTERFACE}"))?;

    // SAFETY: all zeroes is a valid rtentry.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = address(network.gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    ioctl(&socket, libc::SIOCADDRT, &route)
        .with_context(|| format!("cannot route through {}", network.gateway))?;
    network.ipv6.as_ref().map_or(Ok(()), set_up_ipv6)
}

/// Does nothing in a kernel without IPv6, or where it is switched off.
fn set_up_ipv6(network: &Network6) -> anyhow::Result<()> {
    let conf = format!("/proc/sys/net/ipv6/conf/{INTERFACE}");
    if std::fs::read_to_string(format!("{conf}/disable_ipv6")).map_or(true, |off| off.trim() != "0") {
        return Ok(());
    }
    // Nobody else can have the address. Until it is asked whether somebody has, it could not be used, and that
    // begins after up to a second, even where it is asked no times (`dad_transmits`).
    let _ = std::fs::write(format!("{conf}/accept_dad"), "0");
    let socket = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let index = nix::net::if_::if_nametoindex(INTERFACE)?;
    let address = Address6 { address: address6(network.address), prefix: network.prefix.into(), index };
    match ioctl(&socket, libc::SIOCSIFADDR, &address) {
        // It has it already, after a snapshot of itself.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
        result => {
            result.with_context(|| format!("cannot give {INTERFACE} the address {}", network.address))?;
        }
    }
    let anywhere = address6(Ipv6Addr::UNSPECIFIED);
    let route = Route6 {
        destination: anywhere,
        source: anywhere,
        gateway: address6(network.gateway),
        kind: 0,
        destination_length: 0,
        source_length: 0,
        // What Linux gives routes of IPv6 by itself.
        metric: 1024,
        info: 0,
        flags: (libc::RTF_UP | libc::RTF_GATEWAY).into(),
        index,
    };
    ioctl(&socket, libc::SIOCADDRT, &route)
        .with_context(|| format!("cannot route through {}", network.gateway))
}

/// `struct in6_ifreq` of Linux's <linux/ipv6.h>, which libc does not have.
#[repr(C)]
struct Address6 {
    address: libc::in6_addr,
    prefix: u32,
    index: u32,
}

/// `struct in6_rtmsg` of Linux's <linux/ipv6_route.h>, whose fields libc hides.
#[repr(C)]
struct Route6 {
    destination: libc::in6_addr,
    source: libc::in6_addr,
    gateway: libc::in6_addr,
    kind: u32,
    destination_length: u16,
    source_length: u16,
    metric: u32,
    info: libc::c_ulong,
    flags: u32,
    index: u32,
}

fn address6(address: Ipv6Addr) -> libc::in6_addr {
    libc::in6_addr { s6_addr: address.octets() }
}

/// Takes the interface down, which takes its routes, and its addresses. Does nothing where there
/// is none.
pub fn take_down() -> anyhow::Result<()> {
    let socket = inet()?;
    let mut request = request(INTERFACE);
    match ioctl(&socket, libc::SIOCGIFFLAGS, &request) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
        result => result?,
    }
    set_flags(&socket, INTERFACE, |flags| flags & !libc::IFF_UP)
        .with_context(|| format!("cannot take down {INTERFACE}"))?;
    // One after the other, as long as there are; to set none is to remove one.
    for _ in 0..MAX_ADDRESSES {
        if ioctl(&socket, libc::SIOCGIFADDR, &request).is_err() {
            break;
        }
        request.ifr_ifru.ifru_addr = address(Ipv4Addr::UNSPECIFIED);
        ioctl(&socket, libc::SIOCSIFADDR, &request)
            .with_context(|| format!("cannot take an address from {INTERFACE}"))?;
    }
    Ok(())
}

/// Gives the interface, which is down, another hardware address; empty leaves it its own.
pub fn set_mac(mac: &str) -> anyhow::Result<()> {
    if mac.is_empty() {
        return Ok(());
    }
    let mut request = request(INTERFACE);
    request.ifr_ifru.ifru_hwaddr =
        hardware_address(mac).with_context(|| format!("{mac:?} is no MAC address"))?;
    ioctl(&inet()?, libc::SIOCSIFHWADDR, &request)
        .with_context(|| format!("cannot give {INTERFACE} the address {mac}"))
}

fn hardware_address(mac: &str) -> Option<libc::sockaddr> {
    let octets: Vec<u8> = mac
        .split(':')
        .map(|octet| sys::from_hex(octet).and_then(|octet| <[u8; 1]>::try_from(octet).ok()))
        .map(|octet| octet.map(|[octet]| octet))
        .collect::<Option<_>>()?;
    if octets.len() != 6 {
        return None;
    }
    // SAFETY: all zeroes is a valid sockaddr.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    address.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in address.sa_data.iter_mut().zip(octets) {
        *to = from as libc::c_char;
    }
    Some(address)
}

fn inet() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
}

fn set_up(socket: &OwnedFd, interface: &str) -> io::Result<()> {
    set_flags(socket, interface, |flags| flags | libc::IFF_UP)
}

fn set_flags(
    socket: &OwnedFd,
    interface: &str,
    change: impl Fn(libc::c_int) -> libc::c_int,
) -> io::Result<()> {
    let mut request = request(interface);
    ioctl(socket, libc::SIOCGIFFLAGS, &request)?;
    // SAFETY: the kernel filled in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = change(flags.into()) as libc::c_short;
    ioctl(socket, libc::SIOCSIFFLAGS, &request)
}

fn request(interface: &str) -> libc::ifreq {
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: all zeroes is a valid sockaddr.
    let mut socket_address: libc::sockaddr = unsafe { std::mem::zeroed() };
    socket_address.sa_family = libc::AF_INET as libc::sa_family_t;
    // struct sockaddr_in: two bytes of port, then the address.
    for (to, from) in socket_address.sa_data[2..].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    socket_address
}

fn netmask(prefix: u8) -> Ipv4Addr {
    let prefix = u32::from(prefix.min(32));
    Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - prefix).unwrap_or(0))
}

fn ioctl<T>(socket: &OwnedFd, number: libc::c_ulong, argument: &T) -> io::Result<()> {
    // SAFETY: each caller passes the structure that belongs to the number; requests that answer
    // write within it.
    match unsafe { libc::ioctl(socket.as_raw_fd(), number as _, std::ptr::from_ref(argument)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses() {
        let address = hardware_address("02:ba:0a:d1:00:ff").unwrap();
        assert_eq!(address.sa_family, 1);
        assert_eq!(address.sa_data.map(|byte| byte as u8)[..7], [2, 0xba, 10, 0xd1, 0, 255, 0]);
        for bad in
            ["", "02", "02:ba:0a:d1:00", "02:ba:0a:d1:00:ff:00", "2:ba:0a:d1:00:ff", "02-ba-0a-d1-00-ff"]
        {
            assert!(hardware_address(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn netmasks() {
        assert_eq!(netmask(0), Ipv4Addr::UNSPECIFIED);
        assert_eq!(netmask(24), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(netmask(32), Ipv4Addr::BROADCAST);
        assert_eq!(netmask(255), Ipv4Addr::BROADCAST);
    }
}
