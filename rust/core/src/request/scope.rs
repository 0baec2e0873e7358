//! The time of one callback, in which a device's answers are gathered and not yet published.
//!
//! A driver must not see a part of what belongs together: a packet over three receive buffers, of
//! which it sees one, is a broken packet. So what a callback completes or sends is published when
//! the callback returns, of each queue at once.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The name of one scope, which no other has.
pub(crate) type ScopeId = NonZeroU64;

/// What can show a driver what was gathered for it.
pub(crate) trait Publish: Send + Sync {
    /// Publishes what was gathered in this scope. More may be published with it.
    fn publish(&self, scope: ScopeId);
}

#[derive(Default)]
struct Scope {
    depth: u32,
    id: Option<ScopeId>,
    gathered: Vec<Arc<dyn Publish>>,
}

impl Scope {
    fn gather(&mut self, queue: impl FnOnce() -> Arc<dyn Publish>) -> Option<ScopeId> {
        if self.depth == 0 {
            return None;
        }
        let queue = queue();
        let place = |queue: &Arc<dyn Publish>| Arc::as_ptr(queue).addr();
        if !self.gathered.iter().any(|known| place(known) == place(&queue)) {
            self.gathered.push(queue);
        }
        Some(*self.id.get_or_insert_with(next_id))
    }

    /// What is to be published, if this was the outermost callback.
    fn leave(&mut self) -> Option<(ScopeId, Vec<Arc<dyn Publish>>)> {
        self.depth = self.depth.saturating_sub(1);
        if self.depth > 0 {
            return None;
        }
        Some((self.id.take()?, std::mem::take(&mut self.gathered)))
    }
}

thread_local! {
    static SCOPE: RefCell<Scope> = RefCell::default();
}

/// A callback that runs on this thread. Dropping the outermost one publishes what was gathered.
#[derive(Debug)]
pub struct CallbackScope(PhantomData<*const ()>);

impl CallbackScope {
    /// A callback begins.
    pub fn enter() -> Self {
        // A thread that is ending has no scopes any more: what it completes is published at once.
        let _ = SCOPE.try_with(|scope| scope.borrow_mut().depth += 1);
        Self(PhantomData)
    }
}

impl Drop for CallbackScope {
    fn drop(&mut self) {
        let ended = SCOPE.try_with(|scope| scope.borrow_mut().leave());
        let Ok(Some((id, gathered))) = ended else { return };
        gathered.iter().for_each(|queue| queue.publish(id));
    }
}

/// Has `queue` published when the callback that runs on this thread returns; returns the name of
/// the callback's scope. `None`: no callback runs on this thread.
pub(crate) fn publish_later(queue: impl FnOnce() -> Arc<dyn Publish>) -> Option<ScopeId> {
    SCOPE.try_with(|scope| scope.borrow_mut().gather(queue)).ok().flatten()
}

fn next_id() -> ScopeId {
    static IDS: AtomicU64 = AtomicU64::new(1);
    // Billions of callbacks a second would take centuries to come round to zero.
    NonZeroU64::new(IDS.fetch_add(1, Ordering::Relaxed)).unwrap_or(NonZeroU64::MIN)
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};
    use std::thread;

    use super::*;

    /// Notes in which scope it is published.
    #[derive(Default)]
    struct Noted(Mutex<Vec<ScopeId>>);

    impl Noted {
        fn gather(self: &Arc<Self>) -> Option<ScopeId> {
            publish_later(|| Arc::clone(self) as Arc<dyn Publish>)
        }

        fn published(&self) -> Vec<ScopeId> {
            self.0.lock().unwrap().clone()
        }
    }

    impl Publish for Noted {
        fn publish(&self, scope: ScopeId) {
            self.0.lock().unwrap().push(scope);
        }
    }

    #[test]
    fn outside_callbacks_nothing_is_gathered() {
        let queue = Arc::new(Noted::default());
        assert_eq!(queue.gather(), None);
        drop(CallbackScope::enter());
        assert_eq!(queue.gather(), None);
        assert_eq!(queue.published(), []);
    }

    #[test]
    fn each_queue_is_published_once_when_the_outermost_callback_returns() {
        let [one, other] = [(); 2].map(|()| Arc::new(Noted::default()));
        let outer = CallbackScope::enter();
        let name = one.gather().unwrap();
        let inner = CallbackScope::enter();
        assert_eq!([one.gather(), other.gather(), one.gather()], [Some(name); 3]);
        drop(inner);
        assert_eq!((one.published(), other.published()), (vec![], vec![]));
        drop(outer);
        assert_eq!((one.published(), other.published()), (vec![name], vec![name]));
    }

    #[test]
    fn a_callback_that_gathers_nothing_publishes_nothing_of_the_last() {
        let queue = Arc::new(Noted::default());
        let scope = CallbackScope::enter();
        let first = queue.gather().unwrap();
        drop(scope);
        drop(CallbackScope::enter());
        let scope = CallbackScope::enter();
        let second = queue.gather().unwrap();
        drop(scope);
        assert_ne!(first, second);
        assert_eq!(queue.published(), [first, second]);
        assert_eq!(Arc::strong_count(&queue), 1, "nothing is kept of a callback that is over");
    }

    #[test]
    fn callbacks_of_two_threads_have_nothing_in_common() {
        let queue = Arc::new(Noted::default());
        let scope = CallbackScope::enter();
        let ours = queue.gather().unwrap();
        let (to, names) = mpsc::channel();
        let theirs = Arc::clone(&queue);
        thread::spawn(move || {
            to.send(theirs.gather()).unwrap();
            let scope = CallbackScope::enter();
            to.send(theirs.gather()).unwrap();
            drop(scope);
        })
        .join()
        .unwrap();
        assert_eq!(names.recv().unwrap(), None);
        let other = names.recv().unwrap().unwrap();
        assert_eq!(queue.published(), [other]);
        drop(scope);
        assert_eq!(queue.published(), [other, ours]);
    }

    #[test]
    fn a_callback_that_unwinds_publishes_what_it_has_completed() {
        let queue = Arc::new(Noted::default());
        let ours = Arc::clone(&queue);
        let unwound = thread::spawn(move || {
            let _scope = CallbackScope::enter();
            ours.gather();
            panic!("as the test wants");
        });
        unwound.join().unwrap_err();
        assert_eq!(queue.published().len(), 1);
    }
}
