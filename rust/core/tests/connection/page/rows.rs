//! What no table of the core knows: the remarks on messages and features, and the tests that show
//! what their rows say.
//!
//! A test is named by its file, from the top of the repository, and its own name. What is refused
//! needs no line here: its row names the tests that try all that is refused.

use vhost_user_core::wire::features::{
    ACCESS_PLATFORM, EVENT_IDX, IN_ORDER, INDIRECT_DESC, LOG_ALL, NOTIFICATION_DATA,
    PROTOCOL_FEATURES, RING_PACKED, RING_RESET, VERSION_1,
};
use vhost_user_core::wire::{BackendMessage, FrontendMessage, ProtocolFeatures};

use BackendMessage as B;
use FrontendMessage as M;
use ProtocolFeatures as P;

/// A row's subject, a remark (empty: nothing is special) and the row's tests.
pub(super) type Line<T> = (T, &'static str, &'static [&'static str]);

/// Tries each message of [`REFUSED`] after all that is offered was accepted.
///
/// [`REFUSED`]: super::super::negotiation::REFUSED
pub(super) const REFUSED_MESSAGES: &str = "rust/core/tests/connection/negotiation.rs::\
     messages_of_features_that_are_never_offered_are_refused_after_full_negotiation";
/// Tries each bit that is not offered.
pub(super) const REFUSED_FEATURES: &str = "rust/core/tests/connection/negotiation.rs::\
     features_that_were_not_offered_are_refused_and_the_earlier_ones_stay";
/// Tries each protocol feature that is not offered.
pub(super) const REFUSED_PROTOCOL_FEATURES: &str = "rust/core/tests/connection/negotiation.rs::protocol_features_that_were_not_offered_are_refused";
/// Looks for messages in the sources of the back-end.
pub(super) const NOT_SENT: &str = "rust/core/tests/connection/page/mod.rs::\
     the_page_says_what_the_core_does_and_names_the_test_of_each_row";

/// The messages that are carried out, and remarks on those that are not.
pub(super) const MESSAGES: &[Line<FrontendMessage>] = &[
    (M::GetFeatures, "", &["tests/wire/test_bytes.py::test_features_are_asked_for_and_answered"]),
    (
        M::SetFeatures,
        "VERSION_1 is required, but [not of disks](#drivers-of-the-legacy-interface); but for \
         LOG_ALL no change while rings run. A bit of the device type that was not offered is [ignored, if it does no \
         harm](#bits-that-were-not-offered)",
        &[
            "rust/core/tests/connection/negotiation.rs::\
             features_may_be_repeated_but_not_changed_while_a_ring_is_started",
            "rust/core/tests/connection/log.rs::no_feature_but_log_all_changes_while_a_ring_runs",
        ],
    ),
    (
        M::SetOwner,
        "may be repeated",
        &["tests/hostile/test_negotiation.py::test_the_owner_may_be_set_twice"],
    ),
    (
        M::ResetOwner,
        "as a mark only, as the specification advises",
        &["rust/core/tests/connection/negotiation.rs::\
             ownership_may_be_taken_and_given_back_any_number_of_times"],
    ),
    (
        M::SetMemTable,
        "up to 32 regions, also while rings run: requests in flight keep the former table, and a ring \
         that has no place in the new one breaks; answers when nothing uses the regions of Xen \
         domains that it drops",
        &["tests/hostile/test_orders.py::test_the_memory_table_may_be_replaced_while_rings_run"],
    ),
    (
        M::SetLogBase,
        "at any time, and again: answered, by the payload of the request, when the former log is not \
         used any more. A log that cannot be mapped closes the connection, since writes would be \
         taken for logged. [The dirty log](#the-dirty-log)",
        &[
            "rust/core/tests/backend/dirty_log.rs::\
             a_log_is_not_used_any_more_when_the_next_one_is_answered",
            "rust/core/tests/backend/dirty_log.rs::\
             a_log_that_cannot_be_mapped_ends_the_connection_and_says_why",
        ],
    ),
    (
        M::SetLogFd,
        "an eventfd, a pipe or a socket",
        &["rust/core/tests/backend/dirty_log.rs::\
             whoever_gave_an_eventfd_for_the_log_is_told_when_something_was_noted"],
    ),
    (
        M::SetVringNum,
        "a power of two, up to the device's",
        &["tests/hostile/test_queue_setup.py::test_a_ring_is_as_long_as_the_front_end_says"],
    ),
    (
        M::SetVringAddr,
        "with its own addresses for a started ring too, which switches whether writes to the ring are \
         logged",
        &[
            "rust/core/tests/connection/vrings.rs::\
             a_started_ring_cannot_be_configured_but_for_its_own_addresses",
            "rust/core/tests/connection/log.rs::logging_is_switched_on_while_a_ring_runs",
        ],
    ),
    (
        M::SetVringBase,
        "16 bits. A ring that starts goes on from the used index in its memory, with a record if \
         another one was named, unless the driver's index does not fit that: then from the index that \
         was named. [After a crash](#after-a-back-end-that-has-crashed)",
        &["tests/hostile/test_split_ring.py::test_the_index_wraps_at_sixteen_bits"],
    ),
    (
        M::GetVringBase,
        "answers when the requests in flight are done, or have failed as they were late (`drain=`). \
         With a record of requests in flight late ones stay in it instead, and come again when the \
         ring starts. With GET_VRING_BASE_INFLIGHT reads that a disk keeps are [not waited \
         for](#stopping-without-waiting). Buffers that the device keeps without looking at them go back unused, and the \
         base steps back over them",
        &["tests/hostile/test_life_cycle.py::test_the_base_is_answered_once_nothing_is_in_flight"],
    ),
    (
        M::SetVringKick,
        "an eventfd, a pipe or a socket; starts the ring; again, it replaces the descriptor. Without \
         a descriptor the ring is looked at every millisecond",
        &[
            "rust/core/tests/connection/vrings.rs::\
             a_kick_starts_a_complete_ring_with_all_that_was_said",
            "tests/hostile/test_queue_setup.py::test_a_ring_without_a_kick_descriptor_is_polled",
        ],
    ),
    (
        M::SetVringCall,
        "an eventfd, a pipe or a socket. Takes effect before the answer, whatever the device does; \
         the new one is signalled once, as the driver may have missed a call",
        &["rust/core/tests/connection/vrings.rs::\
             call_and_error_descriptors_may_come_before_anything_else_and_at_any_time"],
    ),
    (
        M::SetVringErr,
        "as SET_VRING_CALL; signalled when the ring breaks",
        &["rust/core/tests/backend/serving.rs::\
             a_broken_ring_leaves_the_others_alone_and_comes_back_after_a_stop"],
    ),
    (
        M::GetProtocolFeatures,
        "",
        &["rust/core/tests/connection/negotiation.rs::\
             protocol_features_are_readable_before_anything_else"],
    ),
    (
        M::SetProtocolFeatures,
        "",
        &["rust/core/tests/connection/negotiation.rs::\
             protocol_features_may_be_set_without_being_read_and_again"],
    ),
    (
        M::GetQueueNum,
        "of a network device it answers pairs of queues, as QEMU counts",
        &["rust/core/tests/connection/negotiation.rs::\
             a_network_device_answers_how_many_pairs_of_queues_it_has"],
    ),
    (
        M::SetVringEnable,
        "takes effect before the answer, whatever the device does: nothing is taken from a ring that \
         is disabled, and what the device has of it is answered as ever",
        &[
            "rust/core/tests/connection/vrings.rs::\
             a_ring_is_enabled_and_disabled_before_and_after_its_start",
            "tests/hostile/test_orders.py::\
             test_a_disabled_ring_takes_nothing_until_it_is_enabled_again",
        ],
    ),
    (
        M::SetBackendReqFd,
        "",
        &["rust/core/tests/connection/device.rs::\
             the_back_ends_channel_comes_with_or_without_a_payload_and_any_number_of_times"],
    ),
    (
        M::IotlbMsg,
        "[An IOMMU of the guest](#an-iommu-of-the-guest)",
        &[
            "rust/core/tests/connection/iotlb.rs::a_translation_is_passed_on_with_what_it_allows",
            "rust/core/tests/backend/iommu.rs::an_invalidation_counts_before_it_is_answered",
        ],
    ),
    (
        M::GetConfig,
        "zeroes past the end of the space; answered from `config` where `read_config` fails",
        &["rust/core/tests/connection/device.rs::\
             configuration_is_read_at_any_offset_and_zero_past_its_end"],
    ),
    (
        M::SetConfig,
        "what the device takes",
        &["rust/core/tests/connection/device.rs::a_write_of_configuration_must_lie_inside_it"],
    ),
    (
        M::PostcopyAdvise,
        "the descriptor hears of the kernel's own faults too. [Postcopy](#postcopy)",
        &["rust/core/tests/backend/postcopy.rs::\
             postcopy_that_was_advised_and_never_came_changes_nothing"],
    ),
    (
        M::PostcopyListen,
        "after POSTCOPY_ADVISE, while no region is mapped. SET_MEM_TABLE and ADD_MEM_REG are then \
         answered with the regions at the back-end's own addresses; no ring starts before they are \
         acknowledged by the same message with 8 bytes of zeroes",
        &[
            "rust/core/tests/backend/postcopy.rs::\
             nothing_is_touched_before_the_front_end_answers_for_the_pages",
            "rust/core/tests/connection/postcopy.rs::\
             regions_are_answered_at_our_own_addresses_and_are_memory_once_acknowledged",
        ],
    ),
    (
        M::PostcopyEnd,
        "",
        &["rust/core/tests/backend/postcopy.rs::after_the_end_nobody_is_asked_for_pages"],
    ),
    (
        M::GetInflightFd,
        "a new, empty memory file that nobody can cut, with room for rings of the greatest length \
         that the device takes, whatever length was asked for: QEMU 10 asks for 128 entries and runs \
         rings of 1024. More queues than the device has: a size of 0 and no descriptor",
        &["rust/core/tests/backend/inflight.rs::\
             a_record_is_made_for_the_largest_ring_whatever_the_front_end_asks"],
    ),
    (
        M::SetInflightFd,
        "before a ring is started. The record is looked at when a ring starts; one that cannot be \
         that ring's breaks it, and nothing of it is followed. [After a \
         crash](#after-a-back-end-that-has-crashed)",
        &[
            "rust/core/tests/backend/inflight.rs::\
             what_was_not_given_back_comes_again_first_and_in_order",
            "rust/core/tests/backend/inflight.rs::a_record_of_nonsense_breaks_its_queue_and_no_more",
        ],
    ),
    (
        M::ResetDevice,
        "stops and disables all rings, as GET_VRING_BASE stops one, and forgets them; features and \
         memory stay. A device that was reset and not touched since is not reset again",
        &["rust/core/tests/connection/device.rs::\
             a_reset_stops_and_forgets_the_rings_and_keeps_memory_and_features"],
    ),
    (
        M::GetMaxMemSlots,
        "509",
        &["tests/hostile/test_memory.py::test_one_slot_more_than_announced_is_refused"],
    ),
    (
        M::AddMemReg,
        "",
        &["rust/core/tests/connection/memory.rs::\
             regions_up_to_the_promised_number_are_taken_and_one_more_is_not"],
    ),
    (
        M::RemMemReg,
        "answers when no request uses the region any more, or it was taken from those that are late \
         (`drain=`); a ring in it breaks",
        &["tests/hostile/test_memory.py::test_a_slot_is_gone_once_its_removal_is_acknowledged"],
    ),
    (
        M::SetStatus,
        "0 stops and disables the rings, which keep their bases; the device is reset too, unless the \
         front-end has RESET_DEVICE to say so",
        &["rust/core/tests/connection/device.rs::the_status_is_what_was_written"],
    ),
    (
        M::SetDeviceStateFd,
        "while no ring is started, through the end of a pipe or of a Unix stream socket; answered at \
         once with 0x100, and the state travels beside further messages. One that is not over gives \
         way to the next. [A device's own state](#a-devices-own-state)",
        &[
            "rust/core/tests/backend/state.rs::\
             what_one_back_end_saves_another_loads_before_it_knows_memory_and_features",
            "rust/core/tests/connection/transfer.rs::\
             no_state_is_transferred_while_a_ring_is_started",
        ],
    ),
    (
        M::CheckDeviceState,
        "answers when the transfer is over, and waits for it as long as the front-end does",
        &["rust/core/tests/backend/state.rs::\
             a_check_ends_with_its_front_end_though_the_state_does_not_end"],
    ),
    (M::GetStatus, "", &["rust/core/tests/connection/device.rs::the_status_is_what_was_written"]),
    (
        M::SetXenMmap,
        "only with XEN_MMAP, which is not offered by default; of the design before the one that was \
         merged. With XEN_MMAP accepted, 41 is this message in every design, and refused unless \
         `--xen=message` or `auto`",
        &["rust/core/tests/connection/set_xen_mmap.rs::\
             number_41_is_set_xen_mmap_in_every_design_and_answered_only_if_asked"],
    ),
];

/// The messages to the front-end that are sent, and remarks on others.
pub(super) const SENT: &[Line<BackendMessage>] = &[
    (
        B::IotlbMsg,
        "a miss, when a queue lacks a translation; acknowledged if REPLY_ACK was accepted, and never \
         waited with",
        &[
            "rust/core/tests/backend/iommu.rs::rings_and_buffers_are_asked_for_and_requests_answered",
        ],
    ),
    (
        B::ConfigChangeMsg,
        "after `resize`, `notify_config`, and when a ring breaks; never waited with: where the channel is \
     full, the front-end has one to read yet",
        &["rust/core/tests/backend/serving.rs::the_front_end_is_told_of_a_changed_configuration"],
    ),
];

/// The protocol features that are offered, and remarks on others.
pub(super) const PROTOCOL: &[Line<ProtocolFeatures>] = &[
    (
        P::MQ,
        "",
        &["rust/core/tests/connection/negotiation.rs::\
             a_network_device_answers_how_many_pairs_of_queues_it_has"],
    ),
    (
        P::LOG_SHMFD,
        "not with `--xen`. [The dirty log](#the-dirty-log)",
        &["rust/core/tests/backend/dirty_log.rs::\
             a_copy_made_while_the_device_writes_is_complete_once_the_rings_have_stopped"],
    ),
    (
        P::REPLY_ACK,
        "acknowledgements are given before it was accepted too",
        &[
            "tests/wire/test_bytes.py::\
             test_an_acknowledgement_is_a_number_and_loses_the_need_reply_flag",
            "rust/core/tests/connection/frames.rs::\
             an_acknowledgement_is_given_also_before_reply_ack_was_accepted",
        ],
    ),
    (
        P::BACKEND_REQ,
        "",
        &["rust/core/tests/connection/device.rs::\
             the_back_ends_channel_comes_with_or_without_a_payload_and_any_number_of_times"],
    ),
    (
        P::PAGEFAULT,
        "if the kernel lets this process catch its page faults: [postcopy](#postcopy)",
        &["rust/core/tests/backend/postcopy.rs::\
             each_page_that_is_missed_is_waited_for_and_the_request_is_served"],
    ),
    (
        P::CONFIG,
        "if the device has a configuration space",
        &["tests/python/test_config.py::\
             test_a_network_device_counts_pairs_and_offers_config_only_if_it_has_one"],
    ),
    (
        P::INFLIGHT_SHMFD,
        "[After a crash](#after-a-back-end-that-has-crashed)",
        &["tests/python/test_recovery.py::\
             test_a_killed_back_end_loses_no_request_and_repeats_no_answer"],
    ),
    (
        P::RESET_DEVICE,
        "",
        &["rust/core/tests/connection/resets.rs::\
             reset_device_resets_once_until_something_is_said_again"],
    ),
    (
        P::CONFIGURE_MEM_SLOTS,
        "",
        &["tests/hostile/test_orders.py::test_the_order_of_qemu_with_memory_slots"],
    ),
    (
        P::STATUS,
        "",
        &["rust/core/tests/connection/device.rs::\
             features_ok_does_not_stick_without_the_required_features"],
    ),
    (
        P::DEVICE_STATE,
        "if the device has [a state of its own](#a-devices-own-state): disks with a write cache, and \
         classes with `save` and `load`",
        &["rust/core/tests/backend/state.rs::a_device_without_a_state_offers_no_transfer"],
    ),
    (
        P::GET_VRING_BASE_INFLIGHT,
        "not with `--xen`. [Stopping without waiting](#stopping-without-waiting)",
        &[
            "rust/core/tests/backend/suspend.rs::\
             requests_that_may_be_left_are_not_waited_for_and_come_again_in_order",
            "rust/core/tests/backend/suspend.rs::\
             a_request_that_may_not_be_left_is_waited_for_and_those_beside_it_are_not",
        ],
    ),
    (
        P::GPA_ADDRESSES,
        "addresses of rings are the guest's, and those of regions in the front-end do not matter",
        &["rust/core/tests/backend/guest_addresses.rs::\
             rings_are_found_by_guest_addresses_though_the_regions_have_no_other"],
    ),
    (
        P::XEN_MMAP,
        "[xen.md](xen.md)",
        &["rust/core/tests/connection/xen.rs::designs_are_told_apart_by_the_bytes_of_a_region"],
    ),
];

/// The features of rings and transport that are offered, and remarks on others.
pub(super) const FEATURES: &[Line<u64>] = &[
    (1 << 27, "requests may lie in descriptors as they like all the same", &[]),
    (
        INDIRECT_DESC,
        "",
        &[
            "tests/hostile/test_indirect_tables.py::\
             test_an_indirect_table_may_be_longer_than_the_ring",
            "rust/core/tests/ring/malformed.rs::\
             an_indirect_descriptor_that_was_not_negotiated_is_refused",
        ],
    ),
    (
        EVENT_IDX,
        "",
        &["rust/core/tests/ring/notifications.rs::no_wake_up_is_lost_with_event_indices"],
    ),
    (
        LOG_ALL,
        "vhost's own; not with `--xen`. It may change while rings run",
        &["rust/core/tests/connection/log.rs::logging_is_switched_on_while_a_ring_runs"],
    ),
    (
        PROTOCOL_FEATURES,
        "vhost's own: without it rings are enabled from their start",
        &["rust/core/tests/connection/negotiation.rs::\
             without_bit_30_all_rings_are_enabled_now_and_at_each_start"],
    ),
    (
        ACCESS_PLATFORM,
        "not together with XEN_MMAP. [An IOMMU of the guest](#an-iommu-of-the-guest)",
        &["tests/guest/test_iommu.py::test_a_disk_behind_an_iommu_is_right_byte_for_byte"],
    ),
    (
        VERSION_1,
        "required, but [not of disks](#drivers-of-the-legacy-interface)",
        &[
            "rust/core/tests/connection/negotiation.rs::features_without_version_1_are_refused",
            "rust/core/tests/connection/negotiation.rs::a_transitional_device_needs_no_version_1",
        ],
    ),
    (
        RING_PACKED,
        "with VERSION_1 only",
        &[
            "rust/core/tests/ring/packed/model.rs::\
             any_order_of_steps_on_a_packed_ring_goes_as_the_standard_says",
            "rust/core/tests/backend/formats.rs::\
             a_stopped_ring_says_where_it_stands_and_goes_on_there",
            "rust/core/tests/connection/vrings.rs::\
             a_packed_ring_has_a_base_of_two_halves_any_size_and_parts_of_its_own",
            "rust/core/tests/xen/packed.rs::\
             the_parts_of_a_packed_ring_have_all_their_pages_and_no_more",
        ],
    ),
    (
        IN_ORDER,
        "each buffer has a used element of its own; answers that come early wait for their turn",
        &["rust/core/tests/backend/formats.rs::\
             requests_answered_in_any_order_come_back_as_the_driver_wants_them"],
    ),
    (NOTIFICATION_DATA, "a kick through a descriptor carries no data", &[]),
    (
        RING_RESET,
        "but network devices have it: the reset of one ring comes as GET_VRING_BASE and a new start",
        &[],
    ),
];
