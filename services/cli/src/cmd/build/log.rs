//! What is told of a build while it goes on: lines on standard error, or JSON lines with `--json`.

use serde_json::json;

use super::plan::Task;
use crate::output::{Output, tell};

pub struct Log<'a> {
    output: &'a Output,
    steps: usize,
}

impl<'a> Log<'a> {
    pub fn new(output: &'a Output, steps: usize) -> Self {
        Self { output, steps }
    }

    pub fn cached(&self, task: &Task) {
        self.tell(task, " (cached)", json!({"state": "cached"}));
    }

    pub fn begun(&self, task: &Task) {
        self.tell(task, "", json!({"state": "begun"}));
    }

    /// That a task is done needs no line for people.
    pub fn done(&self, task: &Task) {
        if self.output.json {
            self.tell(task, "", json!({"state": "done"}));
        }
    }

    pub fn failed(&self, task: &Task, reason: &str) {
        if self.output.json {
            self.tell(task, "", json!({"state": "failed", "message": reason}));
        }
    }

    /// One line that a task wrote.
    pub fn line(&self, task: &Task, stream: &str, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        match self.output.json {
            true => self.json(task, json!({"stream": stream, "line": line})),
            false => self.output.note(&line),
        }
    }

    /// `step 2 of 5`.
    pub fn place(&self, task: &Task) -> String {
        format!("step {} of {}", task.number, self.steps)
    }

    fn tell(&self, task: &Task, remark: &str, event: serde_json::Value) {
        match self.output.json {
            true => self.json(task, event),
            false => self.output.note(&format!("{}: {}{remark}", self.place(task), task.title)),
        }
    }

    fn json(&self, task: &Task, mut event: serde_json::Value) {
        if self.output.quiet {
            return;
        }
        event["step"] = json!(task.number);
        event["steps"] = json!(self.steps);
        event["title"] = json!(task.title);
        tell(event);
    }
}
