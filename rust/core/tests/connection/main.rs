//! The protocol's state machine seen from outside: frames in, replies and actions out. Bytes and
//! numbers are written down here from the specification, not taken from the crate.

mod actions;
mod device;
mod frames;
mod iotlb;
mod log;
mod memory;
mod model;
mod negotiation;
mod orders;
mod page;
mod postcopy;
mod property;
mod random;
mod resets;
mod set_xen_mmap;
mod support;
mod transfer;
mod vrings;
mod xen;
