//! Reading and writing payloads, field by field, in native byte order.

use super::payload::PayloadError;

/// Bytes of a payload that have not been read yet.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Takes the next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], PayloadError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(PayloadError::Truncated { needed: N, left: self.rest.len() })?;
        self.rest = rest;
        Ok(*head)
    }

    /// Takes the next byte.
    pub fn u8(&mut self) -> Result<u8, PayloadError> {
        self.array().map(|[byte]| byte)
    }

    /// Takes the next 16-bit number.
    pub fn u16(&mut self) -> Result<u16, PayloadError> {
        self.array().map(u16::from_ne_bytes)
    }

    /// Takes the next 32-bit number.
    pub fn u32(&mut self) -> Result<u32, PayloadError> {
        self.array().map(u32::from_ne_bytes)
    }

    /// Takes the next 64-bit number.
    pub fn u64(&mut self) -> Result<u64, PayloadError> {
        self.array().map(u64::from_ne_bytes)
    }

    /// Passes over `N` bytes of padding. Their values are not looked at: C programs leave
    /// whatever was there before.
    pub fn padding<const N: usize>(&mut self) -> Result<(), PayloadError> {
        self.array::<N>().map(drop)
    }

    /// Takes all that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Bytes not read yet.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// Ends the reading: bytes left over are an error.
    pub fn finish(self) -> Result<(), PayloadError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(PayloadError::Trailing { left }),
        }
    }
}

/// A payload under construction.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Appends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends a byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Appends a 16-bit number.
    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_ne_bytes());
    }

    /// Appends a 32-bit number.
    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_ne_bytes());
    }

    /// Appends a 64-bit number.
    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_ne_bytes());
    }

    /// Appends `N` zero bytes.
    pub fn padding<const N: usize>(&mut self) {
        self.bytes(&[0; N]);
    }

    /// The finished payload.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_order_and_nothing_is_left() {
        let mut reader = Reader::new(&[1, 2, 0, 3, 0, 0, 0]);
        assert_eq!(reader.u8(), Ok(1));
        assert_eq!(reader.u16(), Ok(u16::from_ne_bytes([2, 0])));
        assert_eq!(reader.u32(), Ok(u32::from_ne_bytes([3, 0, 0, 0])));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn a_number_that_is_cut_short_is_refused() {
        let mut reader = Reader::new(&[0; 7]);
        assert_eq!(reader.u64(), Err(PayloadError::Truncated { needed: 8, left: 7 }));
    }

    #[test]
    fn left_over_bytes_are_refused() {
        assert_eq!(Reader::new(&[0]).finish(), Err(PayloadError::Trailing { left: 1 }));
    }
}
