//! Requests that are late when their ring stops: they fail, and their driver can see it.

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vhost_user_core::device::Device;
use vhost_user_core::request::{Batch, Request};

use super::guest::*;
use super::raw::*;

/// Hands every request to the test, and writes a one into the last byte of those that fail.
struct Late(Mutex<Sender<Request>>);

impl Device for Late {
    plain!(queues: 1, ring: 256);
    fn refuse(&self, _: u16, request: &Request) -> u32 {
        let last = request.writable().len() - 1;
        request.writable().write_at(last, &[1]);
        1
    }
    fn handle(&self, _: u16, batch: &mut Batch) {
        while let Some(request) = batch.next() {
            self.0.lock().unwrap().send(request).unwrap();
        }
    }
}

#[test]
fn the_status_of_a_late_request_reaches_its_driver_wherever_it_lies() {
    for (flags, in_table) in
        [FOREIGN, IN_ADVANCE, ON_DEMAND].into_iter().flat_map(|f| [(f, false), (f, true)])
    {
        let guest = Guest::for_flags(flags);
        let (to, kept) = mpsc::channel();
        let device = Arc::new(Late(Mutex::new(to)));
        let served = Served::draining(device, &guest, Duration::from_millis(50), |x| {
            x.access.copy_below = 0
        });
        let memory = guest.whole(vhost_user_core::wire::RegionLayout::XenMerged, flags);
        let mut raw = Raw::start(&served, memory);
        let buffers = [
            (raw.address(HEADER_PAGE), 16, false),
            (raw.address(DATA_PAGE), 4096, true),
            (raw.address(STATUS_PAGE), 1, true),
        ];
        raw.write(STATUS_PAGE, &[0xff]);
        if in_table {
            raw.push_table(0, DATA_PAGE + 16, &buffers);
        } else {
            raw.push(0, &buffers);
        }
        raw.ring.publish();
        let late = kept.recv_timeout(LIMIT).unwrap();
        assert_eq!(raw.client.vring_base(0).unwrap(), 1);
        let used = raw.ring.pop().unwrap().unwrap();
        assert_eq!((used.head, used.len), (0, 1));
        assert_eq!(raw.read(STATUS_PAGE, 1), [1], "flags {flags:#x}, in a table: {in_table}");
        assert!(late.complete(0).is_err());
        drop(raw);
        served.events.wait_disconnected();
        guest.assert_left_alone();
    }
}
