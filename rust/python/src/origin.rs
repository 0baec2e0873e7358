//! Where a request was handed to Python, for messages about it.

use std::sync::Arc;

use crate::exporter::ExportCount;
use crate::log;
use crate::report::Reports;
use crate::traits::{FlushesFirst, HeldReports};

/// Where requests were handed to Python.
pub(crate) struct Origin {
    /// As in `RamDisk.on_batch`.
    pub(crate) callback: String,
    /// Views show mappings of granted pages as they are.
    pub(crate) raw_views: bool,
    pub(crate) reports: Arc<Reports>,
    /// Where writes go that are answered after the callback, if the device has a write cache.
    pub(crate) late: Option<Arc<dyn FlushesFirst>>,
}

impl Origin {
    /// Has somebody told if views of an answered request are held for long.
    pub(crate) fn watch(&self, exports: Arc<ExportCount>) {
        let reports = Arc::clone(&self.reports) as Arc<dyn HeldReports>;
        log::watch(exports, self.callback.clone(), reports);
    }
}
