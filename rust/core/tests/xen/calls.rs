//! How often the hypervisor is called.
//!
//! A batch is what the driver has made available while the ring was disabled, so that each test
//! knows what its calls were for.

use std::sync::{Arc, Mutex};

use vhost_user_core::device::Device;
use vhost_user_core::request::Batch;
use vhost_user_core::wire::RegionLayout;
use vhost_user_core::xen::XenCalls;

use super::guest::*;
use super::raw::*;

/// Requests of the largest batch.
const BATCH: u64 = 64;
/// Grants that may cost a map call of their own.
const GRANTS_OF_A_CALL: u64 = 128;

/// Pages of request `n`: `TABLES + n`, `HEADERS + n`, and `MOST_PAGES` from `DATA + n * MOST_PAGES`
/// on.
const TABLES: u64 = 64;
const HEADERS: u64 = 128;
const DATA: u64 = 256;
const MOST_PAGES: u64 = 16;

/// Takes all that is there at once; writes the first byte that it reads to all that it may write.
#[derive(Default)]
struct Whole {
    batches: Mutex<Vec<usize>>,
    keeps: bool,
}

impl Device for Whole {
    plain!(queues: 1, ring: 256);
    fn batch_limit(&self, _queue: u16, available: u16) -> u16 {
        available
    }
    fn keeps_requests(&self) -> bool {
        self.keeps
    }
    fn handle(&self, _queue: u16, batch: &mut Batch) {
        self.batches.lock().unwrap().push(batch.len());
        while let Some(request) = batch.next() {
            let mut first = [0];
            request.readable().read_at(0, &mut first);
            let written = request.writable().fill(0, u64::MAX, first[0]);
            batch.complete(request, written as u32);
        }
    }
}

/// What a request has beside a header that is read and a status byte that is written.
#[derive(Clone, Copy, Debug)]
struct Shape {
    pages: u64,
    written: bool,
    indirect: bool,
}

/// A guest whose pages are granted on demand, and its device.
struct Bench {
    guest: Guest,
    raw: Raw,
    device: Arc<Whole>,
    _served: Served,
}

impl Bench {
    fn new(copy_below: u64, keeps: bool) -> Self {
        let guest = Guest::granting();
        let device = Arc::new(Whole { keeps, ..Whole::default() });
        let served = Served::new(Arc::clone(&device) as Arc<_>, &guest, copy_below);
        let raw = Raw::start(&served, guest.whole(RegionLayout::XenMerged, ON_DEMAND));
        Self { guest, raw, device, _served: served }
    }

    /// One batch of these requests; returns the calls that it took. When a request is seen used
    /// none of its pages is mapped.
    fn batch(&mut self, shapes: &[Shape]) -> XenCalls {
        let before = self.guest.xen.calls();
        self.device.batches.lock().unwrap().clear();
        self.raw.publish_at_once(|raw| {
            (0..).zip(shapes).for_each(|(number, shape)| push(raw, number, shape));
        });
        for _ in shapes {
            let used = self.raw.used();
            assert_eq!(used.len as u64, written(&shapes[usize::from(used.head)]));
            assert_eq!(self.guest.xen.in_use(DOMID), [FIRST_REF], "the ring's page alone");
        }
        assert_eq!(*self.device.batches.lock().unwrap(), [shapes.len()], "one batch");
        (0..).zip(shapes).for_each(|(number, shape)| check(&self.raw, number, shape));
        since(self.guest.xen.calls(), before)
    }
}

fn push(raw: &mut Raw, number: u64, shape: &Shape) {
    let (header, data) = (HEADERS + number, DATA + number * MOST_PAGES);
    raw.write(header, &[number as u8 + 1; 17]);
    (0..shape.pages).for_each(|page| raw.write(data + page, &[0xff; PAGE as usize]));
    let header = raw.address(header);
    let data = (raw.address(data), (shape.pages * PAGE) as u32, shape.written);
    let buffers = [(header, 16, false), data, (header + 16, 1, true)];
    if shape.indirect {
        return raw.push_table(number as u16, TABLES + number, &buffers);
    }
    // Behind the heads of all requests there is room for the rest of every fourth.
    let rest = (BATCH + number / 2) as u16;
    raw.push_at(&[number as u16, rest, rest + 1], &buffers);
}

fn written(shape: &Shape) -> u64 {
    1 + if shape.written { shape.pages * PAGE } else { 0 }
}

fn check(raw: &Raw, number: u64, shape: &Shape) {
    let mark = number as u8 + 1;
    assert_eq!(raw.read(HEADERS + number, 17), [mark; 17]);
    let data = raw.read(DATA + number * MOST_PAGES, (shape.pages * PAGE) as usize);
    let expected = if shape.written { mark } else { 0xff };
    assert!(data.iter().all(|&byte| byte == expected), "request {number}, {shape:?}");
}

