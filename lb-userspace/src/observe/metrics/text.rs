//! Prometheus' own text format (version 0.0.4) from the OpenMetrics text that the library writes.
//!
//! The two differ in what a counter's description is called and in how the text ends. The older one is what kube-proxy
//! answers with, so whatever reads its metrics reads ours. It also has no rule against a gauge whose name ends in
//! `_total`, of which kube-proxy has one.

/// The content type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The same metrics in Prometheus' text format.
pub fn from_open_metrics(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut help: Option<(&str, &str)> = None;
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("EOF"), ..) => {}
            // What it describes is called by its type, which comes after it.
            (Some("#"), Some("HELP"), Some(name), text) => help = Some((name, text.unwrap_or_default())),
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let end = if kind == "counter" { "_total" } else { "" };
                if let Some((_, text)) = help.take().filter(|(of, _)| *of == name) {
                    out.push_str(&format!("# HELP {name}{end} {text}\n"));
                }
                out.push_str(&format!("# TYPE {name}{end} {kind}\n"));
            }
            _ => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_described_by_the_names_of_their_samples() {
        let open = "# HELP a_b Things, and # TYPE of them.\n# TYPE a_b counter\na_b_total{x=\"# EOF\"} 1\n\
                    # HELP c Level.\n# TYPE c gauge\nc 2\n# EOF\n";
        let prometheus = "# HELP a_b_total Things, and # TYPE of them.\n# TYPE a_b_total counter\n\
                          a_b_total{x=\"# EOF\"} 1\n# HELP c Level.\n# TYPE c gauge\nc 2\n";
        assert_eq!(from_open_metrics(open), prometheus);
    }
}
