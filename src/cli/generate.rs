//! `sampan generate systemd`: units that run a compose file as a service. Pure but for reading the file and writing the units.
//!
//! *Invariants:* a unit names everything by absolute path and depends on nothing of the shell that made it; what it starts is
//! `sampan up` in the foreground, so the unit's state is the pod's, and everything of the pod is in the unit's cgroup.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

use super::{CNI_CONF, CNI_PATH, Global, Outcome, ROOT, STATE, context, output};
use crate::compose::Project;
use crate::sys::file;

/// What is generated.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print a systemd unit that runs the compose file of this folder
    Systemd(Systemd),
}

/// Options of `generate systemd`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sampan -f compose.yaml generate systemd >/etc/systemd/system/sampan-web.service\n  sampan generate systemd -o /etc/systemd/system\n  sampan generate systemd --gc -o /etc/systemd/system\n  systemctl daemon-reload && systemctl enable --now sampan-web.service sampan-gc.timer"
)]
pub struct Systemd {
    /// Units for root's own service manager (`systemctl --user`) instead of the machine's
    #[arg(long)]
    user: bool,
    /// A timer that removes what is left of pods whose owners were killed, instead of a pod's unit
    #[arg(long)]
    gc: bool,
    /// Folder to write the units into, each to a file of its name
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Prints or writes.
pub fn run(global: &Global, command: Command) -> Outcome {
    let Command::Systemd(args) = command;
    let program = std::env::current_exe().context("find the program")?;
    let options = options(global)?;
    let units = if args.gc {
        gc(&program, &options)?
    } else {
        vec![service(global, &args, &program, options)?]
    };
    for (name, text) in units {
        match &args.output {
            Some(folder) => {
                let path = folder.join(&name);
                file::replace(&path, text.as_bytes(), 0o644)
                    .with_context(|| format!("write {}", path.display()))?;
                output::print(&format!("{}\n", path.display()))?
            }
            None => output::print(&format!("# {name}\n{text}\n"))?,
        };
    }
    Ok(0)
}

fn service(
    global: &Global,
    args: &Systemd,
    program: &Path,
    options: Vec<String>,
) -> anyhow::Result<(String, String)> {
    let project = global.project()?;
    context::check_name(&project.name)?;
    let text = unit(&Facts {
        project: &project,
        program,
        options: &options,
        own: &project_options(global, &project)?,
        user: args.user,
    })?;
    Ok((format!("sampan-{}.service", project.name), text))
}

/// The global options that are not what they are by default.
fn options(global: &Global) -> anyhow::Result<Vec<String>> {
    let mut words = Vec::new();
    for (option, path, default) in [
        ("--root", &global.root, ROOT),
        ("--state", &global.state, STATE),
    ] {
        if path != Path::new(default) {
            words.extend([option.to_owned(), absolute(path)?]);
        }
    }
    for (option, paths, default) in [
        ("--cni-conf", &global.cni_conf, CNI_CONF),
        ("--cni-path", &global.cni_path, CNI_PATH),
    ] {
        let list = paths.iter().map(|path| absolute(path));
        let list = list.collect::<anyhow::Result<Vec<_>>>()?.join(":");
        if list != default {
            words.extend([option.to_owned(), list]);
        }
    }
    if let Some(parent) = &global.cgroup_parent {
        words.extend(["--cgroup-parent".to_owned(), parent.clone()]);
    }
    Ok(words)
}

/// What makes the same project again from anywhere.
fn project_options(global: &Global, project: &Project) -> anyhow::Result<Vec<String>> {
    let mut words = Vec::new();
    for file in &project.files {
        words.extend(["-f".to_owned(), absolute(file)?]);
    }
    words.extend(["-p".to_owned(), project.name.clone()]);
    words.extend([
        "--project-directory".to_owned(),
        absolute(&project.working_dir)?,
    ]);
    for profile in &global.profiles {
        words.extend(["--profile".to_owned(), profile.clone()]);
    }
    for file in &global.env_files {
        words.extend(["--env-file".to_owned(), absolute(file)?]);
    }
    Ok(words)
}

fn absolute(path: &Path) -> anyhow::Result<String> {
    let path = std::path::absolute(path).with_context(|| format!("path {}", path.display()))?;
    text(&path)
}

/// Units are text.
fn text(path: &Path) -> anyhow::Result<String> {
    match path.to_str() {
        Some(text) if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => bail!(
            "path {:?}: has characters that a unit cannot have; rename it",
            path.as_os_str().as_bytes().escape_ascii().to_string()
        ),
    }
}

/// What a unit depends on.
struct Facts<'a> {
    project: &'a Project,
    program: &'a Path,
    /// Of every command.
    options: &'a [String],
    /// Of those on the project.
    own: &'a [String],
    user: bool,
}

