//! What a guest that names pages which are none, or too many, can cost: so many calls and so much
//! memory, and no more.

use std::cell::Cell;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use vhost_user_core::address::{GuestAddr, UserAddr};
use vhost_user_core::backend::Event;
use vhost_user_core::block::{BlockDevice, BlockOptions, FileDisk};
use vhost_user_core::memory::{
    Access, Buffers, Extent, Memory, MemoryPolicy, Region, ResolveOptions, XenKind, provide,
};
use vhost_user_core::wire::RegionLayout;
use vhost_user_core::xen::XenAccess;

use super::gate::{Call, Gate};
use super::guest::*;
use super::raw::*;
use super::slow::Slow;

/// Requests of a batch, as `Options` have it by default.
const BATCH: u64 = 64;
/// Most references of a map call.
const CALL: usize = 1024;

fn disk() -> Arc<BlockDevice<FileDisk>> {
    let disk = FileDisk::in_memory(1 << 20).unwrap();
    Arc::new(BlockDevice::new(disk, &BlockOptions::default()).unwrap())
}

/// A region of all references that there are, and the ring's page before it.
fn all_references(guest: &Guest) -> vhost_user_core::frontend::XenMemory {
    let ring = guest.region(0, PAGE, guest.memory.regions()[0].user().0, IN_ADVANCE);
    let mut rest = guest.region(PAGE, 1 << 40, 0, ON_DEMAND);
    rest.region.size = (1 << 44) - u64::from(FIRST_REF + 1) * PAGE;
    guest.told(RegionLayout::XenMerged, vec![ring, rest])
}

/// Memory of which the ring's page is a region, and all else may be mapped as well.
fn all_frames(guest: &Guest) -> vhost_user_core::frontend::XenMemory {
    let user = guest.memory.regions()[0].user().0;
    guest.told(RegionLayout::Plain, vec![guest.region(0, PAGE, user, 0x5)])
}

/// One batch of writes to a disk, with these buffers; returns their statuses.
fn writes(raw: &mut Raw, buffers: &[Vec<(u64, u32)>]) -> Vec<u8> {
    raw.write(HEADER_PAGE, &u128::from(WRITE_OUT).to_le_bytes());
    raw.write(STATUS_PAGE, &[0xff; BATCH as usize]);
    raw.publish_at_once(|raw| {
        for (number, data) in (0..).zip(buffers) {
            let mut chain = vec![(raw.address(HEADER_PAGE), 16, false)];
            chain.extend(data.iter().map(|&(at, len)| (at, len, false)));
            chain.push((raw.address(STATUS_PAGE) + number, 1, true));
            raw.push_table(number as u16, 16 + number, &chain);
        }
    });
    buffers.iter().for_each(|_| _ = raw.used());
    raw.read(STATUS_PAGE, buffers.len())
}

/// Where the data of [`writes`] may be.
const FREE_PAGE: u64 = 16 + BATCH;

#[test]
fn a_request_for_gibibytes_of_nothing_costs_one_call_of_bounded_length() {
    let guest = Guest::granting();
    let (gate, _keeper) = Gate::new(&guest);
    let served = Served::with(disk(), &guest, |xen| xen.access.ops = Arc::clone(&gate) as _);
    let mut raw = Raw::start(&served, all_references(&guest));
    gate.references();
    // 3.75 GiB each, all of them descriptors' longest.
    let nothing = vec![(GRANT | 0x10_0000 << 12, 0xf000_0000)];
    assert_eq!(writes(&mut raw, &vec![nothing; BATCH as usize]), [1; BATCH as usize]);
    assert_eq!(gate.references(), [CALL; BATCH as usize]);
}

#[test]
fn a_request_that_was_given_up_is_not_mapped_for_writing_either() {
    let guest = Guest::granting();
    let (gate, _keeper) = Gate::new(&guest);
    let served = Served::with(disk(), &guest, |xen| xen.access.ops = Arc::clone(&gate) as _);
    let mut raw = Raw::start(&served, all_references(&guest));
    gate.references();
    let (nothing, len) = (GRANT | 0x10_0000 << 12, 0x4000_0000);
    raw.push(0, &[(nothing, len, false), (nothing, len, true), (nothing, 4096, true)]);
    raw.ring.publish();
    raw.used();
    // The last page might have been for a status.
    assert_eq!(gate.references(), [CALL, 1]);
}

