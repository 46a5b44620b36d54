//! The guest's network: one address on one interface, by the classic ioctls of netdevice(7).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::Context;
use banger_core::guest::Network;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// The interface that virtio-net makes.
const INTERFACE: &str = "eth0";

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
    set_up(&socket, INTERFACE).with_context(|| format!("cannot set up {INTERFACE}"))?;

    // SAFETY: all zeroes is a valid rtentry.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = address(network.gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    ioctl(&socket, libc::SIOCADDRT, &route)
        .with_context(|| format!("cannot route through {}", network.gateway))
}

fn inet() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
}

fn set_up(socket: &OwnedFd, interface: &str) -> io::Result<()> {
    let mut request = request(interface);
    ioctl(socket, libc::SIOCGIFFLAGS, &request)?;
    // SAFETY: the kernel filled in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
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
    fn netmasks() {
        assert_eq!(netmask(0), Ipv4Addr::UNSPECIFIED);
        assert_eq!(netmask(24), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(netmask(32), Ipv4Addr::BROADCAST);
        assert_eq!(netmask(255), Ipv4Addr::BROADCAST);
    }
}
