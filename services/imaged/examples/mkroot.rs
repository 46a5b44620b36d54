//! `mkroot OUT LAYER…`: layers (tar, plain or compressed) into a root filesystem, for trial.

use std::fs::File;
use std::sync::Arc;

use banger_imaged::layers::stream::{Cancel, Source, decompress};
use banger_imaged::layers::{Budget, index, merge};
use banger_imaged::limits::Limits;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let out = arguments.next().expect("OUT");
    let layers: Vec<String> = arguments.collect();
    let open = |layer: usize| {
        let file = File::open(&layers[layer]).expect("layer opens");
        decompress(Source::new(file, Cancel::default(), Arc::default())).expect("layer begins")
    };
    let limits = Limits::default();
    let budget = Budget::new(limits.clone());
    let mut merged = merge::Merge::new(&limits);
    for layer in 0..layers.len() {
        let notes = tempfile::tempfile().expect("a temporary file");
        let index = index::index(open(layer), layer, &budget, notes).unwrap_or_else(|e| panic!("{e}"));
        for header in index.headers {
            merged.entry(&header.expect("reads")).unwrap_or_else(|error| panic!("{error:?}"));
        }
        merged.end_layer();
    }
    let file = File::create(out).expect("OUT can be made");
    let tree = merged.finish();
    banger_imaged::rootfs::write(file, &tree, layers.len(), |layer| Ok(open(layer)))
        .unwrap_or_else(|e| panic!("{e}"));
}
