//! Regions of a domain's memory.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::foreign::Foreign;
use super::grant::{GrantMap, Grants, grant_of, run};
use super::on_demand::OnDemand;
use super::retry_budget::RetryBudget;
use crate::address::{GuestAddr, UserAddr};
use crate::memory::policy::{MappedBytes, MemoryPolicy};
use crate::memory::region::{Extent, Hold, Region, XenKind};
use crate::memory::region_error::RegionError;
use crate::memory::segment::GuestSlice;
use crate::sys::fault_handlers;
use crate::sys::fd_kind::fd_kind;
use crate::sys::mmap::Protection;
use crate::sys::received_fd::ReceivedFd;
use crate::xen::{XEN_PAGE, XenAccess, XenDevice, XenOps};

/// Largest region of a domain: 16 TiB, more than the hypervisor gives a guest, and what 32-bit
/// grant references can name.
const MAX_XEN_SIZE: u64 = 1 << 44;

impl Region {
    /// Maps a domain's memory, or makes ready to. `fd` is the device that the front-end uses; if it
    /// is none, this process opens its own.
    pub fn xen(
        policy: &MemoryPolicy,
        access: &XenAccess,
        kind: XenKind,
        domid: u16,
        extent: Extent,
        fd: impl Into<ReceivedFd>,
    ) -> Result<Arc<Self>, RegionError> {
        if extent.size > MAX_XEN_SIZE && kind == XenKind::Foreign {
            return Err(RegionError::TooLarge { size: extent.size, most: MAX_XEN_SIZE });
        }
        let fd = right_device(&*access.ops, device_of(kind), fd.into())?;
        fault_handlers::install()
            .map_err(|error| RegionError::System("answer its faults", error))?;
        let pages = (extent.guest.0 % XEN_PAGE).saturating_add(extent.size).div_ceil(XEN_PAGE);
        let count = || policy.count(pages.saturating_mul(XEN_PAGE));
        let on_demand = |how| Self::held([GuestSlice::EMPTY; 2], extent, Hold::OnDemand(how), None);
        let region = match kind {
            XenKind::Foreign => {
                let mapped = count()?;
                let foreign = foreign(access, fd, domid)?;
                let mapping = foreign.map(extent.guest, extent.size);
                let mapping = mapping.map_err(RegionError::Foreign)?;
                let lead = (extent.guest.0 % XEN_PAGE) as usize;
                let first = mapping.base().wrapping_add(lead);
                let whole = GuestSlice::new(first, extent.size as usize);
                Self::held([whole; 2], extent, Hold::Frames(mapping), Some(mapped))
            }
            XenKind::ForeignOnDemand => {
                on_demand(OnDemand::Frames(Arc::new(foreign(access, fd, domid)?)))
            }
            XenKind::Grant => {
                let mapped = count()?;
                let granted = map_all(&grants(access, fd)?, domid, extent)?;
                Self::granted(granted, extent, mapped)
            }
            XenKind::GrantOnDemand => on_demand(OnDemand::Grants(grants(access, fd)?, domid)),
        };
        Ok(Arc::new(region.of_domain(domid, kind)))
    }

    /// Returns all the memory of a domain that `kind` can name, each page mapped when it is needed.
    pub fn xen_fallback(
        access: &XenAccess,
        kind: XenKind,
        domid: u16,
        fd: impl Into<ReceivedFd>,
    ) -> Result<Arc<Self>, RegionError> {
        let (kind, first) = match kind {
            XenKind::Foreign | XenKind::ForeignOnDemand => (XenKind::ForeignOnDemand, 0),
            XenKind::Grant | XenKind::GrantOnDemand => (XenKind::GrantOnDemand, 1 << 63),
        };
        let extent = Extent { guest: GuestAddr(first), user: UserAddr(0), size: MAX_XEN_SIZE };
        // Nothing of it is mapped as a whole.
        Self::xen(&MemoryPolicy::default(), access, kind, domid, extent, fd)
    }

    fn granted((maps, each, read_only): Granted, extent: Extent, mapped: MappedBytes) -> Self {
        let lead = extent.guest.0 % XEN_PAGE;
        let whole = match &maps[..] {
            [one] => GuestSlice::new(one.base().wrapping_add(lead as usize), extent.size as usize),
            _ => GuestSlice::EMPTY,
        };
        let writable = if read_only { GuestSlice::EMPTY } else { whole };
        let hold = Hold::Grants { maps, each, lead, read_only };
        Self::held([whole, writable], extent, hold, Some(mapped))
    }
}

/// Returns the device that maps memory in this way.
fn device_of(kind: XenKind) -> XenDevice {
    match kind {
        XenKind::Foreign | XenKind::ForeignOnDemand => XenDevice::Privcmd,
        XenKind::Grant | XenKind::GrantOnDemand => XenDevice::Gntdev,
    }
}

/// Returns the front-end's descriptor, or an own one if that is no such device.
fn right_device(
    ops: &dyn XenOps,
    device: XenDevice,
    fd: ReceivedFd,
) -> Result<ReceivedFd, RegionError> {
    if ops.is_device(device, fd.as_fd()) {
        return Ok(fd);
    }
    let passed = || fd_kind(fd.as_fd());
    let own = ops.open(device).map_err(|error| RegionError::NoDevice(device, passed(), error))?;
    if ops.is_device(device, own.as_fd()) {
        return Ok(own.into());
    }
    Err(RegionError::WrongDevice(device, passed(), fd_kind(own.as_fd())))
}

fn foreign(access: &XenAccess, fd: ReceivedFd, domid: u16) -> Result<Foreign, RegionError> {
    let foreign = Foreign::new(Arc::clone(&access.ops), fd, domid);
    foreign.map_err(|error| RegionError::NotRestricted(domid, error))
}

fn grants(access: &XenAccess, fd: ReceivedFd) -> Result<Arc<Grants>, RegionError> {
    let bytes = access.ops.host_page();
    if bytes as u64 != XEN_PAGE {
        return Err(RegionError::HostPages(bytes));
    }
    Ok(Grants::new(access, fd))
}

/// Granted pages in areas, the number of bytes of each area but the last, and whether the pages can
/// only be read.
type Granted = (Vec<Arc<GrantMap>>, u64, bool);

/// Maps all pages of a region of grants, in as many calls as the kernel wants. A grant for reading
/// does not map for writing; then the region can only be read.
fn map_all(
    grants: &Arc<Grants>,
    domid: u16,
    Extent { guest, size, .. }: Extent,
) -> Result<Granted, RegionError> {
    let first = grant_of(guest);
    let pages = usize::try_from((guest.0 % XEN_PAGE + size).div_ceil(XEN_PAGE))
        .map_err(|_| RegionError::TooLarge { size, most: MAX_XEN_SIZE })?;
    let each = grants.limit();
    let try_to = |protection| {
        let (mut maps, mut budget) = (Vec::new(), RetryBudget::default());
        let mut done = 0;
        while done < pages {
            let count = each.min(pages - done);
            let refs: Vec<_> = run(domid, first.wrapping_add(done as u32), count).collect();
            let map = grants.map(&refs, protection, &mut budget);
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

/// Returns whether the hypervisor refused the rights, and not only now.
fn is_refusal(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM | libc::EACCES))
}
