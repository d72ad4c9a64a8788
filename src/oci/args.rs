//! Reading the command line against [`super::table`]. Pure.
//!
//! *Invariants:*
//! * An option of a command is accepted on either side of the container's id; `--` ends the options.
//! * What belongs to a program (`exec`, `ps`) is passed on untouched.
//! * Options may have one dash or two, and their value behind `=` or as the next word: callers were written against Go's `flag` and
//!   against getopt_long(3). A value is taken as it is, with a leading dash too (`--memory -1`).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::Error;
use super::table::{COMMANDS, Command, Flag, GLOBAL, Rest};

/// Options that were given, in order.
#[derive(Debug, Default)]
pub struct Values {
    given: Vec<(&'static str, OsString)>,
}

impl Values {
    /// Whether a switch is on; the last one counts.
    pub fn has(&self, name: &'static str) -> bool {
        self.get(name)
            .is_some_and(|value| value != "false" && value != "0")
    }

    /// The last value of an option.
    pub fn get(&self, name: &'static str) -> Option<&OsStr> {
        self.all(name).last()
    }

    /// All values of an option.
    pub fn all(&self, name: &'static str) -> impl Iterator<Item = &OsStr> {
        let same = move |(given, _): &&(&str, OsString)| *given == name;
        self.given.iter().filter(same).map(|(_, value)| &**value)
    }

    /// The last value as a path; one that is empty counts as not given.
    pub fn path(&self, name: &'static str) -> Option<PathBuf> {
        self.get(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    }

    /// The last value as text; one that is empty counts as not given.
    pub fn text(&self, name: &'static str) -> Result<Option<&str>, Error> {
        self.get(name)
            .filter(|value| !value.is_empty())
            .map(|value| text(name, value))
            .transpose()
    }

    /// All values as text.
    pub fn texts(&self, name: &'static str) -> Result<Vec<&str>, Error> {
        self.all(name).map(|value| text(name, value)).collect()
    }

    /// The last value as a number.
    pub fn number<T: std::str::FromStr>(&self, name: &'static str) -> Result<Option<T>, Error> {
        let number = |text: &str| {
            text.parse()
                .map_err(|_| Error::new(format!("--{name}: {text:?} is not a number")))
        };
        self.text(name)?.map(number).transpose()
    }
}

fn text<'a>(name: &str, value: &'a OsStr) -> Result<&'a str, Error> {
    value
        .to_str()
        .ok_or_else(|| Error::new(format!("--{name}: {value:?} is not UTF-8")))
}

/// A command with what it was given.
#[derive(Debug)]
pub struct Invocation {
    /// Which.
    pub command: &'static Command,
    /// Options before the command.
    pub global: Values,
    /// The command's own.
    pub values: Values,
    /// Container id and what follows.
    pub words: Vec<OsString>,
}

impl Invocation {
    /// The word at `index` as text.
    pub fn word(&self, index: usize) -> Result<&str, Error> {
        let word = self.words.get(index).map(OsString::as_os_str);
        let word =
            word.ok_or_else(|| Error::new(format!("{}: a word is missing", self.command.name)))?;
        word.to_str()
            .ok_or_else(|| Error::new(format!("{}: {word:?} is not UTF-8", self.command.name)))
    }
}

