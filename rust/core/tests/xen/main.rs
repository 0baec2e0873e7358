//! Xen front-ends served by a running back-end, on a hypervisor of memory files.

#[path = "../support/mod.rs"]
#[allow(dead_code)] // Each test program uses a part of it.
mod support;

/// What every device here says of itself: one queue, and no configuration.
macro_rules! one_queue {
    () => {
        fn virtio_id(&self) -> u32 {
            4
        }
        fn features(&self) -> u64 {
            0
        }
        fn num_queues(&self) -> u16 {
            1
        }
        fn max_queue_size(&self) -> u16 {
            256
        }
        fn config_len(&self) -> usize {
            0
        }
        fn read_config(&self, _offset: usize, _out: &mut [u8]) {}
    };
}

mod addresses;
mod answers;
mod beyond;
mod blocks;
mod calls;
mod conversation;
mod copies;
mod descriptors;
mod device;
mod faults;
mod frames;
mod gate;
mod grants;
mod guest;
mod hypervisor;
mod late;
mod lifetimes;
mod limits;
mod lost;
mod raw;
mod receiving;
mod regions;
mod replays;
mod rings;
mod severed;
mod slow;
mod tables;
