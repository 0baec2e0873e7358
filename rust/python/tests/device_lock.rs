//! Runs the tests of the device lock. The extension module itself is only linked against the
//! interpreter that loads it, so that it cannot have tests of its own.

#[path = "../src/device_lock.rs"]
#[allow(unreachable_pub)]
mod device_lock;
