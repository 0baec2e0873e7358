//! Postcopy in a session: regions whose pages are on their way are mapped, used when the front-end
//! answers for them, and given up if it goes before they have come.

use std::os::fd::AsFd;
use std::sync::mpsc;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use super::missing_pages::MissingPages;
use super::session::Session;
use crate::backend::event::Event;
use crate::connection::{Outcome, Refusal, RegionOffer};
use crate::memory::Memory;
use crate::sys::userfault::Userfault;
use crate::worker::{HeldUp, QueueCell};

/// The longest wait for a page on behalf of the control thread: as for a queue's lock.
const PAGE_LIMIT: Duration = Duration::from_secs(5);

impl Session<'_> {
    pub(super) fn advise_postcopy(&mut self) -> Result<Outcome, Refusal> {
        let refused = |why: String| Refusal(format!("POSTCOPY_ADVISE: {why}"));
        let userfault = Userfault::new().map_err(refused)?;
        let fd = userfault.as_fd().try_clone_to_owned();
        let fd = fd.map_err(|error| refused(error.to_string()))?;
        self.postcopy = Some(MissingPages { userfault: Arc::new(userfault), awaited: None });
        Ok(Outcome::Userfault(fd))
    }

    /// Maps regions and has accesses to their missing pages wait. There is none before they are used.
    pub(super) fn await_memory(
        &mut self,
        offers: Vec<RegionOffer>,
        replace: bool,
    ) -> Result<Outcome, Refusal> {
        let message = if replace { "SET_MEM_TABLE" } else { "ADD_MEM_REG" };
        let refused = |why: String| Refusal(format!("{message}: {why}"));
        let Some(postcopy) = &self.postcopy else {
            return Err(refused("POSTCOPY_ADVISE comes first".to_owned()));
        };
        let present = postcopy.awaited.as_ref().unwrap_or(&self.memory);
        let mut regions = if replace { Vec::new() } else { present.regions().to_vec() };
        let mut places = Vec::new();
        for offer in offers {
            let guest = offer.range.guest;
            let mut region = self.map(message, offer)?;
            region
                .await_pages(&postcopy.userfault)
                .map_err(|e| refused(format!("the region at guest address {guest}: {e}")))?;
            places.push(region.here());
            regions.push(region);
        }
        let memory = Memory::addressed(regions, self.addressing());
        let memory = memory.map_err(|e| refused(e.to_string()))?;
        if let Some(postcopy) = &mut self.postcopy {
            postcopy.awaited = Some(memory);
        }
        Ok(Outcome::Places(places))
    }

    /// The front-end answers for the pages: rings may start.
    pub(super) fn use_awaited(&mut self) {
        if let Some(memory) = self.postcopy.as_mut().and_then(|postcopy| postcopy.awaited.take()) {
            self.swap_memory(memory);
            self.event(Event::PostcopyBegan);
        }
    }

    /// All pages are there: memory is as any other.
    pub(super) fn end_postcopy(&mut self) {
        let Some(postcopy) = self.postcopy.take() else { return };
        for region in self.mapped.iter().filter_map(Weak::upgrade) {
            region.has_all_pages();
        }
        postcopy.userfault.finish();
        if self.memory.regions().is_empty() {
            return;
        }
        self.event(Event::PostcopyEnded);
    }

    /// Whether pages of the guest's memory may be missing.
    pub(super) fn awaits_pages(&self) -> bool {
        self.memory.awaits_pages()
    }

    /// The pages that are missing will not come any more. Private memory takes the place of all that is
    /// mapped, and whoever waits goes on; nothing that is done from now on counts.
    pub(super) fn give_up_pages(&mut self) {
        let Some(postcopy) = self.postcopy.take() else { return };
        if !self.memory.awaits_pages() {
            return;
        }
        self.event(Event::PostcopyGivenUp);
        self.loss.tell();
        let mapped: Vec<_> = self.mapped.iter().filter_map(Weak::upgrade).collect();
        self.take_away(&mapped);
        postcopy.userfault.finish();
    }

    /// Fails what a closed queue has left, which may wait for a page: not the control thread does.
    pub(super) fn fail_rest(&self, queue: &Arc<QueueCell>) -> Result<(), HeldUp> {
        if !self.awaits_pages() {
            return queue.fail_rest();
        }
        let (tell, told) = mpsc::channel();
        let queue = Arc::clone(queue);
        let failing = move || {
            // Nobody may wait for it any more.
            let _ = tell.send(queue.fail_rest());
        };
        let thread = thread::Builder::new().name("vhost-user end".to_owned()).spawn(failing);
        thread.map_err(|_| HeldUp)?;
        told.recv_timeout(PAGE_LIMIT).unwrap_or(Err(HeldUp))
    }
}
