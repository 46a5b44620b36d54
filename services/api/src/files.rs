//! What the agent and the session service say of files in a guest.

use zbus::{DeserializeDict, SerializeDict, Type};

/// What something can be; treat an unknown one as [`OTHER`].
pub const FILE: &str = "file";
pub const DIRECTORY: &str = "directory";
pub const SYMLINK: &str = "symlink";
/// A device, FIFO or socket.
pub const OTHER: &str = "other";

/// What is at a path.
#[derive(Debug, Clone, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "dict")]
pub struct Stat {
    /// `file`, `directory`, `symlink` or `other`.
    pub kind: String,
    /// In bytes.
    pub size: u64,
    /// Permission bits, with set-user-ID, set-group-ID and the sticky bit.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// When the content was last changed: microseconds since 1970.
    pub mtime_usec: i64,
}

/// What was copied: entries of the archive, bytes of files without holes, remarks on what was left out.
pub type Copied = (u64, u64, Vec<String>);
