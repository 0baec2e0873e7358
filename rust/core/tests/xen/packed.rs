//! Packed rings: both sides write the descriptors, so their pages are granted for writing, and those
//! where the driver says which calls it wants for reading.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost_user_core::address::GuestAddr;
use vhost_user_core::backend::Event;
use vhost_user_core::frontend::{
    Client, FrontendError, GuestMemory, PackedLayout, PackedRing, Ring, Segment, Wanted, XenMemory,
};
use vhost_user_core::request::Request;
use vhost_user_core::wire::payload::Inflight;
use vhost_user_core::wire::{ProtocolFeatures, RegionLayout};

use super::guest::*;
use super::raw::{DATA_PAGE, HEADER_PAGE, OK, READ, STATUS_PAGE, WRITE_OUT};
use super::slow::{Hands, Slow};

/// Flags of a descriptor in the first lap, made available and used.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const BOTH: u16 = AVAIL | 1 << 15;

/// Entries.
const SIZE: u16 = 128;
const TABLE_PAGE: u64 = 16;

/// The descriptors, the driver's area and the device's, from these places of memory on.
fn layout(guest: &Guest, places: [u64; 3]) -> PackedLayout {
    let [descriptors, driver_event, device_event] = places.map(|at| GuestAddr(guest.base() + at));
    PackedLayout { size: SIZE, descriptors, driver_event, device_event }
}

/// A front-end with one packed ring.
struct Front {
    client: Client,
    ring: Ring,
    memory: Arc<GuestMemory>,
    /// Descriptors that were written by hand, and used ones that were looked at.
    filled: u16,
    seen: u16,
}

fn connect(served: &Served) -> Client {
    Client::connect(&served.socket(), LIMIT).unwrap()
}

fn negotiate(client: &mut Client, in_order: bool) {
    let mut wanted = Wanted::on_xen().with_rings(true, in_order);
    wanted.protocol |= ProtocolFeatures::INFLIGHT_SHMFD;
    let negotiated = client.negotiate(&wanted).unwrap();
    negotiated.need_ring_features(true, in_order).unwrap();
    client.set_features(negotiated.features).unwrap();
}

impl Front {
    /// In the first page of memory, or elsewhere.
    fn start(served: &Served, memory: XenMemory, layout: Option<PackedLayout>) -> Self {
        let mut front = Self::ready(served, memory, layout, false);
        front.start_ring().unwrap();
        front
    }

    /// All but the ring's start.
    fn ready(
        served: &Served,
        memory: XenMemory,
        layout: Option<PackedLayout>,
        in_order: bool,
    ) -> Self {
        let mut client = connect(served);
        negotiate(&mut client, in_order);
        client.set_xen_memory(&memory).unwrap();
        let memory = memory.memory;
        let layout = layout.unwrap_or_else(|| PackedLayout::at(memory.regions()[0].guest(), SIZE));
        let ring = PackedRing::new(&memory, layout, true, in_order).unwrap();
        Self { client, ring: Ring::Packed(ring), memory, filled: 0, seen: 0 }
    }

    fn start_ring(&mut self) -> Result<(), FrontendError> {
        self.client.start_ring(0, &self.ring)?;
        self.client.set_vring_enable(0, true)
    }

    fn address(&self, page: u64) -> u64 {
        self.memory.regions()[0].guest().0 + page * PAGE
    }

    fn write(&self, page: u64, data: &[u8]) {
        self.memory.write(GuestAddr(self.address(page)), data).unwrap();
    }

    fn read(&self, page: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(GuestAddr(self.address(page)), &mut bytes).unwrap();
        bytes
    }

    /// The next chain that is back: what the driver knows it by, and what was written.
    fn used(&mut self) -> (u16, Option<u32>) {
        loop {
            if let Some(used) = self.ring.pop().unwrap() {
                return (used.token, used.len);
            }
            assert!(self.ring.wait(LIMIT, self.client.as_fd()).unwrap(), "nothing came back");
        }
    }

