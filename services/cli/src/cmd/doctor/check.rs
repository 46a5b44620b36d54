//! What a check is, and what it finds.

use serde::{Serialize, Serializer};

use super::facts::{Facts, Unseen};
use super::fix::Fix;

/// How things are; the worst is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// It could not be seen.
    Unknown,
    /// banger works, but slower, or with less, or perhaps not for long.
    Warn,
    /// Something of banger does not work.
    Fail,
}

impl Verdict {
    pub const ALL: [Self; 4] = [Self::Ok, Self::Unknown, Self::Warn, Self::Fail];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What is to be done about something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    Nothing,
    /// A command, or words: the admin's to do.
    Say(String),
    /// Safe to be done by us.
    Fix(Fix),
}

impl std::fmt::Display for Remedy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::Say(text) => f.write_str(text),
            Self::Fix(fix) => f.write_str(&fix.command()),
        }
    }
}

impl Serialize for Remedy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<T: Into<String>> From<T> for Remedy {
    fn from(text: T) -> Self {
        Self::Say(text.into())
    }
}

impl From<Fix> for Remedy {
    fn from(fix: Fix) -> Self {
        Self::Fix(fix)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub verdict: Verdict,
    /// What was found.
    pub what: String,
    pub remedy: Remedy,
}

impl Finding {
    pub fn ok(what: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, what: what.into(), remedy: Remedy::Nothing }
    }

    pub fn warn(what: impl Into<String>, remedy: impl Into<Remedy>) -> Self {
        Self { verdict: Verdict::Warn, what: what.into(), remedy: remedy.into() }
    }

    pub fn fail(what: impl Into<String>, remedy: impl Into<Remedy>) -> Self {
        Self { verdict: Verdict::Fail, what: what.into(), remedy: remedy.into() }
    }
}

impl From<Unseen> for Finding {
    fn from(unseen: Unseen) -> Self {
        Self { verdict: Verdict::Unknown, what: unseen.what, remedy: Remedy::Say(unseen.remedy) }
    }
}

/// What a check finds: at least one thing.
pub type Judged = Result<Vec<Finding>, Unseen>;

/// One thing to look at.
pub struct Check {
    pub group: &'static str,
    pub name: &'static str,
    /// Why it matters.
    pub why: &'static str,
    /// From facts alone.
    pub judge: fn(&Facts) -> Judged,
}

impl Check {
    pub fn findings(&self, facts: &Facts) -> Vec<Finding> {
        (self.judge)(facts).unwrap_or_else(|unseen| vec![unseen.into()])
    }
}

/// The findings, or that all is well if there are none.
pub fn or_ok(findings: Vec<Finding>, well: impl Into<String>) -> Vec<Finding> {
    if findings.is_empty() { vec![Finding::ok(well)] } else { findings }
}
