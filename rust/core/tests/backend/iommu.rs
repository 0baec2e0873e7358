//! Rings and buffers by I/O virtual addresses, with a front-end that plays the IOMMU.
#![allow(unsafe_code)] // A device that is sent to writes its buffers.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vhost_user_core::address::{GuestAddr, Iova, UserAddr};
use vhost_user_core::backend::{Backend, Event, Observer, Options};
use vhost_user_core::device::{Device, QueueHandle, SendData};
use vhost_user_core::frontend::{
    Descriptor, DirtyLog, FrontendError, INDIRECT, Iommu, IommuPage, IotlbMiss, NEXT, Used, WRITE,
    Wanted,
};
use vhost_user_core::memory::Parts;
use vhost_user_core::request::{Batch, CallbackScope, Request};
use vhost_user_core::socket::{Endpoint, ListenOptions};
use vhost_user_core::wire::ProtocolFeatures;
use vhost_user_core::wire::features::{ACCESS_PLATFORM, LOG_ALL};
use vhost_user_core::wire::payload::VringAddress;

use super::served::*;
use super::support::Directory;

/// What the device sees of the guest's address 0. Nothing else lies there.
pub(super) const SHIFT: u64 = 0x77_0000_0000;
pub(super) const PAGE: u64 = 0x1000;
const ALL: u64 = u64::MAX;

/// A driver whose device sits behind an IOMMU.
pub(super) struct Behind {
    pub(super) driver: Driver,
    pub(super) iommu: Iommu,
    /// What the back-end has asked for.
    pub(super) asked: Vec<IotlbMiss>,
}

impl Behind {
    pub(super) fn connect(served: &Served, more: ProtocolFeatures) -> Self {
        Self::dial(&served.directory.join("device.sock"), served.device.queues.max(1), more)
    }

    fn dial(socket: &Path, queues: u16, more: ProtocolFeatures) -> Self {
        let Wanted { features, protocol } = Wanted::default();
        let wanted = Wanted { features: features | ACCESS_PLATFORM, protocol: protocol | more };
        let mut driver = Driver::connect_as(socket, queues, &wanted);
        let mut iommu = Iommu::default();
        for region in driver.memory.regions() {
            let pages = region.guest().0..region.guest().0 + region.size();
            for guest in pages.step_by(PAGE as usize) {
                let page = IommuPage { guest: GuestAddr(guest), read: true, write: true };
                iommu.map(Iova(guest + SHIFT), page);
            }
        }
        for (index, ring) in (0..).zip(&driver.rings) {
            let client = &mut driver.client;
            client.set_vring_num(index, ring.layout().size.into()).unwrap();
            client.set_vring_base(index, 0).unwrap();
            let mut address = ring.addresses(index);
            let layout = ring.layout();
            address.descriptors = UserAddr(layout.descriptors.0 + SHIFT);
            address.available = UserAddr(layout.available.0 + SHIFT);
            address.used = UserAddr(layout.used.0 + SHIFT);
            client.set_vring_addr(&address).unwrap();
            client.set_vring_err(index, Some(ring.error_fd())).unwrap();
            client.set_vring_call(index, Some(ring.call_fd())).unwrap();
        }
        Self { driver, iommu, asked: Vec::new() }
    }

    pub(super) fn start(&mut self) {
        for index in 0..self.driver.rings.len() as u32 {
            self.kick(index);
        }
    }

    pub(super) fn kick(&mut self, index: u32) {
        let ring = &self.driver.rings[index as usize];
        self.driver.client.set_vring_kick(index, Some(ring.kick_fd())).unwrap();
        self.driver.client.set_vring_enable(index, true).unwrap();
    }

    pub(super) fn new(served: &Served) -> Self {
        let mut behind = Self::connect(served, ProtocolFeatures::empty());
        behind.start();
        behind
    }

