//! git on the host, as the caller runs it, but without what a repository's settings have it run.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use banger_api::{Error, ErrorKind, Result};

/// No hook, no file system monitor; indexes that are whole files of their own; times and paths as they are.
const SETTINGS: [&str; 9] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.splitIndex=false",
    "core.safecrlf=false",
    "core.quotePath=false",
    "index.sparse=false",
    "gc.auto=0",
    "advice.addEmbeddedRepo=false",
];

/// What git takes from the environment, which may be that of a hook of another repository.
const LOCAL: [&str; 12] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_PREFIX",
    "GIT_NAMESPACE",
    "GIT_SHALLOW_FILE",
    "GIT_GRAFT_FILE",
    "GIT_CEILING_DIRECTORIES",
    "GIT_EXTERNAL_DIFF",
];

/// Calls of git in one directory. Clones differ in what [`Git::with`] adds.
#[derive(Debug, Clone)]
pub struct Git {
    directory: PathBuf,
    environment: Vec<(&'static str, OsString)>,
    settings: Vec<String>,
}

impl Git {
    pub fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), environment: Vec::new(), settings: Vec::new() }
    }

    /// The same in another directory.
    pub fn within(mut self, directory: &Path) -> Self {
        directory.clone_into(&mut self.directory);
        self
    }

    pub fn with(mut self, variable: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.push((variable, value.into()));
        self
    }

    /// The same, with what is written going to another directory than the repository's.
    pub fn with_objects(self, own: &Path) -> Result<Self> {
        let shared = self.line(&["rev-parse", "--path-format=absolute", "--git-path", "objects"])?;
        std::fs::create_dir_all(own)?;
        Ok(self
            .with("GIT_OBJECT_DIRECTORY", own)
            .with("GIT_ALTERNATE_OBJECT_DIRECTORIES", alternate(&shared)))
    }

    pub fn set(mut self, setting: String) -> Self {
        self.settings.push(setting);
        self
    }

    /// What git puts out.
    ///
    /// # Errors
    /// `RepositoryUnusable` with what git says; `NotReady` if there is no git.
    pub fn run(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        self.feed(arguments, &[])
    }

    /// The same with something on its standard input.
    pub fn feed(&self, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
        let output = self.output(arguments, input)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let what = arguments.first().copied().unwrap_or_default();
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().find(|line| line.starts_with("fatal:") || line.starts_with("error:"));
        let said = said.unwrap_or("it gave no reason");
        Err(ErrorKind::RepositoryUnusable
            .error(format!("git {what} in {}: {said}", self.directory.display())))
    }

    /// One line, without its end. The path of something may be anything but UTF-8.
    pub fn line(&self, arguments: &[&str]) -> Result<OsString> {
        let mut line = self.run(arguments)?;
        line.pop_if(|&mut last| last == b'\n');
        Ok(OsString::from_vec(line))
    }

    /// One line of text, or nothing if git fails.
    pub fn ask(&self, arguments: &[&str]) -> Option<String> {
        self.line(arguments).ok()?.into_string().ok()
    }

    /// Paths that end with NULs.
    pub fn paths(&self, arguments: &[&str], input: &[u8]) -> Result<Vec<PathBuf>> {
        Ok(split(&self.feed(arguments, input)?).map(PathBuf::from).collect())
    }

    /// Of these paths, those that rules ignore.
    pub fn ignored(&self, paths: &[&Path]) -> Result<Vec<PathBuf>> {
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let output = self.output(&["check-ignore", "-z", "--stdin"], &join(paths))?;
        // 1: none of them.
        if output.status.code().is_some_and(|code| code <= 1) {
            return Ok(split(&output.stdout).map(PathBuf::from).collect());
        }
        // One that rules cannot apply to, such as behind a link, ends it for all.
        if paths.len() == 1 {
            return Ok(Vec::new());
        }
        let (one, other) = paths.split_at(paths.len() / 2);
        Ok([self.ignored(one)?, self.ignored(other)?].concat())
    }

    fn output(&self, arguments: &[&str], input: &[u8]) -> Result<Output> {
        let mut command = Command::new("git");
        for variable in LOCAL {
            command.env_remove(variable);
        }
        // What it says is looked at, so it is to say it in English.
        command
            .env("LC_ALL", "C")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_TERMINAL_PROMPT", "0")
            .current_dir(&self.directory);
        command.envs(self.environment.iter().map(|(variable, value)| (variable, value)));
        for setting in SETTINGS.into_iter().chain(self.settings.iter().map(String::as_str)) {
            command.args(["-c", setting]);
        }
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound if self.directory.is_dir() => {
                ErrorKind::NotReady.error("workspaces need git on this host; install it first")
            }
            _ => ErrorKind::NoSuchDirectory.error(format!("{}: {error}", self.directory.display())),
        })?;
        let stdin = child.stdin.take();
        std::thread::scope(|scope| {
            // git may not read all before it writes; that it reads not all at all, its status tells.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
            child.wait_with_output().map_err(Error::from)
        })
    }
}

/// What NULs end.
pub fn split(bytes: &[u8]) -> impl Iterator<Item = &OsStr> {
    bytes.split(|&byte| byte == 0).filter(|part| !part.is_empty()).map(OsStr::from_bytes)
}

/// Paths, each with a NUL at its end.
pub fn join(paths: &[impl AsRef<Path>]) -> Vec<u8> {
    paths.iter().flat_map(|path| [path.as_ref().as_os_str().as_bytes(), b"\0"].concat()).collect()
}

/// A directory as one element of a list that colons divide.
fn alternate(directory: &OsStr) -> OsString {
    if !directory.as_bytes().iter().any(|byte| b":\"\\\n".contains(byte)) {
        return directory.to_owned();
    }
    let mut quoted = vec![b'"'];
    for &byte in directory.as_bytes() {
        if byte == b'"' || byte == b'\\' {
            quoted.push(b'\\');
        }
        quoted.push(byte);
    }
    quoted.push(b'"');
    OsString::from_vec(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_object_directories() {
        assert_eq!(alternate(OsStr::new("/a b/objects")), "/a b/objects");
        assert_eq!(alternate(OsStr::new("/a:b\"c")), "\"/a:b\\\"c\"");
    }
}
