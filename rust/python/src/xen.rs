//! Xen domains as Python names them: regions, designs, and a guest for tests.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use pyo3::prelude::*;
use vhost_user_core::address::{GuestAddr, UserAddr};
use vhost_user_core::frontend::{RegionDescription, RegionLayout, XenFields, XenMemory, XenRegion};
use vhost_user_core::xen_guest;

use crate::arguments;
use crate::descriptor::descriptor;
use crate::error;

/// The numbers of a `vhost_user.XenRegion`.
#[derive(FromPyObject)]
pub(crate) struct Region {
    guest_address: u64,
    size: u64,
    user_address: u64,
    flags: u64,
    domain: u64,
    fd: RawFd,
    offset: u64,
}

impl Region {
    /// The region, with a descriptor of its own.
    pub(crate) fn told(&self) -> PyResult<XenRegion> {
        let region = RegionDescription {
            guest: GuestAddr(self.guest_address),
            size: self.size,
            user: UserAddr(self.user_address),
            mmap_offset: self.offset,
            xen: Some(XenFields { flags: self.flags, domid: self.domain }),
        };
        Ok(XenRegion { region, fd: descriptor(self.fd)?.try_clone_to_owned()? })
    }
}

/// A domain on a hypervisor that is not there.
#[pyclass(frozen, subclass, module = "vhost_user._core")]
pub(crate) struct XenGuest {
    guest: xen_guest::XenGuest,
    layout: RegionLayout,
}

#[pymethods]
impl XenGuest {
    /// A domain with `memory` bytes, mapped as `flags` say and told of in `design`.
    #[new]
    #[pyo3(signature = (flags, domain, *, design, memory))]
    fn new(
        py: Python<'_>,
        flags: u64,
        domain: u64,
        #[pyo3(from_py_with = arguments::design)] design: RegionLayout,
        #[pyo3(from_py_with = arguments::memory)] memory: u64,
    ) -> PyResult<Self> {
        let fields = XenFields { flags, domid: domain };
        let guest = py.detach(|| xen_guest::XenGuest::new(fields, memory));
        Ok(Self { guest: guest.map_err(|e| error::frontend(py, &e))?, layout: design })
    }

    /// First address of its memory, as descriptors have it.
    #[getter]
    fn guest_address(&self) -> u64 {
        self.guest.description().guest.0
    }

    /// Where its memory is mapped in this process.
    #[getter]
    fn user_address(&self) -> u64 {
        self.guest.description().user.0
    }

    /// Bytes of its memory.
    #[getter]
    fn memory(&self) -> u64 {
        self.guest.description().size
    }

    /// The hypervisor's device by which its memory is mapped.
    fn fileno(&self) -> RawFd {
        self.guest.as_fd().as_raw_fd()
    }

    /// Pages of it that are mapped, beside the guest's own mapping.
    fn in_use(&self, py: Python<'_>) -> PyResult<Vec<u64>> {
        py.detach(|| self.guest.in_use()).map_err(|e| error::frontend(py, &e))
    }
}

impl XenGuest {
    /// The argument `guest` of a driver.
    pub(crate) fn of<'py>(value: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, Self>>> {
        if value.is_none() {
            return Ok(None);
        }
        let what = "guest is a vhost_user.testing.XenGuest";
        let guest = value.cast::<Self>().map_err(|_| arguments::other_type(value, what))?;
        Ok(Some(guest.clone()))
    }

    /// Its hypervisor.
    pub(crate) fn guest(&self) -> &xen_guest::XenGuest {
        &self.guest
    }

    /// Its memory, for a driver.
    pub(crate) fn told(&self, py: Python<'_>) -> PyResult<XenMemory> {
        self.guest.told(self.layout).map_err(|e| error::frontend(py, &e))
    }
}
