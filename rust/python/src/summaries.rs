//! Who has counted something that is to be summed up, looked at from time to time.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::traits::SumsUp;

/// How often they are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Those who have counted something since they were told last.
#[derive(Default)]
pub(crate) struct Summaries {
    counts: Vec<Weak<dyn SumsUp>>,
    next_look: Option<Instant>,
}

impl Summaries {
    /// Adds one that has counted something; it is forgotten when it has told all of that.
    pub(crate) fn add(&mut self, counts: Weak<dyn SumsUp>) {
        self.counts.push(counts);
        self.next_look.get_or_insert_with(|| Instant::now() + LOOK_EVERY);
    }

    /// Those who are to sum up what is old, if it is time to look.
    pub(crate) fn look(&mut self, now: Instant) -> Vec<Arc<dyn SumsUp>> {
        if self.next_look.is_none_or(|next| now < next) {
            return Vec::new();
        }
        let mut found = Vec::new();
        self.counts.retain(|counts| {
            let counting = counts.upgrade().filter(|counts| counts.has_counted());
            counting.map(|counts| found.push(counts)).is_some()
        });
        self.next_look = (!found.is_empty()).then(|| now + LOOK_EVERY);
        found
    }

    /// When the next look is due; `None` while there is nobody to look at.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.next_look
    }
}
