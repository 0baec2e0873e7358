//! What a queue does where its addresses are I/O virtual and the front-end has not told yet what
//! they stand for.
//!
//! Chains that lack a translation are put back into the ring; the front-end is asked for all that
//! they lack, and nothing more is taken from the ring before it has answered. Neither the worker nor
//! its other queues wait for that. A ring whose own parts have no translation stands apart, in
//! memory that no driver sees, and what is answered meanwhile is kept until it has a place.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::queue::{Next, Phase, Queue};
use super::translations::Translations;
use crate::address::Iova;
use crate::memory::{Buffers, Fault, Memory, Miss, Unreachable};
use crate::request::Batch;
use crate::ring::StartError;

/// How often the front-end is asked for what one chain lacks, 512 translations each time. One that
/// lacks some even then is not waited for any longer: its request fails.
const MOST_ROUNDS: u32 = 64;

/// The most translations that a queue asks for at once.
const MOST_ASKED: usize = 512;

impl Queue {
    /// Prepares for a ring whose addresses are translated.
    pub(super) fn translate_from_now_on(&mut self, apart: bool) {
        if self.ring.memory().translates() {
            self.translations = Some(Box::new(Translations { apart, ..Translations::default() }));
        }
    }

    /// Whether the ring has no place in memory.
    #[inline]
    pub(super) fn is_apart(&self) -> bool {
        self.translations.as_ref().is_some_and(|translations| translations.apart)
    }

    // --- the ring ------------------------------------------------------------------------------

    /// Gives a new ring its place, and one that has lost it. `None`: it has it, and was not taken up
    /// yet.
    #[cold]
    pub(super) fn take_place(&mut self) -> Option<Next> {
        if self.is_apart() {
            match self.find_place() {
                Ok(true) => {}
                Ok(false) => return Some(Next::Idle),
                // What lies in pieces is mapped once more, when all of its pages are there.
                Err(_) if self.waits_for_pages() => {
                    return Some(Next::Pages(self.ring.pieces()));
                }
                Err(error) => {
                    self.break_off();
                    return Some(Next::Misplaced(error));
                }
            }
        }
        let translations = self.translations.as_mut()?;
        if !std::mem::replace(&mut translations.begun, true) {
            return None;
        }
        if self.waits_for_pages() {
            return Some(Next::Pages(self.ring.windows()));
        }
        self.phase = Phase::Running;
        // What was answered while it had no place.
        self.collect();
        Some(Next::Again)
    }

    /// `false`: the front-end is asked for translations first.
    fn find_place(&mut self) -> Result<bool, StartError> {
        let memory = Arc::clone(self.ring.memory());
        let Err(error) = self.ring.move_to(&memory) else {
            self.set_apart(false);
            return Ok(true);
        };
        let misses = self.ring.misses();
        if misses.is_empty() || misses.iter().any(|miss| self.has_failed(miss)) {
            // Those that were missing may have come just now.
            return self.ring.move_to(&memory).map_err(|_| error).map(|()| {
                self.set_apart(false);
                true
            });
        }
        self.ask(misses);
        Ok(false)
    }

    fn set_apart(&mut self, apart: bool) {
        if let Some(translations) = &mut self.translations {
            translations.apart = apart;
            // What the front-end did not translate for the ring it may translate for a chain.
            translations.failed.clear();
        }
    }

    /// Moves the ring to another table of memory whose addresses are translated; one without a place
    /// there gets it later.
    pub(super) fn move_and_translate(&mut self, memory: &Arc<Memory>) -> Result<(), StartError> {
        let Err(error) = self.ring.move_to(memory) else {
            self.set_apart(false);
            self.look_again();
            return Ok(());
        };
        self.lose_place(memory).map_err(|()| error)
    }

    /// Takes the ring out of a place that it has no translation for any more.
    fn lose_place(&mut self, memory: &Arc<Memory>) -> Result<(), ()> {
        // What a callback has sent by now would be published where no driver sees it.
        self.publish();
        self.ring.stand_apart(memory).map_err(drop)?;
        self.set_apart(true);
        self.has_pages = false;
        if matches!(self.phase, Phase::Running | Phase::Waiting) {
            self.phase = Phase::New;
        }
        Ok(())
    }

    /// Translations from `first` to `last` were taken away. What the queue has begun with them has
    /// ended; if they were the ring's it has no place any more. `false`: nor can it stand apart, and
    /// is broken.
    pub(super) fn lose_translations(&mut self, first: Iova, last: Iova) -> bool {
        if self.is_apart() || !self.ring.touches(first, last) {
            return true;
        }
        let memory = Arc::clone(self.ring.memory());
        let lost = self.lose_place(&memory);
        if lost.is_err() {
            self.break_off();
        }
        lost.is_ok()
    }

