//! What goes around a device's state on its way: what it is of, in which version, and whether it is
//! whole.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | `VHUSTATE` |
//! | 8 | 4 | version of this envelope: 1 |
//! | 12 | 4 | device type: VIRTIO 1.3, "Device Types" |
//! | 16 | 4 | version of the device's own form |
//! | 20 | 4 | bytes of its name, N |
//! | 24 | 8 | bytes of the state, S |
//! | 32 | 4 | CRC-32 of bytes 0 to 31, the name and the state |
//! | 36 | N | name of the device's form, UTF-8 |
//! | 36 + N | S | state |
//!
//! Numbers are little endian. Nothing follows. Whoever wrote it is not trusted: each field is
//! checked before the device sees a byte.

use std::fmt;

use super::crc::crc32;
use crate::device::StateForm;

/// Bytes before the name.
pub(super) const HEAD: usize = 36;

/// The most bytes of a state. It is held in memory until it is known to be whole, and what a
/// device keeps of its driver is small: a front-end must not be able to ask for all memory.
pub const MOST_BYTES: u64 = 256 << 20;

/// The most bytes of a name.
const MOST_NAME: u32 = 255;

const MAGIC: [u8; 8] = *b"VHUSTATE";
const VERSION: u32 = 1;

/// Why a state does not fit the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// No byte of it came.
    Nothing,
    /// It is not one of ours.
    NotOurs,
    /// The envelope is of a version that is not known here.
    Envelope(u32),
    /// It is a state of another device type.
    DeviceType { is: u32, wanted: u32 },
    /// It is a state of another device.
    Device { is: String, wanted: String },
    /// It was saved by a newer version of the device.
    Newer { is: u32, known: u32 },
    /// More bytes than a state or a name has.
    TooLong { what: &'static str, bytes: u64, most: u64 },
    /// It ends too early.
    CutShort { got: u64, wanted: u64 },
    /// Something follows it.
    Trailing { wanted: u64 },
    /// It was damaged.
    Damaged { sum: u32, wanted: u32 },
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("not a byte came"),
            Self::NotOurs => f.write_str(
                "it does not begin with VHUSTATE: another kind of back-end has saved it",
            ),
            Self::Envelope(version) => write!(
                f,
                "its envelope has version {version}, {VERSION} is known here: the back-end that \
                 saved it is newer"
            ),
            Self::DeviceType { is, wanted } => {
                write!(f, "it is of device type {is}, this device is of type {wanted}")
            }
            Self::Device { is, wanted } => write!(f, "it is of a {is:?}, this is a {wanted:?}"),
            Self::Newer { is, known } => write!(
                f,
                "it has version {is} of the device's own form, {known} and older are known here: \
                 the device that saved it is newer"
            ),
            Self::TooLong { what, bytes, most } => {
                write!(f, "{bytes} bytes of {what}, {most} at most")
            }
            Self::CutShort { got, wanted } => {
                write!(f, "it was cut short: {got} bytes of {wanted} came")
            }
            Self::Trailing { wanted } => write!(f, "more follows its {wanted} bytes"),
            Self::Damaged { sum, wanted } => {
                write!(f, "it was damaged: its checksum is {sum:#010x}, not {wanted:#010x}")
            }
        }
    }
}

/// Puts the state of a device of type `virtio_id` into its envelope.
pub(super) fn seal(virtio_id: u32, form: &StateForm, state: &[u8]) -> Result<Vec<u8>, Unfit> {
    check_len("state", state.len() as u64, MOST_BYTES)?;
    check_len("a name", form.name.len() as u64, MOST_NAME.into())?;
    let mut sealed = Vec::with_capacity(HEAD + form.name.len() + state.len());
    sealed.extend_from_slice(&MAGIC);
    for field in [VERSION, virtio_id, form.version, form.name.len() as u32] {
        sealed.extend_from_slice(&field.to_le_bytes());
    }
    sealed.extend_from_slice(&(state.len() as u64).to_le_bytes());
    let sum = crc32(&[&sealed, form.name.as_bytes(), state]);
    sealed.extend_from_slice(&sum.to_le_bytes());
    sealed.extend_from_slice(form.name.as_bytes());
    sealed.extend_from_slice(state);
    Ok(sealed)
}

/// How many bytes the envelope that begins with `head` has in all, the state within. What can be
/// told to be unfit by the head is told now.
pub(super) fn whole_len(head: &[u8; HEAD], virtio_id: u32) -> Result<u64, Unfit> {
    if head[..8] != MAGIC {
        return Err(Unfit::NotOurs);
    }
    match u32_at(head, 8) {
        VERSION => {}
        other => return Err(Unfit::Envelope(other)),
    }
    let (is, wanted) = (u32_at(head, 12), virtio_id);
    if is != wanted {
        return Err(Unfit::DeviceType { is, wanted });
    }
    let (name, state) = (u64::from(u32_at(head, 20)), u64_at(head, 24));
    check_len("a name", name, MOST_NAME.into())?;
    check_len("state", state, MOST_BYTES)?;
    Ok(HEAD as u64 + name + state)
}

