//! The judgements: what facts mean. No I/O here.

pub mod journal;
pub mod leftovers;
pub mod machine;
pub mod network;
pub mod services;
pub mod system;
