//! What a front-end is asked for that plays the IOMMU: all at once, and nothing that nobody waits for.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;

use vhost_user_core::address::{GuestAddr, Iova, UserAddr};
use vhost_user_core::frontend::{Descriptor, Iommu, IommuPage, IotlbMiss, NEXT, WRITE};
use vhost_user_core::wire::{Flags, Frame, FrontendMessage, ProtocolFeatures};

use super::iommu::{Behind, PAGE, SHIFT, broken};
use super::served::*;

/// Where nothing is mapped.
const NOWHERE: u64 = 0x55_0000_0000;

fn kept_by(behind: &Behind, at: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE as usize];
    behind.driver.memory.read(GuestAddr(at), &mut page).unwrap();
    page
}

/// A back-end channel that is read when the test reads it, and not before.
struct Unread(UnixStream);

impl Unread {
    fn open(behind: &mut Behind) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let number = FrontendMessage::SetBackendReqFd.number();
        let frame = Frame::new(number, Flags::VERSION, Vec::new(), vec![theirs.into()]);
        behind.driver.client.raw(&frame).unwrap();
        behind.driver.client.features().unwrap();
        ours.set_nonblocking(true).unwrap();
        Self(ours)
    }

    /// The next question that is there: its address, and the access.
    fn question(&mut self) -> Option<(u64, u8)> {
        let mut frame = [0; 12 + 32];
        match self.0.read(&mut frame) {
            Ok(count) => assert_eq!(count, frame.len()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(error) => panic!("{error}"),
        }
        let iova = u64::from_le_bytes(frame[12..20].try_into().unwrap());
        Some((iova, frame[12 + 24]))
    }
}

/// Lets the back-end's control thread do what there is to do.
fn settle(behind: &mut Behind) {
    for _ in 0..20 {
        behind.driver.client.features().unwrap();
    }
}

#[test]
fn all_pages_that_requests_lack_are_asked_for_at_once_as_the_front_end_reads() {
    const AT_ONCE: u64 = 512;
    const WRITES: u8 = 2;
    let served = Served::new(Mirror { queues: 2, ..Mirror::default() });
    let mut behind = Behind::connect(&served, ProtocolFeatures::empty());
    for region in behind.driver.memory.regions() {
        let (iova, to) = (Iova(region.guest().0 + SHIFT), region.user());
        behind.driver.client.update_iotlb(iova, region.size(), to, (true, true)).unwrap();
    }
    let mut channel = Unread::open(&mut behind);
    behind.start();
    assert_eq!((behind.ask(0, &[1]), behind.ask(1, &[2])), (vec![254], vec![253]));
    for queue in 0..2 {
        let ring = &mut behind.driver.rings[queue];
        let known = Descriptor { addr: MIB / 2 + SHIFT, len: 1, flags: NEXT, next: 1 };
        let addr = NOWHERE + queue as u64 * 4 * MIB;
        let lacking = Descriptor { addr, len: 600 * PAGE as u32, flags: WRITE, next: 0 };
        ring.set_descriptor(0, known);
        ring.set_descriptor(1, lacking);
        ring.push(0);
        ring.publish();
    }
    // By then there was no room for more questions.
    settle(&mut behind);
    let mut asked = BTreeSet::new();
    behind.until("all questions", |_| {
        while let Some((iova, access)) = channel.question() {
            assert_eq!(access, WRITES);
            assert!(asked.insert(iova), "{iova:#x} was asked for twice");
        }
        (asked.len() as u64 == 2 * AT_ONCE).then_some(())
    });
    let first = |queue: u64| NOWHERE + queue * 4 * MIB;
    let wanted = (0..2).flat_map(|queue| (0..AT_ONCE).map(move |n| first(queue) + n * PAGE));
    assert_eq!(asked, wanted.collect());
    settle(&mut behind);
    assert_eq!(channel.question(), None);
    for queue in 0..2 {
        assert_eq!(behind.driver.client.vring_base(queue).unwrap(), 1, "it stays available");
    }
}

#[test]
fn only_what_a_queue_waits_for_is_asked_for_on_another_channel() {
    let served = Served::new(Mirror::default());
    let mut behind = Behind::new(&served);
    for _ in 0..5 {
        behind.question();
        behind.driver.client.vring_base(0).unwrap();
        behind.kick(0);
    }
    behind.question();
    behind.driver.client.open_backend_channel().unwrap();
    assert_eq!(behind.ask(0, &[1]), [254]);
    let ring = Iova(behind.driver.rings[0].layout().descriptors.0 + SHIFT);
    let about_ring = |asked: &[_]| asked.iter().filter(|miss: &&_| is_in(miss, ring)).count();
    assert_eq!(about_ring(&behind.asked), 1, "{:?}", behind.asked);
}

fn is_in(miss: &IotlbMiss, page: Iova) -> bool {
    miss.iova.0 / PAGE == page.0 / PAGE
}

