//! What the driver is told about each request, and when.

use std::sync::Arc;

use super::*;
use crate::block::{BlkOp, BlockCore, BlockRequest, Geometry, NullDisk, Parsed, Status};
use crate::request::Stopped;

fn core() -> BlockCore {
    let disk = Geometry { discard: true, write_zeroes: true, ..Geometry::new(64 * 512) };
    let core = BlockCore::new(&disk, &BlockOptions::default()).unwrap();
    core.negotiated(u64::MAX);
    core
}

/// A request that is to be served, with `writable` bytes of room.
#[track_caller]
fn serve(driver: &mut Driver, readable: &[u8], writable: usize) -> BlockRequest {
    match core().parse(driver.pop(readable, writable)) {
        Parsed::Serve(request) => request,
        other => panic!("not served: {other:?}"),
    }
}

#[test]
fn a_read_that_moved_no_byte_counts_its_status_only() {
    let device = BlockDevice::new(NullDisk::new(512, 512), &BlockOptions::default()).unwrap();
    let mut driver = Driver::new();
    driver.send(&device, &header(IN, 0, &[]), 513).assert_only_status(OK);
    driver.send(&device, &header(OUT, 0, &[1; 512]), 1).assert_only_status(OK);
    driver.send(&device, &header(FLUSH, 0, &[]), 1).assert_only_status(OK);
}

#[test]
fn a_read_that_ends_early_counts_the_bytes_that_were_read() {
    let mut rig = Rig::new(4);
    let before = rig.content();
    rig.image.set_len(3 * 512 + 100).unwrap();
    let answer = rig.send(&header(IN, 2, &[]), 1025);
    assert_eq!((answer.status(), answer.used), (IOERR, 512 + 100 + 1));
    assert_eq!(answer.writable[..612], before[1024..1636]);
    assert!(answer.writable[612..1024].iter().all(|&byte| byte == 0xa5));
}

#[test]
fn a_request_that_is_dropped_fails_with_an_io_error() {
    let mut driver = Driver::new();
    drop(serve(&mut driver, &header(IN, 0, &[]), 513));
    assert_eq!(driver.collect(), [(0, 1)]);
    let writable = driver.writable(16, 513);
    assert_eq!((writable[511], writable[512]), (0xa5, IOERR));
}

#[test]
fn a_request_is_answered_from_another_thread() {
    let mut driver = Driver::new();
    let request = serve(&mut driver, &header(IN, 0, &[]), 513);
    let answer = move || {
        request.copy_from(0, &[7; 512]);
        request.complete(Status::Ok)
    };
    assert_eq!(std::thread::spawn(answer).join().unwrap(), Ok(()));
    assert_eq!(driver.collect(), [(0, 513)]);
    let mut expected = vec![7; 512];
    expected.push(OK);
    assert_eq!(driver.writable(16, 513), expected);
}

#[test]
fn nothing_is_written_once_the_ring_has_stopped() {
    let mut driver = Driver::new();
    let request = serve(&mut driver, &header(IN, 0, &[]), 513);
    assert!(request.is_live());
    driver.stop();
    assert!(!request.is_live());
    assert_eq!(request.complete(Status::Ok), Err(Stopped));
    assert_eq!(driver.writable(16, 513), [0xa5; 513]);
    assert_eq!(driver.collect(), []);
}

#[test]
fn a_request_that_is_dropped_after_the_ring_has_stopped_writes_nothing() {
    let mut driver = Driver::new();
    let request = serve(&mut driver, &header(OUT, 0, &[1; 512]), 1);
    driver.stop();
    drop(request);
    assert_eq!(driver.writable(528, 1), [0xa5]);
}

#[test]
fn a_refused_request_is_answered_from_another_thread() {
    let mut driver = Driver::new();
    let Parsed::Fail(refused) = core().parse(driver.pop(&header(99, 0, &[]), 10)) else {
        panic!("type 99 is no request");
    };
    assert_eq!(refused.status(), Some(Status::Unsupported));
    assert_eq!(std::thread::spawn(move || refused.complete()).join().unwrap(), Ok(()));
    assert_eq!(driver.collect(), [(0, 1)]);
    assert_eq!(driver.writable(16, 10)[9], UNSUPP);
}

