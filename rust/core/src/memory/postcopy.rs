//! Guest memory whose pages are still on their way, as the guest runs here already.
//!
//! Laws:
//!
//! * A mapping is registered before anything touches it, and a file is mapped in no other way as long as
//!   pages of it are missing: an access to a page that nobody is asked for makes one of zeroes, and the
//!   guest's own would be lost.
//! * A device gets no request before each page of its buffers is there. The worker waits for them,
//!   without the queue's lock and without the interpreter.
//! * When the pages will never come, private memory takes the place of the guest's first, and then
//!   whoever waits goes on.
//!
//! Source: QEMU "Vhost-user Protocol", "Postcopy"; Linux, userfaultfd(2).

use std::sync::Arc;

use super::buffers::Buffers;
use super::region::{Hold, Region};
use super::region_error::RegionError;
use super::table::Memory;
use crate::address::UserAddr;
use crate::sys::userfault::Userfault;

impl Region {
    /// Has whoever touches a page that is missing wait until it comes.
    ///
    /// # Errors
    /// Nobody can be asked for the pages of such a file.
    ///
    /// # Panics
    /// If the region is in use already.
    pub fn await_pages(
        self: &mut Arc<Self>,
        userfault: &Arc<Userfault>,
    ) -> Result<(), RegionError> {
        let region = Arc::get_mut(self).expect("a region that nobody else has seen");
        match region.hold_mut() {
            Hold::File(mapping) => mapping
                .await_pages(userfault)
                .map_err(|error| RegionError::System("wait for its missing pages", error))?,
            Hold::Frames(_) | Hold::Grants { .. } | Hold::OnDemand(_) => {
                unreachable!("memory of a domain does not come by postcopy")
            }
        }
        region.set_userfault(userfault);
        Ok(())
    }

    /// Notes that all of its pages are there.
    pub fn has_all_pages(&self) {
        if let Hold::File(mapping) = self.parts().1 {
            // It can fail for a mapping that has gone, of which nobody waits for a page.
            let _ = mapping.has_all_pages();
        }
    }

    /// Returns the address of its first byte in this process, as its front-end is told.
    pub fn here(&self) -> UserAddr {
        UserAddr(self.parts().2.base().addr() as u64)
    }
}

impl Memory {
    /// Whether pages of it may be on their way.
    #[inline]
    pub fn awaits_pages(&self) -> bool {
        self.userfault().is_some_and(|userfault| userfault.is_active())
    }
}

impl Buffers {
    /// Waits until all of its pages are there; `false` if its memory was taken away meanwhile.
    pub fn bring_in(&self) -> bool {
        self.readable().touch();
        self.writable().touch();
        !self.memory().is_some_and(|memory| memory.has_ended())
    }
}
