//! Packed rings, and devices behind an IOMMU, whose pages are still on their way.
//!
//! The test is the front-end of QEMU's destination: it takes all pages out of the file that it shares,
//! and brings each when the back-end misses it.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use vhost_user_core::address::{GuestAddr, Iova, UserAddr};
use vhost_user_core::backend::Event;
use vhost_user_core::frontend::{
    Client, GuestMemory, Iommu, IommuPage, MissingPages, PAGE, RegionSpec, Ring, RingFeatures,
    Segment, UsedChain, Wanted,
};
use vhost_user_core::wire::ProtocolFeatures;
use vhost_user_core::wire::features::{ACCESS_PLATFORM, IN_ORDER, RING_PACKED};
use vhost_user_core::wire::payload::VringAddress;

use super::served::*;

const SPLIT: RingFeatures = RingFeatures { packed: false, in_order: false, event_idx: true };
const PACKED: RingFeatures = RingFeatures { packed: true, ..SPLIT };
const PACKED_IN_ORDER: RingFeatures = RingFeatures { in_order: true, ..PACKED };

/// Pages that nothing else lies in, one for each request: what it brings, and its answer.
const DATA: u64 = MIB / 2;
const REQUESTS: u64 = 3;
/// What a device behind an IOMMU sees of the guest's address 0. Nothing else lies there.
const SHIFT: u64 = 0x77_0000_0000;

/// A guest that has come without its memory.
struct Guest {
    client: Client,
    pages: MissingPages,
    memory: Arc<GuestMemory>,
    ring: Ring,
    /// What the memory holds.
    bytes: Vec<u8>,
    here: BTreeSet<u64>,
}

impl Guest {
    /// With requests in its ring that nobody has looked at. `shift`: what is added to addresses.
    fn arrive(served: &Served, kind: RingFeatures, size: u16, shift: u64) -> Self {
        let spec = RegionSpec { guest: GuestAddr(0), size: MIB };
        let memory = Arc::new(GuestMemory::new(&[spec]).unwrap());
        let mut ring = Ring::new(&memory, GuestAddr(0), size, 2, kind).unwrap();
        for number in 0..REQUESTS {
            let at = DATA + number * PAGE;
            memory.write(GuestAddr(at), &[number as u8; 8]).unwrap();
            let (asks, answer) = (GuestAddr(at + shift), GuestAddr(at + 2048 + shift));
            let segments = [Segment::readable(asks, 8), Segment::writable(answer, 8)];
            ring.push(number as u16, &segments);
        }
        ring.publish();
        let mut bytes = vec![0; MIB as usize];
        memory.read(GuestAddr(0), &mut bytes).unwrap();
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(memory.regions()[0].as_fd(), how, 0, MIB).unwrap();
        let (mut client, mut pages) = listening(served, kind, shift > 0);
        client.set_missing_memory(&memory, &mut pages).unwrap();
        Self { client, pages, memory, ring, bytes, here: BTreeSet::new() }
    }

    /// Starts the ring, whose addresses are those of the front-end, or I/O virtual with `shift`.
    fn start(&mut self, shift: u64) {
        if shift == 0 {
            self.client.start_ring(0, &self.ring).unwrap();
        } else {
            let true_ones = match &self.ring {
                Ring::Split(ring) => ring.ring().addresses(0),
                Ring::Packed(ring) => ring.addresses(0),
            };
            let base = self.memory.regions()[0].user().0;
            let shifted = |address: UserAddr| UserAddr(address.0 - base + shift);
            let addresses = VringAddress {
                descriptors: shifted(true_ones.descriptors),
                available: shifted(true_ones.available),
                used: shifted(true_ones.used),
                ..true_ones
            };
            self.client.set_vring_num(0, self.ring.size().into()).unwrap();
            self.client.set_vring_base(0, self.ring.base()).unwrap();
            self.client.set_vring_addr(&addresses).unwrap();
            self.client.set_vring_call(0, Some(self.ring.call_fd())).unwrap();
            self.client.set_vring_kick(0, Some(self.ring.kick_fd())).unwrap();
        }
        self.client.set_vring_enable(0, true).unwrap();
    }

    fn next(&self) -> u64 {
        self.pages.next(LIMIT).unwrap().expect("a page is missed").0
    }

    fn bring(&mut self, page: u64) {
        if self.here.insert(page) {
            let bytes = &self.bytes[page as usize..][..PAGE as usize];
            self.memory.write(GuestAddr(page), bytes).unwrap();
        }
        self.pages.has_arrived(GuestAddr(page)).unwrap();
    }

