//! The guest runs here while pages of its memory are still on their way.
//!
//! The test is the front-end of QEMU's destination: it takes all pages out of the files that it shares,
//! and brings each when the back-end misses it.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use vhost_user_core::address::GuestAddr;
use vhost_user_core::backend::Event;
use vhost_user_core::frontend::{Client, FrontendError, MissingPages, PAGE, Region, Used, Wanted};
use vhost_user_core::wire::{Flags, Frame, ProtocolFeatures};

use super::served::*;

/// Where the data of the first request is: pages that nothing else lies in.
const DATA: u64 = 2 * MIB;
/// Where the device writes its answer: [`Driver::push`].
const ANSWER: u64 = DATA + 2048;

/// What is on its way.
struct Arriving {
    pages: MissingPages,
    /// The pages that are here.
    here: BTreeSet<u64>,
    /// Where each region is, and what it holds.
    contents: Vec<(u64, Vec<u8>)>,
}

fn wanted(never: ProtocolFeatures) -> Wanted {
    let wanted = Wanted::default();
    let protocol = wanted.protocol.difference(never) | ProtocolFeatures::PAGEFAULT;
    Wanted { protocol, ..wanted }
}

/// A new connection that has come as far as listening.
fn listening(served: &Served, never: ProtocolFeatures) -> (Client, MissingPages) {
    let mut client = Client::connect(&served.directory.join("device.sock"), LIMIT).unwrap();
    let negotiated = client.negotiate(&wanted(never)).unwrap();
    assert!(
        negotiated.protocol.contains(ProtocolFeatures::PAGEFAULT),
        "these tests need the right to catch page faults: run them as root"
    );
    let pages = client.postcopy_advise().unwrap();
    client.postcopy_listen().unwrap();
    client.set_features(negotiated.features).unwrap();
    (client, pages)
}

impl Arriving {
    /// Takes all pages out of the driver's memory, and gives the memory to a new connection.
    fn begin(served: &Served, driver: &mut Driver, never: ProtocolFeatures) -> Self {
        let (client, pages) = listening(served, never);
        let contents = driver.memory.regions().iter().map(|region| {
            let mut bytes = vec![0; region.size() as usize];
            driver.memory.read(region.guest(), &mut bytes).unwrap();
            take_out(region, 0, region.size());
            (region.guest().0, bytes)
        });
        let contents = contents.collect();
        let mut arriving = Self { pages, here: BTreeSet::new(), contents };
        driver.client = client;
        driver.client.set_missing_memory(&driver.memory, &mut arriving.pages).unwrap();
        arriving
    }

    /// Brings a page that is missed, and returns it.
    fn bring_next(&mut self, driver: &Driver) -> u64 {
        let page = self.next();
        self.bring(driver, page);
        page
    }

    fn next(&self) -> u64 {
        self.pages.next(LIMIT).unwrap().expect("a page is missed").0
    }

    fn bring(&mut self, driver: &Driver, page: u64) {
        if self.here.insert(page) {
            let of = |&&(start, ref bytes): &&(u64, Vec<u8>)| {
                (start..start + bytes.len() as u64).contains(&page)
            };
            let (start, bytes) = self.contents.iter().find(of).unwrap();
            let at = (page - start) as usize;
            driver.memory.write(GuestAddr(page), &bytes[at..at + PAGE as usize]).unwrap();
        }
        self.pages.has_arrived(GuestAddr(page)).unwrap();
    }

    /// Brings what is missed until `page` is.
    fn bring_until(&mut self, driver: &Driver, page: u64) {
        loop {
            let next = self.next();
            if next == page {
                return;
            }
            self.bring(driver, next);
        }
    }

    /// Brings all that is missing.
    fn finish(&mut self, driver: &mut Driver) {
        let pages = |&(start, ref bytes): &(u64, Vec<u8>)| {
            (start..start + bytes.len() as u64).step_by(PAGE as usize)
        };
        let all: Vec<u64> = self.contents.iter().flat_map(pages).collect();
        all.into_iter().for_each(|page| self.bring(driver, page));
        driver.client.postcopy_end().unwrap();
    }
}

fn take_out(region: &Region, at: u64, len: u64) {
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(region.as_fd(), how, at, len).unwrap();
}

/// Whether a page is missing in the file of a region.
fn is_missing(region: &Region, at: u64) -> bool {
    seek(region.as_fd(), SeekFrom::Hole(at)).unwrap() == at
}

/// A ring that has stopped, with a request that nobody has looked at.
fn with_a_request(served: &Served) -> Driver {
    let mut driver = served.driver();
    driver.client.vring_base(0).unwrap();
    driver.push(0, 0, b"abc", DATA);
    driver.rings[0].publish();
    driver
}

