//! The keys that detach from a session.

/// As docker and podman have it.
pub const DEFAULT: &str = "ctrl-p,ctrl-q";

/// Bytes that detach when they come one after the other; none if there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys(Vec<u8>);

/// What was typed, between the terminal and the session.
#[derive(Debug)]
pub struct Typed {
    keys: Keys,
    /// So many of the keys were typed, and are held back.
    matched: usize,
}

/// From `ctrl-p,ctrl-q`.
///
/// # Errors
/// Which of them is no key.
pub fn parse(text: &str) -> Result<Keys, String> {
    let keys = text.split(',').filter(|key| !key.is_empty());
    keys.map(|key| match (key.as_bytes(), key.strip_prefix("ctrl-").map(str::as_bytes)) {
        (_, Some([control @ (b'@'..=b'_' | b'a'..=b'z')])) => Ok(control & 0x1f),
        ([key], None) if key.is_ascii_graphic() => Ok(*key),
        _ => Err(format!("{key:?} is not a key: use a letter, or ctrl- and a letter")),
    })
    .collect::<Result<_, _>>()
    .map(Keys)
}

impl Typed {
    pub fn new(keys: Keys) -> Self {
        Self { keys, matched: 0 }
    }

    /// What goes to the session, and whether the keys were typed after it. What may be their beginning is held
    /// back until it shows.
    pub fn pass(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let Keys(keys) = &self.keys;
        let mut passed = Vec::with_capacity(bytes.len() + self.matched);
        for &byte in bytes {
            if keys.is_empty() {
                passed.push(byte);
                continue;
            }
            // What was held back may have been the wrong beginning, and a later part of it the right one.
            while self.matched > 0 && keys[self.matched] != byte {
                let held = keys[..self.matched].to_vec();
                let keep =
                    (1..held.len()).find(|&from| keys.starts_with(&held[from..])).unwrap_or(held.len());
                passed.extend_from_slice(&held[..keep]);
                self.matched = held.len() - keep;
            }
            if keys[self.matched] != byte {
                passed.push(byte);
                continue;
            }
            self.matched += 1;
            if self.matched == keys.len() {
                return (passed, true);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        assert_eq!(parse(DEFAULT), Ok(Keys(vec![16, 17])));
        assert_eq!(parse("ctrl-[,a,Q"), Ok(Keys(vec![27, b'a', b'Q'])));
        assert_eq!(parse(""), Ok(Keys(vec![])));
        for bad in ["ctrl-", "ctrl-ab", "ab", "ctrl-p,ä", "ctrl-1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    fn typed(keys: &str, pieces: &[&str]) -> (String, bool) {
        let mut typed = Typed::new(parse(keys).unwrap());
        let mut all = Vec::new();
        for piece in pieces {
            let (passed, detached) = typed.pass(piece.as_bytes());
            all.extend(passed);
            if detached {
                return (String::from_utf8(all).unwrap(), true);
            }
        }
        (String::from_utf8(all).unwrap(), false)
    }

    #[test]
    fn they_are_found_in_any_pieces_and_all_else_passes() {
        assert_eq!(typed(DEFAULT, &["ls\n"]), ("ls\n".into(), false));
        assert_eq!(typed(DEFAULT, &["a\x10\x11b"]), ("a".into(), true));
        assert_eq!(typed(DEFAULT, &["a\x10", "\x11"]), ("a".into(), true));
        assert_eq!(typed(DEFAULT, &["\x10", "b"]), ("\x10b".into(), false));
        assert_eq!(typed(DEFAULT, &["\x10\x10", "\x11"]), ("\x10".into(), true));
        assert_eq!(typed("a,a,b", &["aa", "a", "b"]), ("a".into(), true));
        assert_eq!(typed("", &["\x10\x11"]), ("\x10\x11".into(), false));
    }
}