    /// Answers questions until something has come about.
    pub(super) fn until<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Driver) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(done) = done(&mut self.driver) {
                return done;
            }
            self.answer(Duration::from_millis(1));
            assert!(Instant::now() < deadline, "{what} did not come about");
        }
    }

    fn answer(&mut self, timeout: Duration) {
        let Self { driver, iommu, asked } = self;
        if let Some(miss) = driver.client.wait_miss(timeout).unwrap() {
            asked.push(miss);
            driver.client.answer_miss(miss, iommu, &driver.memory).unwrap();
        }
    }

    /// Waits for a question and leaves it open.
    pub(super) fn question(&mut self) -> IotlbMiss {
        self.driver.client.wait_miss(LIMIT).unwrap().expect("a question")
    }

    /// As [`Driver::push`], with the buffers at this guest address.
    pub(super) fn push(&mut self, queue: usize, head: u16, data: &[u8], at: u64) {
        self.driver.push(queue, head, data, at);
        let ring = &mut self.driver.rings[queue];
        for index in [head, head + 1] {
            let descriptor = ring.descriptor(index);
            let addr = descriptor.addr + SHIFT;
            ring.set_descriptor(index, Descriptor { addr, ..descriptor });
        }
        ring.publish();
    }

    pub(super) fn used(&mut self, queue: usize) -> Used {
        self.until("a request", |driver| driver.rings[queue].pop().unwrap())
    }

    pub(super) fn ask_at(&mut self, queue: usize, data: &[u8], at: u64) -> Vec<u8> {
        self.push(queue, 0, data, at);
        assert_eq!(self.used(queue), Used { head: 0, len: data.len() as u32 });
        let mut answer = vec![0; data.len()];
        self.driver.memory.read(GuestAddr(at + 2048), &mut answer).unwrap();
        answer
    }

    pub(super) fn ask(&mut self, queue: usize, data: &[u8]) -> Vec<u8> {
        self.ask_at(queue, data, MIB / 2)
    }

    fn deny(&mut self, guest: u64) -> IommuPage {
        self.iommu.unmap(Iova(guest + SHIFT)).unwrap()
    }

    pub(super) fn invalidate(&mut self, guest: u64, size: u64) {
        self.driver.client.invalidate_iotlb(Iova(guest + SHIFT), size).unwrap();
    }
}

pub(super) fn broken(served: &Served) -> bool {
    served.events.any(|event| matches!(event, Event::QueueBroken { .. }))
}

fn said(served: &Served, text: &str) -> bool {
    served.events.any(|event| event.to_string().contains(text))
}

#[test]
fn rings_and_buffers_are_asked_for_and_requests_answered() {
    let served = Served::new(Mirror { queues: 2, ..Mirror::default() });
    for more in [ProtocolFeatures::empty(), ProtocolFeatures::GPA_ADDRESSES] {
        let mut behind = Behind::connect(&served, more);
        behind.start();
        assert_eq!(behind.ask(0, &[1, 2, 3]), [254, 253, 252]);
        assert_eq!(behind.ask(1, &[4]), [251]);
        let asked = behind.asked.len();
        assert!(asked >= 3, "two rings and a page: {:?}", behind.asked);
        assert_eq!(behind.ask(0, &[5]), [250]);
        assert_eq!(behind.asked.len(), asked, "all that was needed is known");
    }
    assert!(!broken(&served));
}

#[test]
fn nothing_is_asked_for_that_was_told_before() {
    let served = Served::new(Mirror::default());
    let mut behind = Behind::connect(&served, ProtocolFeatures::empty());
    for region in behind.driver.memory.regions() {
        let (iova, to) = (Iova(region.guest().0 + SHIFT), region.user());
        behind.driver.client.update_iotlb(iova, region.size(), to, (true, true)).unwrap();
    }
    behind.start();
    assert_eq!(behind.ask(0, &[1]), [254]);
    // In two regions.
    let data: Vec<u8> = (0..200).collect();
    assert_eq!(behind.ask_at(0, &data, 2 * MIB + 100), data.iter().map(|b| !b).collect::<Vec<_>>());
    assert_eq!(behind.asked, []);
}

#[test]
fn a_question_without_answer_holds_up_no_other_queue() {
    let served = Served::with(Mirror { queues: 2, ..Mirror::default() }, |options| {
        options.threads = vhost_user_core::backend::Threads::Count(1.try_into().unwrap());
    });
    let mut behind = Behind::new(&served);
    assert_eq!((behind.ask(0, &[1]), behind.ask(1, &[2])), (vec![254], vec![253]));
    behind.push(0, 0, &[3], 4 * MIB);
    let open = behind.question();
    // One question for both of its buffers, which are in one page.
    assert_eq!((open.iova, open.write), (Iova(4 * MIB + SHIFT), true));
    for byte in 0..50 {
        assert_eq!(behind.ask(1, &[byte]), [!byte]);
    }
    assert_eq!(behind.driver.rings[0].pop().unwrap(), None);
    let Behind { driver, iommu, .. } = &mut behind;
    assert!(driver.client.answer_miss(open, iommu, &driver.memory).unwrap());
    assert_eq!(behind.used(0), Used { head: 0, len: 1 });
}

