//! The container core from outside and inside: what a container's first process sees, what is left after failures, and what hostile
//! root file systems try.
//!
//! A harness of its own: `create` and `exec` need a process without threads, so the tests run this same binary as the program that
//! creates (`container internal create DIR`).

mod common;
mod exec;
mod hooks;
mod hostile;
mod inside;
mod kernel;
mod lifecycle;
mod mounts;

use std::process::ExitCode;

/// A test: its name and what it does.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "internal") {
        return common::internal(&arguments[1..]);
    }
    let tests: Vec<Test> = [
        lifecycle::TESTS,
        inside::TESTS,
        mounts::TESTS,
        hostile::TESTS,
        exec::TESTS,
        hooks::TESTS,
        kernel::TESTS,
    ]
    .concat();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    // what cargo-nextest asks of a harness
    if has("--list") {
        if !has("--ignored") {
            tests.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    let wanted = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|filter| {
                if has("--exact") {
                    name == *filter
                } else {
                    name.contains(*filter)
                }
            })
    };
    let mut failed = 0;
    for (name, test) in tests.into_iter().filter(|(name, _)| wanted(name)) {
        let passed = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    ExitCode::from(u8::from(failed > 0))
}
