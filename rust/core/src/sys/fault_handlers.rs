//! The handlers that answer for shared mappings: one for SIGBUS, one for forked children.

use std::io;

use super::{fork, guard, sigbus};

/// Makes this process ready to answer for mappings that [`guard`] notes. The function is called
/// with each region, not with each mapping that is made for a request: it takes system calls and
/// a lock.
///
/// # Errors
/// The system refuses the handlers.
pub fn install() -> io::Result<()> {
    fork::install()?;
    sigbus::install()?;
    guard::answer_for_this_process();
    Ok(())
}
