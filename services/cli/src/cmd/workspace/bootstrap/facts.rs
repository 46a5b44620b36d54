//! What a guest has, found out by one command. What it answers may be anything.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use banger_api::options::OptionsBuilder;
use banger_api::{Error, ErrorKind, Result};

use super::plan::Facts;
use crate::Context;
use crate::cmd::packages::MANAGERS;
use crate::stream;

/// Says what there is, a line each. Its arguments: the names of package managers and directories with programs, both
/// divided by colons, what relative ones are below, then names and tests of tools.
const PROBE: &str = r#"managers=$1 directories=$2 workspace=$3; shift 3
set -f
IFS=:
for directory in $directories; do
    case $directory in
        /*) ;;
        '~/'*) directory=$HOME/${directory#??} ;;
        *) directory=$workspace/$directory ;;
    esac
    PATH=$directory:$PATH
done
for manager in $managers; do
    if command -v "$manager" >/dev/null; then echo "manager $manager"; break; fi
done
unset IFS
while read -r interface destination rest; do
    if [ "$destination" = 00000000 ]; then echo network; fi
done </proc/net/route
echo "path $PATH"
echo "home $HOME"
echo "owner $(id -u):$(id -g)"
while [ $# -gt 1 ]; do
    if /bin/sh -ec "$2" </dev/null >/dev/null 2>&1; then echo "tool $1"; fi
    shift 2
done"#;

/// No guest has more to say.
const MAX_ANSWER: usize = 256 << 10;

/// What is asked.
#[derive(Debug, Default)]
pub struct Question<'a> {
    /// As whom; `None`: as the image says.
    pub user: Option<&'a str>,
    /// Where programs are looked for besides `PATH`.
    pub path: Vec<&'a str>,
    /// What relative ones of these are below. It need not be there yet.
    pub workspace: &'a str,
    /// Tools, and how to find out whether they are there.
    pub tests: Vec<(String, String)>,
}

/// What the guest answers.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub facts: Facts,
    /// `PATH` with the directories that were asked about.
    pub path: String,
    /// Of the user.
    pub home: String,
    /// The user and the group, by their numbers.
    pub owner: String,
}

/// # Errors
/// Those of the guest. That it has no shell is an answer.
pub async fn ask(context: &Context, vm: &str, question: &Question<'_>) -> Result<Answer> {
    let sessions = context.bus.sessions().await?;
    let options = OptionsBuilder::new().set("user", question.user).set("directory", Some("/")).build();
    let (managers, path) = (MANAGERS.join(":"), question.path.join(":"));
    let mut argv = vec!["/bin/sh", "-c", PROBE, "sh", &managers, &path, question.workspace];
    argv.extend(question.tests.iter().flat_map(|(name, test)| [name.as_str(), test.as_str()]));
    let started = sessions.exec(vm, &argv, &BTreeMap::new(), options).await;
    let (_, _, stdin, out, err) = match started.map_err(Error::from) {
        Err(error) if error.kind() == ErrorKind::CommandNotFound => return Ok(Answer::default()),
        started => started?,
    };
    drop((stdin, err));
    let answer = stream::read_up_to(OwnedFd::from(out), MAX_ANSWER).await?;
    Ok(parse(&String::from_utf8_lossy(&answer)))
}

fn parse(text: &str) -> Answer {
    let mut answer = Answer { facts: Facts { shell: true, ..Facts::default() }, ..Answer::default() };
    let mut there = BTreeSet::new();
    for line in text.lines() {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("manager", name) => {
                answer.facts.manager = MANAGERS.into_iter().find(|known| *known == name).map(str::to_owned);
            }
            ("network", _) => answer.facts.network = true,
            ("path", path) => path.clone_into(&mut answer.path),
            ("home", home) => home.clone_into(&mut answer.home),
            ("owner", owner) => owner.clone_into(&mut answer.owner),
            ("tool", name) => drop(there.insert(name.to_owned())),
            _ => {}
        }
    }
    answer.facts.there = there;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn answers_are_read_as_they_come() {
        let text =
            "manager apk\nnetwork\npath /a:/b c\nhome /root\nowner 0:0\ntool make\ntool x y\nwhatever\n\n";
        let there = ["make", "x y"].map(str::to_owned).into();
        let facts = Facts { shell: true, network: true, manager: Some("apk".into()), there };
        let (path, home, owner) = ("/a:/b c".into(), "/root".into(), "0:0".into());
        assert_eq!(parse(text), Answer { facts, path, home, owner });
        assert_eq!(parse("manager pacman\n").facts.manager, None);
    }

    /// As a guest would do it, on the host.
    #[test]
    fn the_question_is_understood() {
        let output = Command::new("/bin/sh")
            .args([
                "-c",
                PROBE,
                "sh",
                "no-such:sh",
                "/x:~/y:bin",
                "/src",
                "a",
                "command -v 'sh'",
                "b",
                "false\ntrue",
            ])
            .env("HOME", "/home/me")
            .output()
            .expect("runs");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let path = text.lines().find_map(|line| line.strip_prefix("path ")).expect("a path");
        assert!(path.starts_with("/src/bin:/home/me/y:/x:/"), "{path}");
        assert!(text.starts_with("manager sh\n") && text.contains("\nhome /home/me\nowner "), "{text}");
        assert!(text.ends_with("\ntool a\n"), "{text}");
    }
}
