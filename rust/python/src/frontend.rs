//! `Frontend`: the other end of the socket.
//!
//! All waiting happens detached from the interpreter, and hears signals. The connection is used by
//! one thread at a time; the others wait.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyType};
use vhost_user_core::frontend::{
    BlockDriver, Client, FrontendError, Negotiated, ProtocolFeatures, RegionLayout, Wanted,
    feature_names,
};
use vhost_user_core::socket::{Stream, settled};

use crate::arguments;
use crate::buffer::SourceBuffer;
use crate::descriptor::descriptor;
use crate::error;
use crate::interrupt::interruptible;
use crate::seat::{NotTaken, Seat};
use crate::xen;

const FORKED: &str = "this process was forked after the connection was made: it is the parent's. \
                      Connect in the child";
const REENTERED: &str = "the connection is used by the very call that this signal handler interrupts: \
                         raise an exception to end that";

/// A connection to a back-end, negotiated and with no ring.
#[pyclass(frozen, subclass, module = "vhost_user")]
pub(crate) struct Frontend {
    end: Seat<End>,
    path: Option<PathBuf>,
    timeout: Duration,
    asked: Asked,
    /// The process that has the connection.
    process: u32,
}

/// What is asked of the back-end beyond the usual.
#[derive(Clone, Copy, Default)]
struct Asked {
    /// XEN_MMAP.
    xen: bool,
    /// RING_PACKED.
    packed: bool,
    /// IN_ORDER.
    in_order: bool,
}

/// What holds the connection.
enum End {
    Plain(Box<Client>, Negotiated),
    Block(Box<BlockDriver>),
    Closed,
}

/// Where the back-end is.
pub(crate) enum Target {
    Path(PathBuf),
    Stream(Stream),
}

