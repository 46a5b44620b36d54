//! `banger run`: from an image's name to a command's exit code.

use std::time::{Duration, Instant};

use banger_api::image::ImageProxy;
use banger_api::{ErrorKind, IMAGED, Result};

use super::session::unless_signaled;
use super::workspace::Tooling;
use super::{image as images, kernel, named, session, vm, workspace};
use crate::Context;
use crate::args::{Bootstrap, Process, Pull, Run, SessionStart, Settings, WorkspacePrepare};
use crate::exit::{self, SUCCESS};
use crate::job::{self, Ended};
use crate::output::{table, tell};
use crate::terminal;

/// Of the command of a VM that is left running.
const SESSION: &str = "main";

pub async fn run(context: &Context, mut arguments: Run) -> Result<u8> {
    let begun = Instant::now();
    let mut timings = Timings::default();
    if arguments.workspace.is_none() && arguments.bootstrap.is_given() {
        return Err(ErrorKind::InvalidArgs.error(
            "--bootstrap, --no-bootstrap and --preset are about a workspace; give one with --workspace DIR",
        ));
    }
    check_command(&arguments)?;
    let tooling = Tooling::load(&arguments.bootstrap)?;
    if let Some(name) = &arguments.name {
        vm::check_free(context, name).await?;
    }
    for ended in provide(context, &arguments.image, arguments.machine.kernel.is_none()).await? {
        timings.stages(&ended);
    }

    // In two steps, so that there is a name to clean up by, whatever happens from here on.
    let name = arguments.name.as_deref().unwrap_or_default();
    let created = vm::create(context, name, &arguments.image, &arguments.machine, false).await?;
    timings.stages(&created);
    let name = created.outcome;
    match vm::start_one(context, &name).await {
        Ok(started) => timings.stages(&started),
        Err(error) => {
            // Whoever cancels wants nothing left, whichever of the two steps it was.
            if arguments.rm || error.kind() == ErrorKind::JobCanceled {
                give_up(context, &name).await;
            } else {
                context.output.note(&format!("{name} is kept; banger rm -f {name} deletes it"));
            }
            return Err(error);
        }
    }

    let code = match prepare_workspace(context, &mut arguments, &tooling, &name, &mut timings).await {
        Ok(()) => inside(context, &arguments, &name, &mut timings).await,
        Err(error) => {
            if arguments.rm {
                give_up(context, &name).await;
            } else {
                context.output.note(&format!("{name} is left running"));
            }
            Err(error)
        }
    };
    if arguments.timings {
        timings.total(begun.elapsed());
        // Standard output is the guest's.
        match context.output.json {
            true => tell(timings.json()),
            false => tell(timings.table().trim_end()),
        }
    }
    code
}

/// What is said of a command that there is not would be lost.
fn check_command(arguments: &Run) -> Result<()> {
    let Settings { env, user, workdir, limits } = &arguments.process.settings;
    // The files of a workspace are the user's, too.
    let user = user.is_some() && arguments.workspace.is_none();
    let is_said = arguments.process.tty || !env.is_empty() || user || workdir.is_some() || !limits.is_empty();
    if arguments.detach && arguments.command.is_empty() && is_said {
        return Err(ErrorKind::InvalidArgs.error(
            "-e, -t, -u, -w and --limit are about a command: give one, or use --setenv for all that runs in the VM",
        ));
    }
    Ok(())
}

