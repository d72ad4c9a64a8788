//! The `sampan` program: hands over to the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    // before anything that a container could have influenced is read
    if name == sampan::init::reaper::NAME {
        return sampan::init::reaper::main(arguments);
    }
    if cni_plugins::renewal::is_meant(&name) {
        return cni_plugins::renewal::main(arguments);
    }
    if sampan::oci::is_meant(&name) {
        return sampan::oci::main(arguments);
    }
    if sampan::selftest::probe::is_meant(&name) {
        return sampan::selftest::probe::main(arguments);
    }
    let mut behind = arguments;
    if behind.next().is_some_and(|first| first == "oci") {
        return sampan::oci::main(behind);
    }
    sampan::cli::main()
}