#[pymethods]
impl Frontend {
    /// Connects to `socket`, or takes over a connected socket `fd`, and negotiates; with `xen` for
    /// telling of Xen domains' memory, with `packed` and `in_order` for rings of that form.
    #[new]
    #[pyo3(signature = (socket=None, *, fd=None, timeout=5.0, xen=false, packed=false,
                        in_order=false))]
    fn new(
        py: Python<'_>,
        #[pyo3(from_py_with = arguments::socket)] socket: Option<PathBuf>,
        #[pyo3(from_py_with = arguments::socket_fd)] fd: Option<RawFd>,
        #[pyo3(from_py_with = arguments::timeout)] timeout: f64,
        #[pyo3(from_py_with = arguments::xen)] xen: bool,
        #[pyo3(from_py_with = arguments::packed)] packed: bool,
        #[pyo3(from_py_with = arguments::in_order)] in_order: bool,
    ) -> PyResult<Self> {
        let asked = Asked { xen, packed, in_order };
        let timeout = crate::backend::seconds(timeout)?;
        let target = Target::new(socket.clone(), fd)?;
        let end = interruptible(py, || plain(target, timeout, asked))?;
        let end = end.map_err(|e| error::frontend(py, &e))?;
        let path = socket.as_deref().map(settled);
        Ok(Self { end: Seat::new(end), path, timeout, asked, process: process::id() })
    }

    /// Connects to `socket`; options as the class takes them.
    #[classmethod]
    #[pyo3(signature = (socket, **options))]
    fn connect<'py>(
        class: &Bound<'py, PyType>,
        socket: &Bound<'py, PyAny>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        class.call((socket,), options)
    }

    /// The feature bits that both ends accepted.
    #[getter]
    fn features(&self, py: Python<'_>) -> PyResult<u64> {
        self.negotiated(py, |n| n.features)
    }

    /// The feature bits that the back-end offers.
    #[getter]
    fn offered_features(&self, py: Python<'_>) -> PyResult<u64> {
        self.negotiated(py, |n| n.offered)
    }

    /// The protocol features that both ends accepted.
    #[getter]
    fn protocol_features(&self, py: Python<'_>) -> PyResult<u64> {
        self.negotiated(py, |n| n.protocol.bits())
    }

    /// The protocol features that the back-end offers.
    #[getter]
    fn offered_protocol_features(&self, py: Python<'_>) -> PyResult<u64> {
        self.negotiated(py, |n| n.offered_protocol.bits())
    }

    /// Virtqueues of the device, of a network device pairs of them; `None` if the back-end does not
    /// tell.
    #[getter]
    fn num_queues(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        self.negotiated(py, |n| n.num_queues)
    }

    /// Memory regions that the back-end takes; `None` if it does not tell.
    #[getter]
    fn max_mem_slots(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        self.negotiated(py, |n| n.max_mem_slots)
    }

    /// The process at the other end, as far as the system tells.
    #[getter]
    fn peer(&self, py: Python<'_>) -> PyResult<String> {
        self.client(py, |client| Ok(client.peer()))
    }

    /// The names of feature bits, lowest first: with those of a device type, by its number, if it is
    /// known. `bit N` for one without a name.
    #[staticmethod]
    #[pyo3(name = "feature_names", signature = (bits, device_id=None))]
    fn names_of_features(
        #[pyo3(from_py_with = arguments::bits)] bits: u64,
        #[pyo3(from_py_with = arguments::device_id)] device_id: Option<u32>,
    ) -> Vec<String> {
        feature_names(bits, device_id)
    }

    /// The same of protocol features.
    #[staticmethod]
    #[pyo3(name = "protocol_feature_names")]
    fn names_of_protocol_features(
        #[pyo3(from_py_with = arguments::bits)] bits: u64,
    ) -> Vec<String> {
        ProtocolFeatures::from_bits_retain(bits).names()
    }

    /// Reads `length` bytes of the device's configuration space.
    fn config(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = arguments::config_offset)] offset: u32,
        #[pyo3(from_py_with = arguments::config_length)] length: u32,
    ) -> PyResult<Vec<u8>> {
        self.client(py, |client| client.config(offset, length))
    }

    /// Fetches the device's state from the back-end. Queues that run pause meanwhile.
    #[pyo3(signature = (*, most=536_870_912))]
    fn save_state<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = arguments::most)] most: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let state = self.paused(py, |client| client.save_state(most))?;
        Ok(PyBytes::new(py, &state))
    }

    /// Gives the device a state that `save_state` has returned. Queues that run pause meanwhile.
    #[pyo3(signature = (state, /))]
    fn load_state(&self, py: Python<'_>, state: &Bound<'_, PyAny>) -> PyResult<()> {
        let buffer = SourceBuffer::of(state)?;
        let mut state = vec![0; buffer.bytes().len()];
        buffer.bytes().read(&mut state);
        self.paused(py, |client| client.load_state(&state))
    }

    /// SET_MEM_TABLE: all of guest memory, in regions of Xen domains.
    #[pyo3(signature = (regions, *, design=RegionLayout::XenMerged),
           text_signature = "($self, regions, *, design='merged')")]
    fn set_xen_memory(
        &self,
        py: Python<'_>,
        regions: Vec<xen::Region>,
        #[pyo3(from_py_with = arguments::design)] design: RegionLayout,
    ) -> PyResult<()> {
        let regions = regions.iter().map(xen::Region::told).collect::<PyResult<Vec<_>>>()?;
        self.xen_client(py, |client| client.set_xen_table(&regions, design))
    }

    /// ADD_MEM_REG with a region of a Xen domain.
    #[pyo3(signature = (region, *, design=RegionLayout::XenMerged),
           text_signature = "($self, region, *, design='merged')")]
    fn add_xen_region(
        &self,
        py: Python<'_>,
        region: xen::Region,
        #[pyo3(from_py_with = arguments::design)] design: RegionLayout,
    ) -> PyResult<()> {
        let region = region.told()?;
        self.xen_client(py, |client| client.add_xen_region(&region, design))
    }

    /// REM_MEM_REG with a region of a Xen domain.
    #[pyo3(signature = (region, *, design=RegionLayout::XenMerged),
           text_signature = "($self, region, *, design='merged')")]
    fn remove_xen_region(
        &self,
        py: Python<'_>,
        region: xen::Region,
        #[pyo3(from_py_with = arguments::design)] design: RegionLayout,
    ) -> PyResult<()> {
        let region = region.told()?;
        self.xen_client(py, |client| client.remove_xen_region(&region, design))
    }

    /// Closes the connection and makes a new one.
    fn reconnect(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        let this = slf.get();
        this.with(slf.py(), |end| match end {
            End::Block(driver) => driver.reconnect(),
            _ => {
                // The back-end takes one front-end at a time: the old one leaves first.
                *end = End::Closed;
                let target = Target::new(this.path.clone(), None).map_err(|_| no_path())?;
                *end = plain(target, this.timeout, this.asked)?;
                Ok(())
            }
        })?;
        Ok(slf)
    }

    /// Closes the connection. Closing twice does nothing.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |end| {
            let old = std::mem::replace(end, End::Closed);
            if let End::Block(mut driver) = old
                && driver.is_settled()
            {
                // A ring that is stopped in good order leaves no request behind. If the back-end
                // is gone there is nothing to stop.
                let _ = driver.stop();
            }
            Ok(())
        })
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py)
    }
}

