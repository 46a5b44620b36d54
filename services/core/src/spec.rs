//! What a VM is to be: what was asked for when it was created, and may be changed later.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::forward::{Forward, Listen};
use crate::guest::Init;
use crate::network::{Egress, InvalidPolicy, Policy};
use crate::units::{GIB, MIB, TIB};

/// What was asked for. Rows written before a field existed read as its default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spec {
    /// Virtual CPUs, 1 to 64.
    pub cpus: u32,
    /// Memory in bytes, a multiple of 1 MiB.
    pub memory: u64,
    /// Size of the disk that takes the writes, in bytes. The file is sparse.
    pub disk: u64,
    /// Size of the disk mounted at `/work`, which a reset keeps, in bytes; 0: none.
    pub work: u64,
    /// Volumes, in the order in which the guest sees them.
    pub volumes: Vec<Mount>,
    pub vmm: VmmChoice,
    pub network: bool,
    /// Whether the guest reaches addresses beyond the host.
    pub nat: bool,
    /// Ports of the host that lead to the guest.
    pub forwards: Vec<Forward>,
    /// The guest reaches the guests of VMs that share one of these groups, and no other's.
    pub groups: BTreeSet<String>,
    /// Where beyond the host the guest gets, with `nat`.
    pub egress: Egress,
    pub init: Init,
    /// Words added to the kernel command line.
    pub kernel_arguments: String,
    /// Laid over the image's environment, for everything that runs in the guest.
    pub environment: BTreeMap<String, String>,
    /// Public keys that may log in over SSH as the image's user, besides those that all VMs have.
    pub authorized_keys: Vec<String>,
    /// For people and programs; banger reads none of them.
    pub labels: BTreeMap<String, String>,
    pub restart: Restart,
    /// Whether it starts with the host.
    pub autostart: bool,
    /// Seconds after its start (or its creation, if it never was started) at which the VM has had
    /// its time; 0: never.
    pub ttl: u64,
    /// What happens then.
    pub expiry: Expiry,
    pub limits: Limits,
    pub rates: Rates,
}

/// A volume in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Name of the volume.
    pub volume: String,
    /// Absolute path in the guest.
    pub path: String,
    #[serde(default)]
    pub read_only: bool,
}

/// Limits that systemd sets on the VM's unit; `None` leaves what the unit's files say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// `MemoryMax=`, bytes.
    pub memory_max: Option<u64>,
    /// `CPUQuota=`, percent of one CPU.
    pub cpu_quota: Option<u32>,
    /// `IOWeight=`, 1 to 10000.
    pub io_weight: Option<u32>,
    /// `TasksMax=`.
    pub tasks_max: Option<u64>,
}

/// The most that the guest transfers each second; `None` is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rates {
    /// Bytes of each disk, read and written together.
    pub disk_bandwidth: Option<u64>,
    /// Operations of each disk.
    pub disk_iops: Option<u64>,
    /// Bytes of the network, in each direction.
    pub network_bandwidth: Option<u64>,
    /// Packets of the network, in each direction.
    pub network_packets: Option<u64>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: 512 * MIB,
            disk: 8 * GIB,
            work: 0,
            volumes: Vec::new(),
            vmm: VmmChoice::Auto,
            network: true,
            nat: true,
            forwards: Vec::new(),
            groups: BTreeSet::new(),
            egress: Egress::default(),
            init: Init::Auto,
            kernel_arguments: String::new(),
            environment: BTreeMap::new(),
            authorized_keys: Vec::new(),
            labels: BTreeMap::new(),
            restart: Restart::No,
            autostart: false,
            ttl: 0,
            expiry: Expiry::Stop,
            limits: Limits::default(),
            rates: Rates::default(),
        }
    }
}

/// Which virtual machine monitor runs the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmmChoice {
    /// Firecracker where it is installed and KVM works, else QEMU.
    #[default]
    Auto,
    Qemu,
    Firecracker,
}

