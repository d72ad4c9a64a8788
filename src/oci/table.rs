//! The commands and options, once: for the parser, `--help`, completions and man pages.

use super::args::Invocation;
use super::{Error, create, events, exec, features, life, show, spec, update};

/// An option.
#[derive(Debug)]
pub struct Flag {
    /// Long name, without dashes.
    pub name: &'static str,
    /// One letter; `\0` for none.
    pub short: char,
    /// What its value is; empty for a switch.
    pub value: &'static str,
    /// What it does.
    pub help: &'static str,
}

impl Flag {
    /// Whether it is meant by `name`, without dashes.
    pub fn is(&self, name: &[u8]) -> bool {
        name == self.name.as_bytes()
            || (self.short != '\0' && name.len() == 1 && name[0] == self.short as u8)
    }
}

/// To whom the words behind the container's id belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// To the command.
    None,
    /// From the first one that is no option: to a program.
    Program,
    /// To ps(1), but for `--format`.
    Ps,
}

/// A command.
#[derive(Debug)]
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// The words it takes.
    pub words: &'static str,
    /// How many words at least.
    pub least: usize,
    /// How many words at most.
    pub most: usize,
    /// Whose the later words are.
    pub rest: Rest,
    /// What it does.
    pub help: &'static str,
    /// Lines of examples.
    pub examples: &'static [&'static str],
    /// Its options.
    pub flags: &'static [Flag],
    /// Does it; the answer is the program's exit code.
    pub run: fn(&Invocation) -> Result<u8, Error>,
    /// Exit code when it fails.
    pub failed: u8,
}

const fn flag(name: &'static str, short: char, value: &'static str, help: &'static str) -> Flag {
    Flag {
        name,
        short,
        value,
        help,
    }
}

const HELP: Flag = flag("help", 'h', "", "Print help");
const BUNDLE: Flag = flag(
    "bundle",
    'b',
    "DIR",
    "Folder with config.json (the current one)",
);
const CONSOLE: Flag = flag(
    "console-socket",
    '\0',
    "SOCKET",
    "Socket that receives the master of the terminal",
);
const PIDFD: Flag = flag(
    "pidfd-socket",
    '\0',
    "SOCKET",
    "Socket that receives a pidfd of the process",
);
const PID_FILE: Flag = flag("pid-file", '\0', "FILE", "File to write the process id to");
const PRESERVE: Flag = flag(
    "preserve-fds",
    '\0',
    "N",
    "Pass N descriptors on, behind the standard streams and $LISTEN_FDS",
);
const NO_PIVOT: Flag = flag(
    "no-pivot",
    '\0',
    "",
    "Change the root without pivot_root, for a root file system in RAM; less safe",
);
const NO_KEYRING: Flag = flag(
    "no-new-keyring",
    '\0',
    "",
    "Keep the caller's session keyring",
);
const DETACH: Flag = flag("detach", 'd', "", "Do not wait for the process to end");

/// Options before the command.
pub static GLOBAL: &[Flag] = &[
    flag(
        "root",
        '\0',
        "DIR",
        "Folder of the containers' states (/run/sampan/oci, or $XDG_RUNTIME_DIR/sampan/oci)",
    ),
    flag("log", '\0', "FILE", "File to append errors to"),
    flag(
        "log-format",
        '\0',
        "FORMAT",
        "Form of the log: text (default) or json",
    ),
    flag("debug", '\0', "", "Log what is done, too"),
    flag(
        "systemd-cgroup",
        '\0',
        "",
        "Let systemd make the cgroup: cgroupsPath is slice:prefix:name",
    ),
    flag(
        "rootless",
        '\0',
        "BOOL",
        "Go on where an ordinary user may not write cgroups: true, false or auto (default)",
    ),
    HELP,
    flag("version", 'v', "", "Print the version"),
];

/// A command that takes a container's id and nothing else.
const fn simple(
    name: &'static str,
    help: &'static str,
    run: fn(&Invocation) -> Result<u8, Error>,
) -> Command {
    Command {
        name,
        words: "ID",
        least: 1,
        most: 1,
        rest: Rest::None,
        help,
        examples: &[],
        flags: &[HELP],
        run,
        failed: 1,
    }
}

