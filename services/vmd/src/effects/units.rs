//! The units that are the VMs, through systemd's own D-Bus interface.
//!
//! [`Units`] follows the state of all of them from systemd's signals, so that properties of VMs
//! are always at hand and change when systemd says so.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use banger_api::vm::VmStats;
use banger_api::{Error, ErrorKind, Result};
use banger_core::forward::Listen;
use banger_core::name::VmName;
use banger_core::spec::Limits;
use banger_core::vm::State;
use futures_util::StreamExt;
use tokio::sync::watch;
use zbus::fdo::PropertiesChanged;
use zbus::proxy::CacheProperties;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath, OwnedVariant, Variant, proxy};

/// How many signals may wait for us before we slow the connection down.
const SIGNAL_QUEUE: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

const UNIT_PREFIX: &str = "/org/freedesktop/systemd1/unit";

type ListedUnit =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Systemd {
    fn subscribe(&self) -> zbus::Result<()>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
    fn set_unit_properties(
        &self,
        name: &str,
        runtime: bool,
        properties: &[(&str, Variant<'_>)],
    ) -> zbus::Result<()>;
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    #[zbus(name = "GetUnitByPID")]
    fn get_unit_by_pid(&self, pid: u32) -> zbus::Result<OwnedObjectPath>;
    fn list_units_by_patterns(&self, states: &[&str], patterns: &[&str]) -> zbus::Result<Vec<ListedUnit>>;
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String) -> zbus::Result<()>;
}

#[proxy(
    interface = "org.freedesktop.systemd1.Unit",
    default_service = "org.freedesktop.systemd1",
    assume_defaults = false
)]
trait Unit {
    /// Id and path of the job under way; 0 if there is none.
    #[zbus(property(emits_changed_signal = "false"))]
    fn job(&self) -> zbus::Result<(u32, OwnedObjectPath)>;
}

#[proxy(
    interface = "org.freedesktop.systemd1.Job",
    default_service = "org.freedesktop.systemd1",
    assume_defaults = false
)]
trait Job {
    /// `start`, `stop`, `restart`, …
    #[zbus(property(emits_changed_signal = "false"))]
    fn job_type(&self) -> zbus::Result<String>;
}

/// What is asked of a unit; of figures, `u64::MAX` is what systemd does not know.
#[proxy(
    interface = "org.freedesktop.systemd1.Service",
    default_service = "org.freedesktop.systemd1",
    assume_defaults = false
)]
trait Service {
    #[zbus(name = "UID", property(emits_changed_signal = "false"))]
    fn uid(&self) -> zbus::Result<u32>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn status_text(&self) -> zbus::Result<String>;
    #[zbus(name = "CPUUsageNSec", property(emits_changed_signal = "false"))]
    fn cpu_usage_nsec(&self) -> zbus::Result<u64>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn memory_current(&self) -> zbus::Result<u64>;
    /// Since systemd 255.
    #[zbus(property(emits_changed_signal = "false"))]
    fn memory_peak(&self) -> zbus::Result<u64>;
    #[zbus(name = "IOReadBytes", property(emits_changed_signal = "false"))]
    fn io_read_bytes(&self) -> zbus::Result<u64>;
    #[zbus(name = "IOWriteBytes", property(emits_changed_signal = "false"))]
    fn io_write_bytes(&self) -> zbus::Result<u64>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn tasks_current(&self) -> zbus::Result<u64>;
}

/// What systemd says of a VM's unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitView {
    /// `active`, `inactive`, `activating`, `deactivating`, `failed`.
    pub active_state: String,
    /// The last `STATUS=` of the unit: a stage, the guest's health, or `failed: reason`.
    pub status: String,
}

impl UnitView {
    fn is_down(&self) -> bool {
        matches!(self.active_state.as_str(), "inactive" | "failed")
    }
}

impl Default for UnitView {
    fn default() -> Self {
        Self { active_state: "inactive".into(), status: String::new() }
    }
}

/// All units of VMs. Cheap to clone.
#[derive(Clone)]
pub struct Units(Arc<Inner>);

