//! How fast `sampan executor mesos` launches: tasks with an image on the host's network and on a bridge network, sent all at once by
//! the agent of the tests. `make bench-launch` runs it as root.
//!
//! *Invariants:*
//! * The agent speaks the protocol to the letter; a task that does not go from STARTING over RUNNING to FINISHED ends the comparison.
//! * Images, volumes and logs are on disk, records of running pods on a tmpfs, as they are on a machine.
//! * Processor time is that of the executor and of everything below it, tasks and clean-up included, and nothing of the agent's.

mod measure;
mod place;
mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Value, json};
use test_agent::{Agent, Launcher, Settings, task};

use measure::{Held, Memory, children_cpu};
use place::{NETWORK, Place};
use report::{Burst, Report};

const USAGE: &str = "\
usage: launch [OPTION]…

  --sampan FILE      the program (a build beside this one)
  --tasks N          tasks that are sent at once (1000)
  --one-by-one N     tasks that are sent each when the one before is over (50)
  --held N           tasks that run while memory is looked at (100)
  --json FILE        write the figures as JSON too
";

type Result<T> = std::result::Result<T, String>;

/// What the command line asks for.
struct Options {
    sampan: PathBuf,
    tasks: usize,
    one_by_one: usize,
    held: usize,
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let done = options().and_then(|options| match options {
        Some(options) => compare(&options),
        None => {
            print!("{USAGE}");
            Ok(())
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("launch: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<Option<Options>> {
    let mut options = Options {
        sampan: env!("CARGO_BIN_EXE_sampan").into(),
        tasks: 1000,
        one_by_one: 50,
        held: 100,
        json: None,
    };
    // what cargo and nextest pass to any bench
    let mut arguments = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| text.parse().map_err(|_| format!("{word} {text}"));
        match word.as_str() {
            "--sampan" => options.sampan = value()?.into(),
            "--tasks" => options.tasks = number(value()?)?,
            "--one-by-one" => options.one_by_one = number(value()?)?,
            "--held" => options.held = number(value()?)?,
            "--json" => options.json = Some(value()?.into()),
            "--help" => return Ok(None),
            _ => return Err(format!("{word} is unknown\n\n{USAGE}")),
        }
    }
    Ok(Some(options))
}

/// What tasks are attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    Host,
    Bridge,
}

impl Network {
    fn name(self) -> &'static str {
        match self {
            Network::Host => "host network",
            Network::Bridge => "bridge network",
        }
    }
}

fn compare(options: &Options) -> Result<()> {
    let place = Place::make(&options.sampan)?;
    let mut report = Report::default();
    for network in [Network::Host, Network::Bridge] {
        report.bursts.push(burst(&place, network, options.tasks)?);
        let latencies = one_by_one(&place, network, options.one_by_one)?;
        report.latencies.push((network.name(), latencies));
        report
            .held
            .push((network.name(), held(&place, network, options.held)?));
    }
    let left = place.left();
    if !left.is_empty() {
        return Err(format!("left behind: {}", left.join(", ")));
    }
    print!("{}", report.text());
    match &options.json {
        Some(path) => std::fs::write(path, format!("{:#}\n", report.json()))
            .map_err(|error| format!("write {}: {error}", path.display())),
        None => Ok(()),
    }
}

/// An agent whose executor has subscribed.
fn executor(place: &Place) -> Agent {
    let agent = Agent::new(Settings {
        environment: place.environment(),
        launcher: Launcher {
            cgroup: true,
            ..Launcher::default()
        },
        ..Settings::default()
    });
    agent.start_executor(&[&place.sampan(), "executor", "mesos"]);
    agent.wait_subscriptions(1);
    agent
}

/// A task that executes a line of the image's shell: a LAUNCH has no command of its own, which is the executor's.
fn program(id: &str, network: Network, line: &str) -> Value {
    let mut fields = json!({
        "labels": {"labels": [{"key": "sampan.command", "value": format!("exec {line}")}]},
        "container": {"type": "MESOS", "mesos": {"image": {"type": "DOCKER", "docker": {"name": place::IMAGE}}}},
    });
    if network == Network::Bridge {
        fields["container"]["network_infos"] = json!([{"name": NETWORK}]);
    }
    task(id, fields)
}

/// When each task was sent, ran and was over, in seconds.
fn times(agent: &Agent, ids: &[String]) -> Result<BTreeMap<String, [f64; 3]>> {
    let mut sent = BTreeMap::new();
    let mut times: BTreeMap<String, [f64; 3]> = BTreeMap::new();
    for line in agent.log() {
        let value = &line.value;
        match line.what {
            "event" if value["type"] == "LAUNCH" => {
                let id = value["launch"]["task"]["task_id"]["value"].as_str();
                sent.insert(id.unwrap_or_default().to_owned(), line.at);
            }
            "status" => {
                let id = value["task_id"]["value"].as_str().unwrap_or_default();
                let launched = sent.get(id).copied().unwrap_or(f64::NAN);
                let entry = times
                    .entry(id.to_owned())
                    .or_insert([launched, f64::NAN, f64::NAN]);
                match value["state"].as_str().unwrap_or_default() {
                    "TASK_RUNNING" => entry[1] = line.at,
                    "TASK_FINISHED" => entry[2] = line.at,
                    _ => {}
                }
            }
            _ => {}
        }
    }
    let complete = |id: &&String| {
        times
            .get(*id)
            .is_some_and(|times| times.iter().all(|time| time.is_finite()))
    };
    match ids.iter().find(|id| !complete(id)) {
        None => Ok(times),
        Some(id) => Err(format!("task {id}: {:?}", agent.statuses(id))),
    }
}

/// All at once.
fn burst(place: &Place, network: Network, count: usize) -> Result<Burst> {
    let agent = executor(place);
    let ids: Vec<String> = (0..count).map(|number| format!("burst-{number}")).collect();
    let before = children_cpu();
    let memory = Memory::watch(agent.pid());
    for id in &ids {
        agent.launch(program(id, network, "true"));
    }
    agent.await_over(&ids);
    let peak = memory.end();
    agent.await_end();
    let cpu = children_cpu() - before;
    let times = times(&agent, &ids)?;
    let first = times
        .values()
        .map(|times| times[0])
        .fold(f64::INFINITY, f64::min);
    let last = |index: usize| times.values().map(|times| times[index]).fold(0.0, f64::max) - first;
    Ok(Burst {
        network: network.name(),
        tasks: count,
        running: last(1),
        over: last(2),
        cpu: cpu.as_secs_f64(),
        peak,
    })
}

/// Seconds from LAUNCH to RUNNING, of tasks without a queue before them. One task runs meanwhile, so that the executor stays.
fn one_by_one(place: &Place, network: Network, count: usize) -> Result<Vec<f64>> {
    let agent = executor(place);
    agent.launch(program("stays", Network::Host, "sleep 1000000"));
    agent.wait_for("stays", "TASK_RUNNING");
    let ids: Vec<String> = (0..count).map(|number| format!("one-{number}")).collect();
    for id in &ids {
        agent.launch(program(id, network, "true"));
        agent.await_over(std::slice::from_ref(id));
    }
    let times = times(&agent, &ids)?;
    agent.kill("stays", None);
    agent.await_end();
    let mut latencies: Vec<f64> = ids.iter().map(|id| times[id][1] - times[id][0]).collect();
    latencies.sort_by(f64::total_cmp);
    Ok(latencies)
}

/// Memory while so many tasks run.
fn held(place: &Place, network: Network, count: usize) -> Result<Held> {
    let agent = executor(place);
    let ids: Vec<String> = (0..count).map(|number| format!("held-{number}")).collect();
    for id in &ids {
        agent.launch(program(id, network, "sleep 1000000"));
    }
    for id in &ids {
        agent.wait_for(id, "TASK_RUNNING");
    }
    let held = Held::look(&agent.processes());
    let begin = Instant::now();
    agent.shutdown();
    agent.await_end();
    Ok(held.ended_in(begin.elapsed()))
}
