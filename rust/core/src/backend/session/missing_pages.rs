//! What a session has of memory whose pages are on their way.

use std::sync::Arc;

use crate::memory::Memory;
use crate::sys::userfault::Userfault;

/// Who is asked for missing pages, from POSTCOPY_ADVISE to POSTCOPY_END.
pub(super) struct MissingPages {
    pub(super) userfault: Arc<Userfault>,
    /// What memory is to be when the front-end answers for its pages. Nothing touches it.
    pub(super) awaited: Option<Memory>,
}
