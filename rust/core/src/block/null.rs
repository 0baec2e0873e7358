//! A disk that is not there: reads leave the data as it was, changes are forgotten.

use std::io;

use super::config::Geometry;
use super::disk::Disk;
use super::numbers::ByteRange;
use super::request::BlockRequest;

/// Answers each request at once and moves no byte, so that what is left is the cost of the ring.
/// Not a disk of zeroes: what a read finds in its buffer is what the driver had there.
#[derive(Debug)]
pub struct NullDisk {
    size: u64,
    block_size: u32,
    read_only: bool,
}

impl NullDisk {
    /// Returns a disk of `size` bytes in blocks of `block_size`.
    pub fn new(size: u64, block_size: u32) -> Self {
        Self { size, block_size, read_only: false }
    }

    /// Makes it a disk that takes no changes, if `read_only`.
    pub fn read_only(self, read_only: bool) -> Self {
        Self { read_only, ..self }
    }
}

impl Disk for NullDisk {
    fn geometry(&self) -> Geometry {
        let Self { size, block_size, read_only } = *self;
        let changes = !read_only;
        Geometry {
            block_size,
            physical_block_size: block_size,
            read_only,
            discard: changes,
            write_zeroes: changes,
            ..Geometry::new(size)
        }
    }

    #[inline]
    fn read(&self, _request: &BlockRequest) -> io::Result<()> {
        Ok(())
    }

    #[inline]
    fn write(&self, _request: &BlockRequest, _durable: bool) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _range: ByteRange) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _range: ByteRange, _unmap: bool, _durable: bool) -> io::Result<()> {
        Ok(())
    }
}
