//! An IOMMU between a device and guest memory, as a virtual machine has one: pages of I/O virtual
//! addresses, and the answers to a back-end that asks for them.
//!
//! Source: QEMU "Vhost-user Protocol", "IOMMU support".

use std::collections::BTreeMap;
use std::time::Duration;

use super::channel::{BackendEvent, IotlbMiss};
use super::client::Client;
use super::error::{FrontendError, Result};
use super::memory::GuestMemory;
use crate::address::{GuestAddr, Iova, UserAddr};
use crate::wire::payload::{Iotlb, IotlbAccess, IotlbKind};
use crate::wire::{BackendMessage, FrontendMessage as M, Payload};

/// The bytes of a page.
const PAGE: u64 = 4096;

/// A page as the device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IommuPage {
    /// Where it lies.
    pub guest: GuestAddr,
    /// The device may read it.
    pub read: bool,
    /// The device may write it.
    pub write: bool,
}

/// The pages that a device may use, by their I/O virtual addresses.
#[derive(Clone, Debug, Default)]
pub struct Iommu(BTreeMap<u64, IommuPage>);

impl Iommu {
    /// Maps the page at `iova`, a multiple of 4096. A back-end that knows another translation is
    /// not told: see [`Client::invalidate_iotlb`].
    pub fn map(&mut self, iova: Iova, page: IommuPage) {
        self.0.insert(iova.0, page);
    }

    /// Takes a page away; as [`map`](Self::map).
    pub fn unmap(&mut self, iova: Iova) -> Option<IommuPage> {
        self.0.remove(&iova.0)
    }

    /// The page that an address is in, and the page's own.
    pub fn page(&self, iova: Iova) -> Option<(Iova, IommuPage)> {
        let start = iova.0 / PAGE * PAGE;
        self.0.get(&start).map(|&page| (Iova(start), page))
    }
}

impl Client {
    /// IOTLB_MSG, update: `size` bytes at `iova` lie at `to`, the front-end's address, or the guest's
    /// with GPA_ADDRESSES.
    pub fn update_iotlb(
        &mut self,
        iova: Iova,
        size: u64,
        to: UserAddr,
        (read, write): (bool, bool),
    ) -> Result<()> {
        let access = match (read, write) {
            (false, false) => IotlbAccess::None,
            (true, false) => IotlbAccess::Read,
            (false, true) => IotlbAccess::Write,
            (true, true) => IotlbAccess::ReadWrite,
        };
        self.change_iotlb(Iotlb { iova, size, user: to, access, kind: IotlbKind::Update })
    }

    /// IOTLB_MSG, invalidate: what translates one of `size` bytes at `iova` is forgotten.
    pub fn invalidate_iotlb(&mut self, iova: Iova, size: u64) -> Result<()> {
        let access = IotlbAccess::None;
        let kind = IotlbKind::Invalidate;
        self.change_iotlb(Iotlb { iova, size, user: UserAddr(0), access, kind })
    }

    fn change_iotlb(&mut self, entry: Iotlb) -> Result<()> {
        match self.ask_for::<u64>(M::IotlbMsg, entry.to_bytes())? {
            0 => Ok(()),
            code => Err(FrontendError::Refused { message: M::IotlbMsg.name(), code }),
        }
    }

    /// Waits for a translation that the back-end asks for, and leaves it unanswered. `None`: nothing
    /// came in time. Other events are dropped.
    pub fn wait_miss(&mut self, timeout: Duration) -> Result<Option<IotlbMiss>> {
        while let Some(event) = self.wait_event(timeout)? {
            if let BackendEvent::IotlbMiss(miss) = event {
                return Ok(Some(miss));
            }
        }
        Ok(None)
    }

    /// Tells the translation that was asked for, as far as `iommu` has it for this access, and then
    /// acknowledges the question, as QEMU does; returns whether there was one.
    pub fn answer_miss(
        &mut self,
        miss: IotlbMiss,
        iommu: &Iommu,
        memory: &GuestMemory,
    ) -> Result<bool> {
        let page = iommu.page(miss.iova).filter(|(_, page)| match miss.write {
            true => page.write,
            false => page.read,
        });
        let place =
            page.and_then(|(iova, page)| Some((iova, page, memory.user_address(page.guest)?)));
        if let Some((iova, page, to)) = place {
            self.update_iotlb(iova, PAGE, to, (page.read, page.write))?;
        }
        self.finish_miss(miss, u64::from(place.is_none()))?;
        Ok(place.is_some())
    }

    /// Acknowledges a question as if its translation had been told.
    pub fn acknowledge_miss(&mut self, miss: IotlbMiss) -> Result<()> {
        self.finish_miss(miss, 0)
    }

    fn finish_miss(&mut self, miss: IotlbMiss, code: u64) -> Result<()> {
        if !miss.acknowledged {
            return Ok(());
        }
        self.channel.acknowledge(BackendMessage::IotlbMsg.number(), code)
    }
}
