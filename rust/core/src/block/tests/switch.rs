//! The cache is turned off while writes of several queues are on their way.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use super::*;
use crate::block::{BlockRequest, ByteRange, Image};

const WRITERS: usize = 8;

/// One thing that happened; the number is the writer's, or the sync's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// A write has reached the image.
    Wrote {
        writer: usize,
        durable: bool,
    },
    SyncBegan(usize),
    SyncEnded(usize),
    /// The driver has got the status of its write.
    Completed(usize),
    /// The front-end has got the reply to its change of the cache mode.
    Replied,
}

/// Everything, in order.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<Event>>>);

impl Log {
    fn add(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

/// An image that logs what becomes durable. A write is named by the sector it goes to.
#[derive(Debug)]
struct Logged {
    log: Log,
    syncs: AtomicUsize,
}

impl Image for Logged {
    fn read(&self, request: &BlockRequest) -> io::Result<u64> {
        Ok(request.length())
    }

    fn write(&self, request: &BlockRequest, durable: bool) -> io::Result<u64> {
        thread::yield_now();
        self.log.add(Event::Wrote { writer: request.offset() as usize / 512, durable });
        thread::yield_now();
        Ok(request.length())
    }

    fn write_bytes(&self, bytes: &[u8], _offset: u64) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn sync(&self) -> io::Result<()> {
        let number = self.syncs.fetch_add(1, Ordering::Relaxed);
        self.log.add(Event::SyncBegan(number));
        thread::yield_now();
        self.log.add(Event::SyncEnded(number));
        Ok(())
    }

    fn punch_hole(&self, _range: ByteRange) -> io::Result<()> {
        Ok(())
    }

    fn zero_range(&self, _range: ByteRange) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(512 * WRITERS as u64)
    }
}

/// Whether the write that `writer` saw completed at `events[at]` was on stable storage when
/// `events[by]` came.
fn was_durable(events: &[Event], writer: usize, at: usize, by: usize) -> bool {
    let wrote = |event: &Event| matches!(*event, Event::Wrote { writer: w, .. } if w == writer);
    let write = events[..at].iter().rposition(wrote).expect("a write comes before its completion");
    let since = &events[write..by];
    let synced = |number| since.contains(&Event::SyncEnded(number));
    let sync = |event: &Event| matches!(*event, Event::SyncBegan(number) if synced(number));
    matches!(events[write], Event::Wrote { durable: true, .. }) || since.iter().any(sync)
}

/// Writes from all writers while the cache is turned off; returns what happened.
fn run() -> Vec<Event> {
    let log = Log::default();
    let image = Logged { log: log.clone(), syncs: AtomicUsize::new(0) };
    let disk = FileDisk::new(image, false).unwrap();
    let device = BlockDevice::new(disk, &BlockOptions::default()).unwrap();
    device.negotiated(F_FLUSH | F_CONFIG_WCE);
    let start = Barrier::new(WRITERS + 1);
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (log, device, start) = (&log, &device, &start);
            scope.spawn(move || {
                let mut driver = Driver::new();
                start.wait();
                for _ in 0..8 {
                    let write = header(OUT, writer as u64, &[1; 512]);
                    driver.send(device, &write, 1).assert_only_status(OK);
                    log.add(Event::Completed(writer));
                }
            });
        }
        start.wait();
        device.write_config(32, &[0]).unwrap();
        log.add(Event::Replied);
    });
    std::mem::take(&mut log.0.lock().unwrap())
}

#[test]
fn from_the_reply_on_each_write_is_durable_before_it_completes() {
    for _ in 0..20 {
        let events = run();
        let reply = events.iter().position(|&event| event == Event::Replied).unwrap();
        for (at, event) in events.iter().enumerate().skip(reply) {
            if let Event::Completed(writer) = *event {
                assert!(was_durable(&events, writer, at, at), "event {at} of {events:?}");
            }
        }
    }
}

#[test]
fn the_flush_at_the_switch_ends_before_the_reply_and_covers_what_had_completed() {
    for _ in 0..20 {
        let events = run();
        let reply = events.iter().position(|&event| event == Event::Replied).unwrap();
        for (at, event) in events[..reply].iter().enumerate() {
            if let Event::Completed(writer) = *event {
                assert!(was_durable(&events, writer, at, reply), "event {at} of {events:?}");
            }
        }
    }
}
