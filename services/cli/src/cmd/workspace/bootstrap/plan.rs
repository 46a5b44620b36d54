//! From the files of a repository, and what a guest has, to what is to be done there. Pure.

use std::collections::{BTreeMap, BTreeSet};

use banger_core::glob;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::config::{Config, Preset, Tool};
use crate::cmd::hex;
use crate::cmd::packages::INSTALL;
use crate::output::{headline, or_dash, table};
use crate::shell::quote;

/// The files of a repository by their paths, with what says whether their contents are the same.
pub type Files = BTreeMap<String, String>;

/// Part of all digests: to be changed when the same words of the configuration come to mean something else.
const VERSION: u32 = 1;

/// A tool that is asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Ask {
    pub tool: String,
    /// The file or the preset that asks.
    pub because: String,
    /// Of all that can make it have to be done again.
    pub digest: String,
    /// Whether the repository asks, so that there is something to run in it.
    of_repository: bool,
}

/// What a repository and a preset ask for, in the order in which it is done. `place` says where, and as whom.
pub fn asked(config: &Config, files: &Files, preset: Option<(&str, &Preset)>, place: &[&str]) -> Vec<Ask> {
    let mut asked = Vec::new();
    for (name, tool) in in_order(config) {
        let found = found(tool, files);
        let because = match (found.first(), preset) {
            (Some((path, _)), _) => (*path).to_owned(),
            (None, Some((preset, Preset { needs, .. }))) if needs.contains(name) => {
                format!("preset {preset}")
            }
            _ => continue,
        };
        let of_repository = !found.is_empty();
        let digest = hex(&Sha256::digest(json!([VERSION, place, tool, found]).to_string()));
        asked.push(Ask { tool: name.clone(), because, digest, of_repository });
    }
    asked
}

fn in_order(config: &Config) -> Vec<(&String, &Tool)> {
    let mut tools: Vec<_> = config.tools.iter().collect();
    tools.sort_by_key(|(name, tool)| (tool.order, *name));
    tools
}

/// The files that ask for a tool, in the order of its patterns.
fn found<'a>(tool: &Tool, files: &'a Files) -> Vec<(&'a str, &'a str)> {
    let of = |pattern: &String| {
        let pattern = pattern.clone();
        files
            .iter()
            .filter(move |(path, _)| matches(&pattern, path))
            .map(|(path, content)| (path.as_str(), content.as_str()))
    };
    if tool.unless.iter().flat_map(of).next().is_some() {
        return Vec::new();
    }
    tool.files.iter().flat_map(of).collect()
}

/// As [`glob::matches`], name by name: no star stands for a slash.
fn matches(pattern: &str, path: &str) -> bool {
    pattern.split('/').count() == path.split('/').count()
        && pattern.split('/').zip(path.split('/')).all(|(pattern, name)| glob::matches(pattern, name))
}

/// What a guest is found to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    pub shell: bool,
    pub network: bool,
    /// What installs packages there.
    pub manager: Option<String>,
    /// Tools whose test succeeds.
    pub there: BTreeSet<String>,
}

/// What is done for one tool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Row {
    pub tool: String,
    pub because: String,
    pub packages: Vec<String>,
    pub install: Option<String>,
    pub run: Option<String>,
    /// Whether it was done, and nothing has changed since.
    pub done: bool,
    /// Why it cannot be done.
    pub problem: Option<String>,
}

/// Something that is run in the guest.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    pub title: String,
    pub script: String,
    /// Whether it is for the guest as a whole, and not for the repository.
    pub as_root: bool,
    tools: Vec<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub rows: Vec<Row>,
}

impl Plan {
    /// `done` has the digests of what was done before.
    pub fn new(config: &Config, asked: &[Ask], done: &BTreeMap<String, String>, facts: &Facts) -> Self {
        let mut planner = Planner { config, asked, done, facts, rows: Vec::new() };
        for ask in asked {
            planner.add(&ask.tool, "");
        }
        Self { rows: planner.rows }
    }

    /// Whether there is nothing to do, and nothing to say.
    pub fn is_empty(&self) -> bool {
        self.steps().is_empty() && self.rows.iter().all(|row| row.problem.is_none())
    }

