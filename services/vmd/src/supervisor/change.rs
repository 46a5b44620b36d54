//! Changes to what a VM is to be. Each takes effect at once where that is possible, else from the
//! next start; which, the caller is told.

use std::collections::HashMap;

use banger_api::{ErrorKind, Result};
use banger_core::event::Event;
use banger_core::name::VmName;
use banger_core::spec::{Limits, Spec, differences};
use banger_core::vm::State;
use banger_daemon::event::note;
use banger_daemon::failpoint;
use zbus::{OwnedVariant, Str, Variant};

use super::Supervisor;
use crate::config::Config;
use crate::request::Change;
use crate::store::VmRow;

/// Names of changed options.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Effects {
    /// In effect now.
    pub live: Vec<&'static str>,
    /// From the next start on.
    pub next_start: Vec<&'static str>,
}

impl Supervisor {
    /// # Errors
    /// `InvalidArgs`, `NoSuchVolume`, `VolumeInUse`: nothing is changed then. If something cannot
    /// be changed live although it should, its error is returned, and the change holds from the
    /// next start.
    pub async fn set(&self, name: &VmName, change: Change) -> Result<Effects> {
        self.get(name)?;
        let _guard = self.lock(name).await;
        self.set_locked(name, move |spec| {
            let old = spec.clone();
            change.apply(spec)?;
            check_sizes(&old, spec)
        })
        .await
    }

    pub(super) async fn set_locked(
        &self,
        name: &VmName,
        change: impl FnOnce(&mut Spec) -> Result<()> + Send + 'static,
    ) -> Result<Effects> {
        let old = self.get(name)?;
        let new = self.0.store.set_spec(name, change).await?;
        failpoint!("set.written");
        let state = self.state(&new);
        let changed = differences(&old.spec, &new.spec);
        let removed: Vec<&str> =
            changed.iter().copied().filter(|option| is_unset(option, &new.spec)).collect();
        self.0.units.clear_limits(name, &removed).await?;
        failpoint!("set.limits");
        let mut effects = Effects::default();
        for option in changed {
            if self.set_live(option, &old.spec, &new, state).await? {
                effects.live.push(option);
            } else {
                effects.next_start.push(option);
            }
        }
        failpoint!("set.live");
        self.changed(name, properties(&new));
        self.leave_word();
        let options = [effects.live.as_slice(), &effects.next_start].concat().join(" ");
        if !options.is_empty() {
            note(&Event::VmChanged { vm: name.as_str(), options: &options });
        }
        Ok(effects)
    }

    /// Takes away the limits that the VM's specification has put on its unit.
    pub(super) async fn lift_limits(&self, name: &VmName) {
        let Ok(row) = self.get(name) else { return };
        let limits = differences(&row.spec, &Spec { limits: Limits::default(), ..row.spec.clone() });
        if let Err(error) = self.0.units.clear_limits(name, &limits).await {
            tracing::warn!(vm = name.as_str(), "its limits stay until the next boot: {error}");
        }
    }

    /// Brings one changed option to a VM. Returns whether it is in effect now.
    async fn set_live(&self, option: &str, old: &Spec, row: &VmRow, state: State) -> Result<bool> {
        let name = &row.name;
        let has_vmm = matches!(state, State::Running | State::Paused);
        match option {
            // Read when they are needed.
            "labels" | "restart" | "autostart" | "ttl" | "expiry" => Ok(true),
            "memory_max" | "cpu_quota" | "io_weight" | "tasks_max" if state.is_up() => {
                self.0.units.set_limits(name, &row.spec.limits).await?;
                Ok(true)
            }
            "nat" | "groups" | "egress" | "egress_allow" | "network_bandwidth" | "network_packets"
                if state.is_up() && row.spec.network =>
            {
                self.0.peers.set_network(name.as_str(), &row.spec.policy()).await?;
                Ok(true)
            }
            "forwards" => self.follow_forwards(row, &old.forwards).await.map(|()| true),
            "disk" | "work" if state == State::Running && has_disk(option, old) => {
                self.grow_live(row).await.map(|()| true)
            }
            "memory" if has_vmm => self.balloon_live(row).await,
            "disk_bandwidth" | "disk_iops" if has_vmm => self.limit_disks_live(row).await.map(|()| true),
            _ => Ok(false),
        }
    }

    /// Leaves word for banger-autostart.service and banger-reap.timer whether there is anything to
    /// do for them, so that vmd need not be started for nothing.
    pub(super) fn leave_word(&self) {
        let rows = self.0.store.list();
        let starts =
            |row: &VmRow| row.spec.autostart || row.spec.forwards.iter().any(|forward| forward.on_demand);
        self.note("autostart", rows.iter().any(starts));
        // Mistakes in the configuration are told by the one who looks for idle VMs.
        let stops_idle = || Config::load().map_or(true, |config| config.reap.idle > 0);
        self.note("reap", rows.iter().any(|row| row.spec.ttl > 0) || !rows.is_empty() && stops_idle());
    }

