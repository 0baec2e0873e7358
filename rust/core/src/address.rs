//! The address spaces of a vhost-user connection. Different spaces are different types: a number
//! read from one can never be looked up in another by accident.

use std::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The address `offset` bytes further, or `None` past the end of the space.
            pub fn checked_add(self, offset: u64) -> Option<Self> {
                self.0.checked_add(offset).map(Self)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A guest-physical address: what descriptors in a ring hold.
    GuestAddr
}

address! {
    /// An address in the front-end's own address space: what SET_VRING_ADDR holds.
    UserAddr
}

address! {
    /// An I/O virtual address: what stands for guest-physical addresses once ACCESS_PLATFORM was
    /// accepted.
    Iova
}
