//! One region of guest memory: where the driver and the front-end see it, and where it is mapped
//! here.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::FileType;

use super::foreign::{Foreign, NoPage};
use super::grant::{GrantMap, Grants, run};
use super::patience::Patience;
use super::view::{Access, Segment};
use crate::address::{GuestAddr, UserAddr};
use crate::sys::guard::{self, Loss};
use crate::sys::kind::kind;
use crate::sys::mmap::{Mapping, Protection};
use crate::xen::{GrantRef, XEN_PAGE, XenAccess, XenDevice, XenOps};

/// Largest region: 32 TiB, a quarter of what a process can address on x86-64 with four levels of
/// page tables. So a table and the one that replaces it fit side by side, and a sparse file cannot
/// take the address space that everything else in this process needs.
const MAX_SIZE: u64 = 1 << 45;

/// Largest region of a domain: 16 TiB, more than the hypervisor gives a guest, and what 32-bit
/// grant references can name.
const MAX_XEN_SIZE: u64 = 1 << 44;

/// A region. Its mapping goes with the last reference.
#[derive(Debug)]
pub struct Region {
    guest: GuestAddr,
    user: UserAddr,
    size: u64,
    /// All of the region, for reading and for writing; empty where that is not so simple.
    readable: Segment,
    writable: Segment,
    /// The domain, if the hypervisor was asked for it, and how.
    xen: Option<(u16, XenKind)>,
    /// Its memory is taken away from who still holds it.
    ended: AtomicBool,
    /// What its front-end allows to map more.
    beyond: Option<Arc<Region>>,
    // Dropped in this order: the memory is unmapped before anybody is told.
    hold: Hold,
    gone: GoneOnDrop,
}

/// What a region's memory is held by.
#[derive(Debug)]
enum Hold {
    /// A mapping of a file.
    File(Mapping),
    /// A mapping of a domain's frames.
    Frames(Arc<Mapping>),
    /// Granted pages, in areas of `each` bytes but for the last. The region starts `lead` bytes
    /// after the first of them.
    Grants { maps: Vec<Arc<GrantMap>>, each: u64, lead: u64, read_only: bool },
    /// Pages that are mapped when they are needed.
    OnDemand(OnDemand),
}

/// Memory of a domain that is mapped when it is needed.
#[derive(Clone, Debug)]
pub(super) enum OnDemand {
    /// By grants.
    Grants(Arc<Grants>, u16),
    /// By frames.
    Frames(Arc<Foreign>),
}

impl OnDemand {
    /// Whether nothing is mapped or copied any more.
    pub(super) fn has_ended(&self) -> bool {
        match self {
            Self::Grants(grants, _) => grants.have_ended(),
            Self::Frames(foreign) => foreign.have_ended(),
        }
    }
}

/// How a domain's memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XenKind {
    /// Its frames, all of them, by the numbers that guest addresses name.
    Foreign,
    /// Granted pages, all of them, by the references that guest addresses name.
    Grant,
    /// Granted pages, each when it is needed.
    GrantOnDemand,
    /// Frames, each when it is needed.
    ForeignOnDemand,
}

/// What a part of a region is to who wants to use it.
#[derive(Debug)]
pub(super) enum Reach<'a> {
    /// It is mapped, at least its first bytes.
    Mapped(Segment),
    /// It is not mapped.
    OnDemand(&'a OnDemand),
    /// It may not be used so.
    Denied,
}

/// Tells when a region has been unmapped.
#[derive(Clone, Debug)]
pub struct Gone(Arc<(Mutex<bool>, Condvar)>);

#[derive(Debug)]
struct GoneOnDrop(Gone);

