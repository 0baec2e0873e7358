//! One request queue with everything laid out beforehand: a request in flight takes a *slot*,
//! whose descriptors, header, status byte and data buffer always stand at the same place. Making
//! a request is a few stores; nothing is allocated.
//!
//! ```text
//! direct:    header ─> data ─> status          indirect:  descriptor ─> table of slot i
//!            in the ring's own descriptors                               header, data, status
//! ```

use std::ops::Range;
use std::sync::Arc;

use super::super::error::{FrontendError, Result};
use super::super::memory::GuestMemory;
use super::super::ring::{Ring, RingFeatures};
use super::super::segment::Segment;
use super::super::window::Window;
use super::{BlockRequest, SECTOR};
use crate::address::GuestAddr;

/// Header, data, status.
const DESCRIPTORS: u16 = 3;
const DESCRIPTOR_BYTES: u64 = 16;
/// A header and a status byte share a cache line, and no other slot does.
const CELL: usize = 64;
const HEADER: u32 = 16;
const STATUS: usize = 16;
/// What the status byte is until the device answers; no device answers so.
const UNANSWERED: u8 = 0xff;
/// Buffers begin on pages.
const PAGE: u64 = 4096;

/// How a queue is laid out.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueLayout {
    pub(super) size: u16,
    pub(super) indirect: bool,
    pub(super) features: RingFeatures,
    /// Where the queue may put its things.
    pub(super) start: GuestAddr,
    pub(super) end: GuestAddr,
    /// Bytes of the longest request wanted.
    pub(super) request_bytes: u32,
    /// How far the device's addresses lie above the guest's.
    pub(super) shift: u64,
}

/// A request that the device has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The slot, free again.
    pub slot: u16,
    /// The request.
    pub request: BlockRequest,
    /// The status byte: 0 is good.
    pub status: u8,
    /// Bytes that the device says it wrote: data and status. All that there was room for, of a
    /// request that it gave back as one of a batch in order.
    pub used_len: u32,
}

/// One request queue.
#[derive(Debug)]
pub struct BlockQueue {
    ring: Ring,
    indirect: bool,
    /// Descriptor tables of the slots; empty memory when descriptors are direct.
    tables: (GuestAddr, Window),
    cells: (GuestAddr, Window),
    data: (GuestAddr, Window),
    slot_bytes: u32,
    in_flight: Box<[Option<BlockRequest>]>,
    free: Vec<u16>,
    /// How far the device's addresses of all but data lie above the guest's.
    shift: u64,
    /// The device's address of each slot's data.
    shown: Box<[u64]>,
}

impl BlockQueue {
    pub(super) fn new(memory: &Arc<GuestMemory>, layout: &QueueLayout) -> Result<Self> {
        let slots = if layout.indirect { layout.size } else { layout.size / DESCRIPTORS };
        if slots == 0 {
            let size = layout.size;
            return Err(FrontendError::range(format!(
                "a ring of {size} entries has no room for a request of {DESCRIPTORS} descriptors"
            )));
        }
        let count = u64::from(slots);
        let ring_end = Ring::end(layout.start, layout.size, layout.features.packed);
        let tables = ring_end.0.next_multiple_of(64);
        let tables_len = DESCRIPTOR_BYTES * u64::from(DESCRIPTORS) * count;
        let cells = (tables + tables_len).next_multiple_of(64);
        let data = (cells + CELL as u64 * count).next_multiple_of(PAGE);
        let slot_bytes = slot_bytes(layout, data, count)?;
        let window = |at: u64, len: u64| {
            Ok::<_, FrontendError>((GuestAddr(at), memory.window(GuestAddr(at), len as usize)?))
        };
        let longest = if layout.indirect { 1 } else { DESCRIPTORS };
        let mut queue = Self {
            ring: Ring::new(memory, layout.start, layout.size, longest, layout.features)?,
            indirect: layout.indirect,
            tables: window(tables, tables_len)?,
            cells: window(cells, CELL as u64 * count)?,
            data: window(data, u64::from(slot_bytes) * count)?,
            slot_bytes,
            in_flight: vec![None; slots.into()].into_boxed_slice(),
            // The first slots first: a shallow queue keeps to few cache lines.
            free: (0..slots).rev().collect(),
            shift: layout.shift,
            shown: vec![0; slots.into()].into_boxed_slice(),
        };
        queue.show_all_data();
        Ok(queue)
    }

    /// Requests that can be in flight at once.
    pub fn slots(&self) -> u16 {
        self.in_flight.len() as u16
    }

    /// Bytes of data that a request can have.
    pub fn slot_bytes(&self) -> u32 {
        self.slot_bytes
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len() - self.free.len()
    }

    /// A slot for the next request, or `None` when all are in flight. Until
    /// [`submit`](Self::submit) it is the caller's, and so is its data.
    pub fn take_slot(&mut self) -> Option<u16> {
        if self.shift == 0 || self.free.is_empty() {
            return self.free.pop();
        }
        // Where the device's addresses change with each request so is the memory behind them to.
        Some(self.free.remove(0))
    }

    /// Puts a slot that was taken, and not submitted, back.
    pub fn return_slot(&mut self, slot: u16) {
        self.free.push(slot);
    }

    /// The guest addresses of the data of all slots.
    pub(super) fn data_range(&self) -> Range<u64> {
        let start = self.data.0.0;
        start..start + u64::from(self.slot_bytes) * u64::from(self.slots())
    }

    /// Has the device see a slot's data there, from its next request on.
    pub(super) fn show_data(&mut self, slot: u16, at: u64) {
        self.shown[usize::from(slot)] = at;
    }

