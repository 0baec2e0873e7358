//! Why a back-end cannot be used.

use std::fmt;

/// Why a back-end was not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// It has gone, does not answer, or answers what is no answer. Another one may do.
    Lost(String),
    /// It does not take what the front-end has negotiated: the front-end's connection is over.
    Refused(String),
}

impl Failure {
    pub(super) fn lost(why: impl fmt::Display) -> Self {
        Self::Lost(why.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(why) | Self::Refused(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Failure {}
