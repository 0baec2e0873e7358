//! One descriptor chain in the hands of a device.

use std::sync::Arc;
use std::thread;

use super::completion::{CompletionQueue, Done, Slot, Stopped};
use super::kernel_hold::KernelHold;
use crate::memory::{Buffers, Fault, Readable, Writable};

/// One descriptor chain in the hands of the device.
#[derive(Debug)]
pub struct Request {
    /// `None` only while the request is being consumed.
    slot: Option<Box<Slot>>,
}

impl Request {
    pub(crate) fn new(slot: Box<Slot>) -> Self {
        Self { slot: Some(slot) }
    }

    /// Completes the request from any thread. `written`: bytes written from the start of the
    /// writable part, cut to its length.
    ///
    /// # Errors
    /// [`Stopped`] if the ring has stopped meanwhile.
    pub fn complete(self, written: u32) -> Result<(), Stopped> {
        self.complete_with(|_| written)
    }

    /// Completes the request from any thread, with one last thing to write: `last` gets the
    /// writable part and returns the bytes written. It is not called if the ring has stopped, and
    /// the ring does not stop while it runs: so it must be short, and must not touch other
    /// requests.
    ///
    /// # Errors
    /// [`Stopped`] if the ring has stopped meanwhile.
    pub fn complete_with(mut self, last: impl FnOnce(Writable<'_>) -> u32) -> Result<(), Stopped> {
        match self.slot.take() {
            Some(slot) => CompletionQueue::finish(slot, last),
            None => Err(Stopped),
        }
    }

    /// Notes that the request fails, for those who count: how a driver is told is a matter of the
    /// device type.
    #[inline]
    pub fn mark_failed(&self) {
        self.slot().mark_failed();
    }

    /// Notes which of the device's [operations](crate::device::Device::operations) it is, for those
    /// who count.
    #[inline]
    pub fn mark_operation(&self, operation: u8) {
        self.slot().mark_operation(operation);
    }

    /// The vring that it came from.
    pub fn queue(&self) -> u16 {
        self.slot().queue
    }

    /// Its name among those in flight: of a split ring the index of its first descriptor, of a
    /// packed one its buffer id.
    pub fn head(&self) -> u16 {
        self.slot().token.id
    }

    /// Its number among all that were ever popped from its ring. One that
    /// [comes again](Self::is_resubmitted) has the number that it had at first.
    pub fn sequence(&self) -> u64 {
        self.slot().sequence
    }

    /// Whether a process that had it died before it gave it back: parts of it may be done already.
    pub fn is_resubmitted(&self) -> bool {
        self.slot().resubmitted
    }

    /// Whether its ring still runs, and it has not gone back.
    pub fn is_live(&self) -> bool {
        let Slot { token, ref completions, .. } = *self.slot();
        !completions.is_closed() && !completions.is_revoked(token.id)
    }

    /// Whether the device may touch the memory of a request whose claim was [parked];
    /// `false`: it went back.
    ///
    /// [parked]: RequestClaim::park
    pub fn claim(&self) -> bool {
        let Slot { token, ref completions, .. } = *self.slot();
        !completions.is_closed() && completions.claim(token.id)
    }

    /// The device's claim on the memory of a request that it keeps past its batch. `None`: the
    /// memory is the device's until it completes the request, as there is something to read, or
    /// memory that is mapped on demand.
    pub fn claims(&self) -> Option<RequestClaim> {
        let Slot { token, ref buffers, ref completions, .. } = *self.slot();
        let is_unused = buffers.readable().is_empty() && !buffers.waits();
        is_unused.then(|| RequestClaim { completions: Arc::clone(completions), id: token.id })
    }

    /// To be held during a system call by which the kernel moves data between a device and the
    /// request's memory with no copy in between, as it does for direct I/O: its ring does not give
    /// the request up as long.
    pub fn hold_for_kernel(&self) -> KernelHold<'_> {
        self.slot().completions.kernel_holds().begin()
    }

    /// What of its buffers cannot be reached; such a request goes to
    /// [`Device::refuse`](crate::device::Device::refuse).
    pub fn fault(&self) -> Option<Fault> {
        self.slot().buffers.fault()
    }

    /// Whether some of its buffers lie in mappings of pages that the guest has granted, and not in
    /// ordinary shared memory or in a copy.
    #[inline]
    pub fn maps_grants(&self) -> bool {
        self.slot().buffers.maps_grants()
    }

    /// Whether its buffers may be foreign mappings of Xen, on which the kernel does no direct I/O.
    pub fn is_foreign(&self) -> bool {
        self.slot().buffers.is_foreign()
    }

    /// Whether some of its memory was lost: what has been copied out of it or into it does not
    /// count.
    pub fn is_lost(&self) -> bool {
        self.slot().buffers.is_lost()
    }

    /// Bytes of its buffers, both directions together.
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.slot().buffers.bytes()
    }

    /// What the driver wrote.
    #[inline]
    pub fn readable(&self) -> Readable<'_> {
        self.slot().buffers.readable()
    }

    /// What the device may write.
    #[inline]
    pub fn writable(&self) -> Writable<'_> {
        self.slot().buffers.writable()
    }

    #[inline]
    fn slot(&self) -> &Slot {
        self.slot.as_deref().expect("a request has its slot until it is consumed")
    }

    pub(super) fn into_done(mut self, written: u32) -> Done {
        let slot = self.slot.take().expect("a request has its slot until it is consumed");
        Done { written: slot.limit(written), slot }
    }

    pub(super) fn slot_mut(&mut self) -> Option<&mut Slot> {
        self.slot.as_deref_mut()
    }

    pub(crate) fn buffers_mut(&mut self) -> Option<(u16, &mut Buffers)> {
        self.slot_mut().map(|slot| (slot.token.id, &mut slot.buffers))
    }

    pub(super) fn into_slot(mut self) -> Box<Slot> {
        self.slot.take().expect("a request has its slot until it is consumed")
    }
}

/// A device's claim on the memory of a buffer that has no readable part, and that it keeps.
#[derive(Debug)]
pub struct RequestClaim {
    completions: Arc<CompletionQueue>,
    id: u16,
}

impl RequestClaim {
    /// Notes that the device does not touch the memory before it has claimed it again: if the queue
    /// stops meanwhile, the buffer goes back to the driver unused.
    pub fn park(&self) {
        self.completions.park(self.id);
    }

    /// As [`Request::claim`].
    pub fn claim(&self) -> bool {
        !self.completions.is_closed() && self.completions.claim(self.id)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        // A thread that panics has not done what the request asks for, nor written that it failed.
        if !thread::panicking() {
            slot.mark_failed();
            let _ = CompletionQueue::finish(slot, |_| 0);
        }
    }
}

impl Done {
    /// Answers anew, with a failure.
    pub(crate) fn revise(&mut self, answer: impl FnOnce(&Request) -> u32) {
        let Slot { queue, token, ref completions, .. } = *self.slot;
        let mut empty = Slot::new(queue, Arc::clone(completions));
        empty.token = token;
        let request = Request::new(std::mem::replace(&mut self.slot, empty));
        request.mark_failed();
        let written = answer(&request);
        *self = request.into_done(written);
    }
}
