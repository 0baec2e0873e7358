//! How long anything of a guest's memory stays mapped.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use vhost_user_core::backend::State;
use vhost_user_core::block::{BlockDevice, BlockOptions, NullDisk};
use vhost_user_core::device::Device;
use vhost_user_core::request::{Batch, Request, Stopped};
use vhost_user_core::wire::RegionLayout;

use super::guest::*;
use super::raw::*;

/// Above this a request that may be kept is not copied.
const LARGE: u32 = 600 << 10;

/// Hands each request to the test.
struct Keeper {
    to: Mutex<Sender<Request>>,
    says_so: bool,
}

impl Keeper {
    fn new(says_so: bool) -> (Arc<Self>, Receiver<Request>) {
        let (to, kept) = mpsc::channel();
        (Arc::new(Self { to: Mutex::new(to), says_so }), kept)
    }
}

impl Device for Keeper {
    fn virtio_id(&self) -> u32 {
        4
    }
    fn features(&self) -> u64 {
        0
    }
    fn num_queues(&self) -> u16 {
        1
    }
    fn max_queue_size(&self) -> u16 {
        256
    }
    fn config_len(&self) -> usize {
        0
    }
    fn read_config(&self, _offset: usize, _out: &mut [u8]) {}
    fn keeps_requests(&self) -> bool {
        self.says_so
    }
    /// Answers requests with a readable part of one byte at once.
    fn handle(&self, _queue: u16, batch: &mut Batch) {
        while let Some(request) = batch.next() {
            if request.readable().len() == 1 {
                batch.complete(request, 0);
            } else {
                self.to.lock().unwrap().send(request).unwrap();
            }
        }
    }
}

fn null_disk() -> Arc<dyn Device> {
    Arc::new(BlockDevice::new(NullDisk::new(1 << 30), &BlockOptions::default()).unwrap())
}

fn start(served: &Served, guest: &Guest) -> Raw {
    Raw::start(served, guest.whole(RegionLayout::XenMerged, ON_DEMAND))
}

#[test]
fn a_guest_can_end_its_grants_as_soon_as_it_sees_the_request_used() {
    for copy_below in [u64::MAX, 0] {
        let guest = Guest::granting();
        let served = Served::new(null_disk(), &guest, copy_below);
        let mut raw = start(&served, &guest);
        for turn in 0..300 {
            let kind = if turn % 2 == 0 { READ } else { WRITE_OUT };
            let data = (raw.address(DATA_PAGE), 16 << 10);
            assert_eq!(raw.block(kind, &[data]).0, 0);
            for page in [HEADER_PAGE, STATUS_PAGE].into_iter().chain(DATA_PAGE..DATA_PAGE + 4) {
                let reference = FIRST_REF + page as u32;
                assert!(guest.xen.revoke(DOMID, reference), "{reference} is in use, turn {turn}");
                guest.xen.grant(DOMID, reference, FIRST_FRAME + page, true);
            }
        }
    }
}

#[test]
fn a_request_that_is_kept_reads_and_writes_the_guests_memory_until_it_is_answered() {
    for len in [4096, LARGE] {
        let guest = Guest::granting();
        let (device, kept) = Keeper::new(true);
        let served = Served::new(device, &guest, 0);
        let mut raw = start(&served, &guest);
        let content = pattern(len as usize, 1);
        raw.write(DATA_PAGE, &content);
        let (from, to) = (raw.address(DATA_PAGE), raw.address(DATA_PAGE + 512));
        raw.push(0, &[(from, len, false), (to, len, true)]);
        raw.ring.publish();
        let request = kept.recv_timeout(LIMIT).unwrap();
        // The next request is answered while that one is kept.
        raw.push(8, &[(from, 1, false)]);
        raw.ring.publish();
        assert_eq!(raw.used().head, 8);
        let mapped = guest.xen.in_use(DOMID).len() - 1;
        assert_eq!(mapped, if len == LARGE { 300 } else { 0 });
        let mut bytes = vec![0; len as usize];
        assert_eq!(request.readable().read_at(0, &mut bytes), len as usize);
        assert!(bytes == content);
        bytes.reverse();
        assert_eq!(request.writable().write_at(0, &bytes), len as usize);
        request.complete(len).unwrap();
        let used = raw.used();
        assert_eq!((used.head, used.len), (0, len));
        assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF]);
        assert!(raw.read(DATA_PAGE + 512, len as usize) == bytes);
    }
}

#[test]
fn a_front_end_that_leaves_gets_its_memory_back_from_requests_that_are_kept() {
    for len in [4096, LARGE] {
        let guest = Guest::granting();
        let (device, kept) = Keeper::new(true);
        let served = Served::new(device, &guest, 0);
        let mut raw = start(&served, &guest);
        let (from, to) = (raw.address(DATA_PAGE), raw.address(DATA_PAGE + 512));
        raw.push(0, &[(from, len, false), (to, len, true)]);
        raw.ring.publish();
        let request = kept.recv_timeout(LIMIT).unwrap();
        drop(raw);
        served.events.wait_disconnected();
        guest.assert_left_alone();
        // What is left is memory of this process.
        request.writable().fill(0, len.into(), 0x55);
        let mut bytes = vec![0; len as usize];
        request.readable().read_at(0, &mut bytes);
        assert_eq!(request.complete(len), Err(Stopped));
        let mut after = vec![0; len as usize];
        let at = vhost_user_core::address::GuestAddr(to);
        guest.memory.read(at, &mut after).unwrap();
        assert!(after.iter().all(|&byte| byte == 0), "the guest has not got it");
    }
}