impl Frontend {
    /// A connection with a block driver on it.
    pub(crate) fn block(driver: BlockDriver, path: Option<PathBuf>, timeout: Duration) -> Self {
        let end = Seat::new(End::Block(Box::new(driver)));
        let asked = Asked::default();
        Self { end, path, timeout, asked, process: process::id() }
    }

    /// Uses what holds the connection, detached.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut End) -> Result<T, FrontendError> + Send,
    ) -> PyResult<T> {
        if self.process != process::id() {
            return Err(error::refused(py, FORKED));
        }
        match interruptible(py, || self.end.take().map(|mut end| work(&mut end)))? {
            Ok(done) => done.map_err(|e| error::frontend(py, &e)),
            // What the handler has raised was raised already.
            Err(NotTaken::Reentered | NotTaken::Interrupted) => Err(error::refused(py, REENTERED)),
        }
    }

    /// Uses the connection.
    fn with_open<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut End) -> Result<T, FrontendError> + Send,
    ) -> PyResult<T> {
        let done = self.with(py, |end| match end {
            End::Closed => Ok(None),
            end => work(end).map(Some),
        })?;
        done.ok_or_else(|| PyValueError::new_err("the connection is closed"))
    }

    fn client<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Client) -> Result<T, FrontendError> + Send,
    ) -> PyResult<T> {
        self.with_open(py, |end| match end {
            End::Plain(client, _) => work(client),
            End::Block(driver) => work(driver.client()),
            End::Closed => Err(no_path()),
        })
    }

    /// As [`client`](Self::client), while no queue runs.
    fn paused<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Client) -> Result<T, FrontendError> + Send,
    ) -> PyResult<T> {
        self.with_open(py, |end| match end {
            End::Plain(client, _) => work(client),
            End::Block(driver) => driver.paused(work),
            End::Closed => Err(no_path()),
        })
    }

    /// As [`client`](Self::client), where XEN_MMAP was accepted.
    fn xen_client(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Client) -> Result<(), FrontendError> + Send,
    ) -> PyResult<()> {
        self.client(py, |client| client.need_xen().and_then(|()| work(client)))
    }

    fn negotiated<T: Send>(
        &self,
        py: Python<'_>,
        look: impl FnOnce(&Negotiated) -> T + Send,
    ) -> PyResult<T> {
        self.with_open(py, |end| match end {
            End::Plain(_, negotiated) => Ok(look(negotiated)),
            End::Block(driver) => Ok(look(driver.negotiated())),
            End::Closed => Err(no_path()),
        })
    }

    /// Uses the connection as the block driver that it is.
    pub(crate) fn driver<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut BlockDriver) -> Result<T, FrontendError> + Send,
    ) -> PyResult<T> {
        self.with_open(py, |end| match end {
            End::Block(driver) => work(driver),
            _ => Err(no_path()),
        })
    }
}

impl Target {
    pub(crate) fn new(path: Option<PathBuf>, fd: Option<RawFd>) -> PyResult<Self> {
        match (path, fd) {
            (Some(path), None) => Ok(Self::Path(path)),
            (None, Some(fd)) => {
                let fd = descriptor(fd)?.try_clone_to_owned()?;
                Ok(Self::Stream(Stream::new(fd)))
            }
            _ => Err(PyValueError::new_err("exactly one of socket and fd")),
        }
    }
}

fn plain(target: Target, timeout: Duration, asked: Asked) -> Result<End, FrontendError> {
    let Asked { xen, packed, in_order } = asked;
    let mut client = match target {
        Target::Path(path) => Client::connect(&path, timeout)?,
        Target::Stream(stream) => Client::from_stream(stream, timeout),
    };
    let wanted = if xen { Wanted::on_xen() } else { Wanted::default() };
    let negotiated = client.negotiate(&wanted.with_rings(packed, in_order))?;
    negotiated.need_ring_features(packed, in_order)?;
    if xen {
        client.need_xen()?;
    }
    Ok(End::Plain(Box::new(client), negotiated))
}

fn no_path() -> FrontendError {
    FrontendError::OutOfRange {
        why: "a connection that was handed down cannot be made again".into(),
    }
}
