//! That the kernel object cannot panic.
//!
//! A reachable panic does not load ("last insn is not an exit or jmp"), an unreachable one costs verified
//! instructions. Either way its functions show in the object's symbol table.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSymbol as _};

/// Parts of the names of the functions that a panic calls, mangled the old or the new way.
const PANIC_NAMES: [&str; 4] = ["panicking", "rust_begin_unwind", "panic_fmt", "panic_bounds_check"];

/// Looks for panics in an object file.
///
/// # Errors
/// If there are any, with their symbols, or if the file is not an object.
pub fn check(object: &Path) -> Result<()> {
    let bytes = std::fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("{} is not an object file", object.display()))?;
    let names = file.symbols().filter_map(|symbol| symbol.name().ok());
    let panics: Vec<_> = names.filter(|name| is_panic(name)).collect();
    if panics.is_empty() {
        return Ok(());
    }
    bail!(
        "the kernel object can panic ({}): look for indexing, division, unwrap or slice copies in what changed",
        panics.join(", ")
    )
}

fn is_panic(symbol: &str) -> bool {
    PANIC_NAMES.iter().any(|name| symbol.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_known_by_their_symbols_and_programs_are_not() {
        assert!(is_panic("_ZN4core9panicking18panic_bounds_check17h0123456789abcdefE"));
        assert!(is_panic("_RNvNtCs123_4core9panicking9panic_fmt"));
        assert!(!is_panic("fairway_xdp"));
    }
}
