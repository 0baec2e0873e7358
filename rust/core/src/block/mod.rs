//! virtio-blk: what every block device checks, and the data paths that need no interpreter.
//!
//! A [`BlockCore`] holds what any block device has (its features, its configuration space, its
//! serial number) and turns a descriptor chain into a [`BlockRequest`] whose every number has been
//! checked. Who moves the data is another matter: a [`Disk`] in this process behind a
//! [`BlockDevice`], or an implementation of [`Device`](crate::device::Device) that asks its own
//! `BlockCore`.
//!
//! VIRTIO 1.3, "Block Device".

mod config;
mod core;
mod direct;
mod disk;
mod file;
mod image;
mod image_lock;
mod null;
mod numbers;
mod parse;
mod refusal;
mod request;

#[cfg(test)]
mod tests;

pub use config::{BlockConfig, BlockOptions, Geometry, InvalidBlock};
pub use core::{BlockCore, Refusals};
pub use disk::{BlockDevice, Disk, Taken};
pub use file::FileDisk;
pub use image::{HostImage, Image};
pub use image_lock::Sharing;
pub use null::NullDisk;
pub use numbers::{BlkOp, ByteRange, SECTOR, Status, VIRTIO_ID, feature};
pub use parse::{Parsed, Refused};
pub use refusal::{Attempt, FailureObserver, Refusal};
pub use request::BlockRequest;
