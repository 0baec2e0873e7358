//! A running back-end, and what Python may do with it.

use std::num::NonZeroU16;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;
use vhost_user_core::backend::{
    self, MemoryOptions, Observer, Options, QueueStats, State, Stuck, Threads, XenDesigns,
    XenOptions,
};
use vhost_user_core::block::{BlockDevice, FileDisk, NullDisk, Sharing};
use vhost_user_core::device::Device;
use vhost_user_core::metrics::Exposition;

use crate::block::{PyBlock, options};
use crate::copy_budget::CopyBudget;
use crate::device::QueueDevice;
use crate::endpoint::endpoint;
use crate::error;
use crate::events::Events;
use crate::interrupt::{SIGNAL_CHECK, has_raised, interruptible};
use crate::log;
use crate::metrics::{Metrics, Source};
use crate::py_device::{Views, in_callback};
use crate::python_thread;
use crate::report::{OnError, Reports};
use crate::xen::XenGuest;

const FORKED: &str = "this process was forked after the back-end had started: its threads are in \
                      the parent. Fork first, or start a new process (multiprocessing: \"spawn\")";

/// A back-end that has started. It ends with `stop`, or with its last reference.
#[pyclass(frozen, module = "vhost_user._core")]
pub(crate) struct Backend {
    /// `None` only while it is being dropped.
    core: Option<Arc<backend::Backend>>,
    served: Served,
    reports: Arc<Reports>,
    events: Arc<Events>,
    numbers: Arc<Source>,
    /// Gives the numbers away, until the back-end is stopped.
    exposition: Mutex<Option<Exposition>>,
    /// The process that has the threads.
    process: u32,
}

/// The device, by what moves its data.
enum Served {
    /// `on_queue`.
    Queue(Arc<QueueDevice>),
    /// Python callbacks.
    Block(Arc<PyBlock>),
    /// A file or a block device of the host. It goes, and with it the lock, when the back-end has
    /// stopped.
    File(Weak<BlockDevice<FileDisk>>),
    /// Nothing: there is none.
    Null(Arc<BlockDevice<NullDisk>>),
}

