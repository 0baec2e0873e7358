//! The record of the requests in flight, which the driver keeps for the back-end that comes next.
//!
//! It is asked for once (GET_INFLIGHT_FD), and given to each back-end before its rings
//! (SET_INFLIGHT_FD), which finds there what it has to finish. What it says concerns back-ends
//! alone.
//!
//! Source: QEMU "Vhost-user Protocol", "Inflight I/O tracking".

use std::os::fd::{AsFd, OwnedFd};

use super::super::client::Client;
use super::super::error::{FrontendError, Result};
use crate::wire::ProtocolFeatures;
use crate::wire::payload::Inflight;

/// A record of requests in flight, and how often it was of use.
#[derive(Debug)]
pub(super) struct Record {
    inflight: Inflight,
    file: OwnedFd,
    pub(super) reconnections: u64,
}

impl Record {
    /// Asks the back-end for a new one.
    pub(super) fn new(client: &mut Client, num_queues: u16, queue_size: u16) -> Result<Self> {
        if !client.accepted_protocol_features().contains(ProtocolFeatures::INFLIGHT_SHMFD) {
            return Err(FrontendError::NotOffered { what: "INFLIGHT_SHMFD" });
        }
        let (inflight, file) = client.inflight_fd(num_queues, queue_size)?;
        Ok(Self { inflight, file, reconnections: 0 })
    }

    /// Has the back-end use it.
    pub(super) fn give(&self, client: &mut Client) -> Result<()> {
        client.set_inflight_fd(&self.inflight, self.file.as_fd())
    }
}
