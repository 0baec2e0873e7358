//! One front-end's connection, from its first message to its last.

mod inflight;
mod log;
mod logging;
mod memory;
mod missing_pages;
mod note;
mod postcopy;
mod records;
mod rings;
#[expect(clippy::module_inception, reason = "the noun of the folder")]
mod session;
mod state;
mod suspend;
mod teardown;
mod translations;
mod vring;
mod workers;

pub(super) use session::Session;
