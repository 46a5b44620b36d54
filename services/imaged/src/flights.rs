//! Work that several wait for: who comes first begins it, who comes later joins. It belongs to none
//! of them, so one that gives up disturbs no other; when the last one does, the work is dropped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use crate::error::{Error, Result};

/// Errors are shared by all who wait, so they are of the kind that can be.
type Work<T> = BoxFuture<'static, banger_api::Result<T>>;

/// What is under way, by name. `P` tells how far it is.
pub struct Flights<P, T>(Arc<Mutex<HashMap<String, Entry<P, T>>>>);

struct Entry<P, T> {
    work: WeakShared<Work<T>>,
    progress: Arc<P>,
}

/// A seat in one.
pub struct Flight<P, T> {
    pub progress: Arc<P>,
    /// Somebody else began it, with what they had.
    pub joined: bool,
    work: Shared<Work<T>>,
}

impl<P: Default, T: Clone> Flights<P, T> {
    /// Joins the work of this name, or begins it: also anew if it has failed and others have yet to hear
    /// of that, for they may try again as well, and would get the same failure from each other for ever.
    pub fn join<F>(&self, name: &str, begin: impl FnOnce(Arc<P>) -> F) -> Flight<P, T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Entry { work, progress }) = flights.get(name)
            && let Some(work) = work.upgrade()
            && !matches!(work.peek(), Some(Err(_)))
        {
            return Flight { progress: progress.clone(), joined: true, work };
        }
        flights.retain(|_, entry| entry.work.upgrade().is_some());
        let progress = Arc::new(P::default());
        let work = begin(progress.clone()).map(|outcome| outcome.map_err(banger_api::Error::from));
        let work = work.boxed().shared();
        if let Some(weak) = work.downgrade() {
            flights.insert(name.to_owned(), Entry { work: weak, progress: progress.clone() });
        }
        Flight { progress, joined: false, work }
    }
}

impl<P, T: Clone> Flight<P, T> {
    /// Takes part until the work has ended.
    pub async fn land(self) -> Result<T> {
        self.work.await.map_err(Error::Base)
    }
}

impl<P, T> Clone for Flights<P, T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<P, T> Default for Flights<P, T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    /// Counts the work that has begun and not ended.
    struct Guard(Arc<AtomicU32>);

    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn work(
        running: &Arc<AtomicU32>,
        end: oneshot::Receiver<u32>,
    ) -> impl Future<Output = Result<u32>> + use<> {
        running.fetch_add(1, Ordering::SeqCst);
        let guard = Guard(running.clone());
        async move {
            let _guard = guard;
            end.await.map_err(|_| Error::Canceled)
        }
    }

    #[tokio::test]
    async fn one_works_for_all_and_the_last_to_leave_ends_it() {
        let flights = Flights::<AtomicU32, u32>::default();
        let running = Arc::new(AtomicU32::new(0));
        let (end, ended) = oneshot::channel();
        let first = flights.join("x", |_| work(&running, ended));
        let nothing = |_| async { unreachable!("it is under way") };
        let (second, third) = (flights.join("x", nothing), flights.join("x", nothing));
        assert_eq!((first.joined, second.joined), (false, true));
        assert!(Arc::ptr_eq(&first.progress, &third.progress));
        // The one that began it is polled, and leaves.
        let first = tokio::spawn(first.land());
        let second = tokio::spawn(second.land());
        tokio::task::yield_now().await;
        first.abort();
        assert!(first.await.is_err_and(|error| error.is_cancelled()));
        assert_eq!(running.load(Ordering::SeqCst), 1);
        end.send(7).expect("somebody waits");
        assert_eq!(second.await.expect("joins").expect("ends well"), 7);
        assert_eq!(third.land().await.expect("ends well"), 7);
        assert_eq!(running.load(Ordering::SeqCst), 0);

        let (end, ended) = oneshot::channel();
        let again = flights.join("x", |_| work(&running, ended));
        assert!(!again.joined, "what has ended is begun anew");
        drop(again);
        assert_eq!(running.load(Ordering::SeqCst), 0);
        assert!(end.send(7).is_err(), "the last one has left");
    }

    #[tokio::test]
    async fn what_has_failed_is_begun_anew_though_others_have_yet_to_hear() {
        let flights = Flights::<AtomicU32, u32>::default();
        let first = flights.join("x", |_| async { Err(Error::Canceled) });
        let [second, third] = [(); 2].map(|()| flights.join("x", |_| async { unreachable!("it waits") }));
        assert!(second.joined && third.joined);
        first.land().await.expect_err("fails");

        let again = flights.join("x", |_| async { Ok(7) });
        assert!(!again.joined);
        second.land().await.expect_err("sits in the one that failed");
        let late = flights.join("x", |_| async { unreachable!("it is under way") });
        assert_eq!(again.land().await.expect("ends well"), 7);
        let later = flights.join("x", |_| async { unreachable!("what it came to is there") });
        assert_eq!((late.joined, later.joined), (true, true));
        assert_eq!(late.land().await.expect("ends well") + later.land().await.expect("ends well"), 14);
        third.land().await.expect_err("sits in the one that failed");
    }
}
