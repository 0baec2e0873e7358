//! The state machine against the model: random messages in random states.

use std::io::Read;
use std::os::unix::net::UnixStream;

use super::model::{Message, Model, QUEUES, SLOTS};
use super::random::Random;
use super::support::*;

/// Connections that are opened; MODEL_SEQUENCES in the environment says another number. A tenth
/// of a million of them is more than a million messages.
const SEQUENCES: u64 = 100_000;
/// Messages on one connection after its prelude, at most.
const LONGEST: u64 = 60;

/// How often each message came in each stage of a connection.
type Seen = [[u32; 46]; 6];

#[test]
fn every_message_in_every_state_does_what_the_model_says() {
    let (mut reader, writer) = UnixStream::pair().unwrap();
    reader.set_nonblocking(true).unwrap();
    let mut seen: Seen = [[0; 46]; 6];
    let mut messages = 0;
    let sequences = std::env::var("MODEL_SEQUENCES")
        .map_or(SEQUENCES, |text| text.parse().expect("MODEL_SEQUENCES is a number"));
    for seed in 0..sequences {
        messages += run(seed, &writer, &mut seen);
    }
    assert!(messages >= 10 * sequences, "only {messages} messages in {sequences} sequences");
    for (stage, counts) in seen.iter().enumerate() {
        for (number, count) in counts.iter().enumerate() {
            assert!(*count > 0, "message {number} never came in stage {stage}");
        }
    }
    drop(writer);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0, "a descriptor is still open");
}

/// One connection; returns the number of its messages.
fn run(seed: u64, writer: &UnixStream, seen: &mut Seen) -> u64 {
    let mut random = Random(seed);
    let mut offer = offer(QUEUES as u16);
    offer.max_memory_slots = SLOTS;
    let mut peer = Peer::with_fd(offer, writer.try_clone().unwrap().into());
    let mut model = Model::default();
    let mut history = random.prelude();
    let prelude = history.len() as u64;
    for n in 0..prelude + random.below(LONGEST) {
        if n >= prelude {
            history.push(random.message());
        }
        let message = &history[n as usize];
        if let Some(count) = seen[model.stage()].get_mut(message.number as usize) {
            *count += 1;
        }
        match step(&mut peer, &mut model, message) {
            Ok(Said::Closed) => return n + 1,
            Ok(_) => {}
            Err(why) => panic!("seed {seed}: {why}\nafter {:#x?}", &history[..=n as usize]),
        }
        if n >= prelude && random.chance(1) {
            model.reset_needed();
            peer.connection.reset_needed();
        }
    }
    history.len() as u64
}

/// Sends a message to both and compares what they say and where they are.
fn step(peer: &mut Peer, model: &mut Model, message: &Message) -> Result<Said, String> {
    peer.fails = message.fails;
    peer.base = message.base.into();
    let said = peer.say(message.number, message.flags, message.payload.clone(), message.fds);
    let deeds = peer.take_deeds();
    let (expected, deed) = model.expect(message);
    let expected_deeds: Vec<Deed> = deed.into_iter().collect();
    if (&said, &deeds) != (&expected, &expected_deeds) {
        return Err(format!("{said:x?} {deeds:x?}, model: {expected:x?} {expected_deeds:x?}"));
    }
    compare(peer, model)?;
    Ok(said)
}

fn compare(peer: &Peer, model: &Model) -> Result<(), String> {
    let connection = &peer.connection;
    let rings: Vec<(bool, bool, [u32; 2])> = (0..QUEUES as u16)
        .filter_map(|index| connection.ring(index))
        .map(|ring| {
            (
                ring.is_started(),
                ring.is_enabled(),
                [false, true].map(|packed| ring.base(packed).to_word()),
            )
        })
        .collect();
    let rings_of_model = model.rings.iter();
    let model_rings: Vec<(bool, bool, [u32; 2])> = rings_of_model
        .map(|ring| (ring.started, ring.enabled, [false, true].map(|packed| ring.base(packed))))
        .collect();
    let words = (connection.features(), connection.protocol_features().bits());
    let rest =
        (connection.status(), connection.has_backend_channel(), connection.can_notify_config());
    let model_words = (model.features, model.protocol);
    let can_notify = model.channel && model.protocol & (1 << 9) != 0;
    let model_rest = (model.status(), model.channel, can_notify);
    if (&rings, words, rest) != (&model_rings, model_words, model_rest) {
        return Err(format!(
            "{rings:?} {words:x?} {rest:?}, model: {model_rings:?} {model_words:x?} {model_rest:?}"
        ));
    }
    Ok(())
}
