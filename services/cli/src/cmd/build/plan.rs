//! From a build's file to what is done in the VM, and by what its results are known again. Pure.
//!
//! Only packages, scripts and copies change the root filesystem. The state after each has a digest: of the
//! state before, of what is done, and of everything that it can see. What an image says of programs is apart from its
//! root filesystem, so a label that changes has nothing done again.

use std::collections::{BTreeMap, HashSet};

use banger_api::image::BUILD_PREFIX;
use banger_api::{Error, ErrorKind, ImageSettings, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::file::{Build, Copy, Step};
use crate::cmd::hex;
use crate::output::headline;

/// Part of all digests: to be changed when the same steps come to mean something else.
const VERSION: u32 = 1;

#[derive(Debug)]
pub struct Plan {
    pub tasks: Vec<Task>,
    /// What the image is to say of programs.
    pub settings: ImageSettings,
    /// Steps in the file.
    pub steps: usize,
}

/// One step that changes the root filesystem.
#[derive(Debug)]
pub struct Task {
    /// In the file, from 1.
    pub number: usize,
    pub title: String,
    pub work: Work,
    /// Of the state after it.
    pub digest: String,
    /// Whether an image is made of the state after it. Files are copied again faster than that.
    pub keep: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Work {
    Packages {
        names: Vec<String>,
        environment: BTreeMap<String, String>,
    },
    Run {
        argv: Vec<String>,
        environment: BTreeMap<String, String>,
        /// `None`: those of the base.
        user: Option<String>,
        directory: Option<String>,
    },
    Copy(Copy),
}

impl Task {
    /// The name of the image of the state after it.
    pub fn image(&self) -> String {
        format!("{BUILD_PREFIX}{}", self.digest)
    }
}

impl Plan {
    /// `base` is the id of the image that it begins with; `content` says the digest of what is copied.
    pub fn new(
        build: &Build,
        base: &str,
        arguments: &BTreeMap<String, String>,
        mut content: impl FnMut(&Copy) -> Result<String>,
    ) -> Result<Self> {
        let mut plan =
            Self { tasks: Vec::new(), settings: ImageSettings::default(), steps: build.steps.len() };
        let mut state = base.to_owned();
        for (index, step) in build.steps.iter().enumerate() {
            let work = match step {
                Step::Settings(settings) => {
                    plan.settings.merge(settings.clone());
                    continue;
                }
                Step::Packages(names) => {
                    Work::Packages { names: names.clone(), environment: plan.settings.environment.clone() }
                }
                Step::Run { script, shell } => Work::Run {
                    argv: shell.iter().chain([script]).cloned().collect(),
                    environment: arguments
                        .clone()
                        .into_iter()
                        .chain(plan.settings.environment.clone())
                        .collect(),
                    user: plan.settings.user.clone(),
                    directory: plan.settings.working_directory.clone(),
                },
                Step::Copy(copy) => Work::Copy(copy.clone()),
            };
            state = digest(&state, &work, &mut content)?;
            let keep = !matches!(work, Work::Copy(_));
            plan.tasks.push(Task {
                number: index + 1,
                title: title(&work, step),
                work,
                digest: state.clone(),
                keep,
            });
        }
        if let Some(last) = plan.tasks.last_mut() {
            last.keep = true;
        }
        Ok(plan)
    }

    /// How many tasks need not be done, as there is an image of the state after the last of them.
    pub fn cached(&self, images: &HashSet<String>) -> usize {
        self.tasks.iter().rposition(|task| images.contains(&task.image())).map_or(0, |last| last + 1)
    }
}

/// The arguments of a build: those of its file, with what whoever builds wants instead.
///
/// # Errors
/// `InvalidArgs` if the file does not know one.
pub fn arguments(build: &Build, given: &[(String, String)]) -> Result<BTreeMap<String, String>> {
    let mut arguments = build.arguments.clone();
    for (name, value) in given {
        match arguments.get_mut(name) {
            Some(argument) => argument.clone_from(value),
            None => {
                let known: Vec<_> = build.arguments.keys().map(String::as_str).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(ErrorKind::InvalidArgs
                    .error(format!("the build has no argument {name}; [arguments] has {known}")));
            }
        }
    }
    Ok(arguments)
}

fn digest(before: &str, work: &Work, content: &mut impl FnMut(&Copy) -> Result<String>) -> Result<String> {
    let done = match work {
        Work::Packages { names, environment } => json!(["packages", names, environment]),
        Work::Run { argv, environment, user, directory } => {
            json!(["run", argv, environment, user, directory])
        }
        Work::Copy(copy) => json!(["copy", copy.to, copy.owner, content(copy)?]),
    };
    let text = serde_json::to_vec(&json!([VERSION, before, done])).map_err(Error::internal)?;
    Ok(hex(&Sha256::digest(&text)))
}

/// For people, on one line.
fn title(work: &Work, step: &Step) -> String {
    let text = match (work, step) {
        (Work::Packages { names, .. }, _) => format!("packages {}", names.join(" ")),
        (Work::Copy(copy), _) => format!("copy {} to {}", copy.from.display(), copy.to),
        (_, Step::Run { script, .. }) => format!("run {}", script.trim()),
        _ => String::new(),
    };
    headline(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn settings(name: &str, value: &str) -> Step {
        let environment = [(name.to_owned(), value.to_owned())].into();
        Step::Settings(ImageSettings { environment, ..ImageSettings::default() })
    }

    fn label(value: &str) -> Step {
        let labels = [("label".to_owned(), value.to_owned())].into();
        Step::Settings(ImageSettings { labels, ..ImageSettings::default() })
    }

    fn run(script: &str) -> Step {
        Step::Run { script: script.into(), shell: vec!["sh".into(), "-c".into()] }
    }

    fn packages(name: &str) -> Step {
        Step::Packages(vec![name.into()])
    }

    fn copy(from: &str) -> Step {
        Step::Copy(Copy { from: from.into(), to: "/srv".into(), mode: None, owner: "0:0".into() })
    }

    fn plan_of(base: &str, arguments: &[(&str, &str)], steps: &[Step]) -> Plan {
        let build = Build {
            directory: PathBuf::new(),
            base: String::new(),
            name: None,
            arguments: BTreeMap::new(),
            machine: super::super::file::Machine::default(),
            steps: steps.to_vec(),
        };
        let arguments = arguments.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Plan::new(&build, base, &arguments, |copy| Ok(format!("content of {:?}", copy.from))).expect("plans")
    }

    /// The digests of the states that have one in common with the plan before.
    fn same(before: &Plan, after: &Plan) -> usize {
        let pairs = before.tasks.iter().zip(&after.tasks);
        pairs.take_while(|(before, after)| before.digest == after.digest).count()
    }

    #[test]
    fn a_change_has_what_follows_done_again() {
        let steps = [packages("a"), settings("E", "1"), run("x"), copy("file"), run("y"), label("l")];
        let before = plan_of("id", &[("v", "1")], &steps);
        assert_eq!(before.tasks.iter().map(|task| task.number).collect::<Vec<_>>(), [1, 3, 4, 5]);
        let unchanged = |base: &str, argument: &str, place: usize, step: Step| {
            let mut steps = steps.to_vec();
            steps[place] = step;
            same(&before, &plan_of(base, &[("v", argument)], &steps))
        };
        assert_eq!(unchanged("id", "1", 5, label("other")), 4);
        assert_eq!(unchanged("id", "1", 4, run("z")), 3);
        assert_eq!(unchanged("id", "1", 3, copy("other")), 2);
        assert_eq!(unchanged("id", "1", 2, run("z")), 1);
        assert_eq!(unchanged("id", "1", 1, settings("E", "2")), 1);
        assert_eq!(unchanged("id", "1", 0, packages("b")), 0);
        assert_eq!(unchanged("id", "2", 5, label("l")), 1, "packages see no arguments");
        assert_eq!(unchanged("other", "1", 5, label("l")), 0);
    }

    #[test]
    fn the_last_image_there_is_counts() {
        let plan = plan_of("id", &[], &[packages("a"), copy("file"), run("x"), copy("other")]);
        assert_eq!(plan.tasks.iter().map(|task| task.keep).collect::<Vec<_>>(), [true, false, true, true]);
        let with =
            |tasks: &[usize]| plan.cached(&tasks.iter().map(|&task| plan.tasks[task].image()).collect());
        assert_eq!((with(&[]), with(&[0]), with(&[2]), with(&[0, 2, 3])), (0, 1, 3, 4));
    }

    #[test]
    fn what_a_script_can_see() {
        let user = ImageSettings {
            user: Some("www".into()),
            working_directory: Some("/srv".into()),
            ..ImageSettings::default()
        };
        let steps = [settings("A", "step"), Step::Settings(user), run("x"), settings("B", "later")];
        let plan = plan_of("id", &[("A", "argument"), ("C", "3")], &steps);
        let Work::Run { argv, environment, user, directory } = &plan.tasks[0].work else { panic!("no run") };
        assert_eq!(argv, &["sh", "-c", "x"]);
        let seen: Vec<_> = environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(seen, ["A=step", "C=3"]);
        assert_eq!((user.as_deref(), directory.as_deref()), (Some("www"), Some("/srv")));
        assert_eq!(plan.settings.environment.len(), 2);
    }

    #[test]
    fn titles_are_short() {
        let titles = |step| plan_of("id", &[], &[step]).tasks[0].title.clone();
        assert_eq!(titles(run("\nmake\nmake install\n")), "run make …");
        assert_eq!(titles(run("true\n")), "run true");
        assert_eq!(titles(copy("app")), "copy app to /srv");
    }
}
