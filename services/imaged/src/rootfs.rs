//! The second pass: the layers' content that the merged tree still wants, into a squashfs.

use std::fs::File;
use std::io::{self, Read};

use crate::error::{Error, Result};
use crate::layers::index::explain;
use crate::squashfs::Writer;
use crate::tar::TarReader;
use crate::tree::Tree;

/// Writes the root filesystem. `open` gives a layer's tar stream anew. Returns file and length.
pub fn write<R: Read>(
    file: File,
    tree: &Tree,
    layers: usize,
    mut open: impl FnMut(usize) -> Result<R>,
) -> Result<(File, u64)> {
    let failed =
        |error: io::Error| Error::Io { what: "cannot write the root filesystem".into(), source: error };
    let mut writer = Writer::new(file).map_err(failed)?;
    let mut buffer = vec![0; 128 << 10];
    for (layer, wanted) in tree.wanted(layers).into_iter().enumerate() {
        if wanted.is_empty() {
            continue;
        }
        let mut tar = TarReader::new(open(layer)?);
        let mut ordinal = 0u32;
        for (entry, inode) in wanted {
            while tar.next_entry().map_err(|error| explain(error, layer))?.is_some() {
                ordinal += 1;
                if ordinal > entry {
                    break;
                }
            }
            if ordinal != entry + 1 {
                return Err(Error::InvalidLayer {
                    layer,
                    entry: String::new(),
                    reason: "changed while it was read".into(),
                });
            }
            writer.begin();
            loop {
                writer.hole(tar.skip_hole()).map_err(failed)?;
                match tar.read(&mut buffer).map_err(|error| explain(error, layer))? {
                    0 => break,
                    got => writer.write(&buffer[..got]).map_err(failed)?,
                }
            }
            writer.end(inode).map_err(failed)?;
        }
    }
    writer.finish(tree).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => Error::TooLarge(format!("it has {error}")),
        _ => failed(error),
    })
}
