//! The file that says what an image is made of. Pure but for [`read`].

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use banger_api::{ErrorKind, ImageSettings};
use banger_core::units::parse_size;
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use crate::cmd::packages::is_name as is_package;

/// One script. The kernel takes no longer argument (`MAX_ARG_STRLEN`).
const MAX_SCRIPT: usize = 128 << 10;
/// What scripts are given to unless they say otherwise.
const SHELL: [&str; 2] = ["/bin/sh", "-ec"];

/// A build, as its file has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Build {
    /// What files to be copied are next to.
    pub directory: PathBuf,
    pub base: String,
    pub name: Option<String>,
    /// Variables of scripts that whoever builds may set, and their defaults.
    pub arguments: BTreeMap<String, String>,
    pub machine: Machine,
    pub steps: Vec<Step>,
}

/// The VM that it is built in.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Machine {
    pub cpus: Option<u32>,
    #[serde(deserialize_with = "size")]
    pub memory: Option<u64>,
    #[serde(deserialize_with = "size")]
    pub disk: Option<u64>,
    pub network: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Packages(Vec<String>),
    /// A script, and the command line that it is the last argument of.
    Run {
        script: String,
        shell: Vec<String>,
    },
    Copy(Copy),
    /// What holds from here on: for scripts, and for the image.
    Settings(ImageSettings),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Next to the file.
    pub from: PathBuf,
    /// In the guest.
    pub to: String,
    /// Of a file; that of the original without it.
    pub mode: Option<u32>,
    /// `user`, `uid`, `user:group` or `uid:gid`.
    pub owner: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    base: String,
    name: Option<String>,
    #[serde(default)]
    arguments: BTreeMap<String, String>,
    #[serde(default)]
    machine: Machine,
    #[serde(default, rename = "step")]
    steps: Vec<Spanned<Given>>,
}

/// A step with all that it may have.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Given {
    packages: Option<Vec<String>>,
    run: Option<String>,
    shell: Option<Vec<String>>,
    copy: Option<PathBuf>,
    to: Option<String>,
    #[serde(deserialize_with = "mode")]
    mode: Option<u32>,
    owner: Option<String>,
    environment: BTreeMap<String, String>,
    user: Option<String>,
    workdir: Option<String>,
    entrypoint: Option<Vec<String>>,
    command: Option<Vec<String>>,
    labels: BTreeMap<String, String>,
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    parse_size(&String::deserialize(deserializer)?).map(Some).map_err(serde::de::Error::custom)
}

fn mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let text = String::deserialize(deserializer)?;
    match u32::from_str_radix(&text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(Some(mode)),
        _ => Err(serde::de::Error::custom(format!("{text:?} is not a mode such as \"0644\""))),
    }
}

/// Reads a build's file.
///
/// # Errors
/// `InvalidArgs` naming the file, the line and what is wrong there.
pub fn read(path: &Path) -> banger_api::Result<Build> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        ErrorKind::InvalidArgs.error(format!("cannot read the build's file {}: {error}", path.display()))
    })?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> banger_api::Result<Build> {
    let refuse = |position: usize, message: &str| banger_config::refusal(path, text, position, message);
    let document: Document = toml::from_str(text)
        .map_err(|error| refuse(error.span().map_or(0, |span| span.start), error.message()))?;
    if document.base.is_empty() {
        return Err(refuse(0, "base names no image"));
    }
    let steps = document.steps.into_iter().map(|given| {
        let position = given.span().start;
        step(given.into_inner()).map_err(|reason| refuse(position, &reason))
    });
    Ok(Build {
        directory: path.parent().unwrap_or(Path::new("")).to_owned(),
        base: document.base,
        name: document.name,
        arguments: document.arguments,
        machine: document.machine,
        steps: steps.collect::<banger_api::Result<_>>()?,
    })
}

