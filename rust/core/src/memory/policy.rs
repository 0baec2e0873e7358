//! What memory of a front-end is taken: in which files it may lie, and how much of this process's
//! addresses it may have.
//!
//! A front-end that maps a file without end takes no memory, but addresses; and where they are
//! gone nothing else in this process can be mapped or allocated. So what is mapped is counted, for
//! each front-end and for all of them, until it is unmapped: memory of a former table that a
//! request still uses counts too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::region_error::{RegionError, Whose};

/// A front-end may have one in so many addresses of the process: 32 TiB on x86-64. So 16 TiB of
/// memory can be replaced by a new table, which is mapped before the old one goes.
const SESSION_SHARE: u64 = 4;

/// All front-ends of the process may have one in so many.
const PROCESS_SHARE: u64 = 2;

/// The bytes that all front-ends of this process have mapped.
static OF_THE_PROCESS: AtomicU64 = AtomicU64::new(0);

/// The memory that a back-end takes of its front-ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryOptions {
    /// Whether a file counts as memory whatever its file system is. Some file systems may stop to
    /// answer, and then hang whoever touches the memory.
    pub any_file: bool,
    /// The number of bytes that one front-end may have mapped; by default a quarter of the
    /// addresses that this process has.
    pub session_limit: Option<u64>,
    /// The number of bytes that all front-ends of this process together may have mapped when one of
    /// this back-end asks for more; by default half of the addresses.
    pub process_limit: Option<u64>,
}

/// The [options](MemoryOptions), and what one front-end has mapped.
#[derive(Clone, Debug, Default)]
pub struct MemoryPolicy {
    options: MemoryOptions,
    mapped: Arc<AtomicU64>,
}

/// A number of bytes that count as mapped until this value is dropped.
#[derive(Debug)]
pub(super) struct MappedBytes {
    bytes: u64,
    of_the_session: Arc<AtomicU64>,
}

impl MemoryPolicy {
    /// Returns a policy for one front-end, which has nothing mapped yet.
    pub fn new(options: MemoryOptions) -> Self {
        Self { options, mapped: Arc::default() }
    }

    /// Returns whether files of all file systems are taken.
    pub(super) fn takes_any_file(&self) -> bool {
        self.options.any_file
    }

    /// Counts `bytes` that are about to be mapped.
    pub(super) fn count(&self, bytes: u64) -> Result<MappedBytes, RegionError> {
        let of_the_session =
            self.options.session_limit.unwrap_or_else(|| addresses() / SESSION_SHARE);
        let of_the_process =
            self.options.process_limit.unwrap_or_else(|| addresses() / PROCESS_SHARE);
        add(&self.mapped, bytes, of_the_session, Whose::Session)?;
        add(&OF_THE_PROCESS, bytes, of_the_process, Whose::Process)
            .inspect_err(|_| subtract(&self.mapped, bytes))?;
        Ok(MappedBytes { bytes, of_the_session: Arc::clone(&self.mapped) })
    }
}

impl Drop for MappedBytes {
    fn drop(&mut self) {
        subtract(&self.of_the_session, self.bytes);
        subtract(&OF_THE_PROCESS, self.bytes);
    }
}

fn add(mapped: &AtomicU64, bytes: u64, most: u64, whose: Whose) -> Result<(), RegionError> {
    let fits = |mapped: u64| mapped.checked_add(bytes).filter(|&sum| sum <= most);
    let order = Ordering::Relaxed;
    let added = mapped.fetch_update(order, order, fits);
    added.map(drop).map_err(|mapped| RegionError::TooMuch { bytes, mapped, most, whose })
}

fn subtract(mapped: &AtomicU64, bytes: u64) {
    mapped.fetch_sub(bytes, Ordering::Relaxed);
}

/// Returns how many bytes of addresses this process has: the kernel places stacks near their end,
/// so the next power of two is it.
fn addresses() -> u64 {
    let here = 0_u8;
    ((&raw const here).addr() as u64).next_power_of_two()
}
