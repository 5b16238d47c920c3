//! `cargo xtask test`: every test, tier by tier, from those that need nothing to those that need root.
//!
//! Each tier is an ordinary `cargo test`. Tests that need root are built as the user and run through sudo. A test
//! that cannot run here writes one line to its standard error past the test harness, `SKIPPED name: reason`, and
//! returns; it is counted as skipped. With `FAIRWAY_REQUIRE=1` (set here in CI) it fails instead.

use std::{
    env, fs,
    io::{self, BufRead as _, BufReader},
    ops::AddAssign,
    path::Path,
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    build, kubernetes, process,
    setup::{self, Need},
};

/// Which tests to run.
#[derive(Args)]
pub struct Options {
    /// Leave out the tiers that need root.
    #[arg(long)]
    no_root: bool,
    /// A skipped test is a failure. The default where CI=true is in the environment.
    #[arg(long)]
    ci: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// Tests that belong together and have the same needs.
struct Tier {
    title: &'static str,
    package: &'static str,
    targets: Targets,
    /// Whether the tests load programs or make namespaces.
    root: bool,
}

/// Which targets of a package.
enum Targets {
    /// Those that these arguments of `cargo test` choose.
    Chosen(&'static [&'static str]),
    /// The files of its folder `tests` with these names.
    Files(&'static [&'static str]),
    /// The other files of that folder.
    FilesBut(&'static [&'static str]),
}

/// Tests of `lb-userspace` that are files of their own and need nothing.
const WITHOUT_ROOT: &[&str] = &["ingress", "map_contents"];
/// The same of `xtask`.
const XTASK_WITHOUT_ROOT: &[&str] = &["conformance_host"];

const TIERS: [Tier; 7] = [
    Tier {
        title: "Packet logic on the host: units, properties, scenario table",
        package: "lb-common",
        targets: Targets::Chosen(&["--all-features"]),
        root: false,
    },
    Tier {
        title: "Agent: units",
        package: "lb-userspace",
        targets: Targets::Chosen(&["--lib", "--bins"]),
        root: false,
    },
    Tier {
        title: "Manifests to map contents; the Ingress proxy on loopback",
        package: "lb-userspace",
        targets: Targets::Files(WITHOUT_ROOT),
        root: false,
    },
    Tier {
        title: "The commands of this repository",
        package: "xtask",
        targets: Targets::Chosen(&["--lib", "--bins"]),
        root: false,
    },
    Tier {
        title: "Conformance cases on the host: objects to what becomes of packets",
        package: "xtask",
        targets: Targets::Files(XTASK_WITHOUT_ROOT),
        root: false,
    },
    Tier {
        title: "Loaded kernel object, API server, agents in namespaces",
        package: "lb-userspace",
        targets: Targets::FilesBut(WITHOUT_ROOT),
        root: true,
    },
    Tier {
        title: "End to end in namespaces: the lab, conformance cases",
        package: "xtask",
        targets: Targets::FilesBut(XTASK_WITHOUT_ROOT),
        root: true,
    },
];

/// What became of tests. Signed, since a test that skipped itself is taken off those that the harness saw pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: isize,
    failed: isize,
    skipped: isize,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Runs the tests and ends with the line `N passed, N failed, N skipped`.
///
/// # Errors
/// If a test failed, or was skipped where that is not allowed, or something needed is missing.
pub fn run(options: &Options) -> Result<()> {
    let require = options.ci || env::var("CI").is_ok_and(|value| value == "true" || value == "1");
    let root_needs = [Need::Build, Need::Kubernetes, Need::Kernel, Need::Lab];
    setup::ensure(if options.no_root { &root_needs[..1] } else { &root_needs })?;

    process::heading("Build");
    let artifacts = build::build(false)?;
    let mut environment = vec![
        ("FAIRWAY_BIN", artifacts.fairway.into_os_string()),
        (
            "FAIRWAY_CONFORMANCE",
            build::build_example("conformance")?.into_os_string(),
        ),
    ];
    if !options.no_root {
        environment.push(("FAIRWAY_KUBE_BIN", kubernetes::ensure()?.into_os_string()));
    }
    if require {
        environment.push(("FAIRWAY_REQUIRE", "1".into()));
    }

    if !options.no_root {
        process::heading("Kubernetes API server");
        environment.push(("FAIRWAY_KUBE_BIN", kubernetes::ensure()?.into_os_string()));
    }

    let started = Instant::now();
    let mut total = Counts::default();
    for tier in &TIERS {
        process::heading(tier.title);
        if options.no_root && tier.root {
            eprintln!("left out by --no-root");
        } else {
            total += tier.run(options.filter.as_deref(), &environment)?;
        }
    }

    process::heading(&format!("All tiers, in {} s", started.elapsed().as_secs()));
    println!(
        "{} passed, {} failed, {} skipped",
        total.passed, total.failed, total.skipped
    );
    if total.failed > 0 {
        bail!("tests failed");
    }
    if require && total.skipped > 0 {
        bail!("tests were skipped, which is a failure in CI; the lines that begin with SKIPPED say why");
    }
    Ok(())
}

