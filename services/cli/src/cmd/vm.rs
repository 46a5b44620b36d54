//! `banger vm`, and its short forms.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use banger_api::options::OptionsBuilder;
use banger_api::vm::{ForwardRow, VM, VmProxy, VmRow};
use banger_api::{Error, ErrorKind, Result, VMD};
use banger_core::glob;
use serde::Serialize;
use zbus::{OwnedObjectPath, Variant};

use super::states::{ANY, DOWN, UP};
use super::workspace;
use crate::Context;
use crate::args::{
    Attachment, Create, Egress, Expiry, Init, Kill, Machine, Ps, Restart, RestartPolicy, Rm, Set, Several,
    Spec, Start, Stop, Vm, Vmm, Vms,
};
use crate::exit::{self, SUCCESS};
use crate::job::{self, Ended};
use crate::objects::{Objects, Properties};
use crate::output::{ago, or_dash};

pub async fn dispatch(context: &Context, command: Vm) -> Result<u8> {
    match command {
        Vm::Create(arguments) => create_command(context, arguments).await?,
        Vm::Start(arguments) => return start(context, arguments).await,
        Vm::Stop(arguments) => return stop(context, arguments).await,
        Vm::Restart(arguments) => return restart(context, arguments).await,
        Vm::Kill(arguments) => return kill(context, arguments).await,
        Vm::Pause(arguments) => return pause(context, arguments).await,
        Vm::Resume(arguments) => return resume(context, arguments).await,
        Vm::Reset(arguments) => return reset(context, arguments).await,
        Vm::Set(arguments) => set(context, arguments).await?,
        Vm::Rm(arguments) => return remove(context, arguments).await,
        Vm::Show { vm } => show(context, &vm).await?,
        Vm::Check { vm } => return check(context, &vm).await,
        Vm::Ls => list(context, &Ps { all: true, ..Ps::default() }).await?,
        Vm::Reconcile => reconcile(context).await?,
    }
    Ok(SUCCESS)
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    state: String,
    image: String,
    address: String,
    health: String,
    ports: Vec<String>,
    labels: BTreeMap<String, String>,
    created_usec: u64,
    /// 0 if it does not run.
    started_usec: u64,
}

impl Row {
    /// `vm` is the VM's object, if it is there already, or still.
    fn read(listed: VmRow, vm: Option<&Properties<'_>>, forwards: &[ForwardRow]) -> Self {
        let (name, state, image, address, health, _) = listed;
        let ports = forwards.iter().filter(|forward| forward.0 == name).map(super::network::arrow).collect();
        let labels = vm.and_then(|vm| vm.get::<HashMap<String, String>>("Labels")).unwrap_or_default();
        let time = |property| vm.and_then(|vm| vm.get(property)).unwrap_or(0);
        Self {
            labels: labels.into_iter().collect(),
            created_usec: time("CreatedTimestamp"),
            started_usec: if UP.contains(&state.as_str()) { time("StartedTimestamp") } else { 0 },
            name,
            state,
            image,
            address,
            health,
            ports,
        }
    }

    fn is_wanted(&self, wanted: &Ps) -> bool {
        let states = match wanted.states.is_empty() {
            false => wanted.states.contains(&self.state),
            true => wanted.all || UP.contains(&self.state.as_str()),
        };
        let labels = wanted.labels.iter().all(|label| match label.split_once('=') {
            Some((key, value)) => self.labels.get(key).is_some_and(|found| found == value),
            None => self.labels.contains_key(label),
        });
        states && labels && wanted.pattern.as_ref().is_none_or(|pattern| glob::matches(pattern, &self.name))
    }
}

/// `ps`, and `vm ls`.
pub async fn list(context: &Context, wanted: &Ps) -> Result<()> {
    let vms = context.bus.vms().await?;
    let (listed, forwards, objects) =
        tokio::join!(vms.list_vms(), vms.list_forwards(), Objects::at(context, VMD));
    let (listed, forwards, objects) = (listed?, forwards?, objects?);
    let objects: HashMap<String, Properties<'_>> = objects.of(VM).map(|vm| (vm.text("Name"), vm)).collect();
    let row = |listed: VmRow| {
        let vm = objects.get(&listed.0);
        Row::read(listed, vm, &forwards)
    };
    let mut rows: Vec<Row> = listed.into_iter().map(row).collect();
    rows.retain(|row| row.is_wanted(wanted));
    context.output.rows(&rows, &["NAME", "STATE", "HEALTH", "IMAGE", "ADDRESS", "STARTED", "PORTS"], |row| {
        vec![
            row.name.clone(),
            row.state.clone(),
            or_dash(known(&row.health)),
            row.image.clone(),
            or_dash(&row.address),
            ago(row.started_usec),
            or_dash(&row.ports.join(", ")),
        ]
    })
}

