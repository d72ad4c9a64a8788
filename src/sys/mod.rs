//! System calls: every `unsafe` block of the program is below this module.

pub mod bpf;
pub mod file;
