//! Where a request was handed to Python, for messages about it.

use std::fmt;
use std::io;
use std::sync::Arc;

use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;

use crate::copy_budget::CopyBudget;
use crate::error;
use crate::exporter::ExportCount;
use crate::loan::NotLent;
use crate::log;
use crate::report::{Context, Reports};
use crate::traits::{FlushesFirst, HeldReports};

/// The callback that requests were handed to, and what it shares with them.
pub(crate) struct Origin {
    /// As in `on_batch`.
    pub(crate) callback: &'static str,
    /// Views show mappings of granted pages as they are.
    pub(crate) raw_views: bool,
    pub(crate) reports: Arc<Reports>,
    /// What copies of request data come out of.
    pub(crate) budget: Arc<CopyBudget>,
    /// Where writes go that are answered after the callback, if the device has a write cache.
    pub(crate) late: Option<Arc<dyn FlushesFirst>>,
}

impl Origin {
    /// Ends a request that was answered while views of it were there: when the last is gone, with a
    /// record in the log if that takes long. No lock may be held.
    pub(crate) fn hold(&self, py: Python<'_>, exports: Arc<ExportCount>) {
        exports.settle(py);
        let reports = Arc::clone(&self.reports) as Arc<dyn HeldReports>;
        log::watch(exports, self.callback, reports);
    }

    /// Reports that a request was failed with an error number, or by a transfer to or from a file.
    #[cold]
    pub(crate) fn failed(&self, error: &io::Error, request: &dyn fmt::Display) {
        self.reports.failed(error, &Context { callback: self.callback, request });
    }

    /// Says why Python gets nothing to see of a request, and logs it if there is no room for it.
    #[cold]
    pub(crate) fn not_lent(&self, py: Python<'_>, why: NotLent) -> PyErr {
        match why {
            NotLent::Refused(refused) => {
                self.reports.refused_copy(&*refused);
                let error = error::no_memory(refused);
                self.reports.keep_for_raise(|| error.clone_ref(py));
                error
            }
            NotLent::Python(error) => *error,
            NotLent::NoRequest => error::stale(py, &why.to_string()),
            _ => PyBufferError::new_err(why.to_string()),
        }
    }
}
