//! A device that takes its time.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use std::{fs, thread};

use rustix::thread::{Pid, gettid};
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
    worker: Mutex<Sender<Pid>>,
    ended: Mutex<Sender<()>>,
}

/// The test's ends of a [`Slow`] device.
pub(crate) struct Hands {
    kept: Receiver<Request>,
    /// The device was entered.
    pub(crate) entered: Receiver<()>,
    pub(crate) go: Sender<()>,
    worker: Receiver<Pid>,
    /// The worker's thread has ended.
    pub(crate) ended: Receiver<()>,
}

impl Slow {
    pub(crate) fn new(stays: bool, keeps: bool) -> (Arc<Self>, Hands) {
        let (kept, kept_here) = mpsc::channel();
        let (entered, entered_here) = mpsc::channel();
        let (go_here, go) = mpsc::channel();
        let (worker, worker_here) = mpsc::channel();
        let (ended, ended_here) = mpsc::channel();
        let device = Self {
            stays,
            keeps,
            kept: Mutex::new(kept),
            entered: Mutex::new(entered),
            go: Mutex::new(go),
            worker: Mutex::new(worker),
            ended: Mutex::new(ended),
        };
        let hands = Hands {
            kept: kept_here,
            entered: entered_here,
            go: go_here,
            worker: worker_here,
            ended: ended_here,
        };
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

    /// The device has returned, its worker has done what follows, and waits for something new.
    pub(crate) fn wait_for_an_idle_worker(&self) {
        let worker = self.worker.recv_timeout(LIMIT).unwrap().as_raw_nonzero();
        let path = format!("/proc/self/task/{worker}/syscall");
        let deadline = Instant::now() + LIMIT;
        // A device that waits for the test is in a call for a lock.
        let busy = |call: &str| !call.parse().is_ok_and(|number: i64| number != libc::SYS_futex);
        while busy(fs::read_to_string(&path).unwrap().split_whitespace().next().unwrap()) {
            assert!(Instant::now() < deadline, "the worker never waits");
            thread::yield_now();
        }
    }

    /// The device goes on, and its worker finds that there is nothing more to do.
    pub(crate) fn finish(&self) {
        self.go.send(()).unwrap();
        self.ended.recv_timeout(LIMIT).unwrap();
    }
}

impl Device for Slow {
    plain!(queues: 1, ring: 256);
    fn keeps_requests(&self) -> bool {
        self.keeps
    }
    fn run_worker(&self, body: &mut (dyn FnMut() + Send)) {
        let _ = self.worker.lock().unwrap().send(gettid());
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
