//! The flags about the log of the process, and what they do.

use std::io::{self, IsTerminal as _};

use anyhow::Context as _;
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// What is logged, and how. It goes to standard error.
#[derive(clap::Args, Debug)]
pub struct Log {
    /// What is logged, such as `debug` or `fairway=debug,kube=info`.
    #[arg(
        long,
        env = "FAIRWAY_LOG",
        value_name = "FILTER",
        default_value = "info",
        help_heading = "Log"
    )]
    log: String,

    /// How it is written.
    #[arg(long, value_enum, default_value_t, help_heading = "Log")]
    log_format: Format,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Log {
    /// Logs from now on.
    ///
    /// # Errors
    /// If the filter is not understood.
    pub fn start(&self) -> anyhow::Result<()> {
        // A bare level is meant for Fairway: libraries say much at it that helps nobody here. The client of the API says
        // so each time that it is not answered, which Fairway says once; the proxy says of each failed request what is in
        // the access log.
        let bare = !self.log.contains(['=', ',']);
        let directives = if bare {
            format!(
                "warn,kube_client=off,pingora_core=off,pingora_proxy=off,fairway={}",
                self.log
            )
        } else {
            self.log.clone()
        };
        let filter = EnvFilter::try_new(directives).with_context(|| format!("understand --log {}", self.log))?;
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(io::stderr);
        match self.log_format {
            Format::Text => log.with_target(false).with_ansi(io::stderr().is_terminal()).init(),
            Format::Json => log.json().flatten_event(true).init(),
        }
        Ok(())
    }
}
