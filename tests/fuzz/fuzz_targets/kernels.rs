//! Images of kernels, and the modules that come with them.
#![no_main]

use banger_imaged::kernel::{bzimage, modules};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = bzimage::check_architecture(bytes);
    let _ = bzimage::banner(bytes);
    let _ = bzimage::unpack(bytes, &mut std::io::sink());
    let _ = modules::depends(bytes);
});
