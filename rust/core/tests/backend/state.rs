//! The device's own state goes from one back-end to another.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::pipe::{PipeFlags, pipe_with};
use vhost_user_core::backend::Event;
use vhost_user_core::frontend::{Client, FrontendError, Wanted};
use vhost_user_core::state::MOST_BYTES;
use vhost_user_core::wire::payload::TransferDirection::{Load, Save};
use vhost_user_core::wire::{Flags, Frame, ProtocolFeatures};

use super::served::*;

const MOST: u64 = 2 * MOST_BYTES;

/// `abc` of a mirror, version 2, of device type 4, with the sum that Python's `zlib.crc32` has
/// computed of it.
const ABC: &[u8] =
    b"VHUSTATE\x01\0\0\0\x04\0\0\0\x02\0\0\0\x06\0\0\0\x03\0\0\0\0\0\0\0\x97\xc7\xbe\x76mirrorabc";

/// The same with `bad`.
const BAD: &[u8] =
    b"VHUSTATE\x01\0\0\0\x04\0\0\0\x02\0\0\0\x06\0\0\0\x03\0\0\0\0\0\0\0\xae\xbf\xb1\xc1mirrorbad";

fn with_state(state: &[u8]) -> Served {
    Served::new(Mirror { state: Some(state.to_vec()).into(), ..Mirror::default() })
}

/// A front-end that has negotiated protocol features, and nothing more.
fn client(served: &Served) -> Client {
    let mut client = Client::connect(&served.directory.join("device.sock"), LIMIT).unwrap();
    client.negotiate(&Wanted::default()).unwrap();
    client
}

fn state_of(served: &Served) -> Vec<u8> {
    served.device.state.lock().unwrap().clone().unwrap()
}

fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

fn calls(served: &Served, name: &str) -> usize {
    served.device.log.lock().unwrap().iter().filter(|call| **call == name).count()
}

fn is_refused(result: Result<impl std::fmt::Debug, FrontendError>, wanted: u64) {
    match result {
        Err(FrontendError::Refused { code, .. }) => assert_eq!(code, wanted),
        other => panic!("{other:?}"),
    }
}

fn told(served: &Served, why: &str) -> bool {
    served.events.any(|event| {
        matches!(event, Event::Refused(_) | Event::StateFailed(_))
            && event.to_string().contains(why)
    })
}

#[test]
fn what_one_back_end_saves_another_loads_before_it_knows_memory_and_features() {
    let source = with_state(b"abc");
    let saved = client(&source).save_state(MOST).unwrap();
    assert_eq!(saved, ABC);
    assert!(source.events.any(|event| matches!(event, Event::StateSaved { bytes: 3 })));
    let destination = with_state(b"");
    let mut client = client(&destination);
    client.load_state(&saved).unwrap();
    assert_eq!(state_of(&destination), b"abc");
    assert!(destination.events.any(|event| matches!(event, Event::StateLoaded { bytes: 3 })));
}

#[test]
fn a_state_longer_than_any_pipe_comes_whole() {
    let state: Vec<u8> = (0..3_000_001_u32).map(|n| (n >> 3) as u8).collect();
    let source = with_state(&state);
    let saved = client(&source).save_state(MOST).unwrap();
    let destination = with_state(b"");
    client(&destination).load_state(&saved).unwrap();
    assert!(state_of(&destination) == state);
}

#[test]
fn rings_go_on_where_they_stood_after_a_save_that_nobody_needed() {
    let source = with_state(b"abc");
    let mut driver = source.driver();
    assert_eq!(driver.ask(0, b"one"), [!b'o', !b'n', !b'e']);
    let running = driver.client.save_state(MOST);
    is_refused(running, 0x101);
    assert!(told(&source, "vring 0 is started"));
    driver.client.vring_base(0).unwrap();
    driver.client.save_state(MOST).unwrap();
    driver.start();
    assert_eq!(driver.ask(0, b"two"), [!b't', !b'w', !b'o']);
    assert_eq!(
        (calls(&source, "save"), calls(&source, "load"), calls(&source, "reset")),
        (1, 0, 0)
    );
}

