//! The types that messages of SSH are made of (RFC 4251, section 5), and those of SFTP.

/// A message ends early, or has something in it that does not belong there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Takes one thing after the other out of a message.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    pub fn boolean(&mut self) -> Result<bool, Malformed> {
        Ok(self.byte()? != 0)
    }

    pub fn uint32(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    pub fn uint64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from(self.uint32()?) << 32 | u64::from(self.uint32()?))
    }

    pub fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.uint32()?;
        self.take(length as usize)
    }

    pub fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.string()?).map_err(|_| Malformed)
    }

    pub fn skip(&mut self, length: usize) -> Result<(), Malformed> {
        self.take(length).map(drop)
    }
}

/// Puts one thing after the other into a message.
#[derive(Debug, Clone, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn message(number: u8) -> Self {
        Self(vec![number])
    }

    pub fn byte(mut self, byte: u8) -> Self {
        self.0.push(byte);
        self
    }

    pub fn boolean(self, value: bool) -> Self {
        self.byte(value.into())
    }

    pub fn uint32(mut self, number: u32) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub fn uint64(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Of at most 4 GiB, as everything here is.
    pub fn string(self, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        self.uint32(u32::try_from(bytes.len()).unwrap_or(u32::MAX)).raw(bytes)
    }

    /// A number that is not negative, from its bytes with the highest first.
    pub fn mpint(self, bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        let digits = &bytes[zeros..];
        match digits.first() {
            Some(first) if first & 0x80 != 0 => self.string([&[0], digits].concat()),
            _ => self.string(digits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let written =
            Writer::message(7).boolean(true).uint32(70_000).uint64(1 << 40 | 5).string("text").raw(b"rest").0;
        let mut reader = Reader(&written);
        assert_eq!(reader.byte().unwrap(), 7);
        assert!(reader.boolean().unwrap());
        assert_eq!(reader.uint32().unwrap(), 70_000);
        assert_eq!(reader.uint64().unwrap(), 1 << 40 | 5);
        assert_eq!(reader.text().unwrap(), "text");
        reader.skip(4).unwrap();
        assert!(reader.byte().is_err() && reader.uint32().is_err() && reader.string().is_err());
        assert!(Reader(&[0, 0, 0, 9, 1]).string().is_err());
        assert!(Reader(&[0, 0, 0, 1, 0xff]).text().is_err());
    }

    /// The examples of RFC 4251.
    #[test]
    fn numbers() {
        assert_eq!(Writer::default().mpint(&[0, 0]).0, [0, 0, 0, 0]);
        assert_eq!(Writer::default().mpint(&[0x80]).0, [0, 0, 0, 2, 0, 0x80]);
        let number = [0, 0x09, 0xa3, 0x78, 0xf9, 0xb2, 0xe3, 0x32, 0xa7];
        assert_eq!(Writer::default().mpint(&number).0[..6], [0, 0, 0, 8, 0x09, 0xa3]);
    }
}