#[test]
fn requests_that_are_bad_in_their_last_pages_cost_no_more_than_six_calls_each() {
    let guest = Guest::granting();
    let served = Served::new(disk(), &guest, 0);
    let mut raw = Raw::start(&served, all_references(&guest));
    // Each page as often as the hypervisor maps it, and once more: no page is to blame.
    let page = raw.address(FREE_PAGE);
    let requests = vec![vec![(page, 4096); 65]; 16];
    let before = guest.xen.calls().map_grants;
    assert_eq!(writes(&mut raw, &requests), [1; 16]);
    assert!(guest.xen.calls().map_grants - before <= 6 * 16);
    // One of 200 pages is none.
    guest.xen.revoke(DOMID, FIRST_REF + (FREE_PAGE + 199) as u32);
    let requests = vec![vec![(page, 200 * 4096)]; 60];
    let before = guest.xen.calls().map_grants;
    assert_eq!(writes(&mut raw, &requests), [1; 60]);
    assert!(guest.xen.calls().map_grants - before <= 6 * 60);
    assert_eq!(writes(&mut raw, &[vec![(page, 199 * 4096)]]), [0]);
    assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF]);
}

#[test]
fn pages_that_stay_paged_out_cost_a_batch_one_wait() {
    let guest = Guest::granting();
    let served = Served::new(disk(), &guest, 0);
    let mut raw = Raw::start(&served, all_references(&guest));
    let pieces: Vec<_> = (0..30).map(|page| (raw.address(FREE_PAGE + page), 4096)).collect();
    guest.xen.set_busy(u32::MAX);
    let before = guest.xen.calls().map_grants;
    assert_eq!(writes(&mut raw, std::slice::from_ref(&pieces)), [1]);
    assert_eq!(guest.xen.calls().map_grants - before, 1 + 100);
    let before = guest.xen.calls().map_grants;
    assert_eq!(writes(&mut raw, &vec![pieces.clone(); 8]), [1; 8]);
    assert!(guest.xen.calls().map_grants - before <= 100 + 6 * 8);
    guest.xen.set_busy(0);
    assert_eq!(writes(&mut raw, &vec![pieces; 8]), [0; 8]);
}

#[test]
fn the_pages_of_a_region_that_are_paged_out_are_waited_for_together() {
    for (times, good) in [(3, true), (100, false)] {
        let guest = Guest::foreign();
        // Each is tried so often before it is there; 40 of them would be 4000 pauses.
        (0..40).for_each(|page| guest.xen.page_out(DOMID, FIRST_FRAME + page, times));
        let served = Served::new(disk(), &guest, 0);
        let told = connect(&served).set_xen_memory(&guest.whole(RegionLayout::XenMerged, FOREIGN));
        assert_eq!(told.is_ok(), good, "{told:?}");
        assert!(guest.xen.calls().map_frames <= 1 + 40 * 3 + 100);
    }
}

#[test]
fn a_kernel_that_takes_few_references_in_a_call_gets_more_calls() {
    let guest = Guest::granting();
    guest.xen.set_max_grants(64);
    let served = Served::new(disk(), &guest, 0);
    let mut raw = Raw::start(&served, guest.whole(RegionLayout::XenMerged, ON_DEMAND));
    let content = pattern(100 << 12, 3);
    raw.write(DATA_PAGE, &content);
    assert_eq!(raw.block(WRITE_OUT, &[(raw.address(DATA_PAGE), 100 << 12)]), (0, 1));
    raw.write(DATA_PAGE, &[0; 100 << 12]);
    assert_eq!(raw.block(READ, &[(raw.address(DATA_PAGE), 100 << 12)]).0, 0);
    assert!(raw.read(DATA_PAGE, 100 << 12) == content);
}

#[test]
fn bounce_buffers_of_requests_that_are_kept_take_eight_mebibytes_and_the_rest_is_mapped() {
    const TABLES: u64 = 14;
    const PAGES: u64 = 128;
    let guest = Guest::granting();
    let (device, hands) = Slow::keeping();
    let served = Served::new(device, &guest, 512 << 10);
    let mut raw = Raw::start(&served, guest.whole(RegionLayout::XenMerged, ON_DEMAND));
    for table in 0..TABLES {
        let first = raw.address(PAGES * (table + 1));
        let pages: Vec<_> = (0..PAGES).map(|n| (first + n * PAGE, PAGE as u32, false)).collect();
        raw.write_table(DATA_PAGE + table, &pages);
        raw.write(PAGES * (table + 1), &[table as u8 + 1; 8]);
    }
    for (requests, copied) in [(128, 16), (10, 10)] {
        let before = guest.xen.calls();
        for number in 0..requests {
            raw.push_indirect(number as u16, DATA_PAGE + number % TABLES, 16 * PAGES as u32);
        }
        raw.ring.publish();
        let kept: Vec<_> = (0..requests).map(|_| hands.request()).collect();
        for (number, request) in (0..).zip(&kept) {
            let mut bytes = [0; 8];
            request.readable().read_at(0, &mut bytes);
            assert_eq!(bytes, [(number % TABLES) as u8 + 1; 8]);
        }
        let calls = guest.xen.calls();
        assert_eq!(calls.grants - before.grants, (requests - copied) * PAGES);
        let tables = requests;
        assert_eq!(calls.pieces - before.pieces, tables + copied * PAGES);
        kept.into_iter().for_each(|request| request.complete(0).unwrap());
        (0..requests).for_each(|_| _ = raw.used());
        assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF]);
    }
}

