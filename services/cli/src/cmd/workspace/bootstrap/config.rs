//! `workspace.conf`: what asks for which tools and how a guest gets them, and how coding agents are run. What it says is
//! data; banger knows no tool and no agent by name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use banger_api::{ErrorKind, Result};
use banger_config::DIRECTORIES;
use serde::{Deserialize, Deserializer, Serialize};

use crate::cmd::packages;
use crate::dirs;
use crate::shell::quote;

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether guests get tools unless the command line says otherwise. Without a file that says so, they do not.
    pub bootstrap: bool,
    pub tools: BTreeMap<String, Tool>,
    pub presets: BTreeMap<String, Preset>,
}

/// Something that files of a repository, or a preset, ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tool {
    /// Who has less comes first; those who have the same, by their names.
    pub order: i32,
    /// Paths in the repository, with `*` and `?` within a name: any of them asks for it.
    pub files: Vec<String>,
    /// The same: any of them says that another tool is asked for instead.
    pub unless: Vec<String>,
    /// Programs that the guest has if it has the tool.
    pub commands: Vec<String>,
    /// A script that succeeds if the guest has the tool, where programs alone do not say so.
    pub check: Option<String>,
    /// The tool's packages, by who installs them.
    #[serde(deserialize_with = "package_names")]
    pub packages: BTreeMap<String, Vec<String>>,
    /// A script that installs it where no package does. As root.
    pub install: Option<String>,
    /// Tools that `install` and `run` need.
    pub needs: Vec<String>,
    /// A script for the repository: in its directory, as its owner.
    pub run: Option<String>,
    /// Whether `run` does without a network.
    pub offline: bool,
    /// Where programs are that `run` brings along: below the repository, or `~/…`, or absolute.
    #[serde(deserialize_with = "directories")]
    pub path: Vec<String>,
}

/// How a coding agent is run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Preset {
    /// Tools, the agent itself one of them.
    pub needs: Vec<String>,
    /// Command line, where none is given.
    pub command: Vec<String>,
    /// Files and directories of the caller's home that go into that of the guest's user.
    #[serde(deserialize_with = "home_files")]
    pub files: Vec<PathBuf>,
    /// As `--env`: `NAME`, which the caller may have, or `NAME=VALUE`.
    pub environment: Vec<String>,
}

fn package_names<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<BTreeMap<String, Vec<String>>, D::Error> {
    let packages = BTreeMap::<String, Vec<String>>::deserialize(deserializer)?;
    for (manager, names) in &packages {
        if !packages::MANAGERS.contains(&manager.as_str()) {
            let known = packages::MANAGERS.join(", ");
            return Err(serde::de::Error::custom(format!("packages of {manager:?}; banger knows {known}")));
        }
        if let Some(bad) = names.iter().find(|name| !packages::is_name(name)) {
            return Err(serde::de::Error::custom(format!("{bad:?} is not the name of a package")));
        }
    }
    Ok(packages)
}

fn directories<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<String>, D::Error> {
    let directories = Vec::<String>::deserialize(deserializer)?;
    match directories.iter().find(|directory| directory.is_empty() || directory.contains(':')) {
        Some(bad) => Err(serde::de::Error::custom(format!("{bad:?} cannot be a directory of PATH"))),
        None => Ok(directories),
    }
}

fn home_files<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<PathBuf>, D::Error> {
    let files = Vec::<PathBuf>::deserialize(deserializer)?;
    let is_inside = |path: &Path| {
        path.file_name().is_some() && path.components().all(|part| matches!(part, Component::Normal(_)))
    };
    match files.iter().find(|path| !is_inside(path)) {
        Some(bad) => Err(serde::de::Error::custom(format!("{bad:?} is not a path below the home directory"))),
        None => Ok(files),
    }
}

impl Tool {
    /// A script that succeeds if the guest has it; `None` if there is nothing to have.
    pub fn test(&self) -> Option<String> {
        let commands = self.commands.iter().map(|command| format!("command -v {}", quote(command)));
        let tests: Vec<_> = commands.chain(self.check.clone()).collect();
        (!tests.is_empty()).then(|| tests.join("\n"))
    }
}

impl Config {
    /// # Errors
    /// `InvalidArgs` naming the file and the line.
    pub fn load() -> Result<Self> {
        let own = dirs::directory("XDG_CONFIG_HOME", ".config").map(|own| own.join("banger"));
        let directories: Vec<_> = DIRECTORIES.iter().map(Path::new).chain(own.as_deref().ok()).collect();
        let config: Self = banger_config::load_from(&directories, "workspace")?;
        config.check()?;
        Ok(config)
    }

