//! Long work as objects: `org.banger.Job1`.
//!
//! The caller of a method gets the job's id and path at once; the work goes on in a task of its
//! own, tells its stages and progress through [`Progress`], can be canceled, and its outcome stays
//! readable for [`KEEP`] after its end: the service does not leave before that, and if it is
//! killed or restarted, the next instance tells the outcome (see [`crate::record`]).

use std::fs::File;
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use banger_api::job::INTERFACE;
use banger_api::{Error, ErrorKind, Result, Service, now_usec};
use banger_core::event::Event;
use tokio::sync::watch;
use tracing::Instrument;
use zbus::message::Header;
use zbus::{Connection, ObjectPath, OwnedObjectPath, OwnedVariant, Variant, interface};

use crate::event::{self, JOB};
use crate::record::{self, Begun, Ended, Record};
use crate::{Gate, Hub, Idle};

/// How long a finished job stays readable.
const KEEP: Duration = Duration::from_secs(60);

/// Progress signals come at most this often.
const PROGRESS_PERIOD: Duration = Duration::from_millis(100);

/// Starts jobs. Cheap to clone.
#[derive(Clone)]
pub struct Jobs(Arc<Inner>);

struct Inner {
    service: Service,
    hub: Hub,
    gate: Gate,
    idle: Idle,
    next: AtomicU32,
}

/// One of several things that a stage does beside each other: its name, how much of it is done, and
/// how much there is to do, in the unit of the progress.
pub type Part = (String, u64, u64);

/// The one job as its work sees it. Cheap to clone.
#[derive(Clone)]
pub struct Progress(Arc<Job>);

pub(crate) struct Job {
    id: u32,
    kind: String,
    subject: String,
    path: OwnedObjectPath,
    hub: Hub,
    view: Mutex<View>,
    canceled: watch::Sender<bool>,
    ended: watch::Sender<bool>,
}

/// What a job's properties show.
struct View {
    state: &'static str,
    stage: String,
    stages: Vec<(String, u64)>,
    progress: (u64, u64, &'static str),
    progress_told: Instant,
    parts: Vec<Part>,
    parts_told: Instant,
    outcome: Result<String>,
}

impl Jobs {
    pub(crate) fn new(service: Service, hub: Hub, gate: Gate, idle: Idle) -> Self {
        // Ids grow with time, so that one from before a restart never means another job after it.
        let first = now_usec() / 1_000_000 % u64::from(u32::MAX);
        Self(Arc::new(Inner { service, hub, gate, idle, next: AtomicU32::new(first as u32) }))
    }

