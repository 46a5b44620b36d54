//! A file with all that can be said in files of its kind, as a page of the manual.
//!
//! It begins with `# NAME: what it is`, a paragraph or more, and perhaps `# See: page(1), …`. Then come tables and keys
//! with their defaults, each below its comment; what has no default is commented out, and has a value that it might have.
//! After `# EXAMPLES` there is text, and lines to be taken over, which are commented out without a blank. In all
//! of it, words between backticks are bold.
//!
//! The tests of the programs hold the same files against what they read (`banger_config::reference`).

use crate::roff::{bold, escape, prose};

/// What is true of all configuration of services.
const CONFIGURATION: &str = "\
.SH FILES
.I /usr/lib/banger/@,
.I /run/banger/@,
.I /etc/banger/@
.PP
and, in all three directories,
.IR @.d/*.conf .
.PP
They are TOML, read from the distribution's to the admin's, then the drop\\-ins in the order of their names. What comes later wins,
key by key, in tables too. Of drop\\-ins with the same name only the strongest directory's is read, so that a link to
.I /dev/null
masks another. Unknown keys are refused with file and line.
";

/// The page's name, and the page.
pub fn page(text: &str) -> Option<(String, String)> {
    let (head, text) = text.split_once("\n\n")?;
    let (text, examples) = text.split_once("# EXAMPLES\n").unwrap_or((text, ""));
    let mut head = paragraphs(head).into_iter();
    let first = head.next()?;
    let (name, what) = first.split_once(": ")?;
    let (see, description): (Vec<_>, Vec<_>) = head.partition(|paragraph| paragraph.starts_with("See: "));

    let mut page = format!(".TH {} 5 \"\" banger \"banger\"\n", escape(name));
    page +=
        &format!(".SH NAME\n{} \\- {}\n.SH DESCRIPTION\n", escape(name), prose(what.trim_end_matches('.')));
    page += &description.iter().map(|text| format!(".PP\n{}\n", prose(text))).collect::<String>();
    page += ".SH OPTIONS\nValues shown are the defaults; what is shown as an example has none.\n";
    page += &options(text);
    if let Some(file) = name.strip_prefix("banger-") {
        page += &CONFIGURATION.replace('@', &escape(file));
    }
    if !examples.is_empty() {
        page += &format!(".SH EXAMPLES\n{}", self::examples(examples));
    }
    if let Some(see) = see.first().and_then(|see| see.strip_prefix("See: ")) {
        let see: Vec<_> = see.split(", ").map(reference).collect();
        page += &format!(".SH SEE ALSO\n{}\n", see.join(",\n"));
    }
    Some((format!("{name}.5"), page))
}

/// Comments, without their marks.
fn paragraphs(text: &str) -> Vec<String> {
    let lines: Vec<_> = text.lines().map(|line| line.trim_start_matches('#').trim()).collect();
    let paragraphs = lines.split(|line| line.is_empty()).map(|lines| lines.join(" "));
    paragraphs.filter(|text| !text.is_empty()).collect()
}

fn options(text: &str) -> String {
    let mut page = String::new();
    for block in text.split("\n\n") {
        let mut says = String::new();
        for line in block.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                says += &format!("{comment}\n");
            } else if let Some(table) =
                line.strip_prefix('#').or(Some(line)).filter(|line| line.starts_with('['))
            {
                page += &format!(".SS {}\n{}", escape(table), told(&std::mem::take(&mut says)));
            } else if let Some((key, value)) = line.split_once(" = ") {
                let says = std::mem::take(&mut says);
                let (key, is) = match key.strip_prefix('#') {
                    Some(key) => (key, "such as"),
                    None => (key, "="),
                };
                page += &format!(".TP\n{} {is} {}\n{}", bold(key), escape(value), told(&says));
            }
        }
        // Of the table above, or of all.
        page += &told(&says);
    }
    page
}

fn told(says: &str) -> String {
    let says = says.lines().collect::<Vec<_>>().join(" ");
    if says.is_empty() { String::new() } else { format!("{}\n", prose(&says)) }
}

fn examples(text: &str) -> String {
    let mut page = String::new();
    let lines: Vec<_> = text.lines().collect();
    for block in lines.split(|line| *line == "#").filter(|block| !block.is_empty()) {
        if block.iter().all(|line| line.starts_with("# ")) {
            page += &format!(".PP\n{}\n", prose(&paragraphs(&block.join("\n")).join(" ")));
        } else {
            let lines: Vec<_> =
                block.iter().map(|line| escape(line.strip_prefix('#').unwrap_or(line))).collect();
            page += &format!(".PP\n.RS 4\n.nf\n{}\n.fi\n.RE\n", lines.join("\n"));
        }
    }
    page
}

/// `name(1)`, as pages refer to others.
fn reference(page: &str) -> String {
    match page.split_once('(') {
        Some((name, section)) => format!(".BR {} ({section}", escape(name)),
        None => escape(page),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# banger-x.conf: how x is done
#
# All of `x`
# is here.
#
# See: banger(1), x(7)

# How many.
count = 1

[more]
# What else there is.

# Whose; for example:
#name = \"a-b\"

#[[part]]
# One of them.
# EXAMPLES
#
# Two of them, in
# a file:
#
#count = 2
#[more]
";

    #[test]
    fn files_become_pages() {
        let (name, page) = page(TEXT).expect("a page");
        assert_eq!(name, "banger-x.conf.5");
        let (head, rest) = page.split_once(".SH FILES").expect("where it is");
        assert_eq!(
            head,
            ".TH banger\\-x.conf 5 \"\" banger \"banger\"\n.SH NAME\nbanger\\-x.conf \\- how x is done\n\
             .SH DESCRIPTION\n.PP\nAll of \\fBx\\fR is here.\n\
             .SH OPTIONS\nValues shown are the defaults; what is shown as an example has none.\n\
             .TP\n\\fBcount\\fR = 1\nHow many.\n.SS [more]\nWhat else there is.\n\
             .TP\n\\fBname\\fR such as \"a\\-b\"\nWhose; for example:\n.SS [[part]]\nOne of them.\n"
        );
        assert!(rest.contains(".I /etc/banger/x.conf\n"), "{rest}");
        assert!(
            rest.ends_with(
                ".SH EXAMPLES\n.PP\nTwo of them, in a file:\n.PP\n.RS 4\n.nf\ncount = 2\n[more]\n.fi\n.RE\n\
                 .SH SEE ALSO\n.BR banger (1),\n.BR x (7)\n"
            ),
            "{rest}"
        );
    }
}
