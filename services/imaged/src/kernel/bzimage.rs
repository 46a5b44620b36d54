//! Kernel images: what version one is, and the ELF inside a bzImage, which Firecracker wants.
//!
//! A bzImage is real-mode setup code, then the decompressor with the compressed ELF in it; the setup
//! header (see Documentation/arch/x86/boot.rst) says where that is.

use std::io::{self, Read, Write};

/// No unpacked kernel has been seen beyond 120 MB.
const MAX_ELF: u64 = 512 << 20;
const ELF: &[u8] = b"\x7fELF";
/// Chunks of an LZ4 legacy frame unpack to at most this.
const LZ4_CHUNK: usize = 8 << 20;
/// The kernel build uses windows up to 128 MiB, but never more than the kernel is long.
const ZSTD_WINDOW_LOG: u32 = 27;
const XZ_MEMORY: u32 = 140 << 10;
pub const MAX_BANNER: usize = 300;

pub fn is_elf(start: &[u8]) -> bool {
    start.starts_with(ELF)
}

fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn u32_at(image: &[u8], at: usize) -> io::Result<usize> {
    let bytes = image.get(at..at + 4).ok_or_else(|| bad("it ends within its header"))?;
    Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
}

/// What a bzImage says of itself: `6.1.0-40-cloud-amd64 (debian-kernel@…) #1 SMP …`, its version first.
pub fn banner(image: &[u8]) -> io::Result<String> {
    check(image)?;
    let pointer = u32_at(image, 0x20e)? & 0xffff;
    let text =
        image.get(0x200 + pointer..).filter(|_| pointer != 0).ok_or_else(|| bad("it names no version"))?;
    words(text).ok_or_else(|| bad("it names no version"))
}

/// A line that begins with a version.
pub fn words(text: &[u8]) -> Option<String> {
    let line: Vec<u8> =
        text.iter().take(MAX_BANNER).take_while(|b| matches!(b, b' '..=b'~')).copied().collect();
    let line = String::from_utf8(line).ok()?;
    is_version(line.split(' ').next()?).then(|| line.trim_end().to_owned())
}

/// Refuses a kernel for another processor, by its first 64 bytes if it is an ELF file; a bzImage always
/// is for x86.
pub fn check_architecture(start: &[u8]) -> io::Result<()> {
    const X86_64: u16 = 62;
    if !is_elf(start) {
        return Ok(());
    }
    match start.get(18..20).map(|field| u16::from_le_bytes([field[0], field[1]])) {
        Some(X86_64) if start[4] == 2 => Ok(()),
        Some(machine) => {
            Err(bad(format!("it is for another processor (ELF machine {machine}), not for x86-64")))
        }
        None => Err(bad("it ends within its header")),
    }
}

/// Also a safe file name.
pub fn is_version(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
        && text.len() <= 64
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+~-".contains(&b))
}

fn check(image: &[u8]) -> io::Result<()> {
    match image.get(0x202..0x206) {
        Some(b"HdrS") => Ok(()),
        _ => Err(bad("it is neither a bzImage nor an ELF file")),
    }
}

/// Unpacks the ELF of a bzImage.
pub fn unpack(image: &[u8], out: &mut impl Write) -> io::Result<u64> {
    check(image)?;
    let setup = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup + 1) * 512 + u32_at(image, 0x248)?;
    let length = u32_at(image, 0x24c)?;
    let payload = start
        .checked_add(length)
        .and_then(|end| image.get(start..end))
        .filter(|payload| payload.len() > 8)
        .ok_or_else(|| bad("its payload lies outside the file"))?;
    let mut first = Check { out, seen: 0 };
    match payload {
        [0x1f, 0x8b, ..] => copy(flate2::read::GzDecoder::new(payload), &mut first),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(payload)?.single_frame();
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            copy(decoder, &mut first)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            copy(lzma_rust2::XzReader::new_mem_limit(payload, false, XZ_MEMORY), &mut first)
        }
        [0x5d, 0, 0, ..] => {
            copy(lzma_rust2::LzmaReader::new_mem_limit(payload, XZ_MEMORY, None)?, &mut first)
        }
        [0x02, 0x21, 0x4c, 0x18, rest @ ..] => unpack_lz4(rest, &mut first),
        [0x89, b'L', b'Z', b'O', ..] => Err(bad("it is compressed with LZO, which banger does not read")),
        [b'B', b'Z', b'h', ..] => Err(bad("it is compressed with bzip2, which banger does not read")),
        _ => Err(bad("its payload is compressed in an unknown way")),
    }
}

