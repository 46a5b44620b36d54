//! Object paths of named things.
//!
//! Names are escaped as `sd_bus_path_encode(3)` does it, so that other tools can decode them:
//! every byte that is not an ASCII letter or digit becomes `_xx` (hexadecimal), a leading digit
//! too, and the empty name is `_`.

use zbus::OwnedObjectPath;

/// `prefix/escaped-name`.
pub fn encode(prefix: &str, name: &str) -> OwnedObjectPath {
    let path = format!("{prefix}/{}", escape(name));
    OwnedObjectPath::try_from(path).expect("prefixes are constants and escaped names are valid")
}

/// The name behind an object path, if it lies directly below `prefix`.
pub fn decode(prefix: &str, path: &str) -> Option<String> {
    let label = path.strip_prefix(prefix)?.strip_prefix('/')?;
    unescape(label)
}

fn escape(name: &str) -> String {
    if name.is_empty() {
        return "_".into();
    }
    let mut label = String::with_capacity(name.len());
    for (index, byte) in name.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (index > 0 && byte.is_ascii_digit()) {
            label.push(byte as char);
        } else {
            label.push_str(&format!("_{byte:02x}"));
        }
    }
    label
}

fn unescape(label: &str) -> Option<String> {
    if label == "_" {
        return Some(String::new());
    }
    let mut name = Vec::with_capacity(label.len());
    let mut bytes = label.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'_' => {
                let digits = [bytes.next()?, bytes.next()?];
                let digits = std::str::from_utf8(&digits).ok()?;
                name.push(u8::from_str_radix(digits, 16).ok()?);
            }
            byte if byte.is_ascii_alphanumeric() => name.push(byte),
            _ => return None,
        }
    }
    String::from_utf8(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_like_sd_bus() {
        assert_eq!(encode("/a", "web-1").as_str(), "/a/web_2d1");
        assert_eq!(encode("/a", "1web").as_str(), "/a/_31web");
        assert_eq!(encode("/a", "").as_str(), "/a/_");
    }

    #[test]
    fn comes_back() {
        for name in ["web", "web-1", "9", "", "ä/ö", "a_b"] {
            assert_eq!(decode("/a", encode("/a", name).as_str()).as_deref(), Some(name));
        }
        assert_eq!(decode("/a", "/b/web"), None);
        assert_eq!(decode("/a", "/a/web_2"), None);
    }
}
