//! Lets the services of banger reach the sockets of a VM, whose directory belongs to the VM's own
//! user and is closed to everybody else.
//!
//! The directory gets a POSIX access list that lets some users enter it, and a default list that
//! every socket made in it inherits. The format of the attributes is `acl(5)` as the kernel has it
//! in `include/uapi/linux/posix_acl_xattr.h`: a version and entries of tag, permission and id, in
//! order of the tag, all little-endian.

use std::io;
use std::path::Path;

use rustix::fs::{XattrFlags, setxattr};

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;

/// Lets `users` enter `directory` and use everything made in it from now on.
///
/// # Errors
/// `NotSupported` if the filesystem has no access lists.
pub fn share(directory: &Path, users: &[u32]) -> io::Result<()> {
    setxattr(directory, "system.posix_acl_access", &encode(users), XattrFlags::empty())?;
    setxattr(directory, "system.posix_acl_default", &encode(users), XattrFlags::empty())?;
    Ok(())
}

/// Everything for the owner and `users`, nothing for others.
fn encode(users: &[u32]) -> Vec<u8> {
    const ALL: u16 = 7;
    const NONE: u16 = 0;
    let mut users = users.to_vec();
    users.sort_unstable();
    users.dedup();
    let mut entries = vec![(USER_OBJ, ALL, NO_ID)];
    entries.extend(users.iter().map(|user| (USER, ALL, *user)));
    entries.extend([(GROUP_OBJ, NONE, NO_ID), (MASK, ALL, NO_ID), (OTHER, NONE, NO_ID)]);
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (tag, permission, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permission.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_as_the_kernel_does() {
        let bytes = encode(&[1001, 1000, 1001]);
        assert_eq!(bytes.len(), 4 + 6 * 8);
        assert_eq!(bytes[..4], [2, 0, 0, 0]);
        assert_eq!(bytes[12..20], [2, 0, 7, 0, 0xe8, 0x03, 0, 0]);
        assert_eq!(bytes[20..28], [2, 0, 7, 0, 0xe9, 0x03, 0, 0]);
    }

    #[test]
    fn the_kernel_takes_it() {
        let directory = tempfile::tempdir().expect("tempdir");
        match share(directory.path(), &[1000]) {
            Ok(()) => {}
            // A filesystem without access lists says so; anything else is our mistake.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}"),
        }
    }
}
