//! A device on a running back-end, and a front-end with rings that drives it.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vhost_user_core::address::GuestAddr;
use vhost_user_core::backend::{Backend, Event, Observer, Options};
use vhost_user_core::device::{Device, StateForm, StateRefused};
use vhost_user_core::frontend::{
    Client, Descriptor, GuestMemory, NEXT, RegionSpec, RingLayout, SplitRing, Used, WRITE, Wanted,
};
use vhost_user_core::request::{Batch, Request};
use vhost_user_core::socket::{Endpoint, ListenOptions};
use vhost_user_core::wire::ProtocolFeatures;

use super::support::Directory;

pub(crate) const LIMIT: Duration = Duration::from_secs(10);
pub(crate) const RING: u16 = 64;

/// Answers each request with its own bytes, turned upside down; or keeps it for the test.
#[derive(Default)]
pub(crate) struct Mirror {
    pub(crate) queues: u16,
    pub(crate) keep: Option<Mutex<Sender<Request>>>,
    pub(crate) leave: AtomicBool,
    pub(crate) block: Gate,
    /// How often a queue was about to stop.
    pub(crate) stopping: AtomicU32,
    pub(crate) log: Mutex<Vec<&'static str>>,
    /// What it saves and has loaded, if it does.
    pub(crate) state: Mutex<Option<Vec<u8>>>,
    /// How many requests each batch had.
    pub(crate) batches: Mutex<Vec<usize>>,
}

/// Closed, it holds whoever passes.
#[derive(Default)]
pub(crate) struct Gate(Mutex<bool>, Condvar);

impl Gate {
    pub(crate) fn set(&self, closed: bool) {
        *self.0.lock().unwrap() = closed;
        self.1.notify_all();
    }

    pub(crate) fn pass(&self) {
        let closed = self.0.lock().unwrap();
        drop(self.1.wait_while(closed, |closed| *closed).unwrap());
    }
}

pub(crate) fn invert(request: &Request) -> u32 {
    let mut bytes = vec![0; request.readable().len() as usize];
    request.readable().read_at(0, &mut bytes);
    bytes.iter_mut().for_each(|b| *b = !*b);
    request.writable().write_at(0, &bytes) as u32
}

impl Device for Mirror {
    fn virtio_id(&self) -> u32 {
        4
    }
    fn features(&self) -> u64 {
        0
    }
    fn num_queues(&self) -> u16 {
        self.queues.max(1)
    }
    fn max_queue_size(&self) -> u16 {
        1024
    }
    fn config_len(&self) -> usize {
        8
    }
    fn read_config(&self, offset: usize, out: &mut [u8]) {
        for (place, byte) in (offset..8).zip(out) {
            *byte = place as u8 + 1;
        }
    }
    fn started(&self) {
        self.log.lock().unwrap().push("started");
    }
    fn stopped(&self) {
        self.log.lock().unwrap().push("stopped");
    }
    fn queue_stopping(&self, _queue: u16) {
        self.stopping.fetch_add(1, Ordering::SeqCst);
    }
    fn can_be_left(&self, _queue: u16, request: &Request) -> bool {
        let mut first = [0];
        request.readable().read_at(0, &mut first);
        first == *b"r"
    }
    fn reset(&self) {
        self.log.lock().unwrap().push("reset");
    }
    fn state_form(&self) -> Option<StateForm> {
        let form = StateForm { name: "mirror".to_owned(), version: 2 };
        self.state.lock().unwrap().is_some().then_some(form)
    }
    fn save(&self) -> Result<Vec<u8>, StateRefused> {
        self.log.lock().unwrap().push("save");
        self.block.pass();
        match self.state.lock().unwrap().clone().unwrap() {
            bad if bad == b"bad" => Err(StateRefused("it is bad".to_owned())),
            bad if bad == b"panic" => panic!("at the disco"),
            state => Ok(state),
        }
    }
    fn load(&self, version: u32, state: &[u8]) -> Result<(), StateRefused> {
        self.log.lock().unwrap().push("load");
        self.block.pass();
        if version != 2 || state == b"bad" {
            return Err(StateRefused("it is bad".to_owned()));
        }
        *self.state.lock().unwrap() = Some(state.to_vec());
        Ok(())
    }
    fn disconnected(&self) {
        self.log.lock().unwrap().push("disconnected");
    }
    fn handle(&self, _queue: u16, batch: &mut Batch) {
        self.batches.lock().unwrap().push(batch.len());
        if self.leave.load(Ordering::SeqCst) {
            return;
        }
        while let Some(request) = batch.next() {
            self.block.pass();
            match &self.keep {
                Some(kept) => kept.lock().unwrap().send(request).unwrap(),
                None => {
                    let written = invert(&request);
                    batch.complete(request, written);
                }
            }
        }
    }
}

/// Remembers all events.
#[derive(Default)]
pub(crate) struct Events(Mutex<Vec<Event>>);