/// Beyond what its services may take to stop: hooks, networks, the removal.
const STOP_MARGIN: Duration = Duration::from_secs(30);

fn unit(facts: &Facts<'_>) -> anyhow::Result<String> {
    let Facts { project, user, .. } = facts;
    let folder = text(&project.working_dir)?;
    let words = [facts.options, facts.own].concat();
    let foreground = ["up", "--wait", "--rm", "--abort-on-container-failure"];
    let up = command(facts.program, &words, &foreground)?;
    let gc = command(facts.program, facts.options, &["gc"])?;
    let stop = stop_time(project) + STOP_MARGIN;
    let online = "Wants=network-online.target\nAfter=network-online.target\n";
    Ok(format!(
        "[Unit]\n\
         Description=Pod {name}\n\
         {online}RequiresMountsFor={mounts}\n\
         \n\
         [Service]\n\
         Type=notify\n\
         NotifyAccess=main\n\
         ExecStart={up}\n\
         ExecReload=/bin/kill -HUP $MAINPID\n\
         # what a kill of all processes left\n\
         ExecStopPost=-{gc}\n\
         WorkingDirectory={directory}\n\
         SyslogIdentifier=%N\n\
         Restart=on-failure\n\
         RestartSec=5\n\
         # images are pulled and dependencies waited for as long as it takes: `up` gives up by itself\n\
         TimeoutStartSec=infinity\n\
         # the longest chain of stop_grace_period, and what comes after\n\
         TimeoutStopSec={stop}\n\
         WatchdogSec=30\n\
         KillMode=mixed\n\
         Delegate=yes\n\
         # one container without memory is the pod's business\n\
         OOMPolicy=continue\n\
         \n\
         [Install]\n\
         WantedBy={target}\n",
        name = project.name,
        online = if *user { "" } else { online },
        mounts = quoted(&folder),
        directory = folder.replace('%', "%%"),
        stop = stop.as_secs() + u64::from(stop.subsec_nanos() > 0),
        target = if *user {
            "default.target"
        } else {
            "multi-user.target"
        },
    ))
}

/// The timer, and what it starts.
fn gc(program: &Path, options: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    let gc = command(program, options, &["gc"])?;
    let service = format!(
        "[Unit]\n\
         Description=Remove what is left of pods whose owners were killed\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         ExecStart={gc}\n"
    );
    let timer = "[Unit]\n\
         Description=Remove what is left of pods whose owners were killed\n\
         \n\
         [Timer]\n\
         OnBootSec=1min\n\
         OnUnitInactiveSec=10min\n\
         \n\
         [Install]\n\
         WantedBy=timers.target\n";
    Ok(vec![
        ("sampan-gc.service".to_owned(), service),
        ("sampan-gc.timer".to_owned(), timer.to_owned()),
    ])
}

/// A command line whose `$` are no variables.
fn command(program: &Path, options: &[String], words: &[&str]) -> anyhow::Result<String> {
    let mut line = format!(":{}", quoted(&text(program)?));
    let words = words.iter().map(|word| (*word).to_owned());
    for word in options.iter().cloned().chain(words) {
        line.push(' ');
        line.push_str(&quoted(&word));
    }
    Ok(line)
}

