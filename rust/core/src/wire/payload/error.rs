//! Why bytes are not the payload that they should be.

use std::fmt;

/// Why bytes are not the payload that they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadError {
    /// A field is cut short.
    Truncated {
        /// Bytes that the field takes.
        needed: usize,
        /// Bytes that were left.
        left: usize,
    },
    /// Bytes follow the last field.
    Trailing {
        /// How many.
        left: usize,
    },
    /// Bits are set that have no meaning.
    UnknownBits {
        /// The field's name.
        field: &'static str,
        /// The bits.
        bits: u64,
    },
    /// A number is outside its range.
    OutOfRange {
        /// The field's name.
        field: &'static str,
        /// The number.
        got: u64,
        /// The smallest that is allowed.
        min: u64,
        /// The largest that is allowed.
        max: u64,
    },
    /// A start and a size whose sum does not fit into 64 bits.
    Wraps {
        /// The name of the start.
        field: &'static str,
        /// The start.
        start: u64,
        /// The size.
        size: u64,
    },
    /// Flags that contradict each other.
    BadFlags {
        /// The field's name.
        field: &'static str,
        /// The flags.
        got: u64,
        /// The rule.
        rule: &'static str,
    },
    /// Two numbers that must be equal are not.
    Mismatch {
        /// The name of the first.
        field: &'static str,
        /// The number.
        got: u64,
        /// What it must be.
        wanted: u64,
    },
}

impl PayloadError {
    /// Refuses `got` outside `min..=max`.
    pub(crate) fn check_range(
        field: &'static str,
        got: u64,
        min: u64,
        max: u64,
    ) -> Result<(), Self> {
        if (min..=max).contains(&got) {
            return Ok(());
        }
        Err(Self::OutOfRange { field, got, min, max })
    }

    /// Refuses bits of `got` outside `known`.
    pub(crate) fn check_bits(field: &'static str, got: u64, known: u64) -> Result<(), Self> {
        match got & !known {
            0 => Ok(()),
            bits => Err(Self::UnknownBits { field, bits }),
        }
    }

    /// Refuses a `start + size` past the end of the address space.
    pub(crate) fn check_sum(field: &'static str, start: u64, size: u64) -> Result<(), Self> {
        start.checked_add(size).map(drop).ok_or(Self::Wraps { field, start, size })
    }
}

impl fmt::Display for PayloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { needed, left } => {
                write!(f, "payload too short: a field of {needed} bytes, {left} bytes left")
            }
            Self::Trailing { left } => write!(f, "payload too long: {left} bytes left over"),
            Self::UnknownBits { field, bits } => write!(f, "unknown bits in {field}: {bits:#x}"),
            Self::OutOfRange { field, got, min, max } => {
                write!(f, "{field} out of range: {got} is not {min} to {max}")
            }
            Self::Wraps { field, start, size } => {
                write!(f, "{field} plus size wraps: {start:#x} + {size:#x}")
            }
            Self::BadFlags { field, got, rule } => write!(f, "{field} {got:#x}: {rule}"),
            Self::Mismatch { field, got, wanted } => {
                write!(f, "{field} does not match: {got}, should be {wanted}")
            }
        }
    }
}

impl std::error::Error for PayloadError {}
