//! The fake hypervisor behind a gate that map calls can be held at.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use vhost_user_core::sys::mmap::{Mapping, Protection};
use vhost_user_core::xen::{FakeXen, Frames, GrantCopy, GrantRef, XenDevice, XenOps};

use super::guest::Guest;

/// A call that can be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Map,
    Unmap,
}

#[derive(Debug)]
pub(crate) struct Gate {
    fake: Arc<FakeXen>,
    shut: Mutex<Option<Call>>,
    arrived: Mutex<Sender<()>>,
    open: Mutex<Receiver<()>>,
    /// What descriptors say when they are to be restricted.
    unrestricted: Mutex<Option<i32>>,
    references: Mutex<Vec<usize>>,
}

/// The other side of the gate.
pub(crate) struct Keeper {
    /// A call waits.
    pub(crate) arrived: Receiver<()>,
    /// Lets it go on.
    pub(crate) open: Sender<()>,
}

impl Gate {
    pub(crate) fn new(guest: &Guest) -> (Arc<Self>, Keeper) {
        let (arrived, arrived_here) = mpsc::channel();
        let (open_here, open) = mpsc::channel();
        let gate = Self {
            fake: Arc::clone(&guest.xen),
            shut: Mutex::default(),
            arrived: Mutex::new(arrived),
            open: Mutex::new(open),
            unrestricted: Mutex::default(),
            references: Mutex::default(),
        };
        (Arc::new(gate), Keeper { arrived: arrived_here, open: open_here })
    }

    /// The next such call for grants waits.
    pub(crate) fn shut(&self, call: Call) {
        *self.shut.lock().unwrap() = Some(call);
    }

    fn pass(&self, call: Call) {
        let held = self.shut.lock().unwrap().take_if(|shut| *shut == call);
        if held.is_some() {
            self.arrived.lock().unwrap().send(()).unwrap();
            self.open.lock().unwrap().recv().unwrap();
        }
    }

    /// How many references each map call was for since this was asked last.
    pub(crate) fn references(&self) -> Vec<usize> {
        std::mem::take(&mut *self.references.lock().unwrap())
    }

    /// From now on no descriptor can be restricted: this is the error.
    pub(crate) fn fail_restrictions(&self, error: i32) {
        *self.unrestricted.lock().unwrap() = Some(error);
    }
}

impl XenOps for Gate {
    fn is_device(&self, device: XenDevice, fd: BorrowedFd<'_>) -> bool {
        self.fake.is_device(device, fd)
    }

    fn open(&self, device: XenDevice) -> io::Result<OwnedFd> {
        self.fake.open(device)
    }

    fn restrict(&self, privcmd: BorrowedFd<'_>, domid: u16) -> io::Result<()> {
        match *self.unrestricted.lock().unwrap() {
            Some(error) => Err(io::Error::from_raw_os_error(error)),
            None => self.fake.restrict(privcmd, domid),
        }
    }

    fn map_frames(
        &self,
        privcmd: BorrowedFd<'_>,
        frames: Frames<'_>,
        area: &mut Mapping,
        at: usize,
        errors: &mut [i32],
    ) -> io::Result<()> {
        self.fake.map_frames(privcmd, frames, area, at, errors)
    }

    fn retry_frame(
        &self,
        privcmd: BorrowedFd<'_>,
        frames: Frames<'_>,
        area: &mut Mapping,
        at: usize,
    ) -> io::Result<i32> {
        self.fake.retry_frame(privcmd, frames, area, at)
    }

    fn max_grants(&self) -> usize {
        self.fake.max_grants()
    }

    fn list_grants(&self, gntdev: BorrowedFd<'_>, grants: &[GrantRef]) -> io::Result<u64> {
        self.references.lock().unwrap().push(grants.len());
        self.fake.list_grants(gntdev, grants)
    }

    fn map_grants(
        &self,
        gntdev: BorrowedFd<'_>,
        index: u64,
        count: usize,
        protection: Protection,
    ) -> io::Result<Mapping> {
        self.pass(Call::Map);
        self.fake.map_grants(gntdev, index, count, protection)
    }

    fn give_up_grants(&self, gntdev: BorrowedFd<'_>, index: u64, count: usize) -> io::Result<()> {
        self.fake.give_up_grants(gntdev, index, count)
    }

    fn unmap_grants(&self, gntdev: BorrowedFd<'_>, index: u64, count: usize) -> io::Result<()> {
        self.pass(Call::Unmap);
        self.fake.unmap_grants(gntdev, index, count)
    }

    fn copy_grants(&self, gntdev: BorrowedFd<'_>, pieces: &mut [GrantCopy<'_>]) -> io::Result<()> {
        self.fake.copy_grants(gntdev, pieces)
    }
}
