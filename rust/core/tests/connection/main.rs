//! The protocol's state machine seen from outside: frames in, replies and actions out. Bytes and
//! numbers are written down here from the specification, not taken from the crate.

mod model;
mod orders;
mod property;
mod random;
mod rules;
mod set_xen_mmap;
mod support;
mod xen;
