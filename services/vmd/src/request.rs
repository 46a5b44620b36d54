//! What callers ask for, from the arguments of methods to checked values.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use banger_api::{ErrorKind, Options, Result};
use banger_core::forward::{Forward, Listen};
use banger_core::name::VmName;
use banger_core::spec::{InvalidSpec, Mount, Spec};
use zbus::OwnedVariant;

use crate::config::Defaults;

/// A VM's name as an argument of a method.
///
/// # Errors
/// `InvalidArgs`.
pub fn vm_name(name: &str) -> Result<VmName> {
    VmName::new(name).map_err(|error| ErrorKind::InvalidArgs.error(error.to_string()))
}

/// The name of a volume, which has the form of a VM's.
///
/// # Errors
/// `InvalidArgs`.
pub fn volume_name(name: &str) -> Result<VmName> {
    VmName::new(name).map_err(|error| ErrorKind::InvalidArgs.error(error.of("volume")))
}

/// The name of a snapshot, which has the form of a VM's.
///
/// # Errors
/// `InvalidArgs`.
pub fn snapshot_name(name: &str) -> Result<VmName> {
    VmName::new(name).map_err(|error| ErrorKind::InvalidArgs.error(error.of("snapshot")))
}

/// The name of a new snapshot; an empty one is made up.
///
/// # Errors
/// `InvalidArgs`.
pub fn new_snapshot_name(name: &str) -> Result<VmName> {
    if name.is_empty() {
        Ok(VmName::generated(uuid::Uuid::new_v4().as_u64_pair().0))
    } else {
        snapshot_name(name)
    }
}

/// A request to create a VM.
#[derive(Debug)]
pub struct Create {
    /// `None`: generate one.
    pub name: Option<VmName>,
    pub image: String,
    /// Empty: the default one.
    pub kernel: String,
    pub spec: Spec,
    pub start: bool,
}

impl Create {
    /// # Errors
    /// `InvalidArgs` for anything that is not as `CreateVm` documents it.
    pub fn new(name: &str, image: &str, mut options: Options, defaults: &Defaults) -> Result<Self> {
        let name = if name.is_empty() { None } else { Some(vm_name(name)?) };
        if image.is_empty() {
            return Err(
                ErrorKind::InvalidArgs.error("the image is missing: give a reference such as debian:12")
            );
        }
        let kernel = options.take("kernel")?.unwrap_or_else(|| defaults.kernel.clone());
        let start = options.take("start")?.unwrap_or(false);
        let mut spec = defaults.spec();
        Change::new(options)?.apply(&mut spec)?;
        Ok(Self { name, image: image.to_owned(), kernel, spec, start })
    }
}

/// A change to what a VM is to be: the options of `SetVm`, which `CreateVm` takes as well.
#[derive(Debug)]
pub struct Change {
    cpus: Option<u32>,
    memory: Option<u64>,
    disk: Option<u64>,
    work: Option<u64>,
    volumes: Option<Vec<(String, String, bool)>>,
    vmm: Option<String>,
    network: Option<bool>,
    nat: Option<bool>,
    forwards: Option<Vec<(String, String, u16, bool)>>,
    groups: Option<Vec<String>>,
    egress: Option<String>,
    egress_allow: Option<Vec<String>>,
    init: Option<String>,
    kernel_arguments: Option<String>,
    environment: HashMap<String, String>,
    remove_environment: Vec<String>,
    authorized_keys: Option<Vec<String>>,
    labels: HashMap<String, String>,
    remove_labels: Vec<String>,
    restart: Option<String>,
    autostart: Option<bool>,
    ttl: Option<u64>,
    expiry: Option<String>,
    memory_max: Option<u64>,
    cpu_quota: Option<u32>,
    io_weight: Option<u32>,
    tasks_max: Option<u64>,
    disk_bandwidth: Option<u64>,
    disk_iops: Option<u64>,
    network_bandwidth: Option<u64>,
    network_packets: Option<u64>,
}

