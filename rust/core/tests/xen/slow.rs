//! A device that takes its time.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use vhost_user_core::device::Device;
use vhost_user_core::request::{Batch, Request};

use super::guest::LIMIT;

/// Hands each request to the test, or stays in `handle` until it is told to go on and fills the
/// requests then.
pub(crate) struct Slow {
    stays: bool,
    keeps: bool,
    kept: Mutex<Sender<Request>>,
    entered: Mutex<Sender<()>>,
    go: Mutex<Receiver<()>>,
    ended: Mutex<Sender<()>>,
}

/// The test's ends of a [`Slow`] device.
pub(crate) struct Hands {
    kept: Receiver<Request>,
    /// The device was entered.
    pub(crate) entered: Receiver<()>,
    pub(crate) go: Sender<()>,
    /// The worker's thread has ended.
    pub(crate) ended: Receiver<()>,
}

impl Slow {
    pub(crate) fn new(stays: bool, keeps: bool) -> (Arc<Self>, Hands) {
        let (kept, kept_here) = mpsc::channel();
        let (entered, entered_here) = mpsc::channel();
        let (go_here, go) = mpsc::channel();
        let (ended, ended_here) = mpsc::channel();
        let device = Self {
            stays,
            keeps,
            kept: Mutex::new(kept),
            entered: Mutex::new(entered),
            go: Mutex::new(go),
            ended: Mutex::new(ended),
        };
        let hands =
            Hands { kept: kept_here, entered: entered_here, go: go_here, ended: ended_here };
        (Arc::new(device), hands)
    }

    /// Keeps requests, and says so.
    pub(crate) fn keeping() -> (Arc<Self>, Hands) {
        Self::new(false, true)
    }
}

impl Hands {
    pub(crate) fn request(&self) -> Request {
        self.kept.recv_timeout(LIMIT).unwrap()
    }

    /// The device goes on, and its worker finds that there is nothing more to do.
    pub(crate) fn finish(&self) {
        self.go.send(()).unwrap();
        self.ended.recv_timeout(LIMIT).unwrap();
    }
}

impl Device for Slow {
    fn virtio_id(&self) -> u32 {
        4
    }
    fn features(&self) -> u64 {
        0
    }
    fn num_queues(&self) -> u16 {
        1
    }
    fn max_queue_size(&self) -> u16 {
        256
    }
    fn config_len(&self) -> usize {
        0
    }
    fn read_config(&self, _: usize, _: &mut [u8]) {}
    fn keeps_requests(&self) -> bool {
        self.keeps
    }
    fn run_worker(&self, body: &mut (dyn FnMut() + Send)) {
        body();
        let _ = self.ended.lock().unwrap().send(());
    }
    fn handle(&self, _: u16, batch: &mut Batch) {
        let _ = self.entered.lock().unwrap().send(());
        if self.stays {
            let _ = self.go.lock().unwrap().recv();
        }
        while let Some(request) = batch.next() {
            if self.stays {
                let len = request.writable().len();
                request.writable().fill(0, len, 0x55);
                batch.complete(request, len as u32);
            } else {
                let _ = self.kept.lock().unwrap().send(request);
            }
        }
    }
}
