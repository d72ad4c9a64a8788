//! The `sampan` program: hands over to the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    sampan::cli::main()
}
