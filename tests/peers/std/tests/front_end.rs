//! rust-vmm's front-end drives the core's back-end through everything that both know.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use peers_std::{Guest, Kind, LEFT_OUT, Ring, SECTOR, Served, wait};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserVringAddrFlags};
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandlerMut,
    VhostUserProtocolFeatures as Protocol,
};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const SECTORS: u64 = 2048;
/// Guest memory for rings, and where data lies in it.
const LOW: (u64, usize) = (0x10_0000, 0x10_0000);
const DATA: u64 = LOW.0 + 0x1_0000;
/// A second and a third region.
const HIGH: (u64, usize) = (0x1_0000_0000, 0x1_0000);
const HIGHER: (u64, usize) = (0x2_0000_0000, 0x1_0000);
/// One bit for each page of 2 MiB and many more.
const LOG_BYTES: u64 = 4096;
const LOG_ALL: u64 = 1 << 26;
const OK: u8 = 0;
const IOERR: u8 = 1;

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(seed | 1) >> 3) as u8 ^ seed as u8).collect()
}

/// Sixteen writes of 4 KiB at once, and the same sectors read back into other memory.
fn write_and_read_back(ring: &mut Ring<'_>, guest: &Guest, seed: u64) {
    let (from, to) = (DATA, DATA + 0x2_0000);
    let bytes = pattern(seed, 16 * 4096);
    guest.write(from, &bytes);
    for (kind, at) in [(Kind::Write, from), (Kind::Read, to)] {
        for slot in 0..16 {
            let place = 4096 * u64::from(slot);
            ring.submit(slot, kind, 8 * (seed + u64::from(slot)), at + place, 4096);
        }
        let mut answers = ring.run(16);
        answers.sort_unstable();
        let len = if matches!(kind, Kind::Read) { 4097 } else { 1 };
        assert_eq!(answers, (0..16).map(|slot| (slot, OK, len)).collect::<Vec<_>>());
    }
    assert_eq!(guest.read(to, bytes.len()), bytes);
}

fn started(served: &Served, guest: &Guest) -> Frontend {
    let frontend = served.negotiate();
    frontend.set_mem_table(&guest.regions()).unwrap();
    frontend
}

#[test]
fn features_are_negotiated() {
    let served = Served::new(SECTORS);
    let mut frontend = served.negotiate();
    let wanted = Protocol::MQ
        | Protocol::REPLY_ACK
        | Protocol::BACKEND_REQ
        | Protocol::CONFIG
        | Protocol::RESET_DEVICE
        | Protocol::CONFIGURE_MEM_SLOTS
        | Protocol::STATUS;
    let offered = frontend.get_protocol_features().unwrap();
    assert!(offered.contains(wanted), "{offered:?}");
    assert!(!offered.intersects(Protocol::XEN_MMAP | Protocol::SHARED_OBJECT), "{offered:?}");
    assert_eq!(frontend.get_queue_num().unwrap(), 2);
    assert_eq!(frontend.get_max_mem_slots().unwrap(), 509);
}

#[test]
fn data_goes_to_the_disk_and_back_on_two_rings() {
    let (served, guest) = (Served::new(SECTORS), Guest::new(&[LOW]));
    let mut frontend = started(&served, &guest);
    for index in 0..2_u64 {
        let mut ring = Ring::new(&guest, LOW.0 + index * Ring::BYTES);
        ring.start(&mut frontend, index as usize, 0).unwrap();
        // Five times round the ring.
        for round in 0..10 {
            write_and_read_back(&mut ring, &guest, 20 * index + round);
        }
        ring.submit(0, Kind::Flush, 0, 0, 0);
        assert_eq!(ring.run(1), [(0, OK, 1)]);
        let last = pattern(20 * index + 9, 16 * 4096);
        let at = (8 * (20 * index + 9) * SECTOR) as usize;
        assert_eq!(served.image()[at..at + last.len()], last);
    }
    assert_eq!(served.backend.counters().requests, 2 * (10 * 32 + 1));
}

#[test]
fn a_request_past_the_end_of_the_disk_fails_alone() {
    let (served, guest) = (Served::new(SECTORS), Guest::new(&[LOW]));
    let mut frontend = started(&served, &guest);
    let mut ring = Ring::new(&guest, LOW.0);
    ring.start(&mut frontend, 0, 0).unwrap();
    ring.submit(0, Kind::Write, SECTORS, DATA, 512);
    assert_eq!(ring.run(1), [(0, IOERR, 1)]);
    write_and_read_back(&mut ring, &guest, 1);
}

