//! What a back-end writes to guest memory is noted in the dirty log.
//!
//! Data buffers are looked at above all: QEMU brings a used ring over that was not marked.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use vhost_user_core::address::GuestAddr;
use vhost_user_core::backend::Event;
use vhost_user_core::frontend::{
    Descriptor, DirtyLog, GuestMemory, RegionSpec, SplitRing, Used, WRITE, Wanted,
};
use vhost_user_core::request::Request;
use vhost_user_core::wire::ProtocolFeatures;
use vhost_user_core::wire::payload::Log;

use super::served::*;

const LOG_ALL: u64 = 1 << 26;
/// Where a request's readable buffer is: in the page before that of the writable one.
const AT: u64 = 0x8_0800;
/// The page of the writable buffer, and the one with the used ring of queue 0.
const DATA: u64 = 0x81;
const USED: u64 = 0;

/// A front-end that has its back-end's writes logged.
struct Logged {
    driver: Driver,
    log: DirtyLog,
    features: u64,
}

impl Logged {
    /// With rings that run, and nothing logged yet.
    fn new(served: &Served) -> Self {
        let mut driver = served.driver();
        let log = DirtyLog::of(&driver.memory).unwrap();
        let features = driver.client.features().unwrap() & !LOG_ALL;
        let features = features & Wanted::default().features | 1 << 32 | 1 << 30;
        driver.client.set_features(features).unwrap();
        Self { driver, log, features }
    }

    /// With all that is written logged, as QEMU asks for it.
    fn logging(served: &Served) -> Self {
        let mut logged = Self::new(served);
        logged.driver.client.set_log(&logged.log).unwrap();
        logged.log_all(true);
        logged.log_used(true);
        logged
    }

    fn log_all(&mut self, on: bool) {
        let bit = if on { LOG_ALL } else { 0 };
        self.driver.client.set_features(self.features | bit).unwrap();
    }

    fn log_used(&mut self, on: bool) {
        let Driver { client, rings, .. } = &mut self.driver;
        for (index, ring) in (0..).zip(rings) {
            client.log_ring(index, &*ring, on).unwrap();
        }
    }

    /// The pages that were marked since, but for the used ring's: the device writes there at times
    /// of its own.
    fn data(&self) -> Vec<u64> {
        self.log.take().into_iter().filter(|&page| page != USED).collect()
    }

    /// One request there and back, its writable buffer in the page behind that of `at`.
    fn ask_at(&mut self, at: u64) {
        self.push(0, at);
        assert_eq!(self.driver.used(0).len, 8);
    }

    fn push(&mut self, queue: usize, at: u64) {
        self.driver.push(queue, 0, b"12345678", at);
        self.driver.rings[queue].publish();
    }
}

/// A device that keeps what it gets, with so long to give it back.
fn keeping(queues: u16, drain: Duration) -> (Served, Receiver<Request>) {
    let (keep, kept) = mpsc::channel();
    let device = Mirror { queues, keep: Some(Mutex::new(keep)), ..Mirror::default() };
    (Served::with(device, |options| options.drain = drain), kept)
}

#[test]
fn data_and_used_ring_are_marked_before_the_driver_sees_the_answer() {
    let served = Served::new(Mirror::default());
    let mut front = Logged::logging(&served);
    for _ in 0..100 {
        front.ask_at(AT);
        assert_eq!(front.log.take(), [USED, DATA]);
    }
}

#[test]
fn all_pages_of_a_buffer_are_marked_and_no_others() {
    let served = Served::new(Mirror::default());
    let mut front = Logged::logging(&served);
    let Logged { driver, log, .. } = &mut front;
    // From the middle of page 0x202 to the first byte of page 0x205, in the second region.
    driver.memory.fill(GuestAddr(0x20_0000), 0x2801, 1).unwrap();
    let ring = &mut driver.rings[0];
    ring.set_descriptor(0, Descriptor { addr: 0x20_0000, len: 0x2801, flags: 1, next: 1 });
    ring.set_descriptor(1, Descriptor { addr: 0x20_2800, len: 0x2801, flags: WRITE, next: 0 });
    ring.push(0);
    ring.publish();
    driver.used(0);
    assert_eq!(log.take(), [USED, 0x202, 0x203, 0x204, 0x205]);
}

