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
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use banger_core::guest::{GuestConfig, Network};
use nix::libc;

use crate::archive::Instead;
use crate::disks::Disks;
use crate::sys;
use crate::tree::{Attributes, Directory, PUBLIC};

const LIMIT: u64 = 1 << 20;

/// The files that banger may have written, and what is to stand for them in another machine's image:
/// what nobody has changed since is as it was, and nobody has this one's id.
pub fn traces(disks: &Disks) -> Vec<(PathBuf, Instead)> {
    let disk = disks.overlay();
    let is_ours = |name: &&str| {
        let of_guest = sys::read_bounded(disk.join("upper/etc").join(name), LIMIT);
        let ours = sys::read_bounded(disk.join("banger").join(name), LIMIT);
        of_guest.is_ok_and(|of_guest| ours.is_ok_and(|ours| ours == of_guest))
    };
    let files = ["hostname", "hosts", "resolv.conf"].into_iter().filter(is_ours);
    let files = files.map(|name| (Path::new("/etc").join(name), Instead::Image));
    let ids = ["/etc/machine-id", "/var/lib/dbus/machine-id"].map(|id| (PathBuf::from(id), Instead::Empty));
    files.chain(ids).collect()
}

/// Returns what could not be done.
pub fn manage(config: &GuestConfig, disks: &Disks, foreign_init: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut note = |name: &str, result: io::Result<()>| {
        if let Err(error) = result {
            warnings.push(format!("cannot write {name}: {error}"));
        }
    };
    let disk = disks.overlay();
    let _ = fs::create_dir(disk.join("banger"));
    let _ = fs::create_dir("/etc");
    let mut files = vec![("hostname", format!("{}\n", config.hostname)), ("hosts", hosts(config))];
    if let Some(network) = &config.network {
        let linked = fs::symlink_metadata("/etc/resolv.conf").is_ok_and(|file| file.is_symlink());
        if linked && foreign_init {
            note("the configuration of systemd-resolved", tell_resolved(network));
        } else {
            files.push(("resolv.conf", resolv_conf(network)));
        }
    }
    for (name, content) in files {
        note(&format!("/etc/{name}"), manage_file(&disk, name, &content));
    }
    if !config.machine_id.is_empty() {
        note("/etc/machine-id", write_machine_id(&config.machine_id));
    }
    warnings
}

/// Unlike the others it is always the host's word: the id that came with an image, or with a
/// snapshot, is another machine's.
fn write_machine_id(id: &str) -> io::Result<()> {
    if id.len() != 32 || !id.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the id is not 32 hexadecimal digits"));
    }
    let attributes = Attributes { mode: 0o444, ..PUBLIC };
    let content = format!("{id}\n");
    Directory::make("/etc")?.replace("machine-id", content.as_bytes(), attributes)?;
    // D-Bus may have a copy of its own, where it is not a link.
    let Ok(dbus) = Directory::open("/var/lib/dbus") else { return Ok(()) };
    match dbus.read("machine-id", LIMIT) {
        Ok(Some(_)) => dbus.replace("machine-id", content.as_bytes(), attributes),
        _ => Ok(()),
    }
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
    use std::net::Ipv4Addr;

    fn config(domain: &str) -> GuestConfig {
        GuestConfig {
            hostname: "web".into(),
            network: Some(Network {
                address: Ipv4Addr::new(10, 0, 0, 2),
                prefix: 24,
                gateway: Ipv4Addr::new(10, 0, 0, 1),
                dns: vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 3)],
                domain: domain.into(),
                mac: String::new(),
                mtu: 0,
                ipv6: None,
            }),
            ..GuestConfig::default()
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
