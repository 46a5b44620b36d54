//! Configuration files: TOML, the admin's `/etc/banger/NAME.conf` over the distribution's
//! `/usr/lib/banger/NAME.conf`, key by key. Both may be missing.

use std::path::Path;

use banger_api::{Error, ErrorKind, Result};
use serde::de::DeserializeOwned;

/// From the weakest to the strongest.
const DIRECTORIES: [&str; 2] = ["/usr/lib/banger", "/etc/banger"];

/// Reads `NAME.conf`. What a file does not say comes from `T`'s defaults (`#[serde(default)]`);
/// what `T` does not know is refused (`#[serde(deny_unknown_fields)]`).
///
/// # Errors
/// `InvalidArgs` naming the file, the line and what is wrong there.
pub fn load<T: DeserializeOwned>(name: &str) -> Result<T> {
    let mut merged = toml::Table::new();
    for directory in DIRECTORIES {
        let path = Path::new(directory).join(format!("{name}.conf"));
        match std::fs::read_to_string(&path) {
            Ok(text) => merged.extend(parse::<T>(&path, &text)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::from(error).context(path.display())),
        }
    }
    merged.try_into().map_err(|error| Error::internal(format!("{name}.conf: {error}")))
}

/// The keys of one file, each of which `T` takes.
fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<toml::Table> {
    let refuse = |error: toml::de::Error| {
        let position = error.span().map_or(0, |span| span.start);
        let line = text.get(..position).unwrap_or_default().matches('\n').count() + 1;
        let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        ErrorKind::InvalidArgs.error(format!("{}:{line}: {message}", path.display()))
    };
    toml::from_str::<T>(text).map_err(refuse)?;
    toml::from_str(text).map_err(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        on: bool,
        name: String,
    }

    impl Default for Sample {
        fn default() -> Self {
            Self { on: true, name: "x".into() }
        }
    }

    #[test]
    fn mistakes_are_named_with_file_and_line() {
        let refusal =
            |text| parse::<Sample>(Path::new("/etc/x.conf"), text).expect_err("refused").to_string();
        let message = refusal("on = true\nnmae = \"y\"\n");
        assert!(message.starts_with("/etc/x.conf:2: unknown field `nmae`, expected"), "{message}");
        let message = refusal("# no\n\non = \"yes\"");
        assert!(message.starts_with("/etc/x.conf:3: ") && !message.contains('\n'), "{message}");
    }

    #[test]
    fn files_add_up() {
        let mut merged = parse::<Sample>(Path::new("a"), "on = false\nname = \"a\"").expect("parses");
        merged.extend(parse::<Sample>(Path::new("b"), "name = \"b\"").expect("parses"));
        assert_eq!(merged.try_into::<Sample>().expect("fits"), Sample { on: false, name: "b".into() });
    }

    #[test]
    fn no_file_is_no_mistake() {
        assert_eq!(load::<Sample>("no-such-service").expect("loads"), Sample::default());
    }
}
