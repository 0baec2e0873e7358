//! Front-ends that pass odd descriptors, do not read, or take memory away at a bad time.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::served::*;

#[test]
fn a_call_or_an_error_descriptor_without_a_reader_raises_no_signal() {
    // By default it would end the process.
    let raised = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGPIPE, Arc::clone(&raised)).unwrap();
    let served = Served::new(Mirror::default());
    let mut driver = served.driver();
    let (reader, pipe) = rustix::pipe::pipe().unwrap();
    driver.client.set_vring_call(0, Some(pipe.as_fd())).unwrap();
    driver.client.set_vring_err(0, Some(pipe.as_fd())).unwrap();
    driver.push(0, 0, b"call", MIB / 2);
    driver.rings[0].publish();
    let mut bytes = [0; 16];
    assert_eq!(rustix::io::read(&reader, &mut bytes), Ok(8), "a pipe is signalled as well");
    assert_eq!(driver.rings[0].pop().unwrap().map(|used| used.head), Some(0));
    drop(reader);
    driver.rings[0].set_used_event(1);
    driver.push(0, 2, b"none", MIB / 2);
    driver.rings[0].publish();
    eventually("the second call", || served.backend.counters().calls == 2);
    driver.rings[0].set_available_index(RING + 3);
    driver.rings[0].kick();
    // The status says so after the error descriptor was signalled.
    eventually("needs-reset", || driver.client.status().unwrap() & 0x40 != 0);
    assert!(!raised.load(Ordering::SeqCst));
}
