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
    let budget = Budget::new(Limits::default());
    let mut merged = merge::Merge::new(512);
    for layer in 0..layers.len() {
        let index = index::index(open(layer), layer, &budget).unwrap_or_else(|error| panic!("{error}"));
        merged.apply(index).unwrap_or_else(|error| panic!("{error:?}"));
    }
    let file = File::create(out).expect("OUT can be made");
    let tree = merged.finish();
    banger_imaged::rootfs::write(file, &tree, layers.len(), |layer| Ok(open(layer)))
        .unwrap_or_else(|e| panic!("{e}"));
}
