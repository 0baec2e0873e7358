//! Requests that are not served, and what the driver gets for them.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::block::{Attempt, FailureObserver, Refusal, Refusals};

/// Sectors of the disk in these tests.
const CAPACITY: u64 = 64;

#[test]
fn a_range_past_the_end_is_an_io_error_and_changes_nothing() {
    let mut rig = Rig::new(CAPACITY);
    let before = rig.content();
    // 2^55 sectors are 2^64 bytes: 0, were the product to wrap.
    let ranges = [
        (CAPACITY, 1),
        (CAPACITY - 1, 2),
        (1 << 55, 1),
        ((1 << 55) - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 1, 4),
        (0, CAPACITY as usize + 1),
    ];
    for (sector, sectors) in ranges {
        let data = vec![0xee; 512 * sectors];
        rig.send(&header(OUT, sector, &data), 1).assert_only_status(IOERR);
        rig.send(&header(IN, sector, &[]), data.len() + 1).assert_only_status(IOERR);
    }
    assert!(rig.content() == before, "the image has changed");
}

#[test]
fn data_of_no_whole_number_of_sectors_is_an_io_error() {
    let mut rig = Rig::new(CAPACITY);
    let before = rig.content();
    for len in [0, 1, 511, 513, 1023] {
        rig.send(&header(OUT, 0, &vec![0xee; len]), 1).assert_only_status(IOERR);
        rig.send(&header(IN, 0, &[]), len + 1).assert_only_status(IOERR);
    }
    assert!(rig.content() == before, "the image has changed");
}

#[test]
fn a_chain_without_a_whole_header_comes_back_empty() {
    let mut rig = Rig::new(CAPACITY);
    for len in [0, 1, 15] {
        rig.send(&header(IN, 0, &[])[..len], 513).assert_empty();
    }
    assert_eq!(rig.device.core().refused(), Refusals { failed: 0, empty: 3 });
    assert_eq!(rig.send(&header(IN, 0, &[]), 513).data().len(), 512);
}

#[test]
fn a_chain_without_room_for_a_status_comes_back_empty_and_does_nothing() {
    let mut rig = Rig::new(CAPACITY);
    let before = rig.content();
    rig.send(&header(OUT, 0, &[0xee; 512]), 0).assert_empty();
    rig.send(&header(IN, 0, &[]), 0).assert_empty();
    rig.send(&header(9, 0, &[]), 0).assert_empty();
    assert!(rig.content() == before, "the image has changed");
    assert_eq!(rig.device.core().refused().empty, 3);
    assert_eq!(rig.send(&header(IN, 0, &[]), 513).data().len(), 512);
}

#[test]
fn unknown_types_are_unsupported() {
    let mut rig = Rig::new(CAPACITY);
    // 0x80000001: the barrier flag of old drafts on a write.
    for kind in [2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 16, 24, 0x8000_0001, u32::MAX] {
        rig.send(&header(kind, 0, &[0xee; 512]), 513).assert_only_status(UNSUPP);
    }
    assert_eq!(rig.device.core().refused(), Refusals { failed: 14, empty: 0 });
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let mut rig = Rig::with(CAPACITY, true, u64::MAX);
    let before = rig.content();
    assert_eq!(rig.device.features() & (F_DISCARD | F_WRITE_ZEROES), 0);
    rig.send(&header(OUT, 0, &[0xee; 512]), 1).assert_only_status(IOERR);
    rig.send(&header(DISCARD, 0, &segment(0, 8, 0)), 1).assert_only_status(IOERR);
    rig.send(&header(WRITE_ZEROES, 0, &segment(0, 8, 0)), 1).assert_only_status(IOERR);
    assert!(rig.content() == before, "the image has changed");
    assert_eq!(rig.send(&header(IN, 0, &[]), 513).data(), &before[..512]);
    rig.send(&header(FLUSH, 0, &[]), 1).assert_only_status(OK);
}

#[test]
fn types_of_features_that_were_not_accepted_are_unsupported() {
    let mut rig = Rig::with(CAPACITY, false, F_FLUSH);
    let before = rig.content();
    rig.send(&header(DISCARD, 0, &segment(0, 8, 0)), 1).assert_only_status(UNSUPP);
    rig.send(&header(WRITE_ZEROES, 0, &segment(0, 8, 0)), 1).assert_only_status(UNSUPP);
    assert!(rig.content() == before, "the image has changed");
}

#[test]
fn broken_segment_lists_are_io_errors() {
    let mut rig = Rig::new(CAPACITY);
    let before = rig.content();
    for (kind, most) in [(DISCARD, 32), (WRITE_ZEROES, 8)] {
        for len in [0, 8, 15, 17, 24, 16 * most + 16] {
            let payload = vec![0; len];
            rig.send(&header(kind, 0, &payload), 1).assert_only_status(IOERR);
        }
        rig.send(&header(kind, 0, &segment(0, 1, 0).repeat(most)), 1).assert_only_status(OK);
    }
    let mut expected = before;
    expected[..512].fill(0);
    assert!(rig.content() == expected, "more than sector 0 has changed");
}

