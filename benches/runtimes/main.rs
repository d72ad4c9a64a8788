//! Container runtimes against each other: whole processes, timed from outside, interleaved in one run. `make bench` runs it as root.
//!
//! *Invariants:*
//! * Every runtime gets the same bundle and the same state folder on the same tmpfs; in each round each runtime runs once, in rotating
//!   order, so that what the machine does besides hits all alike.
//! * The comparison lives in a mount namespace of its own. crun 1.8 refuses a hybrid cgroup host, so the v2 mount of such a host is
//!   taken away there, for all.
//! * A runtime that fails ends the comparison: no figure is made of errors.

#[cfg(target_arch = "x86_64")]
mod hot;
mod measure;
mod place;
mod report;
mod runtime;
mod storm;

use std::process::ExitCode;

use measure::Series;
use place::Place;
use runtime::{Runtime, Step};

/// What the command line asks for.
struct Options {
    rounds: usize,
    sampan: std::path::PathBuf,
    json: Option<std::path::PathBuf>,
    cases: Vec<String>,
    strace: Option<std::path::PathBuf>,
    hot: Option<std::path::PathBuf>,
    also: Option<String>,
    unified: bool,
}

const USAGE: &str = "\
usage: runtimes [OPTION]… [CASE]…

cases: run, run-seccomp, steps, storm (all when none is named)

  --rounds N      samples per runtime and case (200)
  --sampan FILE   the program to compare
  --json FILE     write the figures as JSON too
  --strace DIR    instead of timing: a table of system calls of one `run` per runtime, to DIR
  --hot FILE      instead of timing: the linker script that puts the functions of a start side by side, to FILE
  --also COMMAND  with --hot: for the shell; what the program does below it lies behind the start
  --unified       leave the v2 mount of a hybrid host (crun then fails and is left out)
";

fn main() -> ExitCode {
    // what cargo and nextest pass to any bench
    let mut arguments = std::env::args().skip(1).filter(|word| word != "--bench");
    if std::env::args().nth(1).as_deref() == Some(measure::PEAK) {
        return measure::peak(std::env::args_os().skip(2));
    }
    let mut options = Options {
        rounds: 200,
        sampan: env!("CARGO_BIN_EXE_sampan").into(),
        json: None,
        cases: Vec::new(),
        strace: None,
        hot: None,
        also: None,
        unified: false,
    };
    while let Some(word) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{word} needs a value"));
        let done = match word.as_str() {
            "--rounds" => value().and_then(|text| {
                options.rounds = text.parse().map_err(|_| format!("--rounds {text}"))?;
                Ok(())
            }),
            "--sampan" => value().map(|text| options.sampan = text.into()),
            "--json" => value().map(|text| options.json = Some(text.into())),
            "--strace" => value().map(|text| options.strace = Some(text.into())),
            "--hot" => value().map(|text| options.hot = Some(text.into())),
            "--also" => value().map(|text| options.also = Some(text)),
            "--help" => {
                print!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            "--unified" => {
                options.unified = true;
                Ok(())
            }
            "run" | "run-seccomp" | "steps" | "storm" => {
                options.cases.push(word);
                Ok(())
            }
            _ => Err(format!("{word} is unknown")),
        };
        if let Err(error) = done {
            eprint!("runtimes: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    }
    match compare(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("runtimes: {error}");
            ExitCode::FAILURE
        }
    }
}

type Result<T> = std::result::Result<T, String>;

fn compare(options: &Options) -> Result<()> {
    let place = Place::make(&options.sampan, options.unified)?;
    let runtimes = runtime::installed(&place, options.unified)?;
    if let Some(dir) = &options.strace {
        return runtime::strace(&place, &runtimes, dir);
    }
    #[cfg(target_arch = "x86_64")]
    if let (Some(script), Some(sampan)) = (&options.hot, runtimes.first()) {
        return hot::write(&place, sampan, options, script);
    }
    let wanted =
        |case: &str| options.cases.is_empty() || options.cases.iter().any(|name| name == case);
    let mut all: Vec<Series> = Vec::new();
    for (case, bundle) in [("run", "plain"), ("run-seccomp", "seccomp")] {
        if wanted(case) {
            all.extend(run(&place, &runtimes, case, bundle, options.rounds)?);
        }
    }
    if wanted("steps") {
        all.extend(steps(&place, &runtimes, options.rounds)?);
    }
    println!("{}", report::table(&all));
    let mut lines = Vec::new();
    if wanted("storm") {
        for runtime in runtimes.iter().filter(|runtime| runtime.is_oci()) {
            let line = storm::run(&place, runtime)?;
            println!("{line}");
            lines.push(line);
        }
    }
    match &options.json {
        Some(path) => std::fs::write(path, report::json(&all, &lines).to_string())
            .map_err(|error| format!("write {}: {error}", path.display())),
        None => Ok(()),
    }
}

/// From nothing to nothing: one command that makes a container, runs `/bin/true` in it and removes it.
fn run(
    place: &Place,
    runtimes: &[Runtime],
    case: &str,
    bundle: &str,
    rounds: usize,
) -> Result<Vec<Series>> {
    let able: Vec<&Runtime> = runtimes
        .iter()
        .filter(|runtime| bundle == "plain" || runtime.is_oci())
        .collect();
    let mut series: Vec<Series> = able
        .iter()
        .map(|runtime| Series::new(case, runtime.name))
        .collect();
    for round in 0..rounds + 3 {
        for turn in 0..able.len() {
            let index = (round + turn) % able.len();
            let command = able[index].command(place, Step::Run, bundle, "bench");
            let sample = measure::time(command, place)?;
            // the first rounds fill the caches
            if round >= 3 {
                series[index].add(sample);
            }
        }
    }
    for (series, runtime) in series.iter_mut().zip(&able) {
        for _ in 0..5 {
            let command = runtime.command(place, Step::Run, bundle, "bench");
            series.peak_kib = series.peak_kib.max(measure::peak_of(command, place)?);
        }
    }
    Ok(series)
}

/// Each command alone, around a container that sleeps.
fn steps(place: &Place, runtimes: &[Runtime], rounds: usize) -> Result<Vec<Series>> {
    const STEPS: [Step; 4] = [Step::Create, Step::Start, Step::Exec, Step::Delete];
    let able: Vec<&Runtime> = runtimes.iter().filter(|runtime| runtime.is_oci()).collect();
    let mut series: Vec<Series> = STEPS
        .iter()
        .flat_map(|step| {
            able.iter()
                .map(|runtime| Series::new(step.name(), runtime.name))
        })
        .collect();
    for round in 0..rounds + 3 {
        for turn in 0..able.len() {
            let index = (round + turn) % able.len();
            for (number, step) in STEPS.into_iter().enumerate() {
                if step == Step::Delete {
                    let kill = able[index].command(place, Step::Kill, "sleep", "bench");
                    measure::time(kill, place)?;
                    measure::reap_orphans();
                }
                let command = able[index].command(place, step, "sleep", "bench");
                let sample = measure::time(command, place)?;
                if round >= 3 {
                    series[number * able.len() + index].add(sample);
                }
            }
        }
    }
    Ok(series)
}