#[pymethods]
impl Backend {
    /// Starts to serve `device`, which is a `kind` of device: "queue", "block", "file" or "null".
    /// With `guest` on that guest's hypervisor.
    #[new]
    #[pyo3(signature = (device, kind, *, overrides, listen, dial, fd, mode, group, keep_listening,
                        threads, batch, poll_us, cpus, drain, copy_budget, any_memory_file, on_error,
                        label, measured, expose, xen, guest))]
    #[allow(clippy::too_many_arguments)] // One keyword for each option; the façade has defaults.
    fn new(
        py: Python<'_>,
        device: &Bound<'_, PyAny>,
        kind: &str,
        overrides: Vec<String>,
        listen: Option<PathBuf>,
        dial: Option<PathBuf>,
        fd: Option<RawFd>,
        mode: u32,
        group: Option<u32>,
        keep_listening: bool,
        threads: u16,
        batch: u16,
        poll_us: u64,
        cpus: Vec<usize>,
        drain: f64,
        copy_budget: u64,
        any_memory_file: bool,
        on_error: &str,
        label: String,
        measured: bool,
        expose: Option<(String, bool)>,
        xen: Option<XenArguments>,
        guest: Option<&XenGuest>,
    ) -> PyResult<Self> {
        let endpoint = endpoint((listen, mode, group), dial, fd)?;
        let raw_views = xen.as_ref().is_some_and(|(.., raw_views)| *raw_views);
        let mut options = Options {
            keep_listening,
            threads: NonZeroU16::new(threads).map_or(Threads::PerQueue, Threads::Count),
            batch,
            poll: Duration::from_micros(poll_us),
            cpus,
            drain: seconds(drain)?,
            measured,
            memory: MemoryOptions { any_file: any_memory_file, ..MemoryOptions::default() },
            xen: xen.map(xen_options).transpose()?,
            ..Options::new(endpoint)
        };
        if let (Some(xen), Some(guest)) = (&mut options.xen, guest) {
            xen.access.ops = guest.guest().ops();
        }
        let class = device.get_type().name()?.to_string();
        let reports = Reports::new(label.clone(), class.clone(), on_error_of(on_error)?);
        let views = Views { raw: raw_views, copy_budget };
        let (served, device) = Served::new(device, kind, &overrides, views, &reports)?;
        python_thread::prepare(py)?;
        log::start()?;
        let budgets = served.budgets();
        let numbers = Source::new(label.clone(), class, Arc::clone(&reports), budgets);
        let exposition =
            expose.map(|(address, patient)| numbers.expose(py, &address, patient)).transpose()?;
        let events = Events::new(label, Arc::clone(&reports));
        let observer = Arc::clone(&events) as Arc<dyn Observer>;
        let core = py.detach(|| backend::Backend::start(device, options, observer));
        let core = Arc::new(core.map_err(|error| error::start(py, &error))?);
        numbers.started(&core);
        exposition.iter().for_each(Exposition::refresh);
        let exposition = Mutex::new(exposition);
        let weak = Arc::downgrade(&core);
        reports.set_stop(move || {
            if let Some(core) = weak.upgrade() {
                core.request_stop();
            }
        });
        let process = std::process::id();
        Ok(Self { core: Some(core), served, reports, events, numbers, exposition, process })
    }

    /// "listening", "negotiating", "running", "paused", "draining" or "stopped".
    #[getter]
    fn state(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.core(py)?.state().to_string())
    }

    /// Waits until a queue is served; false if that does not come in `timeout` seconds.
    fn wait_running(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let core = self.core(py)?;
        let limit = timeout.map(seconds).transpose()?;
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            let left = until.map_or(SIGNAL_CHECK, |t| t.saturating_duration_since(Instant::now()));
            if py.detach(|| core.wait_running(Some(left.min(SIGNAL_CHECK)))) {
                return Ok(true);
            }
            if left.is_zero() || core.state() == State::Stopped {
                return Ok(false);
            }
            py.check_signals()?;
        }
    }

    /// Ends the back-end; returns what did not finish in `drain` seconds, as (queue, requests). If
    /// the handler of a signal raises meanwhile, the end goes on without the caller. What is to be
    /// logged has `flush` seconds.
    #[pyo3(signature = (drain, *, flush=2.0))]
    fn stop(&self, py: Python<'_>, drain: f64, flush: f64) -> PyResult<Vec<(u16, u32)>> {
        let (core, drain, flush) = (self.core(py)?, seconds(drain)?, seconds(flush)?);
        if in_callback() {
            // The stop waits for this very callback.
            py.detach(|| core.request_stop());
            return Ok(Vec::new());
        }
        let stuck = interruptible(py, || {
            let stuck = core.stop_unless(drain, has_raised).unwrap_or_default();
            drop(self.take_exposition());
            self.sum_up();
            log::flush(flush);
            stuck
        })?;
        Ok(stuck.into_iter().map(|Stuck { queue, requests }| (queue, requests)).collect())
    }

    /// Asks the back-end to end; requests in flight have `drain` seconds if it is given.
    #[pyo3(signature = (drain=None, /))]
    fn request_stop(&self, py: Python<'_>, drain: Option<f64>) -> PyResult<()> {
        let (core, drain) = (self.core(py)?, drain.map(seconds).transpose()?);
        py.detach(|| match drain {
            Some(drain) => core.request_stop_within(drain),
            None => core.request_stop(),
        });
        Ok(())
    }

    /// A descriptor that becomes readable when the back-end has ended.
    fn stopped_fd(&self, py: Python<'_>) -> PyResult<RawFd> {
        Ok(self.core(py)?.stopped_fd().as_raw_fd())
    }

    /// Takes no more requests; false if that has to wait for a message that takes long.
    fn pause(&self, py: Python<'_>) -> PyResult<bool> {
        let core = self.core(py)?;
        let in_callback = in_callback();
        Ok(py.detach(|| core.pause(!in_callback)))
    }

    /// Takes requests again.
    fn resume(&self, py: Python<'_>) -> PyResult<bool> {
        let core = self.core(py)?;
        let in_callback = in_callback();
        Ok(py.detach(|| core.resume(!in_callback)))
    }

    /// Whether it was paused.
    #[getter]
    fn is_paused(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.core(py)?.is_paused())
    }

    /// Changes the size of the disk and tells the front-end.
    #[pyo3(signature = (size, /))]
    fn resize(&self, py: Python<'_>, size: u64) -> PyResult<()> {
        let core = self.core(py)?;
        let done = match &self.served {
            Served::Block(device) => device.resize(size),
            Served::File(device) => match device.upgrade() {
                Some(device) => device.resize(size),
                // The end has come: there is nobody to tell.
                None => return Ok(()),
            },
            Served::Null(device) => device.resize(size),
            Served::Queue(_) => return Err(error::refused(py, "only a disk has a size")),
        };
        done.map_err(|error| error::block(&error))?;
        py.detach(|| core.notify_config());
        Ok(())
    }

    /// Replaces the configuration space, and with `notify` tells the front-end.
    #[pyo3(signature = (config, /, *, notify))]
    fn set_config(&self, py: Python<'_>, config: Vec<u8>, notify: bool) -> PyResult<()> {
        let core = self.core(py)?;
        match &self.served {
            Served::Queue(device) => device.set_config(config)?,
            _ => return Err(error::refused(py, "a disk's configuration space is its own")),
        }
        if notify {
            py.detach(|| core.notify_config());
        }
        Ok(())
    }

    /// The device status byte that the front-end passed last; 0 if it passes none.
    #[getter]
    fn status(&self, py: Python<'_>) -> PyResult<u8> {
        Ok(self.core(py)?.device_status())
    }

    /// Takes the exception that a callback has left for `run()` or a front-end to raise.
    fn take_failure(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.reports.take_failure(py).map(|error| error.into_value(py).into_any())
    }

    /// Requests, bytes, errors, kicks, calls, in flight: of each queue, so far.
    fn stats(&self, py: Python<'_>) -> PyResult<Vec<[u64; 6]>> {
        let of = |q: QueueStats| {
            [q.requests, q.bytes, q.errors, q.kicks, q.calls, u64::from(q.in_flight)]
        };
        Ok(self.core(py)?.stats().into_iter().map(of).collect())
    }

    /// What was measured so far; None if nothing is.
    fn metrics(&self, py: Python<'_>) -> PyResult<Option<Metrics>> {
        self.core(py)?;
        Ok(py.detach(|| self.numbers.metrics()))
    }

    /// Where metrics are given away, if they are.
    fn metrics_address(&self) -> Option<String> {
        let exposition = self.exposition.lock().unwrap_or_else(PoisonError::into_inner);
        exposition.as_ref().map(|exposition| exposition.address().to_string())
    }

    /// Requests, batches, kicks, calls, sessions, in flight: so far.
    fn counters(&self, py: Python<'_>) -> PyResult<(u64, u64, u64, u64, u64, u64)> {
        let c = self.core(py)?.counters();
        Ok((c.requests, c.batches, c.kicks, c.calls, c.sessions, c.in_flight))
    }
}

