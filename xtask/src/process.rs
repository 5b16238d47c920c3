//! Running other programs: long steps with progress and a log, programs that need root, and where programs are.

use std::{
    env,
    ffi::OsStr,
    fmt::Write as _,
    fs::{self, File},
    io::{self, IsTerminal as _, Write as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// How often a long step says that it is still at work where output is not a terminal.
const STILL_AT_IT: Duration = Duration::from_secs(30);
/// Lines of a failed step's log that are shown.
const LOG_TAIL_LINES: usize = 40;

/// The folder with the workspace's `Cargo.toml`.
pub fn workspace() -> &'static Path {
    // xtask is always run out of the workspace that it was built from.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Cargo's target folder.
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), |dir| workspace().join(dir))
}

/// A cargo command in the workspace, with the cargo that runs this program.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether somebody reads the output as it comes.
pub fn on_terminal() -> bool {
    io::stderr().is_terminal()
}

/// The path of a program in `PATH`, or in the folders for administrators' programs that an ordinary user's `PATH`
/// often lacks.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| fs::metadata(file).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0))
}

/// The words to put before a command so that it runs as root with this environment: none for root itself.
///
/// # Errors
/// If this is an ordinary user and there is no sudo.
pub fn root_prefix() -> Result<Vec<String>> {
    if is_root() {
        return Ok(Vec::new());
    }
    if find("sudo").is_none() {
        bail!("this needs root and there is no sudo here: run the command as root");
    }
    // sudo sets a PATH of its own even with -E.
    let path = env::var("PATH").context("PATH is not readable")?;
    Ok(vec!["sudo".into(), "-E".into(), "env".into(), format!("PATH={path}")])
}

/// `program` to be run as root: through sudo if this is an ordinary user.
///
/// # Errors
/// As [`root_prefix`].
pub fn as_root(program: &str) -> Result<Command> {
    let mut words = root_prefix()?;
    words.push(program.into());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    Ok(command)
}

/// Replaces this process by `cargo xtask ARGUMENTS` run as root, with these `NAME=VALUE` added to the environment;
/// for verbs that have built everything as the user and go on with namespaces and BPF programs.
///
/// # Errors
/// Always, if it returns: sudo could not be started.
pub fn go_on_as_root<A: AsRef<OsStr>>(environment: &[String], arguments: impl IntoIterator<Item = A>) -> Result<()> {
    let program = env::current_exe().context("cannot find this program's own file")?;
    let mut command = as_root("env")?;
    let error = command.args(environment).arg(program).args(arguments).exec();
    Err(error).context("cannot go on as root through sudo")
}

/// What a command prints on its standard output; its errors in the error.
///
/// # Errors
/// If it cannot be started or fails.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{shown}`"))?;
    if !output.status.success() {
        bail!(
            "`{shown}` failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command that shows its own progress.
///
/// # Errors
/// If it cannot be started or fails.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.status().with_context(|| format!("cannot run `{shown}`"))?;
    check(&shown, status)
}

fn check(shown: &str, status: ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    bail!("`{shown}` failed ({status})")
}

/// The command as one would type it.
pub fn show(command: &Command) -> String {
    let mut shown = command.get_program().to_string_lossy().into_owned();
    if Some(command.get_program()) == env::var_os("CARGO").as_deref() {
        shown = "cargo".into();
    }
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        if argument.contains(char::is_whitespace) || argument.is_empty() {
            let _ = write!(shown, " '{argument}'");
        } else {
            let _ = write!(shown, " {argument}");
        }
    }
    shown
}

/// A headline between the parts of a long run.
pub fn heading(text: &str) {
    eprintln!("\n==> {text}");
}

/// Runs a long, talkative command: its output goes to a log, the terminal gets one line with the time it takes.
/// Upon failure the end of the log is shown.
///
/// # Errors
/// If the command cannot be started or fails.
pub fn step(title: &str, command: &mut Command) -> Result<()> {
    let shown = show(command);
    let log_path = log_path(title)?;
    let log = File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let started = Instant::now();
    eprintln!("--> {title}\n    {shown}");
    let mut child = command
        .stdin(if on_terminal() { Stdio::inherit() } else { Stdio::null() })
        .stdout(log.try_clone().context("cannot share the log")?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot run `{shown}`"))?;
    let mut said = started;
    let status = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for `{shown}`"))? {
            break status;
        }
        let seconds = started.elapsed().as_secs();
        if on_terminal() {
            eprint!("\r    {seconds} s ");
            let _ = io::stderr().flush();
        } else if said.elapsed() >= STILL_AT_IT {
            said = Instant::now();
            eprintln!("    still at it after {seconds} s");
        }
        thread::sleep(Duration::from_millis(200));
    };
    let seconds = started.elapsed().as_secs_f32();
    let end = if status.success() { "done" } else { "FAILED" };
    eprintln!("{}    {end} in {seconds:.1} s", if on_terminal() { "\r" } else { "" });
    if !status.success() {
        let text = fs::read(&log_path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        for line in lines.iter().skip(lines.len().saturating_sub(LOG_TAIL_LINES)) {
            eprintln!("    | {line}");
        }
        eprintln!("    whole log: {}", log_path.display());
    }
    check(&shown, status)
}

fn log_path(title: &str) -> Result<PathBuf> {
    let folder = target_dir().join("xtask");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let name: String = title
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect();
    Ok(folder.join(format!("{name}.log")))
}