struct Inner {
    systemd: SystemdProxy<'static>,
    views: Mutex<HashMap<VmName, watch::Sender<UnitView>>>,
}

impl Units {
    /// Takes stock and follows the units from then on. `changed` is told of every VM whose unit
    /// changes, what it was and what it is.
    pub async fn follow<F>(bus: &Connection, changed: F) -> Result<Self>
    where
        F: Fn(&VmName, &UnitView, &UnitView) + Send + 'static,
    {
        let systemd = SystemdProxy::new(bus).await?;
        let rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .sender("org.freedesktop.systemd1")
            .interface("org.freedesktop.DBus.Properties")
            .member("PropertiesChanged")
            .path_namespace(UNIT_PREFIX)
            .build()?;
        let signals = MessageStream::for_match_rule(rule, bus, Some(SIGNAL_QUEUE)).await?;
        systemd.subscribe().await?;
        let units = Self(Arc::new(Inner { systemd, views: Mutex::default() }));
        let pattern = VmName::unit_pattern();
        let listed = units.0.systemd.list_units_by_patterns(&[], &[pattern]).await?;
        let known = listed.into_iter().filter_map(|(unit, _, _, active_state, _, _, path, ..)| {
            Some((VmName::from_unit(&unit)?, UnitView { active_state, ..UnitView::default() }, path))
        });
        let asked = known.map(async |(name, mut view, path)| {
            if !view.is_down() {
                // It may be gone by now.
                view.status = status_text(bus, path).await.unwrap_or_default();
            }
            units.sender(&name).send_replace(view);
        });
        futures_util::future::join_all(asked).await;
        let followed = units.clone();
        tokio::spawn(async move { followed.keep_up(signals, changed).await });
        Ok(units)
    }

    async fn keep_up(&self, mut signals: MessageStream, changed: impl Fn(&VmName, &UnitView, &UnitView)) {
        while let Some(message) = signals.next().await {
            let Ok(message) = message else { continue };
            let Some(name) = message.header().path().and_then(|path| vm_of(path)) else { continue };
            let Some(signal) = PropertiesChanged::from_message(message) else { continue };
            let Ok(arguments) = signal.args() else { continue };
            let text = |property: &str| -> Option<String> {
                let value = arguments.changed_properties.get(property)?;
                OwnedVariant::try_from(value).ok().and_then(|value| String::try_from(value).ok())
            };
            let (active_state, status) = (text("ActiveState"), text("StatusText"));
            let sender = self.sender(&name);
            let mut was = None;
            sender.send_if_modified(|view| {
                let old = view.clone();
                view.active_state = active_state.unwrap_or_else(|| old.active_state.clone());
                view.status = status.unwrap_or_else(|| old.status.clone());
                let differs = *view != old;
                was = differs.then_some(old);
                differs
            });
            if let Some(was) = was {
                let is = sender.borrow().clone();
                changed(&name, &was, &is);
            }
        }
        tracing::warn!("systemd's signals ended; states of VMs are no longer followed");
    }

    fn sender(&self, name: &VmName) -> watch::Sender<UnitView> {
        let mut views = self.0.views.lock().unwrap_or_else(PoisonError::into_inner);
        views.entry(name.clone()).or_insert_with(|| watch::Sender::new(UnitView::default())).clone()
    }

    pub fn view(&self, name: &VmName) -> UnitView {
        let views = self.0.views.lock().unwrap_or_else(PoisonError::into_inner);
        views.get(name).map(|view| view.borrow().clone()).unwrap_or_default()
    }