impl Tier {
    /// The arguments of `cargo test` for its targets.
    fn arguments(&self) -> Result<Vec<String>> {
        let names = match self.targets {
            Targets::Chosen(arguments) => return Ok(arguments.iter().map(|&word| word.to_owned()).collect()),
            Targets::Files(names) => names.iter().map(|&name| name.to_owned()).collect(),
            Targets::FilesBut(others) => {
                let folder = process::workspace().join(self.package).join("tests");
                let files = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
                let mut names: Vec<_> = files.flatten().filter_map(|file| test_name(&file.path())).collect();
                names.retain(|name| !others.contains(&name.as_str()));
                names.sort();
                names
            }
        };
        Ok(names.into_iter().flat_map(|name| ["--test".to_owned(), name]).collect())
    }

    fn command(&self, filter: Option<&str>) -> Result<Command> {
        let mut command = process::cargo();
        command.args(["test", "--no-fail-fast", "--package", self.package]);
        if self.root && !process::is_root() {
            let words = process::root_prefix()?;
            let runner = serde_json::to_string(&words).context("cannot write the runner")?;
            // An array of strings is written alike in JSON and TOML.
            command
                .arg("--config")
                .arg(format!("target.'cfg(unix)'.runner={runner}"));
        }
        command.args(self.arguments()?);
        if let Some(filter) = filter {
            command.args(["--", filter]);
        }
        Ok(command)
    }

    /// Runs the tier's tests, passes their output on, and counts.
    fn run(&self, filter: Option<&str>, environment: &[(&str, std::ffi::OsString)]) -> Result<Counts> {
        let mut command = self.command(filter)?;
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let shown = process::show(&command);
        eprintln!("{shown}");
        let (reader, writer) = io::pipe().context("cannot make a pipe")?;
        let stdout = writer.try_clone().context("cannot share a pipe")?;
        let mut child = command
            .stdout(stdout)
            .stderr(writer)
            .spawn()
            .with_context(|| format!("cannot run `{shown}`"))?;
        // It holds the pipe's writing ends; the reading below would never end otherwise.
        drop(command);
        let mut counts = Counts::default();
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader
            .read_until(b'\n', &mut line)
            .context("cannot read the tests' output")?
            > 0
        {
            let text = String::from_utf8_lossy(&line);
            print!("{text}");
            counts += count(&text);
            line.clear();
        }
        let status = child.wait().with_context(|| format!("cannot wait for `{shown}`"))?;
        if !status.success() && counts.failed == 0 {
            // It did not build, or a test took its whole process down.
            eprintln!("`{shown}` failed ({status})");
            counts.failed = 1;
        }
        Ok(counts)
    }
}

/// The name of the test that a file of a folder `tests` is; folders hold what tests share.
fn test_name(path: &Path) -> Option<String> {
    let is_test = path.extension().is_some_and(|extension| extension == "rs");
    is_test
        .then(|| path.file_stem().map(|stem| stem.to_string_lossy().into_owned()))
        .flatten()
}

/// What one line of the harness's output adds.
fn count(line: &str) -> Counts {
    let mut counts = Counts::default();
    if line.starts_with("test result:") {
        let number = |word: &str| {
            let before = line.split(word).next().unwrap_or_default();
            before
                .split_whitespace()
                .next_back()
                .and_then(|number| number.parse().ok())
                .unwrap_or(0)
        };
        counts.passed = number(" passed");
        counts.failed = number(" failed");
        counts.skipped = number(" ignored");
    } else if line.contains("SKIPPED ") {
        counts.skipped = 1;
        counts.passed = -1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harness_s_closing_line_is_counted() {
        let line = "test result: FAILED. 12 passed; 1 failed; 2 ignored; 0 measured; 3 filtered out; finished in 0.01s";
        assert_eq!(
            count(line),
            Counts {
                passed: 12,
                failed: 1,
                skipped: 2
            }
        );
    }

    #[test]
    fn a_test_that_skips_itself_is_counted_once_as_skipped() {
        let mut counts = count("test loads ... SKIPPED loads: needs root\n");
        counts += count("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n");
        assert_eq!(
            counts,
            Counts {
                passed: 0,
                failed: 0,
                skipped: 1
            }
        );
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(count("running 3 tests"), Counts::default());
        assert_eq!(count("test a_name ... ok"), Counts::default());
    }
}
