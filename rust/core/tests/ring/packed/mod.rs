//! The packed virtqueue, tried by a driver that shares no code with it.

mod bytes;
mod double_fetch;
mod driver;
mod malformed;
mod model;
mod notifications;
mod order;