#[test]
fn a_device_without_a_state_offers_no_transfer() {
    let served = Served::new(Mirror::default());
    let mut client = Client::connect(&served.directory.join("device.sock"), LIMIT).unwrap();
    let negotiated = client.negotiate(&Wanted::default()).unwrap();
    assert!(!negotiated.offered_protocol.contains(ProtocolFeatures::DEVICE_STATE));
    let served = with_state(b"");
    let mut client = Client::connect(&served.directory.join("device.sock"), LIMIT).unwrap();
    let negotiated = client.negotiate(&Wanted::default()).unwrap();
    assert_eq!(negotiated.offered_protocol.bits() >> 19 & 1, 1);
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason_and_the_device_never_sees_it() {
    let destination = with_state(b"before");
    let mut client = client(&destination);
    let changed = |at: usize, byte: u8| {
        let mut state = ABC.to_vec();
        state[at] = byte;
        state
    };
    for (state, why) in [
        (vec![], "not a byte came"),
        (ABC[..20].to_vec(), "it was cut short: 20 bytes of 36 came"),
        (ABC[..44].to_vec(), "it was cut short: 44 bytes of 45 came"),
        ([ABC, b"!"].concat(), "more follows its 45 bytes"),
        (b"QEMU's own, which is another thing altogether".to_vec(), "another kind of back-end"),
        (changed(8, 2), "its envelope has version 2, 1 is known here"),
        (changed(12, 26), "it is of device type 26, this device is of type 4"),
        (changed(44, b'd'), "it was damaged"),
        (changed(31, 1), "bytes of state, 268435456 at most"),
    ] {
        is_refused(client.load_state(&state), 1);
        assert!(told(&destination, why), "{why}");
    }
    assert_eq!(calls(&destination, "load"), 0);
    assert_eq!(state_of(&destination), b"before");
    client.load_state(ABC).unwrap();
}

#[test]
fn a_device_that_refuses_or_panics_fails_the_check_with_its_words() {
    for (state, why) in [(&b"bad"[..], "not saved: it is bad"), (b"panic", "a panic: at the disco")]
    {
        let source = with_state(state);
        let mut client = client(&source);
        is_refused(client.save_state(MOST), 1);
        assert!(told(&source, why));
        // And the connection goes on.
        client.features().unwrap();
    }
}

#[test]
fn a_device_that_does_not_take_its_state_fails_the_check_with_its_words() {
    let destination = with_state(b"before");
    let mut client = client(&destination);
    is_refused(client.load_state(BAD), 1);
    assert!(told(&destination, "not loaded: it is bad"));
    assert_eq!(state_of(&destination), b"before");
    client.load_state(ABC).unwrap();
}

#[test]
fn more_than_a_state_may_have_is_not_saved() {
    let source = with_state(&vec![0; MOST_BYTES as usize + 1]);
    is_refused(client(&source).save_state(MOST), 1);
    assert!(told(&source, "268435457 bytes of state, 268435456 at most"));
}

#[test]
fn a_front_end_that_leaves_before_the_end_of_its_state_is_let_go() {
    let served = with_state(b"before");
    let mut first = client(&served);
    let (reader, writer) = pipe();
    let mut writer = std::fs::File::from(writer);
    first.set_device_state_fd(Load, reader).unwrap();
    writer.write_all(&ABC[..40]).unwrap();
    drop(first);
    // The pipe is still open, and the next front-end is served.
    client(&served).load_state(ABC).unwrap();
    assert!(told(&served, "not loaded: it was given up"));
    assert_eq!(calls(&served, "load"), 1);
}

#[test]
fn a_check_ends_with_its_front_end_though_the_state_does_not_end() {
    let served = with_state(b"before");
    let mut first = client(&served);
    let (reader, _writer) = pipe();
    first.set_device_state_fd(Load, reader).unwrap();
    first.raw(&Frame::new(43, Flags::VERSION, Vec::new(), Vec::new())).unwrap();
    drop(first);
    client(&served).load_state(ABC).unwrap();
}

#[test]
fn a_stop_does_not_wait_for_a_front_end_that_never_reads() {
    let served = with_state(&[1; 1 << 20]);
    let mut client = client(&served);
    let (_reader, writer) = pipe();
    client.set_device_state_fd(Save, writer).unwrap();
    eventually("a save", || calls(&served, "save") == 1);
    assert_eq!(served.backend.stop(LIMIT), []);
    assert!(told(&served, "not saved: it was given up"));
}

#[test]
fn the_state_may_travel_over_a_socket_too() {
    let source = with_state(b"abc");
    let mut client = client(&source);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    client.set_device_state_fd(Save, theirs.into()).unwrap();
    let mut saved = Vec::new();
    ours.read_to_end(&mut saved).unwrap();
    client.check_device_state().unwrap();
    assert_eq!(saved, ABC);
}

#[test]
fn a_descriptor_that_carries_no_stream_this_way_is_refused() {
    let served = with_state(b"abc");
    let mut client = client(&served);
    let (reader, _writer) = pipe();
    is_refused(client.set_device_state_fd(Save, reader), 0x101);
    assert!(told(&served, "the descriptor is open for reading alone, not the end of a pipe"));
    let file = std::fs::File::open("/dev/null").unwrap();
    is_refused(client.set_device_state_fd(Load, file.into()), 0x101);
    assert!(told(&served, "/dev/null"));
    is_refused(client.check_device_state(), 1);
    assert!(told(&served, "no transfer was begun"));
}

#[test]
fn another_transfer_takes_the_place_of_one_that_its_front_end_has_given_up() {
    let served = with_state(b"before");
    let mut client = client(&served);
    let (reader, _writer) = pipe();
    client.set_device_state_fd(Load, reader).unwrap();
    client.load_state(ABC).unwrap();
    assert_eq!(state_of(&served), b"abc");
}

#[test]
fn another_transfer_is_refused_while_the_device_is_busy_with_the_first() {
    let served = with_state(b"abc");
    let mut client = client(&served);
    served.device.block.set(true);
    let (_reader, writer) = pipe();
    client.set_device_state_fd(Save, writer).unwrap();
    eventually("a save", || calls(&served, "save") == 1);
    is_refused(client.set_device_state_fd(Save, pipe().1), 0x101);
    assert!(told(&served, "the device is still saving or loading its state"));
    // The first is given up all the same.
    served.device.block.set(false);
    is_refused(client.check_device_state(), 1);
    assert_eq!(client.save_state(MOST).unwrap(), ABC);
}
