use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::write;

use super::super::listener::tests::Directory;
use super::*;

fn never() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

fn why(fd: impl Into<OwnedFd>) -> String {
    Endpoint::Inherited(fd.into()).open().unwrap_err().to_string()
}

#[test]
fn a_connected_socket_that_was_handed_down_is_used_once() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut source = Endpoint::Inherited(ours.into()).open().unwrap();
    assert!(matches!(source.next(never().as_fd()), Ok(Next::Stream(_))));
    assert!(matches!(source.next(never().as_fd()), Ok(Next::Over)));
}

#[test]
fn a_listening_socket_that_was_handed_down_accepts() {
    let directory = Directory::new();
    let listener = UnixListener::bind(directory.join("s")).unwrap();
    let mut source = Endpoint::Inherited(listener.into()).open().unwrap();
    for _ in 0..2 {
        let _client = UnixStream::connect(directory.join("s")).unwrap();
        assert!(matches!(source.next(never().as_fd()), Ok(Next::Stream(_))));
    }
}

#[test]
fn a_descriptor_that_is_no_unix_stream_socket_is_refused_by_its_kind() {
    assert!(why(never()).ends_with("no socket at all"));
    assert!(why(UnixDatagram::unbound().unwrap()).ends_with("socket type 2"));
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(why(tcp).ends_with("address family 2"));
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let idle = rustix::net::socket(family, kind, None).unwrap();
    assert!(why(idle).ends_with("it neither listens nor is connected"));
}

#[test]
fn dialling_waits_for_a_front_end_that_comes_up_later() {
    let directory = Directory::new();
    let path = directory.join("s");
    let mut source = Endpoint::Dial { path: path.clone() }.open().unwrap();
    let dialler = thread::spawn(move || {
        let first = source.next(never().as_fd());
        let second = source.next(never().as_fd());
        matches!((first, second), (Ok(Next::Stream(_)), Ok(Next::Stream(_))))
    });
    // A stale socket at first: refused, then the real one.
    drop(UnixListener::bind(&path).unwrap());
    std::fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    drop(listener.accept().unwrap());
    let second = listener.accept().unwrap();
    assert!(dialler.join().unwrap());
    drop(second);
}

#[test]
fn a_wake_ends_dialling() {
    let directory = Directory::new();
    let mut source = Endpoint::Dial { path: directory.join("nobody") }.open().unwrap();
    let wake = never();
    let alarm = rustix::io::dup(&wake).unwrap();
    let dialler = thread::spawn(move || matches!(source.next(wake.as_fd()), Ok(Next::Woken)));
    write(&alarm, &1_u64.to_ne_bytes()).unwrap();
    assert!(dialler.join().unwrap());
}

#[test]
fn dialling_something_that_will_never_be_a_front_end_is_an_error() {
    let directory = Directory::new();
    let path = directory.join("s");
    let _datagram = UnixDatagram::bind(&path).unwrap();
    let mut source = Endpoint::Dial { path }.open().unwrap();
    assert!(matches!(source.next(never().as_fd()), Err(SocketError::Host(_))));

    let long = "x".repeat(108);
    let error = Endpoint::Dial { path: long.into() }.open().unwrap_err();
    assert!(error.to_string().contains("108 bytes, at most 107 fit"), "{error}");
}

#[test]
fn a_listening_endpoint_serves_one_front_end_after_the_other() {
    let directory = Directory::new();
    let path = directory.join("s");
    let mut source = Endpoint::Listen(ListenOptions::new(&path)).open().unwrap();
    for _ in 0..3 {
        let _client = UnixStream::connect(&path).unwrap();
        assert!(matches!(source.next(never().as_fd()), Ok(Next::Stream(_))));
    }
}
