//! cpio archives, which packages of kernels and initramfs are.
#![no_main]

use std::io::Read;

use banger_imaged::kernel::cpio::CpioReader;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut reader = CpioReader::new(bytes);
    let mut content = Vec::new();
    while let Ok(Some(_)) = reader.next_entry() {
        content.clear();
        let _ = reader.read_to_end(&mut content);
    }
});
