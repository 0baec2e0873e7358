//! Translations of I/O virtual addresses: told by the front-end, taken away, and asked for.
//!
//! An invalidation is acknowledged when nothing is looked up with the translation any more: each
//! queue's lock was held after the table was changed. Requests that the device has by then go on in
//! the memory that they were given, as they do in the kernel's vhost and in DPDK: a driver must not
//! unmap a buffer that it has not got back.

use std::os::fd::AsFd;

use super::rings::held_up;
use super::session::Session;
use crate::address::Iova;
use crate::backend::channel::{Answer, Wanted};
use crate::backend::event::Event;
use crate::connection::{IotlbChange, Refusal};
use crate::memory::{Permission, Translation};
use crate::wire::ProtocolFeatures;
use crate::worker::{HeldUp, QueueCell};

impl Session<'_> {
    /// Carries out an IOTLB_MSG.
    pub(super) fn change_translations(&mut self, change: IotlbChange) -> Result<(), Refusal> {
        match change {
            IotlbChange::Update { iova, size, to, read, write } => {
                let translation = Translation::new(iova, size, to.0, Permission { read, write });
                let translation = translation.map_err(|e| Refusal(format!("IOTLB_MSG: {e}")))?;
                self.settle_addressing("IOTLB_MSG")?;
                if !self.memory.has_target(to.0, size) {
                    return Err(Refusal(format!(
                        "IOTLB_MSG: the translation of {size:#x} bytes at {iova} leads to {to}, and \
                         not all of that is in guest memory"
                    )));
                }
                let replaced = self.iotlb.update(translation);
                let (first, last) = translation.range();
                if replaced {
                    self.lose_translations(first, last)?;
                }
                self.for_each_queue("IOTLB_MSG", QueueCell::translations_came)
            }
            IotlbChange::Invalidate { first, last } => {
                self.iotlb.invalidate(first, last);
                self.lose_translations(first, last)
            }
        }
    }

    /// Returns when nothing uses the translations from `first` to `last` that were taken away.
    fn lose_translations(&self, first: Iova, last: Iova) -> Result<(), Refusal> {
        self.for_each_queue("IOTLB_MSG", |queue| {
            if !queue.lose_translations(first, last)? {
                let error = "the translation of its addresses was taken away".to_owned();
                self.event(Event::QueueBroken { queue: queue.index(), error });
            }
            Ok(())
        })
    }

    /// Does the same with all queues; an error is that of the last that is held up.
    fn for_each_queue(
        &self,
        message: &str,
        change: impl Fn(&QueueCell) -> Result<(), HeldUp>,
    ) -> Result<(), Refusal> {
        let mut all = Ok(());
        for queue in self.queues() {
            if let Err(HeldUp) = change(queue) {
                all = Err(held_up(message, queue.index()));
            }
        }
        all
    }

    /// Forgets all translations when no ring is started: nobody tells any more which of them are taken
    /// away.
    pub(super) fn forget_translations(&mut self) {
        if self.queues().next().is_none() && !self.iotlb.is_empty() {
            self.iotlb.clear();
        }
    }

    /// Asks for what queues wait for, as far as the front-end leaves room, and takes its answers.
    pub(super) fn ask_for_translations(&mut self, wanted: Vec<Wanted>) {
        self.channel.want(wanted);
        match self.channel.answers() {
            Ok(answers) => self.answers.extend(answers),
            Err(why) => self.event(Event::Refused(why)),
        }
        let protocol = self.connection.protocol_features();
        let acknowledged = protocol.contains(ProtocolFeatures::REPLY_ACK);
        let wake = self.shared().wake.as_fd();
        if let Err(why) = self.channel.ask(wake, acknowledged) {
            self.event(Event::Refused(why));
        }
        self.settle_answers();
    }

    /// Tells the queues which translations there are not. An acknowledgement says that the translation
    /// was told, on the main socket: so nothing is known before all that has come there was read.
    pub(super) fn settle_answers(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        let all_read = !self.stream.has_arrived();
        let (known, unknown): (Vec<Answer>, Vec<Answer>) =
            std::mem::take(&mut self.answers).into_iter().partition(|a| all_read || !a.told);
        self.answers = unknown;
        for Answer { wanted: Wanted { queue, question, miss }, .. } in known {
            let Some(queue) = self.started(queue) else { continue };
            if queue.translation_failed(question, miss) == Err(HeldUp) {
                self.event(Event::HeldUp { queue: queue.index() });
            }
        }
    }
}
