//! `VirtioBlkDriver`: a disk at the other end of the socket.

use std::os::fd::RawFd;
use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use vhost_user_core::address::GuestAddr;
use vhost_user_core::frontend::load::{Access, Verify};
use vhost_user_core::frontend::{BlockDriver, BlockOptions, FrontendError};

use crate::arguments;
use crate::backend::seconds as seconds_of;
use crate::buffer::SourceBuffer;
use crate::error;
use crate::frontend::{Frontend, Target};
use crate::interrupt::interruptible;
use crate::load::{self, LoadReport};
use crate::xen::XenGuest;

/// A block device at the other end: memory, rings, and requests.
#[pyclass(frozen, subclass, extends = Frontend, module = "vhost_user")]
pub(crate) struct VirtioBlkDriver;

#[pymethods]
impl VirtioBlkDriver {
    /// Connects to `socket`, or takes over a connected socket `fd`, and starts the rings, in
    /// memory of its own or of a `guest`.
    #[new]
    #[pyo3(signature = (socket=None, *, fd=None, memory=67_108_864, num_queues=1, queue_size=128,
                        timeout=5.0, guest=None, packed=false, in_order=false, inflight=false,
                        dirty_log=false, iommu=false))]
    #[allow(clippy::too_many_arguments)] // One keyword for each option.
    fn new(
        py: Python<'_>,
        #[pyo3(from_py_with = arguments::socket)] socket: Option<PathBuf>,
        #[pyo3(from_py_with = arguments::socket_fd)] fd: Option<RawFd>,
        #[pyo3(from_py_with = arguments::memory)] memory: u64,
        #[pyo3(from_py_with = arguments::driver_queues)] num_queues: u16,
        #[pyo3(from_py_with = arguments::queue_size)] queue_size: u16,
        #[pyo3(from_py_with = arguments::timeout)] timeout: f64,
        #[pyo3(from_py_with = XenGuest::of)] guest: Option<Bound<'_, XenGuest>>,
        #[pyo3(from_py_with = arguments::packed)] packed: bool,
        #[pyo3(from_py_with = arguments::in_order)] in_order: bool,
        #[pyo3(from_py_with = arguments::inflight)] inflight: bool,
        #[pyo3(from_py_with = arguments::dirty_log)] dirty_log: bool,
        #[pyo3(from_py_with = arguments::iommu)] iommu: bool,
    ) -> PyResult<PyClassInitializer<Self>> {
        let timeout = seconds_of(timeout)?;
        let guest = guest.as_ref().map(Bound::get);
        let memory = guest.map_or(memory, |guest| guest.guest().description().size);
        let options = BlockOptions {
            memory,
            num_queues,
            queue_size,
            timeout,
            packed,
            in_order,
            inflight,
            dirty_log,
            iommu,
            ..BlockOptions::default()
        };
        let target = Target::new(socket.clone(), fd)?;
        let guest = guest.map(|guest| guest.told(py)).transpose()?;
        let driver = interruptible(py, || match (target, guest) {
            (Target::Path(path), None) => BlockDriver::connect(&path, options),
            (Target::Path(path), Some(guest)) => BlockDriver::connect_xen(&path, options, guest),
            (Target::Stream(stream), None) => BlockDriver::from_stream(stream, options),
            (Target::Stream(stream), Some(guest)) => {
                BlockDriver::xen_from_stream(stream, options, guest)
            }
        })?;
        let driver = driver.map_err(|e| error::frontend(py, &e))?;
        let base = Frontend::block(driver, socket, timeout);
        Ok(PyClassInitializer::from(base).add_subclass(Self))
    }

    /// Bytes of the disk.
    #[getter]
    fn size(slf: &Bound<'_, Self>) -> PyResult<u64> {
        driver(slf, |driver| Ok(driver.size()))
    }

    /// Whether the disk is read-only.
    #[getter]
    fn read_only(slf: &Bound<'_, Self>) -> PyResult<bool> {
        driver(slf, |driver| Ok(driver.read_only()))
    }

    /// How often the driver has gone on with another back-end.
    #[getter]
    fn reconnections(slf: &Bound<'_, Self>) -> PyResult<u64> {
        driver(slf, |driver| Ok(driver.reconnections()))
    }

    /// Reads `n` bytes at `offset`; both multiples of 512.
    fn pread<'py>(
        slf: &Bound<'py, Self>,
        #[pyo3(from_py_with = arguments::n)] n: usize,
        #[pyo3(from_py_with = arguments::offset)] offset: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        PyBytes::new_with(slf.py(), n, |out| driver(slf, |driver| driver.pread(out, offset)))
    }

    /// Writes `data` at `offset`; both multiples of 512. Returns the bytes written: all.
    fn pwrite(
        slf: &Bound<'_, Self>,
        data: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = arguments::offset)] offset: u64,
    ) -> PyResult<usize> {
        let buffer = SourceBuffer::of(data)?;
        let bytes = buffer.bytes();
        driver(slf, |driver| {
            let part = |at: usize, out: &mut [u8]| bytes.part(at..bytes.len()).read(out);
            driver.pwrite_with(bytes.len(), offset, part)
        })?;
        Ok(bytes.len())
    }

    /// Has all writes put on stable storage.
    fn flush(slf: &Bound<'_, Self>) -> PyResult<()> {
        driver(slf, BlockDriver::flush)
    }

    /// Says that these bytes are no longer needed.
    fn discard(
        slf: &Bound<'_, Self>,
        #[pyo3(from_py_with = arguments::offset)] offset: u64,
        #[pyo3(from_py_with = arguments::length)] length: u64,
    ) -> PyResult<()> {
        driver(slf, |driver| driver.discard(offset, length))
    }

    /// Makes these bytes zeroes; with `unmap` their space may be given up.
    #[pyo3(signature = (offset, length, *, unmap=false))]
    fn write_zeroes(
        slf: &Bound<'_, Self>,
        #[pyo3(from_py_with = arguments::offset)] offset: u64,
        #[pyo3(from_py_with = arguments::length)] length: u64,
        #[pyo3(from_py_with = arguments::unmap)] unmap: bool,
    ) -> PyResult<()> {
        driver(slf, |driver| driver.write_zeroes(offset, length, unmap))
    }

    /// Turns the device's write cache on or off.
    fn set_writeback(
        slf: &Bound<'_, Self>,
        #[pyo3(from_py_with = arguments::on)] on: bool,
    ) -> PyResult<()> {
        driver(slf, |driver| driver.set_writeback(on))
    }

    /// The disk's serial number.
    fn serial(slf: &Bound<'_, Self>) -> PyResult<String> {
        driver(slf, BlockDriver::id)
    }

    /// Waits until the device says that its configuration has changed; false if it does not in
    /// `timeout` seconds. `size` is up to date then.
    #[pyo3(signature = (timeout=5.0))]
    fn wait_config_change(
        slf: &Bound<'_, Self>,
        #[pyo3(from_py_with = arguments::timeout)] timeout: f64,
    ) -> PyResult<bool> {
        let timeout = seconds_of(timeout)?;
        driver(slf, |driver| driver.wait_config_change(timeout))
    }

    /// Has the back-end note in a dirty log what it writes to guest memory.
    fn start_dirty_log(slf: &Bound<'_, Self>) -> PyResult<()> {
        driver(slf, BlockDriver::start_log)
    }

    /// The numbers of the pages that were noted since the last call.
    fn dirty_pages(slf: &Bound<'_, Self>) -> PyResult<Vec<u64>> {
        driver(slf, |driver| driver.dirty_pages())
    }

    /// Has nothing noted any more.
    fn stop_dirty_log(slf: &Bound<'_, Self>) -> PyResult<()> {
        driver(slf, BlockDriver::stop_log)
    }

    /// Translations that the back-end has asked for, was told before, and lost again; `None` without
    /// an IOMMU.
    #[getter]
    fn iommu_counts(slf: &Bound<'_, Self>) -> PyResult<Option<(u64, u64, u64)>> {
        driver(slf, |driver| {
            Ok(driver.iommu_counts().map(|counts| (counts.asked, counts.told, counts.taken)))
        })
    }

    /// Copies `length` bytes of guest memory at `address`.
    fn guest_memory<'py>(
        slf: &Bound<'py, Self>,
        #[pyo3(from_py_with = arguments::address)] address: u64,
        #[pyo3(from_py_with = arguments::memory_length)] length: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        PyBytes::new_with(slf.py(), length, |out| {
            driver(slf, |driver| driver.memory().read(GuestAddr(address), out))
        })
    }

    /// Stops all queues; returns where they stood.
    fn stop_queues(slf: &Bound<'_, Self>) -> PyResult<Vec<u32>> {
        driver(slf, BlockDriver::stop_queues)
    }

    /// Starts the queues again where they stood.
    fn start_queues(slf: &Bound<'_, Self>) -> PyResult<()> {
        driver(slf, BlockDriver::start_queues)
    }

    /// Writes a pattern to the whole disk, for `run_load` to check.
    #[pyo3(signature = (seed=1))]
    fn prepare_load(
        slf: &Bound<'_, Self>,
        #[pyo3(from_py_with = arguments::seed)] seed: u64,
    ) -> PyResult<()> {
        driver(slf, |driver| load::prepare(driver, seed))
    }

    /// Runs a load and measures it.
    #[pyo3(signature = (access=Access::RandRead, *, block_bytes=4096, depth=32, seconds=None,
                        ops=None, warm_up=0.0, polling=false, cpus=None, verify=None, seed=1),
           text_signature = "($self, access='randread', *, block_bytes=4096, depth=32, \
                             seconds=None, ops=None, warm_up=0.0, polling=False, cpus=None, \
                             verify=None, seed=1)")]
    #[allow(clippy::too_many_arguments)] // One keyword for each option.
    fn run_load(
        slf: &Bound<'_, Self>,
        #[pyo3(from_py_with = arguments::access)] access: Access,
        #[pyo3(from_py_with = arguments::block_bytes)] block_bytes: u32,
        #[pyo3(from_py_with = arguments::depth)] depth: u16,
        #[pyo3(from_py_with = arguments::seconds)] seconds: Option<f64>,
        #[pyo3(from_py_with = arguments::ops)] ops: Option<u64>,
        #[pyo3(from_py_with = arguments::warm_up)] warm_up: f64,
        #[pyo3(from_py_with = arguments::polling)] polling: bool,
        #[pyo3(from_py_with = arguments::cpus)] cpus: Option<Vec<usize>>,
        #[pyo3(from_py_with = arguments::verify)] verify: Option<Verify>,
        #[pyo3(from_py_with = arguments::seed)] seed: u64,
    ) -> PyResult<LoadReport> {
        let options = vhost_user_core::frontend::LoadOptions {
            access,
            block_bytes,
            depth,
            limit: load::limit(seconds, ops)?,
            warm_up: seconds_of(warm_up)?,
            polling,
            cpus: cpus.unwrap_or_default(),
            verify: verify.unwrap_or(Verify::None),
            seed,
        };
        driver(slf, |driver| load::run(driver, &options, verify.is_none()))
    }
}

fn driver<T: Send>(
    this: &Bound<'_, VirtioBlkDriver>,
    work: impl FnOnce(&mut BlockDriver) -> Result<T, FrontendError> + Send,
) -> PyResult<T> {
    this.as_super().get().driver(this.py(), work)
}