#[test]
fn data_is_copied_at_its_own_offsets_and_cut_at_its_end() {
    let mut driver = Driver::new();
    let data = pattern(1024, 4);
    let request = serve(&mut driver, &header(OUT, 3, &data), 1);
    assert_eq!((request.op(), request.offset(), request.length()), (BlkOp::Write, 1536, 1024));
    let mut out = [0; 100];
    assert_eq!(request.copy_to(500, &mut out), 100);
    assert_eq!(out, data[500..600]);
    assert_eq!(request.copy_to(1000, &mut out), 24);
    assert_eq!(out[..24], data[1000..]);
    for past in [1024, 1025, u64::MAX] {
        assert_eq!(request.copy_to(past, &mut out), 0);
    }
    // A write's data is the driver's.
    assert_eq!(request.copy_from(0, &[1; 10]), 0);
    assert_eq!(request.fill(0, 10, 1), 0);
}

#[test]
fn no_offset_reaches_the_status_byte() {
    let mut driver = Driver::new();
    let request = serve(&mut driver, &header(IN, 0, &[]), 513);
    assert_eq!(request.copy_from(510, &[1; 10]), 2);
    for past in [512, 513, u64::MAX] {
        assert_eq!(request.copy_from(past, &[2; 10]), 0);
        assert_eq!(request.fill(past, u64::MAX, 3), 0);
    }
    assert_eq!(request.fill(0, u64::MAX, 4), 512);
    assert_eq!(request.copy_to(0, &mut [0; 10]), 0);
    assert_eq!(driver.writable(16, 513)[512], 0xa5);
    request.complete(Status::Ok).unwrap();
    assert_eq!(driver.collect(), [(0, 513)]);
}

#[test]
fn parts_are_the_data_and_nothing_else() {
    let mut driver = Driver::new();
    let len = |request: &BlockRequest| request.parts().map(|part| part.len()).sum::<usize>();
    let read = serve(&mut driver, &header(IN, 0, &[]), 5121);
    assert_eq!((len(&read), read.is_writable()), (5120, true));
    drop(read);
    driver.collect();
    let flush = serve(&mut driver, &header(FLUSH, 7, &[1; 100]), 100);
    assert_eq!((len(&flush), flush.offset(), flush.length()), (0, 0, 0));
}

#[test]
fn what_is_said_to_be_written_never_exceeds_the_data() {
    let mut driver = Driver::new();
    let request = serve(&mut driver, &header(IN, 0, &[]), 513);
    request.wrote(400);
    request.wrote(400);
    request.complete(Status::IoErr).unwrap();
    assert_eq!(driver.collect(), [(0, 513)]);
}

#[test]
fn ranges_come_in_the_drivers_order_without_empty_ones() {
    let mut driver = Driver::new();
    let list = [segment(9, 1, UNMAP), segment(4, 0, UNMAP), segment(2, 3, 0)].concat();
    let request = serve(&mut driver, &header(WRITE_ZEROES, 0, &list), 1);
    let ranges: Vec<_> = request.ranges().iter().map(|r| (r.offset, r.length)).collect();
    assert_eq!(ranges, [(9 * 512, 512), (2 * 512, 3 * 512)]);
    assert_eq!((request.offset(), request.length()), (9 * 512, 512));
    assert!(!request.unmap(), "one range must keep its space");
}

#[test]
fn a_single_range_is_a_list_of_one() {
    let mut driver = Driver::new();
    let request = serve(&mut driver, &header(WRITE_ZEROES, 0, &segment(2, 3, UNMAP)), 1);
    assert_eq!(request.ranges().len(), 1);
    assert!(request.unmap());
    drop(request);
    driver.collect();
    let empty = serve(&mut driver, &header(DISCARD, 0, &segment(2, 0, 0)), 1);
    assert_eq!((empty.ranges(), empty.length()), (&[][..], 0));
}

#[test]
fn requests_can_be_sent_to_and_shared_with_other_threads() {
    fn check<T: Send + Sync>() {}
    check::<BlockRequest>();
    check::<Arc<BlockCore>>();
}