#[test]
fn a_request_for_memory_that_the_iommu_denies_fails_alone() {
    let served = Served::new(Mirror::default());
    let mut behind = Behind::new(&served);
    assert_eq!(behind.ask(0, &[1]), [254]);
    behind.deny(4 * MIB);
    behind.push(0, 0, &[2], 4 * MIB);
    behind.push(0, 2, &[3], MIB / 2);
    let mut used = [behind.used(0), behind.used(0)];
    used.sort_by_key(|used| used.head);
    assert_eq!(used, [Used { head: 0, len: 0 }, Used { head: 2, len: 1 }]);
    assert!(said(&served, "1 bytes at 0x7700400800 cannot be written: the front-end has no"));
    assert!(!broken(&served));
    // It is asked again, and may be there by then.
    let page = IommuPage { guest: GuestAddr(4 * MIB), read: true, write: true };
    behind.iommu.map(Iova(4 * MIB + SHIFT), page);
    assert_eq!(behind.ask_at(0, &[7], 4 * MIB), [248]);
}

#[test]
fn a_page_that_may_be_read_is_not_written() {
    let served = Served::new(Mirror::default());
    let mut behind = Behind::new(&served);
    let page = IommuPage { write: false, ..behind.deny(4 * MIB) };
    behind.iommu.map(Iova(4 * MIB + SHIFT), page);
    behind.push(0, 0, &[2], 4 * MIB);
    assert_eq!(behind.used(0), Used { head: 0, len: 0 });
    assert!(said(&served, "1 bytes at 0x7700400800 cannot be written: the front-end has no"));
    let mut answer = [0];
    behind.driver.memory.read(GuestAddr(4 * MIB + 2048), &mut answer).unwrap();
    assert_eq!(answer, [0]);
    assert!(behind.asked.iter().any(|miss| miss.write && miss.iova == Iova(4 * MIB + SHIFT)));
}

#[test]
fn a_ring_that_the_iommu_denies_breaks_and_no_other() {
    let served = Served::new(Mirror { queues: 2, ..Mirror::default() });
    let mut behind = Behind::connect(&served, ProtocolFeatures::empty());
    let used = behind.driver.rings[0].layout().used.0;
    let page = IommuPage { write: false, ..behind.deny(used / PAGE * PAGE) };
    behind.iommu.map(Iova(used / PAGE * PAGE + SHIFT), page);
    behind.start();
    assert_eq!(behind.ask(1, &[1]), [254]);
    behind.until("an error", |driver| driver.rings[0].error_signalled().then_some(()));
    assert!(said(&served, "is not inside one region of guest memory, has no translation"));
    // With a translation it starts.
    behind.driver.client.vring_base(0).unwrap();
    behind.iommu.map(Iova(used / PAGE * PAGE + SHIFT), IommuPage { write: true, ..page });
    behind.kick(0);
    assert_eq!(behind.ask(0, &[2]), [253]);
}

#[test]
fn a_ring_stops_though_nobody_answers_its_questions() {
    let served = Served::new(Mirror { queues: 2, ..Mirror::default() });
    let mut behind = Behind::connect(&served, ProtocolFeatures::empty());
    behind.kick(0);
    behind.question();
    assert_eq!(behind.driver.client.vring_base(0).unwrap(), 0, "its parts were never found");
    behind.kick(0);
    assert_eq!(behind.ask(0, &[1]), [254]);
    behind.push(0, 0, &[2], 4 * MIB);
    behind.question();
    assert_eq!(behind.driver.client.vring_base(0).unwrap(), 1, "the request stays available");
    behind.driver.client.set_vring_base(0, 1).unwrap();
    behind.kick(0);
    assert_eq!(behind.used(0), Used { head: 0, len: 1 });
    assert!(!broken(&served));
}