    /// Starts `work` as a job of the given kind on `subject`. What it returns is the job's outcome.
    pub async fn start<F, Fut>(&self, kind: &'static str, subject: &str, work: F) -> (u32, OwnedObjectPath)
    where
        F: FnOnce(Progress) -> Fut,
        Fut: Future<Output = Result<String>> + Send + 'static,
    {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let begun = Begun { id, kind: kind.to_owned(), subject: subject.to_owned() };
        let record = Record::begin(&begun);
        let job = self.publish(begun, None).await;
        let path = job.path.clone();
        let Inner { service, hub, idle, .. } = &*self.0;
        hub.emit(service.path, service.manager, "JobNew", (id, path.clone(), kind));

        event::note(&Event::JobBegun {
            job: &id.to_string(),
            service: service.id,
            work: kind,
            subject: &job.subject,
        });

        let (jobs, hold) = (self.clone(), idle.hold());
        // Whatever is logged for the job says so, at any level of the log.
        let span = tracing::error_span!("job", job = id);
        let task = tokio::spawn(JOB.scope(id, work(Progress(job.clone()))).instrument(span));
        tokio::spawn(async move {
            // A panic in the work is a failed job, not a job that hangs for ever.
            let outcome = task.await.unwrap_or_else(|error| Err(Error::internal(error)));
            // Before anybody is told, so that it stays true.
            if let Some(record) = record {
                record.end(&Ended::new(now_usec(), &outcome));
            }
            job.end(outcome);
            jobs.announce_end(&job);
            jobs.forget_after(&job, KEEP).await;
            drop(hold);
        });
        (id, path)
    }

    /// Takes over the jobs of the instance before this one, which left these records: what had
    /// ended can be read for the rest of its time, what had not has failed. Returns the latter, to
    /// be announced once there is somebody to hear it.
    pub(crate) async fn restore(&self, records: Vec<(String, File)>) -> Vec<Arc<Job>> {
        let mut interrupted = Vec::new();
        for (name, file) in records {
            let Some((record, begun, ended)) = Record::restore(name, file) else { continue };
            self.0.next.fetch_max(begun.id.saturating_add(1), Ordering::Relaxed);
            let was_running = ended.is_none();
            let (job, rest) = match ended {
                Some(ended) => {
                    let rest = remaining(ended.usec, now_usec());
                    (self.publish(begun, Some(ended.outcome())).await, rest)
                }
                None => {
                    let outcome = Err(self.interruption());
                    record.end(&Ended::new(now_usec(), &outcome));
                    (self.publish(begun, Some(outcome)).await, KEEP)
                }
            };
            let (jobs, hold) = (self.clone(), self.0.idle.hold());
            let ended = job.clone();
            tokio::spawn(async move {
                jobs.forget_after(&ended, rest).await;
                drop(hold);
            });
            if was_running {
                interrupted.push(job);
            }
        }
        interrupted
    }

    fn interruption(&self) -> Error {
        let message = format!("banger-{} ended while this was under way; run it again", self.0.service.id);
        ErrorKind::Interrupted.error(message)
    }

    /// Makes a job's object. One with an outcome has ended.
    async fn publish(&self, begun: Begun, outcome: Option<Result<String>>) -> Arc<Job> {
        let Inner { service, hub, gate, .. } = &*self.0;
        let path = ObjectPath::try_from(format!("{}/job/{}", service.path, begun.id))
            .expect("a service's path and a number")
            .into();
        let job = Arc::new(Job {
            id: begun.id,
            kind: begun.kind,
            subject: begun.subject,
            path,
            hub: hub.clone(),
            ended: watch::Sender::new(outcome.is_some()),
            view: Mutex::new(View {
                state: outcome.as_ref().map_or("running", state_after),
                stage: String::new(),
                stages: Vec::new(),
                progress: (0, 0, ""),
                progress_told: Instant::now(),
                parts: Vec::new(),
                parts_told: Instant::now(),
                outcome: outcome.unwrap_or_else(|| Ok(String::new())),
            }),
            canceled: watch::Sender::new(false),
        });
        hub.add(&job.path, JobObject { job: job.clone(), gate: gate.clone() }).await;
        job
    }

    /// Tells that a job has ended.
    pub(crate) fn announce_end(&self, job: &Job) {
        let Inner { service, hub, .. } = &*self.0;
        let (state, error) = {
            let view = job.view();
            let error = view.outcome.as_ref().err().map(|error| error.message().to_owned());
            (view.state, error.unwrap_or_default())
        };
        event::note(&Event::JobEnded {
            job: &job.id.to_string(),
            service: service.id,
            work: &job.kind,
            subject: &job.subject,
            result: state,
            error: &error,
        });
        let body = (job.id, job.path.clone(), job.subject.clone(), state);
        hub.emit(service.path, service.manager, "JobRemoved", body);
    }

    async fn forget_after(&self, job: &Job, rest: Duration) {
        tokio::time::sleep(rest).await;
        self.0.hub.remove(&job.path).await;
        record::forget(job.id);
    }
}

/// The state of a job with this outcome, and the result that `JobRemoved` tells.
fn state_after(outcome: &Result<String>) -> &'static str {
    match outcome {
        Ok(_) => "done",
        Err(error) if error.kind() == ErrorKind::JobCanceled => "canceled",
        Err(_) => "failed",
    }
}

/// For how long a job that ended then is still kept, whatever the clock did in between.
fn remaining(ended_usec: u64, now_usec: u64) -> Duration {
    KEEP.saturating_sub(Duration::from_micros(now_usec.saturating_sub(ended_usec)))
}

impl Progress {
    /// The work enters a stage.
    pub fn stage(&self, stage: &str) {
        {
            let mut view = self.0.view();
            if view.stage == stage {
                return;
            }
            view.stage = stage.to_owned();
            view.stages.push((stage.to_owned(), now_usec()));
            view.progress = (0, 0, "");
            view.parts.clear();
        }
        self.0.changed(vec![
            ("Stage", value(stage)),
            ("Progress", value((0u64, 0u64, ""))),
            ("Parts", value(Vec::<Part>::new())),
        ]);
    }

    /// How far the stage is: `completed` of `total` (0 if unknown), in `unit`s (`bytes`, `steps`).
    pub fn set(&self, completed: u64, total: u64, unit: &'static str) {
        {
            let mut view = self.0.view();
            view.progress = (completed, total, unit);
            if view.progress_told.elapsed() < PROGRESS_PERIOD {
                return;
            }
            view.progress_told = Instant::now();
        }
        self.0.changed(vec![("Progress", value((completed, total, unit)))]);
    }

    /// How far each of the things is that the stage does beside each other.
    pub fn set_parts(&self, parts: &[Part]) {
        {
            let mut view = self.0.view();
            if view.parts == parts {
                return;
            }
            view.parts = parts.to_vec();
            if view.parts_told.elapsed() < PROGRESS_PERIOD {
                return;
            }
            view.parts_told = Instant::now();
        }
        self.0.changed(vec![("Parts", value(parts.to_vec()))]);
    }

