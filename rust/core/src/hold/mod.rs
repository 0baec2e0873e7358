//! A relay that keeps a front-end's connection while back-ends come and go.
//!
//! ```text
//!   front-end <--messages--> relay <--messages--> back-end (dies, another comes)
//!       |                      |                      |
//!       |                      +-- what was told      |
//!       +---------- shared memory, eventfds ----------+
//! ```
//!
//! Laws:
//!
//! * Only messages pass here. Guest memory is never mapped, and requests never seen.
//! * What the front-end told the back-end, and the back-end took, is kept as it came: for the next
//!   back-end, which is told it in the order in which QEMU says it when it reconnects.
//! * A message is kept until it is answered. One that a back-end died over is put to the next one.
//! * What was in flight stands in the record of requests in flight. A front-end that keeps none
//!   has it kept here.
//! * Where a service manager keeps descriptors it has all of that too, for the next keeper, before the
//!   back-end hears of it.
//! * Whatever is kept is bounded: the last of each kind, for each vring, and each region.
//!
//! Source: QEMU "Vhost-user Protocol", "Inflight I/O tracking" and "Front-end message types".

mod backend;
mod channel;
mod failure;
mod kept;
mod parcel;
mod record;
mod regions;
mod relay;
mod store;
mod stored;
mod told;
mod vring;
mod wait;

pub use failure::Failure;
pub use relay::{Event, Relay};