#[test]
fn an_invalidation_counts_before_it_is_answered() {
    let served = Served::new(Mirror::default());
    let mut behind = Behind::new(&served);
    assert_eq!(behind.ask_at(0, &[1], 4 * MIB), [254]);
    // The same address is another page now.
    let other = IommuPage { guest: GuestAddr(4 * MIB + 8 * PAGE), read: true, write: true };
    behind.iommu.map(Iova(4 * MIB + SHIFT), other);
    behind.invalidate(4 * MIB, PAGE);
    behind.driver.memory.write(other.guest, &[9]).unwrap();
    behind.push(0, 0, &[2], 4 * MIB);
    assert_eq!(behind.used(0), Used { head: 0, len: 1 });
    let mut answer = [0];
    let at = other.guest.checked_add(2048).unwrap();
    behind.driver.memory.read(at, &mut answer).unwrap();
    assert_eq!(answer, [!9]);
}

#[test]
fn an_answer_to_a_ring_without_translation_waits_for_it() {
    let (served, kept): (Served, Receiver<Request>) = Served::keeping();
    let mut behind = Behind::new(&served);
    behind.push(0, 0, &[1], MIB / 2);
    let request = behind.until("a request", |_| kept.try_recv().ok());
    let ring = behind.driver.rings[0].layout().descriptors.0;
    let page = behind.deny(ring);
    // All of it, as a flush does.
    behind.driver.client.invalidate_iotlb(Iova(0), ALL).unwrap();
    let open = behind.question();
    let written = invert(&request);
    request.complete(written).unwrap();
    behind.iommu.map(Iova(ring + SHIFT), page);
    assert_eq!(behind.driver.rings[0].used_index(), 0, "its place is not known");
    let Behind { driver, iommu, .. } = &mut behind;
    driver.client.answer_miss(open, iommu, &driver.memory).unwrap();
    assert_eq!(behind.used(0), Used { head: 0, len: 1 });
}

#[test]
fn every_request_is_right_while_translations_come_and_go() {
    let served = Served::new(Mirror { queues: 2, ..Mirror::default() });
    let mut behind = Behind::new(&served);
    let mut number = 1_u64;
    for round in 0..1500_u64 {
        // A generator of pages and of what is taken away.
        number = number.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let at = 4 * MIB + (number >> 33) % 32 * PAGE;
        match number >> 60 {
            0 => behind.driver.client.invalidate_iotlb(Iova(0), 0).unwrap(),
            1..4 => behind.driver.client.invalidate_iotlb(Iova(0), ALL).unwrap(),
            4..9 => behind.invalidate(4 * MIB + (number >> 40) % 32 * PAGE, PAGE),
            9 => behind.invalidate(0, MIB),
            _ => {}
        }
        let data = round.to_le_bytes();
        let answer = behind.ask_at((round % 2) as usize, &data, at);
        assert_eq!(answer, data.map(|byte| !byte), "round {round}");
    }
    assert!(!broken(&served));
}

#[test]
fn many_requests_with_many_pages_wait_together() {
    let served = Served::new(Mirror::default());
    let mut behind = Behind::new(&served);
    for round in 0..20 {
        behind.driver.client.invalidate_iotlb(Iova(0), ALL).unwrap();
        for head in 0..RING / 2 {
            let at = 4 * MIB + u64::from(head) * PAGE;
            behind.driver.push(0, 2 * head, &[round, head as u8], at);
            for index in [2 * head, 2 * head + 1] {
                let descriptor = behind.driver.rings[0].descriptor(index);
                let addr = descriptor.addr + SHIFT;
                behind.driver.rings[0].set_descriptor(index, Descriptor { addr, ..descriptor });
            }
        }
        behind.driver.rings[0].publish();
        for _ in 0..RING / 2 {
            let Used { head, len } = behind.used(0);
            assert_eq!(len, 2);
            let mut answer = [0; 2];
            let at = 4 * MIB + u64::from(head / 2) * PAGE + 2048;
            behind.driver.memory.read(GuestAddr(at), &mut answer).unwrap();
            assert_eq!(answer, [!round, !(head as u8 / 2)]);
        }
    }
}