    /// Brings pages until all requests are back, each with its answer; the order of their numbers.
    fn serve(&mut self) -> Vec<u16> {
        let deadline = Instant::now() + LIMIT;
        let mut back = Vec::new();
        while back.len() < REQUESTS as usize {
            assert!(Instant::now() < deadline, "{back:?} are back, {:?} are here", self.here);
            if let Some(page) = self.pages.next(Duration::from_millis(1)).unwrap() {
                self.bring(page.0);
            }
            // The driver may not touch what is not here either.
            if !self.here.contains(&0) {
                continue;
            }
            while let Some(UsedChain { token, len }) = self.ring.pop().unwrap() {
                assert!(len.is_none_or(|len| len == 8));
                back.push(token);
            }
        }
        back
    }

    fn finish(&mut self) {
        (0..MIB).step_by(PAGE as usize).for_each(|page| self.bring(page));
        self.client.postcopy_end().unwrap();
    }

    fn check(&self) {
        for number in 0..REQUESTS {
            let mut answer = [0; 8];
            self.memory.read(GuestAddr(DATA + number * PAGE + 2048), &mut answer).unwrap();
            assert_eq!(answer, [!(number as u8); 8]);
        }
    }
}

/// A new connection that has come as far as listening.
fn listening(served: &Served, kind: RingFeatures, behind: bool) -> (Client, MissingPages) {
    let mut client = Client::connect(&served.directory.join("device.sock"), LIMIT).unwrap();
    let bit = |wanted: bool, bit: u64| if wanted { bit } else { 0 };
    let Wanted { features, protocol } = Wanted::default();
    let more =
        bit(kind.packed, RING_PACKED) | bit(kind.in_order, IN_ORDER) | bit(behind, ACCESS_PLATFORM);
    let protocol = protocol | ProtocolFeatures::PAGEFAULT;
    let negotiated = client.negotiate(&Wanted { features: features | more, protocol }).unwrap();
    assert_eq!(negotiated.features & more, more);
    let pages = client.postcopy_advise().unwrap();
    client.postcopy_listen().unwrap();
    client.set_features(negotiated.features).unwrap();
    (client, pages)
}

#[test]
fn requests_of_a_packed_ring_wait_for_their_pages() {
    for kind in [PACKED, PACKED_IN_ORDER] {
        let served = Served::new(Mirror::default());
        let mut guest = Guest::arrive(&served, kind, 16, 0);
        guest.start(0);
        guest.ring.kick();
        loop {
            let page = guest.next();
            if page == DATA {
                break;
            }
            guest.bring(page);
        }
        assert!(served.device.batches.lock().unwrap().is_empty());
        guest.bring(DATA);
        let mut back = guest.serve();
        back.sort_unstable();
        assert_eq!(back, [0, 1, 2], "{kind:?}");
        guest.finish();
        guest.check();
        assert!(served.events.any(|event| matches!(event, Event::PostcopyEnded)));
    }
}

/// The front-end answers for pages and for translations at once, as QEMU does by two threads.
#[test]
fn translations_and_pages_are_asked_for_at_once() {
    // The longer ones lie in several pages, each with a translation of its own.
    for (kind, size) in [(SPLIT, 16), (PACKED, 16), (SPLIT, 1024), (PACKED, 1024)] {
        let served = Served::new(Mirror::default());
        let mut guest = Guest::arrive(&served, kind, size, SHIFT);
        let mut iommu = Iommu::default();
        for at in (0..MIB).step_by(PAGE as usize) {
            let page = IommuPage { guest: GuestAddr(at), read: true, write: true };
            iommu.map(Iova(at + SHIFT), page);
        }
        guest.start(SHIFT);
        guest.ring.kick();
        let Guest { client, pages, memory, ring, bytes, here } = &mut guest;
        let (memory, ring, bytes) = (&*memory, ring, &*bytes);
        let over = AtomicBool::new(false);
        let mut asked = 0;
        let mut back = Vec::new();
        thread::scope(|scope| {
            let (over, pages) = (&over, &*pages);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let Some(page) = pages.next(Duration::from_millis(1)).unwrap() else {
                        continue;
                    };
                    if here.insert(page.0) {
                        let bytes = &bytes[page.0 as usize..][..PAGE as usize];
                        memory.write(page, bytes).unwrap();
                    }
                    pages.has_arrived(page).unwrap();
                }
            });
            let deadline = Instant::now() + LIMIT;
            while back.len() < REQUESTS as usize && Instant::now() < deadline {
                if let Some(miss) = client.wait_miss(Duration::from_millis(1)).unwrap() {
                    asked += 1;
                    assert!(client.answer_miss(miss, &iommu, memory).unwrap());
                }
                // Nothing is used before the device has brought in the whole ring.
                if !served.device.batches.lock().unwrap().is_empty() {
                    back.extend(std::iter::from_fn(|| ring.pop().unwrap()).map(|used| used.token));
                }
            }
            over.store(true, Ordering::Relaxed);
        });
        back.sort_unstable();
        assert_eq!(back, [0, 1, 2], "{kind:?} of {size} entries");
        assert!(asked > 0);
        guest.finish();
        guest.check();
        assert!(!served.events.any(|event| matches!(event, Event::QueueBroken { .. })));
    }
}