    /// # Errors
    /// `InvalidArgs` if there is none, saying which there are.
    pub fn preset(&self, name: &str) -> Result<&Preset> {
        self.presets.get(name).ok_or_else(|| {
            let known: Vec<_> = self.presets.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "there is none".to_owned() } else { known.join(", ") };
            ErrorKind::InvalidArgs.error(format!("{name:?} is no preset of workspace.conf: {known}"))
        })
    }

    /// These tools, and what they need.
    pub fn closure<'a>(&'a self, names: impl IntoIterator<Item = &'a str>) -> BTreeSet<&'a str> {
        let mut found = BTreeSet::new();
        let mut open: Vec<_> = names.into_iter().collect();
        while let Some(name) = open.pop() {
            if let Some(tool) = self.tools.get(name)
                && found.insert(name)
            {
                open.extend(tool.needs.iter().map(String::as_str));
            }
        }
        found
    }

    /// What no file can be blamed for alone.
    fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(ErrorKind::InvalidArgs.error(format!("workspace.conf: {what}")));
        let tools = self.tools.iter().map(|(name, tool)| ("tool", name, &tool.needs));
        let presets = self.presets.iter().map(|(name, preset)| ("preset", name, &preset.needs));
        for (kind, name, needs) in tools.chain(presets) {
            if let Some(unknown) = needs.iter().find(|need| !self.tools.contains_key(*need)) {
                return wrong(format!("the {kind} {name} needs {unknown:?}, which is no tool"));
            }
        }
        let needs_itself = |(name, tool): &(&String, &Tool)| {
            self.closure(tool.needs.iter().map(String::as_str)).contains(name.as_str())
        };
        match self.tools.iter().find(needs_itself) {
            Some((name, _)) => wrong(format!("the tool {name} needs itself")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_has_every_key_and_its_default() {
        let text = include_str!("../../../../../../docs/formats/workspace.conf");
        assert_eq!(banger_config::reference::check::<Config>(text), Ok(()));
        assert_eq!(toml::from_str::<Config>(text).expect("parses"), Config::default());
    }

    /// The files of the distribution, as they are installed.
    pub const SHIPPED: &str = include_str!("../../../../../../packaging/config/workspace.conf");

    #[test]
    fn what_is_shipped_makes_sense() {
        let config: Config = toml::from_str(SHIPPED).expect("parses");
        config.check().expect("checks");
        assert!(config.bootstrap);
        for (name, tool) in &config.tools {
            let does = tool.run.is_some() || !tool.packages.is_empty() || tool.install.is_some();
            assert!(does, "{name} does nothing");
            let obtainable = tool.test().is_none() || !tool.packages.is_empty() || tool.install.is_some();
            assert!(obtainable, "nothing gets {name}");
        }
        for (name, preset) in &config.presets {
            let agent = preset.command.first().expect(name);
            let tools = preset.needs.iter().map(|need| &config.tools[need]);
            assert!(tools.flat_map(|tool| &tool.commands).any(|command| command == agent), "{name}");
        }
    }

    #[test]
    fn mistakes_are_refused() {
        let refused = |text: &str| match toml::from_str::<Config>(text) {
            Err(error) => error.message().to_owned(),
            Ok(config) => config.check().expect_err(text).to_string(),
        };
        for (text, words) in [
            ("[tools.a]\nfile = [\"x\"]", "unknown field `file`"),
            ("[tools.a]\npackages = { pacman = [\"x\"] }", "banger knows apt-get"),
            ("[tools.a]\npackages = { apk = [\"--force\"] }", "not the name of a package"),
            ("[tools.a]\npath = [\"a:b\"]", "directory of PATH"),
            ("[presets.a]\nfiles = [\"../x\"]", "below the home"),
            ("[presets.a]\nfiles = [\"/etc/passwd\"]", "below the home"),
            ("[presets.a]\nfiles = [\"\"]", "below the home"),
            ("[presets.a]\nneeds = [\"b\"]", "which is no tool"),
            ("[tools.a]\nneeds = [\"b\"]\n[tools.b]\nneeds = [\"a\"]", "needs itself"),
        ] {
            let message = refused(text);
            assert!(message.contains(words), "{text}: {message}");
        }
        let config: Config = toml::from_str("[presets.one]\n[presets.two]").expect("parses");
        let message = config.preset("three").expect_err("none").to_string();
        assert!(message.contains("one, two"), "{message}");
    }

    #[test]
    fn words_of_shells() {
        let tool = Tool { commands: vec!["a".into()], check: Some("b".into()), ..Tool::default() };
        assert_eq!(tool.test().as_deref(), Some("command -v 'a'\nb"));
        assert_eq!(Tool::default().test(), None);
    }
}
