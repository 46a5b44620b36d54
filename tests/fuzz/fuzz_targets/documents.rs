//! Manifests, indexes and configurations of images.
#![no_main]

use banger_imaged::limits::Limits;
use banger_imaged::registry::manifest::{Config, Document};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = Document::parse(bytes, &Limits::default());
    let _ = Document::parse_any(bytes, &Limits::default());
    let _ = Config::parse(bytes, 1);
});