#[test]
fn a_device_that_keeps_a_request_against_its_word_holds_up_the_answers_of_the_batch() {
    let guest = Guest::granting();
    let (device, kept) = Keeper::new(false);
    let served = Served::new(device, &guest, 0);
    let mut raw = start(&served, &guest);
    let (from, to) = (raw.address(DATA_PAGE), raw.address(DATA_PAGE + 64));
    raw.push(0, &[(from, 4096, false), (to, 4096, true)]);
    raw.push(8, &[(from, 1, false)]);
    raw.ring.publish();
    let request = kept.recv_timeout(LIMIT).unwrap();
    assert_eq!(guest.xen.in_use(DOMID).len(), 3, "the ring's page and two more");
    request.complete(7).unwrap();
    let mut used = [raw.used(), raw.used()].map(|used| (used.head, used.len));
    used.sort_unstable();
    assert_eq!(used, [(0, 7), (8, 0)]);
    assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF]);
}

#[test]
fn a_region_is_given_back_when_it_is_removed_or_replaced() {
    for (flags, whole) in [(FOREIGN, 2), (IN_ADVANCE, 2)] {
        let guest = Guest::for_flags(flags);
        let served = Served::new(null_disk(), &guest, 0);
        let mut client = connect(&served);
        let memory = guest.whole(RegionLayout::XenMerged, flags);
        client.set_xen_memory(&memory).unwrap();
        assert!(guest.mappings() >= whole);
        client.remove_xen_region(&memory.regions[0], RegionLayout::XenMerged).unwrap();
        guest.assert_left_alone();
        client.set_xen_table(&memory.regions, RegionLayout::XenMerged).unwrap();
        assert!(guest.mappings() >= whole);
        let small = guest.whole(RegionLayout::XenReview, flags);
        client.set_xen_table(&small.regions, RegionLayout::XenReview).unwrap();
        drop(client);
        served.events.wait_disconnected();
        guest.assert_left_alone();
    }
}

#[test]
fn a_ring_goes_on_when_a_region_is_added_and_keeps_its_pages() {
    let guest = Guest::granting();
    let served = Served::new(null_disk(), &guest, 0);
    let half = guest.region(0, SIZE / 2, guest.memory.regions()[0].user().0, ON_DEMAND);
    let mut raw = Raw::start(&served, guest.told(RegionLayout::XenMerged, vec![half]));
    let data = [(raw.address(SIZE / 2 / PAGE + 1), 4096)];
    let other = guest.region(SIZE / 2, SIZE / 2, 0, ON_DEMAND);
    raw.client.add_xen_region(&other, RegionLayout::XenMerged).unwrap();
    assert_eq!(raw.block(WRITE_OUT, &data).0, 0);
    assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF]);
}

#[test]
fn a_reset_unmaps_rings() {
    let guest = Guest::granting();
    let served = Served::new(null_disk(), &guest, 0);
    let mut raw = start(&served, &guest);
    assert_eq!(raw.block(READ, &[(raw.address(DATA_PAGE), 512)]).0, 0);
    raw.client.set_status(0).unwrap();
    assert_eq!(guest.xen.in_use(DOMID), []);
}

#[test]
fn a_back_end_that_stops_leaves_nothing_mapped() {
    let guest = Guest::granting();
    let served = Served::new(null_disk(), &guest, 0);
    let mut raw = start(&served, &guest);
    assert_eq!(raw.block(READ, &[(raw.address(DATA_PAGE), 512)]).0, 0);
    assert_eq!(served.backend.stop(LIMIT).len(), 0);
    assert_eq!(served.backend.state(), State::Stopped);
    guest.assert_left_alone();
}

#[test]
fn a_guest_that_is_destroyed_fails_its_requests_and_nothing_else() {
    let guest = Guest::granting();
    let served = Served::new(null_disk(), &guest, 0);
    let mut raw = start(&served, &guest);
    let data = [(raw.address(DATA_PAGE), 8192)];
    assert_eq!(raw.block(READ, &data).0, 0);
    guest.xen.destroy(DOMID);
    // The ring's pages linger as long as they are mapped; buffers cannot be had any more.
    let buffers = [(raw.address(DATA_PAGE), 512, false), (raw.address(STATUS_PAGE), 1, true)];
    raw.push(0, &buffers);
    raw.ring.publish();
    assert_eq!(raw.used().head, 0);
    drop(raw);
    served.events.wait_disconnected();
    assert_eq!(guest.mappings(), 1);
    // The next front-end is served.
    connect(&served);
}
