//! Open devices, and what the kernel keeps of each.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use crate::xen::{GrantRef, XEN_PAGE, XenDevice};

/// An open device.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) kind: XenDevice,
    /// Keeps the file's number from being given to another.
    _file: OwnedFd,
    pub(super) only: Option<u16>,
    next_index: u64,
    pub(super) lists: HashMap<u64, List>,
    pub(super) areas: HashMap<u64, Area>,
}

/// Grants that may be mapped.
#[derive(Debug)]
pub(super) struct List {
    pub(super) grants: Vec<GrantRef>,
    pub(super) is_mapped: bool,
}

/// Grants that are mapped.
#[derive(Debug)]
pub(super) struct Area {
    pub(super) grants: Vec<GrantRef>,
    pub(super) writable: bool,
}

impl Device {
    pub(super) fn new(kind: XenDevice, file: OwnedFd) -> Self {
        let (lists, areas) = Default::default();
        Self { kind, _file: file, only: None, next_index: 0, lists, areas }
    }

    /// Notes grants; returns the index of their list.
    pub(super) fn add(&mut self, grants: &[GrantRef]) -> u64 {
        let index = self.next_index;
        self.next_index += grants.len() as u64 * XEN_PAGE;
        self.lists.insert(index, List { grants: grants.to_vec(), is_mapped: false });
        index
    }

    /// A list, if it has this length.
    pub(super) fn list(&mut self, index: u64, count: usize) -> Option<&mut List> {
        self.lists.get_mut(&index).filter(|list| list.grants.len() == count)
    }
}
