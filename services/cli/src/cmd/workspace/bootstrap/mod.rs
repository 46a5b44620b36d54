//! What a repository needs to be worked on in a guest, and the files and programs of coding agents.
//!
//! Which files ask for what is in `workspace.conf` ([`config`]). From it, the repository's files and what the guest has
//! ([`facts`]) follows a [`plan`]. It is shown, and then carried out in the guest as a session, which has a log and goes
//! on if banger is killed.
//!
//! - [`session`]: the steps, carried out
//! - [`sync`]: files of presets

mod config;
mod facts;
mod plan;
mod session;
mod sync;

use std::path::{Path, PathBuf};

use banger_api::vm::VmProxy;
use banger_api::{ErrorKind, Result, VMD};
use banger_files::pack::Packer;
use banger_files::unpack;
use serde_json::json;

use super::guest::InVm;
use super::record::Record;
use super::source;
use crate::Context;
use crate::args::Bootstrap as Arguments;
use crate::cmd::session::unless_signaled;
use crate::output::{or_dash, tell};
use config::{Config, Preset};
use facts::{Answer, Question};
pub use plan::Row;
use plan::{Ask, Plan};

/// root, whatever it is called.
const ROOT: &str = "0:0";

/// What is to be done beside the repository's files, as the configuration and the caller say.
#[derive(Debug)]
pub struct Tooling {
    config: Config,
    preset: Option<(String, Preset)>,
    wanted: Wanted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Nothing,
    /// What has not been done yet.
    Rest,
    Everything,
}

/// A workspace that it is done in.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub vm: &'a str,
    pub path: &'a str,
    /// Whose the files are; `None`: root's.
    pub owner: Option<&'a str>,
}

impl Place<'_> {
    fn owner(&self) -> &str {
        self.owner.unwrap_or(ROOT)
    }
}

impl Tooling {
    /// # Errors
    /// `InvalidArgs` of the configuration, or if it has no such preset.
    pub fn load(arguments: &Arguments) -> Result<Self> {
        if arguments.no_bootstrap && arguments.preset.is_none() {
            return Ok(Self { config: Config::default(), preset: None, wanted: Wanted::Nothing });
        }
        let config = Config::load()?;
        let preset = match &arguments.preset {
            Some(name) => Some((name.clone(), config.preset(name)?.clone())),
            None => None,
        };
        let wanted = match (arguments.bootstrap, arguments.no_bootstrap) {
            (true, _) => Wanted::Everything,
            (false, true) => Wanted::Nothing,
            (false, false) if config.bootstrap => Wanted::Rest,
            (false, false) => Wanted::Nothing,
        };
        Ok(Self { config, preset, wanted })
    }

    /// The preset's command line.
    pub fn command(&self) -> &[String] {
        self.preset.as_ref().map_or(&[], |(_, preset)| &preset.command)
    }

    /// The preset's environment.
    pub fn environment(&self) -> &[String] {
        self.preset.as_ref().map_or(&[], |(_, preset)| &preset.environment)
    }

    /// Does what the repository and the preset ask for, as far as it can be done. What was done goes into the record.
    ///
    /// # Errors
    /// `BootstrapFailed` if a step failed; `JobCanceled`; those of the guest.
    pub async fn bootstrap(
        &self,
        context: &Context,
        place: Place<'_>,
        record: &mut Record,
        record_path: &Path,
    ) -> Result<Vec<Row>> {
        if self.wanted == Wanted::Nothing {
            return Ok(Vec::new());
        }
        let asked = self.asked(record, place)?;
        if self.wanted == Wanted::Everything {
            record.tools.clear();
        }
        if asked.iter().all(|ask| record.tools.get(&ask.tool) == Some(&ask.digest)) {
            return Ok(Vec::new());
        }
        let planned = unless_signaled(async {
            session::settle(context, place.vm).await?;
            self.plan(context, place, &asked, record).await
        });
        let (mut plan, path) = planned.await?;
        let outcome = match plan.is_empty() {
            true => Ok(()),
            false => {
                show(context, &plan);
                session::carry_out(context, place, &plan.steps(), &path).await?
            }
        };
        plan.succeeded(outcome.as_ref().err().map(|failure| failure.step));
        note(record, &asked, &plan);
        record.save(record_path)?;
        outcome.map(|()| plan.rows).map_err(|failure| failure.error)
    }

    fn asked(&self, record: &Record, place: Place<'_>) -> Result<Vec<Ask>> {
        let files = source::committed(record)?;
        let preset = self.preset.as_ref().map(|(name, preset)| (name.as_str(), preset));
        Ok(plan::asked(&self.config, &files, preset, &[place.path, place.owner()]))
    }

    /// What there is to do, and the `PATH` to do it with.
    async fn plan(
        &self,
        context: &Context,
        place: Place<'_>,
        asked: &[Ask],
        record: &Record,
    ) -> Result<(Plan, String)> {
        let tools = self.config.closure(asked.iter().map(|ask| ask.tool.as_str()));
        let tests = tools.iter().filter_map(|&name| Some((name.to_owned(), self.config.tools[name].test()?)));
        let tests = tests.collect();
        let (user, path) = (Some(place.owner()), self.directories(asked));
        let question = Question { user, path, workspace: place.path, tests };
        let mut answer = facts::ask(context, place.vm, &question).await?;
        answer.facts.network &= is_let_out(context, place.vm).await?;
        Ok((Plan::new(&self.config, asked, &record.tools, &answer.facts), answer.path))
    }