#[test]
fn nothing_is_marked_without_a_log_or_without_log_all_and_no_used_ring_without_its_flag() {
    let served = Served::new(Mirror::default());
    let mut front = Logged::new(&served);
    front.log_all(true);
    front.log_used(true);
    front.ask_at(AT);
    assert_eq!(front.log.take(), []);
    front.driver.client.set_log(&front.log).unwrap();
    front.ask_at(AT);
    assert_eq!(front.log.take(), [USED, DATA]);
    front.log_used(false);
    front.log.take();
    front.ask_at(AT);
    assert_eq!(front.log.take(), [DATA]);
    front.log_used(true);
    front.log_all(false);
    front.log.take();
    front.ask_at(AT);
    assert_eq!(front.log.take(), []);
    assert!(!served.device.log.lock().unwrap().contains(&"stopped"), "no ring was restarted");
}

#[test]
fn a_request_that_was_popped_before_logging_began_is_marked_when_it_is_answered() {
    let (served, kept) = keeping(1, LIMIT);
    let mut front = Logged::new(&served);
    front.push(0, AT);
    let request = kept.recv_timeout(LIMIT).unwrap();
    front.driver.client.set_log(&front.log).unwrap();
    front.log_all(true);
    let written = invert(&request);
    request.complete(written).unwrap();
    front.driver.used(0);
    assert_eq!(front.log.take(), [DATA]);
}

/// A device may write and fail, or say that it has written less than it has.
#[test]
fn whatever_the_device_says_all_that_it_could_write_is_marked() {
    let (served, kept) = keeping(1, LIMIT);
    let mut front = Logged::logging(&served);
    for answer in [None, Some(0), Some(4)] {
        front.push(0, AT);
        let request = kept.recv_timeout(LIMIT).unwrap();
        request.writable().fill(0, 8, 0x5a);
        match answer {
            None => drop(request),
            Some(written) => request.complete(written).unwrap(),
        }
        assert_eq!(front.driver.used(0), Used { head: 0, len: answer.unwrap_or(0) });
        assert_eq!(front.data(), [DATA], "{answer:?}");
    }
}

#[test]
fn what_a_late_request_had_written_before_it_failed_is_marked_before_the_base_is_told() {
    let (served, kept) = keeping(1, Duration::from_millis(50));
    let mut front = Logged::logging(&served);
    front.push(0, AT);
    let request = kept.recv_timeout(LIMIT).unwrap();
    request.writable().fill(0, 4, 0x5a);
    front.log.take();
    assert_eq!(front.driver.client.vring_base(0).unwrap(), 1);
    assert_eq!(front.log.take(), [USED, DATA]);
    // What it writes now reaches nobody.
    request.writable().fill(4, 4, 0x5a);
    let mut bytes = [0; 8];
    front.driver.memory.read(GuestAddr(DATA << 12), &mut bytes).unwrap();
    assert_eq!(bytes, [0x5a, 0x5a, 0x5a, 0x5a, 0, 0, 0, 0]);
}

#[test]
fn what_a_late_request_had_written_that_stays_in_the_record_is_marked() {
    let (served, kept) = keeping(1, Duration::from_millis(50));
    let wanted = Wanted::default();
    let protocol = wanted.protocol | ProtocolFeatures::INFLIGHT_SHMFD;
    let socket = served.directory.join("device.sock");
    let mut driver = Driver::connect_as(&socket, 1, &Wanted { protocol, ..wanted });
    let (inflight, fd) = driver.client.inflight_fd(1, 128).unwrap();
    driver.client.set_inflight_fd(&inflight, fd.as_fd()).unwrap();
    driver.start();
    let log = DirtyLog::of(&driver.memory).unwrap();
    let mut front = Logged { driver, log, features: wanted.features | 1 << 32 | 1 << 30 };
    front.driver.client.set_log(&front.log).unwrap();
    front.log_all(true);
    front.push(0, AT);
    let request = kept.recv_timeout(LIMIT).unwrap();
    request.writable().fill(0, 4, 0x5a);
    front.driver.client.vring_base(0).unwrap();
    assert_eq!(front.driver.rings[0].pop().unwrap(), None, "it is in the record");
    assert_eq!(front.log.take(), [DATA]);
}

#[test]
fn a_region_that_comes_later_is_logged_as_those_before_it() {
    let served = Served::new(Mirror::default());
    let mut front = Logged::new(&served);
    let spec = RegionSpec { guest: GuestAddr(16 * MIB), size: MIB };
    let later = GuestMemory::new(&[spec]).unwrap();
    let long = DirtyLog::of(&later).unwrap();
    front.driver.client.set_log(&long).unwrap();
    front.log_all(true);
    front.driver.client.add_region(&later.regions()[0]).unwrap();
    let Driver { rings, memory, .. } = &mut front.driver;
    memory.write(GuestAddr(AT), b"12345678").unwrap();
    rings[0].set_descriptor(0, Descriptor { addr: AT, len: 8, flags: 1, next: 1 });
    let addr = 17 * MIB - 0x1000;
    rings[0].set_descriptor(1, Descriptor { addr, len: 8, flags: WRITE, next: 0 });
    rings[0].push(0);
    rings[0].publish();
    front.driver.used(0);
    assert_eq!(long.take(), [0x10ff]);
}

