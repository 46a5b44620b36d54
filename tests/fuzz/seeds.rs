//! Writes an input of each kind where the fuzzer begins: `corpus/TARGET/`.

#[path = "../../services/imaged/tests/inputs/mod.rs"]
#[allow(dead_code)]
mod inputs;

use std::path::Path;

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let seeds: [(&str, Vec<Vec<u8>>); 4] = [
        ("layers", vec![inputs::archive()]),
        ("documents", vec![inputs::MANIFEST.into(), inputs::CONFIG.into()]),
        ("initramfs", vec![inputs::initramfs()]),
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
