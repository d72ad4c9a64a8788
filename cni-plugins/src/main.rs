//! Every CNI plugin in one program; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::main(std::env::args_os())
}
