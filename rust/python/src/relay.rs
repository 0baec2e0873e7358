//! `Relay`: a front-end's connection that outlives back-ends.
//!
//! `run` hears of signals by its wake descriptor alone; what waits for a back-end's answer lets
//! their handlers run.

use std::os::fd::RawFd;
use std::path::PathBuf;

use pyo3::prelude::*;
use vhost_user_core::hold::{self, Event, Failure};
use vhost_user_core::socket::{SocketError, Stream};

use crate::descriptor::descriptor;
use crate::endpoint::endpoint;
use crate::error;
use crate::interrupt::interruptible;
use crate::seat::Seat;

/// A front-end's connection, and the back-end that there is for it.
#[pyclass(frozen, module = "vhost_user._core")]
pub(crate) struct Relay {
    relay: Seat<hold::Relay>,
}

/// What a back-end was not taken for: "lost" or "refused", and why.
type NotTaken = Option<(&'static str, String)>;

#[pymethods]
impl Relay {
    /// Opens the socket of front-ends: one that listens at a path, one that calls there, or one
    /// that was handed down.
    #[new]
    #[pyo3(signature = (*, listen=None, dial=None, fd=None, mode=0o600, group=None))]
    fn new(
        py: Python<'_>,
        listen: Option<PathBuf>,
        dial: Option<PathBuf>,
        fd: Option<RawFd>,
        mode: u32,
        group: Option<u32>,
    ) -> PyResult<Self> {
        let endpoint = endpoint((listen, mode, group), dial, fd)?;
        let relay = hold::Relay::open(endpoint).map_err(|e| error::socket(py, &e))?;
        Ok(Self { relay: Seat::new(relay) })
    }

    /// Has the service manager at this address keep what the next keeper needs.
    #[pyo3(signature = (address, /))]
    fn store_at(&self, py: Python<'_>, address: &str) -> PyResult<()> {
        Ok(self.detached(py, |relay| relay.store_at(address))??)
    }

    /// Takes up what a former keeper has had kept, as `fd` and with a number in its name. None if the
    /// front-end is there again; else why not.
    #[pyo3(signature = (fd, generation, /))]
    fn restore(&self, py: Python<'_>, fd: RawFd, generation: u64) -> PyResult<Option<String>> {
        let parcel = descriptor(fd)?;
        let restored = self.detached(py, |relay| relay.restore(parcel, generation))?;
        Ok(restored.err().map(|error| error.to_string()))
    }

    /// Says which process, by its descriptor, the back-end is that comes next.
    #[pyo3(signature = (process, /))]
    fn served_by(&self, py: Python<'_>, process: RawFd) -> PyResult<()> {
        let process = descriptor(process)?.try_clone_to_owned()?;
        self.detached(py, |relay| relay.served_by(process))
    }

    /// Why nothing is kept any more for the next keeper, once.
    fn not_stored(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let why = self.detached(py, hold::Relay::not_stored)?;
        Ok(why.map(|error| error.to_string()))
    }

    /// Passes messages, until something happens: "woken", "came", "left", "lost", "held" or "over",
    /// and what there is to say of it.
    #[pyo3(signature = (wake, /))]
    fn run(&self, py: Python<'_>, wake: RawFd) -> PyResult<(&'static str, String)> {
        let wake = descriptor(wake)?;
        let event = self.detached(py, |relay| relay.run(wake))?;
        Ok(words(event.map_err(|e: SocketError| error::socket(py, &e))?))
    }

    /// Takes the back-end at the other end of the socket `fd` in place of one that is dead or
    /// parked. None if it goes on; else why not.
    #[pyo3(signature = (fd, /))]
    fn attach(&self, py: Python<'_>, fd: RawFd) -> PyResult<NotTaken> {
        let stream = stream(fd)?;
        self.interruptible(py, |relay| relay.attach(stream))
    }

    /// The same of one that is to follow, with which nothing changes yet.
    #[pyo3(signature = (fd, /))]
    fn prepare(&self, py: Python<'_>, fd: RawFd) -> PyResult<NotTaken> {
        let stream = stream(fd)?;
        self.interruptible(py, |relay| relay.prepare(stream))
    }

    /// Has the present back-end stop all rings, and hangs up. None if it has; else why not: it may
    /// touch them until it is dead.
    fn park(&self, py: Python<'_>) -> PyResult<NotTaken> {
        self.interruptible(py, hold::Relay::park)
    }

    /// Goes on with the one that was prepared. None if it does; else why not.
    fn take_over(&self, py: Python<'_>) -> PyResult<NotTaken> {
        self.interruptible(py, hold::Relay::take_over)
    }

    /// Ends the front-end's connection and the back-end's.
    fn hang_up(&self, py: Python<'_>) -> PyResult<()> {
        self.detached(py, hold::Relay::hang_up)
    }

    /// Whether there is a front-end.
    #[getter]
    fn has_frontend(&self, py: Python<'_>) -> PyResult<bool> {
        self.detached(py, |relay| relay.has_frontend())
    }

    /// Whether the driver uses a ring.
    #[getter]
    fn runs(&self, py: Python<'_>) -> PyResult<bool> {
        self.detached(py, |relay| relay.runs())
    }

    /// Whether the back-end records requests in flight.
    #[getter]
    fn records(&self, py: Python<'_>) -> PyResult<bool> {
        self.detached(py, |relay| relay.records())
    }

    /// The names of the protocol features that the back-end offers and no front-end is shown; None
    /// if there are none.
    #[getter]
    fn hidden(&self, py: Python<'_>) -> PyResult<Option<String>> {
        self.detached(py, |relay| relay.hidden())
    }
}

impl Relay {
    fn detached<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut hold::Relay) -> T + Send,
    ) -> PyResult<T> {
        let done = py.detach(|| self.relay.take().ok().map(|mut relay| work(&mut relay)));
        done.ok_or_else(|| error::refused(py, "the relay is used by another call"))
    }

    fn interruptible(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut hold::Relay) -> Result<(), Failure> + Send,
    ) -> PyResult<NotTaken> {
        let done = interruptible(py, || self.relay.take().ok().map(|mut relay| work(&mut relay)))?;
        let done = done.ok_or_else(|| error::refused(py, "the relay is used by another call"))?;
        Ok(done.err().map(|failure| match failure {
            Failure::Lost(why) => ("lost", why),
            Failure::Refused(why) => ("refused", why),
        }))
    }
}

fn stream(fd: RawFd) -> PyResult<Stream> {
    Ok(Stream::new(descriptor(fd)?.try_clone_to_owned()?))
}

fn words(event: Event) -> (&'static str, String) {
    match event {
        Event::Woken => ("woken", String::new()),
        Event::Came(who) => ("came", who),
        Event::Left(why) => ("left", why.unwrap_or_default()),
        Event::Lost(why) => ("lost", why),
        Event::Held(why) => ("held", why),
        Event::Over => ("over", String::new()),
    }
}
