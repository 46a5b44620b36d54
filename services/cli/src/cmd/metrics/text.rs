//! The text format of OpenMetrics 1.0: pure.

use std::fmt::Write;

/// `Content-Type:` of the text.
pub const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Gauge,
    Counter,
    Info,
}

/// Units that names of families end with.
const UNITS: [&str; 2] = ["bytes", "seconds"];

/// What is measured.
#[derive(Debug)]
pub struct Family {
    /// Ends with the unit, if it has one.
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

impl Family {
    fn unit(&self) -> Option<&'static str> {
        let (_, last) = self.name.rsplit_once('_')?;
        UNITS.contains(&last).then_some(last)
    }
}

/// Families and their samples, in the order in which they are shown.
#[derive(Debug)]
pub struct Exposition(Vec<(&'static Family, Vec<String>)>);

impl Exposition {
    pub fn new(families: &'static [Family]) -> Self {
        Self(families.iter().map(|family| (family, Vec::new())).collect())
    }

    /// Adds a sample of the family with this name; what is not known is left out.
    ///
    /// # Panics
    /// If there is no such family, which tests find.
    pub fn add(&mut self, name: &str, labels: &[(&str, &str)], value: Option<f64>) {
        let Some(value) = value else { return };
        let found = self.0.iter_mut().find(|(family, _)| family.name == name);
        let Some((family, samples)) = found else { panic!("there is no family {name}") };
        let suffix = match family.kind {
            Kind::Gauge => "",
            Kind::Counter => "_total",
            Kind::Info => "_info",
        };
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escape(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        samples.push(format!("{name}{suffix}{labels} {value}\n"));
    }

    /// The whole text. Families without samples are left out.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (family, samples) in self.0.iter().filter(|(_, samples)| !samples.is_empty()) {
            let Family { name, kind, help } = family;
            let kind = match kind {
                Kind::Gauge => "gauge",
                Kind::Counter => "counter",
                Kind::Info => "info",
            };
            let _ = writeln!(text, "# TYPE {name} {kind}");
            if let Some(unit) = family.unit() {
                let _ = writeln!(text, "# UNIT {name} {unit}");
            }
            let _ = writeln!(text, "# HELP {name} {}", escape(help));
            text.extend(samples.iter().map(String::as_str));
        }
        text.push_str("# EOF\n");
        text
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAMILIES: &[Family] = &[
        Family { name: "a_state", kind: Kind::Gauge, help: "States." },
        Family { name: "a_cpu_seconds", kind: Kind::Counter, help: "Of \"it\"." },
        Family { name: "a", kind: Kind::Info, help: "All of it." },
        Family { name: "a_nothing", kind: Kind::Gauge, help: "Unknown." },
    ];

    #[test]
    fn families_are_told_with_their_samples() {
        let mut exposition = Exposition::new(FAMILIES);
        exposition.add("a", &[("image", "x\"\\\ny")], Some(1.0));
        exposition.add("a_cpu_seconds", &[], Some(0.25));
        exposition.add("a_state", &[("vm", "web"), ("state", "running")], Some(1.0));
        exposition.add("a_state", &[("vm", "db"), ("state", "stopped")], Some(1.0));
        exposition.add("a_nothing", &[], None);
        insta::assert_snapshot!(exposition.text());
    }

    #[test]
    fn numbers_are_whole_if_they_are() {
        let mut exposition = Exposition::new(FAMILIES);
        exposition.add("a_state", &[], Some(1_099_511_627_776.0));
        assert!(exposition.text().contains("\na_state 1099511627776\n"));
    }

    #[test]
    #[should_panic(expected = "no family")]
    fn no_sample_is_without_a_family() {
        Exposition::new(FAMILIES).add("b", &[], Some(1.0));
    }
}
