//! What touches the kernel. Nothing here decides anything.

pub mod netlink;
pub mod nft;
pub mod sysctl;
pub mod tap;
