//! Test program.
fn main() {}