#[test]
fn segments_past_the_end_are_io_errors_and_none_is_carried_out() {
    let mut rig = Rig::new(CAPACITY);
    let before = rig.content();
    let ranges = [
        (0, u32::MAX),
        (CAPACITY, 1),
        (CAPACITY - 1, 2),
        (1 << 55, 8),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
    ];
    for (sector, sectors) in ranges {
        let mut segments = segment(0, 8, 0);
        segments.extend(segment(sector, sectors, 0));
        for kind in [DISCARD, WRITE_ZEROES] {
            rig.send(&header(kind, 0, &segments), 1).assert_only_status(IOERR);
            rig.send(&header(kind, 0, &segments[16..]), 1).assert_only_status(IOERR);
        }
    }
    assert!(rig.content() == before, "the image has changed");
}

#[test]
fn a_segment_longer_than_the_limit_is_an_io_error_on_a_disk_that_is_longer() {
    let mut rig = Rig::new(1);
    rig.device.resize(1 << 40).unwrap();
    let longer = segment(0, (1 << 22) + 1, 0);
    rig.send(&header(DISCARD, 0, &longer), 1).assert_only_status(IOERR);
    let longer = segment(0, (1 << 18) + 1, 0);
    rig.send(&header(WRITE_ZEROES, 0, &longer), 1).assert_only_status(IOERR);
}

#[test]
fn flags_that_a_segment_may_not_have_are_unsupported() {
    let mut rig = Rig::new(CAPACITY);
    let before = rig.content();
    let mut second_is_bad = segment(0, 8, 0);
    second_is_bad.extend(segment(8, 8, 1 << 31));
    for flags in [UNMAP, 2, 1 << 31, u32::MAX] {
        rig.send(&header(DISCARD, 0, &segment(0, 8, flags)), 1).assert_only_status(UNSUPP);
    }
    for flags in [2, 3, 1 << 31, u32::MAX] {
        rig.send(&header(WRITE_ZEROES, 0, &segment(0, 8, flags)), 1).assert_only_status(UNSUPP);
    }
    rig.send(&header(DISCARD, 0, &second_is_bad), 1).assert_only_status(UNSUPP);
    rig.send(&header(WRITE_ZEROES, 0, &second_is_bad), 1).assert_only_status(UNSUPP);
    assert!(rig.content() == before, "the image has changed");
}

#[test]
fn the_serial_number_fits_any_room() {
    let mut rig = Rig::new(CAPACITY);
    let serial = *b"disk-7\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    for writable in [1, 2, 7, 19, 20, 21, 22, 4096] {
        let answer = rig.send(&header(GET_ID, 0, &[]), writable);
        let len = serial.len().min(writable - 1);
        assert_eq!((answer.status(), answer.used as usize), (OK, len + 1));
        assert_eq!(answer.writable[..len], serial[..len]);
        // The driver's own bytes stay between serial number and status.
        assert!(answer.writable[len..writable - 1].iter().all(|&byte| byte == 0xa5));
    }
}

#[test]
fn a_serial_number_of_20_bytes_has_no_terminator() {
    let options = BlockOptions { serial: "ABCDEFGHIJKLMNOPQRST".into(), ..BlockOptions::default() };
    let device = BlockDevice::new(FileDisk::in_memory(512).unwrap(), &options).unwrap();
    let answer = Driver::new().send(&device, &header(GET_ID, 0, &[]), 21);
    assert_eq!(answer.data(), b"ABCDEFGHIJKLMNOPQRST");
}

/// Sends `request` over and over while another processor of the guest turns the u64 at `at`
/// between the first sector and the first one that the disk does not have. The image goes on
/// there: a check of one value and a use of the other would show.
fn meddle_with(request: &[u8], at: u64) {
    struct StopOnDrop<'a>(&'a AtomicBool);
    impl Drop for StopOnDrop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let mut rig = Rig::new(CAPACITY);
    rig.device.resize(512 * CAPACITY / 2).unwrap();
    let before = rig.content();
    let meddle = rig.driver.meddler();
    let stop = AtomicBool::new(false);
    let (mut good, mut bad) = (0, 0);
    std::thread::scope(|scope| {
        let _guard = StopOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                meddle(at, &(CAPACITY / 2).to_le_bytes());
                meddle(at, &0_u64.to_le_bytes());
            }
        });
        rig.driver.repeat(&rig.device, request, 1, |answer| {
            match answer.status() {
                OK => good += 1,
                _ => bad += 1,
            }
            // Until both values have been met often enough, however the threads take turns.
            good < 5000 || bad < 5000
        });
    });
    let half = 256 * CAPACITY as usize;
    assert!(rig.content()[half..] == before[half..], "the image past the disk has changed");
}