    /// One block request of a page of data; returns its status.
    fn block(&mut self, token: u16, kind: u32) -> u8 {
        self.write(HEADER_PAGE, &u128::from(kind).to_le_bytes());
        self.write(STATUS_PAGE, &[0xff]);
        let segment = |page, len, device_writes| Segment {
            addr: GuestAddr(self.address(page)),
            len,
            device_writes,
        };
        let chain = [
            segment(HEADER_PAGE, 16, false),
            segment(DATA_PAGE, 4096, kind == READ),
            segment(STATUS_PAGE, 1, true),
        ];
        self.ring.push(token, &chain);
        self.ring.publish();
        let written = if kind == READ { 4097 } else { 1 };
        assert_eq!(self.used(), (token, Some(written)));
        self.read(STATUS_PAGE, 1)[0]
    }

    /// Several times round the ring, with every id, each byte of data looked at.
    fn go_round(&mut self) {
        for turn in 0..SIZE {
            let content = pattern(4096, turn.into());
            self.write(DATA_PAGE, &content);
            assert_eq!(self.block(turn, WRITE_OUT), OK);
            self.write(DATA_PAGE, &[0; 4096]);
            assert_eq!(self.block(SIZE - 1 - turn, READ), OK);
            assert!(self.read(DATA_PAGE, 4096) == content, "turn {turn}");
        }
    }

    /// Writes a descriptor into the next slot, in the first lap.
    fn fill(&mut self, id: u16, at: u64, len: u32, flags: u16) {
        let high = u64::from(len) | u64::from(id) << 32 | u64::from(flags | AVAIL) << 48;
        let bytes = (u128::from(at) | u128::from(high) << 64).to_le_bytes();
        let slot = self.address(0) + 16 * u64::from(self.filled);
        self.memory.write(GuestAddr(slot), &bytes).unwrap();
        self.filled += 1;
    }

    /// Shows the device what is written by hand while it does not look: all of it is one batch.
    fn publish_at_once(&mut self, fill: impl FnOnce(&mut Self)) {
        self.client.set_vring_enable(0, false).unwrap();
        fill(self);
        self.ring.kick();
        self.client.set_vring_enable(0, true).unwrap();
    }

    /// The next used descriptor of chains that were written by hand, each in one slot: id and
    /// length.
    fn used_by_hand(&mut self) -> (u16, u32) {
        let mut bytes = [0; 16];
        let slot = self.address(0) + 16 * u64::from(self.seen);
        let limit = Timespec { tv_sec: LIMIT.as_secs() as i64, tv_nsec: 0 };
        loop {
            self.memory.read(GuestAddr(slot), &mut bytes).unwrap();
            let high = (u128::from_le_bytes(bytes) >> 64) as u64;
            if (high >> 48) as u16 & BOTH == BOTH {
                self.seen += 1;
                return ((high >> 32) as u16, high as u32);
            }
            let call = self.ring.call_fd();
            assert_eq!(poll(&mut [PollFd::new(&call, PollFlags::IN)], Some(&limit)), Ok(1));
            rustix::io::read(call, &mut [0; 8]).unwrap();
        }
    }

    /// Eight writes at once, each in a table in a page of its own from `TABLE_PAGE` on. In a table
    /// only WRITE means anything.
    fn fill_eight_tables(&mut self) {
        self.write(HEADER_PAGE, &u128::from(WRITE_OUT).to_le_bytes());
        self.write(STATUS_PAGE, &[0xff; 8]);
        for number in 0..8 {
            let entries = [
                (self.address(HEADER_PAGE), 16, 0),
                (self.address(DATA_PAGE), 4096, 0),
                (self.address(STATUS_PAGE) + number, 1, WRITE),
            ];
            let entry = |(at, len, flags): (u64, u64, u16)| {
                (u128::from(at) | u128::from(len | u64::from(flags) << 48) << 64).to_le_bytes()
            };
            self.write(TABLE_PAGE + number, &entries.map(entry).concat());
            // Ids are no slots.
            let (id, at) = (100 - number as u16, self.address(TABLE_PAGE + number));
            self.fill(id, at, 48, INDIRECT);
        }
    }

    /// The pages of the guest in use are the ring's.
    fn end(self, served: &Served, guest: &Guest) {
        drop(self);
        served.events.wait_disconnected();
        guest.assert_left_alone();
    }
}

