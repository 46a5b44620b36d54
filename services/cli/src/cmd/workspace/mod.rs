//! `banger workspace`: git repositories in VMs, and what was done to them there.
//!
//! git runs on the host alone, as the caller: the guest needs none, and what it says of its own repository is not
//! believed.
//!
//! - [`source`]: what of a repository is sent
//! - [`prepare`]: a repository to a guest
//! - [`export`]: what the guest changed, as a patch or a branch
//! - [`bootstrap`]: tools in the guest
//! - [`plan`]: what follows from lists of files
//! - [`record`]: what was sent
//! - [`guest`]: files in the guest
//! - [`git`]: calls of git

mod bootstrap;
mod export;
mod git;
mod guest;
mod plan;
mod prepare;
mod record;
mod source;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use banger_api::options::OptionsBuilder;
use banger_api::{Error, ErrorKind, Result};
use banger_core::name::VmName;
use banger_files::listing::Kind;
use serde_json::json;

use crate::Context;
use crate::args::{Bootstrap, Workspace, WorkspaceExport, WorkspacePlan, WorkspacePrepare};
use crate::cmd::session::unless_signaled;
use crate::output::size;
use bootstrap::{Place, Row};
pub use bootstrap::{Tooling, agents};
use export::{Aim, Exported};
use guest::InVm;
use prepare::{Prepared, Target};
pub use record::Mode;
use record::Record;
use source::{Repository, Wish};

/// Where workspaces are in guests.
pub const DEFAULT_PATH: &str = "/workspace";

pub async fn dispatch(context: &Context, command: Workspace) -> Result<()> {
    match command {
        Workspace::Prepare(arguments) => prepare_vm(context, &arguments).await,
        Workspace::Export(arguments) => export_vm(context, &arguments).await,
        Workspace::Plan(arguments) => plan_vm(context, &arguments).await,
        Workspace::Tools => bootstrap::list_tools(context),
        Workspace::Presets => bootstrap::list_presets(context),
        Workspace::Forget { vm } => forget(&vm),
    }
}

async fn prepare_vm(context: &Context, arguments: &WorkspacePrepare) -> Result<()> {
    let began = Instant::now();
    let vm = &arguments.vm;
    let tooling = Tooling::load(&arguments.bootstrap)?;
    let mut ready = prepare_in(context, arguments).await?;
    let Prepared { record, sent, removed, bytes, .. } = &ready.prepared;
    let files = record.sent.values().filter(|entry| entry.kind != Kind::Directory).count();
    let seconds = began.elapsed().as_secs_f64();
    if !context.output.json {
        context.output.note(&format!(
            "{vm}:{}: {sent} of {files} files sent, {removed} removed, {} in {seconds:.1}s",
            record.path,
            size(*bytes)
        ));
    }
    let tools = ready.bootstrap(context, &tooling, arguments).await?;
    ready.equip(context, &tooling, arguments, arguments.chown.as_deref()).await?;
    if context.output.json {
        let Prepared { record, sent, removed, bytes, .. } = &ready.prepared;
        let first = record.parts.first();
        return context.output.value(&json!({
            "vm": vm, "path": record.path, "repository": record.repository, "mode": record.mode,
            "head": first.map(|part| &part.head), "commit": first.map(|part| &part.commit),
            "files": files, "sent": sent, "removed": removed, "bytes": bytes,
            "usec": (seconds * 1e6) as u64, "bootstrap": tools,
        }));
    }
    Ok(())
}

/// A workspace that was prepared. Nobody else does while there is this.
pub struct Ready {
    prepared: Prepared,
    _lock: OwnedFd,
}

impl Ready {
    /// Gets what the repository asks for.
    pub async fn bootstrap(
        &mut self,
        context: &Context,
        tooling: &Tooling,
        arguments: &WorkspacePrepare,
    ) -> Result<Vec<Row>> {
        let record = &mut self.prepared.record;
        let path = record.path.clone();
        let place = Place { vm: &arguments.vm, path: &path, owner: arguments.chown.as_deref() };
        tooling.bootstrap(context, place, record, &record_of(&arguments.vm)?).await
    }

    /// Gets a command of `user` what it has beside the workspace's files; see [`Tooling::equip`].
    pub async fn equip(
        &self,
        context: &Context,
        tooling: &Tooling,
        arguments: &WorkspacePrepare,
        user: Option<&str>,
    ) -> Result<Option<String>> {
        let record = &self.prepared.record;
        let place = Place { vm: &arguments.vm, path: &record.path, owner: arguments.chown.as_deref() };
        unless_signaled(tooling.equip(context, place, user, record)).await
    }
}

async fn plan_vm(context: &Context, arguments: &WorkspacePlan) -> Result<()> {
    let WorkspacePlan { to, chown, preset, vm, directory } = arguments;
    let given = Bootstrap { preset: preset.clone(), ..Bootstrap::default() };
    let tooling = Tooling::load(&given)?;
    let place = Place { vm, path: checked(to)?, owner: chown.as_deref() };
    let top = Repository::open(directory, PathBuf::new())?.top;
    let record = Record::load(&record_of(vm)?)?;
    let record = record.filter(|record| record.path == place.path && record.repository == top);
    // A VM that was reset has nothing of it any more.
    let is_there =
        match context.bus.sessions().await?.stat_file(vm, place.path, true).await.map_err(Error::from) {
            Err(error) if error.kind() == ErrorKind::NoSuchFile => false,
            stat => stat.map(|_| true)?,
        };
    bootstrap::show_plan(context, &tooling, place, &top, record.filter(|_| is_there)).await
}