fn step(given: Given) -> Result<Step, String> {
    let settings = ImageSettings {
        environment: given.environment,
        user: given.user,
        working_directory: given.workdir,
        entrypoint: given.entrypoint,
        command: given.command,
        labels: given.labels,
    };
    let has_settings = !settings.is_empty();
    let kinds = [given.packages.is_some(), given.run.is_some(), given.copy.is_some(), has_settings];
    if kinds.into_iter().filter(|&is_there| is_there).count() != 1 {
        return Err("a step has packages, run, copy, or settings (environment, user, workdir, entrypoint, \
            command, labels): one of the four"
            .into());
    }
    if given.shell.is_some() && given.run.is_none() {
        return Err("shell is for run".into());
    }
    if (given.to.is_some() || given.mode.is_some() || given.owner.is_some()) && given.copy.is_none() {
        return Err("to, mode and owner are for copy".into());
    }
    if let Some(packages) = given.packages {
        return self::packages(packages);
    }
    if let Some(script) = given.run {
        return run(script, given.shell);
    }
    if let Some(from) = given.copy {
        return copy(from, given.to, given.mode, given.owner);
    }
    settings.check().map_err(|error| error.message().to_owned())?;
    Ok(Step::Settings(settings))
}

fn packages(names: Vec<String>) -> Result<Step, String> {
    if names.is_empty() {
        return Err("packages names none".into());
    }
    match names.iter().find(|name| !is_package(name)) {
        Some(bad) => Err(format!("{bad:?} is not the name of a package")),
        None => Ok(Step::Packages(names)),
    }
}

fn run(script: String, shell: Option<Vec<String>>) -> Result<Step, String> {
    let shell = shell.unwrap_or_else(|| SHELL.map(str::to_owned).into());
    if script.trim().is_empty() {
        return Err("run is empty".into());
    }
    if shell.is_empty() {
        return Err("shell is empty; it is a command line such as [\"/bin/bash\", \"-ec\"]".into());
    }
    if script.len() >= MAX_SCRIPT {
        return Err(format!("a script of more than {MAX_SCRIPT} bytes: copy it, and run it"));
    }
    if script.contains('\0') || shell.iter().any(|word| word.contains('\0')) {
        return Err("a zero byte is in the script".into());
    }
    Ok(Step::Run { script, shell })
}

