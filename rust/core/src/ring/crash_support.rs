//! What the simulations of crashes have in common.

use std::any::Any;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::address::{GuestAddr, UserAddr};
use crate::memory::{Extent, InflightFile, Memory, MemoryPolicy, Region, crash};

const GUEST: u64 = 0x4000;

/// A small generator of numbers: splitmix64.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// What outlives the process: guest memory, and the record.
pub(super) struct Lasting {
    pub(super) guest: File,
    pub(super) record: File,
    pub(super) memory: Arc<Memory>,
}

impl Lasting {
    pub(super) fn new(record_bytes: u64) -> Self {
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let guest = File::from(fd);
        guest.set_len(GUEST).unwrap();
        let extent = Extent { guest: GuestAddr(0), user: UserAddr(0), size: GUEST };
        let fd: OwnedFd = guest.try_clone().unwrap().into();
        let region = Region::map(&MemoryPolicy::default(), extent, 0, fd).unwrap();
        Self {
            guest,
            record: File::from(InflightFile::create(record_bytes).unwrap()),
            memory: Arc::new(Memory::new(vec![region]).unwrap()),
        }
    }
}

pub(super) fn u16_at(file: &File, at: u64) -> u16 {
    let mut bytes = [0; 2];
    file.read_exact_at(&mut bytes, at).unwrap();
    u16::from_le_bytes(bytes)
}

/// Runs this in a process that dies at the store with this number; `true` if it lived on.
pub(super) fn dies_at(store: u64, life: impl FnOnce()) -> bool {
    crash::after(Some(store));
    let died = catch_unwind(AssertUnwindSafe(life));
    crash::after(None);
    died.map_err(|why: Box<dyn Any + Send>| assert!(why.is::<crash::Crash>())).is_ok()
}
