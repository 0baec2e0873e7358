//! Numbers about a device's Python side, for monitoring.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Classes of exceptions that are counted by their names; the others are counted together. A device
/// may make up any number.
const MOST_CLASSES: usize = 64;

/// Letters of a class's name: labels are cut where they are long, and those of two classes must differ.
const MOST_LETTERS: usize = 50;

/// What stands for those that there is no room for.
const OTHERS: &str = "other";

/// Numbers about a device's Python side since its back-end started.
#[derive(Debug, Default)]
pub(crate) struct DeviceNumbers {
    held: AtomicU64,
    exceptions: Mutex<BTreeMap<String, u64>>,
}

/// A request that was answered and is held by a view, until this is dropped.
#[derive(Debug)]
pub(crate) struct HeldRequest(Arc<DeviceNumbers>);

impl DeviceNumbers {
    /// A callback has raised an exception of this class.
    pub(crate) fn raised(&self, class: &str) {
        let class: String = class.chars().take(MOST_LETTERS).collect();
        let mut exceptions = self.lock();
        let has_room = exceptions.len() < MOST_CLASSES || exceptions.contains_key(&class);
        *exceptions.entry(if has_room { class } else { OTHERS.to_owned() }).or_default() += 1;
    }

    /// A request is held from now on.
    pub(crate) fn hold(self: &Arc<Self>) -> HeldRequest {
        self.held.fetch_add(1, Ordering::Relaxed);
        HeldRequest(Arc::clone(self))
    }

    /// Requests that are held now.
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// How often exceptions of which class were raised.
    pub(crate) fn exceptions(&self) -> Vec<(String, u64)> {
        self.lock().iter().map(|(class, &count)| (class.clone(), count)).collect()
    }

    /// Held for moments, and never while Python code runs or the interpreter is waited for.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.exceptions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for HeldRequest {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}
