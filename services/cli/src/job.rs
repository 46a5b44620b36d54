//! Long work of a service, followed to its end.
//!
//! Progress goes to standard error: a bar on a terminal, with rate and time left where it is of
//! bytes; a line per stage elsewhere; JSON lines with `--json`. The first Ctrl-C cancels the job and waits for it to undo what it did; the
//! second leaves it alone.

use std::collections::HashMap;
use std::time::Duration;

use banger_api::job::JobProxy;
use banger_api::{Error, ErrorKind, Result, Service, now_usec};
use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use zbus::fdo::PropertiesProxy;
use zbus::{OwnedObjectPath, Variant};

use crate::Context;
use crate::output::{size, tell};

/// What a job left.
#[derive(Debug, Clone)]
pub struct Ended {
    /// A name or an id.
    pub outcome: String,
    /// Stage by stage, how long it took.
    pub stages: Vec<(String, Duration)>,
}

/// Waits for a job, telling how it goes on. `title` says what it is, such as `pull debian:12`.
///
/// # Errors
/// What the job failed with; `ServiceUnavailable` if its service went away with it.
pub async fn follow(
    context: &Context,
    service: Service,
    (id, path): (u32, OwnedObjectPath),
    title: &str,
) -> Result<Ended> {
    let job: JobProxy<'static> = context.bus.object(service, &path).await?;
    let properties: PropertiesProxy<'static> = context.bus.object(service, &path).await?;
    let mut changes = properties.receive_properties_changed().await?;
    let mut reporter = Reporter::new(context, id, title);
    // What happened before we listened.
    if let Ok(stage) = job.stage().await {
        reporter.stage(&stage);
    }

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupted = false;
    let wait = job.wait();
    tokio::pin!(wait);
    let outcome = loop {
        tokio::select! {
            outcome = &mut wait => break outcome,
            Some(change) = changes.next() => {
                if let Ok(change) = change.args() {
                    reporter.update(&change.changed_properties);
                }
                continue;
            }
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if interrupted {
            return Err(
                ErrorKind::JobCanceled.error(format!("{title}: left alone; it may still be under way"))
            );
        }
        interrupted = true;
        reporter.canceling();
        let job = job.clone();
        tokio::spawn(async move { job.cancel().await });
    };
    let ended = now_usec();
    let outcome = match outcome.map_err(Error::from) {
        Err(error) if error.kind() == ErrorKind::ServiceUnavailable => {
            ask_successor(context, service, &path, title).await
        }
        outcome => outcome,
    };
    // Gone with the service, if that is gone.
    let stages = if outcome.is_ok() { job.stages().await.unwrap_or_default() } else { Vec::new() };
    reporter.end(&outcome);
    Ok(Ended { outcome: outcome?, stages: durations(&stages, ended) })
}

/// The service went away in the middle of a job; the instance after it knows what became of it.
async fn ask_successor(
    context: &Context,
    service: Service,
    path: &OwnedObjectPath,
    title: &str,
) -> Result<String> {
    let asked = async {
        let job: JobProxy<'static> = context.bus.renewed().object(service, path).await?;
        Ok(job.wait().await?)
    };
    asked.await.map_err(|error: Error| match error.kind() {
        ErrorKind::ServiceUnavailable | ErrorKind::Internal => ErrorKind::ServiceUnavailable.error(format!(
            "{title}: banger-{} went away in the middle of it; see what it says (journalctl -u banger-{0}) and try again",
            service.id
        )),
        _ => error.context(title),
    })
}

/// Each stage lasts until the next begins.
fn durations(stages: &[(String, u64)], ended: u64) -> Vec<(String, Duration)> {
    let ends = stages.iter().skip(1).map(|(_, begun)| *begun).chain([ended]);
    stages
        .iter()
        .zip(ends)
        .map(|((stage, begun), end)| (stage.clone(), Duration::from_micros(end.saturating_sub(*begun))))
        .collect()
}

struct Reporter<'a> {
    context: &'a Context,
    id: u32,
    title: &'a str,
    stage: String,
    bar: Option<ProgressBar>,
}

