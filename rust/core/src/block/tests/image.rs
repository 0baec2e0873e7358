//! An image that writes down what is asked of it, and fails when it is told to.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use crate::block::{BlockRequest, ByteRange, HostImage, Image};

/// A call to the image that matters for what is on stable storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Write,
    DurableWrite,
    WriteBytes,
    Sync,
    PunchHole,
    ZeroRange,
}

/// Run at a call, before it is carried out. An error is what the call returns.
type Fault = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// What one image has been asked, and what it will answer. Shared with the test.
#[derive(Clone, Default)]
pub(super) struct Script {
    calls: Arc<Mutex<Vec<Call>>>,
    faults: Arc<Mutex<VecDeque<(Call, Fault)>>>,
}

impl Script {
    /// The next call of this kind fails with this error number.
    pub(super) fn fail(&self, call: Call, number: i32) {
        self.at(call, move || Err(io::Error::from_raw_os_error(number)));
    }

    /// The next call of this kind runs this first.
    pub(super) fn at(&self, call: Call, run: impl FnOnce() -> io::Result<()> + Send + 'static) {
        self.faults.lock().unwrap().push_back((call, Box::new(run)));
    }

    /// What was asked since the last look.
    pub(super) fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    fn record(&self, call: Call) -> io::Result<()> {
        self.calls.lock().unwrap().push(call);
        let mut faults = self.faults.lock().unwrap();
        let fault = match faults.iter().position(|(at, _)| *at == call) {
            Some(place) => faults.remove(place),
            None => None,
        };
        drop(faults);
        fault.map_or(Ok(()), |(_, run)| run())
    }
}

/// The host's image behind a script.
pub(super) struct Scripted {
    pub(super) image: HostImage,
    pub(super) script: Script,
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.image.fmt(f)
    }
}

impl Image for Scripted {
    fn read(&self, request: &BlockRequest) -> io::Result<u64> {
        self.image.read(request)
    }

    fn write(&self, request: &BlockRequest, durable: bool) -> io::Result<u64> {
        self.script.record(if durable { Call::DurableWrite } else { Call::Write })?;
        self.image.write(request, durable)
    }

    fn write_bytes(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.script.record(Call::WriteBytes)?;
        self.image.write_bytes(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.script.record(Call::Sync)?;
        self.image.sync()
    }

    fn punch_hole(&self, range: ByteRange) -> io::Result<()> {
        self.script.record(Call::PunchHole)?;
        self.image.punch_hole(range)
    }

    fn zero_range(&self, range: ByteRange) -> io::Result<()> {
        self.script.record(Call::ZeroRange)?;
        self.image.zero_range(range)
    }

    fn size(&self) -> io::Result<u64> {
        self.image.size()
    }
}