/// systemd.syntax(7) "Quoting", systemd.unit(5) "Specifiers".
fn quoted(word: &str) -> String {
    let word = word.replace('%', "%%");
    let plain = |c: char| c.is_ascii_alphanumeric() || "/.-_=:,@+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word;
    }
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

/// How long the services may take to stop one after the other, dependents first: the longest chain.
fn stop_time(project: &Project) -> Duration {
    let mut known: BTreeMap<&str, Duration> = BTreeMap::new();
    // a pass settles at least one more; there are no cycles
    while known.len() < project.services.len() {
        let before = known.len();
        for (name, service) in &project.services {
            let below = service
                .depends_on
                .keys()
                .filter(|on| project.services.contains_key(*on))
                .map(|on| known.get(on.as_str()).copied())
                .try_fold(Duration::ZERO, |most, time| Some(most.max(time?)));
            if let Some(below) = below {
                known.insert(name, below.saturating_add(service.stop_grace_period));
            }
        }
        if known.len() == before {
            break;
        }
    }
    known.into_values().max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compose::{LoadRequest, load_text};

    fn project(text: &str) -> Project {
        let request = LoadRequest {
            files: Vec::new(),
            working_dir: "/srv/my web".into(),
            project_name: Some("web".into()),
            environment: BTreeMap::new(),
            env_files: Vec::new(),
            profiles: Vec::new(),
        };
        load_text(text, "compose.yaml", &request).unwrap().project
    }

    #[test]
    fn units() {
        let project = project("services: {web: {image: a, stop_grace_period: 1500ms}}");
        let own = ["-f", "/srv/my web/50%.yaml"].map(str::to_owned);
        let of = |user: bool| {
            unit(&Facts {
                project: &project,
                program: Path::new("/usr/local/bin/sampan"),
                options: &["--root".to_owned(), "/r".to_owned()],
                own: &own,
                user,
            })
            .unwrap()
        };
        let machine = of(false);
        for line in [
            "Description=Pod web",
            "After=network-online.target",
            "RequiresMountsFor=\"/srv/my web\"",
            "Type=notify",
            "ExecStart=:/usr/local/bin/sampan --root /r -f \"/srv/my web/50%%.yaml\" up --wait --rm --abort-on-container-failure",
            "ExecStopPost=-:/usr/local/bin/sampan --root /r gc",
            "WorkingDirectory=/srv/my web",
            "TimeoutStopSec=32",
            "WantedBy=multi-user.target",
        ] {
            assert!(
                machine.lines().any(|found| found == line),
                "{line}\n{machine}"
            );
        }
        let user = of(true);
        assert!(user.contains("WantedBy=default.target") && !user.contains("network-online"));
    }

    #[test]
    fn words() {
        for (word, expected) in [
            ("/usr/bin/sampan", "/usr/bin/sampan"),
            ("", "\"\""),
            ("a b", "\"a b\""),
            ("$HOME", "\"$HOME\""),
            ("100%", "100%%"),
            ("a\"b\\c", "\"a\\\"b\\\\c\""),
            ("a;b", "\"a;b\""),
        ] {
            assert_eq!(quoted(word), expected);
        }
        assert_eq!(
            text(Path::new("/a\nb")).unwrap_err().to_string(),
            r#"path "/a\\nb": has characters that a unit cannot have; rename it"#
        );
    }

    #[test]
    fn stop_times() {
        for (services, seconds) in [
            ("{a: {image: i}}", 10),
            ("{a: {image: i}, b: {image: i, stop_grace_period: 3s}}", 10),
            (
                "{a: {image: i}, b: {image: i, stop_grace_period: 3s, depends_on: [a]}}",
                13,
            ),
            (
                "{a: {image: i, depends_on: [b, c]}, b: {image: i, depends_on: [d]}, c: {image: i, stop_grace_period: 1m}, d: {image: i}}",
                70,
            ),
        ] {
            let project = project(&format!("services: {services}"));
            assert_eq!(
                stop_time(&project),
                Duration::from_secs(seconds),
                "{services}"
            );
        }
    }
}
