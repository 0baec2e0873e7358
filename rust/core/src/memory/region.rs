//! One region of guest memory: where the driver and the front-end see it, and where it is mapped
//! here.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::access::Access;
use super::policy::MappedBytes;
use super::segment::GuestSlice;
use super::unmap_notifier::{NotifyOnDrop, UnmapNotifier};
use super::xen::grant::GrantMap;
use super::xen::on_demand::OnDemand;
use crate::address::{GuestAddr, UserAddr};
use crate::sys::guard::Loss;
use crate::sys::mmap::Mapping;
use crate::sys::userfault::Userfault;
use crate::xen::XEN_PAGE;

/// The place of a region in the guest and in its front-end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first guest-physical address.
    pub guest: GuestAddr,
    /// The first address in the front-end.
    pub user: UserAddr,
    /// The number of bytes.
    pub size: u64,
}

/// A region. Its mapping goes with the last reference.
#[derive(Debug)]
pub struct Region {
    extent: Extent,
    /// The whole region as one slice, for reading and for writing. A slice is empty if the region
    /// cannot be used so, or is not in one piece.
    readable: GuestSlice,
    writable: GuestSlice,
    /// The domain whose memory it is, and how that is mapped; `None` for a file of the front-end.
    xen: Option<(u16, XenKind)>,
    /// Whether the memory has been taken away from whoever still holds the region.
    ended: AtomicBool,
    /// The region of all other memory that its front-end allows to map, if it does.
    fallback: Option<Arc<Region>>,
    /// Who is asked for its missing pages.
    userfault: Option<Arc<Userfault>>,
    // Dropped in this order: the memory is unmapped before anybody is told.
    hold: Hold,
    _mapped: Option<MappedBytes>,
    gone: NotifyOnDrop,
}

/// The owner of a region's mapping.
#[derive(Debug)]
pub(super) enum Hold {
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

/// How a domain's memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XenKind {
    /// All of its frames are mapped in advance, by the numbers that guest addresses name.
    Foreign,
    /// All of the granted pages are mapped in advance, by the references that guest addresses name.
    Grant,
    /// Each granted page is mapped when it is needed.
    GrantOnDemand,
    /// Each frame is mapped when it is needed.
    ForeignOnDemand,
}

/// The way in which a part of a region can be used for one access.
#[derive(Debug)]
pub(super) enum Backing<'a> {
    /// It is mapped, at least its first bytes.
    Mapped(GuestSlice),
    /// It is not mapped.
    OnDemand(&'a OnDemand),
    /// It may not be used so.
    Denied,
}

impl Region {
    pub(super) fn held(
        [readable, writable]: [GuestSlice; 2],
        extent: Extent,
        hold: Hold,
        mapped: Option<MappedBytes>,
    ) -> Self {
        let (xen, fallback, ended) = (None, None, AtomicBool::new(false));
        let gone = NotifyOnDrop::default();
        let (userfault, _mapped) = (None, mapped);
        Self { extent, readable, writable, xen, ended, fallback, userfault, hold, _mapped, gone }
    }

    pub(super) fn parts(&self) -> (Extent, &Hold, GuestSlice) {
        (self.extent, &self.hold, self.readable)
    }

    pub(super) fn hold_mut(&mut self) -> &mut Hold {
        &mut self.hold
    }

    pub(super) fn userfault(&self) -> Option<&Arc<Userfault>> {
        self.userfault.as_ref()
    }

    pub(super) fn set_userfault(&mut self, userfault: &Arc<Userfault>) {
        self.userfault = Some(Arc::clone(userfault));
    }

    /// Says whose memory it is, and how it is mapped.
    pub(super) fn of_domain(self, domid: u16, kind: XenKind) -> Self {
        Self { xen: Some((domid, kind)), ..self }
    }