/// A guest of which nothing is known is nothing to look at.
fn known(health: &str) -> &str {
    if health == "unknown" { "" } else { health }
}

async fn reconcile(context: &Context) -> Result<()> {
    let repairs = context.bus.vms().await?.reconcile().await?;
    if context.output.json {
        return context.output.value(&repairs);
    }
    repairs.iter().for_each(|repair| context.output.line(repair));
    if repairs.is_empty() {
        context.output.note("there was nothing to remove");
    }
    Ok(())
}

pub async fn show(context: &Context, name: &str) -> Result<()> {
    let path = context.bus.vms().await?.get_vm(name).await?;
    let vm: VmProxy<'static> = context.bus.object(VMD, &path).await?;
    context.output.description(&vm.describe().await?)
}

pub async fn create_command(context: &Context, arguments: Create) -> Result<()> {
    if let Some(name) = &arguments.name {
        check_free(context, name).await?;
    }
    super::run::provide(context, &arguments.image, arguments.machine.kernel.is_none()).await?;
    let name = arguments.name.as_deref().unwrap_or_default();
    let created = create(context, name, &arguments.image, &arguments.machine, arguments.start).await?;
    if context.output.json {
        return context.output.value(&serde_json::json!({"name": created.outcome}));
    }
    context.output.line(&created.outcome);
    Ok(())
}

/// Refuses a name before an image is pulled for it. The service says it with more certainty, later.
pub async fn check_free(context: &Context, name: &str) -> Result<()> {
    match context.bus.vms().await?.get_vm(name).await.map_err(Error::from) {
        Ok(_) => Err(ErrorKind::NameTaken.error(format!(
            "there is a VM {name} already: choose another name, or delete it with `banger rm {name}`"
        ))),
        Err(error) if error.kind() == ErrorKind::NoSuchVm => Ok(()),
        Err(error) => Err(error),
    }
}

/// Creates a VM. The job's outcome is its name.
pub async fn create(
    context: &Context,
    name: &str,
    image: &str,
    machine: &Machine,
    start: bool,
) -> Result<Ended> {
    let started = context.bus.vms().await?.create_vm(name, image, options(machine, start)?).await?;
    let title = if name.is_empty() { format!("create a VM of {image}") } else { format!("create {name}") };
    job::follow(context, VMD, started, &title).await
}

/// The options of `CreateVm`.
fn options(machine: &Machine, start: bool) -> Result<HashMap<&str, Variant<'_>>> {
    let builder =
        OptionsBuilder::new().set("kernel", machine.kernel.as_deref()).set("start", start.then_some(true));
    Ok(spec_options(builder, &machine.spec)?.build())
}

