//! `run`: everything up to the moment at which this process becomes the VMM.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use banger_api::SERVICES;
use banger_api::now_usec;
use banger_api::vm::LaunchPlan;
use banger_core::event::Event;
use banger_core::guest::CONFIG_PORT;
use banger_core::name::VmName;
use banger_core::vm::Stage;
use banger_core::{acl, timeline};
use nix::sys::stat::Mode;
use nix::unistd::{User, mkfifo};
use rustix::fs::{XattrFlags, setxattr};

use crate::timeline::Timeline;
use crate::{ask_vmd, attend, note};

/// How long a helper may take to be ready.
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);

pub fn run(name: &VmName, runtime_dir: PathBuf) -> Result<()> {
    let begun = now_usec();
    note(&Event::VmStarting { vm: name.as_str() });
    let plan = prepare(name)?;
    let prepared = now_usec();
    for warning in &plan.warnings {
        crate::warn(warning);
    }
    // Before any socket is made in it.
    share(&runtime_dir, &service_users())
        .with_context(|| format!("cannot share {} with the services", runtime_dir.display()))?;
    let mut timeline = Timeline::new(&runtime_dir);
    timeline.mark_at(timeline::UNIT, begun);
    plan.timeline.iter().for_each(|(stage, usec)| timeline.mark_at(stage, *usec));
    timeline.mark_at(timeline::HELPERS, prepared);
    write(&runtime_dir.join(attend::CONFIG), &plan.guest_config)?;
    for (file, content) in &plan.files {
        write(&runtime_dir.join(file), content)?;
    }
    for (link, target) in &plan.links {
        let link = runtime_dir.join(link);
        symlink(target, &link).with_context(|| format!("cannot make the link {}", link.display()))?;
    }
    for pipe in &plan.pipes {
        mkfifo(&runtime_dir.join(pipe), Mode::S_IRUSR | Mode::S_IWUSR)
            .with_context(|| format!("cannot make the pipe {pipe}"))?;
    }
    for (command, ready) in &plan.helpers {
        start_helper(command, Path::new(ready))?;
    }
    start_attendant(name, &runtime_dir)?;
    timeline.mark(timeline::VMM);
    attend::tell(&[format!("STATUS={}", Stage::Kernel.as_str())]);
    let [program, arguments @ ..] = plan.command.as_slice() else { bail!("the launch plan is empty") };
    let error = Command::new(program)
        .args(arguments)
        .current_dir(&runtime_dir)
        // The VMM has no word with systemd: the attendant speaks for the guest.
        .env_remove("NOTIFY_SOCKET")
        .exec();
    Err(error).with_context(|| format!("cannot execute {program}"))
}

fn prepare(name: &VmName) -> Result<LaunchPlan> {
    ask_vmd(async |vmd| vmd.prepare_vm(name.as_str()).await)
}

/// Lets `users` reach the VM's sockets: enter the directory, which belongs to the VM's own user and
/// is closed to everybody else, and use what is made in it from now on.
fn share(directory: &Path, users: &[u32]) -> std::io::Result<()> {
    for list in [acl::ACCESS, acl::DEFAULT] {
        setxattr(directory, list, &acl::only(acl::ALL, users), XattrFlags::empty())?;
    }
    Ok(())
}

/// The users of the services that talk to guests.
fn service_users() -> Vec<u32> {
    SERVICES
        .iter()
        .filter(|service| [banger_api::VMD.id, banger_api::SESSIOND.id].contains(&service.id))
        .filter_map(|service| User::from_name(&format!("banger-{}", service.id)).ok().flatten())
        .map(|user| user.uid.as_raw())
        .collect()
}

fn write(path: &Path, content: &str) -> Result<()> {
    let write = || -> std::io::Result<()> {
        use std::io::Write;
        let options = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).clone();
        options.open(path)?.write_all(content.as_bytes())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn start_helper(command: &[String], ready: &Path) -> Result<()> {
    let [program, arguments @ ..] = command else { bail!("a helper of the launch plan is empty") };
    let mut child = Command::new(program)
        .args(arguments)
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot execute {program}"))?;
    let deadline = Instant::now() + HELPER_TIMEOUT;
    while !ready.exists() {
        if let Some(status) = child.try_wait()? {
            bail!("{program} ended before it was ready: {status}");
        }
        if Instant::now() > deadline {
            bail!("{program} did not make {} in {} s", ready.display(), HELPER_TIMEOUT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Leaves a process behind that listens where the guest will call. It gets the socket as its
/// standard input, bound before the VMM starts, so that the guest never calls too early.
fn start_attendant(name: &VmName, runtime_dir: &Path) -> Result<()> {
    let listener = attend::listen(runtime_dir, CONFIG_PORT)?;
    this_program()?
        .args(["attend", name.as_str()])
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .spawn()
        .context("cannot start the attendant")?;
    Ok(())
}

fn this_program() -> Result<Command> {
    Ok(Command::new(std::env::current_exe().context("cannot find this program")?))
}
