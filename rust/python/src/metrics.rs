//! What is measured of a back-end, for Python and for monitoring systems.

use std::sync::{Arc, OnceLock, Weak};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use vhost_user_core::backend::Backend;
use vhost_user_core::metrics::{
    self, Address, Exposition, Kind, NotExposed, Patience, Snapshot, Text,
};

use crate::copy_budget::CopyBudget;
use crate::error;
use crate::log;
use crate::report::Reports;

/// The name of the threads that give metrics away.
const THREAD_NAME: &str = "vhost-user-metrics";

const NANOSECONDS: f64 = 1e9;

/// Where a back-end's numbers are. None of its methods needs the interpreter.
pub(crate) struct Source {
    label: String,
    class: String,
    reports: Arc<Reports>,
    budgets: Vec<Arc<CopyBudget>>,
    core: OnceLock<Weak<Backend>>,
}

impl Source {
    pub(crate) fn new(
        label: String,
        class: String,
        reports: Arc<Reports>,
        budgets: Vec<Arc<CopyBudget>>,
    ) -> Arc<Self> {
        Arc::new(Self { label, class, reports, budgets, core: OnceLock::new() })
    }

    /// The back-end has started.
    pub(crate) fn started(&self, core: &Arc<Backend>) {
        let _ = self.core.set(Arc::downgrade(core));
    }

    /// Gives the numbers away at `address`; `patient`: as soon as nobody else does.
    pub(crate) fn expose(
        self: &Arc<Self>,
        py: Python<'_>,
        address: &str,
        patient: bool,
    ) -> PyResult<Exposition> {
        let address = Address::parse(address).map_err(PyValueError::new_err)?;
        let patience = if patient { Patience::Patient } else { Patience::Impatient };
        let source = Arc::clone(self);
        let text = Arc::new(move || source.text());
        let opened = py.detach(|| Exposition::open(&address, THREAD_NAME, patience, text));
        opened.map_err(|refused| match refused {
            NotExposed::Socket(failure) => error::socket(py, &failure),
            NotExposed::Host(failure) => error::host(&failure),
        })
    }

    fn snapshot(&self) -> Option<Snapshot> {
        self.core.get()?.upgrade()?.metrics()
    }

    /// The numbers of this moment. `None`: the back-end does not measure any.
    pub(crate) fn metrics(&self) -> Option<Metrics> {
        let snapshot = self.snapshot()?;
        Some(Metrics { text: self.render(Some(&snapshot)), snapshot })
    }

    fn text(&self) -> String {
        self.render(self.snapshot().as_ref())
    }

    fn render(&self, snapshot: Option<&Snapshot>) -> String {
        let mut text = Text::default();
        self.write_build(&mut text);
        if let Some(snapshot) = snapshot {
            metrics::write(&mut text, &self.label, snapshot);
            self.write_python(&mut text);
        }
        text.finish()
    }

    fn write_build(&self, text: &mut Text) {
        let version = env!("CARGO_PKG_VERSION");
        text.family("vhost_user_build_info", Kind::Gauge, "The package, and the device's class.");
        text.sample(&[("device", &self.label), ("class", &self.class), ("version", version)], 1);
    }

    fn write_python(&self, text: &mut Text) {
        let (label, numbers) = ([("device", self.label.as_str())], self.reports.numbers());
        let copied = self.budgets.iter().map(|budget| budget.copied()).sum();
        let mut write = |name, kind, help, value| {
            text.family(name, kind, help);
            text.sample(&label, value);
        };
        write(
            "vhost_user_bounce_bytes_total",
            Kind::Counter,
            "Bytes of the private copies that Python saw in place of data in pieces.",
            copied,
        );
        write(
            "vhost_user_held_requests",
            Kind::Gauge,
            "Requests that were answered and that the driver has not got back, as Python has a view \
             of their data.",
            numbers.held(),
        );
        write(
            "vhost_user_log_dropped_total",
            Kind::Counter,
            "Log records of the whole process that were dropped, as they came too fast.",
            log::dropped_in_all(),
        );
        text.family(
            "vhost_user_exceptions_total",
            Kind::Counter,
            "Exceptions that callbacks have raised, by their class.",
        );
        for (class, count) in numbers.exceptions() {
            text.sample(&[label[0], ("type", &class)], count);
        }
    }
}

/// What was measured of a back-end, at some moment.
#[pyclass(frozen, module = "vhost_user")]
pub(crate) struct Metrics {
    snapshot: Snapshot,
    text: String,
}

#[pymethods]
impl Metrics {
    /// Requests given back to the driver, failed ones among them.
    #[getter]
    fn requests(&self) -> u64 {
        self.snapshot.operations().map(|of| of.done + of.failed).sum()
    }

    /// Requests that failed.
    #[getter]
    fn errors(&self) -> u64 {
        self.snapshot.operations().map(|of| of.failed).sum()
    }

    /// Bytes of data of those that did not.
    #[getter]
    fn bytes(&self) -> u64 {
        self.snapshot.operations().map(|of| of.bytes).sum()
    }

    /// Bytes that were read from a disk.
    #[getter]
    fn bytes_read(&self) -> u64 {
        self.bytes_of("read")
    }

    /// Bytes that were written to a disk.
    #[getter]
    fn bytes_written(&self) -> u64 {
        self.bytes_of("write")
    }

    /// Requests in the device's hands.
    #[getter]
    fn in_flight(&self) -> u64 {
        self.snapshot.queues.iter().map(|queue| u64::from(queue.in_flight)).sum()
    }

    /// Seconds that the oldest of them has been there.
    #[getter]
    fn oldest_in_flight(&self) -> f64 {
        let oldest = self.snapshot.queues.iter().map(|queue| queue.measured.oldest_nanoseconds);
        oldest.max().unwrap_or(0) as f64 / NANOSECONDS
    }

    /// The names that `quantile` takes.
    #[getter]
    fn names(&self) -> Vec<&'static str> {
        self.snapshot.names()
    }

    /// The value that the part `q` of all values of a name does not exceed.
    #[pyo3(signature = (name, q, /))]
    fn quantile(&self, name: &str, q: f64) -> PyResult<f64> {
        if !(0.0..=1.0).contains(&q) {
            return Err(PyValueError::new_err(format!("q is 0.0 to 1.0, not {q}")));
        }
        let Some(values) = self.snapshot.distribution(name) else {
            let names = self.snapshot.names().join(", ");
            let text = format!("there is no {name:?}; there are {names}");
            return Err(PyValueError::new_err(text));
        };
        let unit = if name == "batch_size" { 1.0 } else { NANOSECONDS };
        Ok(values.quantile(q).map_or(f64::NAN, |value| value / unit))
    }

    /// All of it in Prometheus's text format.
    fn prometheus(&self) -> &str {
        &self.text
    }

    fn __repr__(&self) -> String {
        let (requests, errors) = (self.requests(), self.errors());
        format!("<Metrics {requests} requests, {errors} errors, {} in flight>", self.in_flight())
    }
}

impl Metrics {
    fn bytes_of(&self, operation: &str) -> u64 {
        self.snapshot.operations().filter(|of| of.name == operation).map(|of| of.bytes).sum()
    }
}

/// Raises ``ValueError`` for what is no address to give metrics away at.
#[pyfunction]
#[pyo3(signature = (text, /))]
pub(crate) fn check_metrics_address(text: &str) -> PyResult<()> {
    Address::parse(text).map(drop).map_err(PyValueError::new_err)
}