fn start(driver: &mut Driver) {
    driver.start();
    driver.rings[0].kick();
}

fn answer(driver: &mut Driver) -> [u8; 3] {
    assert_eq!(driver.used(0), Used { head: 0, len: 3 });
    let mut answer = [0; 3];
    driver.memory.read(GuestAddr(ANSWER), &mut answer).unwrap();
    answer
}

const INVERTED: [u8; 3] = [!b'a', !b'b', !b'c'];

#[test]
fn each_page_that_is_missed_is_waited_for_and_the_request_is_served() {
    for never in [ProtocolFeatures::empty(), ProtocolFeatures::CONFIGURE_MEM_SLOTS] {
        let (source, destination) =
            (Served::new(Mirror::default()), Served::new(Mirror::default()));
        let mut driver = with_a_request(&source);
        let mut arriving = Arriving::begin(&destination, &mut driver, never);
        start(&mut driver);
        while !arriving.here.contains(&DATA) {
            arriving.bring_next(&driver);
        }
        // The ring's parts and the data, in one page each; nothing else was asked for.
        assert!(arriving.here.contains(&0));
        assert!(arriving.here.len() <= 3, "{:?}", arriving.here);
        eventually("an answer", || destination.backend.stats()[0].requests == 1);
        arriving.finish(&mut driver);
        assert_eq!(answer(&mut driver), INVERTED);
        assert!(destination.events.any(|event| matches!(event, Event::PostcopyBegan)));
        assert!(destination.events.any(|event| matches!(event, Event::PostcopyEnded)));
        assert_eq!(driver.ask(0, b"more"), b"more".map(|byte| !byte));
    }
}

#[test]
fn the_device_gets_no_request_before_all_of_its_pages_are_there() {
    let (source, destination) = (Served::new(Mirror::default()), Served::new(Mirror::default()));
    let mut driver = with_a_request(&source);
    let mut arriving = Arriving::begin(&destination, &mut driver, ProtocolFeatures::empty());
    start(&mut driver);
    arriving.bring_until(&driver, DATA);
    // The control thread waits for no page: messages are answered, those about this queue too.
    assert!(driver.client.features().unwrap() > 0);
    driver.client.set_vring_call(0, Some(driver.rings[0].call_fd())).unwrap();
    assert!(destination.device.batches.lock().unwrap().is_empty());
    arriving.bring(&driver, DATA);
    eventually("an answer", || destination.backend.stats()[0].requests == 1);
    arriving.finish(&mut driver);
    assert_eq!(answer(&mut driver), INVERTED);
}

#[test]
fn nothing_is_touched_before_the_front_end_answers_for_the_pages() {
    let (source, destination) = (Served::new(Mirror::default()), Served::new(Mirror::default()));
    let driver = with_a_request(&source);
    driver.memory.regions().iter().for_each(|region| take_out(region, 0, region.size()));
    let (mut client, mut pages) = listening(&destination, ProtocolFeatures::empty());
    client.tell_missing_memory(&driver.memory, &mut pages).unwrap();
    let refused = client.start_ring(0, &driver.rings[0]);
    assert!(matches!(refused, Err(FrontendError::Refused { message: "SET_VRING_KICK", .. })));
    assert_eq!(pages.next(Duration::ZERO).unwrap(), None);
    client.acknowledge_memory().unwrap();
    client.start_ring(0, &driver.rings[0]).unwrap();
    assert!(pages.next(LIMIT).unwrap().is_some());
}

/// A page of zeroes that nobody has sent would be one of the guest's from then on.
#[test]
fn a_front_end_that_leaves_is_let_go_and_no_page_is_made_in_its_memory() {
    for wait_for in [0, DATA] {
        let (source, destination) =
            (Served::new(Mirror::default()), Served::new(Mirror::default()));
        let mut driver = with_a_request(&source);
        let mut arriving = Arriving::begin(&destination, &mut driver, ProtocolFeatures::empty());
        start(&mut driver);
        arriving.bring_until(&driver, wait_for);
        let memory = std::sync::Arc::clone(&driver.memory);
        drop((driver, arriving.pages));
        // The next one is served.
        let next = destination.driver().ask(0, b"next");
        assert_eq!(next, b"next".map(|byte| !byte));
        assert!(destination.events.any(|event| matches!(event, Event::PostcopyGivenUp)));
        assert_eq!(*destination.device.batches.lock().unwrap(), [1], "that of the next alone");
        let of_data = memory.regions().iter().find(|r| r.guest().0 == DATA).unwrap();
        assert!(is_missing(of_data, 0));
        assert_eq!(is_missing(&memory.regions()[0], 0), wait_for == 0);
    }
}

