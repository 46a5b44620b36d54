//! What says that a file is the right one: its digest, or a signature by somebody the admin trusts.
//!
//! Signatures are minisign's (<https://jedisct1.github.io/minisign/>), over the whole file. Keys are files
//! `NAME.pub`, as `minisign -G` writes them.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use minisign_verify::{PublicKey, Signature};
use sha2::{Digest, Sha256};

use crate::digest;
use crate::error::{Error, Result};

/// What an import must be.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    /// SHA-256 of the file, hexadecimal.
    pub sha256: Option<String>,
    /// Content of the file's `.minisig`.
    pub signature: Option<String>,
}

/// Whose signatures count, and whether one is needed.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    pub key_dirs: Vec<PathBuf>,
    pub required: bool,
}

impl Claims {
    /// Whether nothing has to be looked at.
    pub fn are_idle(&self, policy: &Policy) -> bool {
        self.sha256.is_none() && self.signature.is_none() && !policy.required
    }

    /// Reads the file once, from its beginning, and holds it against the claims.
    ///
    /// # Errors
    /// If the digest is another one, no trusted key made the signature, or a needed one is missing.
    pub fn check(&self, mut file: &File, policy: &Policy) -> Result<()> {
        let signature = self.signature(policy)?;
        let keys = if signature.is_some() { keys(&policy.key_dirs)? } else { Vec::new() };
        let mut streams = Vec::new();
        for (name, key) in &keys {
            match signature.as_ref().map(|signature| key.verify_stream(signature)) {
                Some(Ok(stream)) => streams.push((name, stream)),
                // It would have to be held in memory whole.
                Some(Err(minisign_verify::Error::UnsupportedLegacyMode)) => {
                    return Err(Error::Untrusted(
                        "the signature is of minisign's old form, made without -H: sign the file again"
                            .into(),
                    ));
                }
                _ => {}
            }
        }
        if signature.is_some() && streams.is_empty() {
            return Err(Error::Untrusted(unknown_key(&policy.key_dirs)));
        }
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        file.seek(SeekFrom::Start(0)).map_err(Error::io("cannot read the file again"))?;
        loop {
            let got = file.read(&mut buffer).map_err(Error::io("cannot read the file again"))?;
            if got == 0 {
                break;
            }
            hash.update(&buffer[..got]);
            for (_, stream) in &mut streams {
                stream.update(&buffer[..got]);
            }
        }
        let found = digest::hex(&hash.finalize());
        if let Some(wanted) = &self.sha256
            && *wanted != found
        {
            return Err(Error::DigestMismatch { what: "the file".into(), wanted: wanted.clone(), found });
        }
        if signature.is_some() {
            let signer =
                streams.iter_mut().find_map(|(name, stream)| stream.finalize().is_ok().then_some(*name));
            let name = signer.ok_or_else(|| {
                Error::Untrusted(
                    "the signature is not of this file: the file or the signature is damaged".into(),
                )
            })?;
            tracing::info!("signed by {name}");
        }
        Ok(())
    }

    fn signature(&self, policy: &Policy) -> Result<Option<Signature>> {
        match &self.signature {
            Some(text) => Signature::decode(text)
                .map(Some)
                .map_err(|error| Error::Untrusted(format!("the signature is none of minisign: {error}"))),
            None if policy.required => Err(Error::Untrusted(
                "it has no signature, and imaged.conf wants one: put NAME.minisig beside the file".into(),
            )),
            None => Ok(None),
        }
    }
}

fn unknown_key(dirs: &[PathBuf]) -> String {
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    format!("no trusted key made the signature: put the signer's NAME.pub into {}", dirs.join(" or "))
}

/// All keys, by the names of their files. Of two with one name the first directory's counts.
fn keys(dirs: &[PathBuf]) -> Result<Vec<(String, PublicKey)>> {
    let mut keys: Vec<(String, PublicKey)> = Vec::new();
    for dir in dirs {
        let Ok(entries) = fs::read_dir(dir) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".pub")) else {
                continue;
            };
            if keys.iter().all(|(known, _)| known != name) {
                keys.push((name.to_owned(), read_key(&path)?));
            }
        }
    }
    Ok(keys)
}

