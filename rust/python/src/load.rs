//! The load generator's options and report.

use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use vhost_user_core::frontend::load::{self, Limit, Verify};
use vhost_user_core::frontend::{BlockDriver, FrontendError, LoadOptions, Pattern};

/// What came of a load.
#[pyclass(frozen, get_all, module = "vhost_user")]
pub(crate) struct LoadReport {
    /// Requests answered.
    ops: u64,
    /// Bytes moved.
    bytes: u64,
    /// Seconds.
    elapsed: f64,
    /// Requests a second.
    iops: f64,
    /// Requests that failed.
    errors: u64,
    /// Requests whose data was checked.
    verified: u64,
    /// Requests whose data was wrong.
    mismatches: u64,
    /// The first wrong byte's offset on the disk.
    first_mismatch: Option<u64>,
    /// Notifications sent to the back-end.
    kicks: u64,
    /// Notifications from the back-end.
    calls: u64,
    /// Half of the requests took no longer, in seconds.
    p50: f64,
    /// 99 of 100 took no longer, in seconds.
    p99: f64,
}

#[pymethods]
impl LoadReport {
    fn __repr__(&self) -> String {
        let Self { ops, iops, errors, mismatches, .. } = self;
        format!("<LoadReport {ops} ops, {iops:.0}/s, {errors} errors, {mismatches} mismatches>")
    }
}

pub(crate) fn prepare(driver: &mut BlockDriver, seed: u64) -> Result<(), FrontendError> {
    Pattern { seed }.prepare(driver)
}

/// Runs a load. `as_it_may`: reads are checked if this driver has prepared the disk, else not.
pub(crate) fn run(
    driver: &mut BlockDriver,
    options: &LoadOptions,
    as_it_may: bool,
) -> Result<LoadReport, FrontendError> {
    let mut options = options.clone();
    let is_prepared = driver.pattern() == Some(options.seed);
    if as_it_may && is_prepared {
        options.verify = Verify::Sampled;
    }
    if options.verify != Verify::None && options.access.reads() && !is_prepared {
        return Err(not_prepared(driver, options.seed));
    }
    let report = load::run(driver, &options)?;
    Ok(LoadReport {
        ops: report.ops,
        bytes: report.bytes,
        elapsed: report.elapsed.as_secs_f64(),
        iops: report.iops(),
        errors: report.errors,
        verified: report.verified,
        mismatches: report.mismatches,
        first_mismatch: report.first_mismatch,
        kicks: report.kicks,
        calls: report.calls,
        p50: report.p50.as_secs_f64(),
        p99: report.p99.as_secs_f64(),
    })
}

/// What is said where reads are to be checked against a pattern that is not there.
fn not_prepared(driver: &BlockDriver, seed: u64) -> FrontendError {
    let there = match driver.pattern() {
        Some(other) => format!("has written that of seed={other}"),
        None => "has not written it to the whole disk, or something else since".to_owned(),
    };
    FrontendError::OutOfRange {
        why: format!(
            "run_load checks reads against the pattern of prepare_load(seed={seed}), and this \
             driver {there}: call prepare_load(seed={seed}) first, or say verify=\"none\""
        ),
    }
}

/// One of the two; a second without either.
pub(crate) fn limit(seconds: Option<f64>, ops: Option<u64>) -> PyResult<Limit> {
    match (seconds, ops) {
        (None, None) => Ok(Limit::Time(Duration::from_secs(1))),
        (Some(seconds), None) => Ok(Limit::Time(crate::backend::seconds(seconds)?)),
        (None, Some(ops)) => Ok(Limit::Ops(ops)),
        _ => Err(PyValueError::new_err("seconds and ops exclude each other")),
    }
}
