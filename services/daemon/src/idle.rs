//! When a service may leave: nothing under way and nothing asked of it for a while.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Counts what keeps the service needed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Idle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Calls under way.
    calls: AtomicUsize,
    /// Everything else that needs the service: jobs, peers, watches.
    holds: AtomicUsize,
    last: Mutex<Instant>,
    changed: Notify,
}

/// Keeps the service from leaving until it is dropped.
#[derive(Debug)]
pub struct Hold {
    idle: Idle,
    call: bool,
}

impl Idle {
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            calls: AtomicUsize::new(0),
            holds: AtomicUsize::new(0),
            last: Mutex::new(Instant::now()),
            changed: Notify::new(),
        }))
    }

    /// For a call under way, of a method or of whatever else the service offers: it is answered before
    /// the service leaves.
    pub fn call(&self) -> Hold {
        self.hold_as(true)
    }

    /// For anything else under way.
    pub fn hold(&self) -> Hold {
        self.hold_as(false)
    }

    fn hold_as(&self, call: bool) -> Hold {
        self.counter(call).fetch_add(1, Ordering::SeqCst);
        self.touch();
        Hold { idle: self.clone(), call }
    }

    fn counter(&self, call: bool) -> &AtomicUsize {
        if call { &self.0.calls } else { &self.0.holds }
    }

    /// Somebody did something just now.
    pub fn touch(&self) {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anything is under way.
    pub fn is_busy(&self) -> bool {
        self.0.calls.load(Ordering::SeqCst) > 0 || self.0.holds.load(Ordering::SeqCst) > 0
    }

    /// Returns once nothing has been under way for `timeout`.
    pub async fn expired(&self, timeout: Duration) {
        loop {
            let due = self.last() + timeout;
            if !self.is_busy() && Instant::now() >= due {
                return;
            }
            tokio::time::sleep_until(due.max(Instant::now() + timeout / 30).into()).await;
        }
    }

    /// Returns once no call is under way.
    pub(crate) async fn no_calls(&self) {
        loop {
            let changed = self.0.changed.notified();
            if self.0.calls.load(Ordering::SeqCst) == 0 {
                return;
            }
            changed.await;
        }
    }
}

impl Default for Idle {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.idle.touch();
        self.idle.counter(self.call).fetch_sub(1, Ordering::SeqCst);
        self.idle.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn holds_keep_it_and_the_clock_starts_at_the_last_one() {
        let idle = Idle::new();
        let hold = idle.hold();
        let expired = idle.expired(Duration::from_millis(20));
        tokio::pin!(expired);
        let early = tokio::time::timeout(Duration::from_millis(100), &mut expired).await;
        assert!(early.is_err());
        drop(hold);
        expired.await;
        assert!(!idle.is_busy());
    }

    #[tokio::test]
    async fn no_calls_waits_for_calls_only() {
        let idle = Idle::new();
        let _hold = idle.hold();
        idle.no_calls().await;
        let call = idle.call();
        let waiting = tokio::spawn({
            let idle = idle.clone();
            async move { idle.no_calls().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(call);
        waiting.await.expect("joins");
    }
}