impl<'a> Reporter<'a> {
    fn new(context: &'a Context, id: u32, title: &'a str) -> Self {
        let bar = context.output.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.set_style(spinner());
            bar.set_prefix(title.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { context, id, title, stage: String::new(), bar }
    }

    fn update(&mut self, changed: &HashMap<&str, Variant<'_>>) {
        if let Some(Ok(stage)) = changed.get("Stage").map(<&str>::try_from) {
            self.stage(stage);
        }
        if let Some(Variant::Structure(progress)) = changed.get("Progress")
            && let [Variant::U64(completed), Variant::U64(total), Variant::Str(unit)] = progress.fields()
        {
            self.progress(*completed, *total, unit);
        }
        if let Some(parts) = changed.get("Parts").cloned().map(Vec::<(String, u64, u64)>::try_from)
            && let Ok(parts) = parts
        {
            self.parts(&parts);
        }
    }

    fn stage(&mut self, stage: &str) {
        if stage.is_empty() || stage == self.stage {
            return;
        }
        stage.clone_into(&mut self.stage);
        if let Some(bar) = &self.bar {
            bar.set_style(spinner());
            bar.set_message(stage.to_owned());
            // The rate is that of a stage.
            bar.reset();
        } else if self.context.output.json {
            self.json(json!({"stage": stage}));
        } else {
            self.context.output.note(&format!("{}: {stage}", self.title));
        }
    }

    fn progress(&self, completed: u64, total: u64, unit: &str) {
        if self.context.output.json {
            self.json(json!({
                "stage": self.stage, "completed": completed, "total": total, "unit": unit,
            }));
        }
        let Some(bar) = &self.bar else { return };
        let show = |value| if unit == "bytes" { size(value) } else { format!("{value}") };
        if total > 0 {
            bar.set_style(filling());
            bar.set_length(total);
            bar.set_position(completed);
            let pace = if unit == "bytes" {
                pace(total - completed.min(total), bar.per_sec())
            } else {
                String::new()
            };
            bar.set_message(format!("{} {}/{}{pace}", self.stage, show(completed), show(total)));
        } else if completed > 0 {
            bar.set_message(format!("{} {}", self.stage, show(completed)));
        }
    }

    /// What goes on beside each other. A bar shows them in sum.
    fn parts(&self, parts: &[(String, u64, u64)]) {
        if !self.context.output.json || parts.is_empty() {
            return;
        }
        let part = |(name, completed, total): &(String, u64, u64)| json!({"name": name, "completed": completed, "total": total});
        let parts: Vec<_> = parts.iter().map(part).collect();
        self.json(json!({"stage": self.stage, "parts": parts}));
    }

    fn canceling(&self) {
        self.context.output.note(&format!("{}: canceling", self.title));
    }

    fn end(&self, outcome: &Result<String>) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.context.output.json {
            self.json(match outcome {
                Ok(outcome) => json!({"state": "done", "outcome": outcome}),
                Err(error) => json!({
                    "state": "failed", "error": error.kind().name(), "message": error.message(),
                }),
            });
        }
    }

    /// One object a line on standard error; the result has standard output for itself.
    fn json(&self, mut event: serde_json::Value) {
        if self.context.output.quiet {
            return;
        }
        event["job"] = json!(self.id);
        event["title"] = json!(self.title);
        tell(event);
    }
}

impl Drop for Reporter<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

pub fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {prefix}: {msg}").expect("a constant")
}

pub fn filling() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {prefix}: {msg} [{wide_bar}]")
        .expect("a constant")
        .progress_chars("=> ")
}

/// Rate and time left; nothing while there is no rate to go by.
pub fn pace(left: u64, per_second: f64) -> String {
    if per_second < 1.0 || left == 0 {
        return String::new();
    }
    let seconds = (left as f64 / per_second).ceil() as u64;
    let time = match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}min {}s", seconds / 60, seconds % 60),
        _ => format!("{}h {}min", seconds / 3600, seconds / 60 % 60),
    };
    format!(", {}/s, {time} left", size(per_second as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paces() {
        assert_eq!(pace(10 << 20, 2.0 * 1048576.0), ", 2M/s, 5s left");
        assert_eq!(pace(1 << 30, 1048576.0), ", 1M/s, 17min 4s left");
        assert_eq!(pace(10_000, 1.5), ", 1B/s, 1h 51min left");
        assert_eq!(pace(1 << 30, 0.0), "");
        assert_eq!(pace(0, 1048576.0), "");
    }

    #[test]
    fn a_stage_lasts_until_the_next() {
        let stages = [("pull".to_owned(), 1_000), ("boot".to_owned(), 4_000)];
        let millis: Vec<_> =
            durations(&stages, 9_000).into_iter().map(|(stage, took)| (stage, took.as_millis())).collect();
        assert_eq!(millis, [("pull".to_owned(), 3), ("boot".to_owned(), 5)]);
    }
}