    // --- its chains ----------------------------------------------------------------------------

    /// Puts back the first chain that lacks a translation, and all behind it, and has the front-end
    /// asked for what they lack. Those that will never have it stay, to be refused.
    #[cold]
    pub(super) fn put_back_untranslated(&mut self, batch: &mut Batch) {
        let Some(translations) = &mut self.translations else { return };
        let failed = std::mem::take(&mut translations.failed);
        let lacks = |buffers: &Buffers| {
            let untranslated = |fault: Fault| fault.reason == Unreachable::Untranslated;
            let misses = buffers.misses();
            (!misses.is_empty() || buffers.fault().is_some_and(untranslated))
                && !misses.iter().any(|miss| failed.contains(miss))
        };
        let gives_up = std::mem::take(&mut translations.gives_up);
        let places: Vec<bool> = batch.buffers_mut().map(|buffers| lacks(buffers)).collect();
        let from = usize::from(gives_up);
        let first = places.iter().skip(from).position(|&lacks| lacks).map(|place| place + from);
        let Some(first) = first else { return };
        let mut misses: Vec<Miss> = Vec::new();
        for buffers in batch.buffers_mut().skip(first) {
            for &miss in buffers.misses() {
                if misses.len() < MOST_ASKED && !misses.contains(&miss) {
                    misses.push(miss);
                }
            }
        }
        batch.take_left(first).for_each(|slot| self.put_back(slot));
        // A bad chain is behind what was put back, and is found again.
        self.bad = None;
        if self.phase == Phase::Stopping {
            self.finishes = false;
        } else if self.may_ask_again() {
            self.ask(misses);
        }
    }

    /// Counts how often the chain that is popped next was put back. `false`: too often, and it is
    /// given up.
    fn may_ask_again(&mut self) -> bool {
        let here = (self.ring.position(), self.ring.unfinished());
        let Some(translations) = &mut self.translations else { return false };
        let before = translations.rounds.filter(|(place, _)| *place == here);
        let rounds = before.map_or(0, |(_, rounds)| rounds) + 1;
        translations.rounds = Some((here, rounds));
        translations.gives_up = rounds > MOST_ROUNDS;
        if translations.gives_up {
            translations.rounds = None;
        }
        !translations.gives_up
    }

    // --- asking --------------------------------------------------------------------------------

    /// Has the front-end asked, and waits. With nothing to ask for the ring is looked at again.
    fn ask(&mut self, misses: Vec<Miss>) {
        let Some(translations) = &mut self.translations else { return };
        if misses.is_empty() {
            return;
        }
        self.phase = Phase::Waiting;
        self.waits.store(true, Ordering::SeqCst);
        translations.question = self.report.translations_missing(self.index, &misses);
        translations.asked = misses;
    }

    fn has_failed(&self, miss: &Miss) -> bool {
        self.translations.as_ref().is_some_and(|known| known.failed.contains(miss))
    }

    /// Translations have come. Returns whether they are all that the queue has waited for.
    pub(super) fn translations_came(&mut self) -> bool {
        let memory = Arc::clone(self.ring.memory());
        let Some(translations) = &mut self.translations else { return false };
        translations.asked.retain(|&miss| !memory.knows(miss));
        self.ends_wait()
    }

    /// The front-end does not translate this, which was asked for in the question of this number.
    /// Returns whether the queue waits for nothing more.
    pub(super) fn translation_failed(&mut self, question: u64, miss: Miss) -> bool {
        let asks = |known: &&mut Box<Translations>| known.question == question;
        let Some(translations) = self.translations.as_mut().filter(asks) else { return false };
        let place = translations.asked.iter().position(|asked| *asked == miss);
        let Some(place) = place else { return false };
        translations.failed.push(translations.asked.swap_remove(place));
        self.ends_wait()
    }

    fn ends_wait(&mut self) -> bool {
        let ends = self.phase == Phase::Waiting
            && self.translations.as_ref().is_some_and(|known| known.asked.is_empty());
        if ends {
            self.look_again();
        }
        ends
    }

    /// Ends the wait.
    fn look_again(&mut self) {
        self.waits.store(false, Ordering::SeqCst);
        let Some(translations) = &mut self.translations else { return };
        translations.asked.clear();
        if self.phase == Phase::Waiting {
            let is_new = translations.apart || !translations.begun;
            self.phase = if is_new { Phase::New } else { Phase::Running };
        }
        self.offer_left();
        if self.receives {
            // Whoever found nothing to take is told.
            self.want_any();
        }
    }
}
