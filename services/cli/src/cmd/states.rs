//! States of a VM that has a VMM, that has none, and all.

pub const UP: &[&str] = &["starting", "running", "paused", "stopping"];
pub const DOWN: &[&str] = &["created", "stopped", "failed"];
pub const ANY: &[&str] = &["created", "starting", "running", "paused", "stopping", "stopped", "failed"];