    /// Whether somebody asked for the end of the job.
    pub fn is_canceled(&self) -> bool {
        *self.0.canceled.borrow()
    }

    /// Returns once somebody asks for the end of the job.
    pub async fn canceled(&self) {
        let mut canceled = self.0.canceled.subscribe();
        // The sender lives as long as `self`.
        let _ = canceled.wait_for(|canceled| *canceled).await;
    }

    /// Runs `work`, dropping it if the job is canceled first.
    ///
    /// # Errors
    /// `JobCanceled`, or what `work` returns.
    pub async fn cancelable<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.canceled() => Err(ErrorKind::JobCanceled.error("the job was canceled")),
            outcome = work => outcome,
        }
    }
}

impl Job {
    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, properties: Vec<(&'static str, OwnedVariant)>) {
        self.hub.changed(&self.path, INTERFACE, properties);
    }

    fn cancel(&self) -> Result<()> {
        match self.view().state {
            "running" => self.canceled.send_replace(true),
            state => {
                return Err(ErrorKind::JobEnded
                    .error(format!("job {} has ended ({state}): there is nothing to cancel", self.id)));
            }
        };
        Ok(())
    }

    /// Records the outcome and says so.
    fn end(&self, outcome: Result<String>) {
        let state = state_after(&outcome);
        let mut properties = vec![("State", value(state))];
        match &outcome {
            Ok(outcome) => properties.push(("Outcome", value(outcome.as_str()))),
            Err(error) => {
                properties.push(("ErrorName", value(error.kind().name())));
                properties.push(("ErrorMessage", value(error.message())));
            }
        }
        {
            let mut view = self.view();
            view.state = state;
            view.outcome = outcome;
        }
        self.changed(properties);
        self.ended.send_replace(true);
    }
}

/// `org.banger.Job1`.
#[derive(Clone)]
struct JobObject {
    job: Arc<Job>,
    gate: Gate,
}

#[interface(name = "org.banger.Job1")]
impl JobObject {
    /// Ends the work as soon as possible and undoes what it did.
    async fn cancel(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        self.job.cancel()
    }

    /// Returns once the job has ended: its outcome, or the error it failed with.
    #[zbus(out_args("outcome"))]
    async fn wait(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String> {
        let _call = self.gate.enter(&header, connection, &[]).await?;
        let mut ended = self.job.ended.subscribe();
        let _ = ended.wait_for(|ended| *ended).await;
        self.job.view().outcome.clone()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> u32 {
        self.job.id
    }

    /// What is done: `pull`, `create`, `start`, …
    #[zbus(property(emits_changed_signal = "const"))]
    fn kind(&self) -> String {
        self.job.kind.clone()
    }

    /// The name of what it is done to.
    #[zbus(property(emits_changed_signal = "const"))]
    fn subject(&self) -> String {
        self.job.subject.clone()
    }

    /// `running`, `done`, `failed` or `canceled`.
    #[zbus(property)]
    fn state(&self) -> String {
        self.job.view().state.to_owned()
    }

    /// The stage the work is in, a lowercase word.
    #[zbus(property)]
    fn stage(&self) -> String {
        self.job.view().stage.clone()
    }

    /// Stages entered so far, each with the time it began at (microseconds since 1970).
    #[zbus(property(emits_changed_signal = "false"))]
    fn stages(&self) -> Vec<(String, u64)> {
        self.job.view().stages.clone()
    }

    /// Progress of the stage: completed, total (0 if unknown), unit (`bytes` or `steps`).
    #[zbus(property)]
    fn progress(&self) -> (u64, u64, String) {
        let (completed, total, unit) = self.job.view().progress;
        (completed, total, unit.to_owned())
    }

    /// What the stage does beside each other, such as the layers of an image that are fetched: name,
    /// completed and total, in the unit of the progress.
    #[zbus(property)]
    fn parts(&self) -> Vec<Part> {
        self.job.view().parts.clone()
    }

    /// What came of it (a name, an id), empty until then.
    #[zbus(property)]
    fn outcome(&self) -> String {
        self.job.view().outcome.clone().unwrap_or_default()
    }

    /// D-Bus name of the error, empty without one.
    #[zbus(property)]
    fn error_name(&self) -> String {
        self.job.view().outcome.as_ref().err().map(|error| error.kind().name().to_owned()).unwrap_or_default()
    }

    #[zbus(property)]
    fn error_message(&self) -> String {
        self.job.view().outcome.as_ref().err().map(|error| error.message().to_owned()).unwrap_or_default()
    }
}

fn value<'a>(value: impl Into<Variant<'a>>) -> OwnedVariant {
    OwnedVariant::try_from(value.into()).expect("no file descriptors in it")
}
