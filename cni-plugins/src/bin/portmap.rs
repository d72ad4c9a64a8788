//! The CNI plugin `portmap`; see the library's module `portmap`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::main("portmap")
}
