//! The files of `/etc` that belong to a machine rather than to its image.
//!
//! `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf` are written at every boot, into the VM's
//! own layer, unless the guest has changed them: a file in that layer which is not what we wrote
//! the last time is the guest's and stays. The copies to compare with lie on the VM's disk beside
//! the layer. The image itself is never touched.
//!
//! A `/etc/resolv.conf` that is a symbolic link belongs to a resolver, so it stays if an init runs
//! that may start the resolver; systemd's is told of our servers in `/run`. Without an init
//! nothing ever fills the link's target, and a file takes the link's place.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use banger_core::guest::{GuestConfig, Network};
use nix::libc;

use crate::sys;

const LIMIT: u64 = 1 << 20;

pub fn manage(config: &GuestConfig, disk: &File, foreign_init: bool) -> anyhow::Result<()> {
    // The disk is out of reach of any path, but not of its descriptor.
    let disk = PathBuf::from(format!("/proc/self/fd/{}", disk.as_raw_fd()));
    let _ = fs::create_dir(disk.join("banger"));
    let _ = fs::create_dir("/etc");
    let mut files = vec![("hostname", format!("{}\n", config.hostname)), ("hosts", hosts(config))];
    if let Some(network) = &config.network {
        let linked = fs::symlink_metadata("/etc/resolv.conf").is_ok_and(|file| file.is_symlink());
        if linked && foreign_init {
            tell_resolved(network)?;
        } else {
            files.push(("resolv.conf", resolv_conf(network)));
        }
    }
    for (name, content) in files {
        if let Err(error) = manage_file(&disk, name, &content) {
            sys::log!(sys::WARNING, "cannot write /etc/{name}: {error}");
        }
    }
    Ok(())
}

fn manage_file(disk: &Path, name: &str, content: &str) -> io::Result<()> {
    let copy = disk.join("banger").join(name);
    let of_guest = disk.join("upper/etc").join(name);
    let ours = sys::read_bounded(&copy, LIMIT).unwrap_or_default();
    let current = sys::read_bounded(&of_guest, LIMIT);
    if current.as_deref().is_ok_and(|current| current == content.as_bytes()) && ours == content.as_bytes() {
        return Ok(());
    }
    // A file that is right already but has another copy: we were cut off between the two.
    let there = fs::symlink_metadata(&of_guest).is_ok();
    if there && !current.is_ok_and(|current| current == ours || current == content.as_bytes()) {
        return Ok(());
    }
    let path = Path::new("/etc").join(name);
    replace(&path, content)?;
    replace(&copy, content)
}

/// Puts a new file in the place of whatever is there, link or special file.
fn replace(path: &Path, content: &str) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = path.with_file_name(format!(".{name}.banger"));
    let _ = fs::remove_file(&fresh);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(&fresh)?;
    file.write_all(content.as_bytes())?;
    fs::rename(&fresh, path)
}

fn tell_resolved(network: &Network) -> io::Result<()> {
    let directory = "/run/systemd/resolved.conf.d";
    fs::create_dir_all(directory)?;
    let mut content = String::from("[Resolve]\nDNS=");
    for (index, server) in network.dns.iter().enumerate() {
        let _ = write!(content, "{}{server}", if index == 0 { "" } else { " " });
    }
    content.push('\n');
    if !network.domain.is_empty() {
        let _ = writeln!(content, "Domains={}", network.domain);
    }
    fs::write(format!("{directory}/50-banger.conf"), content)
}

fn resolv_conf(network: &Network) -> String {
    let mut content = String::new();
    for server in &network.dns {
        let _ = writeln!(content, "nameserver {server}");
    }
    if !network.domain.is_empty() {
        let _ = writeln!(content, "search {}", network.domain);
    }
    content
}

fn hosts(config: &GuestConfig) -> String {
    let name = &config.hostname;
    let mut content = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    let _ = match &config.network {
        Some(network) if network.domain.is_empty() => writeln!(content, "{} {name}", network.address),
        Some(network) => writeln!(content, "{} {name}.{} {name}", network.address, network.domain),
        None => writeln!(content, "127.0.1.1 {name}"),
    };
    content
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_core::guest::{Init, PROTOCOL, PowerOff, ProcessDefaults, Rootfs};
    use std::net::Ipv4Addr;

    fn config(domain: &str) -> GuestConfig {
        GuestConfig {
            protocol: PROTOCOL,
            hostname: "web".into(),
            realtime_usec: 0,
            seed: String::new(),
            rootfs: Rootfs { image: String::new(), fstype: String::new(), overlay: String::new() },
            network: Some(Network {
                address: Ipv4Addr::new(10, 0, 0, 2),
                prefix: 24,
                gateway: Ipv4Addr::new(10, 0, 0, 1),
                dns: vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 3)],
                domain: domain.into(),
            }),
            init: Init::Auto,
            power_off: PowerOff::Acpi,
            process: ProcessDefaults::default(),
        }
    }

    #[test]
    fn contents() {
        let with = config("banger.internal");
        assert!(hosts(&with).ends_with("10.0.0.2 web.banger.internal web\n"));
        assert!(hosts(&config("")).ends_with("10.0.0.2 web\n"));
        assert_eq!(
            resolv_conf(with.network.as_ref().unwrap()),
            "nameserver 10.0.0.1\nnameserver 10.0.0.3\nsearch banger.internal\n"
        );
    }
}
