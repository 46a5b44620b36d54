//! Ed25519 keys, and the files that ssh(1) has them in.
//!
//! The private key's form is OpenSSH's `PROTOCOL.key`, here always without a passphrase and with the one key.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use banger_core::wire::{Reader, Writer};

use crate::Error;

/// The name of the algorithm, as RFC 8709 has it.
pub const ALGORITHM: &str = "ssh-ed25519";

const BEGIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\n";
const END: &str = "-----END OPENSSH PRIVATE KEY-----\n";
const MAGIC: &[u8] = b"openssh-key-v1\0";
/// What the part that could be encrypted is filled up to.
const BLOCK: usize = 8;
const SEED: usize = 32;
/// Stands twice before the secret, to tell whether it was decrypted; any number will do.
const CHECK: u32 = 0;

#[derive(Debug)]
pub struct Key {
    seed: [u8; SEED],
    pair: Ed25519KeyPair,
}

impl Key {
    /// # Errors
    /// If there is no randomness to be had.
    pub fn generate() -> Result<Self, Error> {
        let mut seed = [0; SEED];
        SystemRandom::new().fill(&mut seed).map_err(|_| Error::Crypto)?;
        Self::from_seed(seed)
    }

    fn from_seed(seed: [u8; SEED]) -> Result<Self, Error> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| Error::Crypto)?;
        Ok(Self { seed, pair })
    }

    /// # Errors
    /// `Key` if it is no file that [`Self::to_file`] could have written.
    pub fn from_file(file: &str) -> Result<Self, Error> {
        Self::parse(file).map_err(|_| Error::Key)
    }

    fn parse(file: &str) -> Result<Self, Error> {
        let body = file.strip_prefix(BEGIN).and_then(|body| body.strip_suffix(END)).ok_or(Error::Key)?;
        let body: String = body.split('\n').collect();
        let bytes = STANDARD.decode(body).map_err(|_| Error::Key)?;
        let mut reader = Reader(bytes.strip_prefix(MAGIC).ok_or(Error::Key)?);
        if (reader.text()?, reader.text()?, reader.text()?, reader.uint32()?) != ("none", "none", "", 1) {
            return Err(Error::Key);
        }
        let blob = reader.string()?;
        let mut secret = Reader(reader.string()?);
        let checks = secret.uint32()? == secret.uint32()?;
        let (algorithm, _, both) = (secret.text()?, secret.string()?, secret.string()?);
        let seed = both.first_chunk::<SEED>().ok_or(Error::Key)?;
        let key = Self::from_seed(*seed)?;
        let fits = checks && algorithm == ALGORITHM && blob == key.public();
        if fits { Ok(key) } else { Err(Error::Key) }
    }

    /// The private key, for ssh(1).
    pub fn to_file(&self, comment: &str) -> String {
        let public = self.pair.public_key().as_ref();
        let mut secret = Writer::default()
            .uint32(CHECK)
            .uint32(CHECK)
            .string(ALGORITHM)
            .string(public)
            .string([&self.seed, public].concat())
            .string(comment);
        for byte in 1.. {
            if secret.0.len().is_multiple_of(BLOCK) {
                break;
            }
            secret = secret.byte(byte);
        }
        let bytes = Writer(MAGIC.to_vec())
            .string("none")
            .string("none")
            .string("")
            .uint32(1)
            .string(self.public())
            .string(secret.0);
        let encoded = STANDARD.encode(bytes.0);
        let lines: Vec<&str> = (0..encoded.len())
            .step_by(70)
            .map(|start| &encoded[start..(start + 70).min(encoded.len())])
            .collect();
        format!("{BEGIN}{}\n{END}", lines.join("\n"))
    }

    /// The public key as one line, as in `authorized_keys`.
    pub fn line(&self, comment: &str) -> String {
        format!("{ALGORITHM} {} {comment}", STANDARD.encode(self.public()))
    }

    /// The public key, as it goes over the wire.
    pub fn public(&self) -> Vec<u8> {
        Writer::default().string(ALGORITHM).string(self.pair.public_key()).0
    }

    /// A signature, as it goes over the wire.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        Writer::default().string(ALGORITHM).string(self.pair.sign(message)).0
    }
}

/// Whether `signature` is that of the public key `blob`, both as they come over the wire.
pub fn verify(blob: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let parts = |bytes| {
        let mut reader = Reader(bytes);
        (reader.text().ok()? == ALGORITHM).then_some(reader.string().ok()?)
    };
    let (Some(key), Some(signature)) = (parts(blob), parts(signature)) else { return false };
    UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by ssh-keygen(1).
    const FILE: &str = "\
-----BEGIN OPENSSH PRIVATE KEY-----\n\
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\n\
QyNTUxOQAAACCyT9sgIzmA7vO34lm1750N9eKLPwZZl6HRL4bN/qBWAgAAAIgrb+8yK2/v\n\
MgAAAAtzc2gtZWQyNTUxOQAAACCyT9sgIzmA7vO34lm1750N9eKLPwZZl6HRL4bN/qBWAg\n\
AAAEAxKRIWVKdM22CF88I+wUhG0nEGmiVWv3Kszc409V8dQLJP2yAjOYDu87fiWbXvnQ31\n\
4os/BlmXodEvhs3+oFYCAAAAAm1lAQID\n\
-----END OPENSSH PRIVATE KEY-----\n";
    const LINE: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILJP2yAjOYDu87fiWbXvnQ314os/BlmXodEvhs3+oFYC me";

    #[test]
    fn files_are_those_of_ssh_keygen() {
        let key = Key::from_file(FILE).unwrap();
        assert_eq!(key.line("me"), LINE);
        let own = Key::from_file(&key.to_file("another comment")).unwrap();
        assert_eq!(own.public(), key.public());
        assert_eq!(own.seed, key.seed);
    }

    #[test]
    fn signatures() {
        let key = Key::generate().unwrap();
        let signature = key.sign(b"text");
        assert!(verify(&key.public(), b"text", &signature));
        assert!(!verify(&key.public(), b"other", &signature));
        assert!(!verify(&Key::generate().unwrap().public(), b"text", &signature));
        assert!(!verify(&key.public(), b"text", b"") && !verify(b"", b"text", &signature));
    }

    #[test]
    fn what_is_no_key() {
        let file = Key::generate().unwrap().to_file("");
        for broken in
            ["", "x", &file[1..], &file.replace("b3BlbnNzaC1rZXktdjE", "x"), &file[..file.len() / 2]]
        {
            assert!(Key::from_file(broken).is_err(), "{broken}");
        }
    }
}
