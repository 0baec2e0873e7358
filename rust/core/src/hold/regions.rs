//! The regions of guest memory that a back-end was told of.

use std::io;

use super::Failure;
use super::backend::{Backend, request};
use crate::wire::{Frame, FrontendMessage, MAX_FDS, ReceivedFd};

/// Bytes in front of the regions of a table, and in front of a single one.
const HEAD: usize = 8;
/// Bytes of a region: Xen's are longer, and do not come here.
const REGION: usize = 32;
/// Bytes of a region that tell it from others: guest address, size and user address.
const IDENTITY: usize = 24;

/// The most regions that are kept, each with its descriptor. Linux's own vhost takes 509, and QEMU
/// has 512.
const MAX_KEPT: usize = 1024;

/// The regions, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Regions {
    regions: Vec<Region>,
}

#[derive(Debug)]
struct Region {
    bytes: Vec<u8>,
    fd: ReceivedFd,
    /// It came in a table with others.
    in_table: bool,
}

impl Regions {
    /// Whether there is no room for another one.
    pub(super) fn is_full(&self) -> bool {
        self.regions.len() >= MAX_KEPT
    }

    /// SET_MEM_TABLE: these and no others.
    pub(super) fn replace(&mut self, frame: Frame) {
        let bytes = frame.payload.get(HEAD..).unwrap_or_default().chunks_exact(REGION);
        let region = |(bytes, fd): (&[u8], _)| Region { bytes: bytes.to_vec(), fd, in_table: true };
        self.regions = bytes.zip(frame.fds).map(region).collect();
    }

    /// ADD_MEM_REG.
    pub(super) fn add(&mut self, mut frame: Frame) {
        if let (Some(bytes), Some(fd)) = (frame.payload.get(HEAD..), frame.fds.pop()) {
            self.regions.push(Region { bytes: bytes.to_vec(), fd, in_table: false });
        }
    }

    /// REM_MEM_REG.
    pub(super) fn remove(&mut self, frame: &Frame) {
        let identity = |bytes: &[u8]| bytes.get(..IDENTITY).map(<[u8]>::to_vec);
        let Some(gone) = frame.payload.get(HEAD..).and_then(identity) else { return };
        self.regions.retain(|region| identity(&region.bytes).as_ref() != Some(&gone));
    }

    /// Says them all.
    pub(super) fn say(&self, backend: &mut Backend) -> Result<(), Failure> {
        let frames = self.frames();
        let frames = frames.map_err(|e| Failure::Refused(format!("no descriptor: {e}")))?;
        frames.into_iter().try_for_each(|mut frame| backend.tell(&mut frame))
    }

    /// The messages that say them: in a table those that came in one.
    pub(super) fn frames(&self) -> io::Result<Vec<Frame>> {
        let (table, single): (Vec<_>, Vec<_>) = self.regions.iter().partition(|r| r.in_table);
        let table = (!table.is_empty()).then(|| frame(FrontendMessage::SetMemTable, &table));
        let single = single.into_iter().map(|region| frame(FrontendMessage::AddMemReg, &[region]));
        table.into_iter().chain(single).collect()
    }
}

/// A message with regions and their descriptors.
fn frame(message: FrontendMessage, regions: &[&Region]) -> io::Result<Frame> {
    // No more than one message brought.
    let count = regions.len().min(MAX_FDS) as u64;
    let head = if message == FrontendMessage::SetMemTable { count } else { 0 };
    let mut payload = head.to_ne_bytes().to_vec();
    regions.iter().for_each(|region| payload.extend_from_slice(&region.bytes));
    let fds = regions.iter().map(|region| region.fd.try_clone()).collect::<io::Result<_>>()?;
    Ok(Frame { fds, ..request(message, payload) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::wire::Flags;

    fn fd() -> OwnedFd {
        eventfd(0, EventfdFlags::CLOEXEC).unwrap()
    }

    fn region(guest: u64) -> Vec<u8> {
        [guest, 0x1000, 0x7f00_0000 + guest, 0].iter().flat_map(|n| n.to_ne_bytes()).collect()
    }

    fn message(message: FrontendMessage, guests: &[u64]) -> Frame {
        let mut payload = (guests.len() as u64).to_ne_bytes().to_vec();
        guests.iter().for_each(|guest| payload.extend(region(*guest)));
        let fds = guests.iter().map(|_| fd()).collect();
        Frame::new(message.number(), Flags::VERSION, payload, fds)
    }

    fn kept(regions: &Regions) -> Vec<Vec<u8>> {
        regions.regions.iter().map(|region| region.bytes.clone()).collect()
    }

    #[test]
    fn a_region_that_is_removed_is_not_told_again_whatever_message_brought_it() {
        let mut regions = Regions::default();
        regions.replace(message(FrontendMessage::SetMemTable, &[0, 0x1000]));
        regions.add(message(FrontendMessage::AddMemReg, &[0x2000]));
        assert_eq!(kept(&regions), [region(0), region(0x1000), region(0x2000)]);
        regions.remove(&message(FrontendMessage::RemMemReg, &[0x1000]));
        regions.remove(&message(FrontendMessage::RemMemReg, &[0x5000]));
        assert_eq!(kept(&regions), [region(0), region(0x2000)]);
        regions.replace(message(FrontendMessage::SetMemTable, &[0x3000]));
        assert_eq!(kept(&regions), [region(0x3000)]);
    }

    #[test]
    fn a_message_that_is_cut_short_is_no_region() {
        let mut regions = Regions::default();
        regions.add(request(FrontendMessage::AddMemReg, vec![0; 40]));
        regions.replace(request(FrontendMessage::SetMemTable, vec![0; 3]));
        regions.remove(&request(FrontendMessage::RemMemReg, vec![0; 3]));
        assert!(kept(&regions).is_empty());
    }
}
