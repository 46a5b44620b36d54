//! The checks: what is looked at, why, and who judges it.

use super::check::Check;
use super::checks::{journal, leftovers, machine, network, services, system};
use super::facts::{Seen, Unseen};

/// A fact, or the reason why it is not known, which is then the finding.
fn known<T>(seen: &Seen<T>) -> Result<&T, Unseen> {
    seen.as_ref().map_err(Clone::clone)
}

/// All of them, in the order in which they are told.
pub const CHECKS: &[Check] = &[
    Check {
        group: "VMs",
        name: "cpu",
        why: "emulated guests are many times slower, and take seconds to boot instead of a fraction of one",
        judge: |facts| Ok(machine::cpu(&facts.machine)),
    },
    Check {
        group: "VMs",
        name: "kvm",
        why: "without it guests are emulated; one that cannot be opened keeps every VM from starting",
        judge: |facts| Ok(machine::kvm(&facts.machine)),
    },
    Check {
        group: "VMs",
        name: "vmm",
        why: "a VM is a process of Firecracker or QEMU",
        judge: |facts| Ok(machine::vmm(known(&facts.host)?)),
    },
    Check {
        group: "VMs",
        name: "kernel",
        why: "guests boot a kernel of banger's own, not of their image",
        judge: |facts| Ok(machine::kernel(known(&facts.kernels)?)),
    },
    Check {
        group: "VMs",
        name: "tun",
        why: "a guest's network is a TAP device, which its VMM opens there",
        judge: |facts| Ok(machine::tun(&facts.machine)),
    },
    Check {
        group: "system",
        name: "linux",
        why: "files are copied by calls that older kernels do not have",
        judge: |facts| Ok(system::linux(&facts.system)),
    },
    Check {
        group: "system",
        name: "systemd",
        why: "every VM is a unit, and the sandbox of each is systemd's",
        judge: |facts| Ok(system::systemd(&known(&facts.systemd)?.version)),
    },
    Check {
        group: "system",
        name: "cgroups",
        why: "by them systemd limits what a VM takes of the host",
        judge: |facts| Ok(system::cgroups(&facts.system)),
    },
    Check {
        group: "system",
        name: "clock",
        why: "guests get their time from it, and certificates of registries are judged by it",
        judge: |facts| Ok(system::clock(*known(&facts.clock)?)),
    },
    Check {
        group: "system",
        name: "accounts",
        why: "the services run as users of their own, and a group lets people in",
        judge: |facts| Ok(system::accounts(&facts.system.accounts)),
    },
    Check {
        group: "system",
        name: "directories",
        why: "sockets and state are there; with other owners services do not start, with other modes others may look in",
        judge: |facts| Ok(system::directories(&facts.system.directories)),
    },
    Check {
        group: "system",
        name: "space",
        why: "a guest that cannot write its disk because the host's is full loses data",
        judge: |facts| Ok(system::space(known(&facts.storage)?)),
    },
    Check {
        group: "system",
        name: "filesystem",
        why: "VMs have users of their own, who are let into disks by access lists",
        judge: |facts| Ok(system::filesystem(known(&facts.storage)?)),
    },
    Check {
        group: "system",
        name: "access",
        why: "polkit decides who may do what; members of the group banger need no password",
        judge: |facts| Ok(system::access(known(&facts.you)?)),
    },
    Check {
        group: "services",
        name: "bus",
        why: "services are called, and started, by their names on the bus",
        judge: |facts| Ok(services::names(known(&facts.names)?)),
    },
    Check {
        group: "services",
        name: "units",
        why: "what is not enabled does not come with the host, and what does not listen is not started by a call",
        judge: |facts| Ok(services::units(known(&facts.systemd)?)),
    },
    Check {
        group: "services",
        name: "programs",
        why: "a unit whose program is gone cannot start",
        judge: |facts| Ok(services::programs(known(&facts.systemd)?)),
    },
    Check {
        group: "services",
        name: "reload",
        why: "a unit runs as systemd last read it, whatever its files say now",
        judge: |facts| Ok(services::reload(known(&facts.systemd)?)),
    },
    Check {
        group: "services",
        name: "failures",
        why: "what failed too often is not started again until somebody says so",
        judge: |facts| Ok(services::failed(known(&facts.systemd)?)),
    },
    Check {
        group: "services",
        name: "answers",
        why: "whatever banger does is asked of one of its services",
        judge: |facts| Ok(services::answers(&facts.versions)),
    },
    Check {
        group: "services",
        name: "versions",
        why: "services of another version may not know what they are asked",
        judge: services::versions,
    },
    Check {
        group: "network",
        name: "range",
        why: "packets to guests would go elsewhere, so no VM with a network starts",
        judge: |facts| network::range(known(&facts.network)?),
    },
    Check {
        group: "network",
        name: "firewall",
        why: "a packet has to pass the rules of all who have some; banger leaves those of others alone",
        judge: |facts| network::firewall(known(&facts.network)?),
    },
    Check {
        group: "network",
        name: "rules",
        why: "without banger's own rules guests do not get beyond the host",
        judge: |facts| network::rules(known(&facts.network)?),
    },
    Check {
        group: "network",
        name: "forwarding",
        why: "the host is the guests' router",
        judge: |facts| Ok(network::forwarding(known(&facts.network)?)),
    },
    Check {
        group: "network",
        name: "names",
        why: "VMs are found as NAME.banger.internal, or what the domain is",
        judge: |facts| Ok(network::names(known(&facts.network)?)),
    },
    Check {
        group: "network",
        name: "managers",
        why: "one that takes the bridge for its own takes its addresses away",
        judge: |facts| Ok(network::managers(known(&facts.network)?)),
    },
    Check {
        group: "leftovers",
        name: "orphans",
        why: "what a crash left takes disk space, addresses and ports",
        judge: |facts| Ok(leftovers::orphans(known(&facts.orphans)?)),
    },
    Check {
        group: "leftovers",
        name: "taps",
        why: "one that is no lease's takes a name that a VM may need",
        judge: |facts| network::taps(known(&facts.network)?),
    },
    Check {
        group: "leftovers",
        name: "enabled",
        why: "each boot tries to start what is enabled, and fails",
        judge: |facts| Ok(leftovers::enabled(known(&facts.leavings)?)),
    },
    Check {
        group: "leftovers",
        name: "runtime",
        why: "systemd removes it with the VM; what is left has sockets that nobody answers at",
        judge: |facts| Ok(leftovers::runtime(known(&facts.leavings)?, &known(&facts.systemd)?.up)),
    },
    Check {
        group: "journal",
        name: "denials",
        why: "what a sandbox or a security module forbids fails in ways that look like something else",
        judge: |facts| Ok(journal::denials(known(&facts.journal)?)),
    },
    Check {
        group: "journal",
        name: "memory",
        why: "a VM that is killed loses what it had not written",
        judge: |facts| Ok(journal::memory(known(&facts.journal)?)),
    },
];