#[test]
fn pages_beyond_a_log_that_is_too_short_are_left_out_and_the_log_says_so_once() {
    let served = Served::new(Mirror::default());
    let mut front = Logged::new(&served);
    // Pages up to 0x7f.
    let short = DirtyLog::new(16).unwrap();
    front.driver.client.set_log(&short).unwrap();
    front.log_all(true);
    front.log_used(true);
    for _ in 0..3 {
        front.ask_at(AT);
        assert_eq!(short.take(), [USED]);
    }
    let lines = || served.events.count(|event| matches!(event, Event::LogTooShort { .. }));
    eventually("the warning", || lines() > 0);
    assert_eq!(lines(), 1);
    let event = served.events.all().into_iter().find(|e| matches!(e, Event::LogTooShort { .. }));
    let line = event.unwrap().to_string();
    assert!(line.contains("guest address 0x81000") && line.contains("16 bytes where 17"), "{line}");
}

fn mappings_of(log: &DirtyLog) -> usize {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&log.as_fd()));
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap()).to_string();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.split_whitespace().nth(4) == Some(&inode)).count()
}

#[test]
fn a_log_is_not_used_any_more_when_the_next_one_is_answered() {
    let served = Served::new(Mirror::default());
    let mut front = Logged::logging(&served);
    front.ask_at(AT);
    assert_eq!(mappings_of(&front.log), 2, "ours, and the back-end's");
    let next = DirtyLog::of(&front.driver.memory).unwrap();
    front.driver.client.set_log(&next).unwrap();
    assert_eq!(mappings_of(&front.log), 1);
    front.log.take();
    front.ask_at(AT);
    assert_eq!((front.log.take(), next.take()), (vec![], vec![USED, DATA]));
    drop(front);
    eventually("the end of the connection", || mappings_of(&next) == 1);
}

#[test]
fn a_front_end_that_cuts_its_log_loses_its_connection_and_nothing_else() {
    let served = Served::new(Mirror::default());
    let mut front = Logged::logging(&served);
    rustix::fs::ftruncate(&front.log, 0).unwrap();
    front.push(0, AT);
    eventually("the end of the connection", || {
        served.events.any(|event| matches!(event, Event::Closed(_)))
    });
    drop(front);
    Logged::logging(&served).ask_at(AT);
}