impl Backend {
    fn take_exposition(&self) -> Option<Exposition> {
        self.exposition.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The back-end itself, unless this process is a fork of the one that has its threads.
    fn core(&self, py: Python<'_>) -> PyResult<&backend::Backend> {
        if std::process::id() != self.process {
            return Err(error::refused(py, FORKED));
        }
        Ok(self.core.as_ref().expect("it is there until it is dropped"))
    }

    /// Logs what was counted and not yet said.
    fn sum_up(&self) {
        self.events.sum_up();
        self.reports.sum_up();
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let core = self.core.take();
        let exposition = self.exposition.get_mut().map_or(None, Option::take);
        if std::process::id() != self.process {
            // A fork: the threads that would be waited for are in the parent.
            std::mem::forget((core, exposition));
            return;
        }
        // The end waits for workers, and they for the interpreter.
        let _ = Python::try_attach(|py| {
            py.detach(|| {
                drop(core);
                drop(exposition);
                self.sum_up();
            })
        });
    }
}

impl Served {
    /// What the copies come out of that Python sees in place of request data.
    fn budgets(&self) -> Vec<Arc<CopyBudget>> {
        match self {
            Self::Queue(device) => device.budgets(),
            Self::Block(device) => device.budgets(),
            Self::File(_) | Self::Null(_) => Vec::new(),
        }
    }

