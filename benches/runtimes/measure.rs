//! One process, timed and weighed from outside.

use std::ffi::OsString;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::Result;
use crate::place::Place;

/// First argument of this program as the helper that weighs.
pub const PEAK: &str = "peak-of";

/// What one process and those it waited for took.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// From spawn to the end.
    pub wall: Duration,
    /// Processor time, user and system.
    pub cpu: Duration,
}

/// All samples of one runtime in one case.
#[derive(Debug)]
pub struct Series {
    /// What was timed.
    pub case: String,
    /// By whom.
    pub runtime: &'static str,
    /// The largest resident set of any process of a `run`, in KiB; 0 where it was not weighed.
    pub peak_kib: u64,
    wall: Vec<Duration>,
    cpu: Vec<Duration>,
}

impl Series {
    /// No samples yet.
    pub fn new(case: &str, runtime: &'static str) -> Series {
        Series {
            case: case.to_owned(),
            runtime,
            peak_kib: 0,
            wall: Vec::new(),
            cpu: Vec::new(),
        }
    }

    /// Takes a sample in.
    pub fn add(&mut self, sample: Sample) {
        self.wall.push(sample.wall);
        self.cpu.push(sample.cpu);
        self.wall.sort_unstable();
        self.cpu.sort_unstable();
    }

    /// How many samples.
    pub fn count(&self) -> usize {
        self.wall.len()
    }

    /// Milliseconds that the share `part` (0 to 1) of the samples stayed below: 0.5 is the median, 0 the minimum.
    pub fn wall_ms(&self, part: f64) -> f64 {
        at(&self.wall, part)
    }

    /// The same of processor time.
    pub fn cpu_ms(&self, part: f64) -> f64 {
        at(&self.cpu, part)
    }
}

fn at(sorted: &[Duration], part: f64) -> f64 {
    let index = (sorted.len().saturating_sub(1) as f64 * part).round() as usize;
    sorted
        .get(index)
        .map_or(f64::NAN, |value| value.as_secs_f64() * 1e3)
}

/// Runs a command to its end. It must succeed; what it wrote is in the error otherwise.
pub fn time(mut command: Command, place: &Place) -> Result<Sample> {
    let log = place.log()?;
    let copy = log
        .try_clone()
        .map_err(|error| format!("copy a descriptor: {error}"))?;
    command.stdin(Stdio::null()).stdout(copy).stderr(log);
    let before = cpu();
    let began = Instant::now();
    // posix_spawn(3), which shares the memory until execve: the size of this process does not count
    let mut child = command
        .spawn()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let status = child
        .wait()
        .map_err(|error| format!("wait for {command:?}: {error}"))?;
    let wall = began.elapsed();
    if !status.success() {
        return Err(format!("{command:?}: {status}: {}", place.said()));
    }
    let cpu = cpu().saturating_sub(before);
    Ok(Sample { wall, cpu })
}

/// Processor time of all children waited for so far, and theirs.
fn cpu() -> Duration {
    getrusage(UsageWho::RUSAGE_CHILDREN).map_or(Duration::ZERO, |usage| {
        [usage.user_time(), usage.system_time()]
            .iter()
            .map(|time| Duration::new(time.tv_sec().unsigned_abs(), time.tv_usec() as u32 * 1000))
            .sum()
    })
}

/// Ends what re-parented to us: the first processes of containers that were killed.
pub fn reap_orphans() {
    while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) = waitpid(None, None) {}
}

/// How many children nobody waited for.
pub fn zombies() -> usize {
    let mut count = 0;
    while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) =
        waitpid(None, Some(WaitPidFlag::WNOHANG))
    {
        count += 1;
    }
    count
}

/// The largest resident set of any process that the command and its descendants were, in KiB. A process of its own asks: the figure
/// is the largest of all children ever (getrusage(2)).
pub fn peak_of(command: Command, place: &Place) -> Result<u64> {
    let own = std::env::current_exe().map_err(|error| format!("own program: {error}"))?;
    let mut helper = Command::new(own);
    helper
        .arg(PEAK)
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear()
        .envs(
            command
                .get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        )
        .stdin(Stdio::null())
        .stderr(place.log()?);
    let output = helper
        .output()
        .map_err(|error| format!("{helper:?}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim()
        .parse()
        .map_err(|_| format!("{helper:?}: {}: {text}{}", output.status, place.said()))
}

/// The helper: runs a program and prints the figure.
pub fn peak(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(program) = arguments.next() else {
        return ExitCode::FAILURE;
    };
    let done = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .status();
    match (done, getrusage(UsageWho::RUSAGE_CHILDREN)) {
        (Ok(status), Ok(usage)) if status.success() => {
            println!("{}", usage.max_rss());
            ExitCode::SUCCESS
        }
        _ => ExitCode::FAILURE,
    }
}
