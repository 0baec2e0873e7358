//! A running back-end, driven through its socket by the built-in front-end.

#[path = "../support/mod.rs"]
#[allow(dead_code)] // Each test program uses a part of it.
#[macro_use]
mod support;

mod dirty_log;
mod formats;
mod guest_addresses;
mod inflight;
mod iommu;
mod iommu_questions;
mod late;
mod postcopy;
mod postcopy_formats;
mod served;
mod serving;
mod state;
mod stopping;
mod suspend;
mod taking_over;
mod unhelpful;