/// Why a region cannot be mapped.
#[derive(Debug)]
pub enum RegionError {
    /// Not a regular file, but this: nothing that could be memory.
    NotAFile(String),
    /// The file ends before the region does.
    FileTooShort {
        /// Bytes of the file.
        file: u64,
        /// Bytes that offset and size ask for.
        needed: u128,
    },
    /// The region is larger than any of its kind that is taken.
    TooLarge {
        /// Bytes of the region.
        size: u64,
        /// Bytes of the largest.
        most: u64,
    },
    /// Its descriptor is this, not the device that it should be, and this process cannot open that.
    NoDevice(XenDevice, String, std::io::Error),
    /// Its descriptor is the first, not the device that it should be, and where this process looks
    /// for that stands the second.
    WrongDevice(XenDevice, String, String),
    /// Its descriptor cannot be restricted to this domain.
    NotRestricted(u16, std::io::Error),
    /// A domain's page cannot be mapped.
    Foreign(NoPage),
    /// Granted pages cannot be mapped: so many from this reference on.
    Grants(GrantRef, usize, std::io::Error),
    /// Granted pages are mapped as pages of 4 KiB, and this host's have so many bytes.
    HostPages(usize),
    /// The system refused.
    System(&'static str, std::io::Error),
}

impl Region {
    /// Maps `size` bytes of `fd` from `offset` on. The descriptor goes with the region.
    pub fn map(
        guest: GuestAddr,
        user: UserAddr,
        size: u64,
        offset: u64,
        fd: OwnedFd,
    ) -> Result<Arc<Self>, RegionError> {
        let too_large = RegionError::TooLarge { size, most: MAX_SIZE };
        if size > MAX_SIZE {
            return Err(too_large);
        }
        let page = check_file(&fd, offset, size)?;
        let lead = offset % page;
        let bytes = size.checked_add(lead).and_then(|n| n.checked_next_multiple_of(page));
        let len = bytes.and_then(|n| usize::try_from(n).ok()).ok_or(too_large)?;
        let mapping = Mapping::shared(fd.as_fd(), offset - lead, len)
            .map_err(|e| RegionError::System("map it", e))?
            .keep(fd, offset - lead);
        let whole = Segment::new(mapping.base().wrapping_add(lead as usize), size as usize);
        Ok(Arc::new(Self::held([whole; 2], guest, user, size, Hold::File(mapping))))
    }

    /// Maps `size` bytes of a domain's memory, or makes ready to. `fd` is the device that the
    /// front-end uses; if it is none, this process opens its own.
    pub fn xen(
        access: &XenAccess,
        kind: XenKind,
        domid: u16,
        guest: GuestAddr,
        user: UserAddr,
        size: u64,
        fd: OwnedFd,
    ) -> Result<Arc<Self>, RegionError> {
        if size > MAX_XEN_SIZE && kind == XenKind::Foreign {
            return Err(RegionError::TooLarge { size, most: MAX_XEN_SIZE });
        }
        let device = match kind {
            XenKind::Foreign | XenKind::ForeignOnDemand => XenDevice::Privcmd,
            XenKind::Grant | XenKind::GrantOnDemand => XenDevice::Gntdev,
        };
        let fd = right_device(&*access.ops, device, fd)?;
        guard::install().map_err(|error| RegionError::System("answer its faults", error))?;
        let on_demand = |how| Self::held([Segment::EMPTY; 2], guest, user, size, how);
        let region = match kind {
            XenKind::Foreign => {
                let foreign = foreign(access, fd, domid)?;
                let mapping = foreign.map(guest, size).map_err(RegionError::Foreign)?;
                let lead = (guest.0 % XEN_PAGE) as usize;
                let whole = Segment::new(mapping.base().wrapping_add(lead), size as usize);
                Self::held([whole; 2], guest, user, size, Hold::Frames(mapping))
            }
            XenKind::ForeignOnDemand => {
                let foreign = foreign(access, fd, domid)?;
                on_demand(Hold::OnDemand(OnDemand::Frames(Arc::new(foreign))))
            }
            XenKind::Grant => {
                let grants = grants(access, fd)?;
                let (maps, each, read_only) = map_all(&grants, domid, guest, size)?;
                Self::granted(maps, each, read_only, guest, user, size)
            }
            XenKind::GrantOnDemand => {
                on_demand(Hold::OnDemand(OnDemand::Grants(grants(access, fd)?, domid)))
            }
        };
        Ok(Arc::new(Self { xen: Some((domid, kind)), ..region }))
    }

