//! A report as one HTML file: tables and plots, no scripts, nothing fetched from anywhere.
//!
//! Made of the same values as the JSON. **Invariant:** text gets into a page through [`escape`]
//! only: channel names, close reasons and error messages are other people's.

mod plot;

use std::fmt::Write as _;

pub use plot::{Axis, Plot, Scale};

use crate::report::{Environment, Table};

const STYLE: &str = include_str!("page.css");
/// The browser's word that a page is what it says: no scripts, no images, no fonts.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// A page under construction.
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// `verdict` as in the table's last row.
    pub fn new(command: &str, verdict: &str, environment: &Environment) -> Self {
        let title = format!("loadtest {command}: {verdict}");
        let mut body = String::new();
        let Environment { command_line, commit, cpu, cores, kernel } = environment;
        let commit: String = commit.as_deref().unwrap_or("unknown").chars().take(12).collect();
        let _ = write!(
            body,
            "<header><h1>loadtest {} <b class=\"{}\">{}</b></h1><pre>{}</pre><p>{}, {cores} cores, \
             Linux {}, commit {}</p></header>",
            escape(command),
            class(verdict),
            escape(verdict),
            escape(&command_line.join(" ")),
            escape(cpu),
            escape(kernel),
            escape(&commit),
        );
        Self { title, body }
    }

    pub fn heading(&mut self, text: &str) {
        let _ = write!(self.body, "<h2>{}</h2>", escape(text));
    }

    /// As printed in the terminal; rows whose name begins with `--` are headings.
    pub fn table(&mut self, table: &Table) {
        self.body.push_str("<div class=\"scroll\"><table class=\"facts\">");
        for (name, value) in table.rows() {
            let _ = match name.strip_prefix("-- ") {
                Some(name) => write!(self.body, "<tr><th colspan=\"2\">{}</th></tr>", escape(name)),
                None => write!(
                    self.body,
                    "<tr class=\"{}\"><td>{}</td><td>{}</td></tr>",
                    class(name),
                    escape(name),
                    escape(value)
                ),
            };
        }
        self.body.push_str("</table></div>");
    }

    /// With a row of headings. The first of a row's cells says how it went: see [`class`].
    pub fn grid(&mut self, headings: &[&str], rows: &[Vec<String>]) {
        self.body.push_str("<div class=\"scroll\"><table class=\"grid\"><tr>");
        for heading in headings {
            let _ = write!(self.body, "<th>{}</th>", escape(heading));
        }
        self.body.push_str("</tr>");
        for row in rows {
            let verdict = row.first().map_or("", |cell| class(cell));
            let _ = write!(self.body, "<tr class=\"{verdict}\">");
            for cell in row {
                let _ = write!(self.body, "<td>{}</td>", escape(cell));
            }
            self.body.push_str("</tr>");
        }
        self.body.push_str("</table></div>");
    }

    /// Side by side where there is room. A plot without a point is left out.
    pub fn plots(&mut self, plots: &[Plot]) {
        self.body.push_str("<div class=\"plots\">");
        for plot in plots {
            plot.draw(&mut self.body);
        }
        self.body.push_str("</div>");
    }

    pub fn finish(self) -> String {
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta \
             http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\"><meta name=\"viewport\" \
             content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" \
             content=\"light dark\"><title>{}</title><style>{STYLE}</style></head><body>{}</body>\
             </html>\n",
            escape(&self.title),
            self.body
        )
    }
}

/// How a row looks, by its first words.
fn class(name: &str) -> &'static str {
    match name {
        name if name.starts_with("PASSED") => "passed",
        name if name.starts_with("FAILED") || name.starts_with("PUBLISHER") => "failed",
        name if name.starts_with("INCONCLUSIVE") || name.starts_with("CLIENT") => "doubtful",
        _ => "",
    }
}

/// For text and for attributes in double or single quotes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // No browser shows these, and HTML forbids them.
            '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' => out.push('\u{fffd}'),
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_a_text() {
        assert_eq!(escape("<a href=\"x\">&'\0"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;\u{fffd}");
    }

    #[test]
    fn every_way_into_a_page_escapes() {
        let evil = "</style></title><script>alert('1')</script>\"'>";
        let environment = Environment {
            command_line: vec![evil.to_owned()],
            commit: Some(evil.to_owned()),
            cpu: evil.to_owned(),
            cores: 1,
            kernel: evil.to_owned(),
        };
        let mut page = Page::new(evil, evil, &environment);
        page.heading(evil);
        let mut table = Table::default();
        table.row(evil, evil);
        table.row(&format!("-- {evil}"), "");
        page.table(&table);
        page.grid(&[evil], &[vec![evil.to_owned()]]);
        let axis = || Axis::new(evil, Scale::Names(vec![evil.to_owned()]));
        page.plots(&[Plot::new(evil, axis(), axis()).with(evil, vec![(0.0, 0.0)])]);
        let page = page.finish();
        let n_escaped = page.matches("&lt;script&gt;alert(&#39;1&#39;)").count();
        assert!(!page.contains("<script") && !page.contains("\"'>"), "{page}");
        // Title 2; header: command, verdict, command line, CPU, kernel; heading; table 3;
        // grid 2; plot: title 2, axes 2, ticks 2, legend 1, a point's tip 3.
        assert_eq!(n_escaped, 2 + 5 + 1 + 3 + 2 + 10, "{page}");
        assert_eq!(page.matches("</style>").count(), 1);
    }
}