fn broken(served: &Served) -> String {
    served.events.wait(|event| match event {
        Event::QueueBroken { error, .. } => Some(error.clone()),
        _ => None,
    })
}

#[test]
fn the_parts_of_a_packed_ring_have_all_their_pages_and_no_more() {
    // The descriptors in pages 32 and 33, the driver's area in 34, the device's in 36.
    let places = [0x2_0f00, 0x2_2ffc, 0x2_4004];
    for (flags, grants) in [(ON_DEMAND, 4), (IN_ADVANCE, super::guest::SIZE / PAGE)] {
        let guest = Guest::granting();
        let served = Served::disk(&guest, 0);
        let memory = guest.whole(RegionLayout::XenMerged, flags);
        let mut front = Front::start(&served, memory, Some(layout(&guest, places)));
        assert_eq!(guest.xen.calls().grants, grants);
        if flags == ON_DEMAND {
            assert_eq!(guest.xen.in_use(DOMID), [32, 33, 34, 36].map(|page| FIRST_REF + page));
        }
        front.go_round();
        front.end(&served, &guest);
    }
}

#[test]
fn a_region_for_each_part_of_a_packed_ring_may_be_as_small_as_the_part() {
    // The areas of four bytes share a page with each other, and with what nobody has told of.
    let places = [0x2_0000, 0x2_2104, 0x2_2ffc];
    for flags in [FOREIGN, IN_ADVANCE] {
        let guest = Guest::for_flags(flags);
        let served = Served::disk(&guest, 0);
        let user = guest.memory.regions()[0].user().0;
        let part = |at, size, flags| guest.region(at, size, user + at, flags);
        let mut regions: Vec<_> =
            places.into_iter().zip([2048, 4, 4]).map(|(at, size)| part(at, size, flags)).collect();
        let buffers = if flags == FOREIGN { FOREIGN } else { ON_DEMAND };
        regions.push(part(0, 16 * PAGE, buffers));
        let memory = guest.told(RegionLayout::XenMerged, regions);
        Front::start(&served, memory, Some(layout(&guest, places))).go_round();
    }
}

#[test]
fn a_packed_ring_may_lie_outside_every_region_where_more_may_be_mapped() {
    let places = [0x2_0f00, 0x2_2ffc, 0x2_4004];
    let foreign = Guest::at(FIRST_FRAME * PAGE, GuestMemory::with_guest_addresses);
    for (guest, flags) in [(Guest::unmapped(), 0x6), (foreign, 0x5)] {
        let served = Served::disk(&guest, 0);
        let first = guest.region(0, PAGE, guest.base(), flags);
        let memory = guest.told(RegionLayout::Plain, vec![first]);
        let mut front = Front::start(&served, memory, Some(layout(&guest, places)));
        front.go_round();
        front.end(&served, &guest);
    }
}

#[test]
fn the_driver_area_of_a_packed_ring_needs_no_more_than_a_grant_for_reading() {
    // The descriptors in page 32, the driver's area in 33, the device's in 34.
    for (read_only, flags) in [32, 33, 34].into_iter().flat_map(|p| [(p, ON_DEMAND), (p, 0x2)]) {
        let guest = Guest::granting();
        let served = Served::disk(&guest, 0);
        guest.xen.grant(DOMID, FIRST_REF + read_only, FIRST_FRAME + u64::from(read_only), false);
        // Granted in advance, each is a region of its own.
        let user = guest.memory.regions()[0].user().0;
        let page = |page: u64| guest.region(page * PAGE, PAGE, user + page * PAGE, flags);
        let mut regions: Vec<_> = (32..35).map(page).collect();
        regions.push(guest.region(0, 16 * PAGE, user, ON_DEMAND));
        let memory = guest.told(RegionLayout::XenMerged, regions);
        let layout = layout(&guest, [0x2_0000, 0x2_1000, 0x2_2000]);
        let mut front = Front::ready(&served, memory, Some(layout), false);
        if read_only == 33 {
            front.start_ring().unwrap();
            front.go_round();
        } else {
            let refused = front.start_ring();
            assert!(matches!(refused, Err(FrontendError::Refused { .. })), "{refused:?}");
        }
        front.end(&served, &guest);
    }
}