    /// All the memory of a domain that `kind` can name, each page mapped when it is needed.
    pub fn beyond(
        access: &XenAccess,
        kind: XenKind,
        domid: u16,
        fd: OwnedFd,
    ) -> Result<Arc<Self>, RegionError> {
        let (kind, first) = match kind {
            XenKind::Foreign | XenKind::ForeignOnDemand => (XenKind::ForeignOnDemand, 0),
            XenKind::Grant | XenKind::GrantOnDemand => (XenKind::GrantOnDemand, 1 << 63),
        };
        Self::xen(access, kind, domid, GuestAddr(first), UserAddr(0), MAX_XEN_SIZE, fd)
    }

    fn granted(
        maps: Vec<Arc<GrantMap>>,
        each: u64,
        read_only: bool,
        guest: GuestAddr,
        user: UserAddr,
        size: u64,
    ) -> Self {
        let lead = guest.0 % XEN_PAGE;
        let whole = match &maps[..] {
            [one] => Segment::new(one.base().wrapping_add(lead as usize), size as usize),
            _ => Segment::EMPTY,
        };
        let writable = if read_only { Segment::EMPTY } else { whole };
        let hold = Hold::Grants { maps, each, lead, read_only };
        Self::held([whole, writable], guest, user, size, hold)
    }

    fn held(
        [readable, writable]: [Segment; 2],
        guest: GuestAddr,
        user: UserAddr,
        size: u64,
        hold: Hold,
    ) -> Self {
        let (xen, beyond, ended) = (None, None, AtomicBool::new(false));
        let gone = GoneOnDrop(Gone(Arc::default()));
        Self { guest, user, size, readable, writable, xen, ended, beyond, hold, gone }
    }

    /// Notes that with this region its front-end allows to map all of `beyond`, as long as the
    /// region is there.
    ///
    /// # Panics
    /// If the region is in use already.
    pub fn allow_more(self: &mut Arc<Self>, beyond: Arc<Self>) {
        let region = Arc::get_mut(self).expect("a region that nobody else has seen");
        region.beyond = Some(beyond);
    }

    /// First guest-physical address.
    pub fn guest(&self) -> GuestAddr {
        self.guest
    }

    /// First address in the front-end.
    pub fn user(&self) -> UserAddr {
        self.user
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The bytes from `offset` on, as many of `len` as are in one piece, for reading; `None` past
    /// the end, and where nothing is mapped.
    pub fn segment(&self, offset: u64, len: u64) -> Option<Segment> {
        let left = self.size.checked_sub(offset).filter(|&left| left > 0)?;
        match self.reach(offset, len.min(left), Access::DeviceReadable) {
            Reach::Mapped(segment) => Some(segment),
            Reach::OnDemand(_) | Reach::Denied => None,
        }
    }

    /// `len` bytes from `offset` on, if they are in one mapped piece and not none.
    #[inline]
    pub(super) fn mapped(&self, offset: u64, len: u64, access: Access) -> Option<Segment> {
        let whole = self.whole(access);
        let left = (whole.len() as u64).checked_sub(offset)?;
        // Both fit: they are at most the length of a mapping.
        (1..=left).contains(&len).then(|| whole.part(offset as usize, len as usize))
    }

    #[inline]
    fn whole(&self, access: Access) -> Segment {
        match access {
            Access::DeviceReadable => self.readable,
            Access::DeviceWritable => self.writable,
        }
    }

    /// What `len` bytes from `offset` on, all inside, are to who wants to use them so.
    #[inline]
    pub(super) fn reach(&self, offset: u64, len: u64, access: Access) -> Reach<'_> {
        let whole = self.whole(access);
        if whole.is_empty() {
            return self.reach_in_pieces(offset, len, access);
        }
        // Both fit: the region is mapped, so its size is below the address space's.
        Reach::Mapped(whole.part(offset as usize, len as usize))
    }

    #[cold]
    fn reach_in_pieces(&self, offset: u64, len: u64, access: Access) -> Reach<'_> {
        let Hold::Grants { maps, each, lead, read_only } = &self.hold else {
            return match &self.hold {
                Hold::OnDemand(how) => Reach::OnDemand(how),
                Hold::File(_) | Hold::Frames(_) | Hold::Grants { .. } => Reach::Denied,
            };
        };
        if *read_only && access == Access::DeviceWritable {
            return Reach::Denied;
        }
        let at = lead + offset;
        let (number, inside) = ((at / each) as usize, at % each);
        let here = len.min(each - inside) as usize;
        match maps.get(number) {
            Some(map) => {
                Reach::Mapped(Segment::new(map.base().wrapping_add(inside as usize), here))
            }
            None => Reach::Denied,
        }
    }