fn read_key(path: &Path) -> Result<PublicKey> {
    let unusable = |reason: String| Error::Unreadable { what: path.display().to_string(), reason };
    let text = fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
    PublicKey::decode(text.trim()).map_err(|error| unusable(format!("it is no key of minisign: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const KEY: &str = "untrusted comment: minisign public key 8247197669CC0B20
RWQgC8xpdhlHgqSNhfoTikGkTkqfhJ7cUfiPDtGtwJ1RSsn0u9PoUNcg
";
    const OTHER_KEY: &str = "untrusted comment: minisign public key 583225C61AF5B35D
RWRds/UaxiUyWG79mWOFcxjdlf5SBY7yx01Z7iIiGS4d8NHl2OOD8DPA
";
    const CONTENT: &[u8] = b"hello bundle\n";
    /// Of the content, by the first key.
    const SIGNATURE: &str = "untrusted comment: signature from minisign secret key
RUQgC8xpdhlHgjAn1s5/7mG4/q7UO7RnUatxyVRnLbgX98hpveWO+5KCfAu7h8sSze+51gudcEOnhj/oERqOEo4iWGNOi4/XNAo=
trusted comment: timestamp:1795251862\tfile:f\thashed
ZCICNtgmu73wYvF8NQ7wY7ycjzHMyMU2PakuSewAR3zGoNkigy6ktkNrxlpnbKvTU14OrSEDnAxQdJSWbwLlAw==
";

    fn check(content: &[u8], claims: Claims, keys: &[&str], required: bool) -> Result<(), String> {
        let dir = tempfile::tempdir().expect("a directory");
        for (number, key) in keys.iter().enumerate() {
            fs::write(dir.path().join(format!("{number}.pub")), key).expect("written");
        }
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(content).expect("written");
        let policy = Policy { key_dirs: vec!["/no/such".into(), dir.path().into()], required };
        claims.check(&file, &policy).map_err(|error| error.to_string())
    }

    fn signed(text: &str) -> Claims {
        Claims { signature: Some(text.into()), ..Claims::default() }
    }

    #[test]
    fn signatures_by_trusted_keys_count() {
        assert_eq!(check(CONTENT, signed(SIGNATURE), &[OTHER_KEY, KEY], true), Ok(()));
        let refusal = |outcome: Result<(), String>| outcome.expect_err("refused");
        assert!(refusal(check(CONTENT, signed(SIGNATURE), &[OTHER_KEY], false)).contains("no trusted key"));
        assert!(refusal(check(CONTENT, signed(SIGNATURE), &[], false)).contains("no trusted key"));
        assert!(refusal(check(b"hello", signed(SIGNATURE), &[KEY], false)).contains("damaged"));
        assert!(refusal(check(CONTENT, signed("nonsense"), &[KEY], false)).contains("none of minisign"));
        assert!(refusal(check(CONTENT, signed(SIGNATURE), &[KEY, "nonsense"], false)).contains("no key"));
        let old = SIGNATURE.replace("RUQg", "RWQg");
        assert!(refusal(check(CONTENT, signed(&old), &[KEY], false)).contains("without -H"));
        let forged = SIGNATURE.replace("file:f", "file:g");
        assert!(check(CONTENT, signed(&forged), &[KEY], false).is_err());
    }

    #[test]
    fn a_signature_may_be_needed() {
        assert_eq!(check(CONTENT, Claims::default(), &[KEY], false), Ok(()));
        assert!(
            check(CONTENT, Claims::default(), &[KEY], true)
                .expect_err("refused")
                .contains("has no signature")
        );
    }

    #[test]
    fn digests_are_compared() {
        let pinned = |digest: &str| Claims { sha256: Some(digest.into()), ..Claims::default() };
        assert_eq!(check(CONTENT, pinned(&digest::sha256(CONTENT)), &[], false), Ok(()));
        assert!(check(CONTENT, pinned(&"0".repeat(64)), &[], false).is_err());
    }
}