fn copy(reader: impl Read, out: &mut impl Write) -> io::Result<u64> {
    let count = io::copy(&mut reader.take(MAX_ELF + 1), out)?;
    if count > MAX_ELF { Err(bad("it unpacks to more than 512 MiB")) } else { Ok(count) }
}

/// The LZ4 legacy frame: chunks behind their lengths. The last four bytes are the kernel's own note
/// of its size.
fn unpack_lz4(mut rest: &[u8], out: &mut impl Write) -> io::Result<u64> {
    let mut total = 0u64;
    while rest.len() > 4 {
        let length = u32_at(rest, 0)?;
        let chunk = rest.get(4..4 + length).ok_or_else(|| bad("its payload is damaged"))?;
        let data = lz4_flex::block::decompress(chunk, LZ4_CHUNK)
            .map_err(|error| bad(format!("its payload is damaged: {error}")))?;
        total += data.len() as u64;
        if total > MAX_ELF {
            return Err(bad("it unpacks to more than 512 MiB"));
        }
        out.write_all(&data)?;
        rest = &rest[4 + length..];
    }
    Ok(total)
}

/// Fails at the first bytes if they are not those of an ELF file.
struct Check<'a, W> {
    out: &'a mut W,
    seen: u64,
}

impl<W: Write> Write for Check<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.seen == 0 && bytes.len() >= ELF.len() && !is_elf(bytes) {
            return Err(bad("what is packed in it is no ELF file"));
        }
        self.seen += bytes.len() as u64;
        self.out.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0u8; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e] = 0x90;
        image[0x290..0x29a].copy_from_slice(b"6.1.0-x (y");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend([0; 16]);
        image.extend(payload);
        image
    }

    const INSIDE: &[u8] = b"\x7fELF and the rest of the kernel, the rest of the kernel";

    fn unpacked(payload: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        unpack(&image(payload), &mut out).map(|_| out)
    }

    #[test]
    fn unpacks_what_distributions_use() {
        let size = (INSIDE.len() as u32).to_le_bytes();
        let mut lz4 = vec![0x02, 0x21, 0x4c, 0x18];
        for chunk in INSIDE.chunks(20) {
            let packed = lz4_flex::block::compress(chunk);
            lz4.extend((packed.len() as u32).to_le_bytes());
            lz4.extend(packed);
        }
        lz4.extend(size);
        assert_eq!(unpacked(&lz4).expect("lz4"), INSIDE);

        let mut packed = zstd::encode_all(INSIDE, 3).expect("packs");
        packed.extend(size);
        assert_eq!(unpacked(&packed).expect("zstd"), INSIDE);

        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(INSIDE).expect("packs");
        assert_eq!(unpacked(&packed.finish().expect("packs")).expect("gzip"), INSIDE);
        assert_eq!(banner(&image(b"")).expect("banner"), "6.1.0-x (y");
    }

    #[test]
    fn refuses_nonsense() {
        assert!(unpacked(b"").is_err());
        assert!(unpacked(b"whatever it is").is_err());
        assert!(unpacked(&[0x02, 0x21, 0x4c, 0x18, 255, 255, 255, 255, 0]).is_err());
        assert!(unpacked(&zstd::encode_all(&b"not an elf"[..], 3).expect("packs")).is_err());
        assert!(unpack(b"short", &mut Vec::new()).is_err());
        let mut outside = image(b"");
        outside[0x248..0x24c].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(unpack(&outside, &mut Vec::new()).is_err());
    }

    #[test]
    fn other_processors_are_refused() {
        let mut elf = [0u8; 64];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[18] = 62;
        assert!(check_architecture(&elf).is_ok());
        elf[18] = 183;
        assert!(check_architecture(&elf).expect_err("arm64").to_string().contains("183"));
        assert!(check_architecture(b"\x7fELF").is_err());
        assert!(check_architecture(b"MZ, perhaps a bzImage").is_ok());
    }
}
