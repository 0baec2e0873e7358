//! A device that does with its requests what a test says.

use std::sync::{Arc, Mutex};

use vhost_user_core::device::Device;
use vhost_user_core::request::{Batch, Request};

/// What is done with each batch.
type Script = Box<dyn FnMut(&mut Batch) + Send>;

/// A device of one queue.
pub(crate) struct Scripted {
    keeps: bool,
    script: Mutex<Script>,
    refused: fn(&Request) -> u32,
}

impl Scripted {
    /// `keeps`: what it says of itself. It takes all that is available as one batch.
    pub(crate) fn new(keeps: bool, script: impl FnMut(&mut Batch) + Send + 'static) -> Arc<Self> {
        Self::refusing(|_| 0, keeps, script)
    }

    /// With an answer to requests whose memory cannot be reached.
    pub(crate) fn refusing(
        refused: fn(&Request) -> u32,
        keeps: bool,
        script: impl FnMut(&mut Batch) + Send + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { keeps, script: Mutex::new(Box::new(script)), refused })
    }

    /// Writes what it reads, by copies in memory.
    pub(crate) fn copying() -> Arc<Self> {
        Self::new(false, |batch| {
            while let Some(request) = batch.next() {
                let written = copy(&request);
                batch.complete(request, written);
            }
        })
    }
}

/// Writes what the request has to be read; returns the bytes.
pub(crate) fn copy(request: &Request) -> u32 {
    let mut bytes = vec![0; request.readable().len() as usize];
    let read = request.readable().read_at(0, &mut bytes);
    request.writable().write_at(0, &bytes[..read]) as u32
}

impl Device for Scripted {
    plain!(queues: 1, ring: 256);
    fn batch_limit(&self, _queue: u16, available: u16) -> u16 {
        available
    }
    fn keeps_requests(&self) -> bool {
        self.keeps
    }
    fn refuse(&self, _queue: u16, request: &Request) -> u32 {
        (self.refused)(request)
    }
    fn handle(&self, _queue: u16, batch: &mut Batch) {
        (self.script.lock().unwrap())(batch);
    }
}
