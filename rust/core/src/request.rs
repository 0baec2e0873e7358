//! Requests in the hands of a device.
/// placeholder
#[derive(Debug)]
pub struct Batch;
