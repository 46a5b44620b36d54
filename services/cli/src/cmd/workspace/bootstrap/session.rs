//! The steps of a plan, as a session in the guest.

use std::collections::BTreeMap;
use std::io::{Write, stderr};
use std::pin::pin;

use banger_api::options::OptionsBuilder;
use banger_api::session::LogRecord;
use banger_api::{Error, ErrorKind, Result};
use banger_core::spool::STDERR;
use serde_json::json;

use super::plan::Step;
use super::{Place, ROOT};
use crate::args::Which;
use crate::cmd::named;
use crate::cmd::session::{Interrupts, wait};
use crate::exit::Status;
use crate::lines::Lines;
use crate::{Context, output};

/// The session. What is run as another user than what is before it has the second one.
const NAMES: [&str; 2] = ["bootstrap", "bootstrap-2"];

/// Runs steps one after the other; of each there are number, title, directory and script. Ends with the number of the one
/// that failed.
const RUN: &str = r#"while [ $# -gt 3 ]; do
    printf '==> %s\n' "$2"
    (cd -- "$3" && exec /bin/sh -ec "$4") </dev/null
    status=$?
    if [ $status -ne 0 ]; then
        printf '==> %s: failed with exit status %s\n' "$2" "$status" >&2
        exit "$1"
    fi
    shift 4
done"#;

/// What an exit status can tell apart.
const MAX_STEPS: usize = 100;

/// What did not work.
#[derive(Debug)]
pub struct Failure {
    /// From 0; none of those after it was tried.
    pub step: usize,
    pub error: Error,
}

/// Waits for the end of a session that a banger left behind when it was killed.
///
/// # Errors
/// Those of the guest.
pub async fn settle(context: &Context, vm: &str) -> Result<()> {
    for (name, state) in known(context, vm).await? {
        if matches!(state.as_str(), "starting" | "running" | "stopping") {
            context.output.note(&format!(
                "an earlier bootstrap of {vm} is still under way and is waited for; `banger session stop {vm} {name}` ends it"
            ));
            wait(context, vm, &name).await?;
        }
    }
    Ok(())
}

/// Makes room for sessions of the same names.
async fn remove(context: &Context, vm: &str) -> Result<()> {
    for (name, _) in known(context, vm).await? {
        let options = OptionsBuilder::new().set("force", Some(true)).build();
        context.bus.sessions().await?.remove_session(vm, &name, options).await?;
    }
    Ok(())
}

/// The sessions that there are, and their states.
async fn known(context: &Context, vm: &str) -> Result<Vec<(String, String)>> {
    let sessions = context.bus.sessions().await?.list_sessions().await?;
    let ours = sessions.into_iter().filter(|(of, name, ..)| of == vm && NAMES.contains(&name.as_str()));
    Ok(ours.map(|(_, name, state, ..)| (name, state)).collect())
}

/// Does all steps, up to one that fails. Shows what they say.
///
/// # Errors
/// `JobCanceled` if the caller does not want to wait; those of the guest.
pub async fn carry_out(
    context: &Context,
    place: Place<'_>,
    steps: &[Step],
    path: &str,
) -> Result<std::result::Result<(), Failure>> {
    if steps.len() > MAX_STEPS {
        return Err(ErrorKind::InvalidArgs
            .error(format!("{} steps for one workspace; {MAX_STEPS} are the most", steps.len())));
    }
    if !steps.is_empty() {
        remove(context, place.vm).await?;
    }
    let mut next = 0;
    let stages = steps.chunk_by(|one, other| user(one, place) == user(other, place));
    for (name, stage) in NAMES.into_iter().zip(stages) {
        let session = Session { context, vm: place.vm, name };
        let argv = command_line(stage, next, steps.len(), place.path);
        let status = session.run(&argv, user(&stage[0], place), path).await?;
        if status.code() != 0 {
            return Ok(Err(session.failure(steps, next, status)));
        }
        next += stage.len();
    }
    Ok(Ok(()))
}

fn user<'a>(step: &Step, place: Place<'a>) -> &'a str {
    if step.as_root { ROOT } else { place.owner.unwrap_or(ROOT) }
}

/// Steps of a session, the first of which has the index `first` of all.
fn command_line(steps: &[Step], first: usize, all: usize, directory: &str) -> Vec<String> {
    let mut words: Vec<_> = ["/bin/sh", "-c", RUN, "sh"].map(str::to_owned).into();
    for (number, step) in (first + 1..).zip(steps) {
        let directory = if step.as_root { "/" } else { directory };
        let title = format!("step {number} of {all}: {}", step.title);
        words.extend([number.to_string(), title, directory.to_owned(), step.script.clone()]);
    }
    words
}

struct Session<'a> {
    context: &'a Context,
    vm: &'a str,
    name: &'static str,
}

