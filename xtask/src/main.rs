//! Everything one does with the repository.
fn main() {}
