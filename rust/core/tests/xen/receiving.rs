//! Devices that put data into a guest's buffers, whose pages are mapped for each.
#![allow(unsafe_code)] // Data is copied to where a guest's buffers are.

use std::fs;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use rustix::thread::{Pid, gettid};
use vhost_user_core::device::{Device, QueueHandle, SendData};
use vhost_user_core::frontend::Used;
use vhost_user_core::memory::Parts;
use vhost_user_core::request::Batch;

use super::gate::{Call, Gate, Keeper};
use super::guest::*;
use super::raw::*;

/// Says when there are buffers, and gives the test its queue.
struct Port {
    handle: Mutex<Sender<(Arc<dyn QueueHandle>, Pid)>>,
    told: Mutex<Sender<()>>,
    maps: bool,
}

impl Device for Port {
    plain!(queues: 1, ring: 256);
    fn receives(&self, _: u16) -> bool {
        true
    }
    fn wants_mappings(&self) -> bool {
        self.maps
    }
    fn queue_started(&self, _: u16, handle: Arc<dyn QueueHandle>) {
        // The control thread starts queues.
        self.handle.lock().unwrap().send((handle, gettid())).unwrap();
    }
    fn buffers_available(&self, _: u16) {
        let _ = self.told.lock().unwrap().send(());
    }
    fn handle(&self, _: u16, _: &mut Batch) {
        panic!("the device takes its buffers by itself");
    }
}

struct Bytes(Vec<u8>);

impl SendData for Bytes {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }
    fn copy_to(&self, from: u64, to: Parts<'_>) {
        let mut from = from as usize;
        for part in to {
            let bytes = &self.0[from..from + part.len()];
            // SAFETY: the part is mapped while the core has it, and has as many bytes.
            unsafe { std::ptr::copy(bytes.as_ptr(), part.base(), part.len()) };
            from += part.len();
        }
    }
}

/// A device on a guest whose pages are mapped on demand, and the ways to its queue.
struct Receiving {
    served: Served,
    raw: Raw,
    queue: Arc<dyn QueueHandle>,
    control_thread: Pid,
    told: Receiver<()>,
    gate: Arc<Gate>,
    keeper: Keeper,
}

impl Receiving {
    fn start(guest: &Guest, maps: bool) -> Self {
        let (handle, started) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let (gate, keeper) = Gate::new(guest);
        let device = Port { handle: Mutex::new(handle), told: Mutex::new(tell), maps };
        let ops = Arc::clone(&gate);
        let served = Served::with(Arc::new(device), guest, |xen| xen.access.ops = ops);
        let raw = Raw::start(&served, guest.all_on_demand());
        let (queue, control_thread) = started.recv_timeout(LIMIT).unwrap();
        Self { served, raw, queue, control_thread, told, gate, keeper }
    }

    fn hears_of_buffers(&self) {
        self.told.recv_timeout(LIMIT).unwrap();
    }

    fn give(&mut self, head: u16, page: u64, len: u32) {
        let at = self.raw.address(page);
        self.raw.push(head, &[(at, len, true)]);
    }

    fn end(self, guest: &Guest) {
        drop(self.raw);
        self.served.events.wait_disconnected();
        guest.assert_left_alone();
    }
}

#[test]
fn a_frame_is_whole_in_pages_that_are_copied_as_in_those_that_are_mapped() {
    for maps in [false, true] {
        let guest = Guest::granting();
        let mut port = Receiving::start(&guest, maps);
        port.raw.publish_at_once(|raw| {
            for n in 0..4_u16 {
                let at = raw.address(DATA_PAGE + 2 * u64::from(n));
                raw.push(n, &[(at, 4096, true)]);
            }
        });
        port.hears_of_buffers();
        let data = pattern(10_000, 3);
        assert_eq!(port.queue.send(&Bytes(data.clone()), 4, Some(10)).unwrap(), 3);
        let used = [port.raw.used(), port.raw.used(), port.raw.used()];
        assert_eq!(used.map(|used| (used.head, used.len)), [(0, 4096), (1, 4096), (2, 1808)]);
        let mut read: Vec<u8> =
            (0..3).flat_map(|n| port.raw.read(DATA_PAGE + 2 * n, 4096)).collect();
        read.truncate(10_000);
        assert_eq!(read[10..12], [3, 0], "the number of buffers");
        read[10..12].copy_from_slice(&data[10..12]);
        assert!(read == data);
        port.end(&guest);
    }
}

#[test]
fn a_buffer_that_cannot_be_reached_goes_back_empty_and_the_frame_goes_around_it() {
    let guest = Guest::granting();
    let mut port = Receiving::start(&guest, true);
    assert!(guest.xen.revoke(DOMID, FIRST_REF + DATA_PAGE as u32 + 1));
    port.raw.publish_at_once(|raw| {
        for n in 0..3_u16 {
            let at = raw.address(DATA_PAGE + u64::from(n));
            raw.push(n, &[(at, 4096, true)]);
        }
    });
    port.hears_of_buffers();
    let data = pattern(8192, 4);
    assert_eq!(port.queue.send(&Bytes(data.clone()), 3, None).unwrap(), 2);
    let used = [port.raw.used(), port.raw.used(), port.raw.used()];
    assert_eq!(used.map(|used| (used.head, used.len)), [(1, 0), (0, 4096), (2, 4096)]);
    assert!(port.raw.read(DATA_PAGE, 4096) == data[..4096]);
    assert!(port.raw.read(DATA_PAGE + 2, 4096) == data[4096..]);
    assert_eq!(port.raw.client.vring_base(0).unwrap(), 3);
    port.end(&guest);
}

