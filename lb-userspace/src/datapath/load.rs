//! Loading: maps are made or taken over from their pins, programs are verified, both by aya.

use std::io;
use std::panic::resume_unwind;
use std::path::PathBuf;

use anyhow::Context as _;
use aya::programs::{CgroupSockAddr, Program, ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;

use super::pin::{PinDir, PinError};
use super::probe::{self, Missing};
use crate::maps::table::{MapSpec, Sizes};
use crate::sys;

/// The programs and maps, as lb-ebpf compiled them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fairway_object"));

/// The data path could not be loaded. The text says what to do where that is known.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Something is not there.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The pin directory.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// This binary was built without the kernel programs.
    #[error("this fairway was built without its kernel programs: build it with `cargo xtask build`")]
    NoObject,
    /// A pinned map has another size.
    #[error(
        "the pinned map {} has {what} {found}, this agent wants {wanted}: {remedy}",
        path.display()
    )]
    OtherMap {
        /// The pin.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// What the pinned map has.
        found: u32,
        /// What this agent makes.
        wanted: u32,
        /// What to do.
        remedy: String,
    },
    /// A pin could not be read.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The verifier refused a program.
    #[error(
        "the kernel's verifier refuses the program {program} ({source}); this kernel is {kernel}, 5.15 or later is needed; please report this with the following end of the verifier's log:\n{log}"
    )]
    Verifier {
        /// The program.
        program: String,
        /// What the kernel said.
        source: io::Error,
        /// Its release.
        kernel: String,
        /// The last lines of the log.
        log: String,
    },
    /// A program is not in the object, or of another type.
    #[error("the program {0} is missing from the object: this is a fault of the build")]
    NoProgram(&'static str),
    /// aya refused.
    #[error("cannot load the object: {0}")]
    Object(#[from] EbpfError),
    /// aya refused a program.
    #[error("cannot load the program {program}: {source}")]
    Program {
        /// The program.
        program: String,
        /// Why.
        source: ProgramError,
    },
}

/// What is told of dropped packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drops {
    /// How many, by hook and reason.
    Counted,
    /// Each one, by the log as well ([`log_drops`]).
    Logged,
}

/// Levels of aya-log, as the programs compare them.
const LOG_NOTHING: u8 = 0;
const LOG_ALL: u8 = u8::MAX;

/// Writes what the programs tell of dropped packets to the log, until the agent ends.
///
/// # Errors
/// If the programs' log cannot be opened.
pub fn log_drops(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    let logger = EbpfLogger::init(ebpf).context("open the log of the programs")?;
    #[expect(
        deprecated,
        reason = "its successor is unsafe; the logger owns its descriptor as long as it is waited for"
    )]
    let mut logger = AsyncFd::new(logger).context("wait for the log of the programs")?;
    tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Ok(())
}

/// Loads everything. Maps lie pinned afterwards; programs are in the kernel and attached nowhere.
pub fn load(pins: &PinDir, sizes: &Sizes, drops: Drops) -> Result<Ebpf, LoadError> {
    if OBJECT.is_empty() {
        return Err(LoadError::NoObject);
    }
    probe::privilege()?;
    pins.create()?;
    sys::lift_memlock();
    let specs = sizes.maps();
    for spec in &specs {
        check_pin(pins, spec)?;
    }
    let mut loader = EbpfLoader::new();
    for spec in &specs {
        loader.map_max_entries(spec.name, spec.entries);
        loader.map_pin_path(spec.name, pins.map(spec.name));
    }
    let level = match drops {
        Drops::Counted => LOG_NOTHING,
        Drops::Logged => LOG_ALL,
    };
    loader.override_global("AYA_LOG_LEVEL", &level, true);
    let mut ebpf = loader.load(OBJECT)?;
    verify(&mut ebpf)?;
    Ok(ebpf)
}

/// Gives the programs to the kernel, which verifies them, all at once: it takes most of the agent's start. Those for
/// devices without link headers wait until there is such a device.
fn verify(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    std::thread::scope(|scope| {
        let programs = ebpf.programs_mut().filter(|(name, _)| !name.ends_with("_l3"));
        let loading: Vec<_> = programs
            .map(|(name, program)| {
                scope.spawn(move || {
                    let loaded = match program {
                        Program::Xdp(p) => p.load(),
                        Program::SchedClassifier(p) => p.load(),
                        Program::CgroupSockAddr(p) => p.load(),
                        _ => Ok(()),
                    };
                    loaded.map_err(|source| refused(name, source))
                })
            })
            .collect();
        loading
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// Compares a pinned map with what we would make: aya takes pins over unseen.
fn check_pin(pins: &PinDir, spec: &MapSpec) -> Result<(), LoadError> {
    let path = pins.map(spec.name);
    let fd = match sys::open_pinned(&path) {
        Ok(fd) => fd,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(LoadError::Open { path, source }),
    };
    let info = sys::map_info(&fd).map_err(|source| LoadError::Open {
        path: path.clone(),
        source,
    })?;
    let cleanup = format!(
        "`fairway cleanup --pin-dir {}` removes it, and with it all connections",
        pins.root().display()
    );
    for (what, found, wanted) in [
        ("type", info.kind, spec.kind as u32),
        ("key size", info.key_size, spec.key_size),
        ("value size", info.value_size, spec.value_size),
        ("entries", info.max_entries, spec.entries),
    ] {
        if found != wanted {
            let remedy = match (what, spec.flag) {
                ("entries", flag) if !flag.is_empty() => {
                    format!("start with the {flag} of the last time, or start anew: {cleanup}")
                }
                _ => cleanup,
            };
            return Err(LoadError::OtherMap {
                path,
                what,
                found,
                wanted,
                remedy,
            });
        }
    }
    Ok(())
}

fn refused(program: &str, error: ProgramError) -> LoadError {
    let program = program.to_owned();
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines
                .get(lines.len().saturating_sub(15)..)
                .unwrap_or_default()
                .join("\n");
            LoadError::Verifier {
                program,
                source: io_error,
                kernel: kernel_release(),
                log: tail,
            }
        }
        source => LoadError::Program { program, source },
    }
}

/// The kernel's release, as `uname -r` prints it.
pub fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// An XDP program of the object.
pub fn xdp<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, LoadError> {
    find(ebpf, name)
}

/// A TC program of the object, loaded.
pub fn classifier<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, LoadError> {
    let program: &mut SchedClassifier = find(ebpf, name)?;
    if program.fd().is_err() {
        program.load().map_err(|source| refused(name, source))?;
    }
    Ok(program)
}

/// A sock_addr program of the object.
pub fn sock_addr<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSockAddr, LoadError> {
    find(ebpf, name)
}

fn find<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<P, LoadError>
where
    P: TryFrom<&'a mut Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(LoadError::NoProgram(name))
}