    /// Notes that with this region its front-end allows to map all of `fallback`, as long as the
    /// region is there.
    ///
    /// # Panics
    /// If the region is in use already.
    pub fn allow_more(self: &mut Arc<Self>, fallback: Arc<Self>) {
        let region = Arc::get_mut(self).expect("a region that nobody else has seen");
        region.fallback = Some(fallback);
    }

    /// Returns where the region is.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// Returns the first guest-physical address.
    pub fn guest(&self) -> GuestAddr {
        self.extent.guest
    }

    /// Returns the first address in the front-end.
    pub fn user(&self) -> UserAddr {
        self.extent.user
    }

    /// Returns the number of bytes.
    pub fn size(&self) -> u64 {
        self.extent.size
    }

    /// Returns the bytes from `offset` on, as many of `len` as are in one piece, for reading;
    /// `None` past the end, and where nothing is mapped.
    pub fn segment(&self, offset: u64, len: u64) -> Option<GuestSlice> {
        let left = self.extent.size.checked_sub(offset).filter(|&left| left > 0)?;
        match self.backing(offset, len.min(left), Access::DeviceReadable) {
            Backing::Mapped(segment) => Some(segment),
            Backing::OnDemand(_) | Backing::Denied => None,
        }
    }

    /// Returns `len` bytes from `offset` on, if they are in one mapped piece and not none.
    #[inline]
    pub(super) fn mapped(&self, offset: u64, len: u64, access: Access) -> Option<GuestSlice> {
        let whole = self.whole(access);
        let left = (whole.len() as u64).checked_sub(offset)?;
        // Both fit: they are at most the length of a mapping.
        (1..=left).contains(&len).then(|| whole.part(offset as usize, len as usize))
    }

    #[inline]
    fn whole(&self, access: Access) -> GuestSlice {
        match access {
            Access::DeviceReadable => self.readable,
            Access::DeviceWritable => self.writable,
        }
    }

