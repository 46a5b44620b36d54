//! From layers to a root filesystem, as a pull does it. The input is a tar, which stands over a good one;
//! its checksums are set right first, or hardly any change would come further than that.
#![no_main]

#[path = "../../../services/imaged/tests/inputs/mod.rs"]
#[allow(dead_code)]
mod inputs;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = inputs::build(&[inputs::archive(), bytes.to_vec()]);
    if bytes.len() >= 512 {
        let _ = inputs::build(&[inputs::archive(), inputs::summed(bytes.to_vec())]);
    }
});