    /// Whether the hypervisor is asked for this memory.
    pub(super) fn is_xen(&self) -> bool {
        self.xen.is_some()
    }

    /// The region of all other memory that its front-end allows to map.
    pub(super) fn brings(&self) -> Option<&Arc<Self>> {
        self.beyond.as_ref()
    }

    /// Whether both are memory of one domain that is reached in one way.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.xen == other.xen
    }

    /// Whether all of its memory is the other's too, however that is reached.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        let domain = |region: &Self| region.xen.map(|(domid, _)| domid);
        let offset = self.guest.0.checked_sub(other.guest.0);
        let room = offset.and_then(|offset| other.size.checked_sub(offset));
        domain(self) == domain(other)
            && room.is_some_and(|room| self.size <= room)
            && (self.beyond.is_none() || other.beyond.is_some())
    }

    /// The guest's address of a place in what is mapped for all of its life.
    pub(super) fn address_of(&self, place: Segment) -> Option<GuestAddr> {
        let offset = |base: *mut u8, len: usize| {
            place.base().addr().checked_sub(base.addr()).filter(|&offset| offset < len)
        };
        let offset = match &self.hold {
            Hold::Frames(area) => {
                let lead = (self.guest.0 % XEN_PAGE) as usize;
                offset(area.base(), area.len())?.checked_sub(lead)? as u64
            }
            Hold::Grants { maps, each, lead, .. } => {
                let here = |(number, map): (u64, &Arc<GrantMap>)| {
                    Some(number * each + offset(map.base(), map.len())? as u64)
                };
                (0..).zip(maps).find_map(here)?.checked_sub(*lead)?
            }
            Hold::File(_) | Hold::OnDemand(_) => return None,
        };
        self.guest.checked_add(offset)
    }

    /// Whether its pages are a domain's frames.
    pub(super) fn is_foreign(&self) -> bool {
        matches!(self.hold, Hold::Frames(_) | Hold::OnDemand(OnDemand::Frames(_)))
    }

    /// How its pages are mapped, if not in advance.
    pub(super) fn on_demand(&self) -> Option<&OnDemand> {
        match &self.hold {
            Hold::OnDemand(how) => Some(how),
            Hold::File(_) | Hold::Frames(_) | Hold::Grants { .. } => None,
        }
    }

    /// Where granted pages are mapped for all of its life.
    pub(super) fn granted_areas(&self) -> impl Iterator<Item = Segment> + '_ {
        let maps = match &self.hold {
            Hold::Grants { maps, .. } => &maps[..],
            Hold::File(_) | Hold::Frames(_) | Hold::OnDemand(_) => &[],
        };
        maps.iter().map(|map| Segment::new(map.base(), map.len()))
    }

    /// Whether the front-end has told no address of its own for it: it has not mapped what it
    /// tells the back-end not to map in advance.
    pub(super) fn has_no_user_address(&self) -> bool {
        self.user.0 == 0 && self.on_demand().is_some()
    }

    /// The first half of taking the memory away from those who still hold the region: from now on
    /// nothing of it is mapped or copied any more, and who asks is told so.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        match &self.hold {
            Hold::OnDemand(OnDemand::Grants(grants, _)) => grants.end(),
            Hold::OnDemand(OnDemand::Frames(foreign)) => foreign.end(),
            Hold::File(_) | Hold::Frames(_) | Hold::Grants { .. } => {}
        }
        self.beyond.iter().for_each(|beyond| beyond.end());
    }

    /// Whether its memory was, or is about to be, taken away.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// The second half: private memory takes the place of what is still mapped. It shows what the
    /// file holds, or what is `needed` of a domain's memory: a write to a disk that is still under
    /// way must not become a write of zeroes.
    pub fn detach(&self, needed: &[Segment]) {
        let places: Vec<_> = needed.iter().map(|place| (place.base(), place.len())).collect();
        match &self.hold {
            // If the kernel has no memory for that, the front-end's stays mapped: late accesses
            // then still reach it, which is what they did a moment ago.
            Hold::File(mapping) => drop(mapping.detach(&places)),
            Hold::Frames(mapping) => drop(mapping.detach(&places)),
            Hold::Grants { maps, .. } => maps.iter().for_each(|map| map.detach(&places)),
            Hold::OnDemand(OnDemand::Grants(grants, _)) => grants.detach(&places),
            Hold::OnDemand(OnDemand::Frames(foreign)) => foreign.detach(&places),
        }
        self.beyond.iter().for_each(|beyond| beyond.detach(needed));
    }

    /// Has `loss` told if the memory is taken away; the first call counts.
    pub fn watch(&self, loss: &Arc<Loss>) {
        match &self.hold {
            Hold::File(mapping) => mapping.watch(loss),
            Hold::Frames(mapping) => mapping.watch(loss),
            Hold::Grants { maps, .. } => maps.iter().for_each(|map| map.watch(loss)),
            Hold::OnDemand(OnDemand::Grants(grants, _)) => grants.watch(loss),
            Hold::OnDemand(OnDemand::Frames(foreign)) => foreign.watch(loss),
        }
    }

    /// A token that outlives the region.
    pub fn gone(&self) -> Gone {
        self.gone.0.clone()
    }
}