    /// The names of all units that systemd has spoken of.
    pub fn names(&self) -> Vec<VmName> {
        self.0.views.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// The active state now; [`Units::view`] may be an instant behind.
    pub async fn active_state(&self, name: &VmName) -> Result<String> {
        let unit = name.unit();
        let listed = self.0.systemd.list_units_by_patterns(&[], &[&unit]).await?;
        // What systemd has not loaded is inactive.
        let state = listed.into_iter().next().map(|(_, _, _, active_state, ..)| active_state);
        Ok(state.unwrap_or_else(|| UnitView::default().active_state))
    }

    /// Whether the unit has, or is about to have, a process.
    pub async fn is_up(&self, name: &VmName) -> Result<bool> {
        Ok(State::of(&self.active_state(name).await?, true).is_up())
    }

    /// Whether the unit runs and is not being stopped.
    pub async fn is_active(&self, name: &VmName) -> Result<bool> {
        Ok(State::of(&self.active_state(name).await?, true) == State::Running)
    }

    /// Forgets a VM that is deleted.
    pub fn forget(&self, name: &VmName) {
        self.0.views.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Starts the unit and returns when systemd is done with it: once the guest is ready, or with
    /// the result of the job (`failed`, `timeout`, `canceled`, …). `status` hears what the unit
    /// says of itself meanwhile.
    pub async fn start(&self, name: &VmName, status: impl Fn(&str)) -> Result<String> {
        let sender = self.sender(name);
        // What the unit said the last time says nothing of this time.
        sender.send_modify(|view| view.status.clear());
        let mut views = sender.subscribe();
        let mut removed = self.0.systemd.receive_job_removed().await?;
        let job = self.0.systemd.start_unit(&name.unit(), "replace").await.map_err(refused)?;
        loop {
            tokio::select! {
                signal = removed.next() => {
                    let signal = signal.ok_or_else(lost)?;
                    let arguments = signal.args()?;
                    if *arguments.job() == job {
                        return Ok(arguments.result().clone());
                    }
                }
                Ok(()) = views.changed() => status(&views.borrow_and_update().status),
            }
        }
    }

    /// Stops the unit and returns when it is down.
    ///
    /// # Errors
    /// `VmRunning` if somebody has systemd start it meanwhile.
    pub async fn stop(&self, name: &VmName) -> Result<()> {
        self.stop_and(name, async { Ok(()) }).await
    }

    /// Ends the unit without asking the guest. That it is meant to end, systemd knows before the
    /// VMM dies: nobody takes it for a crash.
    pub async fn end(&self, name: &VmName) -> Result<()> {
        self.stop_and(name, async {
            // There may be nothing left to kill.
            if let Err(error) = self.kill(name).await {
                tracing::debug!("{name}: {error}");
            }
            Ok(())
        })
        .await?;
        // To systemd a main process that was killed is a failure, also when that was the intention.
        self.reset_failed(name).await;
        Ok(())
    }

    async fn stop_and(&self, name: &VmName, meanwhile: impl Future<Output = Result<()>>) -> Result<()> {
        let mut removed = self.0.systemd.receive_job_removed().await?;
        let job = self.0.systemd.stop_unit(&name.unit(), "replace").await.map_err(refused)?;
        meanwhile.await?;
        loop {
            let signal = removed.next().await.ok_or_else(lost)?;
            let arguments = signal.args()?;
            if *arguments.job() != job {
                continue;
            }
            // However it went down, it is down; unless it is to come up again.
            return match arguments.result().as_str() {
                "canceled" => Err(ErrorKind::VmRunning
                    .error(format!("{name} was started by somebody else while it was being stopped"))),
                _ => Ok(()),
            };
        }
    }

    /// Starts the unit as soon as what it does now is over, without waiting for that.
    pub async fn start_again(&self, name: &VmName) -> Result<()> {
        self.0.systemd.start_unit(&name.unit(), "replace").await.map(drop).map_err(refused)
    }

    /// Kills everything in the unit.
    pub async fn kill(&self, name: &VmName) -> Result<()> {
        const SIGKILL: i32 = 9;
        self.0.systemd.kill_unit(&name.unit(), "all", SIGKILL).await.map_err(refused)
    }

    /// Sends a signal to the VMM.
    pub async fn signal(&self, name: &VmName, signal: i32) -> Result<()> {
        self.0.systemd.kill_unit(&name.unit(), "main", signal).await.map_err(refused)
    }

    /// The user that the unit's processes run as, while there are any.
    pub async fn user(&self, name: &VmName) -> Result<u32> {
        let bus = self.0.systemd.inner().connection();
        let unit = self.0.systemd.load_unit(&name.unit()).await.map_err(refused)?;
        Ok(ServiceProxy::builder(bus).path(unit).build().await?.uid().await?)
    }

    /// Whether somebody asked systemd to stop or to restart the unit.
    pub async fn is_stop_asked(&self, name: &VmName) -> Result<bool> {
        let bus = self.0.systemd.inner().connection();
        let unit = self.0.systemd.load_unit(&name.unit()).await.map_err(refused)?;
        let unit = UnitProxy::builder(bus).path(unit).build().await?;
        let (id, job) = unit.job().await?;
        if id == 0 {
            return Ok(false);
        }
        let job = JobProxy::builder(bus).path(job).build().await?;
        // A job that has ended meanwhile was none to stop a unit that is still stopping.
        Ok(job.job_type().await.is_ok_and(|kind| kind != "start"))
    }

    /// Sets the limits that the specification names, until the next boot; the rest stays as the
    /// unit's files say.
    pub async fn set_limits(&self, name: &VmName, limits: &Limits) -> Result<()> {
        let properties = limit_properties(limits);
        if properties.is_empty() {
            return Ok(());
        }
        self.0.systemd.set_unit_properties(&name.unit(), true, &properties).await.map_err(refused)
    }

    /// Takes limits away that the specification named before.
    pub async fn clear_limits(&self, name: &VmName, options: &[&str]) -> Result<()> {
        let none = |option: &&str| match *option {
            "memory_max" => Some(("MemoryMax", Variant::from(u64::MAX))),
            "cpu_quota" => Some(("CPUQuotaPerSecUSec", Variant::from(u64::MAX))),
            // systemd's own default of both.
            "io_weight" => Some(("IOWeight", Variant::from(u64::MAX))),
            "tasks_max" => Some(("TasksMax", Variant::from(u64::MAX))),
            _ => None,
        };
        let properties: Vec<_> = options.iter().filter_map(none).collect();
        if properties.is_empty() {
            return Ok(());
        }
        self.0.systemd.set_unit_properties(&name.unit(), true, &properties).await.map_err(refused)
    }

    /// What the unit has taken of the host since it started, as far as systemd accounts for it.
    pub async fn accounting(&self, name: &VmName) -> Result<VmStats> {
        let path = banger_api::path::encode(UNIT_PREFIX, &name.unit());
        let bus = self.0.systemd.inner().connection();
        let unit = ServiceProxy::builder(bus).path(path).build().await?;
        let (cpu, memory, peak, read, written, tasks) = tokio::join!(
            unit.cpu_usage_nsec(),
            unit.memory_current(),
            unit.memory_peak(),
            unit.io_read_bytes(),
            unit.io_write_bytes(),
            unit.tasks_current(),
        );
        let known = |value: zbus::Result<u64>| value.ok().filter(|&value| value != u64::MAX);
        Ok(VmStats {
            cpu_usec: known(cpu).map(|nsec| nsec / 1000),
            memory_bytes: known(memory),
            memory_peak_bytes: known(peak),
            io_read_bytes: known(read),
            io_written_bytes: known(written),
            tasks: known(tasks),
            ..VmStats::default()
        })
    }

    /// Lets systemd forget that the unit failed.
    pub async fn reset_failed(&self, name: &VmName) {
        if let Err(error) = self.0.systemd.reset_failed_unit(&name.unit()).await {
            tracing::debug!("{name}: {error}");
        }
    }

    /// Whether a process belongs to the VM's unit.
    pub async fn contains(&self, name: &VmName, pid: u32) -> Result<bool> {
        self.runs_in(&name.unit(), pid).await
    }

    /// Whether a process belongs to a unit.
    pub async fn runs_in(&self, unit: &str, pid: u32) -> Result<bool> {
        let path = self.0.systemd.get_unit_by_pid(pid).await?;
        Ok(banger_api::path::decode(UNIT_PREFIX, &path).is_some_and(|found| found == unit))
    }

    /// Where forwards listen.
    pub async fn listening(&self) -> Result<Vec<Listen>> {
        let patterns = [Listen::socket_pattern()];
        let listed = self.0.systemd.list_units_by_patterns(&["active"], &patterns).await?;
        Ok(listed.into_iter().filter_map(|(unit, ..)| Listen::from_socket_unit(&unit)).collect())
    }

    /// Listens for a forward. Returns whether that worked.
    pub async fn open(&self, listen: &Listen) -> Result<bool> {
        let unit = listen.socket_unit();
        let opened = self.job(self.0.systemd.start_unit(&unit, "replace")).await?;
        if opened != "done" {
            let _ = self.0.systemd.reset_failed_unit(&unit).await;
        }
        Ok(opened == "done")
    }

    /// Listens no longer for a forward, and breaks off what goes through it.
    pub async fn close(&self, listen: &Listen) -> Result<()> {
        self.end_unit(&listen.socket_unit()).await?;
        self.hang_up(listen).await
    }

    /// Breaks off what goes through a forward.
    pub async fn hang_up(&self, listen: &Listen) -> Result<()> {
        self.end_unit(&listen.service_unit()).await
    }

    async fn end_unit(&self, unit: &str) -> Result<()> {
        // What systemd has not loaded need not be loaded to be stopped.
        if self.0.systemd.list_units_by_patterns(&[], &[unit]).await?.is_empty() {
            return Ok(());
        }
        self.job(self.0.systemd.stop_unit(unit, "replace")).await.map(drop)
    }

    /// Has systemd do something and returns how that ended.
    async fn job(&self, asked: impl Future<Output = zbus::Result<OwnedObjectPath>>) -> Result<String> {
        // Before systemd is asked, or it could be quicker.
        let mut removed = self.0.systemd.receive_job_removed().await?;
        let job = asked.await.map_err(refused)?;
        loop {
            let signal = removed.next().await.ok_or_else(lost)?;
            let arguments = signal.args()?;
            if *arguments.job() == job {
                return Ok(arguments.result().clone());
            }
        }
    }
}

/// Limits as systemd's bus API names them, see org.freedesktop.systemd1(5).
fn limit_properties(limits: &Limits) -> Vec<(&'static str, Variant<'static>)> {
    const USEC_PER_PERCENT: u64 = 10_000;
    let mut properties: Vec<(&'static str, Variant<'static>)> = Vec::new();
    let mut add = |name, value: Option<u64>| properties.extend(value.map(|value| (name, value.into())));
    add("MemoryMax", limits.memory_max);
    add("CPUQuotaPerSecUSec", limits.cpu_quota.map(|percent| u64::from(percent) * USEC_PER_PERCENT));
    add("IOWeight", limits.io_weight.map(u64::from));
    add("TasksMax", limits.tasks_max);
    properties
}

async fn status_text(bus: &Connection, unit: OwnedObjectPath) -> zbus::Result<String> {
    let unit = ServiceProxy::builder(bus).path(unit).cache_properties(CacheProperties::No).build().await?;
    unit.status_text().await
}

fn vm_of(path: &str) -> Option<VmName> {
    VmName::from_unit(&banger_api::path::decode(UNIT_PREFIX, path)?)
}

fn refused(error: zbus::Error) -> Error {
    let error = Error::from(error);
    ErrorKind::UnitFailed.error(format!("systemd: {}", error.message()))
}

fn lost() -> Error {
    ErrorKind::ServiceUnavailable.error("the connection to systemd is lost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_limits_that_are_named_are_set() {
        assert!(limit_properties(&Limits::default()).is_empty());
        let limits = Limits { cpu_quota: Some(150), tasks_max: Some(9), ..Limits::default() };
        let expected = [("CPUQuotaPerSecUSec", 1_500_000u64.into()), ("TasksMax", 9u64.into())];
        assert_eq!(limit_properties(&limits), expected);
    }
}