#[test]
fn all_frames_that_a_request_names_are_mapped_by_one_call_in_one_area() {
    let guest = Guest::foreign();
    let (device, hands) = Slow::keeping();
    let served = Served::new(device, &guest, 0);
    let mut raw = Raw::start(&served, all_frames(&guest));
    // Every second page, 16 bytes of each.
    let pieces: Vec<_> = (0..1000).map(|n| (raw.address(16 + 2 * n), 16, false)).collect();
    (0..1000).for_each(|n| raw.write(16 + 2 * n, &[n as u8; 16]));
    let len = raw.write_table(4, &pieces);
    let before = guest.xen.calls();
    (0..4).for_each(|head| raw.push_indirect(head, 4, len));
    raw.ring.publish();
    for _ in 0..4 {
        let mut bytes = vec![0; 16_000];
        assert_eq!(hands.request().readable().read_at(0, &mut bytes), 16_000);
        let expected: Vec<_> = (0..1000).flat_map(|n| [n as u8; 16]).collect();
        assert!(bytes == expected);
    }
    let calls = guest.xen.calls();
    // A table has four pages.
    assert_eq!(calls.map_frames - before.map_frames, 4 * 2);
    assert_eq!(calls.frames - before.frames, 4 * (4 + 1000));
}

#[test]
fn frames_that_are_none_cost_a_request_one_call_and_the_others_nothing() {
    let guest = Guest::foreign();
    let served = Served::new(disk(), &guest, 0);
    let mut raw = Raw::start(&served, all_frames(&guest));
    let hole = FREE_PAGE + 1;
    guest.xen.add_hole(DOMID, FIRST_FRAME + hole);
    let before = guest.xen.calls().map_frames;
    let requests = [
        vec![(raw.address(FREE_PAGE), 4096)],
        vec![(raw.address(hole), 4096), (raw.address(FREE_PAGE), 4096)],
        vec![(0x100_0000_0000, 0xf000_0000)],
        vec![(raw.address(FREE_PAGE + 2), 4096)],
    ];
    assert_eq!(writes(&mut raw, &requests), [0, 1, 1, 0]);
    let calls = guest.xen.calls().map_frames - before;
    assert!(calls <= 4 + 6 * 2 + 3, "{calls} with those for tables");
}

#[test]
fn a_region_that_is_too_large_is_told_the_limit_of_its_kind() {
    let guest = Guest::foreign();
    let served = Served::new(disk(), &guest, 0);
    let mut memory = guest.whole(RegionLayout::XenMerged, FOREIGN);
    memory.regions[0].region.size = (1 << 44) + 1;
    connect(&served).set_xen_memory(&memory).unwrap_err();
    let why = served.events.wait(|event| match event {
        Event::Refused(why) => Some(why.to_string()),
        _ => None,
    });
    let limit = "0x100000000001 bytes are more than the 0x100000000000 that a region may have";
    assert!(why.ends_with(limit), "{why}");
}

/// Chains of one page each, that the device reads, in memory that is granted on demand.
fn chains(guest: &Guest, pages: u64) -> Vec<Buffers> {
    let ops = Arc::clone(&guest.xen) as Arc<_>;
    let access = XenAccess { ops, copy_below: 0 };
    let (at, fd) = (GuestAddr(guest.base()), guest.device(ON_DEMAND));
    let extent = Extent { guest: at, user: UserAddr(0), size: SIZE };
    let (policy, kind) = (MemoryPolicy::default(), XenKind::GrantOnDemand);
    let region = Region::xen(&policy, &access, kind, DOMID, extent, fd).unwrap();
    let memory = Arc::new(Memory::new(vec![region]).unwrap());
    let chain = |page| {
        let mut buffers = Buffers::default();
        buffers.begin(&memory);
        buffers.add(GuestAddr(guest.base() + page * PAGE), 4096, Access::DeviceReadable);
        buffers
    };
    (0..pages).map(chain).collect()
}

