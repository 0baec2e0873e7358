//! What one open device of the hypervisor has mapped, until the memory is taken back.
//!
//! Taking it back is final, and has an order: first the loans end, and nothing more is mapped or
//! copied through the device; then it is looked what requests still need; then the areas that are
//! left lose their pages. A call to the hypervisor that was under way meanwhile maps nothing: what
//! it brings is dropped.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak};

/// When so many areas are known, those that are gone are forgotten.
const FORGET_AT: usize = 64;

/// The areas that are mapped through a device.
#[derive(Debug)]
pub(super) struct Areas<T> {
    ended: RwLock<bool>,
    list: Mutex<Vec<Weak<T>>>,
}

impl<T> Default for Areas<T> {
    fn default() -> Self {
        Self { ended: RwLock::default(), list: Mutex::default() }
    }
}

impl<T> Areas<T> {
    /// Keeps the memory from being taken back while the guard lives.
    ///
    /// # Errors
    /// They have ended.
    pub(super) fn hold(&self) -> io::Result<RwLockReadGuard<'_, bool>> {
        let ended = self.ended.read().unwrap_or_else(PoisonError::into_inner);
        if *ended { Err(io::Error::other("the memory was taken back")) } else { Ok(ended) }
    }

    /// Returns whether the memory was taken back.
    pub(super) fn have_ended(&self) -> bool {
        *self.ended.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an area that was mapped.
    ///
    /// # Errors
    /// The loans have ended meanwhile. The area is gone.
    pub(super) fn add(&self, area: T) -> io::Result<Arc<T>> {
        let _held = self.hold()?;
        let area = Arc::new(area);
        let mut areas = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if areas.len() >= FORGET_AT {
            areas.retain(|area| area.strong_count() > 0);
        }
        areas.push(Arc::downgrade(&area));
        Ok(area)
    }

    /// From now on no area is noted, and none is mapped.
    pub(super) fn end(&self) {
        *self.ended.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Returns the areas that somebody has still.
    pub(super) fn left(&self) -> Vec<Arc<T>> {
        let areas = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        areas.iter().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_that_comes_after_the_end_is_dropped() {
        let areas = Areas::default();
        let area = Arc::new(());
        let early = areas.add(Arc::clone(&area)).unwrap();
        areas.end();
        assert!(areas.hold().is_err());
        areas.add(Arc::clone(&area)).unwrap_err();
        assert_eq!(Arc::strong_count(&area), 2);
        assert_eq!(areas.left().len(), 1);
        drop(early);
        assert_eq!(areas.left().len(), 0);
    }

    #[test]
    fn areas_that_are_gone_are_forgotten() {
        let areas = Areas::default();
        let kept = areas.add(0).unwrap();
        (0..10 * FORGET_AT).for_each(|number| drop(areas.add(number)));
        assert!(areas.list.lock().unwrap().len() <= FORGET_AT);
        assert_eq!(areas.left(), [kept]);
    }
}