#[test]
fn indirect_tables_are_by_such_addresses_too() {
    let served = Served::new(Mirror::default());
    let mut behind = Behind::new(&served);
    let (table, data) = (4 * MIB + PAGE - 16, 4 * MIB + 3 * PAGE);
    let entry = |addr: u64, len: u32, flags: u16, next: u16| {
        let mut bytes = (addr + SHIFT).to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        bytes
    };
    // The table lies in two pages.
    let bytes = [entry(data, 3, NEXT, 1), entry(data + 8, 3, WRITE, 0)].concat();
    behind.driver.memory.write(GuestAddr(table), &bytes).unwrap();
    behind.driver.memory.write(GuestAddr(data), &[1, 2, 3]).unwrap();
    let outer = Descriptor { addr: table + SHIFT, len: 32, flags: INDIRECT, next: 0 };
    behind.driver.rings[0].set_descriptor(5, outer);
    behind.driver.rings[0].push(5);
    behind.driver.rings[0].publish();
    assert_eq!(behind.used(0), Used { head: 5, len: 3 });
    let mut answer = [0; 3];
    behind.driver.memory.read(GuestAddr(data + 8), &mut answer).unwrap();
    assert_eq!(answer, [254, 253, 252]);
}

#[test]
fn translations_that_cannot_be_are_refused_with_the_reason() {
    let served = Served::new(Mirror::default());
    let mut behind = Behind::new(&served);
    let to = behind.driver.memory.regions()[0].user();
    for (iova, size, to, access, why) in [
        (0, 0, to, (true, true), "a translation of 0 bytes at 0x0"),
        (ALL - 0xfff, 0x2000, to, (true, true), "goes past the last address"),
        (0, 0x2000, UserAddr(ALL - 0xfff), (true, true), "goes past the last address"),
        (0, PAGE, to, (false, false), "allows neither reading nor writing"),
        (0, PAGE, UserAddr(0x5000), (true, true), "not all of that is in guest memory"),
        (0, MIB + 1, to, (true, true), "not all of that is in guest memory"),
    ] {
        let error = behind.driver.client.update_iotlb(Iova(iova), size, to, access).unwrap_err();
        assert!(matches!(error, FrontendError::Refused { .. }), "{error}");
        assert!(said(&served, why), "{why}");
    }
    let error = behind.driver.client.invalidate_iotlb(Iova(ALL), 2).unwrap_err();
    assert!(matches!(error, FrontendError::Refused { .. }), "{error}");
    assert!(said(&served, "an invalidation of 0x2 bytes at 0xffffffffffffffff: no such addresses"));
    assert_eq!(behind.ask(0, &[1]), [254]);
}

#[test]
fn an_acknowledgement_without_a_translation_fails_the_request() {
    let served = Served::new(Mirror::default());
    let mut behind = Behind::new(&served);
    assert_eq!(behind.ask(0, &[1]), [254]);
    behind.push(0, 0, &[2], 4 * MIB);
    // Another page is told in its place, and the question acknowledged.
    let miss = behind.question();
    let to = behind.driver.memory.user_address(GuestAddr(4 * MIB)).unwrap();
    let client = &mut behind.driver.client;
    let other = Iova(4 * MIB + SHIFT + 64 * PAGE);
    client.update_iotlb(other, PAGE, to, (true, true)).unwrap();
    client.acknowledge_miss(miss).unwrap();
    assert_eq!(behind.used(0), Used { head: 0, len: 0 });
    assert_eq!(behind.ask(0, &[3]), [252]);
}

/// As QEMU 11.1 with an IOMMU: the log's address of the used ring is an I/O virtual one too.
#[test]
fn the_dirty_log_has_the_guests_pages_and_not_those_that_the_device_sees() {
    let served = Served::new(Mirror::default());
    let mut behind = Behind::new(&served);
    assert_eq!(behind.ask_at(0, &[1], 4 * MIB), [254]);
    let Driver { client, memory, rings } = &mut behind.driver;
    let log = DirtyLog::of(memory).unwrap();
    client.set_log(&log).unwrap();
    let layout = rings[0].layout();
    let used = layout.used.0;
    let shifted = |at: GuestAddr| UserAddr(at.0 + SHIFT);
    let address = VringAddress {
        index: 0,
        log_used: true,
        descriptors: shifted(layout.descriptors),
        available: shifted(layout.available),
        used: shifted(layout.used),
        log: GuestAddr(used + SHIFT),
    };
    client.set_vring_addr(&address).unwrap();
    let Wanted { features, .. } = Wanted::default();
    let wanted = features | ACCESS_PLATFORM | LOG_ALL | 1 << 32 | 1 << 30;
    let offered = client.features().unwrap();
    client.set_features(offered & wanted).unwrap();
    for _ in 0..3 {
        assert_eq!(behind.ask_at(0, &[1], 4 * MIB), [254]);
        assert_eq!(log.take(), [used / PAGE, 4 * MIB / PAGE]);
        // The ring is found anew.
        behind.driver.client.invalidate_iotlb(Iova(0), ALL).unwrap();
    }
    assert!(!said(&served, "dirty log"));
}

