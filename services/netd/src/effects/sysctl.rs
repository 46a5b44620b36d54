//! `/proc/sys/net`, which CAP_NET_ADMIN may write.

use std::path::{Path, PathBuf};

use banger_api::{Error, Result};

/// Whether packets that come in by this interface are routed on.
pub fn forwarding(interface: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/ipv4/conf/{interface}/forwarding"))
}

/// Whether this interface, or the host (`all`), is a router of IPv6.
pub fn forwarding6(interface: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/ipv6/conf/{interface}/forwarding"))
}

/// Whether IPv6 that comes in by this interface is routed on although the host is no router; since
/// Linux 6.17.
pub fn force_forwarding6(interface: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/ipv6/conf/{interface}/force_forwarding"))
}

/// Whether the kernel listens to routers here: 0 never, 1 unless it is a router itself, 2 always.
pub fn accept_ra(interface: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/ipv6/conf/{interface}/accept_ra"))
}

pub fn disable_ipv6(interface: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"))
}

/// The value, or `None` if there is no such sysctl (IPv6 may be off, interfaces come and go).
pub fn read(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::from(error).context(path.display())),
    }
}

/// Sets it, if there is such a sysctl and it has another value.
pub fn write(path: &Path, value: &str) -> Result<()> {
    match read(path)? {
        Some(current) if current != value => std::fs::write(path, value)
            .map_err(|error| Error::internal(format!("cannot set {} to {value}: {error}", path.display()))),
        _ => Ok(()),
    }
}