#[test]
fn a_back_end_that_is_stopped_waits_for_no_page() {
    let (source, destination) = (Served::new(Mirror::default()), Served::new(Mirror::default()));
    let mut driver = with_a_request(&source);
    let mut arriving = Arriving::begin(&destination, &mut driver, ProtocolFeatures::empty());
    start(&mut driver);
    arriving.bring_until(&driver, DATA);
    destination.backend.stop(Duration::ZERO);
    assert!(destination.backend.wait_stopped(Some(Duration::ZERO)));
    assert!(destination.device.batches.lock().unwrap().is_empty());
    let of_data = driver.memory.regions().iter().find(|r| r.guest().0 == DATA).unwrap();
    assert!(is_missing(of_data, 0));
}

#[test]
fn after_the_end_nobody_is_asked_for_pages() {
    let (source, destination) = (Served::new(Mirror::default()), Served::new(Mirror::default()));
    let mut driver = with_a_request(&source);
    let mut arriving = Arriving::begin(&destination, &mut driver, ProtocolFeatures::empty());
    arriving.finish(&mut driver);
    start(&mut driver);
    assert_eq!(answer(&mut driver), INVERTED);
    // A page that is taken out now is one of zeroes.
    let region = driver.memory.regions().iter().find(|r| r.guest().0 == 4 * MIB).unwrap();
    take_out(region, 0, MIB);
    // The answer begins on a page that only the device touches.
    driver.push(0, 2, b"four", 4 * MIB + 2048);
    assert!(is_missing(&driver.memory.regions()[2], PAGE));
    driver.rings[0].publish();
    assert_eq!(driver.used(0), Used { head: 2, len: 4 });
    assert!(!is_missing(&driver.memory.regions()[2], PAGE));
    assert_eq!(arriving.pages.next(Duration::ZERO).unwrap(), None);
}

#[test]
fn late_requests_fail_while_pages_are_on_their_way_and_the_log_says_what_that_means() {
    let (keep, kept) = mpsc::channel();
    let device = Mirror { keep: Some(Mutex::new(keep)), ..Mirror::default() };
    let source = Served::new(Mirror::default());
    let destination = Served::with(device, |options| options.drain = Duration::from_millis(50));
    let mut driver = with_a_request(&source);
    let mut arriving = Arriving::begin(&destination, &mut driver, ProtocolFeatures::empty());
    start(&mut driver);
    arriving.bring_until(&driver, DATA);
    arriving.bring(&driver, DATA);
    let late = kept.recv_timeout(LIMIT).unwrap();
    assert_eq!(driver.client.vring_base(0).unwrap(), 1);
    let told = |event: &Event| {
        matches!(event, Event::NotTaken(_)) && event.to_string().contains("still on their way")
    };
    assert!(destination.events.any(told));
    assert!(late.complete(0).is_err());
    arriving.finish(&mut driver);
    assert_eq!(driver.used(0), Used { head: 0, len: 0 });
}

#[test]
fn memory_that_nobody_can_be_asked_for_is_refused() {
    let served = Served::new(Mirror::default());
    let (mut client, _pages) = listening(&served, ProtocolFeatures::empty());
    let path = served.directory.join("memory");
    let file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
    file.set_len(MIB).unwrap();
    // Padding, guest address, size, user address, offset.
    let words = [0, 0, MIB, 0x7f00_0000_0000, 0];
    let payload = words.map(u64::to_ne_bytes).concat();
    let flags = Flags::VERSION | Flags::NEED_REPLY;
    client.raw(&Frame::new(37, flags, payload, vec![OwnedFd::from(file)])).unwrap();
    assert_eq!(client.raw_reply().unwrap().payload, 1_u64.to_ne_bytes());
    let why = "guest address 0x0: this process cannot wait for its missing pages";
    let told =
        |event: &Event| matches!(event, Event::Refused(_)) && event.to_string().contains(why);
    assert!(served.events.any(told));
}

#[test]
fn postcopy_that_was_advised_and_never_came_changes_nothing() {
    let served = Served::new(Mirror::default());
    let mut driver =
        Driver::connect_as(&served.directory.join("device.sock"), 1, &wanted(Default::default()));
    let pages = driver.client.postcopy_advise().unwrap();
    driver.start();
    assert_eq!(driver.ask(0, b"one"), b"one".map(|byte| !byte));
    let refused = driver.client.postcopy_listen();
    assert!(matches!(refused, Err(FrontendError::Refused { .. })), "memory is mapped");
    assert_eq!(pages.next(Duration::ZERO).unwrap(), None);
    assert!(!served.device.leave.load(Ordering::SeqCst));
}