/// Makes the repository of the host the directory that the command runs in, with what both need.
async fn prepare_workspace(
    context: &Context,
    arguments: &mut Run,
    tooling: &Tooling,
    name: &str,
    timings: &mut Timings,
) -> Result<()> {
    let Some(directory) = &arguments.workspace else { return Ok(()) };
    let started = Instant::now();
    let wanted = WorkspacePrepare {
        mode: arguments.workspace_mode,
        to: workspace::DEFAULT_PATH.to_owned(),
        ignored: false,
        branch: None,
        from: None,
        force: false,
        chown: arguments.process.settings.user.clone(),
        bootstrap: Bootstrap::default(),
        vm: name.to_owned(),
        directory: directory.clone(),
    };
    let mut ready = unless_signaled(workspace::prepare_in(context, &wanted)).await?;
    timings.add("prepare workspace", started.elapsed());

    let started = Instant::now();
    ready.bootstrap(context, tooling, &wanted).await?;
    let Process { tty, no_stdin, settings, .. } = &mut arguments.process;
    let path = ready.equip(context, tooling, &wanted, settings.user.as_deref()).await?;
    timings.add("bootstrap", started.elapsed());
    // What the caller says comes last, and wins.
    let environment = path.map(|path| format!("PATH={path}")).into_iter();
    let environment = environment.chain(tooling.environment().iter().cloned());
    settings.env.splice(..0, environment);
    settings.workdir.get_or_insert(wanted.to);
    if arguments.command.is_empty() && !arguments.detach && !tooling.command().is_empty() {
        arguments.command = tooling.command().to_vec();
        *tty |= !*no_stdin && terminal::is_interactive();
    }
    Ok(())
}

/// Shows what the command changed. What it said is what was asked for, so this does not fail it.
async fn report_workspace(context: &Context, arguments: &Run, name: &str, timings: &mut Timings) {
    if arguments.workspace.is_none() {
        return;
    }
    let started = Instant::now();
    let reported = unless_signaled(workspace::report(context, name, arguments.patch.as_deref()));
    if let Err(error) = reported.await {
        exit::complain(&error.context("what changed in the workspace is not known"));
    }
    timings.add("export workspace", started.elapsed());
}

/// Deletes a VM that nobody wants any more.
async fn give_up(context: &Context, name: &str) {
    match vm::remove_one(context, name, true).await {
        Err(error) if error.kind() != ErrorKind::NoSuchVm => {
            exit::complain(&error.context(format!("{name} is not deleted")));
        }
        _ => {}
    }
}

/// What happens to a VM that runs.
async fn inside(context: &Context, arguments: &Run, name: &str, timings: &mut Timings) -> Result<u8> {
    if arguments.detach {
        return leave(context, arguments, name, timings).await;
    }
    let tty = arguments.process.tty || (arguments.command.is_empty() && terminal::is_interactive());
    let command = match arguments.command.as_slice() {
        [] if !tty => command_of_image(context, &arguments.image).await.unwrap_or_default(),
        command => command.to_vec(),
    };
    if command.is_empty() && !tty {
        return leave(context, arguments, name, timings).await;
    }

    let started = Instant::now();
    let status = if tty {
        session::on_terminal(context, name, &command, &arguments.process.settings).await
    } else {
        session::command_in(context, name, &command, &arguments.process).await
    };
    timings.add("command", started.elapsed());
    let canceled = status.as_ref().is_err_and(|error| error.kind() == ErrorKind::JobCanceled);
    let code = session::outcome(status);
    // Who did not wait for the command does not wait for what it changed.
    if !canceled {
        report_workspace(context, arguments, name, timings).await;
    }

    let started = Instant::now();
    let (stage, ended) = if arguments.rm {
        ("delete", vm::remove_one(context, name, true).await)
    } else {
        ("stop", vm::stop_one(context, name, None).await)
    };
    timings.add(stage, started.elapsed());
    match ended {
        Ok(()) if !arguments.rm => context.output.note(&format!(
            "{name} is stopped; banger start {name} starts it again, banger rm {name} deletes it"
        )),
        Ok(()) => {}
        // It may have been deleted from elsewhere.
        Err(error) if error.kind() == ErrorKind::NoSuchVm => {}
        // The command has run, and its exit code is what was asked for.
        Err(error) => exit::complain(&error.context(format!("{name} is left running"))),
    }
    Ok(code)
}

/// Leaves a VM running, and in it the command, if there is one.
async fn leave(context: &Context, arguments: &Run, name: &str, timings: &mut Timings) -> Result<u8> {
    if !arguments.command.is_empty() {
        let started = Instant::now();
        begin_session(context, arguments, name).await?;
        timings.add("command", started.elapsed());
    }
    match context.output.json {
        true => context.output.value(&serde_json::json!({"name": name}))?,
        false => context.output.line(name),
    }
    Ok(SUCCESS)
}

