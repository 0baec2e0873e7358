//! Copies out of, and into, memory that somebody else may change meanwhile.
//!
//! What a guest writes is checked in a copy. A compiler that sees a plain copy may take the source
//! for what it was a moment ago, and read it again where the program reads the copy: then it is not
//! what was checked. So no copy here is one that a compiler can look through: it is the C library's,
//! called through a pointer that may be any function's. (Volatile loads would do too. For a header
//! of 16 bytes they took three times as long.)
#![allow(unsafe_code)] // Raw pointers into memory that is shared with the guest.

use std::ffi::c_void;
use std::hint::black_box;

type Move = unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> *mut c_void;

/// Copies `len` bytes, of which both may be shared memory, and which may overlap. Nothing that is
/// read at `to` afterwards is read at `from`.
///
/// # Safety
/// Both are mapped for `len` bytes, `to` for writing.
#[inline]
pub unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    let call = black_box(libc::memmove as Move);
    // SAFETY: it is `memmove`, and both are mapped for `len` bytes, by the caller's word.
    unsafe { call(to.cast(), from.cast(), len) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 256;

    fn numbered() -> Vec<u8> {
        (0..ROOM).map(|n| n as u8 ^ 0x5a).collect()
    }

    #[test]
    fn what_is_copied_is_exact_at_every_length_and_alignment() {
        for len in (0..=80).chain([127, 128, 129]) {
            for (at, to) in (0..9).flat_map(|at| (0..9).map(move |to| (at, to))) {
                let source = numbered();
                let mut target = vec![0_u8; ROOM];
                // SAFETY: both have room for `len` bytes from there on.
                unsafe { copy(source[at..].as_ptr(), target[to..].as_mut_ptr(), len) };
                assert_eq!(target[to..to + len], source[at..at + len]);
                assert!(target[..to].iter().chain(&target[to + len..]).all(|&byte| byte == 0));
            }
        }
    }

    #[test]
    fn what_overlaps_is_copied_as_it_was() {
        for len in [1, 7, 8, 9, 40, 64, 65, 128] {
            for (at, to) in [(0, 8), (8, 0), (0, 3), (3, 0), (16, 16)] {
                let mut bytes = numbered();
                let base = bytes.as_mut_ptr();
                // SAFETY: both places lie in `bytes`.
                unsafe { copy(base.wrapping_add(at), base.wrapping_add(to), len) };
                assert_eq!(bytes[to..to + len], numbered()[at..at + len], "{len} {at} {to}");
            }
        }
    }
}
