//! Messages about translations of I/O virtual addresses.

use super::state::{Commit, Connection, Handled, Verdict, read};
use super::{Action, IotlbChange, Refusal};
use crate::address::Iova;
use crate::wire::features::ACCESS_PLATFORM;
use crate::wire::payload::{Iotlb, IotlbAccess, IotlbKind};
use crate::wire::{Frame, Payload, ProtocolFeatures};

impl Connection {
    /// Takes a translation, or takes some away. The other kinds are the back-end's to tell.
    pub(super) fn iotlb_msg(&self, frame: &Frame) -> Handled {
        let entry: Iotlb = read(frame)?;
        let change = match entry.kind {
            IotlbKind::Update => {
                let read = matches!(entry.access, IotlbAccess::Read | IotlbAccess::ReadWrite);
                let write = matches!(entry.access, IotlbAccess::Write | IotlbAccess::ReadWrite);
                let Iotlb { iova, size, user: to, .. } = entry;
                IotlbChange::Update { iova, size, to, read, write }
            }
            IotlbKind::Invalidate => invalidation(entry.iova, entry.size)?,
            IotlbKind::Miss | IotlbKind::AccessFail => {
                let kind = entry.kind as u8;
                return Err(Refusal(format!(
                    "type {kind} is the back-end's to send, 2 or 3 expected"
                )));
            }
        };
        Ok(Verdict::Act(Action::Iotlb(change), Commit::Iotlb))
    }

    /// It is answered whether that was asked for or not.
    pub(super) fn iotlb_changed() -> Verdict {
        Verdict::Answer(0_u64.to_bytes())
    }

    /// Whether addresses of rings and buffers are I/O virtual.
    pub fn translates(&self) -> bool {
        self.features & ACCESS_PLATFORM != 0
    }

    /// A ring whose addresses are to be translated starts only if translations can be asked for.
    pub(super) fn can_translate(&self) -> Result<(), Refusal> {
        if self.translates() && !self.protocol_features.contains(ProtocolFeatures::BACKEND_REQ) {
            let why = "ACCESS_PLATFORM needs BACKEND_REQ, which was not negotiated: the front-end \
                       cannot be asked to translate addresses";
            return Err(Refusal(why.to_owned()));
        }
        Ok(())
    }
}

/// What is taken away. QEMU says 0 or 2^64-1 bytes from 0 on for all addresses, of which there are
/// 2^64.
fn invalidation(iova: Iova, size: u64) -> Result<IotlbChange, Refusal> {
    if iova.0 == 0 && (size == 0 || size == u64::MAX) {
        return Ok(IotlbChange::Invalidate { first: Iova(0), last: Iova(u64::MAX) });
    }
    let last = size.checked_sub(1).and_then(|more| iova.checked_add(more));
    let last = last.ok_or_else(|| {
        Refusal(format!("an invalidation of {size:#x} bytes at {iova}: no such addresses"))
    })?;
    Ok(IotlbChange::Invalidate { first: iova, last })
}
