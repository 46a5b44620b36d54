//! How both ends come by their keys: RFC 4253, sections 7 and 8, with `curve25519-sha256` (RFC 8731).

use ring::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

use banger_core::wire::{Reader, Writer};

use crate::packet::Cipher;
use crate::{Error, Key, key};

pub const KEXINIT: u8 = 20;
pub const NEWKEYS: u8 = 21;
pub const ECDH_INIT: u8 = 30;
const ECDH_REPLY: u8 = 31;

const COOKIE: usize = 16;
/// What has to be agreed on, in the order of the lists in `KEXINIT`, and what we have of it. Messages that
/// AES-GCM encrypts need no MAC, so those of the client do not matter, nor do languages.
const OFFER: [(&str, &str, bool); 10] = [
    ("key exchange", METHOD, true),
    ("host key", key::ALGORITHM, true),
    ("cipher", CIPHER, true),
    ("cipher", CIPHER, true),
    ("MAC", "hmac-sha2-256", false),
    ("MAC", "hmac-sha2-256", false),
    ("compression", "none", true),
    ("compression", "none", true),
    ("language", "", false),
    ("language", "", false),
];
pub const METHOD: &str = "curve25519-sha256";
pub const CIPHER: &str = "aes256-gcm@openssh.com";

/// Our own `KEXINIT`.
pub fn init() -> Result<Vec<u8>, Error> {
    let mut cookie = [0; COOKIE];
    SystemRandom::new().fill(&mut cookie).map_err(|_| Error::Crypto)?;
    let lists =
        OFFER.iter().fold(Writer::message(KEXINIT).raw(&cookie), |writer, (_, ours, _)| writer.string(ours));
    Ok(lists.boolean(false).uint32(0).0)
}

/// Looks whether the client has what we have. Says whether its next message has to be passed over: it
/// was sent on a wrong guess.
pub fn agree(theirs: &[u8]) -> Result<bool, Error> {
    let mut reader = Reader(theirs);
    reader.skip(1 + COOKIE)?;
    let mut guessed = true;
    for (position, (what, ours, needed)) in OFFER.iter().enumerate() {
        let mut names = reader.text()?.split(',');
        // Guesses are about the first two.
        guessed &= position > 1 || names.clone().next() == Some(ours);
        if *needed && !names.any(|name| name == *ours) {
            return Err(Error::NoCommon(what));
        }
    }
    Ok(reader.boolean()? && !guessed)
}

/// What both ends have said so far, which goes into the hash.
#[derive(Debug)]
pub struct Said<'a> {
    pub client_version: &'a [u8],
    pub server_version: &'a [u8],
    pub client_init: &'a [u8],
    pub server_init: &'a [u8],
}

/// What comes of it.
#[derive(Debug)]
pub struct Outcome {
    pub reply: Vec<u8>,
    /// Of the first exchange, it is the session's name.
    pub hash: Vec<u8>,
    pub from_client: Cipher,
    pub to_client: Cipher,
}

/// Answers the client's `ECDH_INIT`.
pub fn finish(host: &Key, said: &Said, message: &[u8], session: Option<&[u8]>) -> Result<Outcome, Error> {
    let mut reader = Reader(message);
    reader.skip(1)?;
    let theirs = reader.string()?;
    let random = SystemRandom::new();
    let secret = EphemeralPrivateKey::generate(&X25519, &random).map_err(|_| Error::Crypto)?;
    let ours = secret.compute_public_key().map_err(|_| Error::Crypto)?;
    let shared = agree_ephemeral(secret, &UnparsedPublicKey::new(&X25519, theirs), |shared| {
        Writer::default().mpint(shared).0
    })
    .map_err(|_| Error::Crypto)?;
    let public = host.public();
    let hash = Writer::default()
        .string(said.client_version)
        .string(said.server_version)
        .string(said.client_init)
        .string(said.server_init)
        .string(&public)
        .string(theirs)
        .string(&ours)
        .raw(&shared);
    let hash = digest(&SHA256, &hash.0).as_ref().to_vec();
    let session = session.unwrap_or(&hash);
    let derive = |letter: u8| -> [u8; 32] {
        let all = [&shared, hash.as_slice(), &[letter], session].concat();
        let mut key = [0; 32];
        key.copy_from_slice(digest(&SHA256, &all).as_ref());
        key
    };
    let cipher = |nonce, key| {
        let nonce = derive(nonce).first_chunk().copied().ok_or(Error::Crypto)?;
        Cipher::new(&derive(key), nonce)
    };
    Ok(Outcome {
        from_client: cipher(b'A', b'C')?,
        to_client: cipher(b'B', b'D')?,
        reply: Writer::message(ECDH_REPLY).string(public).string(ours).string(host.sign(&hash)).0,
        hash,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn theirs(lists: [&str; 10], follows: bool) -> Vec<u8> {
        let writer = Writer::message(KEXINIT).raw(&[0; COOKIE]);
        lists.iter().fold(writer, |writer, list| writer.string(list)).boolean(follows).uint32(0).0
    }

    #[test]
    fn agreement() {
        let same = OFFER.map(|(_, ours, _)| ours);
        assert_eq!(agree(&theirs(same, true)), Ok(false));
        let mut more = same;
        (more[0], more[2]) = ("mlkem768x25519-sha256,curve25519-sha256", "aes128-ctr,aes256-gcm@openssh.com");
        assert_eq!(agree(&theirs(more, false)), Ok(false));
        assert_eq!(agree(&theirs(more, true)), Ok(true), "the guess was wrong");
        let mut other = same;
        other[3] = "aes128-ctr";
        assert_eq!(agree(&theirs(other, false)), Err(Error::NoCommon("cipher")));
        (other[3], other[4]) = (CIPHER, "hmac-md5");
        assert_eq!(agree(&theirs(other, false)), Ok(false), "MACs do not matter");
        assert_eq!(agree(&theirs(same, false)[..40]), Err(Error::Malformed));
        assert_eq!(agree(&init().unwrap()), Ok(false));
    }
}
