//! A domain's memory: regions that the hypervisor maps, and buffers in memory that is not mapped
//! until it is needed.
//!
//! A chain is popped first: its descriptors say where buffers are, and a buffer in such memory is
//! noted as [`Piece`](demand::Piece)s with no place yet. Indirect tables in such memory are [`Reads`](super::Reads) that wait.
//! Then everything of a batch is done at once:
//!
//! ```text
//! tables         one copy call      and the rest of the chains is known
//! little data    one copy call      into the request's bounce buffer, and back when it is answered
//! more           one map call       for what the device reads, read-only,
//!                one map call       for what it writes; both only for more than 128 pages
//! ```
//!
//! Each region has a device of its own, and everything is done through the device of its region:
//! there are as many calls more as a batch has buffers in different regions.
//!
//! A mapped page must be given back before the driver sees the request's used element: it ends
//! its grant then, and cannot while the page is mapped. The pages of one map call are given back
//! together, so requests share one only if the device is done with all of them when it is done
//! with the batch. Requests that it may keep are copied, or have map calls of their own.
//!
//! What cannot be reached is the request's [`Fault`](super::Fault): the piece becomes private zeroes, so that
//! all others keep their offsets, and the device is not shown the request. A map call fails as a
//! whole for one page: what a guest gains by naming pages that are none is bounded, see
//! [`map`].

pub(super) mod areas;
pub(super) mod bounce;
pub(super) mod bounce_budget;
pub(super) mod demand;
pub(super) mod foreign;
pub(super) mod grant;
pub(super) mod map;
pub(super) mod on_demand;
mod place;
mod plan;
mod region;
pub(super) mod resolve_options;
pub(super) mod retry_budget;
