//! What vmd does outside itself: systemd's units, disks, the other services.

pub mod disks;
pub mod marks;
pub mod peers;
pub mod runtime;
pub mod seeds;
pub mod snapshots;
pub mod sync;
pub mod units;
