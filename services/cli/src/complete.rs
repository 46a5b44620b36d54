//! What a shell offers where a word is to be completed: clap's words, and live names, which the services are asked
//! for. Whatever goes wrong there, and whatever takes long, is no names.
//!
//! A shell calls `COMPLETE=SHELL banger -- WORD…` (clap's own way, `CompleteEnv`). Its script comes from
//! `banger completion SHELL`, and packages install it.

mod bash;
mod names;

use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgMatches, Command, CommandFactory};
use clap_complete::engine::{
    ArgValueCandidates, ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter,
};
use clap_complete::env::{CompleteEnv, Elvish, Fish, Powershell, Shells, Zsh};

use crate::args::Arguments;
use bash::Bash;
use names::What;

const VARIABLE: &str = "COMPLETE";
const SHELLS: Shells<'_> = Shells(&[&Bash, &Elvish, &Fish, &Powershell, &Zsh]);

/// Answers a shell that asks, and ends then. For nothing else is it called by, this does nothing.
pub fn answer() {
    CompleteEnv::with_factory(command).var(VARIABLE).shells(SHELLS).complete();
}

/// What makes a shell ask.
///
/// # Errors
/// Never, as it is written to memory.
pub fn script(shell: clap_complete::Shell) -> std::io::Result<String> {
    let mut script = Vec::new();
    let shell = shell.to_string();
    if let Some(shell) = SHELLS.completer(&shell) {
        shell.write_registration(VARIABLE, "banger", "banger", "banger", &mut script)?;
    }
    if shell == "zsh" {
        // As a file among the functions that zsh loads, it is called the first time.
        script.extend_from_slice(
            b"\nif [ \"$funcstack[1]\" = \"_banger\" ]; then\n    _clap_dynamic_completer_banger \"$@\"\nfi\n",
        );
    }
    String::from_utf8(script).map_err(std::io::Error::other)
}

/// The command line with what completes its arguments.
fn command() -> Command {
    let mut command = Arguments::command();
    // With what clap adds itself.
    command.build();
    with_names(command, &[])
}

fn with_names(command: Command, path: &[String]) -> Command {
    let inside = |path: &[String], name: &str| [path, &[name.to_owned()]].concat();
    let of = path.to_vec();
    command.mut_args(move |arg| completed(arg, &of)).mut_subcommands(|command| {
        let path = inside(path, command.get_name());
        with_names(command, &path)
    })
}

fn completed(arg: Arg, path: &[String]) -> Arg {
    // Options are offered where nothing else is, or a dash has been typed.
    let arg = if arg.is_positional() { arg } else { arg.hide(true) };
    let words: Vec<&str> = path.iter().map(String::as_str).collect();
    match names::of(&words, &arg) {
        None => arg,
        Some(What::Place) => arg.add(ArgValueCompleter::new(Place)),
        Some(what) => {
            let id = arg.get_id().to_string();
            arg.add(ArgValueCandidates::new(move || candidates(what, &Typed::new(), Some(&id))))
        }
    }
}

fn candidates(what: What, typed: &Typed, argument: Option<&str>) -> Vec<CompletionCandidate> {
    // What is there already is not wanted once more.
    let taken = argument.map(|id| typed.values(id)).unwrap_or_default();
    let names = names::ask(what, typed).into_iter().filter(|(name, _)| !taken.contains(name));
    names.map(|(name, says)| CompletionCandidate::new(name).help(says.map(Into::into))).collect()
}

/// One side of `banger cp`.
struct Place;

impl ValueCompleter for Place {
    fn complete(&self, current: &OsStr) -> Vec<CompletionCandidate> {
        let mut places = PathCompleter::any().stdio().complete(current);
        let text = current.to_string_lossy();
        if !text.contains(['/', ':']) {
            let vms = candidates(What::Vms(names::RUNNING), &Typed::new(), None);
            let vms = vms.into_iter().filter(|vm| vm.get_value().to_string_lossy().starts_with(&*text));
            places.extend(vms.map(|vm| {
                let place = format!("{}:", vm.get_value().to_string_lossy());
                CompletionCandidate::new(place).help(vm.get_help().cloned())
            }));
        }
        places
    }
}

/// What stands before the word.
struct Typed(ArgMatches);

impl Typed {
    fn new() -> Self {
        Self::of(before(std::env::args_os().collect(), std::env::var_os("_CLAP_COMPLETE_INDEX").as_deref()))
    }

    /// Of words that may be wrong, or not enough.
    fn of(words: Vec<OsString>) -> Self {
        let command = Arguments::command().ignore_errors(true);
        Self(command.try_get_matches_from(words).unwrap_or_default())
    }

    fn outer(&self) -> &ArgMatches {
        &self.0
    }

    fn values(&self, id: &str) -> Vec<String> {
        let mut matches = &self.0;
        while let Some((_, inner)) = matches.subcommand() {
            matches = inner;
        }
        let raw = matches.try_get_raw(id).ok().flatten().into_iter().flatten();
        raw.map(|value| value.to_string_lossy().into_owned()).collect()
    }
}

/// The words before the one that is completed. Bash and zsh say which that is; for the others it is the last.
fn before(arguments: Vec<OsString>, index: Option<&OsStr>) -> Vec<OsString> {
    let mut words: Vec<_> = arguments.into_iter().skip_while(|word| word != "--").skip(1).collect();
    let index = index.and_then(|index| index.to_str()?.parse().ok());
    words.truncate(index.unwrap_or(words.len().saturating_sub(1)));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn what_was_typed_before_is_known() {
        let typed = Typed::of(words("banger -H h session attach web"));
        assert_eq!(typed.values("vm"), ["web"]);
        assert_eq!(
            typed.outer().get_one::<crate::away::Host>("host").map(ToString::to_string),
            Some("h".into())
        );
        assert_eq!(Typed::of(words("banger stop -t 5 a b")).values("vms"), ["a", "b"]);
        assert!(Typed::of(words("banger nonsense --x")).values("vm").is_empty());
        let line = words("/usr/bin/banger -- banger stop a");
        assert_eq!(before(line.clone(), None), words("banger stop"));
        assert_eq!(before(line, Some(OsStr::new("1"))), words("banger"));
    }

    /// Whatever is called by the name of something has candidates.
    #[test]
    fn every_name_is_asked_for() {
        fn walk(command: &Command, path: &[String]) {
            let words: Vec<&str> = path.iter().map(String::as_str).collect();
            for arg in command.get_arguments() {
                let placeholder =
                    arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
                if ["VM", "IMAGE", "SESSION"].contains(&placeholder) {
                    assert!(names::of(&words, arg).is_some(), "{path:?} {}", arg.get_id());
                }
            }
            for inner in command.get_subcommands() {
                walk(inner, &[path, &[inner.get_name().to_owned()]].concat());
            }
        }
        let mut command = Arguments::command();
        command.build();
        walk(&command, &[]);
        super::command().debug_assert();
    }

    #[test]
    fn scripts_ask() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let script = script(shell).expect("is made");
            assert!(
                script.contains(&format!("COMPLETE=\"{shell}\""))
                    || script.contains(&format!("COMPLETE={shell}")),
                "{script}"
            );
        }
        assert!(script(clap_complete::Shell::Zsh).expect("is made").starts_with("#compdef banger\n"));
    }
}
