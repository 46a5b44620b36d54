//! Writes an input of each kind where the fuzzer begins: `corpus/TARGET/`.

#[path = "../../services/imaged/tests/inputs/mod.rs"]
#[allow(dead_code)]
mod inputs;

use std::path::Path;

/// For web.banger.internal, with EDNS, and for 10.209.0.2.
const QUERIES: [&[u8]; 2] = [
    b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x03web\x06banger\x08internal\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\x80\0\0\0",
    b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x012\x010\x03209\x0210\x07in-addr\x04arpa\0\0\x0c\0\x01",
];

/// The greeting of an agent, and the head of a message.
const AGENT: &[u8] = b"OK 0123456789abcdef0123456789abcdef\r\nl\x02\x01\x01\x08\0\0\0\x01\0\0\0\x0f\0\0\0\
\x05\x01u\0\x01\0\0\0\x08\x01g\0\x01v\0\0\x01u\0\0\x07\0\0\0";

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let seeds: [(&str, Vec<Vec<u8>>); 7] = [
        ("layers", vec![inputs::archive()]),
        ("documents", vec![inputs::MANIFEST.into(), inputs::CONFIG.into()]),
        ("files", vec![inputs::archive()]),
        ("guest", vec![AGENT.into()]),
        ("initramfs", vec![inputs::initramfs()]),
        ("names", QUERIES.iter().map(|query| query.to_vec()).collect()),
        ("kernels", vec![inputs::bzimage(0x020d), inputs::bzimage(0x0208)]),
    ];
    for (target, inputs) in seeds {
        let dir = corpus.join(target);
        std::fs::create_dir_all(&dir)?;
        for (number, input) in inputs.iter().enumerate() {
            std::fs::write(dir.join(format!("seed-{number}")), input)?;
        }
    }
    Ok(())
}