fn eventfd_of(count: u32) -> OwnedFd {
    eventfd(count, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

#[test]
fn whoever_gave_an_eventfd_for_the_log_is_told_when_something_was_noted() {
    let served = Served::new(Mirror::default());
    let mut front = Logged::logging(&served);
    let event = eventfd_of(0);
    front.driver.client.set_log_fd(event.as_fd()).unwrap();
    front.ask_at(AT);
    let mut fds = [PollFd::from_borrowed_fd(event.as_fd(), PollFlags::IN)];
    let limit = Timespec { tv_sec: LIMIT.as_secs() as i64, tv_nsec: 0 };
    assert_eq!(poll(&mut fds, Some(&limit)), Ok(1));
    let file = fs::File::open("/dev/null").unwrap();
    assert!(front.driver.client.set_log_fd(file.as_fd()).is_err());
}

#[test]
fn a_log_that_cannot_be_mapped_ends_the_connection_and_says_why() {
    for (fd, size, offset, why) in [
        (OwnedFd::from(fs::File::open("/dev/null").unwrap()), 8, 0, "not a regular file"),
        (eventfd_of(0), 8, 0, "not a regular file"),
        (memfd(4096), 8192, 0, "its file has 0x1000 bytes"),
        (memfd(8192), 4096, 8, "no multiple of a page"),
    ] {
        let served = Served::new(Mirror::default());
        let mut front = Logged::new(&served);
        assert!(front.driver.client.set_log_base(&Log { size, offset }, fd.as_fd()).is_err());
        let said = |event: &Event| matches!(event, Event::Closed(line) if line.contains(why));
        eventually(why, || served.events.any(said));
    }
}

fn memfd(len: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, len).unwrap();
    fd
}

/// All bits that were set so far, of a log that somebody clears all the time.
struct Seen(DirtyLog, Mutex<BTreeSet<u64>>);

impl Seen {
    /// Whether the page was marked since this was asked for it last.
    fn has(&self, page: u64) -> bool {
        let mut seen = self.1.lock().unwrap();
        seen.extend(self.0.take());
        seen.remove(&page)
    }
}

#[test]
fn two_devices_that_have_one_log_lose_no_mark_of_each_other() {
    const ROUNDS: usize = 3000;
    let served = [(); 2].map(|()| Served::new(Mirror::default()));
    let log = DirtyLog::new(1024).unwrap();
    let seen = Seen(log, Mutex::default());
    thread::scope(|scope| {
        for (number, served) in (0..).zip(&served) {
            let seen = &seen;
            scope.spawn(move || {
                let mut front = Logged::new(served);
                front.driver.client.set_log(&seen.0).unwrap();
                front.log_all(true);
                for round in 0..ROUNDS {
                    // Of the pages of one word of the log each device has every second.
                    let page = 0x80 + 2 * (round as u64 % 30) + number;
                    front.ask_at((page << 12) - 2048);
                    assert!(seen.has(page), "device {number}, round {round}");
                }
            });
        }
    });
}

#[test]
fn a_copy_made_while_the_device_writes_is_complete_once_the_rings_have_stopped() {
    let served = Served::new(Mirror { queues: 2, ..Mirror::default() });
    for _ in 0..20 {
        let mut front = Logged::new(&served);
        let memory = Arc::clone(&front.driver.memory);
        let Driver { client, rings, .. } = &mut front.driver;
        client.set_log(&front.log).unwrap();
        let mut copy = Copy::new(&memory);
        let rings = std::mem::take(rings);
        let stop = AtomicBool::new(false);
        let answered = [const { AtomicU64::new(0) }; 2];
        let rings = thread::scope(|scope| {
            let work = |(queue, ring)| {
                let (memory, stop, answered) = (&memory, &stop, &answered[queue]);
                scope.spawn(move || keep_busy(ring, memory, queue as u64, (stop, answered)))
            };
            let working: Vec<_> = (0..).zip(rings).map(work).collect();
            front.driver.client.set_features(front.features | LOG_ALL).unwrap();
            copy.take(0..0x500);
            eventually("answers on both queues", || {
                copy.take(front.log.take());
                answered.iter().all(|answered| answered.load(Ordering::Relaxed) > 200)
            });
            // The driver goes on until it is stopped, as a guest does.
            for queue in [0, 1] {
                front.driver.client.vring_base(queue).unwrap();
            }
            copy.take(front.log.take());
            stop.store(true, Ordering::SeqCst);
            working.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        copy.is_complete(BUSY_PAGES);
        drop(rings);
    }
}

/// The pages that the device writes to in this test, and nobody else.
const BUSY_PAGES: std::ops::Range<u64> = 0x400..0x440;

/// Asks for one request after the other until there is no answer. Only the device writes to
/// `BUSY_PAGES`.
fn keep_busy(
    mut ring: SplitRing,
    memory: &GuestMemory,
    queue: u64,
    (stop, answered): (&AtomicBool, &AtomicU64),
) -> SplitRing {
    for number in 0_u64.. {
        let source = 0x8_0000 + 0x1000 * queue;
        let page = BUSY_PAGES.start + 32 * queue + number % 32;
        memory.write(GuestAddr(source), &number.to_le_bytes()).unwrap();
        ring.set_descriptor(0, Descriptor { addr: source, len: 8, flags: 1, next: 1 });
        let addr = (page << 12) + 8 * (number % 512);
        ring.set_descriptor(1, Descriptor { addr, len: 8, flags: WRITE, next: 0 });
        ring.push(0);
        ring.publish();
        loop {
            if ring.pop().unwrap().is_some() {
                answered.fetch_add(1, Ordering::Relaxed);
                break;
            }
            if stop.load(Ordering::SeqCst) {
                return ring;
            }
            std::hint::spin_loop();
        }
    }
    ring
}

/// A copy of guest memory elsewhere.
struct Copy<'a> {
    memory: &'a GuestMemory,
    pages: std::collections::BTreeMap<u64, Vec<u8>>,
}

impl<'a> Copy<'a> {
    fn new(memory: &'a GuestMemory) -> Self {
        Self { memory, pages: Default::default() }
    }

    fn take(&mut self, pages: impl IntoIterator<Item = u64>) {
        for page in pages {
            if let Some(bytes) = self.now(page) {
                self.pages.insert(page, bytes);
            }
        }
    }

    fn now(&self, page: u64) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 4096];
        self.memory.read(GuestAddr(page << 12), &mut bytes).ok().map(|()| bytes)
    }

    fn is_complete(&self, pages: std::ops::Range<u64>) {
        for page in pages {
            assert!(self.pages.get(&page) == self.now(page).as_ref(), "page {page:#x} differs");
        }
    }
}
