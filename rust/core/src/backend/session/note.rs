//! What a driver has set that the record of requests in flight carries to the back-end after a crash.
//!
//! The driver of a disk may turn its write cache off, and takes each write for durable from then on.
//! No message tells that to a back-end that comes after one that died, so it is noted where the next
//! one looks: in the last bytes of the first queue's record. A file that this package has made has
//! room there for no ring.

use std::sync::atomic::Ordering;

use super::records::Records;
use super::session::Session;
use crate::memory::Window;

/// The upper half of a note; without it there is none. The lower half is the device's byte.
const MARK: u16 = 0x5700;

/// Where a note is in the last 64 bytes of the first queue's record.
const AT: usize = 56;

/// The place of a note.
struct Note(Window);

impl Note {
    /// The place in records of `of_one` bytes each; `None` if they have others: this package has not
    /// made them.
    fn find(records: &Records, of_one: u64) -> Option<Self> {
        records.last_line_of_first(of_one).map(Self)
    }

    fn read(&self) -> Option<u8> {
        let [setting, mark] = self.0.load_u16(AT, Ordering::Acquire).to_le_bytes();
        (u16::from(mark) << 8 == MARK).then_some(setting)
    }

    fn write(&self, setting: u8) {
        self.0.store_u16(AT, MARK | u16::from(setting), Ordering::Release);
    }
}

impl Session<'_> {
    /// The record has come: the device takes what was noted there.
    pub(super) fn take_note(&self) {
        if let Some(setting) = self.place_of_note().and_then(|note| note.read()) {
            self.device().take_setting(setting);
        }
    }

    /// A ring starts with the record, or the driver has set something, which is noted before that is
    /// acknowledged.
    pub(super) fn make_note(&self) {
        if let (Some(note), Some(setting)) = (self.place_of_note(), self.device().setting()) {
            note.write(setting);
        }
    }

    fn place_of_note(&self) -> Option<Note> {
        Note::find(self.records.as_ref()?, self.record_bytes())
    }
}