    /// Returns how `len` bytes from `offset` on, all of them inside, can be used for this access.
    #[inline]
    pub(super) fn backing(&self, offset: u64, len: u64, access: Access) -> Backing<'_> {
        let whole = self.whole(access);
        if whole.is_empty() {
            return self.reach_in_pieces(offset, len, access);
        }
        // Both fit: the region is mapped, so its size is below the address space's.
        Backing::Mapped(whole.part(offset as usize, len as usize))
    }

    #[cold]
    fn reach_in_pieces(&self, offset: u64, len: u64, access: Access) -> Backing<'_> {
        let Hold::Grants { maps, each, lead, read_only } = &self.hold else {
            return match &self.hold {
                Hold::OnDemand(how) => Backing::OnDemand(how),
                Hold::File(_) | Hold::Frames(_) | Hold::Grants { .. } => Backing::Denied,
            };
        };
        if *read_only && access == Access::DeviceWritable {
            return Backing::Denied;
        }
        let at = lead + offset;
        let (number, inside) = ((at / each) as usize, at % each);
        let here = len.min(each - inside) as usize;
        match maps.get(number) {
            Some(map) => {
                Backing::Mapped(GuestSlice::new(map.base().wrapping_add(inside as usize), here))
            }
            None => Backing::Denied,
        }
    }

    /// Returns whether a mapped piece lies in what is mapped for all of its life.
    pub(super) fn has_mapped(&self, piece: GuestSlice) -> bool {
        let inside = |area: GuestSlice| {
            let offset = piece.base().addr().checked_sub(area.base().addr());
            offset.is_some_and(|offset| offset < area.len())
        };
        inside(self.readable) || self.granted_areas().any(inside)
    }

    /// Returns the file behind a piece of its mapping, and where in the file that lies.
    pub(super) fn file_of(&self, piece: GuestSlice) -> Option<(BorrowedFd<'_>, u64)> {
        match &self.hold {
            Hold::File(mapping) => mapping.file_of(piece.base()),
            Hold::Frames(_) | Hold::Grants { .. } | Hold::OnDemand(_) => None,
        }
    }

    /// Has `mapping` tell of a loss as the region's own mapping does.
    pub(super) fn watch_as_well(&self, mapping: &Mapping) {
        if let Hold::File(own) = &self.hold {
            mapping.watch_as(own);
        }
    }

    /// Returns whether the hypervisor is asked for this memory.
    pub(super) fn is_xen(&self) -> bool {
        self.xen.is_some()
    }

    /// Returns the region of all other memory that its front-end allows to map.
    pub(super) fn fallback(&self) -> Option<&Arc<Self>> {
        self.fallback.as_ref()
    }

    /// Returns whether both are memory of one domain that is reached in one way.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.xen == other.xen
    }

    /// Returns whether all of its memory is the other's too, however that is reached.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        let domain = |region: &Self| region.xen.map(|(domid, _)| domid);
        let offset = self.extent.guest.0.checked_sub(other.extent.guest.0);
        let room = offset.and_then(|offset| other.extent.size.checked_sub(offset));
        domain(self) == domain(other)
            && room.is_some_and(|room| self.extent.size <= room)
            && (self.fallback.is_none() || other.fallback.is_some())
    }

    /// Returns the guest's address of a place in what is mapped for all of its life.
    pub(super) fn address_of(&self, place: GuestSlice) -> Option<GuestAddr> {
        let offset = |base: *mut u8, len: usize| {
            place.base().addr().checked_sub(base.addr()).filter(|&offset| offset < len)
        };
        let offset = match &self.hold {
            Hold::Frames(area) => {
                let lead = (self.extent.guest.0 % XEN_PAGE) as usize;
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
        self.extent.guest.checked_add(offset)
    }

    /// Returns whether its pages are a domain's frames.
    pub(super) fn is_foreign(&self) -> bool {
        matches!(self.hold, Hold::Frames(_) | Hold::OnDemand(OnDemand::Frames(_)))
    }

    /// Returns how its pages are mapped, if not in advance.
    pub(super) fn on_demand(&self) -> Option<&OnDemand> {
        match &self.hold {
            Hold::OnDemand(how) => Some(how),
            Hold::File(_) | Hold::Frames(_) | Hold::Grants { .. } => None,
        }
    }

    /// Returns where granted pages are mapped for all of its life.
    pub(super) fn granted_areas(&self) -> impl Iterator<Item = GuestSlice> + '_ {
        let maps = match &self.hold {
            Hold::Grants { maps, .. } => &maps[..],
            Hold::File(_) | Hold::Frames(_) | Hold::OnDemand(_) => &[],
        };
        maps.iter().map(|map| GuestSlice::new(map.base(), map.len()))
    }

    /// Returns whether the front-end has told no address of its own for it: it has not mapped what
    /// it tells the back-end not to map in advance.
    pub(super) fn has_no_user_address(&self) -> bool {
        self.extent.user.0 == 0 && self.on_demand().is_some()
    }

    /// Does the first half of taking the memory away from whoever still holds the region: from now
    /// on nothing of it is mapped or copied any more, and whoever asks is told so.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        match &self.hold {
            Hold::OnDemand(OnDemand::Grants(grants, _)) => grants.end(),
            Hold::OnDemand(OnDemand::Frames(foreign)) => foreign.end(),
            Hold::File(_) | Hold::Frames(_) | Hold::Grants { .. } => {}
        }
        self.fallback.iter().for_each(|fallback| fallback.end());
    }

    /// Returns whether its memory was, or is about to be, taken away.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Does the second half: private memory takes the place of what is still mapped. It shows what
    /// the file holds, or what is `needed` of a domain's memory: a write to a disk that is still
    /// under way must not become a write of zeroes.
    pub fn detach(&self, needed: &[GuestSlice]) {
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
        self.fallback.iter().for_each(|fallback| fallback.detach(needed));
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

    /// Returns a token that outlives the region, and tells when it has been unmapped.
    pub fn unmap_notifier(&self) -> UnmapNotifier {
        self.gone.notifier()
    }
}