/// A path in a VM, as it is given.
fn checked(path: &str) -> Result<&str> {
    let trimmed = path.trim_end_matches('/');
    if !trimmed.starts_with('/') || Path::new(trimmed).components().any(|part| part.as_os_str() == "..") {
        return Err(ErrorKind::InvalidArgs.error(format!("{path:?} is no absolute path below the root")));
    }
    Ok(trimmed)
}

/// Prepares a workspace under its lock.
pub async fn prepare_in(context: &Context, arguments: &WorkspacePrepare) -> Result<Ready> {
    let vm = &arguments.vm;
    let wish = Wish {
        directory: std::path::absolute(&arguments.directory)?,
        mode: arguments.mode,
        ignored: arguments.ignored,
        branch: arguments.branch.clone(),
        from: arguments.from.clone(),
    };
    if wish.mode == Mode::FullCopy && (wish.from.is_some() || wish.branch.is_some()) {
        return Err(ErrorKind::InvalidArgs
            .error("--from and --branch need --mode clone or shallow: a full copy is as it is"));
    }
    let path = checked(&arguments.to)?;
    // Told before anything is asked of the VM.
    source::repositories(&wish.directory)?;
    let record = record_of(vm)?;
    let lock = lock(context, vm, false).await?;
    let guest = InVm { context, vm, path, owner: arguments.chown.as_deref() };
    let target = Target { vm, path, record: &record, force: arguments.force };
    let prepared = prepare::prepare(&guest, &wish, &target).await;
    let prepared = prepared.map_err(|error| not_whole(error, vm))?;
    prepared.remarks.iter().for_each(|remark| context.output.note(remark));
    Ok(Ready { prepared, _lock: lock })
}

/// A VM that ends, or is deleted, does not wait for what is sent to it.
fn not_whole(error: Error, vm: &str) -> Error {
    match error.kind() {
        ErrorKind::VmNotRunning
        | ErrorKind::NoSuchVm
        | ErrorKind::VmPaused
        | ErrorKind::AgentUnreachable
        | ErrorKind::NoSuchTransfer
        | ErrorKind::InvalidArchive
        | ErrorKind::Interrupted => {
            error.context(format!("the workspace of VM {vm} is not whole; prepare it again"))
        }
        _ => error,
    }
}

async fn export_vm(context: &Context, arguments: &WorkspaceExport) -> Result<()> {
    let aim = Aim { base: arguments.base.as_deref(), branch: arguments.branch.as_deref() };
    let exported = export_from(context, &arguments.vm, &aim).await?;
    exported.remarks.iter().for_each(|remark| context.output.note(remark));
    if let Some(file) = &arguments.output {
        write_patch(file, &exported.patch)?;
    }
    let output = &context.output;
    if output.json {
        return output.value(&json!({
            "vm": arguments.vm, "changes": exported.changes, "bytes": exported.patch.len(),
            "branch": arguments.branch, "commit": exported.commit, "output": arguments.output,
        }));
    }
    if let (Some(branch), Some(commit)) = (&arguments.branch, &exported.commit) {
        output.note(&format!("branch {branch} is {commit}"));
    }
    if arguments.stat {
        crate::output::print(&exported.stat);
    } else if arguments.output.is_none() && arguments.branch.is_none() {
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(&exported.patch).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// What changed in a VM's workspace.
pub async fn export_from(context: &Context, vm: &str, aim: &Aim<'_>) -> Result<Exported> {
    let none = || {
        ErrorKind::NoSuchWorkspace.error(format!(
            "no workspace of VM {vm} was prepared here; `banger workspace prepare {vm} DIR` does it"
        ))
    };
    let record = Record::load(&record_of(vm)?)?.ok_or_else(none)?;
    if !record.whole {
        return Err(ErrorKind::NoSuchWorkspace.error(format!(
            "the workspace of VM {vm} is not whole; `banger workspace prepare {vm} DIR` completes it"
        )));
    }
    let _lock = lock(context, vm, true).await?;
    export::export(&InVm { context, vm, path: &record.path, owner: None }, &record, aim).await
}

/// After a command in the VM: what it changed, for people, and as a patch if that is wanted.
pub async fn report(context: &Context, vm: &str, patch: Option<&Path>) -> Result<()> {
    let exported = export_from(context, vm, &Aim::default()).await?;
    exported.remarks.iter().for_each(|remark| context.output.note(remark));
    if let Some(file) = patch {
        write_patch(file, &exported.patch)?;
    }
    context.output.note(if exported.stat.is_empty() {
        "nothing changed in the workspace"
    } else {
        exported.stat.trim_end()
    });
    Ok(())
}

fn write_patch(file: &Path, patch: &[u8]) -> Result<()> {
    std::fs::write(file, patch).map_err(|error| banger_files::failure(file, &error))
}

/// Removes what the host keeps of a workspace.
pub fn forget(vm: &str) -> Result<()> {
    let path = record_of(vm)?;
    let Some(record) = Record::load(&path)? else { return Ok(()) };
    source::let_go(&record.repository, vm, &record.parts);
    std::fs::remove_file(&path).map_err(|error| banger_files::failure(&path, &error))
}

fn record_of(vm: &str) -> Result<PathBuf> {
    let name = VmName::new(vm).map_err(|error| ErrorKind::InvalidArgs.error(error.to_string()))?;
    record::path(name.as_str())
}

/// The lock of a VM's workspace, until it is dropped.
async fn lock(context: &Context, vm: &str, shared: bool) -> Result<OwnedFd> {
    let options = OptionsBuilder::new().set("shared", shared.then_some(true)).build();
    Ok(context.bus.sessions().await?.lock_workspace(vm, options).await?.into())
}