/// Takes a state out of its envelope: the version of its form, and its bytes.
pub(super) fn open<'a>(
    sealed: &'a [u8],
    virtio_id: u32,
    form: &StateForm,
) -> Result<(u32, &'a [u8]), Unfit> {
    if sealed.is_empty() {
        return Err(Unfit::Nothing);
    }
    let got = sealed.len() as u64;
    let Some(head) = sealed.first_chunk::<HEAD>() else {
        return Err(Unfit::CutShort { got, wanted: HEAD as u64 });
    };
    let wanted = whole_len(head, virtio_id)?;
    match got {
        _ if got < wanted => return Err(Unfit::CutShort { got, wanted }),
        _ if got > wanted => return Err(Unfit::Trailing { wanted }),
        _ => {}
    }
    let (name, state) = sealed[HEAD..].split_at(u32_at(head, 20) as usize);
    let (sum, wanted) = (crc32(&[&head[..HEAD - 4], name, state]), u32_at(head, 32));
    if sum != wanted {
        return Err(Unfit::Damaged { sum, wanted });
    }
    if name != form.name.as_bytes() {
        let is = String::from_utf8_lossy(name).into_owned();
        return Err(Unfit::Device { is, wanted: form.name.clone() });
    }
    let (is, known) = (u32_at(head, 16), form.version);
    if is > known { Err(Unfit::Newer { is, known }) } else { Ok((is, state)) }
}

fn check_len(what: &'static str, bytes: u64, most: u64) -> Result<(), Unfit> {
    if bytes > most { Err(Unfit::TooLong { what, bytes, most }) } else { Ok(()) }
}

fn u32_at(head: &[u8; HEAD], at: usize) -> u32 {
    u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

fn u64_at(head: &[u8; HEAD], at: usize) -> u64 {
    u64::from(u32_at(head, at)) | u64::from(u32_at(head, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(name: &str, version: u32) -> StateForm {
        StateForm { name: name.to_owned(), version }
    }

    /// `ab` of version 3 of a device "Dev", type 26. The sum was computed with Python's `zlib.crc32`.
    const SEALED: &[u8] = b"VHUSTATE\x01\0\0\0\x1a\0\0\0\x03\0\0\0\x03\0\0\0\x02\0\0\0\0\0\0\0\
        \xc0\x65\xc5\x69Devab";

    #[test]
    fn the_bytes_are_those_of_the_table() {
        assert_eq!(seal(26, &form("Dev", 3), b"ab").unwrap(), SEALED);
        assert_eq!(open(SEALED, 26, &form("Dev", 3)), Ok((3, &b"ab"[..])));
    }

    #[test]
    fn an_older_version_is_the_devices_to_take_and_a_newer_one_is_refused() {
        assert_eq!(open(SEALED, 26, &form("Dev", 9)), Ok((3, &b"ab"[..])));
        assert_eq!(open(SEALED, 26, &form("Dev", 2)), Err(Unfit::Newer { is: 3, known: 2 }));
    }

    #[test]
    fn what_was_cut_short_or_has_more_behind_it_is_refused() {
        for len in 0..SEALED.len() {
            let opened = open(&SEALED[..len], 26, &form("Dev", 3));
            let told = matches!(opened, Err(Unfit::Nothing)) && len == 0
                || matches!(opened, Err(Unfit::CutShort { got, .. }) if got == len as u64);
            assert!(told, "{len}: {opened:?}");
        }
        let more = [SEALED, &[0]].concat();
        assert_eq!(open(&more, 26, &form("Dev", 3)), Err(Unfit::Trailing { wanted: 41 }));
    }

    #[test]
    fn no_changed_bit_goes_unseen() {
        for at in 0..SEALED.len() * 8 {
            let mut changed = SEALED.to_vec();
            changed[at / 8] ^= 1 << (at % 8);
            open(&changed, 26, &form("Dev", 3)).unwrap_err();
        }
    }

    #[test]
    fn another_device_or_type_is_named() {
        let of =
            |opened: Result<_, Unfit>| opened.map(|_: (u32, &[u8])| ()).unwrap_err().to_string();
        assert_eq!(
            of(open(SEALED, 26, &form("Other", 3))),
            "it is of a \"Dev\", this is a \"Other\""
        );
        assert_eq!(
            of(open(SEALED, 2, &form("Dev", 3))),
            "it is of device type 26, this device is of type 2"
        );
        let mut newer = SEALED.to_vec();
        newer[8] = 2;
        assert!(of(open(&newer, 26, &form("Dev", 3))).contains("version 2, 1 is known here"));
        let other = [&b"QEVM"[..], &[0; 60]].concat();
        assert!(of(open(&other, 26, &form("Dev", 3))).contains("another kind of back-end"));
    }

    #[test]
    fn a_length_that_no_state_has_is_refused_by_the_head_alone() {
        let mut head: [u8; HEAD] = *SEALED.first_chunk().unwrap();
        head[24..32].copy_from_slice(&(MOST_BYTES + 1).to_le_bytes());
        let most = MOST_BYTES;
        let too_long = Unfit::TooLong { what: "state", bytes: most + 1, most };
        assert_eq!(whole_len(&head, 26), Err(too_long));
        head[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(whole_len(&head, 26).is_err());
        head[20..32].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let too_long = Unfit::TooLong { what: "a name", bytes: 256, most: 255 };
        assert_eq!(whole_len(&head, 26), Err(too_long));
    }
}
