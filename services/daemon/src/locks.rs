//! Locks by name: whoever needs the same thing waits for the first and then finds it done. If the
//! first gives up, the next one goes on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as Lock, OwnedMutexGuard};

/// They come into being when they are asked for, and go with who has them. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Locks(Arc<Mutex<HashMap<String, Arc<Lock<()>>>>>);

/// A lock that is held.
#[derive(Debug)]
pub struct Held {
    locks: Locks,
    name: String,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Locks {
    pub async fn lock(&self, name: &str) -> Held {
        let guard = self.get(name).lock_owned().await;
        self.held(name, guard)
    }

    /// `None` if somebody has it.
    pub fn try_lock(&self, name: &str) -> Option<Held> {
        let guard = self.get(name).try_lock_owned().ok()?;
        Some(self.held(name, guard))
    }

    fn get(&self, name: &str) -> Arc<Lock<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        locks.entry(name.to_owned()).or_default().clone()
    }

    fn held(&self, name: &str, guard: OwnedMutexGuard<()>) -> Held {
        Held { locks: self.clone(), name: name.to_owned(), guard: Some(guard) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.guard.take());
        let mut locks = self.locks.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Only the map's own reference is left: nobody has the lock or waits for it.
        if locks.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_name_is_one_lock_and_goes_with_the_last() {
        let locks = Locks::default();
        let web = locks.lock("web").await;
        assert!(locks.try_lock("web").is_none());
        let database = locks.try_lock("db").expect("another name");
        let waits = tokio::spawn({
            let locks = locks.clone();
            async move { drop(locks.lock("web").await) }
        });
        tokio::task::yield_now().await;
        drop((web, database));
        waits.await.expect("has its turn");
        assert!(locks.0.lock().expect("nobody panicked").is_empty());
    }
}