    /// All packages at once, then what else is installed, then what is run in the repository.
    pub fn steps(&self) -> Vec<Step> {
        let rows = || self.rows.iter().filter(|row| row.problem.is_none());
        let step = |row: &Row, script: &String, as_root| Step {
            title: format!("{}: {}", row.tool, headline(script)),
            script: script.clone(),
            as_root,
            tools: vec![row.tool.clone()],
        };
        let install = |row: &Row| row.install.as_ref().map(|script| step(row, script, true));
        let run = |row: &Row| row.run.as_ref().map(|script| step(row, script, false));
        let packages = self.packages();
        packages.into_iter().chain(rows().filter_map(install)).chain(rows().filter_map(run)).collect()
    }

    fn packages(&self) -> Option<Step> {
        let rows: Vec<_> =
            self.rows.iter().filter(|row| row.problem.is_none() && !row.packages.is_empty()).collect();
        let names: BTreeSet<&String> = rows.iter().flat_map(|row| &row.packages).collect();
        let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
        let words: Vec<_> = names.iter().map(|name| quote(name)).collect();
        (!names.is_empty()).then(|| Step {
            title: headline(&format!("packages {}", names.join(" "))),
            script: format!("set -- {}\n{INSTALL}", words.join(" ")),
            as_root: true,
            tools: rows.iter().map(|row| row.tool.clone()).collect(),
        })
    }

    /// Notes what was done by the steps before the one that failed, if one did.
    pub fn succeeded(&mut self, failed: Option<usize>) {
        let steps = self.steps();
        let missing: BTreeSet<&String> =
            steps.iter().skip(failed.unwrap_or(steps.len())).flat_map(|step| &step.tools).collect();
        for row in self.rows.iter_mut().filter(|row| row.problem.is_none()) {
            row.done = !missing.contains(&row.tool);
        }
    }

    /// For people.
    pub fn table(&self) -> String {
        table(&HEADER, &self.rows.iter().map(Row::cells).collect::<Vec<_>>())
    }
}

pub const HEADER: [&str; 4] = ["TOOL", "BECAUSE OF", "INSTALLS", "RUNS"];

impl Row {
    pub fn cells(&self) -> Vec<String> {
        let installs = match &self.install {
            Some(script) => headline(script),
            None => or_dash(&self.packages.join(" ")),
        };
        let runs = match (&self.problem, &self.run) {
            (Some(problem), _) => format!("not done: {problem}"),
            _ if self.done => "done before".to_owned(),
            (None, Some(script)) => headline(script),
            (None, None) => or_dash(""),
        };
        vec![self.tool.clone(), self.because.clone(), installs, runs]
    }
}

struct Planner<'a> {
    config: &'a Config,
    asked: &'a [Ask],
    done: &'a BTreeMap<String, String>,
    facts: &'a Facts,
    rows: Vec<Row>,
}

