//! Guest program.
fn main() {}
