//! Plays what a front-end was seen or known to say, byte by byte, and compares what comes back.
//!
//! A conversation is a text, in parts that are played by their names:
//!
//! ```text
//! [a part]
//! > 08000000 09000000 08000000 00000000 00010000   # to the back-end: header, payload
//! < 08000000 05000000 08000000 00*8                # from it: eight times 00
//! > 0c000000 09000000 08000000 00*8 @kick0         # with a descriptor
//! < 0b000000 05000000 08000000 00000000 $base0     # a number of 32 bits that the test knows
//! < 01000000 05000000 08000000 ..*8                # eight bytes that it does not look at
//! ```
//!
//! A line with none of these signs goes on with the one above it. Byte order is little endian, that
//! of all hosts on which the package runs.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use rustix::net::{Shutdown, shutdown};
use vhost_user_core::frontend::{Client, FrontendError};
use vhost_user_core::wire::{Flags, Frame, Header};

use super::guest::*;

/// Descriptors and numbers by the names that a text has for them.
pub(crate) struct Known<'a> {
    pub(crate) fd: &'a dyn Fn(&str) -> OwnedFd,
    pub(crate) number: &'a dyn Fn(&str) -> u32,
}

/// A front-end that says what stands in a text.
pub(crate) struct Conversation {
    client: Client,
    text: &'static str,
    /// What GET_FEATURES and GET_PROTOCOL_FEATURES were answered.
    offered: HashMap<u32, u64>,
}

/// Each message that accepts, and the one that asks what is offered.
const ACCEPTS: [(u32, u32); 2] = [(2, 1), (16, 15)];

impl Conversation {
    pub(crate) fn connect(served: &Served, text: &'static str) -> Self {
        let client = Client::connect(&served.socket(), LIMIT).unwrap();
        Self { client, text, offered: HashMap::new() }
    }

    /// The connection ends. The back-end has said nothing that was not expected.
    pub(crate) fn hang_up(&mut self) {
        shutdown(&self.client, Shutdown::Write).unwrap();
        let closed = self.client.raw_reply().expect_err("one more message");
        assert!(matches!(closed, FrontendError::Closed { .. }), "{closed}");
    }

    /// The back-end is dialled again.
    pub(crate) fn dial(&mut self, served: &Served) {
        self.client = Client::connect(&served.socket(), LIMIT).unwrap();
    }

    /// Says a part, and hears all that the back-end must answer to it.
    pub(crate) fn play(&mut self, part: &str, known: &Known<'_>) {
        for line in lines(self.text, part) {
            match line.split_at(1) {
                (">", words) => self.say(words, known),
                ("<", words) => self.hear(part, words, known),
                _ => panic!("{part}: what is {line}?"),
            }
        }
    }

    fn say(&mut self, words: &str, known: &Known<'_>) {
        let bytes = pattern(words, known).into_iter().map(|byte| byte.expect("a byte to send"));
        let bytes: Vec<u8> = bytes.collect();
        let header = Header::from_bytes(*bytes.first_chunk().expect("a header"));
        let payload = bytes[Header::LEN..].to_vec();
        assert_eq!(header.size as usize, payload.len(), "{words}");
        for (accept, ask) in ACCEPTS {
            if header.request == accept {
                let more = number(&payload) & !self.offered[&ask];
                assert_eq!(more, 0, "the front-end accepts what it was not offered: {words}");
            }
        }
        let fds = words.split_whitespace().filter_map(|word| word.strip_prefix('@'));
        let fds = fds.map(|name| (known.fd)(name).into()).collect();
        self.client.raw(&Frame { header, payload, fds }).unwrap();
    }

    fn hear(&mut self, part: &str, words: &str, known: &Known<'_>) {
        let wanted = pattern(words, known);
        let Frame { header, payload, fds } = self.client.raw_reply().unwrap();
        assert!(fds.is_empty());
        assert!(header.flags.contains(Flags::REPLY));
        let got: Vec<u8> = header.to_bytes().into_iter().chain(payload.iter().copied()).collect();
        let same = wanted.len() == got.len()
            && wanted.iter().zip(&got).all(|(wanted, got)| wanted.is_none_or(|byte| byte == *got));
        assert!(same, "{part}: not{words}, but {got:02x?}");
        if ACCEPTS.iter().any(|(_, ask)| *ask == header.request) {
            self.offered.insert(header.request, number(&payload));
        }
    }
}

fn number(payload: &[u8]) -> u64 {
    u64::from_le_bytes(payload.try_into().expect("a payload of 64 bits"))
}

/// The messages of a part, each on one line and without comments.
fn lines(text: &str, part: &str) -> Vec<String> {
    let title = format!("[{part}]");
    let mut lines: Vec<String> = Vec::new();
    let contents = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let within = contents.skip_while(|line| *line != title).skip(1);
    for line in within.take_while(|line| !line.starts_with('[')).filter(|line| !line.is_empty()) {
        match lines.last_mut() {
            Some(last) if !line.starts_with(['>', '<']) => {
                last.push(' ');
                last.push_str(line);
            }
            _ => lines.push(line.to_owned()),
        }
    }
    assert!(!lines.is_empty(), "no part has the title {title}");
    lines
}

/// The bytes of a message; `None` for one that may be any.
fn pattern(words: &str, known: &Known<'_>) -> Vec<Option<u8>> {
    let mut bytes = Vec::new();
    for word in words.split_whitespace().filter(|word| !word.starts_with('@')) {
        if let Some(name) = word.strip_prefix('$') {
            bytes.extend((known.number)(name).to_le_bytes().map(Some));
        } else if let Some((byte, times)) = word.split_once('*') {
            bytes.extend(vec![digits(byte); times.parse().unwrap()]);
        } else {
            bytes.extend((0..word.len()).step_by(2).map(|at| digits(&word[at..at + 2])));
        }
    }
    bytes
}

fn digits(byte: &str) -> Option<u8> {
    (byte != "..").then(|| u8::from_str_radix(byte, 16).unwrap())
}
