//! Rings that stop while their device is slow, gone, or still busy with something else.
//!
//! The time to drain is the proof: where a test allows a minute, nothing here waits for so long.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use vhost_user_core::backend::{Backend, Event, Observer, Options, Stuck, Threads};
use vhost_user_core::device::Device;
use vhost_user_core::frontend::Used;
use vhost_user_core::request::Batch;
use vhost_user_core::socket::{Endpoint, ListenOptions};

use super::served::*;
use super::support::Directory;

/// Longer than any test waits for anything.
const LONG: Duration = Duration::from_secs(60);

/// Does in its callback what the test says, for each batch of queue 0.
struct Told {
    entered: Mutex<Sender<()>>,
    go: Mutex<Receiver<Then>>,
}

/// What a callback is to do.
enum Then {
    Answer,
    Panic,
}

impl Device for Told {
    plain!(queues: 2, ring: 64);
    fn handle(&self, queue: u16, batch: &mut Batch) {
        let then = if queue == 0 {
            self.entered.lock().unwrap().send(()).unwrap();
            self.go.lock().unwrap().recv().unwrap()
        } else {
            Then::Answer
        };
        if let Then::Panic = then {
            let _taken = batch.next();
            panic!("as the test wants");
        }
        while let Some(request) = batch.next() {
            let written = invert(&request);
            batch.complete(request, written);
        }
    }
}

/// Has the device's callback return between the two steps of a stop, and its worker go on.
struct Meddler {
    go: Mutex<Sender<Then>>,
    asked: Mutex<Sender<()>>,
    answered: Mutex<Receiver<()>>,
}

impl Observer for Meddler {
    fn event(&self, event: Event) {
        if let Event::Stuck(stuck) = event {
            assert_eq!(stuck, Stuck { queue: 0, requests: 1 });
            self.go.lock().unwrap().send(Then::Answer).unwrap();
            // The other queue, which has the same worker, is served after that.
            self.asked.lock().unwrap().send(()).unwrap();
            self.answered.lock().unwrap().recv_timeout(LIMIT).unwrap();
        }
    }
}

#[test]
fn a_callback_that_returns_while_its_requests_fail_gives_nothing_back_twice() {
    let directory = Directory::new();
    let mut options =
        Options::new(Endpoint::Listen(ListenOptions::new(directory.join("device.sock"))));
    (options.drain, options.threads) =
        (Duration::from_millis(50), Threads::Count(1.try_into().unwrap()));
    let (entered, in_callback) = mpsc::channel();
    let (go, told) = mpsc::channel();
    let (asked, ask) = mpsc::channel();
    let (answer, answered) = mpsc::channel();
    let device = Told { entered: Mutex::new(entered), go: Mutex::new(told) };
    let meddler =
        Meddler { go: Mutex::new(go), asked: Mutex::new(asked), answered: Mutex::new(answered) };
    let backend = Backend::start(Arc::new(device), options, Arc::new(meddler)).unwrap();
    let Driver { mut client, memory, rings } = Driver::new(&directory.join("device.sock"), 2);
    let [mut first, second] = <[_; 2]>::try_from(rings).unwrap();
    let at = MIB / 2;
    first.set_descriptor(0, writable(at));
    first.push(0);
    first.publish();
    in_callback.recv_timeout(LIMIT).unwrap();
    let other = thread::spawn(move || {
        let mut second = second;
        ask.recv_timeout(LIMIT).unwrap();
        second.set_descriptor(0, writable(at));
        second.push(0);
        second.publish();
        eventually("the other queue's answer", || second.used_index() == 1);
        answer.send(()).unwrap();
    });
    assert_eq!(client.vring_base(0).unwrap(), 1);
    other.join().unwrap();
    assert_eq!(first.pop().unwrap(), Some(Used { head: 0, len: 0 }));
    assert_eq!(first.used_index(), 1);
    assert_eq!(backend.counters().in_flight, 0);
    // And the ring goes on.
    client.start_ring(0, &first).unwrap();
    assert_eq!(client.vring_base(0).unwrap(), 1);
    drop((client, memory));
}

fn writable(at: u64) -> vhost_user_core::frontend::Descriptor {
    let flags = vhost_user_core::frontend::WRITE;
    vhost_user_core::frontend::Descriptor { addr: at, len: 8, flags, next: 0 }
}

#[test]
fn nobody_waits_for_requests_whose_worker_has_panicked() {
    let directory = Directory::new();
    let mut options =
        Options::new(Endpoint::Listen(ListenOptions::new(directory.join("device.sock"))));
    options.drain = LONG;
    let (entered, in_callback) = mpsc::channel();
    let (go, told) = mpsc::channel();
    let device = Told { entered: Mutex::new(entered), go: Mutex::new(told) };
    let events = Arc::new(Events::default());
    let observer = Arc::clone(&events) as Arc<dyn Observer>;
    let backend = Backend::start(Arc::new(device), options, observer).unwrap();
    let mut driver = Driver::new(&directory.join("device.sock"), 2);
    for head in [0, 1] {
        driver.rings[0].set_descriptor(head, writable(MIB / 2));
        driver.rings[0].push(head);
    }
    driver.rings[0].publish();
    in_callback.recv_timeout(LIMIT).unwrap();
    let (stopped, heard) = mpsc::channel();
    let stopper = thread::spawn(move || stopped.send(backend.stop(LONG)).unwrap());
    go.send(Then::Panic).unwrap();
    assert_eq!(heard.recv_timeout(LIMIT).unwrap(), [Stuck { queue: 0, requests: 2 }]);
    stopper.join().unwrap();
    assert_eq!(driver.rings[0].used_index(), 0, "nothing was answered, and nothing comes back");
    assert!(events.any(|event| matches!(event, Event::WorkerPanicked(_))));
}

#[test]
fn rings_that_nobody_has_looked_at_stop_together() {
    const QUEUES: u16 = 64;
    let device = Mirror { queues: QUEUES, ..Mirror::default() };
    device.block.set(true);
    let served = Served::with(device, |o| o.threads = Threads::Count(1.try_into().unwrap()));
    let mut driver = Driver::connect(&served.directory.join("device.sock"), QUEUES);
    driver.client.start_ring(0, &driver.rings[0]).unwrap();
    driver.client.set_vring_enable(0, true).unwrap();
    driver.push(0, 0, &[1], MIB / 2);
    driver.rings[0].publish();
    eventually("the callback", || served.backend.counters().in_flight == 1);
    // Their worker is in the device's hands.
    for index in 1..QUEUES {
        driver.client.start_ring(index.into(), &driver.rings[usize::from(index)]).unwrap();
    }
    let Served { backend, device, directory, .. } = served;
    let (stopped, heard) = mpsc::channel();
    let stopper = thread::spawn(move || {
        let stuck = backend.stop(Duration::ZERO);
        stopped.send(stuck).unwrap();
    });
    assert_eq!(heard.recv_timeout(LIMIT).unwrap(), [Stuck { queue: 0, requests: 1 }]);
    device.block.set(false);
    stopper.join().unwrap();
    drop(directory);
}