    /// Where programs are that tools bring along.
    fn directories(&self, asked: &[Ask]) -> Vec<&str> {
        let tools = self.config.closure(asked.iter().map(|ask| ask.tool.as_str()));
        tools.into_iter().flat_map(|name| &self.config.tools[name].path).map(String::as_str).collect()
    }

    /// What a command in the workspace gets beside its files: those of the preset in its user's home. Returns the `PATH`
    /// that it finds tools with, unless that is the image's. `user` is the command's; `None`: as the image says.
    ///
    /// # Errors
    /// If a file cannot be read; those of the guest.
    pub async fn equip(
        &self,
        context: &Context,
        place: Place<'_>,
        user: Option<&str>,
        record: &Record,
    ) -> Result<Option<String>> {
        let asked = match self.wanted {
            Wanted::Nothing => Vec::new(),
            Wanted::Rest | Wanted::Everything => self.asked(record, place)?,
        };
        let path = self.directories(&asked);
        let files = self.preset.as_ref().map_or(&[][..], |(_, preset)| &preset.files);
        let has_path = !path.is_empty();
        if files.is_empty() && !has_path {
            return Ok(None);
        }
        let question = Question { user, path, workspace: place.path, tests: Vec::new() };
        let answer = facts::ask(context, place.vm, &question).await?;
        send_files(context, place.vm, files, &answer).await?;
        Ok(Some(answer.path).filter(|path| has_path && !path.is_empty()))
    }
}

/// Whether a VM may reach anything beyond the host.
async fn is_let_out(context: &Context, vm: &str) -> Result<bool> {
    let path = context.bus.vms().await?.get_vm(vm).await?;
    let vm: VmProxy<'static> = context.bus.object(VMD, &path).await?;
    Ok(vm.nat().await? && (vm.egress().await? != "closed" || !vm.egress_allow().await?.is_empty()))
}

/// Copies what is there of these files of the caller's home.
async fn send_files(context: &Context, vm: &str, files: &[PathBuf], answer: &Answer) -> Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    let home = unpack::target(&crate::dirs::home()?)?;
    let found = sync::find(&home, files)?;
    for link in &found.links {
        let link = link.display();
        context.output.note(&format!("~/{link} is left out: it is a symbolic link, or behind one"));
    }
    if found.paths.is_empty() {
        return Ok(());
    }
    let Answer { home: guest_home, owner, .. } = answer;
    if !guest_home.starts_with('/') || owner.len() < 3 {
        return Err(ErrorKind::NotSupported.error(format!(
            "{vm} does not say where its user's home is; files of a preset need /bin/sh and id in the image"
        )));
    }
    let guest = InVm { context, vm, path: guest_home, owner: Some(owner) };
    let send = move |packer: Packer<_>, prefix: &Path| sync::pack(packer, &home, &found.paths, prefix);
    guest.send(send).await.map(drop)
}

/// Remembers what was done.
fn note(record: &mut Record, asked: &[Ask], plan: &Plan) {
    for row in plan.rows.iter().filter(|row| row.done) {
        if let Some(ask) = asked.iter().find(|ask| ask.tool == row.tool) {
            record.tools.insert(ask.tool.clone(), ask.digest.clone());
        }
    }
}

fn show(context: &Context, plan: &Plan) {
    if context.output.json && !context.output.quiet {
        tell(json!({ "plan": plan.rows }));
    } else {
        context.output.note(plan.table().trim_end());
    }
}

/// `banger workspace plan`.
///
/// # Errors
/// Those of the repository and of the guest.
pub async fn show_plan(
    context: &Context,
    tooling: &Tooling,
    place: Place<'_>,
    directory: &Path,
    record: Option<Record>,
) -> Result<()> {
    let files = source::current(directory)?;
    let preset = tooling.preset.as_ref().map(|(name, preset)| (name.as_str(), preset));
    let asked = plan::asked(&tooling.config, &files, preset, &[place.path, place.owner()]);
    let (plan, _) = tooling.plan(context, place, &asked, &record.unwrap_or_default()).await?;
    context.output.rows(&plan.rows, &plan::HEADER, Row::cells)
}

/// `banger workspace tools`.
///
/// # Errors
/// Those of the configuration.
pub fn list_tools(context: &Context) -> Result<()> {
    let config = Config::load()?;
    if context.output.json {
        return context.output.value(&config.tools);
    }
    let rows: Vec<_> = config.tools.iter().collect();
    context.output.rows(&rows, &["TOOL", "FILES", "PROGRAMS", "RUNS"], |(name, tool)| {
        let run = tool.run.as_deref().map(crate::output::headline).unwrap_or_default();
        let words = |words: &[String]| or_dash(&words.join(" "));
        vec![(*name).clone(), words(&tool.files), words(&tool.commands), or_dash(&run)]
    })
}

/// `banger workspace presets`.
///
/// # Errors
/// Those of the configuration.
/// Coding agents by name.
///
/// # Errors
/// `InvalidArgs` naming the file and the line of a mistake.
pub fn agents() -> Result<Vec<String>> {
    Ok(Config::load()?.presets.into_keys().collect())
}

pub fn list_presets(context: &Context) -> Result<()> {
    let config = Config::load()?;
    if context.output.json {
        return context.output.value(&config.presets);
    }
    let rows: Vec<_> = config.presets.iter().collect();
    context.output.rows(&rows, &["PRESET", "COMMAND", "ENVIRONMENT", "FILES"], |(name, preset)| {
        let words = |words: &[String]| or_dash(&words.join(" "));
        let files: Vec<_> = preset.files.iter().map(|path| format!("~/{}", path.display())).collect();
        vec![(*name).clone(), words(&preset.command), words(&preset.environment), words(&files)]
    })
}
