//! POSIX access lists as extended attributes.
//!
//! A file's owner may set them without any privilege, which is how a service opens one file to
//! the user of one VM. The format is that of the kernel's
//! `include/uapi/linux/posix_acl_xattr.h`: a version and entries of tag, permission and id, in
//! order of the tag, all little-endian; `acl(5)` explains what they mean.

/// The list that decides on access to the file itself.
pub const ACCESS: &str = "system.posix_acl_access";
/// The list that what is made in a directory inherits.
pub const DEFAULT: &str = "system.posix_acl_default";

/// Permission bits of an entry.
pub const READ_WRITE: u16 = 6;
pub const ALL: u16 = 7;

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// A list that gives `permission` to the owner and to `users`, and nothing to anybody else.
pub fn only(permission: u16, users: &[u32]) -> Vec<u8> {
    const NONE: u16 = 0;
    const NO_ID: u32 = u32::MAX;
    let mut users = users.to_vec();
    users.sort_unstable();
    users.dedup();
    let mut entries = vec![(USER_OBJ, permission, NO_ID)];
    entries.extend(users.iter().map(|user| (USER, permission, *user)));
    entries.extend([(GROUP_OBJ, NONE, NO_ID), (MASK, permission, NO_ID), (OTHER, NONE, NO_ID)]);
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
        let bytes = only(ALL, &[1001, 1000, 1001]);
        assert_eq!(bytes.len(), 4 + 6 * 8);
        assert_eq!(bytes[..4], [2, 0, 0, 0]);
        assert_eq!(bytes[4..12], [1, 0, 7, 0, 255, 255, 255, 255]);
        assert_eq!(bytes[12..20], [2, 0, 7, 0, 0xe8, 0x03, 0, 0]);
        assert_eq!(bytes[20..28], [2, 0, 7, 0, 0xe9, 0x03, 0, 0]);
    }
}
