use std::thread;

use super::super::memory::GuestMemory;
use super::super::messages::Wanted;
use super::*;
use crate::socket::SocketError;
use crate::wire::features::{PROTOCOL_FEATURES, VERSION_1};

const TIMEOUT: Duration = Duration::from_secs(10);

/// The other end of a client: a back-end that does as the test says.
struct Script(Stream);

impl Script {
    /// The next request: number, flags, payload, number of descriptors.
    fn next(&mut self) -> (u32, u32, Vec<u8>, usize) {
        let frame = self.frame();
        (frame.header.request, frame.header.flags.bits(), frame.payload, frame.fds.len())
    }

    fn frame(&mut self) -> Frame {
        match self.0.receive_until(None, Instant::now() + TIMEOUT).unwrap() {
            Incoming::Frame(frame) => frame,
            other => panic!("expected a request, got {other:?}"),
        }
    }

    fn send(&mut self, request: u32, flags: u32, payload: &[u8]) {
        let flags = Flags::from_bits_retain(flags);
        self.0.send(&Frame::new(request, flags, payload.to_vec(), Vec::new())).unwrap();
    }
}

fn word(value: u64) -> [u8; 8] {
    value.to_ne_bytes()
}

/// Runs `client` against a back-end that runs `back_end`.
fn against<T: Send>(
    back_end: impl FnOnce(&mut Script) + Send,
    client: impl FnOnce(&mut Client) -> T,
) -> T {
    let (ours, theirs) = Stream::pair().unwrap();
    let mut front_end = Client::from_stream(ours, TIMEOUT);
    thread::scope(|scope| {
        let script = scope.spawn(move || back_end(&mut Script(theirs)));
        let result = client(&mut front_end);
        script.join().unwrap();
        result
    })
}

#[test]
fn negotiation_goes_in_the_order_that_every_back_end_takes() {
    let offered = VERSION_1 | PROTOCOL_FEATURES | 1 << 9;
    // MQ, REPLY_ACK, BACKEND_REQ, CONFIG, MEM_SLOTS; and two that are not implemented.
    let protocol = 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 15 | 1 << 14 | 1 << 17;
    let accepted = protocol & !(1 << 14 | 1 << 17);
    let negotiated = against(
        |script| {
            assert_eq!(script.next(), (1, 0x1, vec![], 0));
            script.send(1, 0x5, &word(offered));
            assert_eq!(script.next(), (15, 0x1, vec![], 0));
            script.send(15, 0x5, &word(protocol));
            assert_eq!(script.next(), (16, 0x1, word(accepted).to_vec(), 0));
            assert_eq!(script.next(), (17, 0x1, vec![], 0));
            script.send(17, 0x5, &word(4));
            assert_eq!(script.next(), (36, 0x1, vec![], 0));
            script.send(36, 0x5, &word(509));
            assert_eq!(script.next(), (21, 0x9, vec![], 1));
            script.send(21, 0x5, &word(0));
            assert_eq!(script.next(), (3, 0x9, vec![], 0));
            script.send(3, 0x5, &word(0));
        },
        |client| client.negotiate(&Wanted { features: 1 << 9 | 1 << 5, ..Wanted::default() }),
    )
    .unwrap();
    assert_eq!((negotiated.offered, negotiated.features), (offered, offered));
    assert_eq!(negotiated.protocol.bits(), accepted);
    assert_eq!((negotiated.num_queues, negotiated.max_mem_slots), (Some(4), Some(509)));
}

#[test]
fn a_back_end_without_protocol_features_is_asked_for_none() {
    let negotiated = against(
        |script| {
            assert_eq!(script.next().0, 1);
            script.send(1, 0x5, &word(VERSION_1));
            assert_eq!(script.next(), (3, 0x1, vec![], 0));
        },
        |client| {
            let negotiated = client.negotiate(&Wanted::default()).unwrap();
            let refused = client.config(0, 8).unwrap_err();
            assert_eq!(refused.to_string(), "the back-end does not offer GET_CONFIG");
            let refused = client.set_vring_enable(0, true).unwrap_err();
            assert_eq!(refused.to_string(), "the back-end does not offer SET_VRING_ENABLE");
            negotiated
        },
    );
    assert_eq!(negotiated.features, VERSION_1);
    assert_eq!((negotiated.num_queues, negotiated.max_mem_slots), (None, None));
}

#[test]
fn a_back_end_older_than_virtio_1_is_refused() {
    let error = against(
        |script| {
            script.next();
            script.send(1, 0x5, &word(PROTOCOL_FEATURES));
        },
        |client| client.negotiate(&Wanted::default()).unwrap_err(),
    );
    assert_eq!(error.to_string(), "the back-end does not offer VERSION_1");
}