#[test]
fn a_packed_ring_of_which_a_part_is_not_granted_is_not_started() {
    for part in [32, 33, 34] {
        let guest = Guest::granting();
        let served = Served::disk(&guest, 0);
        assert!(guest.xen.revoke(DOMID, FIRST_REF + part));
        let layout = layout(&guest, [0x2_0000, 0x2_1000, 0x2_2000]);
        let mut front = Front::ready(&served, guest.all_on_demand(), Some(layout), false);
        let refused = front.start_ring();
        assert!(matches!(refused, Err(FrontendError::Refused { .. })), "{refused:?}");
        assert_eq!(guest.xen.in_use(DOMID), []);
    }
}

#[test]
fn the_tables_of_a_batch_of_a_packed_ring_are_copied_by_one_call() {
    for copy_below in COPIED_OR_MAPPED {
        let guest = Guest::granting();
        let served = Served::disk(&guest, copy_below);
        let mut front = Front::start(&served, guest.all_on_demand(), None);
        let before = guest.xen.calls();
        front.publish_at_once(Front::fill_eight_tables);
        let ids: Vec<_> = (0..8).map(|_| front.used_by_hand()).collect();
        assert_eq!(ids, (0..8).map(|number| (100 - number, 1)).collect::<Vec<_>>());
        assert_eq!(front.read(STATUS_PAGE, 8), [OK; 8]);
        let calls = guest.xen.calls();
        // Tables, headers with the data if that is copied, status bytes. The disk looks how slow it
        // is with a batch of half the requests.
        let batches = calls.copy_grants - before.copy_grants;
        assert!(batches.is_multiple_of(3) && batches <= 3 * 4, "{batches}");
        let tables_headers_statuses = 3 * 8;
        let data = if copy_below == 0 { 0 } else { 8 };
        assert_eq!(calls.pieces - before.pieces, tables_headers_statuses + data);
        assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF], "the ring's page");
    }
}

#[test]
fn a_table_that_cannot_be_read_fails_its_request_of_a_packed_ring_alone() {
    for (copy_below, bad) in COPIED_OR_MAPPED.into_iter().flat_map(|c| [(c, 0), (c, 3), (c, 7)]) {
        let guest = Guest::granting();
        let served = Served::disk(&guest, copy_below);
        let mut front = Front::start(&served, guest.all_on_demand(), None);
        assert!(guest.xen.revoke(DOMID, FIRST_REF + (TABLE_PAGE + bad) as u32));
        front.publish_at_once(Front::fill_eight_tables);
        let mut used: Vec<_> = (0..8).map(|_| front.used_by_hand()).collect();
        used.sort_unstable_by_key(|&(id, _)| std::cmp::Reverse(id));
        let expected: Vec<_> = (0..8).map(|n| (100 - n as u16, u32::from(n != bad))).collect();
        assert_eq!(used, expected, "the status bytes of the others");
        let left: Vec<_> = (0..8).map(|n| if n == bad { 0xff } else { OK }).collect();
        assert_eq!(front.read(STATUS_PAGE, 8), left);
        assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF], "the ring's page");
    }
}

#[test]
fn a_malformed_table_breaks_a_packed_ring_after_the_requests_before_it() {
    let guest = Guest::granting();
    let served = Served::disk(&guest, 0);
    let mut front = Front::start(&served, guest.all_on_demand(), None);
    front.publish_at_once(|front| {
        front.fill_eight_tables();
        // The sixth table's first descriptor names another table.
        front.write(TABLE_PAGE + 5, &[&[0_u8; 12][..], &[0, 0, INDIRECT as u8, 0]].concat());
    });
    let ids: Vec<_> = (0..5).map(|_| front.used_by_hand().0).collect();
    assert_eq!(ids, [100, 99, 98, 97, 96]);
    let why = broken(&served);
    assert!(why.contains("chain 95: "), "{why}");
    assert_eq!(front.read(STATUS_PAGE, 8), [0, 0, 0, 0, 0, 0xff, 0xff, 0xff]);
    assert_eq!(front.client.vring_base(0).unwrap(), 0x8005_8005);
    assert_eq!(guest.xen.in_use(DOMID), []);
}

