//! Xen front-ends served by a running back-end, on a hypervisor of memory files.

#[path = "../support/mod.rs"]
#[allow(dead_code)] // Each test program uses a part of it.
#[macro_use]
mod support;

mod addresses;
mod answers;
mod beyond;
mod blocks;
mod calls;
mod conversation;
mod copies;
mod descriptors;
mod device;
mod faults;
mod frames;
mod gate;
mod grants;
mod guest;
mod hypervisor;
mod late;
mod lifetimes;
mod limits;
mod lost;
mod packed;
mod raw;
mod receiving;
mod regions;
mod replays;
mod rings;
mod severed;
mod slow;
mod tables;
