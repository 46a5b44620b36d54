//! The system tests. They run inside the lab (`make check`), on real systemd, D-Bus, polkit,
//! nftables, a real registry and real VMs, through the CLI and `busctl`, as users would.

mod away;
mod builds;
mod cancel;
mod changes;
mod clients;
mod contract;
mod create;
mod dns;
mod doctor;
mod egress;
mod errors;
mod events;
mod faults;
mod files;
mod forwards;
mod guests;
mod health;
mod image_faults;
mod images;
mod imports;
mod isolation;
mod kernels;
mod leases;
mod lifecycle;
mod network;
mod promote;
mod registries;
mod rootfs;
mod services;
mod sessions;
mod snapshots;
mod ssh;
mod stats;
mod sync;
mod workspaces;
