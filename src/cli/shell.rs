//! Completion scripts and man pages, made from the command line's own definition.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Parser;

use super::Outcome;
use crate::oci;
use crate::pod::{adopt, tasks};

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
        script.extend_from_slice(with_names(args.shell).as_bytes());
    }
    super::output::print(&String::from_utf8_lossy(&script))
}

/// Commands whose words are services or tasks.
const NAMING: &str = "attach down exec kill logs ps restart start stats stop wait";

/// What makes a shell ask the program for names, where its script can be added to.
fn with_names(shell: clap_complete::Shell) -> String {
    match shell {
        clap_complete::Shell::Bash => format!(
            r#"
_sampan_names() {{
    _sampan "$@"
    local word
    case "${{COMP_WORDS[COMP_CWORD]}}" in -*) return ;; esac
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case " {NAMING} " in
            *" $word "*)
                COMPREPLY+=($(compgen -W "$(sampan internal names 2>/dev/null)" -- "${{COMP_WORDS[COMP_CWORD]}}"))
                return ;;
        esac
    done
}}
complete -F _sampan_names -o nosort -o bashdefault -o default sampan
"#
        ),
        clap_complete::Shell::Fish => format!(
            "\ncomplete -c sampan -n '__fish_seen_subcommand_from {NAMING}' -a '(sampan internal names 2>/dev/null)'\n"
        ),
        _ => String::new(),
    }
}

/// Prints the services of the pod of this folder, and the tasks of frameworks.
pub fn names() -> Outcome {
    // the same defaults and environment as every command
    let global = super::Cli::parse_from(["sampan", "ps"]).global;
    let mut names = Vec::new();
    if let Ok(dir) = global.pod()
        && let Some(pod) = adopt::load(&dir)?
    {
        names.extend(pod.project.services.into_keys());
    }
    for pod in tasks::all(&global.folders()?)? {
        for (task, services) in pod.tasks {
            let with_service = services.iter().map(|service| format!("{task}/{service}"));
            let with_service: Vec<String> = with_service.collect();
            names.push(task);
            names.extend(with_service);
        }
    }
    names.sort();
    super::output::print(
        &names
            .iter()
            .map(|name| format!("{name}\n"))
            .collect::<String>(),
    )
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
