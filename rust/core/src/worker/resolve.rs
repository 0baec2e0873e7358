//! What a worker does besides where guest memory is not mapped in advance: it maps or copies the
//! buffers of a batch before it hands the batch over, and gives them back before it publishes the
//! answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::queue::Queue;
use super::report::Failed;
use crate::memory::{Access, Buffers, Fault, ResolveOptions, give_back, provide};
use crate::request::{Batch, Done};

impl Queue {
    /// Gives all buffers of a batch their places. Requests for which that fails do not reach the
    /// device's `handle`. If the control plane calls for the queue's lock meanwhile (`called`) the
    /// rest is put back: `false`.
    #[cold]
    pub(super) fn provide(&mut self, batch: &mut Batch, called: &AtomicU32) -> bool {
        let mut waiting: Vec<&mut Buffers> =
            batch.buffers_mut().filter(|buffers| buffers.waits()).collect();
        let provided = self.provided.get_or_insert_default();
        if !waiting.is_empty() {
            let options = ResolveOptions {
                kept: self.device.keeps_requests(),
                mapped: self.device.wants_mappings(),
                budget: &provided.budget,
                is_called: &|| called.load(Ordering::SeqCst) > 0,
            };
            let shared = provide(&mut waiting, &options);
            provided.shared.push(shared);
        }
        let undone = batch.buffers_mut().position(|buffers| buffers.is_undone());
        if let Some(first) = undone {
            batch.take_left(first).for_each(|slot| self.put_back(slot));
        }
        self.completions.note(batch.chains_mut());
        // A session that takes memory away marks the region before it looks at what is noted: of
        // the two at least one sees the other.
        if self.ring.memory().has_ended() {
            for buffers in batch.buffers_mut() {
                buffers.fail_if_taken(Access::DeviceWritable);
                buffers.fail_if_taken(Access::DeviceReadable);
            }
        }
        self.refuse_faulty(batch);
        undone.is_none()
    }

    /// Has the device answer the requests with a fault, which it does not get to handle.
    #[cold]
    pub(super) fn refuse_faulty(&mut self, batch: &mut Batch) {
        self.faulty = false;
        for mut request in batch.take_if(|request| request.fault().is_some()) {
            if let Some((_, buffers)) = request.buffers_mut() {
                buffers.forget_readable();
            }
            if let Some(fault) = request.fault() {
                self.tell(fault);
            }
            let written = self.device.refuse(self.index, &request);
            batch.fail(request, written);
        }
    }

    /// Takes the buffers of a batch back, so that its answers can be published.
    #[cold]
    pub(super) fn take_back(&mut self, batch: &mut Batch) {
        self.completions.forget(batch.chains_mut().map(|(head, _)| head));
        batch.buffers_mut().for_each(Buffers::unpin);
        self.return_memory(batch.done_mut());
    }

    /// Writes back what was copied and unmaps what was mapped for the requests of `done`. What
    /// cannot be published yet is taken out of it, and put back when it can.
    #[cold]
    pub(super) fn return_memory(&mut self, done: &mut Vec<Done>) {
        let device = Arc::clone(&self.device);
        self.completions.forget(done.iter().map(|answer| answer.slot.token.id));
        let memory = self.ring.memory();
        let is_simple = |buffers: &Buffers| !buffers.waits() && buffers.is_in(memory);
        let none_shared = self.provided.as_ref().is_none_or(|provided| provided.is_empty());
        let all_simple = done.iter().all(|answer| is_simple(&answer.slot.buffers));
        if none_shared && all_simple && !memory.has_ended() {
            return;
        }
        // Those that could not be reached at all were refused before they reached the device.
        let refused: Vec<_> = buffers(done).map(|buffers| buffers.fault().is_some()).collect();
        buffers(done).for_each(|buffers| buffers.fail_if_taken(Access::DeviceWritable));
        self.copy_back(&mut buffers(done).collect::<Vec<_>>());
        let answers = done.iter_mut().zip(refused).filter(|(_, refused)| !refused);
        let mut failed = Vec::new();
        for (answer, _) in answers {
            if let Some(fault) = answer.slot.buffers.fault() {
                self.tell(fault);
                answer.revise(|request| device.refuse(self.index, request));
                failed.push(&mut answer.slot.buffers);
            }
        }
        self.copy_back(&mut failed);
        buffers(done).for_each(Buffers::unpin);
        let Some(provided) = &mut self.provided else { return };
        provided.shared.retain(|shared| !shared.is_free());
        if provided.shared.is_empty() {
            done.append(&mut provided.withheld);
        } else {
            // These pages share a map call with a request that the device still has, though it has
            // said that it keeps none.
            provided.withheld.append(done);
        }
    }

    /// Copies answers to the guest. Nothing is copied once the ring was given up: the guest may use
    /// the pages for something else.
    fn copy_back(&self, done: &mut [&mut Buffers]) {
        if !self.completions.is_closed() {
            give_back(done);
        }
    }

    fn tell(&mut self, fault: Fault) {
        if !std::mem::replace(&mut self.fault_told, true) {
            self.report.request_failed(self.index, Failed::Memory(fault));
        }
    }
}

fn buffers(done: &mut [Done]) -> impl Iterator<Item = &mut Buffers> {
    done.iter_mut().map(|answer| &mut answer.slot.buffers)
}