#[test]
fn too_few_buffers_beside_one_that_cannot_be_reached_all_come_back() {
    let guest = Guest::granting();
    let mut port = Receiving::start(&guest, true);
    assert!(guest.xen.revoke(DOMID, FIRST_REF + DATA_PAGE as u32 + 1));
    port.raw.publish_at_once(|raw| {
        for n in 0..2_u16 {
            let at = raw.address(DATA_PAGE + u64::from(n));
            raw.push(n, &[(at, 4096, true)]);
        }
    });
    port.hears_of_buffers();
    assert_eq!(port.queue.send(&Bytes(vec![7; 8192]), 3, None).unwrap(), 0);
    let mut used = [port.raw.used(), port.raw.used()].map(|used| (used.head, used.len));
    used.sort_unstable();
    assert_eq!(used, [(0, 0), (1, 0)]);
    assert_eq!(port.raw.read(DATA_PAGE, 4096), vec![0; 4096]);
    // What comes then is told of, and used.
    port.give(0, DATA_PAGE + 4, 4096);
    port.raw.ring.publish();
    port.hears_of_buffers();
    assert_eq!(port.queue.send(&Bytes(vec![8; 100]), 3, None).unwrap(), 1);
    assert_eq!(port.raw.used(), Used { head: 0, len: 100 });
    assert_eq!(port.raw.client.vring_base(0).unwrap(), 3);
    port.end(&guest);
}

/// The control thread waits for a lock.
fn wait_for_the_control_thread(control_thread: Pid) {
    let path = format!("/proc/self/task/{}/syscall", control_thread.as_raw_nonzero());
    let deadline = Instant::now() + LIMIT;
    loop {
        let call = fs::read_to_string(&path).unwrap();
        let number = call.split_whitespace().next().and_then(|number| number.parse().ok());
        if number == Some(libc::SYS_futex) {
            return;
        }
        assert!(Instant::now() < deadline, "the control thread never waits");
        thread::yield_now();
    }
}

#[test]
fn a_send_that_is_in_a_messages_way_takes_nothing_and_is_told_to_try_again() {
    let guest = Guest::granting();
    let mut port = Receiving::start(&guest, true);
    port.raw.publish_at_once(|raw| {
        for n in 0..2_u16 {
            let at = raw.address(DATA_PAGE + u64::from(n));
            raw.push(n, &[(at, 4096, true)]);
        }
    });
    port.hears_of_buffers();
    port.gate.shut(Call::Map);
    let queue = Arc::clone(&port.queue);
    let data = pattern(8192, 5);
    let frame = data.clone();
    let sender = thread::spawn(move || queue.send(&Bytes(frame), 2, None).unwrap());
    port.keeper.arrived.recv_timeout(LIMIT).unwrap();
    let Receiving { served, mut raw, queue, control_thread, told, gate, keeper } = port;
    let message = thread::spawn(move || {
        raw.client.set_vring_enable(0, true).unwrap();
        raw
    });
    wait_for_the_control_thread(control_thread);
    keeper.open.send(()).unwrap();
    assert_eq!(sender.join().unwrap(), 0, "the message goes first");
    let raw = message.join().unwrap();
    assert_eq!(raw.ring.used_index(), 0);
    told.recv_timeout(LIMIT).unwrap();
    let mut port = Receiving { served, raw, queue, control_thread, told, gate, keeper };
    assert_eq!(port.queue.send(&Bytes(data.clone()), 2, None).unwrap(), 2);
    let used = [port.raw.used(), port.raw.used()];
    assert_eq!(used.map(|used| (used.head, used.len)), [(0, 4096), (1, 4096)]);
    assert!(port.raw.read(DATA_PAGE, 8192) == data);
    port.end(&guest);
}

#[test]
fn a_take_that_is_in_a_messages_way_lets_it_go_first() {
    let guest = Guest::granting();
    let mut port = Receiving::start(&guest, true);
    // Two map calls: one for what is read, one for what is written.
    port.raw.publish_at_once(|raw| {
        let (out, into) = (raw.address(DATA_PAGE), raw.address(DATA_PAGE + 1));
        raw.push(0, &[(out, 4096, false), (into, 4096, true)]);
    });
    port.hears_of_buffers();
    port.gate.shut(Call::Map);
    let queue = Arc::clone(&port.queue);
    let taker = thread::spawn(move || queue.take().is_some());
    port.keeper.arrived.recv_timeout(LIMIT).unwrap();
    let Receiving { served, mut raw, queue, control_thread, told, gate, keeper } = port;
    let message = thread::spawn(move || {
        raw.client.set_vring_enable(0, true).expect("nothing holds the queue up");
        raw
    });
    wait_for_the_control_thread(control_thread);
    keeper.open.send(()).unwrap();
    assert!(!taker.join().unwrap());
    let raw = message.join().unwrap();
    told.recv_timeout(LIMIT).unwrap();
    let mut port = Receiving { served, raw, queue, control_thread, told, gate, keeper };
    port.queue.take().unwrap().complete(4096).unwrap();
    assert_eq!(port.raw.used(), Used { head: 0, len: 4096 });
    port.end(&guest);
}