/// The options that `CreateVm` and `SetVm` share.
fn spec_options<'a>(builder: OptionsBuilder<'a>, spec: &'a Spec) -> Result<OptionsBuilder<'a>> {
    let vmm = spec.vmm.map(|vmm| match vmm {
        Vmm::Auto => "auto",
        Vmm::Qemu => "qemu",
        Vmm::Firecracker => "firecracker",
    });
    let init = spec.init.map(|init| match init {
        Init::Auto => "auto",
        Init::Agent => "agent",
        Init::Image => "image",
    });
    let egress = spec.egress.map(|egress| match egress {
        Egress::Open => "open",
        Egress::Closed => "closed",
        Egress::NoLan => "no-lan",
    });
    let rules: Vec<String> = spec.egress_allow.iter().map(ToString::to_string).collect();
    let restart = spec.restart.map(RestartPolicy::word);
    let expiry = spec.expiry.map(|expiry| match expiry {
        Expiry::Stop => "stop",
        Expiry::Delete => "delete",
    });
    let environment: HashMap<String, String> =
        super::session::variables(&spec.environment)?.into_iter().collect();
    let keys = ssh_keys(&spec.ssh_keys)?;
    let forwards: Vec<_> = spec.forwards.iter().map(super::network::arguments).collect();
    let labels: HashMap<String, String> = spec.labels.iter().cloned().collect();
    Ok(builder
        .set("cpus", spec.cpus)
        .set("memory", spec.memory)
        .set("disk", spec.disk)
        .set("work", spec.work)
        .set("volumes", Some(spec.volumes.clone()).filter(|volumes| !volumes.is_empty()))
        .set("kernel_arguments", spec.kernel_arguments.as_deref())
        .set("vmm", vmm)
        .set("init", init)
        .set("network", spec.network.or(spec.no_network.then_some(false)))
        .set("nat", spec.nat.or(spec.no_nat.then_some(false)))
        .set("forwards", Some(forwards).filter(|forwards| !forwards.is_empty()))
        .set("groups", Some(spec.groups.clone()).filter(|groups| !groups.is_empty()))
        .set("egress", egress)
        .set("egress_allow", Some(rules).filter(|rules| !rules.is_empty()))
        .set("environment", Some(environment).filter(|map| !map.is_empty()))
        .set("authorized_keys", Some(keys).filter(|keys| !keys.is_empty()))
        .set("labels", Some(labels).filter(|map| !map.is_empty()))
        .set("restart", restart)
        .set("autostart", spec.autostart)
        .set("ttl", spec.ttl)
        .set("expiry", expiry)
        .set("memory_max", spec.memory_max)
        .set("cpu_quota", spec.cpu_quota)
        .set("io_weight", spec.io_weight)
        .set("tasks_max", spec.tasks_max)
        .set("disk_bandwidth", spec.disk_bandwidth)
        .set("disk_iops", spec.disk_iops)
        .set("network_bandwidth", spec.network_bandwidth)
        .set("network_packets", spec.network_packets))
}

/// The keys in files of the caller's, one a line.
fn ssh_keys(files: &[PathBuf]) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|error| {
            ErrorKind::InvalidArgs.error(format!("cannot read the keys in {}: {error}", file.display()))
        })?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        keys.extend(lines.map(str::to_owned));
    }
    Ok(keys)
}

pub async fn set(context: &Context, arguments: Set) -> Result<()> {
    let list = |names: &[String]| Some(names.to_vec()).filter(|names| !names.is_empty());
    let mut builder = spec_options(OptionsBuilder::new(), &arguments.spec)?
        .set("remove_environment", list(&arguments.unsetenv))
        .set("remove_labels", list(&arguments.remove_label));
    if arguments.no_volumes {
        builder = builder.set("volumes", Some(Vec::<Attachment>::new()));
    }
    if arguments.no_publish {
        builder = builder.set("forwards", Some(Vec::<(String, String, u16, bool)>::new()));
    }
    if arguments.no_groups {
        builder = builder.set("groups", Some(Vec::<String>::new()));
    }
    if arguments.no_egress_allow {
        builder = builder.set("egress_allow", Some(Vec::<String>::new()));
    }
    if arguments.no_ssh_keys {
        builder = builder.set("authorized_keys", Some(Vec::<String>::new()));
    }
    let options = builder.build();
    if options.is_empty() {
        return Err(
            ErrorKind::InvalidArgs.error("nothing is to be changed; `banger set --help` lists what can be")
        );
    }
    let (live, next_start) = context.bus.vms().await?.set_vm(&arguments.vm, options).await?;
    if context.output.json {
        return context.output.value(&serde_json::json!({"live": live, "next_start": next_start}));
    }
    for (options, when) in [(live, "in effect"), (next_start, "from the next start")] {
        if !options.is_empty() {
            context.output.note(&format!("{when}: {}", options.join(", ")));
        }
    }
    Ok(())
}

/// The VMs that a command is about; with `--all` those in one of the states.
async fn select(context: &Context, vms: Vms, states: &[&str]) -> Result<Vec<String>> {
    if !vms.all {
        return Ok(vms.vms);
    }
    let all = context.bus.vms().await?.list_vms().await?;
    let wanted = all.into_iter().filter(|(_, state, ..)| states.contains(&state.as_str()));
    Ok(wanted.map(|(name, ..)| name).collect())
}

pub async fn start(context: &Context, arguments: Start) -> Result<u8> {
    let vms = select(context, arguments.vms, DOWN).await?;
    super::each(vms, async |name| start_one(context, &name).await.map(drop)).await
}