fn since(now: XenCalls, before: XenCalls) -> XenCalls {
    XenCalls {
        map_frames: now.map_frames - before.map_frames,
        frames: now.frames - before.frames,
        unrestricted: now.unrestricted - before.unrestricted,
        map_grants: now.map_grants - before.map_grants,
        grants: now.grants - before.grants,
        unmap_grants: now.unmap_grants - before.unmap_grants,
        copy_grants: now.copy_grants - before.copy_grants,
        pieces: now.pieces - before.pieces,
    }
}

#[test]
fn the_tables_of_a_batch_cost_one_copy_call_and_each_is_read_once() {
    for written in [false, true] {
        let shapes = [Shape { pages: 1, written, indirect: true }; BATCH as usize];
        // A call for tables, for what is read, for what was written.
        let copied = Bench::new(u64::MAX, false).batch(&shapes);
        let pieces = BATCH * 4;
        assert_eq!(copied, XenCalls { copy_grants: 3, pieces, ..XenCalls::default() });
        // Headers and status bytes are copied all the same.
        let mapped = Bench::new(0, false).batch(&shapes);
        let (map_grants, unmap_grants, pieces) = (1, 1, BATCH * 3);
        let calls = XenCalls {
            map_grants,
            unmap_grants,
            copy_grants: 3,
            pieces,
            grants: BATCH,
            ..XenCalls::default()
        };
        assert_eq!(mapped, calls);
    }
}

#[test]
fn a_batch_costs_at_most_one_map_call_and_one_unmap_call_for_each_128_grants() {
    for (copy_below, keeps) in [(0, false), (64 << 10, false), (512 << 10, false), (0, true)] {
        let mut bench = Bench::new(copy_below, keeps);
        let mut random = pattern(1 << 16, copy_below).into_iter();
        let mut mapped = 0;
        for count in [1, 2, 64, 7, 64, 33, 64, 20] {
            // From few pages to more than fit in one call's worth.
            let most = u64::from(random.next().unwrap()) % MOST_PAGES + 1;
            let mut shape = |number| {
                let [a, b] = [random.next().unwrap(), random.next().unwrap()];
                let pages = u64::from(a) % most + 1;
                Shape { pages, written: b & 1 != 0, indirect: number % 4 != 0 || b & 2 != 0 }
            };
            let shapes: Vec<_> = (0..count).map(&mut shape).collect();
            let grants: u64 = shapes.iter().map(|shape| shape.pages).sum();
            let calls = bench.batch(&shapes);
            let allowed = grants.div_ceil(GRANTS_OF_A_CALL);
            assert!(calls.map_grants <= allowed, "{calls:?} for {grants} grants of {count}");
            assert_eq!(calls.unmap_grants, calls.map_grants);
            assert!(calls.copy_grants <= 3, "{calls:?}");
            mapped += calls.map_grants;
        }
        assert_eq!(mapped > 0, !keeps, "requests that may be kept are copied, being small");
    }
}

#[test]
fn two_directions_with_few_pages_share_one_call() {
    let read = Shape { pages: 2, written: false, indirect: true };
    let write = Shape { pages: 3, written: true, indirect: true };
    let calls = Bench::new(0, false).batch(&[read, write, read, write]);
    assert_eq!((calls.map_grants, calls.unmap_grants, calls.grants), (1, 1, 6));
    let shapes = [[read; 16], [Shape { pages: 6, ..write }; 16]].concat();
    let calls = Bench::new(0, false).batch(&shapes);
    assert_eq!((calls.map_grants, calls.grants), (1, 96), "128 pages");
    let shapes = [&shapes[..], &[Shape { pages: 1, ..read }]].concat();
    let calls = Bench::new(0, false).batch(&shapes);
    assert_eq!((calls.map_grants, calls.grants), (2, 129), "one page more");
}

#[test]
fn rings_are_mapped_once() {
    let mut bench = Bench::new(u64::MAX, false);
    let start = bench.guest.xen.calls();
    assert_eq!((start.map_grants, start.unmap_grants), (3, 0), "the three parts of a ring");
    let shape = Shape { pages: 3, written: true, indirect: true };
    for _ in 0..100 {
        bench.batch(&[shape; 8]);
    }
    let end = bench.guest.xen.calls();
    assert_eq!((end.map_grants, end.unmap_grants), (3, 0));
}

#[test]
fn a_batch_ends_when_its_tables_are_large() {
    // 16 KiB each, of which the first two descriptors are used: 16 tables are 256 KiB.
    const LARGE: u64 = 16 << 10;
    let mut bench = Bench::new(u64::MAX, false);
    let before = bench.guest.xen.calls();
    bench.raw.publish_at_once(|raw| {
        for number in 0..40 {
            let table = DATA + number * MOST_PAGES;
            let header = raw.address(HEADERS + number);
            raw.write_table(table, &[(header, 16, false), (header + 16, 1, true)]);
            raw.push_indirect(number as u16, table, LARGE as u32);
        }
    });
    (0..40).for_each(|_| assert_eq!(bench.raw.used().len, 1));
    assert_eq!(*bench.device.batches.lock().unwrap(), [16, 16, 8]);
    let calls = since(bench.guest.xen.calls(), before);
    assert_eq!((calls.copy_grants, calls.pieces), (3 * 3, 40 * (LARGE / PAGE + 2)));
}
