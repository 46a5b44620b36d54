//! What the documentation says is so: links lead somewhere, and commands are such that `banger` takes.

use std::path::{Path, PathBuf};

use clap::builder::StringValueParser;
use clap::error::ErrorKind;
use clap::{Command, CommandFactory};

use crate::args::Arguments;

/// A file of the repository, and what is in it.
struct Document {
    path: PathBuf,
    text: String,
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn documents() -> Vec<Document> {
    let directory = |path: &str| {
        let entries = std::fs::read_dir(top().join(path)).expect("a directory");
        entries.map(|entry| entry.expect("an entry").path()).collect::<Vec<_>>()
    };
    let mut paths = directory(".");
    paths.extend(directory("docs"));
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    assert!(paths.len() >= 7, "{paths:?}");
    let read = |path: PathBuf| Document { text: std::fs::read_to_string(&path).expect("reads"), path };
    paths.into_iter().map(read).collect()
}

/// What is code in Markdown: lines of blocks that are no file of some language, and what is within a line of text.
#[derive(Debug, PartialEq)]
struct Code {
    lines: Vec<String>,
    inline: Vec<String>,
    /// All that is neither.
    prose: String,
}

fn code(text: &str) -> Code {
    let (mut lines, mut rest) = (Vec::new(), String::new());
    let mut language = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), language) {
            (Some(of), None) => language = Some(of),
            (Some(_), Some(_)) => language = None,
            (None, Some("")) => lines.push(line.to_owned()),
            (None, Some(_)) => {}
            (None, None) => {
                rest.push_str(line);
                rest.push('\n');
            }
        }
    }
    let mut code = Code { lines, inline: Vec::new(), prose: String::new() };
    for (index, part) in rest.split('`').enumerate() {
        match index % 2 {
            // A bar within a table is written so.
            1 => code.inline.push(part.replace("\\|", "|").replace('\n', " ")),
            _ => code.prose.push_str(part),
        }
    }
    code
}

/// Splits a line into commands of words, as a shell would, of which those of banger's are returned. Drawings
/// begin with a space.
fn commands(line: &str) -> Vec<Vec<String>> {
    let line = if line.starts_with(' ') { "" } else { line.strip_prefix("$ ").unwrap_or(line) };
    let words = shlex::split(line).unwrap_or_default();
    let mut commands = vec![Vec::new()];
    for word in words {
        let last = commands.last_mut().expect("there is one");
        let is_in_brackets = last.iter().any(|word: &String| word.starts_with('['));
        match word.strip_suffix(';') {
            Some(word) => {
                last.push(word.to_owned());
                commands.push(Vec::new());
            }
            None if word == "|" && !is_in_brackets => commands.push(Vec::new()),
            None => last.push(word),
        }
    }
    for command in &mut commands {
        if command.first().is_some_and(|word| word == "sudo") {
            command.remove(0);
        }
        // And so on; after an option it is the value.
        if let [.., before, last] = command.as_slice()
            && last == "…"
            && !before.starts_with('-')
        {
            command.pop();
        }
    }
    commands.retain(|command| command.first().is_some_and(|word| word == "banger"));
    commands
}

/// What is meant by `[--a A | --b B]`, which may be left out, and by `a|b`.
fn variants(words: &[String]) -> Vec<Vec<String>> {
    let Some((word, rest)) = words.split_first() else { return vec![Vec::new()] };
    // Not such as `[USER@]HOST`, which is one word.
    let ends = |word: &str| word.find(']').is_none_or(|at| at + 1 == word.len());
    let optional = |word: &str| word.starts_with('[') && ends(word) && !word.contains(' ');
    let (firsts, rest): (Vec<Vec<String>>, _) = if optional(word) {
        let length = words.iter().position(|word| word.ends_with(']')).expect("a bracket is closed") + 1;
        let inner = words[..length].join(" ");
        let inner = inner.trim_start_matches('[').trim_end_matches(']');
        let choices = inner.split(" | ").map(|choice| choice.split(' ').map(str::to_owned).collect());
        (std::iter::once(Vec::new()).chain(choices).collect(), &words[length..])
    } else {
        (word.split('|').map(|choice| vec![choice.to_owned()]).collect(), rest)
    };
    let rests = variants(rest);
    firsts.iter().flat_map(|first| rests.iter().map(|rest| [first.clone(), rest.clone()].concat())).collect()
}

