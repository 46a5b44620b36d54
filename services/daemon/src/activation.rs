//! What systemd passes when it starts a service: listening sockets, and what an instance before
//! this one left in the file descriptor store.

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use libsystemd::activation::{IsType, receive_descriptors_with_names};

use crate::record;

/// The name of our sockets among the file descriptors (`FileDescriptorName=`).
const SOCKET_NAME: &str = "dbus";

/// File descriptors by what they are for.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    /// Listening sockets for D-Bus.
    pub sockets: Vec<UnixListener>,
    /// Records of jobs, by their name in the store.
    pub records: Vec<(String, File)>,
    /// Sockets of the service's own, opened by systemd or kept for us, by their names.
    pub others: Vec<(String, OwnedFd)>,
}

/// Takes what systemd passed. This edits the environment, so call it before any thread exists.
pub(crate) fn receive() -> Passed {
    let mut passed = Passed::default();
    for (descriptor, name) in receive_descriptors_with_names(true).unwrap_or_default() {
        if name == SOCKET_NAME && descriptor.is_unix() {
            // SAFETY: systemd passed this descriptor to us, and libsystemd hands each out once.
            passed.sockets.push(unsafe { UnixListener::from_raw_fd(descriptor.into_raw_fd()) });
        } else if name.starts_with(record::PREFIX) && descriptor.is_special() {
            // SAFETY: as above; a memfd is a regular file, which libsystemd counts as special.
            passed.records.push((name, unsafe { File::from_raw_fd(descriptor.into_raw_fd()) }));
        } else if descriptor.is_inet() || descriptor.is_unix() {
            // SAFETY: as above.
            passed.others.push((name, unsafe { OwnedFd::from_raw_fd(descriptor.into_raw_fd()) }));
        }
    }
    passed
}
