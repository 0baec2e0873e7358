use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;

use rustix::event::{EventfdFlags, PollFd, Timespec, eventfd, poll};
use rustix::io::{fcntl_getfd, ioctl_fionbio, ioctl_fionread, write};
use rustix::net::{Shutdown, shutdown};
use rustix::pipe::{PipeFlags, pipe_with};

use super::*;
use crate::wire::Flags;

/// Request 0x2a, version 1, 8 bytes of payload. Written down for a little-endian host.
const MESSAGE: [u8; 20] =
    [0x2a, 0, 0, 0, 0x01, 0, 0, 0, 8, 0, 0, 0, 0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7];
const PAYLOAD: [u8; 8] = [0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7];

/// Our end, and the peer's as a bare descriptor.
fn pair() -> (Stream, OwnedFd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Stream::new(OwnedFd::from(ours)), theirs.into())
}

fn never() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

fn frame(incoming: Incoming) -> Frame {
    match incoming {
        Incoming::Frame(frame) => frame,
        other => panic!("expected a frame, got {other:?}"),
    }
}

fn receive(stream: &mut Stream) -> Result<Incoming, SocketError> {
    stream.receive(never().as_fd())
}

fn raw_send(fd: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    let sent = sendmsg(fd, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    assert_eq!(sent, bytes.len());
}

/// Waits until the receiver has read all that was sent.
fn wait_until_read(receiver: &OwnedFd) {
    let limit = Instant::now() + Duration::from_secs(10);
    while ioctl_fionread(receiver).unwrap() != 0 {
        assert!(Instant::now() < limit, "the receiver does not read");
        thread::yield_now();
    }
}

/// A descriptor to send, and a way to see whether all its copies are closed.
fn traced() -> (OwnedFd, OwnedFd) {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    (write, read)
}

fn all_closed(trace: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(trace, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
    fds[0].revents().contains(PollFlags::HUP)
}

#[test]
fn a_message_reads_as_it_was_sent() {
    let (mut ours, theirs) = pair();
    write(&theirs, &MESSAGE).unwrap();
    let got = frame(receive(&mut ours).unwrap());
    assert_eq!(got.header.request, 0x2a);
    assert_eq!(got.header.flags, Flags::VERSION);
    assert_eq!(got.header.size, 8);
    assert_eq!(got.payload, PAYLOAD);
    assert!(got.fds.is_empty());
}

#[test]
fn a_message_sent_byte_by_byte_is_one_message() {
    let (mut ours, theirs) = pair();
    let seen = rustix::io::dup(&ours.fd).unwrap();
    let sender = thread::spawn(move || {
        for byte in MESSAGE {
            write(&theirs, &[byte]).unwrap();
            wait_until_read(&seen);
        }
        theirs
    });
    assert_eq!(frame(receive(&mut ours).unwrap()).payload, PAYLOAD);
    drop(sender.join().unwrap());
    assert!(matches!(receive(&mut ours), Ok(Incoming::Closed)));
}

#[test]
fn a_message_split_at_any_offset_is_one_message_with_its_descriptors() {
    for offset in 1..MESSAGE.len() {
        let (mut ours, theirs) = pair();
        let seen = rustix::io::dup(&ours.fd).unwrap();
        let (sent, trace) = traced();
        let sender = thread::spawn(move || {
            let (first, second) = MESSAGE.split_at(offset);
            raw_send(&theirs, first, &[sent.as_fd()]);
            wait_until_read(&seen);
            raw_send(&theirs, second, &[]);
        });
        let got = frame(receive(&mut ours).unwrap());
        sender.join().unwrap();
        assert_eq!((got.payload.as_slice(), got.fds.len()), (&PAYLOAD[..], 1), "offset {offset}");
        assert!(!all_closed(&trace));
        drop(got);
        assert!(all_closed(&trace), "offset {offset}");
    }
}

#[test]
fn two_messages_in_one_send_are_two_and_the_first_has_the_descriptors() {
    let (mut ours, theirs) = pair();
    let fd = never();
    raw_send(&theirs, &[MESSAGE, MESSAGE].concat(), &[fd.as_fd()]);
    assert_eq!(frame(receive(&mut ours).unwrap()).fds.len(), 1);
    let second = frame(receive(&mut ours).unwrap());
    assert_eq!((second.payload.as_slice(), second.fds.len()), (&PAYLOAD[..], 0));
}

#[test]
fn descriptors_stay_with_the_message_that_brought_them() {
    let (mut ours, theirs) = pair();
    let (a, b) = (never(), never());
    raw_send(&theirs, &MESSAGE, &[]);
    raw_send(&theirs, &MESSAGE, &[a.as_fd(), b.as_fd()]);
    raw_send(&theirs, &MESSAGE, &[b.as_fd()]);
    for expected in [0, 2, 1] {
        assert_eq!(frame(receive(&mut ours).unwrap()).fds.len(), expected);
    }
}

#[test]
fn descriptors_sent_with_a_later_byte_are_closed() {
    let (mut ours, theirs) = pair();
    let (sent, trace) = traced();
    let seen = rustix::io::dup(&ours.fd).unwrap();
    let sender = thread::spawn(move || {
        raw_send(&theirs, &MESSAGE[..12], &[]);
        wait_until_read(&seen);
        raw_send(&theirs, &MESSAGE[12..], &[sent.as_fd()]);
    });
    let got = frame(receive(&mut ours).unwrap());
    sender.join().unwrap();
    assert!(got.fds.is_empty());
    assert!(all_closed(&trace));
}

#[test]
fn a_control_message_with_no_descriptors_is_legal() {
    let (mut ours, theirs) = pair();
    raw_send(&theirs, &MESSAGE, &[]);
    assert!(frame(receive(&mut ours).unwrap()).fds.is_empty());
}

#[test]
fn as_many_descriptors_as_allowed_arrive_closed_on_exec() {
    let (mut ours, theirs) = pair();
    let fd = never();
    raw_send(&theirs, &MESSAGE, &[fd.as_fd(); MAX_FDS]);
    let got = frame(receive(&mut ours).unwrap());
    assert_eq!(got.fds.len(), MAX_FDS);
    for fd in &got.fds {
        assert!(fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }
}

#[test]
fn too_many_descriptors_are_an_error_and_all_are_closed() {
    for count in [33, 34, 253] {
        let (mut ours, theirs) = pair();
        let (sent, trace) = traced();
        raw_send(&theirs, &MESSAGE, &vec![sent.as_fd(); count]);
        drop(sent);
        let error = receive(&mut ours).unwrap_err();
        assert!(
            matches!(error, SocketError::FdsCutOff | SocketError::TooManyFds { .. }),
            "{count}: {error}"
        );
        assert!(all_closed(&trace), "{count}");
    }
}

#[test]
fn a_payload_over_the_limit_is_refused_by_its_header() {
    for size in [0xffff_ffff_u32, 0x1_0000, 0x1001] {
        let (mut ours, theirs) = pair();
        let mut header = MESSAGE[..12].to_vec();
        header[8..].copy_from_slice(&size.to_ne_bytes());
        write(&theirs, &header).unwrap();
        let error = receive(&mut ours).unwrap_err();
        assert!(
            matches!(error, SocketError::PayloadTooLong { request: 0x2a, size: s } if s == size)
        );
        assert!(error.to_string().contains("4096 is the limit"));
    }
}

#[test]
fn the_longest_payload_is_read_whole() {
    let (mut ours, theirs) = pair();
    let mut message = MESSAGE[..12].to_vec();
    message[8..].copy_from_slice(&4096_u32.to_ne_bytes());
    message.extend((0..4096).map(|i| i as u8));
    write(&theirs, &message).unwrap();
    assert_eq!(frame(receive(&mut ours).unwrap()).payload, message[12..]);
}

#[test]
fn an_end_between_messages_is_a_close_and_inside_one_an_error() {
    for offset in 0..=MESSAGE.len() {
        let (mut ours, theirs) = pair();
        write(&theirs, &MESSAGE[..offset]).unwrap();
        shutdown(&theirs, Shutdown::Write).unwrap();
        if offset == MESSAGE.len() {
            frame(receive(&mut ours).unwrap());
        }
        match receive(&mut ours) {
            Ok(Incoming::Closed) => assert!(offset == 0 || offset == MESSAGE.len()),
            Err(SocketError::EndInside { got }) => assert_eq!(got, offset),
            other => panic!("offset {offset}: {other:?}"),
        }
    }
}

#[test]
fn an_end_inside_a_message_closes_its_descriptors() {
    let (mut ours, theirs) = pair();
    let (sent, trace) = traced();
    raw_send(&theirs, &MESSAGE[..5], &[sent.as_fd()]);
    drop((sent, theirs));
    assert!(matches!(receive(&mut ours), Err(SocketError::EndInside { got: 5 })));
    assert!(all_closed(&trace));
}

#[test]
fn a_peer_that_closes_with_replies_unread_has_closed() {
    let (mut ours, theirs) = pair();
    ours.send(&Frame::new(1, Flags::VERSION, vec![1], vec![])).unwrap();
    drop(theirs);
    assert!(matches!(receive(&mut ours), Ok(Incoming::Closed)));
}

#[test]
fn half_a_message_runs_into_the_deadline() {
    for offset in [1, 5, 12, 19] {
        let (mut ours, theirs) = pair();
        let (sent, trace) = traced();
        ours.set_deadline(Duration::from_millis(20));
        raw_send(&theirs, &MESSAGE[..offset], &[sent.as_fd()]);
        drop(sent);
        match receive(&mut ours) {
            Err(SocketError::HalfMessage { got, .. }) => assert_eq!(got, offset),
            other => panic!("offset {offset}: {other:?}"),
        }
        assert!(all_closed(&trace));
    }
}

#[test]
fn silence_between_messages_has_the_callers_limit_and_the_stream_survives_it() {
    let (mut ours, theirs) = pair();
    assert!(matches!(ours.receive_until(None, Instant::now()), Err(SocketError::TimedOut)));
    write(&theirs, &MESSAGE).unwrap();
    frame(ours.receive_until(None, Instant::now()).unwrap());
}

#[test]
fn a_wake_ends_the_wait_and_wins_over_messages() {
    let (mut ours, theirs) = pair();
    let wake = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
    write(&theirs, &MESSAGE).unwrap();
    assert!(matches!(ours.receive(wake.as_fd()), Ok(Incoming::Woken)));
    frame(receive(&mut ours).unwrap());
}

#[test]
fn a_wake_inside_a_message_loses_nothing_of_it() {
    for offset in 1..MESSAGE.len() {
        let (mut ours, theirs) = pair();
        let seen = rustix::io::dup(&ours.fd).unwrap();
        let wake = never();
        let (sent, _trace) = traced();
        let alarm = rustix::io::dup(&wake).unwrap();
        let receiver = thread::spawn(move || {
            assert!(matches!(ours.receive(wake.as_fd()), Ok(Incoming::Woken)));
            ours
        });
        raw_send(&theirs, &MESSAGE[..offset], &[sent.as_fd()]);
        wait_until_read(&seen);
        write(&alarm, &1_u64.to_ne_bytes()).unwrap();
        let mut ours = receiver.join().unwrap();
        write(&theirs, &MESSAGE[offset..]).unwrap();
        let got = frame(receive(&mut ours).unwrap());
        assert_eq!((got.payload.as_slice(), got.fds.len()), (&PAYLOAD[..], 1), "offset {offset}");
    }
}

#[test]
fn a_shared_file_that_is_non_blocking_makes_no_difference() {
    let (mut ours, theirs) = pair();
    ioctl_fionbio(&ours.fd, true).unwrap();
    let seen = rustix::io::dup(&ours.fd).unwrap();
    let sender = thread::spawn(move || {
        write(&theirs, &MESSAGE[..3]).unwrap();
        wait_until_read(&seen);
        write(&theirs, &MESSAGE[3..]).unwrap();
        theirs
    });
    assert_eq!(frame(receive(&mut ours).unwrap()).payload, PAYLOAD);
    sender.join().unwrap();
}

#[test]
fn a_frame_is_sent_as_the_standard_lays_it_out() {
    let (mut ours, theirs) = pair();
    let fd = never();
    ours.send(&Frame::new(0x2a, Flags::VERSION, PAYLOAD.to_vec(), vec![fd])).unwrap();
    let mut bytes = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut room = [IoSliceMut::new(&mut bytes)];
    let got = recvmsg(&theirs, &mut room, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    assert_eq!(&bytes[..got.bytes], MESSAGE);
    assert_eq!(take_fds(&mut control, None).len(), 1);
}

#[test]
fn frames_sent_through_a_small_buffer_arrive_whole() {
    let (mut ours, mut theirs) = Stream::pair().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&ours.fd, 1).unwrap();
    let sender = thread::spawn(move || {
        for i in 0..100_u8 {
            let fds = vec![eventfd(0, EventfdFlags::CLOEXEC).unwrap()];
            ours.send(&Frame::new(i.into(), Flags::VERSION, vec![i; 4096], fds)).unwrap();
        }
    });
    for i in 0..100_u8 {
        let got = frame(receive(&mut theirs).unwrap());
        assert_eq!((got.header.request, got.fds.len()), (i.into(), 1));
        assert!(got.payload == [i; 4096]);
    }
    sender.join().unwrap();
}

#[test]
fn a_peer_that_does_not_read_is_given_up() {
    let (mut ours, _theirs) = pair();
    ours.set_deadline(Duration::from_millis(20));
    let frame = Frame::new(1, Flags::VERSION, vec![0; 4096], vec![]);
    let error = (0..10_000).find_map(|_| ours.send(&frame).err()).unwrap();
    assert!(matches!(error, SocketError::SendStuck { .. }), "{error}");
}

#[test]
fn sending_to_a_peer_that_is_gone_is_an_error_not_a_signal() {
    let (mut ours, theirs) = pair();
    drop(theirs);
    let frame = Frame::new(1, Flags::VERSION, vec![], vec![]);
    assert!(matches!(ours.send(&frame), Err(SocketError::PeerGone)));
}

#[test]
fn the_peer_of_a_pair_is_this_process() {
    let (ours, _theirs) = pair();
    assert_eq!(ours.peer(), format!("pid {}", std::process::id()));
    assert!(ours.fd.as_fd().as_raw_fd() >= 0);
}
