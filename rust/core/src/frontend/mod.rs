//! The other end of the socket: a front-end with memory and the driver's side of the rings.
//!
//! Product code for tests, tools and benches. It shares the wire format with the back-end and
//! nothing that the back-end uses to check itself, so a mistake there is not repeated here.
//!
//! ```text
//! BlockDriver ── Client ── Stream ─────────────> back-end
//!      │            └── back-end channel <─────────┤
//!      └── BlockQueue ── Ring ── GuestMemory ───────┘ shared
//!                         ├── SplitChains ── SplitRing
//!                         └── PackedRing
//! ```

pub mod block;
mod channel;
mod client;
mod device_state;
mod error;
mod in_order;
mod iommu;
pub mod load;
mod log;
mod memory;
mod messages;
mod packed;
mod postcopy;
mod ring;
mod segment;
mod signals;
mod split;
mod split_chains;
mod window;
mod xen;

pub use block::{BlockDriver, BlockOptions, IommuCounts};
pub use channel::{BackendEvent, IotlbMiss};
pub use client::Client;
pub use error::{BlockStatus, FrontendError, Result};
pub use iommu::{Iommu, IommuPage};
pub use load::{LoadOptions, LoadReport, Pattern};
pub use log::{DirtyLog, LOG_PAGE};
pub use memory::{GuestMemory, Region, RegionSpec};
pub use messages::{IMPLEMENTED, Negotiated, VringDescription, Wanted};
pub use packed::{AVAIL, PackedLayout, PackedRing, USED};
pub use postcopy::{MissingPages, PAGE};
pub use ring::{Ring, RingFeatures};
pub use segment::{Segment, UsedChain};
pub use split::{Descriptor, INDIRECT, NEXT, RingLayout, SplitRing, Used, WRITE};
pub use split_chains::SplitChains;
pub use xen::{XenMemory, XenRegion};

pub use crate::sys::interrupt::asking;
pub use crate::wire::features::names as feature_names;
pub use crate::wire::payload::{Region as RegionDescription, XenFields};
pub use crate::wire::{ProtocolFeatures, RegionLayout};
