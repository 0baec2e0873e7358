//! The core as back-end and rust-vmm's `vhost` crate as front-end: what the tests share.

mod guest;
mod ring;
mod served;

pub use guest::Guest;
pub use ring::{Kind, Ring, SECTOR, wait};
pub use served::Served;
