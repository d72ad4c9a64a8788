//! The `sampan` program: hands over to the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    // before anything that a container could have influenced is read
    let name = arguments.next().unwrap_or_default();
    if name == sampan::init::reaper::NAME {
        return sampan::init::reaper::main(arguments);
    }
    if sampan::selftest::probe::is_meant(&name) {
        return sampan::selftest::probe::main(arguments);
    }
    sampan::cli::main()
}