impl Change {
    /// # Errors
    /// `InvalidArgs` for an option that is unknown or has another type.
    pub fn new(mut options: Options) -> Result<Self> {
        let change = Self {
            cpus: options.take("cpus")?,
            memory: options.take("memory")?,
            disk: options.take("disk")?,
            work: options.take("work")?,
            volumes: options.take("volumes")?,
            vmm: options.take("vmm")?,
            network: options.take("network")?,
            nat: options.take("nat")?,
            forwards: options.take("forwards")?,
            groups: options.take("groups")?,
            egress: options.take("egress")?,
            egress_allow: options.take("egress_allow")?,
            init: options.take("init")?,
            kernel_arguments: options.take("kernel_arguments")?,
            environment: options.take("environment")?.unwrap_or_default(),
            remove_environment: options.take("remove_environment")?.unwrap_or_default(),
            authorized_keys: options.take("authorized_keys")?,
            labels: options.take("labels")?.unwrap_or_default(),
            remove_labels: options.take("remove_labels")?.unwrap_or_default(),
            restart: options.take("restart")?,
            autostart: options.take("autostart")?,
            ttl: options.take("ttl")?,
            expiry: options.take("expiry")?,
            memory_max: options.take("memory_max")?,
            cpu_quota: options.take("cpu_quota")?,
            io_weight: options.take("io_weight")?,
            tasks_max: options.take("tasks_max")?,
            disk_bandwidth: options.take("disk_bandwidth")?,
            disk_iops: options.take("disk_iops")?,
            network_bandwidth: options.take("network_bandwidth")?,
            network_packets: options.take("network_packets")?,
        };
        options.finish()?;
        Ok(change)
    }

    /// Changes a specification, which is whole and valid afterwards.
    ///
    /// # Errors
    /// `InvalidArgs`; the specification is spoiled then.
    pub fn apply(self, spec: &mut Spec) -> Result<()> {
        set(&mut spec.cpus, self.cpus);
        set(&mut spec.memory, self.memory);
        set(&mut spec.disk, self.disk);
        set(&mut spec.work, self.work);
        set(&mut spec.network, self.network);
        set(&mut spec.nat, self.nat);
        let forwards =
            self.forwards.map(|forwards| forwards.into_iter().map(forward).collect()).transpose()?;
        set(&mut spec.forwards, forwards);
        set(&mut spec.groups, self.groups.map(BTreeSet::from_iter));
        let changed = spec.egress.change(self.egress.as_deref(), self.egress_allow.as_deref());
        changed.map_err(|error| invalid(error.into()))?;
        set(&mut spec.kernel_arguments, self.kernel_arguments);
        set(&mut spec.authorized_keys, self.authorized_keys);
        set(&mut spec.autostart, self.autostart);
        set(&mut spec.ttl, self.ttl);
        set(&mut spec.vmm, word(self.vmm)?);
        set(&mut spec.init, word(self.init)?);
        set(&mut spec.restart, word(self.restart)?);
        set(&mut spec.expiry, word(self.expiry)?);
        let mount = |(volume, path, read_only)| Mount { volume, path, read_only };
        set(&mut spec.volumes, self.volumes.map(|volumes| volumes.into_iter().map(mount).collect()));
        merge(&mut spec.environment, self.environment, &self.remove_environment);
        merge(&mut spec.labels, self.labels, &self.remove_labels);
        set(&mut spec.limits.memory_max, self.memory_max.map(none_if_zero));
        set(&mut spec.limits.cpu_quota, self.cpu_quota.map(none_if_zero));
        set(&mut spec.limits.io_weight, self.io_weight.map(none_if_zero));
        set(&mut spec.limits.tasks_max, self.tasks_max.map(none_if_zero));
        set(&mut spec.rates.disk_bandwidth, self.disk_bandwidth.map(none_if_zero));
        set(&mut spec.rates.disk_iops, self.disk_iops.map(none_if_zero));
        set(&mut spec.rates.network_bandwidth, self.network_bandwidth.map(none_if_zero));
        set(&mut spec.rates.network_packets, self.network_packets.map(none_if_zero));
        spec.check().map_err(invalid)
    }
}

fn forward((protocol, listen, port, on_demand): (String, String, u16, bool)) -> Result<Forward> {
    let listen = listen_of(&protocol, &listen)?;
    if port == 0 {
        return Err(ErrorKind::InvalidArgs.error("0 is no port of a guest"));
    }
    Ok(Forward { listen, port, on_demand })
}

