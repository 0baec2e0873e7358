//! The time of one callback, in which a device's answers are gathered.
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
    /// Publishes what was gathered in this scope, and may be published more.
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

/// Has `queue` published when the callback that runs on this thread returns; the name of its
/// scope. `None`: no callback runs here.
pub(crate) fn publish_later(queue: impl FnOnce() -> Arc<dyn Publish>) -> Option<ScopeId> {
    SCOPE.try_with(|scope| scope.borrow_mut().gather(queue)).ok().flatten()
}

fn next_id() -> ScopeId {
    static IDS: AtomicU64 = AtomicU64::new(1);
    // Billions of callbacks a second would take centuries to come round to zero.
    NonZeroU64::new(IDS.fetch_add(1, Ordering::Relaxed)).unwrap_or(NonZeroU64::MIN)
}
