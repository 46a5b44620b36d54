//! What touches the kernel and systemd-resolved. Nothing here decides anything.

pub mod netlink;
pub mod nft;
pub mod resolved;
pub mod sysctl;
pub mod tap;
