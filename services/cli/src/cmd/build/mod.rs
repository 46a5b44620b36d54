//! `banger image build`: from a file to an image.
//!
//! The steps are done in a VM that is thrown away. After each script and each installation of packages the VM
//! is promoted to an image named by the digest of all that led to it ([`plan`]), which is
//! where a later build goes on. What the image says of programs is laid over the last of these in the end,
//! without a VM.
//!
//! - [`mod@file`]: what can be said
//! - [`plan`]: what there is to do
//! - [`content`]: files of the host
//! - [`vm`]: the VM, and what is done in it
//! - [`log`]: what is told meanwhile

mod content;
mod file;
mod log;
mod plan;
mod vm;

use std::collections::{BTreeMap, HashSet};

use banger_api::image::{BUILD_PREFIX, ImageProxy};
use banger_api::options::OptionsBuilder;
use banger_api::{Error, ErrorKind, IMAGED, Result};

use super::packages::INSTALL;
use super::session::Interrupts;
use super::{image, run};
use crate::Context;
use crate::args::{Build as Arguments, Pull};
use crate::exit::{self, SUCCESS, Status};
use content::Content;
use file::{Build, Copy};
use log::Log;
use plan::{Plan, Task, Work};
use vm::{BuildVm, Command, Input};

/// Finds the numbers of an owner, as the guest knows them.
const OWNER: &str = r#"file=$(mktemp) && chown -- "$1" "$file" && stat -c %u:%g "$file"; status=$?; rm -f "$file"; exit $status"#;

/// Makes directories that are not there yet: the owner, then mode and path of each.
const DIRECTORIES: &str = r#"owner=$1; shift
while [ $# -gt 0 ]; do
    [ -d "$2" ] || { mkdir -p -- "$2" && chmod "$1" "$2" && chown "$owner" "$2"; } || exit
    shift 2
done"#;

/// So many directories in one command line.
const AT_ONCE: usize = 500;

pub async fn build(context: &Context, arguments: Arguments) -> Result<u8> {
    let build = file::read(&arguments.file)?;
    let values = plan::arguments(&build, &arguments.arguments)?;
    let name = arguments.name.clone().or_else(|| build.name.clone()).ok_or_else(|| {
        ErrorKind::InvalidArgs.error("the image needs a name: give it with --name, or in the file")
    })?;
    let base = base(context, &build, arguments.pull).await?;
    let content = |copy: &Copy| Content::find(&build.directory, copy)?.digest();
    let plan = Plan::new(&build, &base, &values, content)?;
    let log = Log::new(&context.output, plan.steps);

    let cached = match arguments.no_cache {
        true => 0,
        false => plan.cached(&kept(context).await?),
    };
    let (known, tasks) = plan.tasks.split_at(cached);
    known.iter().for_each(|task| log.cached(task));
    let from = known.last().map_or_else(|| base.clone(), Task::image);
    if !tasks.is_empty()
        && let Some(failure) = make(context, &build, &name, &from, tasks, &log).await?
    {
        exit::say(&failure);
        return Ok(exit::STEP_FAILED);
    }
    let last = plan.tasks.last().map_or(base, Task::image);
    let options = OptionsBuilder::new().set("replace", Some(true));
    context.bus.images().await?.derive_image(&last, &name, plan.settings.put(options).build()).await?;
    if context.output.json {
        let built =
            serde_json::json!({"name": name, "steps": plan.steps, "done": tasks.len(), "cached": cached});
        context.output.value(&built)?;
    } else {
        context.output.line(&name);
    }
    Ok(SUCCESS)
}

/// The id of the image that it begins with, which is pulled if it is not there.
async fn base(context: &Context, build: &Build, pull: bool) -> Result<String> {
    if pull {
        let wanted = Pull { reference: build.base.clone(), ..Pull::default() };
        let pulling = image::start_pull(context, &wanted).await?;
        crate::job::follow(context, IMAGED, pulling, &format!("pull {}", build.base)).await?;
    }
    run::provide(context, &build.base, true).await?;
    let path = context.bus.images().await?.get_image(&build.base).await?;
    let image: ImageProxy<'static> = context.bus.object(IMAGED, &path).await?;
    Ok(image.id().await?)
}

/// The names of all images that builds have kept.
async fn kept(context: &Context) -> Result<HashSet<String>> {
    let options = OptionsBuilder::new().set("pattern", Some(format!("{BUILD_PREFIX}*"))).build();
    let images = context.bus.images().await?.list_images_filtered(options).await?;
    Ok(images.into_iter().map(|(name, ..)| name).collect())
}

/// Does tasks in a VM of the image `from`, and keeps their results. Says what is to be told of a task
/// that failed.
async fn make(
    context: &Context,
    build: &Build,
    purpose: &str,
    from: &str,
    tasks: &[Task],
    log: &Log<'_>,
) -> Result<Option<String>> {
    let mut interrupts = Interrupts::new()?;
    let name = BuildVm::fresh_name();
    let made = async {
        let started =
            BuildVm::start(context, &mut interrupts, name.clone(), from, &build.machine, purpose).await;
        let mut vm = started?;
        for task in tasks {
            log.begun(task);
            let place = format!("{} ({})", log.place(task), task.title);
            let failure = match perform(&mut vm, build, task, log).await {
                Ok(status) if status.code() == 0 => None,
                Ok(status) => Some(format!("{place} {}", ended(status))),
                Err(error) if is_of_step(error.kind()) => Some(format!("{place}: {}", error.message())),
                Err(error) if error.kind() == ErrorKind::JobCanceled => return Err(error),
                Err(error) => return Err(error.context(place)),
            };
            if let Some(failure) = failure {
                log.failed(task, &failure);
                return Ok(Some(failure));
            }
            if task.keep {
                vm.promote(&task.image()).await?;
            }
            log.done(task);
        }
        Ok(None)
    };
    let made = made.await;
    let discarded = vm::discard(context, &name).await;
    // What counts is why there is no image.
    match (made, discarded) {
        (Ok(made), discarded) => discarded.map(|()| made),
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(second)) => {
            exit::complain(&second);
            Err(error)
        }
    }
}

