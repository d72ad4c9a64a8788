//! `--help`, `--version`, and the same as a definition for completions and man pages; all from [`super::table`].

use std::fmt::Write;

use super::NAME;
use super::table::{COMMANDS, Command, Flag, GLOBAL};

/// Newest version of the runtime-spec that is understood.
pub const SPEC: &str = "1.3.0";
/// What the program is, in a line.
const ABOUT: &str = "Run containers from OCI bundles, with runc's command line";
/// Exit codes, for the end of the help.
const CODES: &str = "Exit codes: 0 success, 1 failure (exec: 255); run and exec without --detach: the program's own,\n\
                     128 + N when signal N ended it.\n";

/// `--version`, in the form that containerd, podman and Docker read.
pub fn version() -> String {
    format!(
        "{NAME} version {}\nspec: {SPEC}\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// `--help` of a command, or of all.
pub fn text(command: Option<&Command>) -> String {
    let mut text = String::new();
    // writing to a string does not fail
    let _ = match command {
        Some(command) => one(&mut text, command),
        None => all(&mut text),
    };
    text
}

fn all(text: &mut String) -> std::fmt::Result {
    writeln!(
        text,
        "{ABOUT}\n\nUsage: {NAME} [OPTIONS] <COMMAND> …\n\nCommands:"
    )?;
    for command in COMMANDS {
        writeln!(text, "  {:<12} {}", command.name, command.help)?;
    }
    writeln!(text, "\nOptions:")?;
    flags(text, GLOBAL)?;
    write!(
        text,
        "\nExamples:\n  {NAME} run --bundle /bundles/web web\n  {NAME} exec -t web sh\n  {NAME} delete --force web\n\n{CODES}"
    )
}

fn one(text: &mut String, command: &Command) -> std::fmt::Result {
    writeln!(text, "{}\n", command.help)?;
    let words = if command.words.is_empty() { "" } else { " " };
    writeln!(
        text,
        "Usage: {NAME} [OPTIONS] {} [OPTIONS]{words}{}\n\nOptions:",
        command.name, command.words
    )?;
    flags(text, command.flags)?;
    if !command.examples.is_empty() {
        writeln!(text, "\nExamples:")?;
        for example in command.examples {
            writeln!(text, "  {NAME} {example}")?;
        }
    }
    Ok(())
}

fn flags(text: &mut String, flags: &[Flag]) -> std::fmt::Result {
    for flag in flags {
        let short = match flag.short {
            '\0' => "    ".to_owned(),
            letter => format!("-{letter}, "),
        };
        let space = if flag.value.is_empty() { "" } else { " " };
        let names = format!("{short}--{}{space}{}", flag.name, flag.value);
        writeln!(text, "  {names:<33} {}", flag.help)?;
    }
    Ok(())
}

/// The command line as `clap` has it, called `name`.
pub fn clap(name: &'static str) -> clap::Command {
    let commands = COMMANDS.iter().map(|command| {
        let mut sub = arguments(
            clap::Command::new(command.name).about(command.help),
            command.flags,
        );
        if !command.words.is_empty() {
            sub = sub.arg(
                clap::Arg::new("words")
                    .value_name(command.words)
                    .num_args(0..),
            );
        }
        if !command.examples.is_empty() {
            let lines = command
                .examples
                .iter()
                .map(|example| format!("  {NAME} {example}"));
            sub = sub.after_help(format!(
                "Examples:\n{}",
                lines.collect::<Vec<_>>().join("\n")
            ));
        }
        sub
    });
    arguments(clap::Command::new(name), GLOBAL)
        .about(ABOUT)
        .after_help(CODES)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .subcommands(commands)
}

fn arguments(command: clap::Command, flags: &'static [Flag]) -> clap::Command {
    let each = flags.iter().map(|flag| {
        let mut arg = clap::Arg::new(flag.name).long(flag.name).help(flag.help);
        if flag.short != '\0' {
            arg = arg.short(flag.short);
        }
        if flag.value.is_empty() {
            arg.action(clap::ArgAction::SetTrue)
        } else {
            arg.value_name(flag.value)
        }
    });
    command.disable_help_flag(true).args(each)
}