/// Whether a word stands for what the reader has to put in, such as NAME or VM:PATH.
fn is_placeholder(word: &str) -> bool {
    word.contains('…') || word.as_bytes().windows(2).any(|two| two.iter().all(u8::is_ascii_uppercase))
}

/// The same command line, which takes anything for a value.
fn lenient(command: Command) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let command = command.mut_args(|arg| match arg.get_action().takes_values() {
        true => arg.value_parser(StringValueParser::new()),
        false => arg,
    });
    names.iter().fold(command, |command, name| command.mut_subcommand(name, lenient))
}

/// What is wrong with a command. One in a line of text may lack what everybody would add.
fn wrong(words: &[String], in_text: bool) -> Option<String> {
    let command = match words.iter().any(|word| is_placeholder(word)) {
        true => lenient(Arguments::command()),
        false => Arguments::command(),
    };
    let error = command.try_get_matches_from(words).err()?;
    let is_fine = match error.kind() {
        ErrorKind::DisplayHelp => true,
        ErrorKind::MissingRequiredArgument
        | ErrorKind::MissingSubcommand
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => in_text,
        _ => false,
    };
    let error = error.to_string();
    (!is_fine).then(|| format!("{}: {}", words.join(" "), error.lines().next().unwrap_or_default()))
}

fn wrong_in_text(inline: &str) -> Vec<String> {
    let commands = commands(inline);
    commands.iter().flat_map(|words| variants(words)).filter_map(|words| wrong(&words, true)).collect()
}

/// What `--help` says, of everything.
fn help(command: &Command) -> Vec<String> {
    let own = [command.get_about(), command.get_long_about(), command.get_after_help()];
    let of_args = command.get_arguments().flat_map(|arg| [arg.get_help(), arg.get_long_help()]);
    let own = own.into_iter().chain(of_args).flatten().map(ToString::to_string);
    own.chain(command.get_subcommands().flat_map(help)).collect()
}

#[test]
fn commands_are_such_that_banger_takes() {
    let (mut wrongs, mut count) = (Vec::new(), 0);
    for Document { path, text } in documents() {
        let code = code(&text);
        let in_lines = code.lines.iter().flat_map(|line| commands(line));
        let in_lines = in_lines.inspect(|_| count += 1).filter_map(|words| wrong(&words, false));
        let found: Vec<String> = in_lines.collect();
        let in_text = code.inline.iter().inspect(|inline| count += commands(inline).len());
        let found = found.into_iter().chain(in_text.flat_map(|inline| wrong_in_text(inline)));
        wrongs.extend(found.map(|wrong| format!("{}: {wrong}", path.display())));
    }
    for text in help(&Arguments::command()) {
        wrongs.extend(code(&text).inline.iter().flat_map(|inline| wrong_in_text(inline)));
    }
    assert!(wrongs.is_empty(), "{}", wrongs.join("\n"));
    assert!(count > 100, "{count}");
}

/// The name by which a heading is linked to.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase().replace(' ', "-");
    kept.chars().filter(|char| char.is_alphanumeric() || matches!(char, '-' | '_')).collect()
}

