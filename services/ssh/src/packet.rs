//! Messages as packets (RFC 4253, section 6), encrypted with `aes256-gcm@openssh.com` (RFC 5647, and OpenSSH's
//! `PROTOCOL`, section 1.6) as soon as there are keys.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::Error;

/// The longest packet taken; OpenSSH's own limit.
const MAX_PACKET: usize = 256 * 1024;
const LENGTH: usize = 4;
const MIN_PADDING: usize = 4;
const TAG: usize = 16;

/// The key of one direction, and the number of the next packet.
#[derive(Debug)]
pub struct Cipher {
    key: LessSafeKey,
    nonce: [u8; NONCE_LEN],
}

impl Cipher {
    pub fn new(key: &[u8; 32], nonce: [u8; NONCE_LEN]) -> Result<Self, Error> {
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| Error::Crypto)?;
        Ok(Self { key: LessSafeKey::new(key), nonce })
    }

    /// The present nonce; the last eight bytes count the packets.
    fn step(&mut self) -> Nonce {
        let nonce = Nonce::assume_unique_for_key(self.nonce);
        for byte in self.nonce[4..].iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
        nonce
    }
}

/// Appends a message to `output` as a packet.
pub fn seal(cipher: Option<&mut Cipher>, message: &[u8], output: &mut Vec<u8>) -> Result<(), Error> {
    // What is encrypted is a multiple of the block; without a cipher the length counts as well.
    let (block, counted) = if cipher.is_some() { (16, 0) } else { (8, LENGTH) };
    let unpadded = counted + 1 + message.len();
    let mut padding = block - unpadded % block;
    if padding < MIN_PADDING {
        padding += block;
    }
    let length = 1 + message.len() + padding;
    let start = output.len();
    output.extend_from_slice(&u32::try_from(length).map_err(|_| Error::Malformed)?.to_be_bytes());
    output.push(padding as u8);
    output.extend_from_slice(message);
    output.resize(start + LENGTH + length, 0);
    if let Some(cipher) = cipher {
        let (head, body) = output[start..].split_at_mut(LENGTH);
        let nonce = cipher.step();
        let tag = cipher.key.seal_in_place_separate_tag(nonce, Aad::from(&*head), body);
        output.extend_from_slice(tag.map_err(|_| Error::Crypto)?.as_ref());
    }
    Ok(())
}

/// Takes the first packet out of `input`, once it is whole.
pub fn open(cipher: Option<&mut Cipher>, input: &mut Vec<u8>) -> Result<Option<Vec<u8>>, Error> {
    let Some(head) = input.first_chunk::<LENGTH>() else { return Ok(None) };
    let (head, tag) = (*head, if cipher.is_some() { TAG } else { 0 });
    let length = u32::from_be_bytes(head) as usize;
    if !(1 + MIN_PADDING..=MAX_PACKET).contains(&length) {
        return Err(Error::Malformed);
    }
    let end = LENGTH + length + tag;
    if input.len() < end {
        return Ok(None);
    }
    let mut body: Vec<u8> = input.drain(..end).skip(LENGTH).collect();
    if let Some(cipher) = cipher {
        let nonce = cipher.step();
        cipher.key.open_in_place(nonce, Aad::from(head), &mut body).map_err(|_| Error::Damaged)?;
        body.truncate(length);
    }
    let end = length.checked_sub(usize::from(body[0])).filter(|&end| end > 1).ok_or(Error::Malformed)?;
    body.truncate(end);
    body.remove(0);
    Ok(Some(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cipher() -> Cipher {
        // The counter is about to carry.
        Cipher::new(&[7; 32], [1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0xff]).unwrap()
    }

    #[test]
    fn what_is_sealed_is_opened() {
        for encrypted in [false, true] {
            let (mut sealer, mut opener) = (encrypted.then(cipher), encrypted.then(cipher));
            let mut wire = Vec::new();
            let messages: Vec<Vec<u8>> = (1..100).map(|length| vec![length; length.into()]).collect();
            for message in &messages {
                seal(sealer.as_mut(), message, &mut wire).unwrap();
            }
            // Byte by byte, as a pipe may give it.
            let (mut input, mut opened) = (Vec::new(), Vec::new());
            for byte in wire {
                input.push(byte);
                opened.extend(open(opener.as_mut(), &mut input).unwrap());
            }
            assert_eq!(opened, messages);
        }
    }

    #[test]
    fn damage_is_seen() {
        let mut wire = Vec::new();
        seal(Some(&mut cipher()), b"message", &mut wire).unwrap();
        *wire.last_mut().unwrap() ^= 1;
        assert_eq!(open(Some(&mut cipher()), &mut wire), Err(Error::Damaged));
        assert_eq!(open(None, &mut vec![0xff; 8]), Err(Error::Malformed));
        assert_eq!(open(None, &mut vec![0, 0, 0, 6, 200, 0, 0, 0, 0, 0]), Err(Error::Malformed));
    }
}