impl Session<'_> {
    async fn run(&self, argv: &[String], user: &str, path: &str) -> Result<Status> {
        let Self { context, vm, name } = self;
        let mut interrupts = Interrupts::new()?;
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let environment = BTreeMap::from([("PATH".to_owned(), path.to_owned())]);
        let options = OptionsBuilder::new().set("user", Some(user)).set("directory", Some("/")).build();
        let sessions = context.bus.sessions().await?;
        let starting = sessions.start_session(vm, name, &argv, &environment, options);
        interrupts.or_cancel(starting, "a signal came before the bootstrap had begun").await?;

        let which = Which { vm: (*vm).to_owned(), name: (*name).to_owned() };
        let mut screen = Screen::new(context, name);
        let interrupted = {
            let mut shown = pin!(named::follow(context, &which, |record| screen.show(&record)));
            let interrupted = tokio::select! {
                shown = &mut shown => shown.map(|()| false)?,
                _ = interrupts.next() => true,
            };
            if interrupted {
                let stopping = async {
                    context.bus.sessions().await?.stop_session(vm, name, Default::default()).await?;
                    shown.await
                };
                let left =
                    format!("the bootstrap of {vm} is not waited for any more; it may still be under way");
                interrupts.or_cancel(stopping, &left).await?;
            }
            interrupted
        };
        screen.end();
        if interrupted {
            return Err(ErrorKind::JobCanceled.error(format!(
                "the bootstrap of {vm} was interrupted; prepare the workspace again to go on"
            )));
        }
        wait(context, vm, name).await
    }

    /// What is said of steps that begin with the index `first`.
    fn failure(&self, steps: &[Step], first: usize, status: Status) -> Failure {
        let Self { vm, name, .. } = self;
        let number = usize::try_from(status.status).unwrap_or(0);
        let step = steps.get(number.wrapping_sub(1)).filter(|_| status.signal == 0 && number > first);
        let what = match step {
            Some(step) => format!("step {number} of {} ({}) failed", steps.len(), step.title),
            None if status.signal > 0 => format!("was ended by signal {}", status.signal),
            None => format!("ended with exit status {}", status.status),
        };
        let error = ErrorKind::BootstrapFailed.error(format!(
            "bootstrap of {vm}: {what}; `banger session logs {vm} {name}` has all that it said; prepare the workspace \
             again to go on from there, or with --no-bootstrap to do without"
        ));
        Failure { step: if step.is_some() { number - 1 } else { first }, error }
    }
}

/// Shows what a session says, on standard error: results are on standard output.
struct Screen<'a> {
    context: &'a Context,
    session: &'a str,
    /// Of standard output, and of standard error.
    lines: [Lines; 2],
}

impl<'a> Screen<'a> {
    fn new(context: &'a Context, session: &'a str) -> Self {
        Self { context, session, lines: [Lines::default(), Lines::default()] }
    }

    fn show(&mut self, (_, _, stream, data): &LogRecord) {
        let output = &self.context.output;
        if output.quiet {
            return;
        }
        if !output.json {
            // Who does not look at it does not make it fail.
            let _ = stderr().write_all(data);
            return;
        }
        let session = self.session;
        let (stream, lines) = match *stream == STDERR {
            true => ("stderr", &mut self.lines[1]),
            false => ("stdout", &mut self.lines[0]),
        };
        lines.push(data, &mut |line| tell(session, stream, line));
    }

    /// Shows what no end of a line came after.
    fn end(&mut self) {
        for (stream, lines) in ["stdout", "stderr"].into_iter().zip(&mut self.lines) {
            lines.end(&mut |line| tell(self.session, stream, line));
        }
    }
}

/// Returns that more is wanted.
fn tell(session: &str, stream: &str, line: &[u8]) -> bool {
    let line = String::from_utf8_lossy(line);
    output::tell(json!({ "session": session, "stream": stream, "line": line }));
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// As a guest would do it, on the host.
    #[test]
    fn steps_end_with_the_number_of_the_one_that_failed() {
        let scratch = tempfile::tempdir().expect("makes");
        let directory = scratch.path().to_str().expect("UTF-8");
        let run = |steps: &[(&str, &str, &str)]| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", RUN, "sh"]);
            for (number, title, script) in steps {
                command.args([number, title, directory, script]);
            }
            let output = command.output().expect("runs");
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
            (output.status.code(), text(output.stdout), text(output.stderr))
        };
        let (status, out, err) = run(&[
            ("3", "one", "pwd\ncat"),
            ("4", "two %s", "echo no\nfalse\ntrue"),
            ("5", "three", "echo never"),
        ]);
        assert_eq!(status, Some(4));
        assert_eq!(out, format!("==> one\n{directory}\n==> two %s\nno\n"));
        assert_eq!(err, "==> two %s: failed with exit status 1\n");
        assert_eq!(run(&[("1", "exits", "exit 0")]).0, Some(0));
        assert_eq!(run(&[]).0, Some(0));
    }
}
