//! bash, which takes words apart at `:` and `=`, and so what an image or a port is called by. clap's own script does
//! not put them together.

use std::ffi::OsString;
use std::io::{Result, Write};
use std::path::Path;

use clap_complete::env::EnvCompleter;

#[derive(Debug)]
pub struct Bash;

/// The line up to the cursor, and of the last word what bash puts the answer in place of.
const LINE: &str = "_BANGER_LINE";
const PIECE: &str = "_BANGER_PIECE";

impl EnvCompleter for Bash {
    fn name(&self) -> &'static str {
        "bash"
    }

    fn is(&self, name: &str) -> bool {
        name == "bash"
    }

    fn write_registration(
        &self,
        var: &str,
        name: &str,
        bin: &str,
        completer: &str,
        buf: &mut dyn Write,
    ) -> Result<()> {
        write!(
            buf,
            r#"_{name}() {{
    local IFS=$'\n'
    COMPREPLY=($({LINE}="${{COMP_LINE:0:COMP_POINT}}" {PIECE}="$2" \
        {var}=bash {completer} -- "${{COMP_WORDS[@]:0:COMP_CWORD+1}}" 2>/dev/null))
    [[ ${{#COMPREPLY[@]}} -eq 1 && $COMPREPLY == *[/:=] ]] && compopt -o nospace
    return 0
}}
complete -o bashdefault -o nosort -F _{name} {bin}
"#
        )
    }

    fn write_complete(
        &self,
        cmd: &mut clap::Command,
        args: Vec<OsString>,
        current_dir: Option<&Path>,
        buf: &mut dyn Write,
    ) -> Result<()> {
        let variable = |name| std::env::var(name).unwrap_or_default();
        let words: Vec<_> = args.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let words = joined(&words, &variable(LINE));
        let last = words.last().cloned().unwrap_or_default();
        let typed = last.len().saturating_sub(variable(PIECE).len());
        let index = words.len().saturating_sub(1);
        let words = words.into_iter().map(OsString::from).collect();
        for candidate in clap_complete::engine::complete(cmd, words, index, current_dir)? {
            let value = candidate.get_value().to_string_lossy();
            writeln!(buf, "{}", value.get(typed..).unwrap_or(&value))?;
        }
        Ok(())
    }
}

/// The words of a line whose end is the cursor, from pieces of it.
pub fn joined(pieces: &[String], line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut rest = line;
    for piece in pieces {
        let trimmed = rest.trim_start();
        let is_apart = trimmed.len() < rest.len() || words.is_empty();
        // The last one may go on behind the cursor.
        let piece = if trimmed.starts_with(piece.as_str()) { piece.as_str() } else { trimmed };
        rest = &trimmed[piece.len()..];
        match words.last_mut() {
            Some(word) if !is_apart => word.push_str(piece),
            _ => words.push(piece.to_owned()),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_words_again() {
        let joined = |pieces: &[&str], line| {
            let pieces: Vec<_> = pieces.iter().map(|&piece| piece.to_owned()).collect();
            joined(&pieces, line).join("|")
        };
        assert_eq!(
            joined(&["banger", "run", "localhost", ":", "5000/b"], "banger run localhost:5000/b"),
            "banger|run|localhost:5000/b"
        );
        assert_eq!(joined(&["banger", "pull", "debian", ":"], "banger pull debian:"), "banger|pull|debian:");
        assert_eq!(joined(&["banger", "rm", ""], "banger rm "), "banger|rm|");
        assert_eq!(joined(&["banger", "rm", ""], "banger  rm\t"), "banger|rm|");
        assert_eq!(
            joined(&["banger", "exec", "--user", "=", "a", "web"], "banger exec --user=a w"),
            "banger|exec|--user=a|w"
        );
        assert_eq!(joined(&["banger", "cp", "'a b'", "we"], "banger cp 'a b' we"), "banger|cp|'a b'|we");
    }
}