/// What to do.
#[derive(Debug)]
pub enum Parsed {
    /// Run a command.
    Run(Invocation),
    /// Tell about one, or about all.
    Help(Option<&'static Command>),
    /// Tell the version.
    Version,
}

/// Parses the words behind the program's name. `global` has the options before the command even when the rest is wrong: they say where
/// the error goes.
pub fn parse(words: impl Iterator<Item = OsString>, global: &mut Values) -> Result<Parsed, Error> {
    let mut words = words;
    let name = loop {
        let Some(word) = words.next() else {
            return Ok(Parsed::Help(None));
        };
        if !is_option(&word) {
            break word;
        }
        option(GLOBAL, &word, &mut words, global)
            .map_err(|why| Error::new(format!("{why}; `--help` lists the options")))?;
        if global.has("help") {
            return Ok(Parsed::Help(None));
        }
        if global.has("version") {
            return Ok(Parsed::Version);
        }
    };
    let find = |name: &OsStr| COMMANDS.iter().find(|command| name == command.name);
    if name == "help" {
        return Ok(Parsed::Help(words.next().and_then(|name| find(&name))));
    }
    let command = find(&name).ok_or_else(|| {
        Error::new(format!(
            "unknown command {}; `--help` lists the commands",
            name.display()
        ))
    })?;
    rest(command, words, std::mem::take(global)).map_err(|(kept, why)| {
        *global = kept;
        Error::new(format!(
            "{name}: {why}; `{name} --help` lists the options",
            name = command.name
        ))
    })
}

/// What follows the command's name.
fn rest(
    command: &'static Command,
    mut words: impl Iterator<Item = OsString>,
    global: Values,
) -> Result<Parsed, (Values, String)> {
    let mut call = Invocation {
        command,
        global,
        values: Values::default(),
        words: Vec::new(),
    };
    while let Some(word) = words.next() {
        if word == "--" {
            call.words.extend(words);
            break;
        }
        let program = command.rest != Rest::None && !call.words.is_empty();
        // to ps(1) nearly every option means something
        let foreign =
            command.rest == Rest::Ps && program && !word.as_bytes().starts_with(b"--format");
        if is_option(&word) && !foreign {
            if let Err(why) = option(command.flags, &word, &mut words, &mut call.values) {
                return Err((call.global, why));
            }
        } else {
            let ends = program && command.rest == Rest::Program;
            call.words.push(word);
            if ends {
                call.words.extend(words);
                break;
            }
        }
        if call.values.has("help") {
            return Ok(Parsed::Help(Some(command)));
        }
    }
    let count = call.words.len();
    if count < command.least {
        return Err((call.global, format!("needs {}", command.words)));
    }
    if count > command.most {
        let word = call.words.get(command.most).cloned().unwrap_or_default();
        return Err((call.global, format!("unexpected {}", word.display())));
    }
    Ok(Parsed::Run(call))
}

fn is_option(word: &OsStr) -> bool {
    let bytes = word.as_bytes();
    bytes.len() > 1 && bytes.starts_with(b"-")
}

/// Takes one word of options, and the next one when it is the value.
fn option(
    flags: &'static [Flag],
    word: &OsStr,
    words: &mut impl Iterator<Item = OsString>,
    into: &mut Values,
) -> Result<(), String> {
    let bytes = word.as_bytes();
    let bare = bytes.strip_prefix(b"--").or(bytes.strip_prefix(b"-"));
    let bare = bare.unwrap_or(bytes);
    let (name, value) = match bare.iter().position(|byte| *byte == b'=') {
        Some(at) => (&bare[..at], Some(&bare[at + 1..])),
        None => (bare, None),
    };
    let found = flags.iter().find(|flag| flag.is(name));
    let Some(flag) = found else {
        if bytes.starts_with(b"--") {
            return Err(format!("unknown option {}", word.display()));
        }
        return cluster(flags, word, words, into);
    };
    let value = match (flag.value.is_empty(), value) {
        (true, None) => OsString::from("true"),
        (true, Some(b"true" | b"1")) => OsString::from("true"),
        (true, Some(b"false" | b"0")) => OsString::from("false"),
        (true, Some(_)) => return Err(format!("--{} takes no value", flag.name)),
        (false, Some(value)) => OsString::from_vec(value.to_vec()),
        (false, None) => next(flag, words)?,
    };
    into.given.push((flag.name, value));
    Ok(())
}

/// Several short options in one word, the last one perhaps with its value: `-td`, `-u1000`.
fn cluster(
    flags: &'static [Flag],
    word: &OsStr,
    words: &mut impl Iterator<Item = OsString>,
    into: &mut Values,
) -> Result<(), String> {
    let mut left = word.as_bytes().get(1..).unwrap_or_default();
    while let Some((letter, behind)) = left.split_first() {
        let found = flags.iter().find(|flag| flag.is(&[*letter]));
        let flag = found.ok_or_else(|| format!("unknown option {}", word.display()))?;
        left = behind;
        let value = match (flag.value.is_empty(), behind) {
            (true, _) => OsString::from("true"),
            (false, []) => next(flag, words)?,
            (false, value) => {
                left = &[];
                OsString::from_vec(value.to_vec())
            }
        };
        into.given.push((flag.name, value));
    }
    Ok(())
}

fn next(flag: &Flag, words: &mut impl Iterator<Item = OsString>) -> Result<OsString, String> {
    words
        .next()
        .ok_or_else(|| format!("--{} needs {}", flag.name, flag.value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> impl Iterator<Item = OsString> + '_ {
        line.split_whitespace().map(OsString::from)
    }

    /// Command, global options, its own, words: as one line.
    fn told(line: &str) -> String {
        let mut global = Values::default();
        let values = |values: &Values| -> String {
            let each = values.given.iter();
            each.map(|(name, value)| format!(" {name}={}", value.display()))
                .collect()
        };
        match parse(words(line), &mut global) {
            Ok(Parsed::Run(call)) => {
                let rest: Vec<_> = call
                    .words
                    .iter()
                    .map(|word| word.to_str().unwrap())
                    .collect();
                format!(
                    "{}{} |{} | {}",
                    call.command.name,
                    values(&call.global),
                    values(&call.values),
                    rest.join(" ")
                )
            }
            Ok(Parsed::Help(command)) => format!("help {}", command.map_or("", |c| c.name)),
            Ok(Parsed::Version) => "version".to_owned(),
            Err(error) => format!("{error} |{}", values(&global)),
        }
    }

    #[test]
    fn options_on_either_side_of_the_id() {
        for (line, want) in [
            (
                "create --bundle B --pid-file P id",
                "create | bundle=B pid-file=P | id",
            ),
            ("--root R run id -b B", "run root=R | bundle=B | id"),
            (
                "--root R --log L --log-format json exec --process F --detach --pid-file P id",
                "exec root=R log=L log-format=json | process=F detach=true pid-file=P | id",
            ),
            ("exec id ls -l --tty", "exec | | id ls -l --tty"),
            (
                "exec id -t -e A=1 --env=B=2 ls -l",
                "exec | tty=true env=A=1 env=B=2 | id ls -l",
            ),
            (
                "exec -td -u1000:5 id -- -x --",
                "exec | tty=true detach=true user=1000:5 | id -x --",
            ),
            (
                "exec -bundle B id",
                "exec: unknown option -bundle; `exec --help` lists the options |",
            ),
            ("create -bundle B id", "create | bundle=B | id"),
            ("ps id -ef", "ps | | id -ef"),
            ("ps -f json id", "ps | format=json | id"),
            ("ps id --format=json", "ps | format=json | id"),
            ("kill -a id", "kill | all=true | id"),
            ("kill id -a KILL", "kill | all=true | id KILL"),
            (
                "update --memory -1 id --pids-limit=-1",
                "update | memory=-1 pids-limit=-1 | id",
            ),
            ("update --resources - id", "update | resources=- | id"),
            ("delete --force=false id", "delete | force=false | id"),
            ("-v", "version"),
            ("--root R --version state", "version"),
            ("", "help "),
            ("state --help", "help state"),
            ("help kill", "help kill"),
            (
                "--log L frob",
                "unknown command frob; `--help` lists the commands | log=L",
            ),
            (
                "--log L state",
                "state: needs ID; `state --help` lists the options | log=L",
            ),
            (
                "state a b",
                "state: unexpected b; `state --help` lists the options |",
            ),
            (
                "state --frob a",
                "state: unknown option --frob; `state --help` lists the options |",
            ),
            (
                "create a -b",
                "create: --bundle needs DIR; `create --help` lists the options |",
            ),
            (
                "delete --force=maybe a",
                "delete: --force takes no value; `delete --help` lists the options |",
            ),
            (
                "--frob",
                "unknown option --frob; `--help` lists the options |",
            ),
        ] {
            assert_eq!(told(line), want, "{line}");
        }
    }
}