#[test]
fn a_bad_request_costs_the_others_of_its_batch_one_map_call_more() {
    let guest = Guest::granting();
    let mut chains = chains(&guest, BATCH);
    guest.xen.revoke(DOMID, FIRST_REF + 5);
    let budget = Arc::default();
    let options =
        ResolveOptions { kept: false, mapped: true, budget: &budget, is_called: &|| false };
    provide(&mut chains.iter_mut().collect::<Vec<_>>(), &options);
    let calls = guest.xen.calls();
    assert_eq!((calls.map_grants, calls.grants, calls.copy_grants), (2, BATCH - 1, 1));
    let faults: Vec<_> = chains.iter().filter_map(|buffers| buffers.fault()).collect();
    let [fault] = faults[..] else { panic!("{faults:?}") };
    assert_eq!(fault.at, GuestAddr(guest.base() + 5 * PAGE));
}

#[test]
fn who_is_called_away_leaves_the_rest_undone() {
    let guest = Guest::granting();
    let mut chains = chains(&guest, 8);
    let budget = Arc::default();
    // A call for each, as the device may keep them; called before the fourth.
    let asked = Cell::new(0);
    let is_called = || asked.replace(asked.get() + 1) >= 3;
    let options =
        ResolveOptions { kept: true, mapped: true, budget: &budget, is_called: &is_called };
    provide(&mut chains.iter_mut().collect::<Vec<_>>(), &options);
    assert_eq!(guest.xen.calls().map_grants, 3);
    let undone: Vec<_> = chains.iter().map(Buffers::is_undone).collect();
    assert_eq!(undone, [false, false, false, true, true, true, true, true]);
    assert!(chains.iter().all(|buffers| buffers.fault().is_none()));
}

#[test]
fn a_ring_is_stopped_without_mapping_the_rest_of_its_batch() {
    const PAGES: u64 = 200;
    let guest = Guest::granting();
    guest.xen.set_max_grants(PAGES as usize);
    let (gate, keeper) = Gate::new(&guest);
    let served = Served::with(disk(), &guest, |xen| xen.access.ops = Arc::clone(&gate) as _);
    let mut raw = Raw::start(&served, guest.whole(RegionLayout::XenMerged, ON_DEMAND));
    raw.write(HEADER_PAGE, &u128::from(WRITE_OUT).to_le_bytes());
    gate.references();
    gate.shut(Call::Map);
    raw.publish_at_once(|raw| {
        let header = (raw.address(HEADER_PAGE), 16, false);
        let data = (raw.address(FREE_PAGE), (PAGES * PAGE) as u32, false);
        let status = (raw.address(STATUS_PAGE), 1, true);
        (0..100).for_each(|head| raw.push_table(head, 16, &[header, data, status]));
    });
    keeper.arrived.recv_timeout(LIMIT).unwrap();
    let (answer, answered) = mpsc::channel();
    let stopping = thread::spawn(move || {
        answer.send(raw.client.vring_base(0).unwrap()).unwrap();
        raw
    });
    // A call each; the others wait for longer than the message takes.
    let next = loop {
        gate.shut(Call::Map);
        let _ = keeper.open.send(());
        if let Ok(next) = answered.recv_timeout(Duration::from_millis(50)) {
            break next;
        }
        keeper.arrived.try_iter().for_each(drop);
    };
    let mut raw = stopping.join().unwrap();
    let used = std::iter::from_fn(|| raw.ring.pop().unwrap()).count();
    assert_eq!(next as usize, used, "what was not taken comes again");
    assert!(gate.references().len() < 50, "of a batch of that many");
}

#[test]
fn requests_that_were_left_for_a_message_are_served_after_it() {
    let guest = Guest::granting();
    let (device, hands) = Slow::keeping();
    let served = Served::new(device, &guest, 0);
    let mut raw = Raw::start(&served, guest.whole(RegionLayout::XenMerged, ON_DEMAND));
    // Each has a map call of its own, for more than is copied of requests that are kept.
    for round in 0..20 {
        for number in 0..8 {
            let first = DATA_PAGE + number * 129;
            raw.write(first, &[round * 8 + number as u8; 8]);
            raw.push(number as u16, &[(raw.address(first), 129 << 12, false)]);
        }
        raw.ring.publish();
        raw.ring.kick();
        (0..8).for_each(|_| raw.settle());
        for number in 0..8 {
            let (request, mut bytes) = (hands.request(), [0; 8]);
            request.readable().read_at(0, &mut bytes);
            assert_eq!(bytes, [round * 8 + number; 8], "in order, and each once");
            request.complete(0).unwrap();
        }
        (0..8).for_each(|_| _ = raw.used());
    }
}
