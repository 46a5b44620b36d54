//! One lock for each name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use banger_core::name::VmName;
use tokio::sync::{Mutex as Lock, OwnedMutexGuard};

use super::lock;

/// Locks that come into being when they are asked for.
#[derive(Default)]
pub struct Locks(Mutex<HashMap<VmName, Arc<Lock<()>>>>);

impl Locks {
    fn get(&self, name: &VmName) -> Arc<Lock<()>> {
        lock(&self.0).entry(name.clone()).or_default().clone()
    }

    pub async fn of(&self, name: &VmName) -> OwnedMutexGuard<()> {
        self.get(name).lock_owned().await
    }

    /// `None` if somebody has it.
    pub fn try_of(&self, name: &VmName) -> Option<OwnedMutexGuard<()>> {
        self.get(name).try_lock_owned().ok()
    }

    /// Drops the lock of a name that is gone, which the caller may hold, unless somebody waits for
    /// it.
    pub fn forget(&self, name: &VmName) {
        const MAP_AND_CALLER: usize = 2;
        let mut locks = lock(&self.0);
        if locks.get(name).is_some_and(|lock| Arc::strong_count(lock) <= MAP_AND_CALLER) {
            locks.remove(name);
        }
    }
}