impl Gone {
    /// Waits until the region is unmapped; `false` if it still is mapped after `limit`.
    pub fn wait(&self, limit: Duration) -> bool {
        let (lock, changed) = &*self.0;
        let deadline = Instant::now() + limit;
        let mut gone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !*gone {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            gone = changed.wait_timeout(gone, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Drop for GoneOnDrop {
    fn drop(&mut self) {
        let (lock, changed) = &*self.0.0;
        *lock.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
    }
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAFile(kind) => write!(f, "its descriptor is {kind}, not a regular file"),
            Self::FileTooShort { file, needed } => {
                write!(f, "its file has {file:#x} bytes, offset and size ask for {needed:#x}")
            }
            Self::TooLarge { size, most } => {
                write!(f, "{size:#x} bytes are more than the {most:#x} that a region may have")
            }
            Self::NoDevice(device, passed, error) => {
                let name = device.path();
                write!(f, "its descriptor is {passed}, not {name}, which cannot be opened here: ")?;
                error.fmt(f)
            }
            Self::WrongDevice(device, passed, own) => {
                let name = device.path();
                write!(f, "its descriptor is {passed}, not {name}, which is {own} here")
            }
            Self::NotRestricted(domid, error) if error.raw_os_error() == Some(libc::EINVAL) => {
                write!(f, "its descriptor is restricted to another domain than {domid}")
            }
            Self::NotRestricted(domid, error) => {
                write!(f, "its descriptor cannot be restricted to domain {domid}: {error}")
            }
            Self::Foreign(error) => error.fmt(f),
            Self::Grants(first, pages, error) => not_granted(f, *first, *pages, error),
            Self::HostPages(bytes) => {
                write!(
                    f,
                    "grants need a host with pages of {XEN_PAGE} bytes, and here they have {bytes}"
                )
            }
            Self::System(what, error) => write!(f, "cannot {what}: {error}"),
        }
    }
}

/// What the error means that the kernel has for so many grants from the first on.
fn not_granted(
    f: &mut fmt::Formatter<'_>,
    first: GrantRef,
    pages: usize,
    error: &std::io::Error,
) -> fmt::Result {
    let GrantRef { domid, reference } = first;
    let what = format!("the {pages} pages from reference {reference} on");
    match error.raw_os_error() {
        Some(libc::EINVAL) => write!(
            f,
            "domain {domid} does not grant {what} (or they are mapped too often): {error}"
        ),
        Some(libc::EAGAIN) => write!(f, "{what} of domain {domid} stay paged out"),
        _ => write!(f, "{what} of domain {domid} cannot be mapped: {error}"),
    }
}

impl std::error::Error for RegionError {}

/// The front-end's descriptor, or an own one if that is no such device.
fn right_device(ops: &dyn XenOps, device: XenDevice, fd: OwnedFd) -> Result<OwnedFd, RegionError> {
    if ops.is_device(device, fd.as_fd()) {
        return Ok(fd);
    }
    let passed = || kind(fd.as_fd());
    let own = ops.open(device).map_err(|error| RegionError::NoDevice(device, passed(), error))?;
    if ops.is_device(device, own.as_fd()) {
        return Ok(own);
    }
    Err(RegionError::WrongDevice(device, passed(), kind(own.as_fd())))
}

fn foreign(access: &XenAccess, fd: OwnedFd, domid: u16) -> Result<Foreign, RegionError> {
    let foreign = Foreign::new(Arc::clone(&access.ops), fd, domid);
    foreign.map_err(|error| RegionError::NotRestricted(domid, error))
}

fn grants(access: &XenAccess, fd: OwnedFd) -> Result<Arc<Grants>, RegionError> {
    let bytes = access.ops.host_page();
    if bytes as u64 != XEN_PAGE {
        return Err(RegionError::HostPages(bytes));
    }
    Ok(Grants::new(access, fd))
}

/// Granted pages in areas, the bytes of each area but the last, and whether they can only be
/// read.
type Granted = (Vec<Arc<GrantMap>>, u64, bool);

/// Maps all pages of a region of grants, in as many calls as the kernel wants. A grant for reading
/// does not map for writing; then the region can only be read.
fn map_all(
    grants: &Arc<Grants>,
    domid: u16,
    guest: GuestAddr,
    size: u64,
) -> Result<Granted, RegionError> {
    let first = grant_of(guest);
    let pages = usize::try_from((guest.0 % XEN_PAGE + size).div_ceil(XEN_PAGE))
        .map_err(|_| RegionError::TooLarge { size, most: MAX_XEN_SIZE })?;
    let each = grants.limit();
    let try_to = |protection| {
        let (mut maps, mut patience) = (Vec::new(), Patience::default());
        let mut done = 0;
        while done < pages {
            let count = each.min(pages - done);
            let refs: Vec<_> = run(domid, first.wrapping_add(done as u32), count).collect();
            let map = grants.map(&refs, protection, &mut patience);
            maps.push(map.map_err(|error| RegionError::Grants(refs[0], count, error))?);
            done += count;
        }
        Ok(maps)
    };
    let each = each as u64 * XEN_PAGE;
    match try_to(Protection::ReadWrite) {
        Ok(maps) => Ok((maps, each, false)),
        // Only the hypervisor's refusal says something of the grants' rights.
        Err(RegionError::Grants(first, count, error)) if is_refusal(&error) => {
            let maps = try_to(Protection::Read);
            maps.map(|maps| (maps, each, true))
                .map_err(|_| RegionError::Grants(first, count, error))
        }
        Err(error) => Err(error),
    }
}

/// Whether the pages may not be mapped so, and not only not now.
fn is_refusal(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM | libc::EACCES))
}

/// The grant reference that an address with bit 63 names.
pub(super) fn grant_of(at: GuestAddr) -> u32 {
    // Regions of grants end below bit 44: the reference has 32 bits.
    ((at.0 & !(1 << 63)) / XEN_PAGE) as u32
}

/// Checks that the file can be memory and is long enough; returns the size of its pages.
fn check_file(fd: &OwnedFd, offset: u64, size: u64) -> Result<u64, RegionError> {
    let stat = rustix::fs::fstat(fd).map_err(|e| RegionError::System("stat it", e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(RegionError::NotAFile(kind(fd.as_fd())));
    }
    // Sums at 128 bits cannot wrap.
    let (file, needed) = (stat.st_size as u64, u128::from(offset) + u128::from(size));
    if needed > u128::from(file) {
        return Err(RegionError::FileTooShort { file, needed });
    }
    // hugetlbfs reports its page size as the block size and maps nothing smaller. Elsewhere the
    // block size may be larger than a page, which only rounds more than needed.
    let page = rustix::param::page_size() as u64;
    let block = u64::try_from(stat.st_blksize).unwrap_or(page);
    let huge = block > page && block.is_power_of_two() && file % block == 0;
    Ok(if huge { block } else { page })
}