#[test]
fn memory_slots_come_and_go() {
    let (served, guest) = (Served::new(SECTORS), Guest::new(&[LOW, HIGH, HIGHER]));
    let mut frontend = served.negotiate();
    let regions = guest.regions();
    for region in &regions {
        frontend.add_mem_region(region).unwrap();
    }
    let mut ring = Ring::new(&guest, LOW.0);
    ring.start(&mut frontend, 0, 0).unwrap();
    for at in [HIGH.0, HIGHER.0] {
        guest.write(at, &pattern(at, 4096));
        ring.submit(0, Kind::Write, 0, at, 4096);
        assert_eq!(ring.run(1), [(0, OK, 1)]);
        assert_eq!(served.image()[..4096], pattern(at, 4096));
    }
    assert!(frontend.add_mem_region(&regions[1]).is_err(), "the same slot twice");
    frontend.remove_mem_region(&regions[1]).unwrap();
    assert!(frontend.remove_mem_region(&regions[1]).is_err(), "removed twice");
    ring.submit(0, Kind::Read, 0, HIGHER.0 + 8192, 4096);
    assert_eq!(ring.run(1), [(0, OK, 4097)]);
    assert_eq!(guest.read(HIGHER.0 + 8192, 4096), pattern(HIGHER.0, 4096));
    // A request with a buffer in the removed slot fails alone: nothing is written there.
    ring.submit(1, Kind::Read, 0, HIGH.0, 4096);
    assert_eq!(ring.run(1), [(1, IOERR, 1)]);
    assert_eq!(guest.read(HIGH.0, 4096), pattern(HIGH.0, 4096));
    frontend.get_vring_base(0).unwrap();
    let mut ring = Ring::new(&guest, LOW.0);
    ring.start(&mut frontend, 0, 0).unwrap();
    write_and_read_back(&mut ring, &guest, 3);
}

/// The numbers of the pages that are marked in a log.
fn marked(log: &File) -> Vec<u64> {
    let mut bytes = [0; LOG_BYTES as usize];
    log.read_exact_at(&mut bytes, 0).unwrap();
    let is_set = |page: &u64| bytes[(page / 8) as usize] >> (page % 8) & 1 != 0;
    (0..8 * LOG_BYTES).filter(is_set).collect()
}

fn log_of(file: &File) -> Option<VhostUserDirtyLogRegion> {
    let mmap_handle = file.as_raw_fd();
    Some(VhostUserDirtyLogRegion { mmap_size: LOG_BYTES, mmap_offset: 0, mmap_handle })
}

fn new_log() -> File {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(LOG_BYTES).unwrap();
    file
}

#[test]
fn what_is_written_to_guest_memory_is_logged_and_the_log_may_be_replaced() {
    let (served, guest) = (Served::new(SECTORS), Guest::new(&[LOW]));
    let mut frontend = started(&served, &guest);
    let mut ring = Ring::new(&guest, LOW.0);
    ring.start(&mut frontend, 0, 0).unwrap();
    let (first, second) = (new_log(), new_log());
    // LOG_ALL was accepted with all else: without a log that means nothing.
    write_and_read_back(&mut ring, &guest, 1);
    frontend.set_log_base(0, log_of(&first)).unwrap();
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    frontend.set_log_fd(event.as_raw_fd()).unwrap();
    let flags = VhostUserVringAddrFlags::VHOST_VRING_F_LOG.bits();
    let log_addr = Some(LOW.0 + 0x600);
    frontend.set_vring_addr(0, &VringConfigData { flags, log_addr, ..ring.places() }).unwrap();
    write_and_read_back(&mut ring, &guest, 2);
    assert!(wait(&event));
    frontend.set_log_base(0, log_of(&second)).unwrap();
    // The used ring, status bytes, and the data of 16 reads.
    let read = (DATA + 0x2_0000) >> 12;
    let expected: Vec<_> = [0x100, 0x101].into_iter().chain(read..read + 16).collect();
    assert_eq!(marked(&first), expected);
    let all = frontend.get_features().unwrap();
    frontend.set_features(all & !(LEFT_OUT | LOG_ALL)).unwrap();
    write_and_read_back(&mut ring, &guest, 3);
    let base = frontend.get_vring_base(0).unwrap();
    assert_eq!(base, 96);
    assert!(marked(&second).iter().all(|&page| page == 0x100), "the used ring at most");
}

#[test]
fn a_stopped_ring_goes_on_where_it_was() {
    let (served, guest) = (Served::new(SECTORS), Guest::new(&[LOW]));
    let mut frontend = started(&served, &guest);
    let mut ring = Ring::new(&guest, LOW.0);
    ring.start(&mut frontend, 0, 0).unwrap();
    for round in 1..4 {
        write_and_read_back(&mut ring, &guest, round);
        let base = frontend.get_vring_base(0).unwrap();
        assert_eq!((base, ring.used_index()), (32 * round as u32, base as u16));
        ring.start(&mut frontend, 0, base as u16).unwrap();
    }
}

/// What was available before the ring was enabled needs no further kick.
#[test]
fn a_ring_is_looked_at_when_it_is_enabled() {
    let (served, guest) = (Served::new(SECTORS), Guest::new(&[LOW]));
    let mut frontend = started(&served, &guest);
    let mut ring = Ring::new(&guest, LOW.0);
    ring.start(&mut frontend, 0, 0).unwrap();
    frontend.set_vring_enable(0, false).unwrap();
    guest.write(DATA, &pattern(9, 512));
    ring.submit(0, Kind::Write, 0, DATA, 512);
    frontend.get_features().unwrap();
    assert_eq!(ring.used_index(), 0, "a disabled ring was served");
    frontend.set_vring_enable(0, true).unwrap();
    assert!(wait(&ring.call));
    assert_eq!((ring.used_index(), &served.image()[..512]), (1, pattern(9, 512).as_slice()));
}