async fn begin_session(context: &Context, arguments: &Run, name: &str) -> Result<()> {
    let wanted = SessionStart {
        name: Some(SESSION.to_owned()),
        tty: arguments.process.tty,
        attach: false,
        restart: None,
        settings: arguments.process.settings.clone(),
        vm: name.to_owned(),
        command: arguments.command.clone(),
    };
    match unless_signaled(named::begin(context, &wanted)).await {
        Ok(session) => {
            context.output.note(&format!("`banger session logs -f {name} {session}` shows what it says"));
            Ok(())
        }
        Err(error) => {
            context.output.note(&format!("{name} is left running"));
            Err(error)
        }
    }
}

/// Gets the image and a kernel if they are not there, and says so.
pub async fn provide(context: &Context, image: &str, default_kernel: bool) -> Result<Vec<Ended>> {
    let service = context.bus.images().await?;
    let mut work = Vec::new();
    if default_kernel && service.list_kernels().await?.is_empty() {
        context.output.note("there is no kernel yet: importing the host's own");
        let started = Instant::now();
        kernel::import(context, &[kernel::HOST], "", None, None).await?;
        work.push(Ended {
            outcome: String::new(),
            stages: vec![("import kernel".to_owned(), started.elapsed())],
        });
    }
    match service.get_image(image).await.map_err(banger_api::Error::from) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NoSuchImage => {
            context.output.note(&format!("there is no image {image} yet: pulling it"));
            let wanted = Pull { reference: image.to_owned(), ..Pull::default() };
            let pulling = images::start_pull(context, &wanted).await?;
            let mut pulled = job::follow(context, IMAGED, pulling, &format!("pull {image}")).await?;
            for (stage, _) in &mut pulled.stages {
                stage.insert_str(0, "pull: ");
            }
            work.push(pulled);
        }
        Err(error) => return Err(error),
    }
    Ok(work)
}

/// Entrypoint and arguments that the image itself names, if any.
async fn command_of_image(context: &Context, image: &str) -> Result<Vec<String>> {
    let path = context.bus.images().await?.get_image(image).await?;
    let image: ImageProxy<'static> = context.bus.object(IMAGED, &path).await?;
    let description: serde_json::Value =
        serde_json::from_str(&image.describe().await?).map_err(banger_api::Error::internal)?;
    let words = |key: &str| {
        let value = description.get(key).or_else(|| description.get("config")?.get(key));
        value.and_then(|value| serde_json::from_value::<Vec<String>>(value.clone()).ok()).unwrap_or_default()
    };
    Ok([words("entrypoint"), words("cmd")].concat())
}

/// Stages and how long they took.
#[derive(Default)]
struct Timings(Vec<(String, Duration)>);

impl Timings {
    fn add(&mut self, stage: &str, took: Duration) {
        self.0.push((stage.to_owned(), took));
    }

    fn stages(&mut self, ended: &Ended) {
        self.0.extend(ended.stages.iter().cloned());
    }

    fn total(&mut self, took: Duration) {
        self.add("total", took);
    }

    fn json(&self) -> serde_json::Value {
        let milliseconds = |took: &Duration| took.as_secs_f64() * 1000.0;
        let stage = |(stage, took): &(String, Duration)| serde_json::json!({"stage": stage, "ms": milliseconds(took)});
        serde_json::json!({"timings": self.0.iter().map(stage).collect::<Vec<_>>()})
    }

    fn table(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .0
            .iter()
            .map(|(stage, took)| vec![stage.clone(), format!("{:>9.1}", took.as_secs_f64() * 1000.0)])
            .collect();
        table(&["STAGE", "       MS"], &rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timings_line_up() {
        let mut timings = Timings::default();
        timings.add("boot", Duration::from_micros(1_234_560));
        timings.total(Duration::from_millis(2));
        assert_eq!(timings.table(), "STAGE          MS\nboot       1234.6\ntotal         2.0\n");
        assert_eq!(timings.json()["timings"][1], serde_json::json!({"stage": "total", "ms": 2.0}));
    }
}
