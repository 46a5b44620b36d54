//! What was found, for people and for programs.

use std::io::IsTerminal;

use banger_api::{Error, Result};
use serde_json::{Value, json};

use super::check::{Check, Finding, Remedy, Verdict};
use crate::output::Output;

pub struct Report {
    pub findings: Vec<(&'static Check, Finding)>,
    /// What `--fix` did.
    pub done: Vec<Done>,
}

pub struct Done {
    pub command: String,
    pub error: Option<Error>,
}

impl Report {
    /// The worst of all.
    pub fn verdict(&self) -> Verdict {
        self.findings.iter().map(|(_, finding)| finding.verdict).max().unwrap_or(Verdict::Ok)
    }

    pub fn print(&self, output: &Output, verbose: bool) -> Result<()> {
        if output.json {
            return output.value(&self.json());
        }
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let style = Style { colour, verbose, quiet: output.quiet };
        self.lines(style).iter().for_each(|line| output.line(line));
        Ok(())
    }

    fn json(&self) -> Value {
        let finding = |(check, finding): &(&Check, Finding)| {
            json!({
                "group": check.group,
                "check": check.name,
                "verdict": finding.verdict,
                "what": finding.what,
                "why": check.why,
                "remedy": finding.remedy,
                "fixable": matches!(finding.remedy, Remedy::Fix(_)),
            })
        };
        let done =
            |done: &Done| json!({"command": done.command, "error": done.error.as_ref().map(Error::message)});
        json!({
            "verdict": self.verdict(),
            "findings": self.findings.iter().map(finding).collect::<Vec<_>>(),
            "fixes": self.done.iter().map(done).collect::<Vec<_>>(),
        })
    }

    fn lines(&self, style: Style) -> Vec<String> {
        let mut lines: Vec<String> = self.done.iter().map(Done::line).collect();
        let mut group = "";
        for (check, finding) in self.findings.iter().filter(|(_, finding)| style.shows(finding)) {
            if check.group != group && !style.quiet {
                let gap = if lines.is_empty() { "" } else { "\n" };
                lines.push(format!("{gap}{}", check.group));
            }
            group = check.group;
            lines.extend(style.lines(check, finding));
        }
        if !style.quiet {
            lines.push(format!("\n{}", self.summary()));
        }
        lines
    }

    /// `30 ok, 2 warn, 1 fail; …`.
    fn summary(&self) -> String {
        let count = |verdict| self.findings.iter().filter(|(_, finding)| finding.verdict == verdict).count();
        let counts =
            Verdict::ALL.map(|verdict| (count(verdict), verdict)).into_iter().filter(|(count, _)| *count > 0);
        let counts: Vec<String> =
            counts.map(|(count, verdict)| format!("{count} {}", verdict.as_str())).collect();
        let fixable =
            self.findings.iter().filter(|(_, finding)| matches!(finding.remedy, Remedy::Fix(_))).count();
        let counts = counts.join(", ");
        match fixable {
            0 => counts,
            _ => format!("{counts}; sudo banger doctor --fix sees to {fixable} of them"),
        }
    }
}

impl Done {
    fn line(&self) -> String {
        match &self.error {
            None => format!("done: {}", self.command),
            Some(error) => format!("not done: {}: {}", self.command, error.message()),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Style {
    colour: bool,
    verbose: bool,
    quiet: bool,
}

impl Style {
    /// Quietly, only what is not well is told.
    fn shows(self, finding: &Finding) -> bool {
        !self.quiet || finding.verdict != Verdict::Ok
    }

    fn lines(self, check: &Check, finding: &Finding) -> Vec<String> {
        let verdict = format!("{:7}", finding.verdict.as_str());
        let mut lines =
            vec![format!("  {}  {:11}  {}", self.paint(finding.verdict, &verdict), check.name, finding.what)];
        let well = finding.verdict == Verdict::Ok;
        if !self.quiet && (self.verbose || !well) {
            lines.push(format!("{:24}why: {}", "", check.why));
        }
        if !self.quiet && !well {
            lines.push(format!("{:24}do:  {}", "", finding.remedy));
        }
        lines
    }

    fn paint(self, verdict: Verdict, text: &str) -> String {
        let code = match verdict {
            Verdict::Ok => 32,
            Verdict::Unknown => 36,
            Verdict::Warn => 33,
            Verdict::Fail => 31,
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::super::fix::Fix;
    use super::super::table::CHECKS;
    use super::*;

    const PLAIN: Style = Style { colour: false, verbose: false, quiet: false };

    fn report() -> Report {
        let [cpu, kvm, ..] = CHECKS else { panic!("checks") };
        let unseen = super::super::facts::Unseen { what: "hidden".into(), remedy: "sudo".into() };
        Report {
            findings: vec![
                (cpu, check::Finding::ok("well")),
                (kvm, check::Finding::fail("broken", Fix::Reload)),
                (kvm, unseen.into()),
            ],
            done: vec![
                Done { command: "a".into(), error: None },
                Done { command: "b".into(), error: Some(banger_api::ErrorKind::AccessDenied.error("no")) },
            ],
        }
    }

    #[test]
    fn what_is_not_well_has_its_reason_and_remedy() {
        let kvm = CHECKS[1].why;
        let expected = format!(
            "done: a\nnot done: b: no\n\nVMs\n  ok       cpu          well\n  fail     kvm          broken\n\
             {0:24}why: {kvm}\n{0:24}do:  systemctl daemon-reload\n  unknown  kvm          hidden\n\
             {0:24}why: {kvm}\n{0:24}do:  sudo\n\n1 ok, 1 unknown, 1 fail; sudo banger doctor --fix sees to 1 of them",
            ""
        );
        assert_eq!(report().lines(PLAIN).join("\n"), expected);
    }

    #[test]
    fn verbose_tells_all_and_quiet_only_what_is_wrong() {
        let why = format!("why: {}", CHECKS[0].why);
        assert!(report().lines(Style { verbose: true, ..PLAIN }).join("\n").contains(&why));
        let quiet = report().lines(Style { quiet: true, ..PLAIN });
        assert_eq!(
            quiet,
            [
                "done: a",
                "not done: b: no",
                "  fail     kvm          broken",
                "  unknown  kvm          hidden"
            ]
        );
    }

    #[test]
    fn programs_get_one_document() {
        let json = report().json();
        assert_eq!((&json["verdict"], &json["findings"][1]["fixable"]), (&json!("fail"), &json!(true)));
        assert_eq!(json["findings"][1]["remedy"], "systemctl daemon-reload");
        assert_eq!(json["fixes"], json!([{"command": "a", "error": null}, {"command": "b", "error": "no"}]));
    }
}
