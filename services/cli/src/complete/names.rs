//! Names of what there is now.

use std::collections::BTreeSet;
use std::time::Duration;

use banger_api::session::SessionRow;
use banger_api::vm::VmProxy;
use banger_api::{Error, Result, SESSIOND, VMD};
use clap::Arg;
use futures_util::future::join_all;
use zbus::connection::Builder;

use super::Typed;
use crate::away::{Away, Host};
use crate::bus::Bus;
use crate::cmd::states::{ANY, DOWN, UP};

/// Whoever pressed a key waits no longer.
const PATIENCE: Duration = Duration::from_secs(1);

pub const RUNNING: &[&str] = &["running"];

/// Names of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Those in one of these states.
    Vms(&'static [&'static str]),
    /// `VM:PATH`, or a path.
    Place,
    Images,
    /// Those that are there, and those that would be pulled.
    ImagesAndPresets,
    Kernels,
    Volumes,
    /// `VOLUME:PATH`.
    VolumesAt,
    /// Of the VM that is named before, as sessions are.
    Snapshots,
    Sessions,
    Groups,
    /// Ports of the host that lead to guests.
    Listens,
    /// Coding agents.
    Agents,
    Machines,
}

/// A name, and a word about it.
type Named = (String, Option<String>);

/// What an argument of a command is the name of.
pub fn of(path: &[&str], arg: &Arg) -> Option<What> {
    let id = arg.get_id().as_str();
    // Commands about VMs are there twice.
    let path = path.strip_prefix(&["vm"]).unwrap_or(path);
    Some(match (path, id) {
        (_, "vm" | "vms") => What::Vms(states(path)),
        (["cp"], "source" | "destination") => What::Place,
        (["run" | "create"], "image") | (["pull"] | ["image", "pull"], "reference") => What::ImagesAndPresets,
        (_, "image" | "images" | "like") => What::Images,
        (["image", "register"], "kernels") => return None,
        (_, "kernel" | "kernels") => What::Kernels,
        (["volume", "rm"], "volumes") => What::Volumes,
        (_, "volumes") => What::VolumesAt,
        (["snapshot", "rm"] | ["restore"], "snapshot" | "snapshots") => What::Snapshots,
        (["session", "rm"], "sessions") => What::Sessions,
        (["session", command], "name") if *command != "start" => What::Sessions,
        (_, "groups") => What::Groups,
        (["net", "forward", "rm"], "listens") => What::Listens,
        (_, "preset") => What::Agents,
        (_, "machine") => What::Machines,
        _ => return None,
    })
}

/// States of the VMs that a command makes sense for.
fn states(path: &[&str]) -> &'static [&'static str] {
    match path {
        ["start" | "reset" | "restore"] => DOWN,
        ["stop" | "restart" | "kill"] => UP,
        ["resume"] => &["paused"],
        ["exec" | "shell" | "pause" | "ping" | "ports" | "stats" | "fork"]
        | ["snapshot", "create"]
        | ["session", "start"]
        | ["workspace", "prepare" | "export" | "plan"] => RUNNING,
        _ => ANY,
    }
}

/// All there are, or none.
pub fn ask(what: What, typed: &Typed) -> Vec<Named> {
    match what {
        What::Machines => return machines(),
        What::Agents => return agents(),
        _ => {}
    }
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let asked = async { find(&connect(typed).await?, what, typed).await };
    runtime
        .block_on(async { tokio::time::timeout(PATIENCE, asked).await })
        .map_or_else(|_| Vec::new(), Result::unwrap_or_default)
}

async fn connect(typed: &Typed) -> Result<Bus> {
    let host = typed.outer().get_one::<Host>("host").cloned();
    let machine = typed.outer().get_one::<String>("machine").cloned();
    match Away::new(host, machine) {
        None => Ok(Bus::new(typed.outer().get_flag("peer"), None)),
        Some(away) => Ok(Bus::over(Builder::unix_stream(away.connect_at_once()?).build().await?)),
    }
}

