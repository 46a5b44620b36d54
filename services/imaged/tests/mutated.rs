//! Inputs of strangers with bytes changed at random: nothing panics, hangs or asks for memory, and
//! what is accepted can be written.

mod inputs;

use banger_imaged::kernel::bzimage;
use banger_imaged::kernel::cpio::CpioReader;
use banger_imaged::limits::Limits;
use banger_imaged::registry::manifest::{Config, Document};
use inputs::{CONFIG, MANIFEST, archive, build, summed};
use proptest::prelude::*;

/// Some bytes become others: where (as a part of the whole), what, and how many are cut from the end.
#[derive(Debug, Clone)]
struct Mutation {
    changes: Vec<(prop::sample::Index, u8)>,
    cut: Option<prop::sample::Index>,
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12);
    (changes, prop::option::weighted(0.1, any::<prop::sample::Index>()))
        .prop_map(|(changes, cut)| Mutation { changes, cut })
}

impl Mutation {
    fn apply(&self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for (at, value) in &self.changes {
            let at = at.index(bytes.len());
            bytes[at] = *value;
        }
        if let Some(cut) = &self.cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes
    }
}

#[test]
fn unchanged_inputs_are_accepted() {
    build(&[archive(), archive()]).expect("builds");
    Document::parse(MANIFEST.as_bytes(), &Limits::default()).expect("a manifest");
    Config::parse(CONFIG.as_bytes(), 1).expect("a config");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn archives(lower in mutation(), upper in mutation(), raw in any::<bool>()) {
        let changed = |mutation: &Mutation| {
            let archive = mutation.apply(&archive());
            if raw { archive } else { summed(archive) }
        };
        let _ = build(&[changed(&lower), changed(&upper)]);
    }

    #[test]
    fn documents(mutation in mutation(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for text in [MANIFEST, CONFIG] {
            for bytes in [mutation.apply(text.as_bytes()), bytes.clone()] {
                let _ = Document::parse(&bytes, &Limits::default());
                let _ = Config::parse(&bytes, 1);
            }
        }
    }

    #[test]
    fn initramfs(mutation in mutation()) {
        let bytes = mutation.apply(&inputs::initramfs());
        let mut reader = CpioReader::new(bytes.as_slice());
        while let Ok(Some(_)) = reader.next_entry() {}
    }

    #[test]
    fn kernels(mutation in mutation(), protocol in any::<u16>()) {
        let image = mutation.apply(&inputs::bzimage(protocol));
        let _ = bzimage::banner(&image);
        let _ = bzimage::unpack(&image, &mut std::io::sink());
    }
}
