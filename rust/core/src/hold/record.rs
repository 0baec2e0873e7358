//! The record of requests in flight that is kept for a front-end which keeps none.

use super::Failure;
use super::backend::{Backend, request};
use super::told::{Made, Told};
use crate::wire::payload::Inflight;
use crate::wire::{Frame, FrontendMessage, Payload};

/// Entries that are asked for at least: a back-end that goes by the number has room for rings of
/// this length, whatever the first ring has.
const MIN_ENTRIES: u32 = 1024;

/// Has the back-end make a record before the first ring starts, and gives it to it. Without one
/// the back-end says so itself, and nothing that was in flight can be told after its death.
///
/// One record serves one driver after the other, until rings come that it has no room for: a guest's
/// firmware drives split rings, and its kernel packed ones, of which each entry takes more.
pub(super) fn make(told: &mut Told, backend: &mut Backend) -> Result<(), Failure> {
    if told.runs() || !backend.records() {
        return Ok(());
    }
    let (packed, entries) = (told.is_packed(), told.entries().max(MIN_ENTRIES));
    let fits = |made: Made| made.packed == packed && made.entries >= entries;
    if told.record.is_some() && told.made_for.is_none_or(fits) {
        return Ok(());
    }
    let queues = backend.queues.unwrap_or(0).max(told.vrings()).max(1);
    let asked = Inflight {
        mmap_size: 0,
        mmap_offset: 0,
        num_queues: queues.try_into().unwrap_or(u16::MAX),
        queue_size: entries.try_into().unwrap_or(u16::MAX),
    };
    let reply = backend.ask(&mut request(FrontendMessage::GetInflightFd, asked.to_bytes()))?;
    let Some(mut frame) = given(reply) else { return Ok(()) };
    match backend.tell(&mut frame) {
        Ok(()) => {
            told.record = Some(frame);
            told.made_for = Some(Made { packed, entries });
        }
        // It has said why, and goes on without.
        Err(Failure::Refused(_)) => {}
        Err(lost) => return Err(lost),
    }
    Ok(())
}

/// The message that gives the record back, as it came; `None`: none was made.
fn given(reply: Frame) -> Option<Frame> {
    let made = Inflight::from_bytes(&reply.payload).ok()?;
    if made.mmap_size == 0 || reply.fds.is_empty() {
        return None;
    }
    let mut frame = request(FrontendMessage::SetInflightFd, made.to_bytes());
    frame.fds = reply.fds;
    Some(frame)
}