/// When a VM that ended by itself is started again; the words are those of `Restart=` in
/// systemd.service(5). One that was stopped never is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    #[default]
    No,
    /// When its VMM died or its guest did not shut down in order.
    OnFailure,
    /// Also when the guest powered itself off.
    Always,
}

/// What happens to a VM whose time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expiry {
    #[default]
    Stop,
    Delete,
}

/// Why a specification cannot be met anywhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpec {
    #[error("{0} is not a number of CPUs: use 1 to {MAX_CPUS}")]
    Cpus(u32),
    #[error("{0} bytes of memory: use at least 64 MiB and whole MiB")]
    Memory(u64),
    #[error("a disk of {0} bytes: use at least 64 MiB and at most 64 TiB")]
    Disk(u64),
    #[error("{0:?} is not a path for a volume: use an absolute one without . and .., other than /")]
    MountPath(String),
    #[error("two volumes at {0}: give each a path of its own")]
    MountTwice(String),
    #[error("{0} volumes: use at most {MAX_VOLUMES}")]
    Volumes(usize),
    #[error("two forwards listen at {0}: give each a port of its own")]
    ForwardTwice(Listen),
    #[error("{0} forwards: use at most {MAX_FORWARDS}")]
    Forwards(usize),
    #[error("a VM without network has no ports to forward")]
    ForwardNowhere,
    #[error("kernel arguments must be printable ASCII of at most {MAX_KERNEL_ARGUMENTS} characters")]
    KernelArguments,
    #[error("{0:?} is not a name for an environment variable: use letters, digits and _")]
    VariableName(String),
    #[error("{0:?} is not a public key for SSH: use a line of a .pub file")]
    Key(String),
    #[error("{0:?} is not a label: use letters, digits and ._/- in its name, and no control characters")]
    Label(String),
    #[error("{what} must not be longer than {MAX_MAP} bytes in all", what = .0)]
    TooLong(&'static str),
    #[error("an I/O weight of {0}: use 1 to 10000")]
    IoWeight(u32),
    #[error("a limit of 0 for {0}: leave it out for no limit")]
    Limit(&'static str),
    #[error("a rate of {0} a second: use at least 1 and at most {MAX_RATE}, or 0 for no limit")]
    Rate(u64),
    #[error(transparent)]
    Network(#[from] InvalidPolicy),
    #[error("{0:?} is not a VMM: use auto, qemu or firecracker")]
    Vmm(String),
    #[error("{0:?} is not an init: use auto, agent or image")]
    Init(String),
    #[error("{0:?} is not a restart policy: use no, on-failure or always")]
    Restart(String),
    #[error("{0:?} is not what can happen to a VM whose time is up: use stop or delete")]
    Expiry(String),
}

const MAX_CPUS: u32 = 64;
const MAX_KERNEL_ARGUMENTS: usize = 1024;
const MAX_VOLUMES: usize = 16;
const MAX_FORWARDS: usize = 64;
/// QEMU takes no higher rate (`THROTTLE_VALUE_MAX` in include/qemu/throttle.h of its source).
const MAX_RATE: u64 = 1_000_000_000_000_000;
/// The most that environment, labels or keys may take.
const MAX_MAP: usize = 64 << 10;

impl Spec {
    /// # Errors
    /// The first thing that cannot be met on any host.
    pub fn check(&self) -> Result<(), InvalidSpec> {
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(InvalidSpec::Cpus(self.cpus));
        }
        if self.memory < 64 * MIB || !self.memory.is_multiple_of(MIB) {
            return Err(InvalidSpec::Memory(self.memory));
        }
        check_disk(self.disk)?;
        if self.work != 0 {
            check_disk(self.work)?;
        }
        check_mounts(&self.volumes)?;
        self.check_forwards()?;
        let printable = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
        if self.kernel_arguments.len() > MAX_KERNEL_ARGUMENTS || !self.kernel_arguments.bytes().all(printable)
        {
            return Err(InvalidSpec::KernelArguments);
        }
        check_environment(&self.environment)?;
        check_keys(&self.authorized_keys)?;
        check_labels(&self.labels)?;
        self.limits.check()?;
        self.rates.check()?;
        Ok(self.policy().check()?)
    }

    /// What the guest reaches.
    pub fn policy(&self) -> Policy {
        let Rates { network_bandwidth: bandwidth, network_packets: packets, .. } = self.rates;
        Policy { nat: self.nat, groups: self.groups.clone(), egress: self.egress.clone(), bandwidth, packets }
    }

    /// Protocol, where it listens, port of the guest, whether it starts the VM.
    #[must_use]
    pub fn shown_forwards(&self) -> Vec<(&'static str, String, u16, bool)> {
        let show = |Forward { listen, port, on_demand }: &Forward| {
            (listen.protocol.as_str(), listen.address.to_string(), *port, *on_demand)
        };
        self.forwards.iter().map(show).collect()
    }

    fn check_forwards(&self) -> Result<(), InvalidSpec> {
        if self.forwards.len() > MAX_FORWARDS {
            return Err(InvalidSpec::Forwards(self.forwards.len()));
        }
        if !self.network && !self.forwards.is_empty() {
            return Err(InvalidSpec::ForwardNowhere);
        }
        let mut seen = Vec::new();
        for Forward { listen, .. } in &self.forwards {
            if seen.contains(listen) {
                return Err(InvalidSpec::ForwardTwice(*listen));
            }
            seen.push(*listen);
        }
        Ok(())
    }
}

/// # Errors
/// [`InvalidSpec::Disk`].
pub fn check_disk(bytes: u64) -> Result<(), InvalidSpec> {
    if (64 * MIB..=64 * TIB).contains(&bytes) { Ok(()) } else { Err(InvalidSpec::Disk(bytes)) }
}

fn check_mounts(mounts: &[Mount]) -> Result<(), InvalidSpec> {
    if mounts.len() > MAX_VOLUMES {
        return Err(InvalidSpec::Volumes(mounts.len()));
    }
    let mut seen = Vec::new();
    for Mount { path, .. } in mounts {
        let clean = path.strip_prefix('/').is_some_and(|relative| {
            relative.split('/').all(|part| !matches!(part, "" | "." | ".."))
                && !relative.contains(char::is_control)
        });
        if !clean || path.len() > 1024 {
            return Err(InvalidSpec::MountPath(path.clone()));
        }
        if seen.contains(&path) {
            return Err(InvalidSpec::MountTwice(path.clone()));
        }
        seen.push(path);
    }
    Ok(())
}

fn check_environment(environment: &BTreeMap<String, String>) -> Result<(), InvalidSpec> {
    for (name, value) in environment {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty()
            || !name.chars().all(word)
            || name.starts_with(|c: char| c.is_ascii_digit())
            || value.contains('\0')
        {
            return Err(InvalidSpec::VariableName(name.clone()));
        }
    }
    check_length("environment", environment)
}

fn check_keys(keys: &[String]) -> Result<(), InvalidSpec> {
    keys.iter().try_for_each(|key| check_key(key))?;
    let length: usize = keys.iter().map(String::len).sum();
    if length > MAX_MAP { Err(InvalidSpec::TooLong("keys")) } else { Ok(()) }
}

/// A line of sshd(8)'s `authorized_keys`: perhaps options, the type, the key, perhaps a comment.
///
/// # Errors
/// [`InvalidSpec::Key`], with no more of the line than tells it from others: it may be a secret.
pub fn check_key(key: &str) -> Result<(), InvalidSpec> {
    let plain = !key.contains(char::is_control) && !key.starts_with(['-', '#']);
    if plain && key.split_whitespace().count() >= 2 {
        return Ok(());
    }
    Err(InvalidSpec::Key(key.chars().take(16).collect()))
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), InvalidSpec> {
    for (name, value) in labels {
        let word = |c: char| c.is_ascii_alphanumeric() || "._/-".contains(c);
        if name.is_empty() || !name.chars().all(word) || value.contains(char::is_control) {
            return Err(InvalidSpec::Label(name.clone()));
        }
    }
    check_length("labels", labels)
}

fn check_length(what: &'static str, map: &BTreeMap<String, String>) -> Result<(), InvalidSpec> {
    let length: usize = map.iter().map(|(name, value)| name.len() + value.len()).sum();
    if length > MAX_MAP { Err(InvalidSpec::TooLong(what)) } else { Ok(()) }
}

impl Limits {
    fn check(&self) -> Result<(), InvalidSpec> {
        if self.memory_max == Some(0) {
            return Err(InvalidSpec::Limit("memory"));
        }
        if self.cpu_quota == Some(0) {
            return Err(InvalidSpec::Limit("CPU time"));
        }
        if self.tasks_max == Some(0) {
            return Err(InvalidSpec::Limit("tasks"));
        }
        match self.io_weight {
            Some(weight) if !(1..=10_000).contains(&weight) => Err(InvalidSpec::IoWeight(weight)),
            _ => Ok(()),
        }
    }
}

impl Rates {
    fn check(&self) -> Result<(), InvalidSpec> {
        let rates = [self.disk_bandwidth, self.disk_iops, self.network_bandwidth, self.network_packets];
        match rates.into_iter().flatten().find(|rate| !(1..=MAX_RATE).contains(rate)) {
            Some(rate) => Err(InvalidSpec::Rate(rate)),
            None => Ok(()),
        }
    }
}

/// The names of the fields in which two specifications differ, as the options of `CreateVm` and
/// `SetVm` name them.
pub fn differences(old: &Spec, new: &Spec) -> Vec<&'static str> {
    macro_rules! compare {
        ($($name:literal: $($field:ident).+;)*) => {
            vec![$(($name, old.$($field).+ != new.$($field).+),)*]
        };
    }
    let all = compare! {
        "cpus": cpus;
        "memory": memory;
        "disk": disk;
        "work": work;
        "volumes": volumes;
        "vmm": vmm;
        "network": network;
        "nat": nat;
        "forwards": forwards;
        "groups": groups;
        "egress": egress.default;
        "egress_allow": egress.allow;
        "init": init;
        "kernel_arguments": kernel_arguments;
        "environment": environment;
        "authorized_keys": authorized_keys;
        "labels": labels;
        "restart": restart;
        "autostart": autostart;
        "ttl": ttl;
        "expiry": expiry;
        "memory_max": limits.memory_max;
        "cpu_quota": limits.cpu_quota;
        "io_weight": limits.io_weight;
        "tasks_max": limits.tasks_max;
        "disk_bandwidth": rates.disk_bandwidth;
        "disk_iops": rates.disk_iops;
        "network_bandwidth": rates.network_bandwidth;
        "network_packets": rates.network_packets;
    };
    all.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}

