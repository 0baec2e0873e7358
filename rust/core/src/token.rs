//! The name of a descriptor chain in flight.

/// A chain that was popped from a ring, and is to be given back to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// Its name among the chains in flight, less than the ring's size: of a split ring its first
    /// descriptor, of a packed ring the buffer id that the driver has given it.
    pub id: u16,
    /// The places that it takes in the ring.
    pub descriptors: u16,
}