    fn note(&self, name: &str, wanted: bool) {
        let note = self.0.context.state_dir.join(name);
        let noted = if wanted { std::fs::write(&note, "") } else { std::fs::remove_file(&note) };
        match noted {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!("cannot change {}: {error}", note.display());
            }
            _ => {}
        }
    }

    /// Starts every VM that is to start with the host, and listens for those that start on demand. systemd
    /// orders them by their units.
    pub async fn autostart(&self) -> Result<()> {
        for row in self.0.store.list() {
            if let Err(error) = self.follow_forwards(&row, &[]).await {
                tracing::warn!(vm = row.name.as_str(), "{error}");
            }
            if row.spec.autostart && !self.state(&row).is_up() {
                tracing::info!(vm = row.name.as_str(), "starting with the host");
                // One that cannot start is no reason for the others not to.
                if let Err(error) = self.0.units.start_again(&row.name).await {
                    tracing::warn!(vm = row.name.as_str(), "cannot start with the host: {error}");
                }
            }
        }
        Ok(())
    }
}

/// Whether a running VM has the disk that the option is the size of, so that it can grow.
fn has_disk(option: &str, old: &Spec) -> bool {
    option == "disk" || old.work > 0
}

/// Whether the option is a limit that is not set any longer.
fn is_unset(option: &str, spec: &Spec) -> bool {
    match option {
        "memory_max" => spec.limits.memory_max.is_none(),
        "cpu_quota" => spec.limits.cpu_quota.is_none(),
        "io_weight" => spec.limits.io_weight.is_none(),
        "tasks_max" => spec.limits.tasks_max.is_none(),
        _ => false,
    }
}

/// Filesystems grow, but do not shrink.
fn check_sizes(old: &Spec, new: &Spec) -> Result<()> {
    for (what, old, new) in [("disk", old.disk, new.disk), ("work disk", old.work, new.work)] {
        if new < old {
            return Err(ErrorKind::InvalidArgs.error(format!(
                "the {what} has {old} bytes and cannot shrink to {new}: create another VM, or keep its size"
            )));
        }
    }
    Ok(())
}

/// The properties that show a specification, see `bus::vm`.
fn properties(row: &VmRow) -> Vec<(&'static str, OwnedVariant)> {
    let spec = &row.spec;
    let rate = |rate: Option<u64>| rate.unwrap_or(0).into();
    let own = |value: Variant<'_>| OwnedVariant::try_from(value).expect("no file descriptors in it");
    let volumes: Vec<(&str, &str, bool)> = spec
        .volumes
        .iter()
        .map(|mount| (mount.volume.as_str(), mount.path.as_str(), mount.read_only))
        .collect();
    let labels: HashMap<&str, &str> =
        spec.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    vec![
        ("Address", Str::from(row.shown_address()).into()),
        ("Cpus", spec.cpus.into()),
        ("MemoryBytes", spec.memory.into()),
        ("DiskBytes", spec.disk.into()),
        ("WorkBytes", spec.work.into()),
        ("Volumes", own(volumes.into())),
        ("Vmm", Str::from(spec.vmm.as_str()).into()),
        ("Nat", spec.nat.into()),
        ("Forwards", own(spec.shown_forwards().into())),
        ("Groups", own(spec.groups.iter().map(String::as_str).collect::<Vec<_>>().into())),
        ("Egress", Str::from(spec.egress.default.as_str()).into()),
        ("EgressAllow", own(spec.egress.shown_rules().into())),
        ("Labels", own(labels.into())),
        ("RestartPolicy", Str::from(spec.restart.as_str()).into()),
        ("Ttl", spec.ttl.into()),
        ("Expiry", Str::from(spec.expiry.as_str()).into()),
        ("Autostart", spec.autostart.into()),
        ("DiskBandwidth", rate(spec.rates.disk_bandwidth)),
        ("DiskIops", rate(spec.rates.disk_iops)),
        ("NetworkBandwidth", rate(spec.rates.network_bandwidth)),
        ("NetworkPackets", rate(spec.rates.network_packets)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_property_that_can_change_is_announced() {
        let xml = include_str!("../../../../dbus/interfaces/org.banger.Vm1.Vm.xml");
        let name = |line: &'static str| line.split("name=\"").nth(1)?.split('"').next();
        // One with an annotation is constant; the state, and what a run comes with, change by themselves.
        let by_themselves =
            ["State", "Address6", "Health", "StartedTimestamp", "EndedTimestamp", "EndReason"];
        let changing = xml.lines().filter(|line| line.contains("<property") && line.ends_with("/>"));
        let mut expected: Vec<&str> =
            changing.filter_map(name).filter(|name| !by_themselves.contains(name)).collect();
        expected.sort_unstable();
        let row = VmRow {
            name: VmName::new("web").expect("a name"),
            address: std::net::Ipv4Addr::LOCALHOST,
            image: String::new(),
            image_id: String::new(),
            kernel: String::new(),
            spec: Spec::default(),
            machine_id: String::new(),
            created_usec: 1,
            started_usec: None,
            run: None,
            ended: None,
            whole: true,
        };
        let mut announced: Vec<&str> = properties(&row).into_iter().map(|(name, _)| name).collect();
        announced.sort_unstable();
        assert_eq!(announced, expected);
    }

    #[test]
    fn disks_only_grow() {
        let old = Spec { work: 1 << 30, ..Spec::default() };
        let mut new = Spec { disk: old.disk * 2, ..old.clone() };
        assert!(check_sizes(&old, &new).is_ok());
        new.work = 0;
        assert_eq!(check_sizes(&old, &new).expect_err("refused").kind(), ErrorKind::InvalidArgs);
    }
}
