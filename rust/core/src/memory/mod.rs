//! Guest memory: an immutable table of regions, the look-up of addresses in it, and the buffers of
//! a descriptor chain.
//!
//! A table never changes. A memory message makes a new one, and work in flight goes on in the
//! table that it started with: so no message ever pulls memory from under a request.
//!
//! The other end may change every byte at any time. So nothing here hands out `&[u8]`. Two owners
//! keep what they point to mapped: a [`Window`] holds its region (rings), and [`Buffers`] hold the
//! memory table that their slices were looked up in (descriptor chains).

mod access;
mod buffers;
mod by_host;
#[cfg(test)]
pub(crate) mod crash;
mod dirty_log;
mod fault;
mod file;
mod index;
mod inflight_file;
mod iotlb;
mod policy;
mod postcopy;
mod reads;
mod region;
mod region_error;
mod revoke;
mod segment;
mod span;
mod table;
mod translate;
mod translator;
mod unmap_notifier;
mod window;
mod xen;

pub use access::Access;
pub use buffers::Buffers;
pub use dirty_log::{Beyond, DirtyLog};
pub use fault::{Fault, Unreachable};
pub use inflight_file::InflightFile;
pub use iotlb::{BadTranslation, Iotlb, MOST_TRANSLATIONS, Permission, Translation};
pub use policy::{MemoryOptions, MemoryPolicy};
pub use reads::Reads;
pub use region::{Extent, Region, XenKind};
pub use region_error::{RegionError, Whose};
pub use segment::GuestSlice;
pub use span::{Parts, Readable, Writable};
pub use table::{Memory, OutOfMemory, TableError};
pub use translator::{Addressing, Miss};
pub use unmap_notifier::UnmapNotifier;
pub use window::Window;
pub use xen::bounce::give_back;
pub use xen::bounce_budget::BounceBudget;
pub use xen::foreign::NoPage;
pub use xen::map::{Shared, provide};
pub use xen::resolve_options::ResolveOptions;