pub async fn start_one(context: &Context, name: &str) -> Result<Ended> {
    let started = context.bus.vms().await?.start_vm(name).await?;
    job::follow(context, VMD, started, &format!("start {name}")).await
}

pub async fn stop(context: &Context, arguments: Stop) -> Result<u8> {
    let vms = select(context, arguments.vms, UP).await?;
    super::each(vms, async |name| stop_one(context, &name, arguments.timeout).await).await
}

pub async fn stop_one(context: &Context, name: &str, timeout: Option<u32>) -> Result<()> {
    let options = OptionsBuilder::new().set("timeout", timeout).build();
    let stopping: (u32, OwnedObjectPath) = context.bus.vms().await?.stop_vm(name, options).await?;
    job::follow(context, VMD, stopping, &format!("stop {name}")).await.map(drop)
}

pub async fn restart(context: &Context, arguments: Restart) -> Result<u8> {
    let vms = select(context, arguments.vms, UP).await?;
    super::each(vms, async |name| {
        let options = OptionsBuilder::new().set("timeout", arguments.timeout).build();
        let restarting = context.bus.vms().await?.restart_vm(&name, options).await?;
        job::follow(context, VMD, restarting, &format!("restart {name}")).await.map(drop)
    })
    .await
}

pub async fn kill(context: &Context, arguments: Kill) -> Result<u8> {
    let vms = select(context, arguments.vms, UP).await?;
    super::each(vms, async |name| Ok(context.bus.vms().await?.kill_vm(&name, arguments.signal).await?)).await
}

pub async fn pause(context: &Context, arguments: Several) -> Result<u8> {
    let vms = select(context, arguments.vms, &["running"]).await?;
    super::each(vms, async |name| Ok(context.bus.vms().await?.pause_vm(&name).await?)).await
}

pub async fn resume(context: &Context, arguments: Several) -> Result<u8> {
    let vms = select(context, arguments.vms, &["paused"]).await?;
    super::each(vms, async |name| Ok(context.bus.vms().await?.resume_vm(&name).await?)).await
}

pub async fn reset(context: &Context, arguments: Several) -> Result<u8> {
    let vms = select(context, arguments.vms, DOWN).await?;
    super::each(vms, async |name| Ok(context.bus.vms().await?.reset_vm(&name).await?)).await
}

/// Says what keeps a VM from starting, with the exit code of the first thing, and what it would
/// start without.
async fn check(context: &Context, name: &str) -> Result<u8> {
    let (problems, warnings) = context.bus.vms().await?.check_vm(name).await?;
    if context.output.json {
        let shown: Vec<_> = problems
            .iter()
            .map(|(error, message)| serde_json::json!({"error": error, "message": message}))
            .collect();
        context.output.value(&serde_json::json!({"problems": shown, "warnings": warnings}))?;
    } else {
        warnings.iter().for_each(|warning| context.output.note(warning));
    }
    if problems.is_empty() && !context.output.json {
        context.output.note(&format!("nothing keeps {name} from starting"));
    }
    let mut code = SUCCESS;
    for (error, message) in problems.into_iter().rev() {
        let error = ErrorKind::from_name(&error).unwrap_or(ErrorKind::Internal).error(message);
        code = exit::code(&error, false);
        if !context.output.json {
            exit::complain(&error);
        }
    }
    Ok(code)
}

pub async fn remove(context: &Context, arguments: Rm) -> Result<u8> {
    let vms = select(context, arguments.vms, if arguments.force { ANY } else { DOWN }).await?;
    super::each(vms, async |name| match remove_one(context, &name, arguments.force).await {
        Err(error) if arguments.force && error.kind() == ErrorKind::NoSuchVm => Ok(()),
        Err(error) if error.kind() == ErrorKind::VmRunning => Err(error
            .kind()
            .error(format!("{name} is running; stop it first (banger stop {name}), or use -f"))),
        outcome => outcome,
    })
    .await
}

pub async fn remove_one(context: &Context, name: &str, force: bool) -> Result<()> {
    let options = OptionsBuilder::new().set("force", force.then_some(true)).build();
    context.bus.vms().await?.delete_vm(name, options).await?;
    // What the caller knows of a workspace in it is of no use any more; it may be kept if that fails.
    let _ = workspace::forget(name);
    Ok(())
}