/// Whether what could not be started is at fault, and not banger.
fn is_of_step(kind: ErrorKind) -> bool {
    use ErrorKind as E;
    matches!(kind, E::CommandNotFound | E::NotExecutable | E::NoSuchUser | E::NoSuchDirectory)
}

fn ended(status: Status) -> String {
    match status {
        Status { signal: 1.., .. } => format!("was ended by signal {}", status.signal),
        Status { status, .. } => format!("failed with exit status {status}"),
    }
}

async fn perform(vm: &mut BuildVm<'_>, build: &Build, task: &Task, log: &Log<'_>) -> Result<Status> {
    let tell = |stream: &'static str, line: &[u8]| log.line(task, stream, line);
    match &task.work {
        Work::Packages { names, environment } => {
            let command = Command { environment: environment.clone(), ..as_root(INSTALL, names) };
            vm.run(&command, None, tell).await
        }
        Work::Run { argv, environment, user, directory } => {
            let command = Command {
                argv: argv.iter().map(String::as_str).collect(),
                environment: environment.clone(),
                user: user.as_deref(),
                directory: directory.as_deref(),
            };
            vm.run(&command, None, tell).await
        }
        Work::Copy(copy) => put(vm, build, copy, tell).await,
    }
}

/// A shell script, whatever user the image's programs run as.
fn as_root<'a>(script: &'a str, words: &'a [String]) -> Command<'a> {
    let argv = ["/bin/sh", "-c", script, "sh"].into_iter().chain(words.iter().map(String::as_str)).collect();
    Command { argv, environment: BTreeMap::new(), user: Some("0:0"), directory: Some("/") }
}

/// Copies files into the VM.
async fn put(
    vm: &mut BuildVm<'_>,
    build: &Build,
    copy: &Copy,
    mut tell: impl FnMut(&'static str, &[u8]),
) -> Result<Status> {
    let content = Content::find(&build.directory, copy)?;
    let digest = content.digest()?;
    let mut numbers = String::new();
    let owner = [copy.owner.clone()];
    let status = vm
        .run(&as_root(OWNER, &owner), None, |stream, line| match stream {
            "stdout" => numbers = String::from_utf8_lossy(line).into_owned(),
            _ => tell(stream, line),
        })
        .await?;
    if status.code() != 0 {
        return Ok(status);
    }
    let owner =
        numbers
            .split_once(':')
            .and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)))
            .ok_or_else(|| Error::internal(format!("the guest says that {} is {numbers:?}", copy.owner)))?;
    for directories in content.directories.chunks(AT_ONCE) {
        let words = directories.iter().flat_map(|(path, mode)| [format!("{mode:o}"), path.clone()]);
        let words: Vec<String> = std::iter::once(numbers.clone()).chain(words).collect();
        let status = vm.run(&as_root(DIRECTORIES, &words), None, &mut tell).await?;
        if status.code() != 0 {
            return Ok(status);
        }
    }
    let input: Input = Box::new(move |mut out| match content.write(&mut out, owner)? == digest {
        true => Ok(()),
        false => {
            Err(ErrorKind::InvalidArgs.error("the files were changed while they were copied: build again"))
        }
    });
    vm.run(&as_root("exec tar -xpf - -C /", &[]), Some(input), &mut tell).await
}