/// All commands.
pub static COMMANDS: &[Command] = &[
    Command {
        examples: &["create --bundle /bundles/web --pid-file /run/web.pid web"],
        flags: &[
            BUNDLE, CONSOLE, PIDFD, PID_FILE, PRESERVE, NO_PIVOT, NO_KEYRING, HELP,
        ],
        ..simple(
            "create",
            "Make a container; `start` runs its program",
            create::create,
        )
    },
    simple(
        "start",
        "Run the program of a container that was created",
        life::start,
    ),
    simple(
        "state",
        "Print the state of a container as JSON",
        show::state,
    ),
    Command {
        words: "ID [SIGNAL]",
        most: 2,
        examples: &["kill web", "kill web KILL", "kill --all web 9"],
        flags: &[
            flag("all", 'a', "", "Send it to every process of the container"),
            HELP,
        ],
        ..simple(
            "kill",
            "Send a signal (default: TERM) to a container's first process",
            life::kill,
        )
    },
    Command {
        examples: &["delete web", "delete --force web"],
        flags: &[
            flag(
                "force",
                'f',
                "",
                "Kill it when it runs; no error when there is none",
            ),
            HELP,
        ],
        ..simple("delete", "Remove what is left of a container", life::delete)
    },
    Command {
        examples: &[
            "run --bundle /bundles/web web",
            "run -d -b /bundles/web --pid-file /run/web.pid web",
        ],
        flags: &[
            BUNDLE,
            CONSOLE,
            PIDFD,
            PID_FILE,
            PRESERVE,
            DETACH,
            flag(
                "keep",
                '\0',
                "",
                "Do not delete the container when it ended",
            ),
            flag(
                "no-subreaper",
                '\0',
                "",
                "Do not adopt the container's orphans",
            ),
            NO_PIVOT,
            NO_KEYRING,
            HELP,
        ],
        ..simple("run", "Make a container and run its program", create::run)
    },
    Command {
        words: "ID [COMMAND [ARG]...]",
        most: usize::MAX,
        rest: Rest::Program,
        failed: 255,
        examples: &[
            "exec -t web sh",
            "exec --user 33:33 --env DEBUG=1 web ls -l /",
        ],
        flags: &[
            flag(
                "process",
                'p',
                "FILE",
                "The process as in config.json, instead of a command",
            ),
            flag("tty", 't', "", "Give it a terminal"),
            DETACH,
            flag("cwd", '\0', "DIR", "Working directory in the container"),
            flag("user", 'u', "UID[:GID]", "User and group"),
            flag(
                "additional-gids",
                'g',
                "GID",
                "Additional group; may be given several times",
            ),
            flag(
                "env",
                'e',
                "NAME=VALUE",
                "Variable; may be given several times",
            ),
            flag(
                "cap",
                'c',
                "CAP",
                "Additional capability; may be given several times",
            ),
            flag("no-new-privs", '\0', "", "Set no_new_privs"),
            flag("apparmor", '\0', "PROFILE", "AppArmor profile"),
            flag("process-label", '\0', "LABEL", "SELinux label"),
            flag(
                "cgroup",
                '\0',
                "PATH",
                "Existing cgroup below the container's; on v1 CONTROLLER[,CONTROLLER]:PATH",
            ),
            flag("ignore-paused", '\0', "", "Also in a paused container"),
            CONSOLE,
            PIDFD,
            PID_FILE,
            PRESERVE,
            HELP,
        ],
        ..simple("exec", "Run a further process in a container", exec::exec)
    },
    Command {
        words: "ID [PS-OPTION]...",
        most: usize::MAX,
        rest: Rest::Ps,
        examples: &["ps web -o pid,args", "ps --format json web"],
        flags: &[
            flag(
                "format",
                'f',
                "FORMAT",
                "table (default; by ps(1)) or json (process ids)",
            ),
            HELP,
        ],
        ..simple("ps", "List the processes of a container", show::ps)
    },
    Command {
        words: "",
        least: 0,
        most: 0,
        flags: &[
            flag("format", 'f', "FORMAT", "table (default) or json"),
            flag("quiet", 'q', "", "Ids only"),
            HELP,
        ],
        ..simple("list", "List containers", show::list)
    },
    simple("pause", "Freeze all processes of a container", life::pause),
    simple(
        "resume",
        "Let the processes of a paused container go on",
        life::resume,
    ),
    Command {
        examples: &[
            "update --memory 64m --pids-limit 100 web",
            "update --resources - web",
        ],
        flags: &[
            flag(
                "resources",
                'r',
                "FILE",
                "The limits as in linux.resources, - for standard input; other options do not count then",
            ),
            flag("memory", '\0', "BYTES", "Memory; -1 for no limit"),
            flag(
                "memory-swap",
                '\0',
                "BYTES",
                "Memory and swap together; -1 for no limit",
            ),
            flag(
                "memory-reservation",
                '\0',
                "BYTES",
                "Memory that is kept when it gets scarce",
            ),
            flag(
                "cpu-share",
                '\0',
                "N",
                "Share of the processor under contention",
            ),
            flag(
                "cpu-quota",
                '\0',
                "USEC",
                "Processor time in each period; -1 for no limit",
            ),
            flag("cpu-period", '\0', "USEC", "The period"),
            flag(
                "cpu-burst",
                '\0',
                "USEC",
                "Unused time that can be saved up",
            ),
            flag(
                "cpu-idle",
                '\0',
                "0|1",
                "Run only when nobody else wants to",
            ),
            flag(
                "cpu-rt-period",
                '\0',
                "USEC",
                "Period of real-time processes",
            ),
            flag(
                "cpu-rt-runtime",
                '\0',
                "USEC",
                "Processor time of real-time processes in each period",
            ),
            flag("cpuset-cpus", '\0', "CPUS", "Processors, as 0-3,5"),
            flag("cpuset-mems", '\0', "NODES", "Memory nodes"),
            flag("pids-limit", '\0', "N", "Tasks; -1 for no limit"),
            flag(
                "blkio-weight",
                '\0',
                "N",
                "Share of block devices, 10 to 1000",
            ),
            flag("kernel-memory", '\0', "BYTES", "Ignored"),
            flag("kernel-memory-tcp", '\0', "BYTES", "Ignored"),
            flag("l3-cache-schema", '\0', "TEXT", "Not supported"),
            flag("mem-bw-schema", '\0', "TEXT", "Not supported"),
            HELP,
        ],
        ..simple("update", "Change limits of a container", update::update)
    },
    Command {
        examples: &["events --stats web", "events --interval 10s web"],
        flags: &[
            flag("stats", '\0', "", "Print the counters once"),
            flag(
                "interval",
                '\0',
                "DURATION",
                "Time between two lines of counters (5s)",
            ),
            HELP,
        ],
        ..simple(
            "events",
            "Print what a container uses and when it ran out of memory, a JSON line each",
            events::events,
        )
    },
    Command {
        words: "",
        least: 0,
        most: 0,
        examples: &["spec --bundle /bundles/web"],
        flags: &[
            flag(
                "bundle",
                'b',
                "DIR",
                "Folder to write config.json to (the current one)",
            ),
            flag(
                "rootless",
                '\0',
                "",
                "For an ordinary user: with a user namespace",
            ),
            HELP,
        ],
        ..simple("spec", "Write a config.json to begin with", spec::spec)
    },
    Command {
        words: "",
        least: 0,
        most: 0,
        ..simple(
            "features",
            "Print what is implemented, as JSON",
            features::features,
        )
    },
    Command {
        least: 0,
        most: usize::MAX,
        ..simple("checkpoint", "Not supported", refused)
    },
    Command {
        least: 0,
        most: usize::MAX,
        ..simple("restore", "Not supported", refused)
    },
];

fn refused(call: &Invocation) -> Result<u8, Error> {
    Err(Error::new(format!(
        "{}: is not supported: no container is stored or restored (CRIU)",
        call.command.name
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let each = COMMANDS.iter().map(|command| (command.name, command.flags));
        for (name, flags) in each.chain([("global", GLOBAL)]) {
            assert_eq!(
                COMMANDS.iter().filter(|c| c.name == name).count(),
                usize::from(name != "global")
            );
            for flag in flags {
                assert_eq!(
                    flags.iter().filter(|other| other.name == flag.name).count(),
                    1,
                    "{name} {}",
                    flag.name
                );
                let same = |other: &&Flag| other.short != '\0' && other.short == flag.short;
                assert!(
                    flags.iter().filter(same).count() <= 1,
                    "{name} {}",
                    flag.name
                );
            }
        }
    }
}
