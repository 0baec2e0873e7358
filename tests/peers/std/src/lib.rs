//! The core and rust-vmm's crates at two ends of a socket: what the tests share.
//!
//! In `front_end` the core is the back-end, and rust-vmm's `vhost` the front-end; in `back_end` the
//! core is the front-end, and a disk on rust-vmm's `vhost-user-backend` the back-end.

mod daemon;
mod disk;
mod guest;
mod ring;
mod served;

pub use daemon::Daemon;
pub use disk::{Disk, RING};
pub use guest::Guest;
pub use ring::{Kind, Ring, SECTOR, wait};
pub use served::{LEFT_OUT, Served};
