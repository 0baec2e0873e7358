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
    wants_mappings: bool,
}

impl Keeper {
    fn new(says_so: bool) -> (Arc<Self>, Receiver<Request>) {
        Self::with(says_so, false)
    }

    fn with(says_so: bool, wants_mappings: bool) -> (Arc<Self>, Receiver<Request>) {
        let (to, kept) = mpsc::channel();
        (Arc::new(Self { to: Mutex::new(to), says_so, wants_mappings }), kept)
    }
}

impl Device for Keeper {
    plain!(queues: 1, ring: 256);
    fn keeps_requests(&self) -> bool {
        self.says_so
    }
    fn wants_mappings(&self) -> bool {
        self.wants_mappings
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
    Arc::new(BlockDevice::new(NullDisk::new(1 << 30, 512), &BlockOptions::default()).unwrap())
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
fn data_that_the_device_wants_mapped_is_mapped_until_its_request_is_answered() {
    for (copy_below, len) in [(u64::MAX, 4096), (0, 4096), (u64::MAX, LARGE)] {
        let guest = Guest::granting();
        let (device, kept) = Keeper::with(true, true);
        let served = Served::new(device, &guest, copy_below);
        let mut raw = start(&served, &guest);
        raw.write(DATA_PAGE, &pattern(len as usize, 1));
        let (from, to) = (raw.address(DATA_PAGE), raw.address(DATA_PAGE + 512));
        raw.push(0, &[(from, len, false), (to, len, true)]);
        raw.push(8, &[(raw.address(STATUS_PAGE), 2, false)]);
        raw.ring.publish();
        let [request, little] = [(); 2].map(|()| kept.recv_timeout(LIMIT).unwrap());
        assert_eq!((request.maps_grants(), little.maps_grants()), (true, false));
        assert_eq!(guest.xen.in_use(DOMID).len(), 1 + 2 * len.div_ceil(4096) as usize);
        // What the guest writes meanwhile is seen: it is no copy.
        raw.write(DATA_PAGE, b"changed");
        let mut bytes = [0; 7];
        request.readable().read_at(0, &mut bytes);
        assert_eq!(&bytes, b"changed");
        little.complete(0).unwrap();
        assert_eq!(raw.used().head, 8);
        request.complete(len).unwrap();
        assert_eq!(raw.used().head, 0);
        // The driver sees the answer: it may end its grants.
        for page in DATA_PAGE..DATA_PAGE + 512 + u64::from(len.div_ceil(4096)) {
            assert!(guest.xen.revoke(DOMID, FIRST_REF + page as u32), "page {page}");
        }
    }
}

#[test]
fn a_request_knows_whether_its_data_lies_in_mappings_of_grants() {
    let copied = (ON_DEMAND, u64::MAX, 4096, false);
    let mapped = (ON_DEMAND, 0, LARGE, true);
    let both = [(IN_ADVANCE, 0, 4096, true), (FOREIGN, 0, 4096, false), copied, mapped];
    for (flags, copy_below, len, expected) in both {
        let guest = Guest::for_flags(flags);
        let (device, kept) = Keeper::new(true);
        let served = Served::new(device, &guest, copy_below);
        let mut raw = Raw::start(&served, guest.whole(RegionLayout::XenMerged, flags));
        raw.push(0, &[(raw.address(DATA_PAGE), len, true)]);
        raw.ring.publish();
        let request = kept.recv_timeout(LIMIT).unwrap();
        assert_eq!(request.maps_grants(), expected, "{flags:#x}, {len} bytes");
        request.complete(0).unwrap();
        raw.used();
    }
}

#[test]
fn buffers_beside_what_is_granted_in_advance_are_no_mappings_of_grants() {
    let guest = Guest::granting();
    let (device, kept) = Keeper::new(true);
    let served = Served::new(device, &guest, u64::MAX);
    let user = guest.memory.regions()[0].user().0;
    let rings = guest.region(0, SIZE / 2, user, IN_ADVANCE);
    let rest = guest.region(SIZE / 2, SIZE / 2, 0, ON_DEMAND);
    let told = guest.told(RegionLayout::XenMerged, vec![rings, rest]);
    let mut raw = Raw::start(&served, told);
    for (head, page, expected) in [(0, DATA_PAGE, true), (4, SIZE / 2 / PAGE, false)] {
        raw.push(head, &[(raw.address(page), 4096, true)]);
        raw.ring.publish();
        let request = kept.recv_timeout(LIMIT).unwrap();
        assert_eq!(request.maps_grants(), expected, "page {page}");
        request.complete(0).unwrap();
        raw.used();
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
    assert_eq!(guest.xen.in_use(DOMID).len(), 2, "the ring's page and the one that is written");
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