#[test]
fn the_configuration_space_is_read_and_its_cache_mode_written() {
    let served = Served::new(SECTORS);
    let mut frontend = served.negotiate();
    let flags = VhostUserConfigFlags::empty();
    let (_, capacity) = frontend.get_config(0, 8, flags, &[0; 8]).unwrap();
    assert_eq!(capacity, SECTORS.to_le_bytes());
    // Past the device's own fields there are zeroes: some front-ends ask for all that there may be.
    let (_, all) = frontend.get_config(0, 256, flags, &[0; 256]).unwrap();
    assert_eq!((&all[..8], all.len()), (capacity.as_slice(), 256));
    let writeback = |frontend: &mut Frontend| frontend.get_config(32, 1, flags, &[0]).unwrap().1[0];
    assert_eq!(writeback(&mut frontend), 1);
    frontend.set_config(32, VhostUserConfigFlags::WRITABLE, &[0]).unwrap();
    assert_eq!(writeback(&mut frontend), 0);
    let taken = frontend.set_config(0, VhostUserConfigFlags::WRITABLE, &[0; 8]);
    assert!(taken.is_err(), "the capacity is not the driver's to change");
    let (_, capacity) = frontend.get_config(0, 8, flags, &[0; 8]).unwrap();
    assert_eq!(capacity, SECTORS.to_le_bytes());
}

struct Changes(Sender<()>);

impl VhostUserFrontendReqHandlerMut for Changes {
    fn handle_config_change(&mut self) -> HandlerResult<u64> {
        self.0.send(()).unwrap();
        Ok(0)
    }
}

#[test]
fn a_resize_is_told_to_the_front_end() {
    let served = Served::new(SECTORS);
    let mut frontend = served.negotiate();
    let (sender, changes) = channel();
    let mut handler = FrontendReqHandler::new(Arc::new(Mutex::new(Changes(sender)))).unwrap();
    handler.set_reply_ack_flag(true);
    frontend.set_backend_request_fd(&handler.get_tx_raw_fd().as_raw_fd()).unwrap();
    let listener = thread::spawn(move || handler.handle_request().unwrap());
    served.device.resize(2 * SECTORS * SECTOR).unwrap();
    served.backend.notify_config();
    changes.recv_timeout(Duration::from_secs(10)).expect("the front-end was not told");
    assert_eq!(listener.join().unwrap(), 0);
    let (_, capacity) = frontend.get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8]).unwrap();
    assert_eq!(capacity, (2 * SECTORS).to_le_bytes());
}

#[test]
fn a_reset_device_starts_anew() {
    let (served, guest) = (Served::new(SECTORS), Guest::new(&[LOW]));
    let mut frontend = started(&served, &guest);
    let mut ring = Ring::new(&guest, LOW.0);
    ring.start(&mut frontend, 0, 0).unwrap();
    write_and_read_back(&mut ring, &guest, 4);
    frontend.reset_device().unwrap();
    ring.submit(0, Kind::Read, 0, DATA, 512);
    ring.kick.write(1).unwrap();
    frontend.get_features().unwrap();
    assert_eq!(ring.used_index(), 32, "a ring went on after the reset");
    let mut ring = Ring::new(&guest, LOW.0);
    ring.start(&mut frontend, 0, 0).unwrap();
    write_and_read_back(&mut ring, &guest, 5);
}

#[test]
fn a_refused_message_changes_nothing_and_the_connection_goes_on() {
    let (served, guest) = (Served::new(SECTORS), Guest::new(&[LOW]));
    let mut frontend = started(&served, &guest);
    let mut ring = Ring::new(&guest, LOW.0);
    ring.start(&mut frontend, 0, 0).unwrap();
    assert!(frontend.set_vring_num(1, 63).is_err(), "no power of two");
    assert!(frontend.set_vring_base(0, 7).is_err(), "the ring runs");
    assert!(frontend.set_features(u64::MAX).is_err(), "features that were not offered");
    let mut short = guest.regions();
    short[0].memory_size += 0x1000;
    assert!(frontend.set_mem_table(&short).is_err(), "the file is shorter");
    let mut null = guest.regions();
    let device = File::open("/dev/null").unwrap();
    null[0].mmap_handle = device.as_fd().as_raw_fd();
    assert!(frontend.set_mem_table(&null).is_err(), "a device is no memory");
    write_and_read_back(&mut ring, &guest, 6);
}

#[test]
fn the_next_front_end_is_served_when_one_has_left() {
    let (served, guest) = (Served::new(SECTORS), Guest::new(&[LOW]));
    for round in 0..3 {
        let mut frontend = started(&served, &guest);
        let mut ring = Ring::new(&guest, LOW.0);
        ring.start(&mut frontend, 0, 0).unwrap();
        write_and_read_back(&mut ring, &guest, 7 + round);
    }
    assert_eq!(served.backend.counters().sessions, 3);
}
