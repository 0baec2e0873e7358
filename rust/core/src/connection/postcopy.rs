//! Postcopy: the guest runs here already, while pages of its memory are still on their way.
//!
//! ```text
//! POSTCOPY_ADVISE      answered with a descriptor by which the front-end hears of missing pages
//! POSTCOPY_LISTEN      from now on regions come with pages missing
//! SET_MEM_TABLE, or ADD_MEM_REG for each region
//!                      answered with the same regions, at our own addresses
//! the same message, 8 bytes of zeroes
//!                      the front-end's acknowledgement: it answers for the pages from now on, and
//!                      before that nothing may touch them. It comes after each change of memory, after
//!                      one that has only removed a region too, with that message's number
//! POSTCOPY_END         all pages are there
//! ```
//!
//! QEMU sends the first when the machine is told that postcopy may come, and nothing more if it does
//! not. Source: QEMU "Vhost-user Protocol", "Postcopy" and "VHOST_USER_POSTCOPY_ADVISE".

use std::os::fd::OwnedFd;

use super::postcopy_state::{Postcopy, Told};
use super::state::{Commit, Connection, Handled, Verdict, read};
use super::words::count;
use super::{Action, Refusal, RegionOffer};
use crate::address::UserAddr;
use crate::wire::payload::{MemoryTable, Region, SingleRegion};
use crate::wire::{Frame, FrontendMessage, Payload, RegionLayout};

/// Bytes of an acknowledgement.
const ACKNOWLEDGEMENT: usize = 8;

impl Connection {
    pub(super) fn postcopy_advise(&self) -> Handled {
        if self.postcopy.listening {
            return Err(Refusal("pages are still on their way".to_owned()));
        }
        Ok(Verdict::Act(Action::AdvisePostcopy, Commit::Advised))
    }

    pub(super) fn postcopy_is_advised(&mut self, fd: OwnedFd) -> Verdict {
        self.postcopy.advised = true;
        Verdict::AnswerWith(Vec::new(), fd)
    }

    /// Memory that is there already may have been touched: its missing pages would be zeroes.
    pub(super) fn postcopy_listen(&mut self) -> Handled {
        if !self.postcopy.advised {
            return Err(Refusal("POSTCOPY_ADVISE comes first".to_owned()));
        }
        if self.regions > 0 {
            let regions = count(self.regions as usize, "region");
            return Err(Refusal(format!("memory is mapped already: {regions}")));
        }
        self.postcopy.listening = true;
        Ok(Verdict::Done)
    }

    pub(super) fn postcopy_end(&self) -> Handled {
        self.not_while_unacknowledged()?;
        Ok(Verdict::Act(Action::EndPostcopy, Commit::PostcopyEnd))
    }

    pub(super) fn postcopy_has_ended(&mut self) -> Verdict {
        self.postcopy = Postcopy::default();
        Verdict::Answer(0_u64.to_bytes())
    }

    pub(super) fn await_table(&self, offers: Vec<RegionOffer>, table: MemoryTable) -> Verdict {
        let regions = offers.len() as u64;
        let action = Action::AwaitMemory { offers, replace: true };
        Verdict::Act(action, Commit::Awaited { regions, told: Told::Table(table) })
    }

    pub(super) fn await_region(&self, offer: RegionOffer, told: Region, regions: u64) -> Verdict {
        let action = Action::AwaitMemory { offers: vec![offer], replace: false };
        Verdict::Act(action, Commit::Awaited { regions, told: Told::One(told) })
    }

    /// The regions are mapped and not to be touched: the front-end learns where they are.
    pub(super) fn regions_are_awaited(
        &mut self,
        regions: u64,
        told: Told,
        places: &[UserAddr],
    ) -> Verdict {
        self.postcopy.awaited = Some(regions);
        let here = |(region, &user): (Region, &UserAddr)| Region { user, ..region };
        let payload = match told {
            Told::Table(MemoryTable { regions }) => {
                let regions = regions.into_iter().zip(places).map(here).collect();
                MemoryTable { regions }.to_bytes(RegionLayout::Plain)
            }
            Told::One(region) => {
                let user = places.first().copied().unwrap_or(region.user);
                SingleRegion(Region { user, ..region }).to_bytes(RegionLayout::Plain)
            }
        };
        Verdict::Answer(payload)
    }

    /// Whether a message is the acknowledgement of regions, which has the number of the last that told
    /// of one.
    pub(super) fn is_acknowledgement(&self, message: FrontendMessage, frame: &Frame) -> bool {
        use FrontendMessage as M;
        self.postcopy.listening
            && matches!(message, M::SetMemTable | M::AddMemReg | M::RemMemReg)
            && frame.payload.len() == ACKNOWLEDGEMENT
            && frame.fds.is_empty()
    }

    pub(super) fn postcopy_acknowledge(&self, frame: &Frame) -> Handled {
        let value: u64 = read(frame)?;
        if value != 0 {
            return Err(Refusal(format!("the front-end does not take the regions: {value:#x}")));
        }
        Ok(match self.postcopy.awaited {
            Some(regions) => Verdict::Act(Action::UseAwaited, Commit::Acknowledged { regions }),
            None => Verdict::Done,
        })
    }

    pub(super) fn regions_are_known(&mut self, regions: u64) {
        self.postcopy.awaited = None;
        self.regions = regions;
    }

    /// Refuses what would touch regions that the front-end does not answer for yet, or would change
    /// what it is about to acknowledge.
    pub(super) fn not_while_unacknowledged(&self) -> Result<(), Refusal> {
        match self.postcopy.awaited {
            None => Ok(()),
            Some(_) => {
                Err(Refusal("regions that come by postcopy were not acknowledged yet".to_owned()))
            }
        }
    }
}
