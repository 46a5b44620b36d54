//! For tests: that a file of `docs/formats`, which a page of the manual is made of, has all that a program reads.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;

/// A key that nobody reads.
const STRANGE: &str = "_";

/// Checks that `T` takes each key of the text, also those that are commented out, and has no other. `T` and the types in
/// it refuse what they do not know (`#[serde(deny_unknown_fields)]`), or are not looked into.
///
/// # Errors
/// What `T` does not take, or what it has besides.
pub fn check<T: DeserializeOwned>(text: &str) -> Result<(), String> {
    let lines = uncommented(text);
    let parse = |lines: &[&str]| toml::from_str::<T>(&lines.join("\n")).map(drop);
    parse(&lines).map_err(|error| error.to_string())?;
    let documented = keys(&lines);
    let headers = lines.iter().enumerate().filter_map(|(at, line)| Some((at + 1, table(line)?)));
    for (at, table) in std::iter::once((0, "")).chain(headers) {
        let strange = format!("{STRANGE} = 0");
        let with = [&lines[..at], &[strange.as_str()], &lines[at..]].concat();
        let Err(error) = parse(&with) else { continue };
        // "unknown field `_`, expected one of `a`, `b`", or just "expected `a`".
        let Some((_, expected)) = error.message().split_once(&format!("unknown field `{STRANGE}`, ")) else {
            continue;
        };
        let has = &documented[table];
        let missing: Vec<_> =
            expected.split('`').skip(1).step_by(2).filter(|key| !has.contains(key)).collect();
        if !missing.is_empty() {
            return Err(format!("[{table}] does not tell of {}", missing.join(", ")));
        }
    }
    Ok(())
}

/// Without examples and text.
fn uncommented(text: &str) -> Vec<&str> {
    let text = text.split("# EXAMPLES").next().unwrap_or_default();
    let is_said = |line: &&str| !line.is_empty() && !line.starts_with([' ', '#']);
    text.lines().map(|line| line.strip_prefix('#').unwrap_or(line)).filter(is_said).collect()
}

/// The name in a header, of a list of tables, too.
fn table(line: &str) -> Option<&str> {
    line.starts_with('[').then(|| line.trim_matches(['[', ']']))
}

/// The keys of each table, tables in it included; lists of tables have those of all.
fn keys<'a>(lines: &[&'a str]) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let mut keys = BTreeMap::from([("", BTreeSet::new())]);
    let mut here = "";
    for line in lines {
        if let Some(name) = table(line) {
            here = name;
            keys.entry(name).or_default();
            let (outer, inner) = name.rsplit_once('.').unwrap_or(("", name));
            // `[tools.NAME]` is all that there is of `tools`.
            let (outer, inner) = if keys.contains_key(outer) { (outer, inner) } else { ("", outer) };
            keys.entry(outer).or_default().insert(inner);
        } else if let Some((key, _)) = line.split_once(" = ") {
            keys.entry(here).or_default().insert(key);
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only their names matter")]
    struct Sample {
        count: u32,
        #[serde(default)]
        part: Vec<Part>,
        #[serde(default)]
        tools: BTreeMap<String, Part>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only their names matter")]
    struct Part {
        name: Option<String>,
        size: Option<u32>,
    }

    #[test]
    fn what_is_not_told_of_is_found() {
        let whole = "# Text = x.\ncount = 1\n\n#[[part]]\n#name = \"a\"\n\n[[part]]\nsize = 1\n\n[tools.x]\n#name = \"b\"\nsize = 2\n# EXAMPLES\n#count = 3\n";
        assert_eq!(check::<Sample>(whole), Ok(()));
        let refused = |from, to| check::<Sample>(&whole.replace(from, to)).expect_err("refused");
        assert_eq!(refused("#name = \"b\"\n", ""), "[tools.x] does not tell of name");
        assert_eq!(refused("[tools.x]\n", "[[part]]\n"), "[] does not tell of tools");
        assert!(refused("count = 1", "count = 1\n#cuont = 2").contains("unknown field `cuont`"));
    }
}
