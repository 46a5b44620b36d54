//! Locks by name: whoever needs the same thing waits for the first and then finds it done. If the
//! first gives up, the next one goes on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

#[derive(Debug, Clone, Default)]
pub struct Keyed(Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>);

#[derive(Debug)]
pub struct KeyedGuard {
    keyed: Keyed,
    key: String,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Keyed {
    pub async fn lock(&self, key: &str) -> KeyedGuard {
        let lock = {
            let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            map.entry(key.to_owned()).or_default().clone()
        };
        KeyedGuard { keyed: self.clone(), key: key.to_owned(), guard: Some(lock.lock_owned().await) }
    }
}

impl Drop for KeyedGuard {
    fn drop(&mut self) {
        drop(self.guard.take());
        let mut map = self.keyed.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Only the map's own reference is left: nobody holds the lock or waits for it.
        if map.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            map.remove(&self.key);
        }
    }
}
