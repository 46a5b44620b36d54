//! What an unpacked kernel says of itself.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use super::bzimage::{MAX_BANNER, words};

const MAX_CONFIG: u64 = 4 << 20;

/// The banner that it prints when it starts, from the version on: `6.1.0 (who@where) #1 SMP …`.
pub fn banner(file: &File) -> io::Result<Option<String>> {
    const BEFORE: &[u8] = b"Linux version ";
    let mut from = 0;
    while let Some(at) = find(file, BEFORE, from)? {
        let mut text = [0u8; MAX_BANNER];
        from = at + BEFORE.len() as u64;
        let got = file.read_at(&mut text, from)?;
        // The first may be a format string.
        if let Some(banner) = words(&text[..got]) {
            return Ok(Some(banner));
        }
    }
    Ok(None)
}

/// The configuration that it carries (`CONFIG_IKCONFIG`), if it does: gzip behind a mark.
pub fn config(mut file: &File) -> io::Result<Option<Vec<u8>>> {
    const BEFORE: &[u8] = b"IKCFG_ST\x1f\x8b";
    let Some(at) = find(file, BEFORE, 0)? else { return Ok(None) };
    io::Seek::seek(&mut file, io::SeekFrom::Start(at + BEFORE.len() as u64 - 2))?;
    let mut config = Vec::new();
    flate2::read::GzDecoder::new(file).take(MAX_CONFIG).read_to_end(&mut config)?;
    Ok(Some(config))
}

/// Where some bytes are next, looked for piece by piece; the pieces overlap.
fn find(file: &File, wanted: &[u8], mut from: u64) -> io::Result<Option<u64>> {
    let mut piece = vec![0; 1 << 20];
    let finder = memchr::memmem::Finder::new(wanted);
    loop {
        let got = file.read_at(&mut piece, from)?;
        if let Some(at) = finder.find(&piece[..got]) {
            return Ok(Some(from + at as u64));
        }
        if got < wanted.len() {
            return Ok(None);
        }
        from += (got - (wanted.len() - 1)) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(content).expect("written");
        file
    }

    #[test]
    fn finds_banner_and_configuration() {
        let mut elf = vec![0u8; (1 << 20) - 5];
        elf.extend(b"Linux version %s (%s)\n\0..Linux version 6.1.155+ (a@b) #1 SMP\n\0..IKCFG_ST");
        assert_eq!(banner(&file(&elf)).expect("reads").as_deref(), Some("6.1.155+ (a@b) #1 SMP"));
        assert_eq!(config(&file(&elf)).expect("reads"), None);
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"CONFIG_PVH=y\n").expect("packs");
        elf.extend(packed.finish().expect("packs"));
        elf.extend(b"IKCFG_ED and more");
        assert_eq!(config(&file(&elf)).expect("reads").as_deref(), Some(&b"CONFIG_PVH=y\n"[..]));
        assert_eq!(banner(&file(b"no kernel")).expect("reads"), None);
    }
}