    /// What is kept of a device, and the device.
    fn new(
        device: &Bound<'_, PyAny>,
        kind: &str,
        overrides: &[String],
        views: Views,
        reports: &Arc<Reports>,
    ) -> PyResult<(Self, Arc<dyn Device>)> {
        let (reports, observer) = (Arc::clone(reports), Arc::clone(reports));
        let invalid = |error| error::block(&error);
        Ok(match kind {
            "queue" => {
                let device = Arc::new(QueueDevice::new(device, overrides, views, reports)?);
                (Self::Queue(Arc::clone(&device)), device)
            }
            "block" => {
                let device = Arc::new(PyBlock::new(device, overrides, views, reports)?);
                (Self::Block(Arc::clone(&device)), device)
            }
            "file" => {
                let path: PathBuf = device.getattr("path")?.extract()?;
                let read_only = device.getattr("read_only")?.extract()?;
                let direct = device.getattr("direct")?.extract()?;
                let sharing = match (read_only, device.getattr("incoming")?.extract()?) {
                    (true, _) => Sharing::Readers,
                    (false, true) => Sharing::Incoming,
                    (false, false) => Sharing::None,
                };
                let open = if direct { FileDisk::open_direct } else { FileDisk::open };
                let block_size = device.getattr("block_size")?.extract()?;
                let disk = open(&path, sharing).map_err(|e| error::host(&e))?;
                let disk = disk.with_block_size(block_size);
                let device = BlockDevice::new(disk, &options(device)?).map_err(invalid)?;
                let device = Arc::new(device.observed_by(observer));
                (Self::File(Arc::downgrade(&device)), device)
            }
            "null" => {
                let read_only = device.getattr("read_only")?.extract()?;
                let (size, block_size) = (device.getattr("size")?, device.getattr("block_size")?);
                let disk = NullDisk::new(size.extract()?, block_size.extract()?);
                let disk = disk.read_only(read_only);
                let device = BlockDevice::new(disk, &options(device)?).map_err(invalid)?;
                let device = Arc::new(device.observed_by(observer));
                (Self::Null(Arc::clone(&device)), device)
            }
            _ => return Err(PyValueError::new_err(format!("no such kind of device: {kind}"))),
        })
    }
}

/// What `XenOptions` says: the design, `copy_below`, the only domain and `raw_views`.
type XenArguments = (String, Option<u64>, Option<u16>, bool);

/// The core's part of it.
fn xen_options((design, copy_below, domain, _): XenArguments) -> PyResult<XenOptions> {
    let designs = match design.as_str() {
        "auto" => XenDesigns::ALL,
        "merged" => XenDesigns::MERGED,
        "review" => XenDesigns::REVIEW,
        "message" => XenDesigns::MESSAGE,
        _ => return Err(PyValueError::new_err(format!("there is no design {design:?}"))),
    };
    let mut options = XenOptions { designs, domain, ..XenOptions::default() };
    options.access.copy_below = copy_below.unwrap_or(options.access.copy_below);
    Ok(options)
}

fn on_error_of(word: &str) -> PyResult<OnError> {
    match word {
        "report" => Ok(OnError::Report),
        "raise" => Ok(OnError::Raise),
        "stop" => Ok(OnError::Stop),
        _ => Err(PyValueError::new_err(format!(
            "on_error is \"report\", \"raise\" or \"stop\", not {word:?}"
        ))),
    }
}

/// Seconds as Python gives them; negative ones are none.
pub(crate) fn seconds(value: f64) -> PyResult<Duration> {
    let clipped = value.max(0.0);
    Duration::try_from_secs_f64(clipped)
        .map_err(|_| PyOverflowError::new_err(format!("{value} seconds is not a time to wait")))
}
