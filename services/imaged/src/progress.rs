//! How far work is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::error::Result;

/// How often it is looked how far work is.
const PERIOD: Duration = Duration::from_millis(100);

/// One of several things that go on beside each other: its name, bytes done, bytes in all.
pub type Part = (String, u64, u64);

/// Who wants to know.
pub trait Progress: Send + Sync {
    /// A new stage begins, of which nothing is done and which has no parts.
    fn stage(&self, stage: &str);
    fn bytes(&self, completed: u64, total: u64);
    fn parts(&self, parts: &[Part]);
}

/// Nobody.
impl Progress for () {
    fn stage(&self, _stage: &str) {}
    fn bytes(&self, _completed: u64, _total: u64) {}
    fn parts(&self, _parts: &[Part]) {}
}

impl Progress for banger_daemon::Progress {
    fn stage(&self, stage: &str) {
        banger_daemon::Progress::stage(self, stage);
    }

    fn bytes(&self, completed: u64, total: u64) {
        self.set(completed, total, "bytes");
    }

    fn parts(&self, parts: &[Part]) {
        self.set_parts(parts);
    }
}

/// Passes on how far shared work is, to all who wait for it.
#[derive(Debug, Default)]
pub struct Relay(watch::Sender<View>);

#[derive(Debug, Default, Clone)]
struct View {
    stage: String,
    bytes: (u64, u64),
    parts: Arc<[Part]>,
}

impl Progress for Relay {
    fn stage(&self, stage: &str) {
        self.0.send_replace(View { stage: stage.to_owned(), ..View::default() });
    }

    fn bytes(&self, completed: u64, total: u64) {
        self.0.send_modify(|view| view.bytes = (completed, total));
    }

    fn parts(&self, parts: &[Part]) {
        self.0.send_modify(|view| view.parts = parts.into());
    }
}

impl Relay {
    /// Runs `work`, telling `progress` what it tells the relay.
    pub async fn follow<T>(&self, progress: &dyn Progress, work: impl Future<Output = T>) -> T {
        let mut views = self.0.subscribe();
        views.mark_changed();
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                outcome = &mut work => return outcome,
                // The sender lives as long as `self`.
                _ = views.changed() => views.borrow_and_update().clone().tell(progress),
            }
        }
    }
}

impl View {
    fn tell(&self, progress: &dyn Progress) {
        if self.stage.is_empty() {
            return;
        }
        progress.stage(&self.stage);
        if !self.parts.is_empty() {
            progress.parts(&self.parts);
        }
        if self.bytes != (0, 0) {
            progress.bytes(self.bytes.0, self.bytes.1);
        }
    }
}

/// Runs `work` and tells `progress` ten times a second how far `counter` is.
pub async fn watched<T>(
    progress: &dyn Progress,
    counter: &AtomicU64,
    total: u64,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let tell = || {
        let completed = counter.load(Ordering::Relaxed);
        // A total of 0 is one that nobody knows.
        progress.bytes(if total == 0 { completed } else { completed.min(total) }, total);
    };
    periodically(tell, work).await
}

/// Runs `work` and calls `tell` ten times a second, and once more at the end.
pub async fn periodically<T>(tell: impl Fn(), work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    let mut tick = tokio::time::interval(PERIOD);
    loop {
        tokio::select! {
            biased;
            outcome = &mut work => {
                tell();
                return outcome;
            }
            _ = tick.tick() => tell(),
        }
    }
}
