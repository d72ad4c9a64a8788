//! The `sampan` program: hands over to the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    // before anything that a container could have influenced is read
    if arguments
        .next()
        .is_some_and(|name| name == sampan::init::reaper::NAME)
    {
        return sampan::init::reaper::main(arguments);
    }
    sampan::cli::main()
}