macro_rules! words {
    ($type:ident, $error:expr, $($word:literal = $variant:ident),*) => {
        impl $type {
            pub fn as_str(self) -> &'static str {
                match self { $($type::$variant => $word,)* }
            }
        }

        impl std::str::FromStr for $type {
            type Err = InvalidSpec;

            fn from_str(word: &str) -> Result<Self, InvalidSpec> {
                match word {
                    $($word => Ok($type::$variant),)*
                    _ => Err($error(word.to_owned())),
                }
            }
        }
    };
}

words!(VmmChoice, InvalidSpec::Vmm, "auto" = Auto, "qemu" = Qemu, "firecracker" = Firecracker);
words!(Init, InvalidSpec::Init, "auto" = Auto, "agent" = Agent, "image" = Image);
words!(Restart, InvalidSpec::Restart, "no" = No, "on-failure" = OnFailure, "always" = Always);
words!(Expiry, InvalidSpec::Expiry, "stop" = Stop, "delete" = Delete);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::EgressDefault;

    #[test]
    fn defaults_are_valid() {
        assert_eq!(Spec::default().check(), Ok(()));
    }

    #[test]
    fn refuses_what_no_host_has() {
        let spec = Spec::default;
        assert_eq!(Spec { cpus: 0, ..spec() }.check(), Err(InvalidSpec::Cpus(0)));
        assert_eq!(Spec { memory: MIB, ..spec() }.check(), Err(InvalidSpec::Memory(MIB)));
        assert_eq!(Spec { memory: GIB + 1, ..spec() }.check(), Err(InvalidSpec::Memory(GIB + 1)));
        assert_eq!(Spec { disk: 1, ..spec() }.check(), Err(InvalidSpec::Disk(1)));
        assert_eq!(Spec { work: 1, ..spec() }.check(), Err(InvalidSpec::Disk(1)));
        let kernel_arguments = "a\nb".to_owned();
        assert_eq!(Spec { kernel_arguments, ..spec() }.check(), Err(InvalidSpec::KernelArguments));
        let limits = Limits { io_weight: Some(0), ..Limits::default() };
        assert_eq!(Spec { limits, ..spec() }.check(), Err(InvalidSpec::IoWeight(0)));
        for rate in [0, MAX_RATE + 1] {
            let rates = Rates { disk_iops: Some(rate), ..Rates::default() };
            assert_eq!(Spec { rates, ..spec() }.check(), Err(InvalidSpec::Rate(rate)));
        }
    }

    #[test]
    fn refuses_names_that_break_things() {
        for name in ["", "1A", "A=B", "A B", "Ä"] {
            let environment = BTreeMap::from([(name.to_owned(), String::new())]);
            let spec = Spec { environment, ..Spec::default() };
            assert_eq!(spec.check(), Err(InvalidSpec::VariableName(name.to_owned())));
        }
        let labels = BTreeMap::from([("a".to_owned(), "x\ny".to_owned())]);
        assert_eq!(Spec { labels, ..Spec::default() }.check(), Err(InvalidSpec::Label("a".into())));
    }

    #[test]
    fn keys_are_public_ones_of_one_line() {
        let with = |key: &str| Spec { authorized_keys: vec![key.into()], ..Spec::default() }.check();
        assert_eq!(with("ssh-ed25519 AAAAC3Nz me@here"), Ok(()));
        assert_eq!(with("restrict,pty ssh-rsa AAAA"), Ok(()));
        for key in ["", "AAAAC3Nz", "-----BEGIN OPENSSH PRIVATE KEY-----", "ssh-rsa A\nssh-rsa B", "# a b"] {
            assert!(matches!(with(key), Err(InvalidSpec::Key(_))), "{key:?}");
        }
    }

    #[test]
    fn volumes_have_paths_of_their_own() {
        let with = |paths: &[&str]| {
            let mount =
                |path: &&str| Mount { volume: "v".into(), path: (*path).to_owned(), read_only: false };
            Spec { volumes: paths.iter().map(mount).collect(), ..Spec::default() }.check()
        };
        assert_eq!(with(&["/data", "/srv/x"]), Ok(()));
        assert_eq!(with(&["/data", "/data"]), Err(InvalidSpec::MountTwice("/data".into())));
        for path in ["", "/", "data", "/a/../b", "/a//b", "/a/", "/a\n"] {
            assert_eq!(with(&[path]), Err(InvalidSpec::MountPath(path.into())));
        }
    }

    #[test]
    fn differences_are_named() {
        let old = Spec::default();
        let new =
            Spec { cpus: 2, limits: Limits { tasks_max: Some(9), ..Limits::default() }, ..Spec::default() };
        assert_eq!(differences(&old, &new), ["cpus", "tasks_max"]);
        assert!(differences(&old, &old).is_empty());
    }

    #[test]
    fn words_come_back() {
        assert_eq!("qemu".parse(), Ok(VmmChoice::Qemu));
        assert_eq!(VmmChoice::Firecracker.as_str(), "firecracker");
        assert_eq!("on-failure".parse(), Ok(Restart::OnFailure));
        assert_eq!("x".parse::<Init>(), Err(InvalidSpec::Init("x".into())));
    }

    #[test]
    fn specs_survive_storage() {
        let text = serde_json::to_string(&Spec::default()).expect("serializes");
        assert_eq!(serde_json::from_str::<Spec>(&text).expect("parses"), Spec::default());
        // A row written before a field existed.
        assert_eq!(serde_json::from_str::<Spec>("{}").expect("parses"), Spec::default());
    }

    use proptest::prelude::*;

    type Change = (&'static str, fn(&mut Spec));

    /// Each option by its name, and how to give it a value that is not the default.
    const CHANGES: &[Change] = &[
        ("cpus", |spec| spec.cpus = 2),
        ("memory", |spec| spec.memory = GIB),
        ("disk", |spec| spec.disk = 9 * GIB),
        ("work", |spec| spec.work = GIB),
        ("volumes", |spec| {
            spec.volumes = vec![Mount { volume: "v".into(), path: "/v".into(), read_only: true }];
        }),
        ("vmm", |spec| spec.vmm = VmmChoice::Qemu),
        ("network", |spec| spec.network = false),
        ("nat", |spec| spec.nat = false),
        ("forwards", |spec| spec.forwards = vec!["80:80".parse().expect("a forward")]),
        ("groups", |spec| spec.groups = BTreeSet::from(["web".into()])),
        ("egress", |spec| spec.egress.default = EgressDefault::Closed),
        ("egress_allow", |spec| {
            spec.egress.allow = BTreeSet::from(["192.0.2.0/24:443/tcp".parse().expect("a rule")]);
        }),
        ("init", |spec| spec.init = Init::Agent),
        ("kernel_arguments", |spec| spec.kernel_arguments = "quiet".into()),
        ("environment", |spec| spec.environment = BTreeMap::from([("A".into(), "b".into())])),
        ("authorized_keys", |spec| spec.authorized_keys = vec!["ssh-ed25519 AAAAC3Nz me".into()]),
        ("labels", |spec| spec.labels = BTreeMap::from([("a".into(), "b".into())])),
        ("restart", |spec| spec.restart = Restart::Always),
        ("autostart", |spec| spec.autostart = true),
        ("ttl", |spec| spec.ttl = 60),
        ("expiry", |spec| spec.expiry = Expiry::Delete),
        ("memory_max", |spec| spec.limits.memory_max = Some(GIB)),
        ("cpu_quota", |spec| spec.limits.cpu_quota = Some(50)),
        ("io_weight", |spec| spec.limits.io_weight = Some(50)),
        ("tasks_max", |spec| spec.limits.tasks_max = Some(50)),
        ("disk_bandwidth", |spec| spec.rates.disk_bandwidth = Some(GIB)),
        ("disk_iops", |spec| spec.rates.disk_iops = Some(50)),
        ("network_bandwidth", |spec| spec.rates.network_bandwidth = Some(GIB)),
        ("network_packets", |spec| spec.rates.network_packets = Some(50)),
    ];

    proptest! {
        /// What was changed is what differs, in either direction, and it survives storage.
        #[test]
        fn differences_are_what_was_changed(
            wanted in proptest::sample::subsequence(CHANGES.to_vec(), 0..=CHANGES.len()),
        ) {
            let (old, mut new) = (Spec::default(), Spec::default());
            wanted.iter().for_each(|(_, change)| change(&mut new));
            prop_assume!(new.network || new.forwards.is_empty());
            prop_assume!(new.egress.default != EgressDefault::Open || new.egress.allow.is_empty());
            let names: Vec<&str> = wanted.iter().map(|(name, _)| *name).collect();
            prop_assert_eq!(differences(&old, &new), names.clone());
            prop_assert_eq!(differences(&new, &old), names);
            prop_assert_eq!(new.check(), Ok(()));
            let text = serde_json::to_string(&new).expect("serializes");
            prop_assert_eq!(serde_json::from_str::<Spec>(&text).expect("parses"), new);
        }
    }
}
