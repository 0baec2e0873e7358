//! What happens again and again: told in full the first time, then as a number from time to time.

use std::collections::HashMap;
use std::mem;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::log::Level;

/// How often repeats of a known kind are summed up.
pub(crate) const SUMMARY_EVERY: Duration = Duration::from_secs(10);

/// Kinds told apart where there may be any number. A device that makes up exception classes gets no
/// table without end.
const MAX_KINDS: usize = 256;

/// What is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    /// What happens, in a word.
    pub(crate) what: &'static str,
    /// The callback that it happens to; empty for none.
    pub(crate) callback: &'static str,
    /// What else tells two apart: an error number, the address of a class.
    pub(crate) number: usize,
}

impl Kind {
    /// The number of all that there is no room for.
    const OTHERS: usize = usize::MAX;

    /// Whether it is that of all that there was no room for.
    pub(crate) fn is_others(&self) -> bool {
        self.number == Self::OTHERS
    }
}

/// What there is to say of something that has happened.
pub(crate) enum Due {
    /// All of it.
    Full,
    /// How often it has happened since, in this line.
    Number(String),
    /// Nothing for now.
    Nothing,
}

/// What has happened, by its kind.
#[derive(Default)]
pub(crate) struct Repeats(HashMap<Kind, Repeat>);

struct Repeat {
    /// What a line about repeats begins with, and its level.
    said: String,
    level: Level,
    /// Keeps the class alive whose address is in the kind, so that it names no other.
    _class: Option<Py<PyType>>,
    repeats: u64,
    last_told: Instant,
}

impl Repeats {
    /// The kind to count something by: its own, or a common one if there is no room for more.
    pub(crate) fn kind_of(&self, kind: Kind) -> Kind {
        let has_room = self.0.len() < MAX_KINDS || self.0.contains_key(&kind);
        if has_room { kind } else { Kind { number: Kind::OTHERS, ..kind } }
    }

    /// Counts something that has happened.
    pub(crate) fn count(&mut self, kind: Kind) -> Due {
        let Some(known) = self.0.get_mut(&kind) else { return Due::Full };
        known.repeats += 1;
        if known.last_told.elapsed() < SUMMARY_EVERY {
            return Due::Nothing;
        }
        Due::Number(known.sum_up())
    }

    /// Notes that a kind was told in full: it is counted from now on. `said`: what repeats are
    /// summed up by. `class`: the one whose address is in the kind.
    pub(crate) fn told(
        &mut self,
        kind: Kind,
        level: Level,
        said: String,
        class: Option<Py<PyType>>,
    ) {
        let last_told = Instant::now();
        self.0.insert(kind, Repeat { said, level, _class: class, repeats: 0, last_told });
    }

    /// Whether something was counted and not told.
    pub(crate) fn has_counted(&self) -> bool {
        self.0.values().any(|known| known.repeats > 0)
    }

    /// A line for each kind that was counted and not told, if its last line is as old as `age`.
    pub(crate) fn sum_up(&mut self, age: Duration) -> Vec<(Level, String)> {
        let is_due = |known: &&mut Repeat| known.repeats > 0 && known.last_told.elapsed() >= age;
        let counted = self.0.values_mut().filter(is_due);
        counted.map(|known| (known.level, known.sum_up())).collect()
    }
}

impl Repeat {
    /// Says how often it was repeated, and starts to count anew.
    fn sum_up(&mut self) -> String {
        self.last_told = Instant::now();
        format!("{} {} more times", self.said, mem::take(&mut self.repeats))
    }
}
