//! What is known of a host before anything is judged: plain values, gathered by [`super::gather`].

use std::collections::BTreeMap;

use banger_api::image::KernelRow;
use banger_api::network::{Problem, Warning};
use banger_api::vm;

/// A fact, or why it could not be seen.
pub type Seen<T> = Result<T, Unseen>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unseen {
    /// What was tried and what came of it.
    pub what: String,
    /// How it can be seen.
    pub remedy: String,
}

#[derive(Debug)]
pub struct Facts {
    pub you: Seen<You>,
    pub machine: Machine,
    pub system: System,
    pub storage: Seen<Storage>,
    pub clock: Seen<Clock>,
    /// Names that the bus can start services for, or has.
    pub names: Seen<Vec<String>>,
    pub systemd: Seen<Systemd>,
    /// Short name of each service, and the version of it that runs.
    pub versions: Vec<(&'static str, Seen<String>)>,
    pub host: Seen<vm::Host>,
    pub kernels: Seen<Vec<KernelRow>>,
    pub network: Seen<Network>,
    pub orphans: Seen<Vec<String>>,
    pub leavings: Seen<Leavings>,
    pub journal: Seen<Vec<Entry>>,
}

/// Who asks.
#[derive(Debug, Clone, Default)]
pub struct You {
    pub name: String,
    pub is_root: bool,
    /// Whether the group banger is one of this process's.
    pub in_group: bool,
    /// Whether the group banger has the user, as a new login would find.
    pub in_group_from_login: bool,
    pub polkit: Option<Answer>,
}

/// What polkit says to managing VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Yes,
    WithPassword,
    No,
    /// It does not know the action.
    Unheard,
}

/// Owner, group and permissions of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owned {
    pub uid: u32,
    pub gid: u32,
    /// Permission bits alone.
    pub mode: u32,
}

/// What VMs run on.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// The flags of the CPU.
    pub flags: Vec<String>,
    pub kvm: Option<Owned>,
    pub tun: Option<Owned>,
    pub kvm_group: Option<u32>,
}

/// What the services run on.
#[derive(Debug, Clone, Default)]
pub struct System {
    /// Of the kernel, as uname(2) has it.
    pub release: String,
    /// Controllers of the unified hierarchy; `None` without one.
    pub controllers: Option<Vec<String>>,
    /// System users and groups of banger that are there.
    pub accounts: Vec<Account>,
    pub directories: Vec<Directory>,
}

#[derive(Debug, Clone)]
pub struct Account {
    /// `user` or `group`.
    pub kind: &'static str,
    pub name: String,
    pub id: Option<u32>,
}

#[derive(Debug, Clone)]
pub struct Directory {
    pub path: String,
    /// Name of the user that it is to belong to.
    pub owner: String,
    pub owner_id: Option<u32>,
    pub mode: u32,
    /// Whether it is there before its service first ran.
    pub always: bool,
    pub found: Option<Owned>,
}

/// Where banger keeps its state.
#[derive(Debug, Clone, Default)]
pub struct Storage {
    /// Type of the filesystem, as in mount(8).
    pub kind: String,
    pub mounted_at: String,
    pub read_only: bool,
    /// Whether files have POSIX access lists.
    pub has_acls: bool,
    pub free: u64,
    pub size: u64,
    pub free_inodes: u64,
    /// 0 where the filesystem has no fixed number.
    pub inodes: u64,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    pub synchronised: bool,
    /// Whether there is a service that could see to it.
    pub has_service: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Systemd {
    pub version: String,
    /// Those of banger that every host has.
    pub units: BTreeMap<String, Unit>,
    /// Those of banger that have failed, whichever they are, and how: `exit-code`, `oom-kill`, …
    pub failed: Vec<(String, String)>,
    /// The VMs whose units are not down.
    pub up: Vec<String>,
    /// Those of their units whose files changed since systemd read them.
    pub outdated: Vec<String>,
}

impl Systemd {
    /// One of which nothing is known is not there.
    pub fn unit(&self, name: &str) -> Unit {
        let missing = || Unit { load: "not-found".into(), ..Unit::default() };
        self.units.get(name).cloned().unwrap_or_else(missing)
    }
}

#[derive(Debug, Clone, Default)]
pub struct Unit {
    /// `loaded`, `not-found`, `masked`, `bad-setting`, …
    pub load: String,
    /// `active`, `inactive`, `failed`, …
    pub active: String,
    /// `enabled`, `disabled`, `masked`, …
    pub file: String,
    pub needs_reload: bool,
    pub drop_ins: Vec<String>,
    pub program: Option<Program>,
    /// When it was last started, microseconds since 1970; 0: never.
    pub started: u64,
}

/// The program of a service.
#[derive(Debug, Clone, Default)]
pub struct Program {
    pub path: String,
    /// When the file took its place, microseconds since 1970; `None` if there is none.
    pub installed: Option<u64>,
}

#[derive(Debug, Clone, Default)]
pub struct Network {
    pub bridge: String,
    pub has_bridge: bool,
    pub leases: usize,
    /// Links by which packets come in that are to be routed on, and whether they are.
    pub forwarding: Vec<(String, bool)>,
    pub warnings: Vec<Warning>,
    /// `routed`, `absent`, `failed` or `unset`.
    pub resolved: String,
    pub problems: Vec<Problem>,
    /// Programs that manage the host's links, and whether they take the bridge for theirs.
    pub managers: Vec<(&'static str, bool)>,
}

/// What VMs that are not there (any longer) may have left where vmd does not look.
#[derive(Debug, Clone, Default)]
pub struct Leavings {
    pub vms: Vec<String>,
    /// VMs that are enabled by a link, and the link.
    pub enabled: Vec<(String, String)>,
    /// VMs that have a runtime directory.
    pub running: Vec<String>,
}

/// A line of the journal; what it does not have is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    pub message: String,
    pub message_id: String,
    /// The unit that systemd speaks of.
    pub unit: String,
    /// How a process ended: `exited`, `killed`, `dumped`, and by which status or signal.
    pub exit_code: String,
    pub exit_status: String,
    /// `kernel`, `audit`, …
    pub transport: String,
}