/// Where a forward listens.
///
/// # Errors
/// `InvalidArgs`.
pub fn listen_of(protocol: &str, listen: &str) -> Result<Listen> {
    Listen::new(protocol, listen).map_err(|error| ErrorKind::InvalidArgs.error(error.to_string()))
}

/// A forward, and its options: whether it starts the VM.
///
/// # Errors
/// `InvalidArgs`.
pub fn new_forward(
    protocol: String,
    listen: String,
    port: u16,
    options: HashMap<String, OwnedVariant>,
) -> Result<Forward> {
    let mut options = Options::from(options);
    let on_demand = options.take("on_demand")?.unwrap_or(false);
    options.finish()?;
    forward((protocol, listen, port, on_demand))
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn merge(into: &mut BTreeMap<String, String>, add: HashMap<String, String>, remove: &[String]) {
    into.retain(|name, _| !remove.contains(name));
    into.extend(add);
}

/// A limit of 0 takes the limit away.
pub fn none_if_zero<T: Default + PartialEq>(value: T) -> Option<T> {
    Some(value).filter(|value| *value != T::default())
}

fn word<T: std::str::FromStr<Err = InvalidSpec>>(word: Option<String>) -> Result<Option<T>> {
    word.map(|word| word.parse().map_err(invalid)).transpose()
}

fn invalid(error: InvalidSpec) -> banger_api::Error {
    ErrorKind::InvalidArgs.error(error.to_string())
}

/// The options of stopping and restarting: after how long the guest is killed.
///
/// # Errors
/// `InvalidArgs`.
pub fn stop_options(options: HashMap<String, OwnedVariant>) -> Result<Option<Duration>> {
    let mut options = Options::from(options);
    let timeout = options.take::<u32>("timeout")?.map(|seconds| Duration::from_secs(seconds.into()));
    options.finish()?;
    Ok(timeout)
}

/// The options of deleting: whether a running VM is killed.
///
/// # Errors
/// `InvalidArgs`.
pub fn delete_options(options: HashMap<String, OwnedVariant>) -> Result<bool> {
    let mut options = Options::from(options);
    let force = options.take("force")?.unwrap_or(false);
    options.finish()?;
    Ok(force)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zbus::Variant;

    fn options(options: &[(&str, Variant<'_>)]) -> Options {
        let own = |(name, value): &(&str, Variant<'_>)| {
            ((*name).to_owned(), OwnedVariant::try_from(value.try_clone().expect("clones")).expect("owned"))
        };
        Options::from(options.iter().map(own).collect::<HashMap<_, _>>())
    }

    fn change(spec: &mut Spec, given: &[(&str, Variant<'_>)]) -> Result<()> {
        Change::new(options(given))?.apply(spec)
    }

    #[test]
    fn what_is_not_said_stays() {
        let mut spec = Spec { cpus: 3, ..Spec::default() };
        change(&mut spec, &[("restart", "always".into())]).expect("changes");
        assert_eq!(spec.cpus, 3);
        assert_eq!(spec.restart.as_str(), "always");
    }

    #[test]
    fn labels_add_up_and_limits_go_by_zero() {
        let mut spec = Spec::default();
        spec.labels.insert("old".into(), "1".into());
        spec.limits.tasks_max = Some(5);
        let labels = HashMap::from([("new", "2")]);
        change(
            &mut spec,
            &[("labels", labels.into()), ("remove_labels", vec!["old"].into()), ("tasks_max", 0u64.into())],
        )
        .expect("changes");
        assert_eq!(spec.labels, BTreeMap::from([("new".to_owned(), "2".to_owned())]));
        assert_eq!(spec.limits.tasks_max, None);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let mut spec = Spec::default();
        let kind = |outcome: Result<()>| outcome.expect_err("refused").kind();
        for given in [("cpu", 1u32.into()), ("cpus", "1".into()), ("cpus", 0u32.into()), ("vmm", "x".into())]
        {
            assert_eq!(kind(change(&mut spec, &[given])), ErrorKind::InvalidArgs);
        }
    }
}