#[test]
fn what_was_asked_for_is_asked_for_again_on_another_channel() {
    let served = Served::new(Mirror::default());
    let mut behind = Behind::new(&served);
    behind.question();
    behind.driver.client.open_backend_channel().unwrap();
    assert_eq!(behind.ask(0, &[1]), [254]);
    assert!(!broken(&served));
}

#[test]
fn a_front_end_that_reads_questions_and_answers_none_is_not_asked_for_ever() {
    const MOST_OPEN: usize = 8192;
    let served = Served::new(Mirror { queues: 4, ..Mirror::default() });
    let mut behind = Behind::connect(&served, ProtocolFeatures::empty());
    behind.start();
    let mut open = Vec::new();
    // Each time memory is told anew the rings ask for their parts.
    while open.len() < MOST_OPEN {
        let Driver { client, memory, .. } = &mut behind.driver;
        client.remove_region(&memory.regions()[2]).unwrap();
        client.add_region(&memory.regions()[2]).unwrap();
        while let Some(miss) = client.wait_miss(Duration::ZERO).unwrap() {
            open.push(miss);
        }
    }
    for _ in 0..20 {
        let Driver { client, memory, .. } = &mut behind.driver;
        client.remove_region(&memory.regions()[2]).unwrap();
        client.add_region(&memory.regions()[2]).unwrap();
        assert_eq!(client.wait_miss(Duration::ZERO).unwrap(), None, "{MOST_OPEN} are open");
    }
    for miss in open {
        let Behind { driver, iommu, .. } = &mut behind;
        driver.client.answer_miss(miss, iommu, &driver.memory).unwrap();
    }
    assert_eq!(behind.ask(3, &[1]), [254]);
}

#[test]
fn without_a_way_to_ask_no_ring_starts() {
    let served = Served::new(Mirror::default());
    let Wanted { features, protocol } = Wanted::default();
    let wanted = Wanted {
        features: features | ACCESS_PLATFORM,
        protocol: protocol - ProtocolFeatures::BACKEND_REQ,
    };
    let mut driver = Driver::connect_as(&served.directory.join("device.sock"), 1, &wanted);
    let error = driver.client.start_ring(0, &driver.rings[0]).unwrap_err();
    assert!(matches!(error, FrontendError::Refused { .. }), "{error}");
    assert!(said(&served, "SET_VRING_KICK: ACCESS_PLATFORM needs BACKEND_REQ"));
}

#[test]
fn memory_may_be_added_and_removed_under_translations() {
    let served = Served::new(Mirror::default());
    let mut behind = Behind::new(&served);
    for round in 0..20 {
        assert_eq!(behind.ask_at(0, &[round], 4 * MIB), [!round]);
        let Driver { client, memory, .. } = &mut behind.driver;
        client.remove_region(&memory.regions()[2]).unwrap();
        // What leads there is a fault by now.
        behind.push(0, 0, &[1], 4 * MIB);
        assert_eq!(behind.used(0), Used { head: 0, len: 0 });
        let Driver { client, memory, .. } = &mut behind.driver;
        client.add_region(&memory.regions()[2]).unwrap();
        assert_eq!(behind.ask_at(0, &[round], 4 * MIB), [!round]);
    }
    assert!(!broken(&served));
}

#[test]
fn translations_do_not_outlive_the_last_ring() {
    let served = Served::new(Mirror::default());
    let mut behind = Behind::new(&served);
    assert_eq!(behind.ask(0, &[1]), [254]);
    behind.driver.client.vring_base(0).unwrap();
    let asked = behind.asked.len();
    behind.driver.client.set_vring_base(0, 1).unwrap();
    behind.kick(0);
    assert_eq!(behind.ask(0, &[2]), [253]);
    assert!(behind.asked.len() > asked, "nobody has told meanwhile what has gone");
}

/// A device that takes the buffers of its queue by itself.
#[derive(Default)]
struct Radio {
    handle: Mutex<Option<Arc<dyn QueueHandle>>>,
    told: AtomicU32,
}

