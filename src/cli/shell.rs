//! Completion scripts and man pages, made from the command line's own definition.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::Outcome;
use crate::oci;

/// Options of `completions`.
#[derive(Debug, clap::Args)]
pub struct Completions {
    /// Which shell
    shell: clap_complete::Shell,
    /// Name that the program is called by
    #[arg(long, default_value = "sampan", value_parser = ["sampan", oci::NAME])]
    name: String,
}

/// Options of `man`.
#[derive(Debug, clap::Args)]
pub struct Man {
    /// Folder to write into
    dir: PathBuf,
}

/// Prints the script.
pub fn completions(args: &Completions, command: &mut clap::Command) -> Outcome {
    let mut script = Vec::new();
    if args.name == oci::NAME {
        clap_complete::generate(
            args.shell,
            &mut oci::command(oci::NAME),
            oci::NAME,
            &mut script,
        );
    } else {
        clap_complete::generate(args.shell, command, "sampan", &mut script);
    }
    super::output::print(&String::from_utf8_lossy(&script))
}

/// Writes `sampan.1`, `sampan-up.1`, …, `sampan-oci.1`, …
pub fn man(args: &Man, command: &clap::Command) -> Outcome {
    std::fs::create_dir_all(&args.dir).with_context(|| format!("make {}", args.dir.display()))?;
    let mut command = command.clone();
    // makes `sampan image build` of what is called `build`
    command.build();
    let mut runtime = oci::command(oci::NAME);
    runtime.build();
    pages(&command, &args.dir)
        .and_then(|()| pages(&runtime, &args.dir))
        .with_context(|| format!("write man pages to {}", args.dir.display()))?;
    Ok(0)
}

fn pages(command: &clap::Command, dir: &Path) -> std::io::Result<()> {
    // its pages would say nothing
    for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
        pages(sub, dir)?;
    }
    let page = clap_mangen::Man::new(command.clone());
    let mut text = Vec::new();
    page.render(&mut text)?;
    // what a command has behind its options are examples
    let text = String::from_utf8_lossy(&text).replace("\n.SH EXTRA\n", "\n.SH EXAMPLES\n");
    std::fs::write(dir.join(page.get_filename()), text)
}
