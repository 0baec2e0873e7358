//! What the next keeper finds in a service manager's store, and takes up.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Signal, pidfd_send_signal};

use super::Relay;
use super::parcel::{Bits, Kept, Parcel};
use super::relay::Pending;
use super::store::Store;
use super::told::Made;
use crate::socket::Stream;
use crate::wire::{Frame, FrontendMessage, ReceivedFd};

/// How long a back-end that was killed may take to be dead.
const DEATH: Duration = Duration::from_secs(10);

impl Relay {
    /// Has a service manager keep what the next keeper needs to go on with the front-end. `address`:
    /// where it listens for notifications.
    ///
    /// # Errors
    /// It is no address.
    pub fn store_at(&mut self, address: &str) -> io::Result<()> {
        self.store = Some(Store::at(address)?);
        Ok(())
    }

    /// Takes up what a former keeper has left in the store, with that number in its name, once that
    /// one's back-end is dead. A back-end is told of it when it is [attached](Self::attach).
    ///
    /// # Errors
    /// It is not whole, or the former back-end does not end.
    pub fn restore(&mut self, parcel: BorrowedFd<'_>, generation: u64) -> io::Result<()> {
        if let Some(store) = &mut self.store {
            store.goes_on_from(generation);
        }
        let parcel = Parcel::unpack(parcel)?;
        if let Some(process) = &parcel.process {
            end(process)?;
        }
        let unpacked = self.unpacked(parcel);
        if unpacked.is_err() {
            self.hang_up();
        }
        unpacked
    }

    /// Says which process the back-end is that is attached next, or takes over.
    pub fn served_by(&mut self, process: OwnedFd) {
        self.process = Some(process.into());
    }

    /// Why nothing is stored any more, once.
    pub fn not_stored(&mut self) -> Option<io::Error> {
        self.not_stored.take()
    }

    /// Stores all anew, if there is a front-end.
    pub(super) fn save(&mut self) {
        let (Some(front), true) = (&self.front, self.store.is_some()) else { return };
        let packed = self.parcel(front).and_then(|parcel| parcel.pack());
        let stored = match (packed, &mut self.store) {
            (Ok(packed), Some(store)) => store.put(packed.as_fd()),
            (packed, _) => packed.map(drop),
        };
        self.has_stored(stored);
    }

    /// What is not stored is worse than nothing: what stands there is true no more.
    pub(super) fn has_stored(&mut self, stored: io::Result<()>) {
        let Err(error) = stored else { return };
        if let Some(mut store) = self.store.take() {
            let _ = store.clear();
        }
        if let Some(front) = &mut self.front {
            front.unshare();
        }
        self.not_stored = Some(error);
    }

    fn parcel(&self, front: &Stream) -> io::Result<Parcel> {
        let mut messages = self.told.kept()?;
        let mut bits = Bits::empty();
        if let Some(Pending { frame, asked, .. }) = &self.pending {
            messages.push(Kept::of(frame, None)?);
            bits |= Bits::PENDING;
            bits.set(Bits::ASKED, *asked);
        }
        let made = self.told.made_for;
        bits.set(Bits::PROCESS, self.process.is_some());
        bits.set(Bits::TRANSFER_LOST, self.transfer_lost);
        bits.set(Bits::RECORD_MADE, made.is_some());
        bits.set(Bits::RECORD_PACKED, made.is_some_and(|made| made.packed));
        Ok(Parcel {
            front: front.as_fd().try_clone_to_owned()?.into(),
            process: self.process.as_ref().map(ReceivedFd::try_clone).transpose()?,
            bits,
            entries: made.map_or(0, |made| made.entries),
            messages,
        })
    }

    fn unpacked(&mut self, parcel: Parcel) -> io::Result<()> {
        let Parcel { front, bits, entries, mut messages, .. } = parcel;
        let last = if bits.contains(Bits::PENDING) { messages.pop() } else { None };
        self.told.learn_kept(messages, &self.closer)?;
        if bits.contains(Bits::RECORD_MADE) {
            let packed = bits.contains(Bits::RECORD_PACKED);
            self.told.made_for = Some(Made { packed, entries });
        }
        self.transfer_lost = bits.contains(Bits::TRANSFER_LOST);
        self.pending = match last {
            Some(Kept { frame, .. }) => self.put_off(frame, bits.contains(Bits::ASKED))?,
            None => None,
        };
        self.came(Stream::new(front));
        Ok(())
    }

    /// A message that a former keeper has had no answer to.
    fn put_off(&self, frame: Frame, asked: bool) -> io::Result<Option<Pending>> {
        let Some(message) = FrontendMessage::from_number(frame.header.request) else {
            return Ok(None);
        };
        let channel = self.channel_of(message, &frame).map_err(io::Error::other)?;
        Ok(Some(Pending { frame, message, asked, channel }))
    }
}

/// Kills a process, and waits until it is dead.
fn end(process: &ReceivedFd) -> io::Result<()> {
    match pidfd_send_signal(process, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => return Err(error.into()),
    }
    let limit = Timespec { tv_sec: DEATH.as_secs() as i64, tv_nsec: 0 };
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    match retry_on_intr(|| poll(&mut fds, Some(&limit)))? {
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, "the former back-end does not end")),
        _ => Ok(()),
    }
}