impl Device for Radio {
    plain!(queues: 1, ring: 256);
    fn receives(&self, _: u16) -> bool {
        true
    }
    fn queue_started(&self, _: u16, handle: Arc<dyn QueueHandle>) {
        *self.handle.lock().unwrap() = Some(handle);
    }
    fn buffers_available(&self, _: u16) {
        self.told.fetch_add(1, Ordering::SeqCst);
    }
    fn handle(&self, _: u16, _: &mut Batch) {}
}

/// So many bytes of the same kind.
struct Bytes(u8, usize);

impl SendData for Bytes {
    fn len(&self) -> u64 {
        self.1 as u64
    }
    fn copy_to(&self, _: u64, to: Parts<'_>) {
        for part in to {
            // SAFETY: the part is mapped while the core has it, and is so long.
            unsafe { std::ptr::write_bytes(part.base(), self.0, part.len()) };
        }
    }
}

fn sending() -> (Directory, Arc<Radio>, Backend, Behind) {
    let (directory, radio) = (Directory::new(), Arc::new(Radio::default()));
    let socket = directory.join("device.sock");
    let options = Options::new(Endpoint::Listen(ListenOptions::new(socket.clone())));
    let events: Arc<dyn Observer> = Arc::new(Events::default());
    let backend = Backend::start(Arc::clone(&radio) as Arc<dyn Device>, options, events).unwrap();
    let mut behind = Behind::dial(&socket, 1, ProtocolFeatures::empty());
    behind.start();
    (directory, radio, backend, behind)
}

/// What a callback sends is published when it returns; a flush of all translations may come before.
#[test]
fn what_was_sent_is_seen_though_the_ring_loses_its_place_before_it_is_published() {
    let (_directory, radio, _backend, mut behind) = sending();
    let told = || radio.told.load(Ordering::SeqCst);
    let addr = 4 * MIB + SHIFT;
    behind.driver.rings[0].set_descriptor(0, Descriptor { addr, len: 20, flags: WRITE, next: 0 });
    behind.driver.rings[0].push(0);
    behind.driver.rings[0].publish();
    behind.until("word of a buffer", |_| (told() > 0).then_some(()));
    let handle = radio.handle.lock().unwrap().clone().unwrap();
    let (data, mut heard) = (Bytes(7, 20), told());
    let mut callback = CallbackScope::enter();
    while handle.send(&data, 1, None).unwrap() == 0 {
        drop(callback);
        behind.until("the buffer's translation", |_| (told() > heard).then_some(()));
        heard = told();
        callback = CallbackScope::enter();
    }
    assert_eq!(behind.driver.rings[0].used_index(), 0, "the callback goes on");
    behind.driver.client.invalidate_iotlb(Iova(0), ALL).unwrap();
    drop(callback);
    assert_eq!(behind.used(0), Used { head: 0, len: 20 });
}

#[test]
fn a_device_that_takes_buffers_by_itself_is_told_when_their_translations_have_come() {
    let (_directory, radio, _backend, mut behind) = sending();
    let told = || radio.told.load(Ordering::SeqCst);
    for round in 0..30_u8 {
        behind.driver.client.invalidate_iotlb(Iova(0), ALL).unwrap();
        let before = told();
        // Two buffers for one piece of data, each in two pages.
        for head in 0..2 {
            let addr = 4 * MIB + SHIFT + u64::from(head) * 8 * PAGE + PAGE - 10;
            let buffer = Descriptor { addr, len: 20, flags: WRITE, next: 0 };
            behind.driver.rings[0].set_descriptor(head, buffer);
            behind.driver.rings[0].push(head);
        }
        behind.driver.rings[0].publish();
        behind.until("word of buffers", |_| (told() > before).then_some(()));
        let handle = radio.handle.lock().unwrap().clone().unwrap();
        let data = Bytes(round + 1, 40);
        let mut heard = told();
        while handle.send(&data, 2, None).unwrap() == 0 {
            behind.until("more buffers", |_| (told() > heard).then_some(()));
            heard = told();
        }
        let used = [behind.used(0), behind.used(0)];
        assert_eq!(used, [Used { head: 0, len: 20 }, Used { head: 1, len: 20 }]);
        for head in 0..2 {
            let mut bytes = [0; 20];
            let at = 4 * MIB + head * 8 * PAGE + PAGE - 10;
            behind.driver.memory.read(GuestAddr(at), &mut bytes).unwrap();
            assert_eq!(bytes, [round + 1; 20]);
        }
    }
}
