//! Arguments of methods: an error about one names it, says what it is and shows what was given. A
//! `TypeError` tells of another type, a `ValueError` of a number that is out of range.

use std::os::fd::RawFd;
use std::path::PathBuf;

use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyString};
use vhost_user_core::frontend::RegionLayout;
use vhost_user_core::frontend::load::{Access, Verify};

/// The longest time to wait: a day.
const MAX_SECONDS: f64 = 86400.0;

/// The longest text that shows an argument.
const MAX_SHOWN: usize = 80;

/// Defines the functions that take arguments of these names.
macro_rules! arguments {
    ($($name:ident: $kind:ty = $what:literal;)*) => {
        $(
            #[doc = concat!("Where ", $what, ".")]
            pub(crate) fn $name(value: &Bound<'_, PyAny>) -> PyResult<$kind> {
                extract(value, $what)
            }
        )*
    };
}

arguments! {
    address: u64 = "address is a number of 64 bits";
    bits: u64 = "bits is a number of 64 bits";
    block_bytes: u32 = "block_bytes is a number of bytes below 4 GiB";
    byte: u8 = "byte is 0 to 255";
    config_length: u32 = "length is a number of bytes below 4 GiB";
    config_offset: u32 = "offset is a number of bytes below 4 GiB";
    count_at: Option<u64> = "count_at is an offset into the data";
    depth: u16 = "depth is 1 to 32768";
    device_id: Option<u32> = "device_id is a number of 32 bits";
    dirty_log: bool = "dirty_log is True or False";
    driver_queues: u16 = "num_queues is a number of queues, as 2";
    fd: RawFd = "fd is the number of a descriptor";
    in_order: bool = "in_order is True or False";
    inflight: bool = "inflight is True or False";
    iommu: bool = "iommu is True or False";
    length: u64 = "length is a number of bytes";
    max: usize = "max is a number of requests";
    max_buffers: u16 = "max_buffers is 1 to 65535";
    memory: u64 = "memory is a number of bytes";
    memory_length: usize = "length is a number of bytes";
    most: u64 = "most is a number of bytes";
    n: usize = "n is a number of bytes";
    offset: u64 = "offset is a number of bytes";
    on: bool = "on is True or False";
    ops: Option<u64> = "ops is a number of requests";
    packed: bool = "packed is True or False";
    place: Option<u64> = "offset is a number of bytes";
    polling: bool = "polling is True or False";
    queue_size: u16 = "queue_size is a number of entries up to 32768";
    seed: u64 = "seed is a number of 64 bits";
    socket_fd: Option<RawFd> = "fd is the number of a descriptor";
    start: u64 = "start is a number of bytes";
    start_at: Option<u64> = "start is a number of bytes";
    unmap: bool = "unmap is True or False";
    written: Option<u64> = "written is a number of bytes";
    xen: bool = "xen is True or False";
}

/// `socket`, a path.
pub(crate) fn socket(value: &Bound<'_, PyAny>) -> PyResult<Option<PathBuf>> {
    extract(value, "socket is a path")
}

/// `timeout`, in seconds.
pub(crate) fn timeout(value: &Bound<'_, PyAny>) -> PyResult<f64> {
    seconds_of(value, "timeout")
}

/// `warm_up`, in seconds.
pub(crate) fn warm_up(value: &Bound<'_, PyAny>) -> PyResult<f64> {
    seconds_of(value, "warm_up")
}

/// `seconds`, if they are given.
pub(crate) fn seconds(value: &Bound<'_, PyAny>) -> PyResult<Option<f64>> {
    if value.is_none() { Ok(None) } else { seconds_of(value, "seconds").map(Some) }
}

/// `cpus`, processors for threads.
pub(crate) fn cpus(value: &Bound<'_, PyAny>) -> PyResult<Option<Vec<usize>>> {
    let what = "cpus is a list of processor numbers, as [0, 1]";
    if value.is_instance_of::<PyBytes>() || value.is_instance_of::<PyByteArray>() {
        return Err(other_type(value, what));
    }
    extract(value, what)
}

/// `design`, in which a front-end tells of a domain's memory.
pub(crate) fn design(value: &Bound<'_, PyAny>) -> PyResult<RegionLayout> {
    let known = [
        ("merged", RegionLayout::XenMerged),
        ("review", RegionLayout::XenReview),
        ("message", RegionLayout::Plain),
    ];
    one_of(value, "design", known)
}

/// `access`, of a load.
pub(crate) fn access(value: &Bound<'_, PyAny>) -> PyResult<Access> {
    let known = [
        ("read", Access::Read),
        ("write", Access::Write),
        ("randread", Access::RandRead),
        ("randwrite", Access::RandWrite),
    ];
    one_of(value, "access", known)
}

/// `verify`, of a load: which reads are checked.
pub(crate) fn verify(value: &Bound<'_, PyAny>) -> PyResult<Option<Verify>> {
    if value.is_none() {
        return Ok(None);
    }
    let known = [("none", Verify::None), ("sampled", Verify::Sampled), ("all", Verify::All)];
    one_of(value, "verify", known).map(Some)
}

/// The value, or an error that says `what` it is.
fn extract<'py, T>(value: &Bound<'py, PyAny>, what: &str) -> PyResult<T>
where
    T: FromPyObjectOwned<'py, Error = PyErr>,
{
    value.extract::<T>().map_err(|error| {
        if error.is_instance_of::<PyOverflowError>(value.py()) {
            return out_of_range(value, what);
        }
        if error.is_instance_of::<PyTypeError>(value.py()) {
            return other_type(value, what);
        }
        error
    })
}

/// A number of seconds up to a day. Negative ones are none, as of a time that has passed.
fn seconds_of(value: &Bound<'_, PyAny>, name: &str) -> PyResult<f64> {
    let what = format!("{name} is a number of seconds up to {MAX_SECONDS:.0}");
    let seconds = extract::<f64>(value, &what)?;
    if seconds <= MAX_SECONDS { Ok(seconds) } else { Err(out_of_range(value, &what)) }
}

/// What a word stands for.
fn one_of<T: Copy, const N: usize>(
    value: &Bound<'_, PyAny>,
    name: &str,
    known: [(&str, T); N],
) -> PyResult<T> {
    let words = known.map(|(word, _)| format!("'{word}'")).join(", ");
    let what = format!("{name} is one of {words}");
    let Ok(text) = value.cast::<PyString>() else { return Err(other_type(value, &what)) };
    let text = text.to_string_lossy();
    let found = known.iter().find(|(word, _)| *word == text);
    found.map(|&(_, meaning)| meaning).ok_or_else(|| out_of_range(value, &what))
}

fn out_of_range(value: &Bound<'_, PyAny>, what: &str) -> PyErr {
    PyValueError::new_err(format!("{what}, not {}", shown(value)))
}

/// A `TypeError` that says `what` the value is to be.
pub(crate) fn other_type(value: &Bound<'_, PyAny>, what: &str) -> PyErr {
    PyTypeError::new_err(format!("{what}, not {}", shown(value)))
}

/// The value as Python shows it, as far as that is short.
fn shown(value: &Bound<'_, PyAny>) -> String {
    let text = value.repr().map(|text| text.to_string_lossy().into_owned());
    let text = text.unwrap_or_else(|_| "something that cannot be shown".to_owned());
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
