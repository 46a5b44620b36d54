//! Words of shells.

/// As one word of a shell's.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A command line for a shell, and for people: quoted only where it has to be.
pub fn line(words: &[String]) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    let word = |word: &String| {
        let plain = !word.is_empty() && word.chars().all(is_plain);
        if plain { word.clone() } else { quote(word) }
    };
    words.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words() {
        assert_eq!(quote("it's"), r"'it'\''s'");
        let words = ["a/b:c", "", "x y", "it's", "$HOME", "~"].map(str::to_owned);
        assert_eq!(line(&words), r"a/b:c '' 'x y' 'it'\''s' '$HOME' '~'");
    }
}