impl Observer for Events {
    fn event(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl Events {
    pub(crate) fn any(&self, wanted: impl Fn(&Event) -> bool) -> bool {
        self.count(wanted) > 0
    }

    pub(crate) fn all(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.0.lock().unwrap().iter().filter(|event| wanted(event)).count()
    }
}

pub(crate) struct Served {
    pub(crate) backend: Backend,
    pub(crate) device: Arc<Mirror>,
    pub(crate) events: Arc<Events>,
    pub(crate) directory: Directory,
}

impl Served {
    pub(crate) fn new(device: Mirror) -> Self {
        Self::with(device, |_| ())
    }

    pub(crate) fn with(device: Mirror, change: impl FnOnce(&mut Options)) -> Self {
        let directory = Directory::new();
        let mut options =
            Options::new(Endpoint::Listen(ListenOptions::new(directory.join("device.sock"))));
        change(&mut options);
        let (device, events) = (Arc::new(device), Arc::new(Events::default()));
        let backend = Backend::start(
            Arc::clone(&device) as Arc<dyn Device>,
            options,
            Arc::clone(&events) as Arc<dyn Observer>,
        )
        .unwrap();
        Self { backend, device, events, directory }
    }

    /// A device that hands every request to the test.
    pub(crate) fn keeping() -> (Self, Receiver<Request>) {
        let (keep, kept) = mpsc::channel();
        (Self::new(Mirror { keep: Some(Mutex::new(keep)), ..Mirror::default() }), kept)
    }

    pub(crate) fn driver(&self) -> Driver {
        Driver::new(&self.directory.join("device.sock"), self.device.num_queues())
    }
}

/// A front-end with rings that run.
pub(crate) struct Driver {
    pub(crate) client: Client,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) rings: Vec<SplitRing>,
}

pub(crate) const MIB: u64 = 1 << 20;

impl Driver {
    pub(crate) fn connect(socket: &Path, queues: u16) -> Self {
        Self::connect_as(socket, queues, &Wanted::default())
    }

    /// Connects, negotiates this, and shares memory.
    pub(crate) fn connect_as(socket: &Path, queues: u16, wanted: &Wanted) -> Self {
        let regions = [(0, MIB), (2 * MIB, MIB), (4 * MIB, MIB)];
        let specs = regions.map(|(guest, size)| RegionSpec { guest: GuestAddr(guest), size });
        let mut memory = GuestMemory::new(&specs).unwrap();
        let mut client = Client::connect(socket, LIMIT).unwrap();
        let negotiated = client.negotiate(wanted).unwrap();
        if negotiated.protocol.contains(ProtocolFeatures::GPA_ADDRESSES) {
            memory = memory.with_guest_addresses();
        }
        let memory = Arc::new(memory);
        client.set_features(negotiated.features).unwrap();
        client.set_memory(&memory).unwrap();
        let mut at = GuestAddr(0);
        let rings = (0..queues)
            .map(|_| {
                let layout = RingLayout::at(at, RING);
                at = GuestAddr(layout.end().0.next_multiple_of(4096));
                SplitRing::new(&memory, layout, true).unwrap()
            })
            .collect();
        Self { client, memory, rings }
    }

    pub(crate) fn new(socket: &Path, queues: u16) -> Self {
        let mut driver = Self::connect(socket, queues);
        driver.start();
        driver
    }

    pub(crate) fn start(&mut self) {
        for (index, ring) in (0..).zip(&self.rings) {
            self.client.start_ring(index, ring).unwrap();
            self.client.set_vring_enable(index, true).unwrap();
        }
    }

    /// Puts a request into ring `queue`, its buffers at `at` in guest memory; not yet published.
    pub(crate) fn push(&mut self, queue: usize, head: u16, data: &[u8], at: u64) {
        self.memory.write(GuestAddr(at), data).unwrap();
        let len = data.len() as u32;
        let ring = &mut self.rings[queue];
        let readable = Descriptor { addr: at, len, flags: NEXT, next: head + 1 };
        let writable = Descriptor { addr: at + 2048, len, flags: WRITE, next: 0 };
        ring.set_descriptor(head, readable);
        ring.set_descriptor(head + 1, writable);
        ring.push(head);
    }

    pub(crate) fn used(&mut self, queue: usize) -> Used {
        let ring = &mut self.rings[queue];
        loop {
            if let Some(used) = ring.pop().unwrap() {
                return used;
            }
            assert!(ring.wait(LIMIT, self.client.as_fd()).unwrap(), "no request came back");
        }
    }

    /// One request there and back.
    pub(crate) fn ask(&mut self, queue: usize, data: &[u8]) -> Vec<u8> {
        let at = MIB / 2;
        self.push(queue, 0, data, at);
        self.rings[queue].publish();
        let used = self.used(queue);
        assert_eq!(used, Used { head: 0, len: data.len() as u32 });
        let mut answer = vec![0; data.len()];
        self.memory.read(GuestAddr(at + 2048), &mut answer).unwrap();
        answer
    }
}

pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn guest_mappings() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("/memfd:")).count()
}
