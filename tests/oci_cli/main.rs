//! The OCI runtime's command line as its callers use it: argument forms, output, exit codes, races.

mod callers;
mod life;
mod races;
mod rootless;
mod streams;
mod support;