async fn find(bus: &Bus, what: What, typed: &Typed) -> Result<Vec<Named>> {
    let vm = typed.values("vm").into_iter().next().unwrap_or_default();
    Ok(match what {
        What::Vms(states) => {
            let vms = bus.vms().await?.list_vms().await?.into_iter();
            let fitting = vms.filter(|(_, state, ..)| states.contains(&state.as_str()));
            fitting.map(|(name, state, ..)| (name, Some(state))).collect()
        }
        What::Images => images(bus).await?,
        What::ImagesAndPresets => {
            let presets = bus.images().await?.list_presets().await?.into_iter();
            let presets = presets.map(|(name, _, description)| (name, Some(description)));
            images(bus).await?.into_iter().chain(presets).collect()
        }
        What::Kernels => {
            let kernels = bus.images().await?.list_kernels().await?.into_iter();
            kernels.map(|(name, ..)| plain(name)).collect()
        }
        What::Volumes => volumes(bus).await?.map(plain).collect(),
        What::VolumesAt => volumes(bus).await?.map(|name| plain(format!("{name}:"))).collect(),
        What::Snapshots => {
            let snapshots = bus.vms().await?.list_snapshots(&vm).await?.into_iter();
            snapshots.map(|(name, ..)| plain(name)).collect()
        }
        What::Sessions => {
            let sessions = sessions(bus).await?.into_iter().filter(|(of, ..)| *of == vm);
            sessions.map(|(_, name, state, ..)| (name, Some(state))).collect()
        }
        What::Groups => groups(bus).await?.into_iter().map(plain).collect(),
        What::Listens => {
            let forwards = bus.vms().await?.list_forwards().await?.into_iter();
            let listen = |protocol: &str, listen: &str| {
                if protocol == "tcp" { listen.to_owned() } else { format!("{listen}/{protocol}") }
            };
            forwards.map(|(vm, protocol, at, ..)| (listen(&protocol, &at), Some(vm))).collect()
        }
        What::Place | What::Agents | What::Machines => Vec::new(),
    })
}

fn plain(name: String) -> Named {
    (name, None)
}

async fn images(bus: &Bus) -> Result<Vec<Named>> {
    let images = bus.images().await?.list_images().await?;
    Ok(images.into_iter().map(|(name, ..)| plain(name)).collect())
}

async fn volumes(bus: &Bus) -> Result<impl Iterator<Item = String>> {
    Ok(bus.vms().await?.list_volumes().await?.into_iter().map(|(name, ..)| name))
}

/// Without a question for a password, which the proxy would allow.
async fn sessions(bus: &Bus) -> Result<Vec<SessionRow>> {
    let connection = bus.connect(SESSIOND).await?;
    let service = Some(SESSIOND.bus_name);
    let reply =
        connection.call_method(service, SESSIOND.path, Some(SESSIOND.manager), "ListSessions", &()).await?;
    reply.body().deserialize().map_err(Error::from)
}

async fn groups(bus: &Bus) -> Result<BTreeSet<String>> {
    let vms = bus.vms().await?.list_vms().await?;
    let of_vm = vms.iter().map(async |(.., path)| {
        let vm: VmProxy<'static> = bus.object(VMD, path).await?;
        Result::Ok(vm.groups().await?)
    });
    Ok(join_all(of_vm).await.into_iter().flatten().flatten().collect())
}

fn agents() -> Vec<Named> {
    crate::cmd::agents().unwrap_or_default().into_iter().map(plain).collect()
}

/// The containers that systemd-machined knows, by its files, which everybody may list.
fn machines() -> Vec<Named> {
    let files = std::fs::read_dir("/run/systemd/machines").into_iter().flatten().flatten();
    let names = files.filter_map(|file| file.file_name().into_string().ok());
    names.filter(|name| !name.starts_with("unit:")).map(plain).collect()
}
