//! A device that shares something with other processes has it while its rings run, and no longer.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vhost_user_core::backend::{Backend, Event, Observer, Options};
use vhost_user_core::device::{Acquired, Device, NotGivenUp, Unavailable};
use vhost_user_core::frontend::Wanted;
use vhost_user_core::request::{Batch, Request};
use vhost_user_core::socket::{Endpoint, ListenOptions};

use super::served::*;
use super::support::Directory;

/// Keeps the requests of queue 0 for the test and answers others, and notes what it is told.
struct Sharing {
    kept: Mutex<Sender<Request>>,
    somebody_has_it: Mutex<bool>,
    told: Mutex<Vec<String>>,
}

impl Sharing {
    fn tell(&self, what: impl Into<String>) {
        self.told.lock().unwrap().push(what.into());
    }

    /// What it was told since the last look.
    fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock().unwrap())
    }
}

impl Device for Sharing {
    plain!(queues: 2, ring: 64);
    fn acquire(&self) -> Result<Acquired, Unavailable> {
        self.tell("acquire");
        match *self.somebody_has_it.lock().unwrap() {
            true => Err(Unavailable("somebody has it".to_owned())),
            false => Ok(Acquired { config_changed: false, warning: None }),
        }
    }
    fn release(&self, settled: bool) -> Result<(), NotGivenUp> {
        self.tell(format!("release {settled}"));
        if settled { Ok(()) } else { Err(NotGivenUp("requests are out".to_owned())) }
    }
    fn started(&self) {
        self.tell("started");
    }
    fn stopped(&self) {
        self.tell("stopped");
    }
    fn disconnected(&self) {
        self.tell("disconnected");
    }
    fn handle(&self, queue: u16, batch: &mut Batch) {
        while let Some(request) = batch.next() {
            if queue == 0 {
                self.kept.lock().unwrap().send(request).unwrap();
            } else {
                let written = invert(&request);
                batch.complete(request, written);
            }
        }
    }
}

struct Shared {
    backend: Backend,
    device: Arc<Sharing>,
    events: Arc<Events>,
    kept: Receiver<Request>,
    directory: Directory,
}

impl Shared {
    fn new() -> Self {
        let directory = Directory::new();
        let endpoint = Endpoint::Listen(ListenOptions::new(directory.join("device.sock")));
        let options = Options { drain: Duration::from_millis(50), ..Options::new(endpoint) };
        let (keep, kept) = mpsc::channel();
        let (somebody_has_it, told) = (Mutex::default(), Mutex::default());
        let device = Arc::new(Sharing { kept: Mutex::new(keep), somebody_has_it, told });
        let events = Arc::new(Events::default());
        let backend = Backend::start(
            Arc::clone(&device) as Arc<dyn Device>,
            options,
            Arc::clone(&events) as Arc<dyn Observer>,
        );
        Self { backend: backend.unwrap(), device, events, kept, directory }
    }

    fn connect(&self) -> Driver {
        Driver::connect_as(&self.directory.join("device.sock"), 2, &Wanted::default())
    }

    fn says_that_it_was_kept(&self) -> usize {
        self.events.count(|event| matches!(event, Event::NotGivenUp(_)))
    }
}

#[test]
fn it_is_taken_before_the_first_ring_starts_and_given_up_when_the_last_has_stopped() {
    let shared = Shared::new();
    let mut driver = shared.connect();
    driver.start();
    assert_eq!(shared.device.told(), ["acquire", "started"]);
    driver.client.vring_base(0).unwrap();
    assert_eq!(shared.device.told(), [""; 0]);
    driver.client.vring_base(1).unwrap();
    // The answer comes after it.
    assert_eq!(shared.device.told(), ["stopped", "release true"]);
    drop(driver);
    eventually("the end", || shared.device.told() == ["disconnected"]);
}

#[test]
fn a_ring_does_not_start_while_somebody_else_has_it() {
    let shared = Shared::new();
    let mut driver = shared.connect();
    *shared.device.somebody_has_it.lock().unwrap() = true;
    driver.client.start_ring(1, &driver.rings[1]).expect_err("nobody runs two at once");
    let refused = "refused: SET_VRING_KICK: queue 1: somebody has it";
    assert!(shared.events.any(|event| event.to_string() == refused));
    assert_eq!(shared.device.told(), ["acquire"]);
    // The connection goes on, and so does the ring, later.
    *shared.device.somebody_has_it.lock().unwrap() = false;
    driver.client.start_ring(1, &driver.rings[1]).unwrap();
    driver.client.set_vring_enable(1, true).unwrap();
    assert_eq!(driver.ask(1, &[7]), [!7]);
    assert_eq!(shared.device.told(), ["acquire", "started"]);
}

#[test]
fn it_is_given_up_again_where_the_first_ring_does_not_start() {
    let shared = Shared::new();
    let mut driver = shared.connect();
    let ring = &driver.rings[1];
    driver.client.set_vring_num(1, RING.into()).unwrap();
    driver.client.set_vring_addr(&ring.addresses(1)).unwrap();
    let file = File::open("/dev/null").unwrap();
    driver.client.set_vring_kick(1, Some(file.as_fd())).expect_err("it is no eventfd");
    assert_eq!(shared.device.told(), ["acquire", "release true"]);
}

#[test]
fn it_is_kept_while_requests_are_out_and_given_up_when_they_are_not() {
    let shared = Shared::new();
    let mut driver = shared.connect();
    driver.start();
    driver.push(0, 0, &[1], MIB / 2);
    driver.rings[0].publish();
    let late = shared.kept.recv_timeout(LIMIT).unwrap();
    driver.client.vring_base(0).unwrap();
    driver.client.vring_base(1).unwrap();
    assert_eq!(shared.device.told(), ["acquire", "started", "stopped", "release false"]);
    assert_eq!(shared.says_that_it_was_kept(), 1);
    // Another run of other rings does not change that, and nothing is said twice.
    driver.client.start_ring(1, &driver.rings[1]).unwrap();
    driver.client.vring_base(1).unwrap();
    assert_eq!(shared.device.told(), ["acquire", "started", "stopped", "release false"]);
    assert_eq!(shared.says_that_it_was_kept(), 1);
    drop(late);
    drop(driver);
    let expected = ["release true", "disconnected"];
    let mut told = Vec::new();
    eventually("the end", || {
        told.extend(shared.device.told());
        told == expected
    });
    drop(shared.backend);
}