fn copy(from: PathBuf, to: Option<String>, mode: Option<u32>, owner: Option<String>) -> Result<Step, String> {
    let to = to.ok_or("copy needs to: the absolute path in the image")?;
    if !to.starts_with('/') || to.contains('\0') {
        return Err(format!("{to:?} is not an absolute path"));
    }
    // What is built has to be the same wherever the directory is.
    let is_inside = from.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !is_inside {
        return Err(format!("{:?} is not a path below the directory of this file", from.display()));
    }
    let owner = owner.unwrap_or_else(|| "0:0".into());
    if owner.is_empty() || owner.starts_with('-') || owner.contains('\0') {
        return Err(format!("{owner:?} is not an owner such as \"www-data:www-data\""));
    }
    Ok(Step::Copy(Copy { from, to, mode, owner }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_has_every_key() {
        let text = include_str!("../../../../../docs/formats/banger.toml");
        assert_eq!(banger_config::reference::check::<Document>(text), Ok(()));
    }

    fn build(text: &str) -> banger_api::Result<Build> {
        parse(Path::new("/src/banger.toml"), text)
    }

    #[test]
    fn everything_that_can_be_said() {
        let build = build(
            r#"
            base = "debian:12"
            name = "web:1"
            arguments = { version = "1.2" }
            [machine]
            cpus = 2
            memory = "1G"
            network = false
            [[step]]
            packages = ["nginx", "g++"]
            [[step]]
            environment = { A = "1" }
            user = "www-data"
            workdir = "/srv"
            [[step]]
            run = "make"
            shell = ["/bin/bash", "-ec"]
            [[step]]
            copy = "./app"
            to = "/srv/app"
            mode = "4755"
            owner = "www-data"
            [[step]]
            entrypoint = []
            command = ["nginx", "-g"]
            labels = { team = "red" }
            "#,
        )
        .expect("parses");
        assert_eq!((build.base.as_str(), build.name.as_deref()), ("debian:12", Some("web:1")));
        assert_eq!(build.directory, Path::new("/src"));
        assert_eq!(build.machine.memory, Some(1 << 30));
        assert_eq!(build.steps[0], Step::Packages(vec!["nginx".into(), "g++".into()]));
        let Step::Settings(settings) = &build.steps[1] else { panic!("{:?}", build.steps[1]) };
        assert_eq!(settings.working_directory.as_deref(), Some("/srv"));
        assert_eq!(
            build.steps[2],
            Step::Run { script: "make".into(), shell: vec!["/bin/bash".into(), "-ec".into()] }
        );
        let Step::Copy(copy) = &build.steps[3] else { panic!("{:?}", build.steps[3]) };
        assert_eq!((copy.mode, copy.owner.as_str()), (Some(0o4755), "www-data"));
        let Step::Settings(settings) = &build.steps[4] else { panic!("{:?}", build.steps[4]) };
        assert_eq!(settings.entrypoint, Some(vec![]));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, line, words) in [
            ("base = \"x\"\nnmae = \"y\"", 2, "nmae"),
            ("name = \"y\"", 1, "base"),
            ("base = \"\"", 1, "no image"),
            ("base = \"x\"\n[machine]\nmemory = \"much\"", 3, "much"),
            ("base = \"x\"\n\n[[step]]\nrun = \"a\"\nstdin = true", 5, "stdin"),
            ("base = \"x\"\n\n[[step]]\nrun = \"a\"\npackages = [\"b\"]", 3, "one of the four"),
            ("base = \"x\"\n[[step]]\n[[step]]\nrun = \"a\"", 2, "one of the four"),
            ("base = \"x\"\n[[step]]\nrun = \"a\"\nuser = \"b\"", 2, "one of the four"),
            ("base = \"x\"\n[[step]]\nrun = \" \"", 2, "empty"),
            ("base = \"x\"\n[[step]]\npackages = [\"--force\"]", 2, "--force"),
            ("base = \"x\"\n[[step]]\npackages = []", 2, "none"),
            ("base = \"x\"\n[[step]]\npackages = [\"a\"]\nto = \"/b\"", 2, "for copy"),
            ("base = \"x\"\n[[step]]\ncopy = \"a\"", 2, "needs to"),
            ("base = \"x\"\n[[step]]\ncopy = \"a\"\nto = \"b\"", 2, "absolute"),
            ("base = \"x\"\n[[step]]\ncopy = \"../a\"\nto = \"/b\"", 2, "below the directory"),
            ("base = \"x\"\n[[step]]\ncopy = \"/etc/shadow\"\nto = \"/b\"", 2, "below the directory"),
            ("base = \"x\"\n[[step]]\ncopy = \"a\"\nto = \"/b\"\nmode = \"0999\"", 5, "0644"),
            ("base = \"x\"\n[[step]]\nworkdir = \"srv\"", 2, "absolute"),
            ("base = \"x\"\n[[step]]\nenvironment = { \"A=B\" = \"1\" }", 2, "environment"),
            ("base = \"x\"\n[[step]]\nrun = \"a", 3, ""),
        ] {
            let error = build(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidArgs);
            let place = format!("/src/banger.toml:{line}: ");
            assert!(error.message().starts_with(&place), "{text:?}: {}", error.message());
            assert!(error.message().contains(words), "{text:?}: {}", error.message());
        }
        let long = format!("base = \"x\"\n[[step]]\nrun = \"{}\"", "x".repeat(MAX_SCRIPT));
        assert!(build(&long).is_err());
    }
}