#[test]
fn what_no_queue_waits_for_any_more_is_not_kept_for_a_front_end_that_reads_nothing() {
    const ROUNDS: usize = 1000;
    let served = Served::new(Mirror::default());
    let mut behind = Behind::connect(&served, ProtocolFeatures::empty());
    let mut channel = Unread::open(&mut behind);
    behind.start();
    for _ in 0..ROUNDS {
        behind.driver.client.vring_base(0).unwrap();
        behind.kick(0);
    }
    settle(&mut behind);
    let mut read = 0;
    loop {
        let before = read;
        while channel.question().is_some() {
            read += 1;
        }
        // What is kept comes when there is room.
        settle(&mut behind);
        if read == before {
            break;
        }
    }
    assert!(read < ROUNDS / 2, "{read} questions");
}

#[test]
fn a_ring_goes_where_a_translation_leads_that_takes_the_place_of_its_own() {
    let served = Served::new(Mirror::default());
    let mut behind = Behind::new(&served);
    assert_eq!(behind.ask(0, &[1]), [254]);
    let layout = *behind.driver.rings[0].layout();
    let (former, other) = (layout.descriptors.0 / PAGE * PAGE, 4 * MIB + 32 * PAGE);
    assert_eq!(layout.used.0 / PAGE * PAGE, former, "the ring is in one page");
    let used_index = |page: &[u8]| {
        let at = (layout.used.0 - former) as usize + 2;
        u16::from_le_bytes([page[at], page[at + 1]])
    };
    // The copy has a request more.
    let before = kept_by(&behind, former);
    behind.driver.rings[0].push(0);
    let page = kept_by(&behind, former);
    behind.driver.memory.write(GuestAddr(other), &page).unwrap();
    let available = layout.available.0 - former + 2;
    let index = u16::from_le_bytes([before[available as usize], before[available as usize + 1]]);
    let more = (index + 1).to_le_bytes();
    behind.driver.memory.write(GuestAddr(other + available), &more).unwrap();
    let slot = available + 2 + 2 * u64::from(index % RING);
    behind.driver.memory.write(GuestAddr(other + slot), &0_u16.to_le_bytes()).unwrap();
    let to = behind.driver.memory.user_address(GuestAddr(other)).unwrap();
    let client = &mut behind.driver.client;
    client.update_iotlb(Iova(former + SHIFT), PAGE, to, (true, true)).unwrap();
    behind.driver.rings[0].kick();
    let done = used_index(&before) + 1;
    behind.until("an answer in the other page", |driver| {
        let mut page = vec![0; PAGE as usize];
        driver.memory.read(GuestAddr(other), &mut page).unwrap();
        (used_index(&page) == done).then_some(())
    });
    assert_eq!(used_index(&kept_by(&behind, former)), done - 1);
}

#[test]
fn what_was_not_translated_for_a_ring_is_asked_for_again_when_the_ring_has_lost_it() {
    /// Where the device sees the same page once more.
    const AGAIN: u64 = 0x33_0000_0000;
    let served = Served::new(Mirror::default());
    let mut behind = Behind::connect(&served, ProtocolFeatures::empty());
    let layout = *behind.driver.rings[0].layout();
    let page = layout.descriptors.0 / PAGE * PAGE;
    let everything = IommuPage { guest: GuestAddr(page), read: true, write: true };
    behind.iommu.map(Iova(page + AGAIN), everything);
    let mut address = behind.driver.rings[0].addresses(0);
    address.descriptors = UserAddr(layout.descriptors.0 + AGAIN);
    address.available = UserAddr(layout.available.0 + SHIFT);
    address.used = UserAddr(layout.used.0 + SHIFT);
    behind.driver.client.set_vring_addr(&address).unwrap();
    behind.start();
    let (one, other) = (behind.question(), behind.question());
    let is_table = |miss: &IotlbMiss| miss.iova.0 >> 32 == AGAIN >> 32;
    let (table, rest) = if is_table(&one) { (one, other) } else { (other, one) };
    // It is denied, which is known before it comes all the same.
    let Behind { driver, iommu, .. } = &mut behind;
    assert!(!driver.client.answer_miss(table, &Iommu::default(), &driver.memory).unwrap());
    for _ in 0..100 {
        driver.client.features().unwrap();
    }
    let to = driver.memory.user_address(GuestAddr(page)).unwrap();
    driver.client.update_iotlb(Iova(page + AGAIN), PAGE, to, (true, true)).unwrap();
    assert!(driver.client.answer_miss(rest, iommu, &driver.memory).unwrap());
    assert_eq!(behind.ask(0, &[1]), [254]);
    behind.driver.client.invalidate_iotlb(Iova(page + AGAIN), PAGE).unwrap();
    assert_eq!(behind.ask(0, &[2]), [253]);
    assert!(!broken(&served));
    assert!(behind.asked.iter().any(is_table));
}