#[test]
fn a_reply_that_breaks_the_protocol_is_refused() {
    for (request, flags, payload, why) in [
        (2, 0x5, &word(1)[..], "it is for request 2"),
        (1, 0x1, &word(1)[..], "flags 0x1 instead of 0x5"),
        (1, 0xd, &word(1)[..], "flags 0xd instead of 0x5"),
        (1, 0x6, &word(1)[..], "flags 0x6 instead of 0x5"),
        (1, 0x5, &[0; 7][..], "payload too short"),
        (1, 0x5, &[0; 9][..], "payload too long"),
    ] {
        let error = against(
            |script| {
                script.next();
                script.send(request, flags, payload);
            },
            |client| client.features().unwrap_err(),
        );
        assert!(matches!(error, FrontendError::BadReply { message: "GET_FEATURES", .. }));
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn descriptors_with_a_reply_that_has_none_are_refused() {
    let error = against(
        |script| {
            script.next();
            let fd = copy(script.0.as_fd()).unwrap();
            let flags = Flags::VERSION | Flags::REPLY;
            script.0.send(&Frame::new(1, flags, word(1).to_vec(), vec![fd])).unwrap();
        },
        |client| client.features().unwrap_err(),
    );
    assert!(error.to_string().contains("1 descriptors came with it"), "{error}");
}

#[test]
fn an_acknowledgement_that_is_not_zero_is_a_refusal() {
    let error = against(
        |script| {
            assert_eq!(script.next(), (2, 0x9, word(7).to_vec(), 0));
            script.send(2, 0x5, &word(3));
        },
        |client| {
            client.protocol = ProtocolFeatures::REPLY_ACK;
            client.set_features(7).unwrap_err()
        },
    );
    assert!(matches!(error, FrontendError::Refused { message: "SET_FEATURES", code: 3 }));
}

#[test]
fn silence_and_a_closed_connection_are_told_apart() {
    let (ours, theirs) = Stream::pair().unwrap();
    let mut client = Client::from_stream(ours, Duration::ZERO);
    let silent = client.features().unwrap_err();
    assert!(matches!(silent, FrontendError::TimedOut { message: "GET_FEATURES", .. }));
    drop(theirs);
    let closed = client.features().unwrap_err();
    assert!(matches!(closed, FrontendError::Closed { message: "GET_FEATURES" }));
}

#[test]
fn half_a_reply_is_an_error_of_the_socket() {
    let (ours, theirs) = Stream::pair().unwrap();
    rustix::io::write(&theirs, &[1, 0, 0, 0]).unwrap();
    drop(theirs);
    let mut client = Client::from_stream(ours, TIMEOUT);
    let error = client.raw_reply().unwrap_err();
    let cause = SocketError::EndInside { got: 4 }.to_string();
    assert!(error.to_string().contains(&cause), "{error}");
}

#[test]
fn the_back_ends_own_requests_are_answered_while_a_reply_is_awaited() {
    let (features, events) = against(
        |script| {
            let mut setup = script.frame();
            let mut channel = Script(Stream::new(setup.fds.remove(0)));
            script.next();
            // A back-end that holds its reply back until its own requests are answered.
            channel.send(2, 0x9, &[]);
            assert_eq!(channel.next(), (2, 0x5, word(0).to_vec(), 0));
            channel.send(2, 0x1, &[]);
            channel.send(8, 0x9, &[0; 16]);
            assert_eq!(channel.next(), (8, 0x5, word(1).to_vec(), 0));
            script.send(1, 0x5, &word(77));
        },
        |client| {
            client.protocol = ProtocolFeatures::BACKEND_REQ;
            client.open_backend_channel().unwrap();
            (client.features().unwrap(), client.take_events().unwrap())
        },
    );
    assert_eq!(features, 77);
    let change = BackendEvent::ConfigChange;
    assert_eq!(events, [change, change, BackendEvent::Other(8)]);
}

#[test]
fn a_channel_that_the_back_end_closes_disturbs_nothing() {
    let features = against(
        |script| {
            drop(script.frame().fds);
            script.next();
            script.send(1, 0x5, &word(77));
        },
        |client| {
            client.protocol = ProtocolFeatures::BACKEND_REQ;
            client.open_backend_channel().unwrap();
            let features = client.features().unwrap();
            assert_eq!(client.wait_event(TIMEOUT).unwrap(), None);
            features
        },
    );
    assert_eq!(features, 77);
}

#[test]
fn the_configuration_space_comes_whole_or_not_at_all() {
    let header = |offset: u32, size: u32| {
        [offset, size, 0].iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>()
    };
    let request = [header(4, 2), vec![0; 2]].concat();
    for (reply, expected) in [
        ([header(4, 2), vec![8, 9]].concat(), Some(vec![8, 9])),
        (vec![], None),
        (header(4, 0), None),
        ([header(4, 3), vec![8, 9, 10]].concat(), None),
        ([header(4, 3), vec![8, 9]].concat(), None),
    ] {
        let got = against(
            |script| {
                assert_eq!(script.next(), (24, 0x1, request.clone(), 0));
                script.send(24, 0x5, &reply);
            },
            |client| {
                client.protocol = ProtocolFeatures::CONFIG;
                client.config(4, 2)
            },
        );
        assert_eq!(got.ok(), expected);
    }
}

#[test]
fn memory_is_described_as_the_standard_lays_it_out() {
    let memory = GuestMemory::with_size(0x3000).unwrap();
    let user = memory.regions()[0].user().0;
    let region: Vec<u8> = [0, 0x3000, user, 0].into_iter().flat_map(word).collect();
    against(
        |script| {
            let table = [word(1).to_vec(), region.clone()].concat();
            assert_eq!(script.next(), (5, 0x1, table, 1));
            let single = [word(0).to_vec(), region.clone()].concat();
            assert_eq!(script.next(), (37, 0x1, single.clone(), 1));
            assert_eq!(script.next(), (38, 0x1, single, 0));
        },
        |client| {
            client.set_memory(&memory).unwrap();
            client.protocol = ProtocolFeatures::CONFIGURE_MEM_SLOTS;
            client.set_memory(&memory).unwrap();
            client.remove_region(&memory.regions()[0]).unwrap();
        },
    );
}

#[test]
fn a_vring_that_does_not_fit_its_eight_bits_is_not_sent() {
    let (ours, _theirs) = Stream::pair().unwrap();
    let mut client = Client::from_stream(ours, TIMEOUT);
    let error = client.set_vring_kick(256, None).unwrap_err();
    assert!(matches!(error, FrontendError::OutOfRange { .. }));
}