#[test]
fn a_malformed_chain_breaks_a_packed_ring_and_leaves_nothing_mapped() {
    let guest = Guest::granting();
    let served = Served::disk(&guest, 0);
    let mut front = Front::start(&served, guest.all_on_demand(), None);
    front.publish_at_once(|front| {
        let (header, status) = (front.address(HEADER_PAGE), front.address(STATUS_PAGE));
        front.fill(SIZE, header, 16, NEXT);
        front.fill(SIZE, status, 1, WRITE);
    });
    let why = broken(&served);
    assert!(why.contains("buffer id 128 in a ring of 128 entries"), "{why}");
    assert_eq!(front.client.vring_base(0).unwrap(), 0x8000_8000);
    assert_eq!(guest.xen.in_use(DOMID), []);
    front.end(&served, &guest);
}

/// A page that is written, whole.
fn push_page(front: &mut Front, number: u16) {
    front.write(DATA_PAGE + u64::from(number), &[number as u8 + 1]);
    let page = GuestAddr(front.address(DATA_PAGE + u64::from(number)));
    let answer = GuestAddr(front.address(TABLE_PAGE + u64::from(number)));
    front.ring.push(number, &[Segment::readable(page, 1), Segment::writable(answer, 4096)]);
    front.ring.publish();
}

/// Gives the next requests, by the byte that each has to read.
fn kept(hands: &Hands, numbers: std::ops::Range<u8>) -> Vec<Request> {
    let next = |number| {
        let request = hands.request();
        let mut first = [0];
        request.readable().read_at(0, &mut first);
        assert_eq!(first, [number + 1]);
        request
    };
    numbers.map(next).collect()
}

fn complete(request: Request) {
    let mut first = [0];
    request.readable().read_at(0, &mut first);
    let written = request.writable().fill(0, u64::MAX, first[0]);
    request.complete(written as u32).unwrap();
}

#[test]
fn requests_of_a_packed_ring_come_again_to_a_front_end_that_has_kept_their_record() {
    for (flags, in_order) in
        [FOREIGN, IN_ADVANCE, ON_DEMAND].into_iter().flat_map(|f| [(f, false), (f, true)])
    {
        let guest = Guest::for_flags(flags);
        let (device, hands) = Slow::keeping();
        let served = Served::draining(device, &guest, Duration::from_millis(50), |xen| {
            xen.access.copy_below = 0;
        });
        let told = || guest.whole(RegionLayout::XenMerged, flags);
        let mut front = Front::ready(&served, told(), None, in_order);
        let (inflight, file): (Inflight, OwnedFd) = front.client.inflight_fd(1, SIZE).unwrap();
        front.client.set_inflight_fd(&inflight, file.as_fd()).unwrap();
        front.start_ring().unwrap();
        (0..4).for_each(|number| push_page(&mut front, number));
        let mut requests = kept(&hands, 0..4);
        complete(requests.remove(0));
        assert_eq!(front.used(), (0, Some(4096)));

        drop(std::mem::replace(&mut front.client, connect(&served)));
        negotiate(&mut front.client, in_order);
        served.events.wait_disconnected();
        assert_eq!(guest.xen.in_use(DOMID), []);
        front.client.set_xen_memory(&told()).unwrap();
        front.client.set_inflight_fd(&inflight, file.as_fd()).unwrap();
        front.start_ring().unwrap();
        push_page(&mut front, 4);
        let again = kept(&hands, 1..5);
        assert!(requests.into_iter().all(|request| request.complete(0).is_err()));
        let answered = again.into_iter().rev();
        answered.for_each(complete);
        let back = [(); 4].map(|()| front.used());
        let order = if in_order { [1, 2, 3, 4] } else { [4, 3, 2, 1] };
        assert_eq!(back, order.map(|number| (number, Some(4096))), "{flags:#x}");
        for number in 0..5 {
            let answer = front.read(TABLE_PAGE + number, 4096);
            assert!(answer.iter().all(|&byte| byte == number as u8 + 1), "{number}");
        }
        served.events.forget();
        front.end(&served, &guest);
    }
}