fn headings(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| line.trim_start_matches('#').trim())
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let mut count = 0;
    for Document { path, text } in documents() {
        let prose = code(&text).prose;
        let links = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://")) {
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.with_file_name(file),
            };
            let there = std::fs::read_to_string(&target);
            let there = there.unwrap_or_else(|error| panic!("{}: {link}: {error}", path.display()));
            let known = fragment.is_empty() || headings(&there).into_iter().any(|h| anchor(h) == fragment);
            assert!(known, "{}: {link}: there is no such heading", path.display());
            count += 1;
        }
        // The other way to name a part of the same document.
        for section in
            prose.replace('\n', " ").split("see \"").skip(1).filter_map(|rest| rest.split('"').next())
        {
            assert!(headings(&text).contains(&section), "{}: see {section:?}", path.display());
            count += 1;
        }
    }
    assert!(count >= 5, "{count}");
}

#[test]
fn files_and_tests_and_targets_that_are_named_are_there() {
    const DIRECTORIES: &[&str] = &["dbus/", "docs/", "packaging/", "services/", "tests/", "units/"];
    let makefile = std::fs::read_to_string(top().join("Makefile")).expect("reads");
    let mut tests = String::new();
    for directory in ["tests/system", "tests/system/registries"] {
        for entry in std::fs::read_dir(top().join(directory)).expect("a directory") {
            tests.push_str(&std::fs::read_to_string(entry.expect("an entry").path()).unwrap_or_default());
        }
    }
    for Document { path, text } in documents() {
        let path = path.display();
        let code = code(&text);
        for code in code.lines.iter().chain(&code.inline) {
            for word in code.split(' ').filter(|word| DIRECTORIES.iter().any(|top| word.starts_with(top))) {
                let word = word.trim_end_matches([';', ',']);
                let written = word.contains(['*', '…', '$']);
                assert!(written || top().join(word).exists(), "{path}: there is no {word}");
            }
            let target = code.strip_prefix("sudo ").unwrap_or(code).strip_prefix("make ");
            if let Some(target) = target.and_then(|rest| rest.split(' ').next())
                && target.starts_with(|first: char| first.is_ascii_lowercase())
            {
                let is_phony = makefile.lines().any(|line| line.starts_with(&format!("{target}:")));
                assert!(is_phony, "{path}: make {target}: there is no such target");
            }
        }
        if path.to_string().ends_with("security.md") {
            let is_name = |code: &str| code.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_' | ':'));
            let is_test = |code: &&String| code.matches('_').count() > 1 && is_name(code);
            let named: Vec<_> = code.inline.iter().filter(is_test).collect();
            assert!(named.len() > 3, "{named:?}");
            for name in named {
                let function = name.rsplit("::").next().expect("there is one");
                assert!(tests.contains(&format!("fn {function}()")), "{path}: there is no test {name}");
            }
        }
    }
}

#[test]
fn what_is_wrong_is_found() {
    let line = |line: &str| commands(line).iter().find_map(|words| wrong(words, false));
    assert_eq!(line("$ banger ps -a   # all; `banger xyz` is not looked at"), None);
    assert!(line("banger ps; sudo banger sp").is_some_and(|wrong| wrong.contains("sp")));
    assert!(line("banger set web").is_none() && line("banger set").is_some());
    assert!(line("banger set web --cpus many").is_some());
    for text in [
        "banger image import",
        "banger set NAME --cpus CPUS …",
        "banger set web --publish …",
        "banger start|stop VM",
        "banger [--json] ps",
        "banger image register --kernel K [--initrd I | --modules DIR] ROOTFS NAME",
        "usermod -aG banger x",
    ] {
        assert_eq!(wrong_in_text(text), [] as [String; 0], "{text}");
    }
    for text in ["banger start|stopp VM", "banger ps [--no-such | --all]", "banger ps --nosuch …"] {
        assert_eq!(wrong_in_text(text).len(), 1, "{text}");
    }
    let found = code("a `b` c\n`d\\|e`\n```\nf\n```\n```toml\ng\n```\n");
    assert_eq!((found.lines, found.inline), (vec!["f".to_owned()], vec!["b".to_owned(), "d|e".to_owned()]));
    assert_eq!(anchor("When `banger` is wrong, and why"), "when-banger-is-wrong-and-why");
}