impl Planner<'_> {
    /// Adds a tool, after those that it needs. Says why it cannot be had.
    fn add(&mut self, name: &str, because: &str) -> Option<String> {
        if let Some(row) = self.rows.iter().find(|row| row.tool == name) {
            return row.problem.clone();
        }
        let tool = self.config.tools.get(name)?;
        let ask = self.asked.iter().find(|ask| ask.tool == name);
        let mut row = Row {
            tool: name.to_owned(),
            because: ask.map_or(because, |ask| ask.because.as_str()).to_owned(),
            done: ask.is_some_and(|ask| self.done.get(name) == Some(&ask.digest)),
            ..Row::default()
        };
        if !row.done {
            self.fill(&mut row, tool, ask.is_some_and(|ask| ask.of_repository));
        }
        let problem = row.problem.clone();
        self.rows.push(row);
        problem
    }

    fn fill(&mut self, row: &mut Row, tool: &Tool, runs: bool) {
        row.run = tool.run.clone().filter(|_| runs);
        let is_there = tool.test().is_none() || self.facts.there.contains(&row.tool);
        if !is_there {
            let packages = self.facts.manager.as_ref().and_then(|manager| tool.packages.get(manager));
            match packages {
                Some(packages) => row.packages.clone_from(packages),
                None => row.install.clone_from(&tool.install),
            }
        }
        let installs = row.install.is_some() || !row.packages.is_empty();
        row.problem = if !self.facts.shell {
            Some("the image has no /bin/sh".to_owned())
        } else if !is_there && !installs {
            Some(self.unobtainable(&row.tool))
        } else if !self.facts.network && (installs || row.run.is_some() && !tool.offline) {
            Some("the VM is not let beyond the host".to_owned())
        } else if row.install.is_some() || row.run.is_some() {
            self.add_needs(tool, &row.tool)
        } else {
            None
        };
    }

    /// Says of the first that cannot be had, why.
    fn add_needs(&mut self, tool: &Tool, name: &str) -> Option<String> {
        tool.needs.iter().find_map(|need| Some(format!("{need}: {}", self.add(need, name)?)))
    }

    fn unobtainable(&self, name: &str) -> String {
        match &self.facts.manager {
            None => format!("{name} is missing, and the image has no package manager that banger knows"),
            Some(manager) => format!("{name} is missing, and no package of {manager} is known to have it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = r#"
        [tools.go]
        files = ["go.mod"]
        commands = ["go"]
        packages = { apt-get = ["golang"] }
        run = "go mod download"
        [tools.make]
        files = ["Makefile", "*.mk"]
        commands = ["make"]
        packages = { apt-get = ["make"], apk = ["make"] }
        [tools.node]
        commands = ["node"]
        packages = { apt-get = ["nodejs", "npm"] }
        [tools.npm]
        files = ["package.json"]
        unless = ["yarn.lock"]
        needs = ["node"]
        run = "npm ci\nnpm test"
        [tools.agent]
        commands = ["agent"]
        needs = ["node"]
        install = "npm install -g agent"
        [tools.first]
        order = -1
        files = [".first"]
        run = "./first"
        offline = true
        [presets.agent]
        needs = ["agent"]
        command = ["agent"]
    "#;

    fn config() -> Config {
        toml::from_str(TABLE).expect("parses")
    }

    fn files(paths: &[&str]) -> Files {
        paths.iter().map(|path| ((*path).to_owned(), "content".to_owned())).collect()
    }

    fn facts(manager: Option<&str>, there: &[&str]) -> Facts {
        let there = there.iter().map(|&name| name.to_owned()).collect();
        Facts { shell: true, network: true, manager: manager.map(str::to_owned), there }
    }

    fn ask(paths: &[&str], with_preset: bool) -> Vec<Ask> {
        let config = config();
        let preset = with_preset.then(|| ("agent", &config.presets["agent"]));
        asked(&config, &files(paths), preset, &["/workspace", "0:0"])
    }

    fn plan(paths: &[&str], with_preset: bool, facts: &Facts) -> Plan {
        Plan::new(&config(), &ask(paths, with_preset), &BTreeMap::new(), facts)
    }

    #[test]
    fn files_ask_for_tools() {
        let tools = |paths: &[&str]| ask(paths, false).into_iter().map(|ask| (ask.tool, ask.because));
        let found: Vec<_> = tools(&["go.mod", "a.mk", ".first", "package.json"]).collect();
        let expected = [("first", ".first"), ("go", "go.mod"), ("make", "a.mk"), ("npm", "package.json")];
        assert_eq!(found, expected.map(|(tool, file)| (tool.to_owned(), file.to_owned())));
        assert_eq!(tools(&["sub/go.mod", "sub/a.mk", "package.json", "yarn.lock", "README"]).count(), 0);
        assert!(matches("*/go.mod", "sub/go.mod") && !matches("*", "sub/go.mod"));
    }

    #[test]
    fn what_is_missing_is_installed() {
        let paths = ["go.mod", "Makefile", "package.json"];
        let all = plan(&paths, false, &facts(Some("apt-get"), &["make"]));
        assert_eq!(
            all.table(),
            "TOOL   BECAUSE OF     INSTALLS     RUNS\n\
             go     go.mod         golang       go mod download\n\
             make   Makefile       -            -\n\
             node   npm            nodejs npm   -\n\
             npm    package.json   -            npm ci …\n"
        );
        let steps = all.steps();
        let titles: Vec<_> = steps.iter().map(|step| (step.title.as_str(), step.as_root)).collect();
        assert_eq!(
            titles,
            [("packages golang nodejs npm", true), ("go: go mod download", false), ("npm: npm ci …", false)]
        );
        assert!(
            steps[0].script.starts_with("set -- 'golang' 'nodejs' 'npm'\nset -e\n"),
            "{}",
            steps[0].script
        );
        assert_eq!(steps[2].script, "npm ci\nnpm test");
        assert!(plan(&["Makefile"], false, &facts(None, &["make"])).is_empty());
    }

    #[test]
    fn what_cannot_be_done_is_told_and_left_out() {
        let problems = |facts: &Facts| -> Vec<String> {
            let plan = plan(&["go.mod", ".first", "package.json", "Makefile"], true, facts);
            let rows = plan.rows.iter().filter_map(|row| Some((&row.tool, row.problem.as_ref()?)));
            let problems = rows.map(|(tool, problem)| format!("{tool}: {problem}")).collect();
            assert!(!plan.is_empty());
            problems
        };
        let none = "is missing, and the image has no package manager that banger knows";
        assert_eq!(
            problems(&facts(None, &[])),
            [
                format!("node: node {none}"),
                format!("agent: node: node {none}"),
                format!("go: go {none}"),
                format!("make: make {none}"),
                format!("npm: node: node {none}"),
            ]
        );
        assert_eq!(
            problems(&facts(Some("apk"), &["node", "agent"])),
            ["go: go is missing, and no package of apk is known to have it"]
        );
        let offline = Facts { network: false, ..facts(Some("apt-get"), &["go", "node"]) };
        assert_eq!(
            problems(&offline),
            ["agent", "go", "make", "npm"].map(|tool| format!("{tool}: the VM is not let beyond the host"))
        );
        let bare = problems(&Facts { shell: false, ..facts(None, &[]) });
        assert_eq!(
            bare,
            ["first", "agent", "go", "make", "npm"].map(|tool| format!("{tool}: the image has no /bin/sh"))
        );
    }

    #[test]
    fn presets_bring_what_they_need() {
        let titles = |plan: &Plan| plan.steps().into_iter().map(|step| step.title).collect::<Vec<_>>();
        let fresh = plan(&["package.json"], true, &facts(Some("apt-get"), &[]));
        assert_eq!(titles(&fresh), ["packages nodejs npm", "agent: npm install -g agent", "npm: npm ci …"]);
        assert_eq!(fresh.rows[1].because, "preset agent");
        // With the agent there, nothing that it would take to install it is needed.
        assert!(plan(&[], true, &facts(None, &["agent"])).is_empty());
    }

    #[test]
    fn only_what_changed_is_done_again() {
        let facts = facts(Some("apt-get"), &[]);
        let mut first = plan(&["go.mod", "package.json"], false, &facts);
        // The last of three steps failed.
        first.succeeded(Some(2));
        let done: Vec<_> = first.rows.iter().map(|row| (row.tool.as_str(), row.done)).collect();
        assert_eq!(done, [("go", true), ("node", true), ("npm", false)]);
        first.succeeded(None);
        assert!(first.rows.iter().all(|row| row.done));

        let asked = ask(&["go.mod", "package.json"], false);
        let digests: BTreeMap<_, _> =
            asked.iter().map(|ask| (ask.tool.clone(), ask.digest.clone())).collect();
        let again = |asked: &[Ask]| {
            let plan = Plan::new(&config(), asked, &digests, &facts);
            plan.steps().into_iter().map(|step| step.title).collect::<Vec<_>>()
        };
        assert!(again(&asked).is_empty());
        let mut changed = files(&["go.mod", "package.json"]);
        changed.insert("go.mod".into(), "other".into());
        let changed = super::asked(&config(), &changed, None, &["/workspace", "0:0"]);
        assert_eq!(again(&changed), ["packages golang", "go: go mod download"]);
        let elsewhere = super::asked(&config(), &files(&["go.mod"]), None, &["/src", "0:0"]);
        assert_eq!(again(&elsewhere).len(), 2);
    }
}
