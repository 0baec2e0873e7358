//! What a back-end's control thread and its sessions share.

use std::sync::Arc;

use super::options::Options;
use super::shared::Shared;
use crate::device::Device;
use crate::sys::closer::Closer;

/// The device, how it is served, and what its threads and its owner share.
pub(super) struct BackendContext {
    pub(super) device: Arc<dyn Device>,
    pub(super) options: Options,
    pub(super) shared: Arc<Shared>,
    /// Closes what the front-ends have passed.
    pub(super) closer: Closer,
}