#[test]
fn a_header_that_changes_while_it_is_read_never_reaches_past_the_disk() {
    meddle_with(&header(OUT, 0, &[0xee; 512]), 8);
}

#[test]
fn a_segment_that_changes_while_it_is_read_never_reaches_past_the_disk() {
    meddle_with(&header(WRITE_ZEROES, 0, &segment(0, 1, UNMAP)), 16);
}

#[test]
fn data_that_a_request_does_not_need_is_left_alone() {
    let mut rig = Rig::new(CAPACITY);
    let before = rig.content();
    // A read with readable data, a write with more writable room than the status.
    let answer = rig.send(&header(IN, 0, &[0xee; 512]), 513);
    assert_eq!(answer.data(), &before[..512]);
    rig.send(&header(OUT, 0, &before[..512]), 513).assert_only_status(OK);
    assert!(rig.content() == before, "the image has changed");
}

/// Notes what it hears.
#[derive(Debug, Default)]
struct Heard(Mutex<Vec<String>>);

impl Heard {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl FailureObserver for Heard {
    fn refused(&self, queue: u16, why: &Refusal) {
        self.0.lock().unwrap().push(format!("{queue}: {why}"));
    }

    fn failed(&self, queue: u16, what: &Attempt, error: &io::Error) {
        let number = error.raw_os_error();
        self.0.lock().unwrap().push(format!("{queue}: {what}: {number:?}"));
    }
}

fn observed(mut rig: Rig) -> (Rig, Arc<Heard>) {
    let heard = Arc::new(Heard::default());
    rig.device = rig.device.observed_by(Arc::clone(&heard) as Arc<dyn FailureObserver>);
    (rig, heard)
}

#[test]
fn each_refusal_is_heard_of_with_its_rule_and_numbers() {
    let (mut rig, heard) = observed(Rig::new(CAPACITY));
    let cases: [(&[u8], usize, &str); 9] = [
        (
            &header(IN, 0, &[])[..15],
            513,
            "a chain of 15 readable and 513 writable bytes is no request: that has 16 and 1 at least",
        ),
        (&header(3, 0, &[]), 513, "a request of unknown type 0x3"),
        (
            &header(IN, CAPACITY - 1, &[]),
            1025,
            "a read of 1024 bytes at offset 32256 ends past the 32768 bytes of the disk",
        ),
        (
            &header(IN, u64::MAX, &[]),
            513,
            "a read of 512 bytes at offset 9444732965739290426880 ends past the 32768 bytes of the disk",
        ),
        (&header(IN, 0, &[]), 512, "a read of 511 bytes: not whole sectors of 512"),
        (&header(OUT, 0, &[]), 1, "a write of 0 bytes: not whole sectors of 512"),
        (
            &header(DISCARD, 0, &[0; 15]),
            1,
            "a discard with a list of 15 bytes: it has 16 for each range, 512 at most",
        ),
        (
            &header(WRITE_ZEROES, 0, &segment(0, 1 << 20, 0)),
            1,
            "a write_zeroes of 1048576 sectors at once: 262144 at most",
        ),
        (&header(DISCARD, 0, &segment(0, 1, 2)), 1, "a discard with unknown flags 0x2"),
    ];
    for (readable, writable, why) in cases {
        rig.send(readable, writable);
        assert_eq!(heard.take(), [format!("0: {why}")]);
    }
    rig.send(&header(IN, 0, &[]), 513);
    assert_eq!(heard.take(), [""; 0]);
}

#[test]
fn a_change_of_a_read_only_disk_and_a_feature_that_was_not_accepted_are_heard_of() {
    let (mut rig, heard) = observed(Rig::with(CAPACITY, true, u64::MAX));
    rig.send(&header(OUT, 0, &[0xee; 512]), 1);
    assert_eq!(heard.take(), ["0: a write, and the disk is read-only"]);
    let (mut rig, heard) = observed(Rig::with(CAPACITY, false, F_FLUSH));
    rig.send(&header(DISCARD, 0, &segment(0, 8, 0)), 1);
    assert_eq!(heard.take(), ["0: a discard, though the driver has not accepted that feature"]);
}

#[test]
fn what_the_host_fails_is_heard_of_with_its_error() {
    let (mut rig, heard) = observed(Rig::new(4));
    rig.image.set_len(512).unwrap();
    rig.send(&header(IN, 2, &[]), 1025).assert_only_status(IOERR);
    let [told] = &heard.take()[..] else { panic!("one failure is one report") };
    assert!(told.starts_with("0: read of 1024 bytes at offset 1024: "), "{told}");
}