    /// Where the device sees a slot's data.
    pub(super) fn shown_data(&self, slot: u16) -> u64 {
        self.shown[usize::from(slot)]
    }

    /// Has the device see all data where it sees the rest.
    pub(super) fn show_all_data(&mut self) {
        let first = self.data.0.0 + self.shift;
        for (shown, slot) in self.shown.iter_mut().zip(0..) {
            *shown = first + slot * u64::from(self.slot_bytes);
        }
    }

    /// Makes a request available in a slot that was taken. The device sees it at the next
    /// [`publish`](Self::publish).
    ///
    /// # Panics
    /// If `request.len` is more than [`slot_bytes`](Self::slot_bytes).
    pub fn submit(&mut self, slot: u16, request: BlockRequest) {
        assert!(request.len <= self.slot_bytes, "a request of {} bytes", request.len);
        let cell = usize::from(slot) * CELL;
        let cells = &self.cells.1;
        cells.set_u32(cell, request.op as u32);
        cells.set_u32(cell + 4, 0);
        cells.set_u64(cell + 8, request.sector);
        cells.write(cell + STATUS, &[UNANSWERED]);
        if let Some(entry) = self.in_flight.get_mut(usize::from(slot)) {
            *entry = Some(request);
        }
        self.push(slot, &request);
    }

    /// Shows the device what was submitted, and kicks it if it wants that.
    pub fn publish(&mut self) {
        self.ring.publish();
    }

    /// Takes the next answer, if there is one, and frees its slot.
    ///
    /// The slot's data stay as the device left them until the slot is submitted again.
    pub fn completed(&mut self) -> Result<Option<Completion>> {
        let Some(used) = self.ring.pop()? else {
            return Ok(None);
        };
        let slot = used.token;
        let entry = self.in_flight.get_mut(usize::from(slot));
        let Some(request) = entry.and_then(Option::take) else {
            return Err(FrontendError::ring(format!("slot {slot} was used and is not in flight")));
        };
        let room = if request.op.device_writes() { request.len + 1 } else { 1 };
        let used_len = used.len.unwrap_or(room);
        if used_len > room {
            let why = format!("{used_len} bytes written to {room} of slot {slot}");
            return Err(FrontendError::ring(why));
        }
        self.free.push(slot);
        let status = self.cells.1.byte(usize::from(slot) * CELL + STATUS);
        Ok(Some(Completion { slot, request, status, used_len }))
    }

    /// Copies into a slot's data from its first byte on.
    pub fn write_data(&self, slot: u16, data: &[u8]) {
        assert!(data.len() <= self.slot_bytes as usize, "data of {} bytes", data.len());
        self.data.1.write(self.data_offset(slot), data);
    }

    /// Copies out of a slot's data from its first byte on.
    pub fn read_data(&self, slot: u16, out: &mut [u8]) {
        assert!(out.len() <= self.slot_bytes as usize, "data of {} bytes", out.len());
        self.data.1.read(self.data_offset(slot), out);
    }

    /// The eight bytes at `offset` of a slot's data, as a little-endian number.
    pub fn word(&self, slot: u16, offset: usize) -> u64 {
        self.data.1.u64(self.data_offset(slot) + offset)
    }

    /// Writes the eight bytes at `offset` of a slot's data.
    pub fn set_word(&self, slot: u16, offset: usize, value: u64) {
        self.data.1.set_u64(self.data_offset(slot) + offset, value);
    }

    /// The ring beneath.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The ring beneath, to wait on it or to break it.
    pub fn ring_mut(&mut self) -> &mut Ring {
        &mut self.ring
    }

    fn data_offset(&self, slot: u16) -> usize {
        usize::from(slot) * self.slot_bytes as usize
    }

    /// Puts a request's chain into the ring.
    fn push(&mut self, slot: u16, request: &BlockRequest) {
        let cell = self.cells.0.0 + u64::from(slot) * CELL as u64 + self.shift;
        let data = self.shown_data(slot);
        let header = Segment::readable(GuestAddr(cell), HEADER);
        let status = Segment::writable(GuestAddr(cell + STATUS as u64), 1);
        let device_writes = request.op.device_writes();
        let data = Segment { addr: GuestAddr(data), len: request.len, device_writes };
        match request.len {
            0 => self.push_chain(slot, &[header, status]),
            _ => self.push_chain(slot, &[header, data, status]),
        }
    }

    fn push_chain(&mut self, slot: u16, segments: &[Segment]) {
        if !self.indirect {
            return self.ring.push(slot, segments);
        }
        let first = usize::from(slot) * usize::from(DESCRIPTORS);
        let at = self.tables.0.0 + DESCRIPTOR_BYTES * first as u64 + self.shift;
        self.ring.push_indirect(slot, segments, &self.tables.1, first, at);
    }
}

/// Bytes of data for each slot: as many as wanted, or as fit, whole pages in any case.
fn slot_bytes(layout: &QueueLayout, data: u64, slots: u64) -> Result<u32> {
    let room = layout.end.0.saturating_sub(data) / slots / PAGE * PAGE;
    let wanted = u64::from(layout.request_bytes).next_multiple_of(PAGE);
    let bytes = room.min(wanted);
    if bytes < PAGE.min(wanted) || bytes < SECTOR {
        let (start, end) = (layout.start, layout.end);
        let why = format!("guest memory {start}..{end} is too small for {slots} requests");
        return Err(FrontendError::range(why));
    }
    u32::try_from(bytes).map_err(|_| FrontendError::range(format!("a request of {bytes} bytes")))
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
