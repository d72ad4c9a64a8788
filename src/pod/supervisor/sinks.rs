//! Sinks: files of the user's that get what services print, line by line, read back from the logs of the pod.
//!
//! *Invariants:* a sink's record says up to which offset of each stream it has everything, and what it is about to append; it is written
//! before the file is, and once more when there is nothing to append. So a supervisor that comes back finds out whether that was done and goes
//! on behind it: each line is in the file once, and what others append to it meanwhile stays.
//! What cannot be written is tried again and keeps no service waiting; a log lets a part go only when the sinks that work have read it.
//!
//! Leaves to others: what lines look like ([`format`]), how a file is opened, shared and changed ([`file`]).

mod file;
mod format;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;

use self::file::Target;
use self::format::Style;
use super::super::layout::PodDir;
use super::super::logs::{Line, Stream};
use super::super::record::{self, Pod, SinkState};
use super::super::{Error, Result};
use crate::compose::Project;
use crate::compose::project::{LogFile, LogSink};

/// Most bytes of one stream read at once.
const BATCH: u64 = 1 << 18;
/// Most passes in a row before others have their turn.
const PASSES: usize = 4;
/// Pause after a file that could not be written.
const RETRY: Duration = Duration::from_secs(1);
/// First pause after a file that somebody else was just writing; a program may hold it for long.
const BUSY: Duration = Duration::from_millis(5);
/// Longest wait for such a file at the end of a run.
const PATIENCE: Duration = Duration::from_secs(1);

/// What one file gets.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan {
    target: Target,
    style: Style,
    /// Service and stream.
    sources: Vec<(String, &'static str)>,
}

/// The files of a project, always in the same order.
fn plan(project: &Project) -> Vec<Plan> {
    let all: Vec<&str> = project.services.keys().map(String::as_str).collect();
    let of_pod = project.pod.logs.iter().map(|sink| (sink, all.clone()));
    let services = project.services.values();
    let of_services =
        services.flat_map(|s| s.logs.iter().map(|sink| (sink, vec![s.name.as_str()])));
    of_pod
        .chain(of_services)
        .flat_map(|(sink, services)| files(project, sink, &services))
        .collect()
}

fn files(project: &Project, sink: &LogSink, services: &[&str]) -> Vec<Plan> {
    let mut files: Vec<(&LogFile, Vec<&'static str>)> = Vec::new();
    for (stream, file) in [("stdout", &sink.stdout), ("stderr", &sink.stderr)] {
        let Some(file) = file else { continue };
        match files.iter_mut().find(|(known, _)| *known == file) {
            Some((_, streams)) => streams.push(stream),
            None => files.push((file, vec![stream])),
        }
    }
    let labels = |service: &str| {
        let all = project.services.get(service).map(|s| &s.labels);
        let wanted = sink.labels.iter();
        wanted
            .filter_map(|key| Some((key.clone(), all?.get(key)?.clone())))
            .collect::<BTreeMap<_, _>>()
    };
    let plan = |(file, streams): (&LogFile, Vec<&'static str>)| Plan {
        target: Target {
            file: file.clone(),
            max_size: sink.max_size,
            max_file: sink.max_file,
        },
        style: Style {
            format: sink.format,
            shared: services.len() > 1,
            pod: project.name.clone(),
            labels: services
                .iter()
                .map(|s| (s.to_string(), labels(s)))
                .collect(),
        },
        sources: services
            .iter()
            .flat_map(|s| streams.iter().map(|stream| (s.to_string(), *stream)))
            .collect(),
    };
    files.into_iter().map(plan).collect()
}

/// All files of a pod.
pub struct Sinks {
    all: Vec<(Rc<RefCell<Sink>>, Rc<Notify>)>,
    by_service: BTreeMap<String, Vec<usize>>,
}

impl Sinks {
    /// Goes on where the last supervisor was, in tasks of their own; `note` is told what cannot be written.
    pub fn start(
        dir: &PodDir,
        pod: &Pod,
        note: impl Fn(String) + Clone + 'static,
    ) -> Result<Sinks> {
        let plans = plan(&pod.project);
        if !plans.is_empty() {
            std::fs::create_dir_all(dir.sinks()).map_err(Error::io("make", &dir.sinks()))?;
        }
        let mut sinks = Sinks {
            all: Vec::new(),
            by_service: BTreeMap::new(),
        };
        for (number, plan) in plans.into_iter().enumerate() {
            for (service, _) in &plan.sources {
                let of = sinks.by_service.entry(service.clone()).or_default();
                if of.last() != Some(&number) {
                    of.push(number);
                }
            }
            let sink = Rc::new(RefCell::new(Sink::open(dir, number, plan, note.clone())?));
            let wake = Rc::new(Notify::new());
            wake.notify_one();
            tokio::task::spawn_local(write(sink.clone(), wake.clone()));
            sinks.all.push((sink, wake));
        }
        Ok(sinks)
    }

    /// A service has one.
    pub fn has(&self, service: &str) -> bool {
        self.by_service.contains_key(service)
    }

    fn of(&self, service: &str) -> impl Iterator<Item = &(Rc<RefCell<Sink>>, Rc<Notify>)> {
        let numbers = self.by_service.get(service).into_iter().flatten();
        numbers.filter_map(|number| self.all.get(*number))
    }

    /// There is new output.
    pub fn wake(&self, service: &str, stream: &str) {
        for (sink, wake) in self.of(service) {
            sink.borrow_mut().mark(service, Some(stream), false);
            wake.notify_one();
        }
    }

    /// Writes some of what a service printed, before it goes; whether that was all, as far as it can be.
    pub fn catch_up(&self, service: &str) -> bool {
        let mut all = true;
        for (sink, wake) in self.of(service) {
            let mut sink = sink.borrow_mut();
            sink.mark(service, None, false);
            // one that fails tells by itself
            all &= (0..PASSES).any(|_| sink.pass().is_err() || !sink.owes(service));
            wake.notify_one();
        }
        all
    }

    /// A run of a service is over: what it printed is written before that is told, as far as it can be.
    pub async fn finish(&self, service: &str) {
        for (sink, wake) in self.of(service) {
            sink.borrow_mut().mark(service, None, true);
            let mut waited = Duration::ZERO;
            loop {
                let passed = sink.borrow_mut().pass();
                match passed {
                    // not until the file is dry: another service may print without end
                    Ok(_) if sink.borrow().owes(service) => tokio::task::yield_now().await,
                    Err(error) if error.kind() == ErrorKind::WouldBlock && waited < PATIENCE => {
                        tokio::time::sleep(BUSY).await;
                        waited += BUSY;
                    }
                    _ => break,
                }
            }
            wake.notify_one();
        }
    }
}

/// The task of one file.
async fn write(sink: Rc<RefCell<Sink>>, wake: Rc<Notify>) {
    loop {
        wake.notified().await;
        let mut busy = BUSY;
        loop {
            let passed = sink.borrow_mut().pass();
            match passed {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    tokio::time::sleep(busy).await;
                    busy = (busy * 2).min(RETRY);
                }
                Err(error) => {
                    sink.borrow_mut().tell(Some(error.to_string()));
                    tokio::time::sleep(RETRY).await;
                }
                Ok(more) => {
                    busy = BUSY;
                    sink.borrow_mut().tell(None);
                    if !more {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

struct Sink {
    dir: PodDir,
    number: usize,
    plan: Plan,
    sources: Vec<Source>,
    state: SinkState,
    /// The record on disk has an intent.
    intends: bool,
    /// Read, and not written.
    pending: Vec<Pending>,
    note: Box<dyn Fn(String)>,
}

/// A line as it looks, which source it is of and where it ends there.
type Pending = (Vec<u8>, usize, u64);

struct Source {
    key: String,
    service: String,
    stream: &'static str,
    reader: Stream,
    /// There may be something to read.
    dirty: bool,
    /// A run is over: what has no end gets none any more.
    over: bool,
}

impl Sink {
    fn open(
        dir: &PodDir,
        number: usize,
        plan: Plan,
        note: impl Fn(String) + 'static,
    ) -> Result<Sink> {
        let path = dir.sink(number);
        let state = record::read(&path)?.unwrap_or_else(|| SinkState {
            version: record::VERSION,
            path: plan.target.file.path(),
            services: plan.sources.iter().map(|(s, _)| s.clone()).collect(),
            ..SinkState::default()
        });
        let mut sink = Sink {
            dir: dir.clone(),
            number,
            plan,
            sources: Vec::new(),
            intends: state.intent.is_some(),
            state,
            pending: Vec::new(),
            note: Box::new(note),
        };
        sink.go_to();
        Ok(sink)
    }

    /// Reads on from where the record says.
    fn go_to(&mut self) {
        let over: Vec<bool> = self.sources.iter().map(|source| source.over).collect();
        let source = |(number, (service, stream)): (usize, &(String, &'static str))| {
            let key = format!("{service}/{stream}");
            let offset = self.state.offsets.get(&key).copied().unwrap_or(0);
            let dir = self.dir.service(service);
            Source {
                reader: Stream::new(service, &dir, stream, Some(offset)),
                key,
                service: service.clone(),
                stream,
                dirty: true,
                over: over.get(number).copied().unwrap_or(false),
            }
        };
        self.sources = self.plan.sources.iter().enumerate().map(source).collect();
        self.pending.clear();
    }

    fn mark(&mut self, service: &str, stream: Option<&str>, over: bool) {
        for source in &mut self.sources {
            if source.service == service && stream.is_none_or(|s| s == source.stream) {
                source.dirty = true;
                source.over |= over;
            }
        }
    }

    /// Some of a service's is not written, as far as is known.
    fn owes(&self, service: &str) -> bool {
        let of = |source: &Source| source.service == service;
        let waits = |(_, number, _): &Pending| self.sources.get(*number).is_some_and(of);
        self.sources.iter().any(|s| s.dirty && of(s)) || self.pending.iter().any(waits)
    }

    /// Writes some of what there is; whether there may be more.
    fn pass(&mut self) -> io::Result<bool> {
        if let Some((intent, after)) = self.state.intent.clone() {
            // only one that was left by a predecessor is there at the beginning
            let ours = self.read_again(&after)?;
            if self.plan.target.was_done(&intent, &ours)? {
                self.state.offsets.extend(after);
            }
            self.state.intent = None;
            self.go_to();
        }
        if self.pending.is_empty() {
            self.read()?;
        }
        if self.pending.is_empty() {
            let more = self.sources.iter().any(|source| source.dirty);
            if self.intends && !more {
                // the file may be moved away from now on: what is in it is not written once more
                self.keep()?;
                self.intends = false;
            }
            return Ok(more);
        }
        let records: Vec<&[u8]> = self.pending.iter().map(|p| p.0.as_slice()).collect();
        let (pending, sources, state) = (&self.pending, &self.sources, &mut self.state);
        let intends = &mut self.intends;
        let path = self.dir.sink(self.number);
        let mut after = BTreeMap::new();
        let written = self.plan.target.append(&records, &mut |count, intent| {
            after.clear();
            for (_, source, end) in pending.iter().take(count) {
                if let Some(source) = sources.get(*source) {
                    after.insert(source.key.clone(), *end);
                }
            }
            state.intent = Some((intent, after.clone()));
            *intends = true;
            record::put(&path, state).map_err(io::Error::other)
        });
        self.state.intent = None;
        let count = written?;
        self.state.offsets.extend(after);
        self.pending.drain(..count);
        Ok(true)
    }

    fn read(&mut self) -> io::Result<()> {
        let at_once = self.plan.style.at_once(self.sources.len());
        let mut lines: Vec<(usize, Line)> = Vec::new();
        for (number, source) in self.sources.iter_mut().enumerate() {
            if !source.dirty {
                continue;
            }
            let mut new = Vec::new();
            source.dirty = source
                .reader
                .read(BATCH, &mut new)
                .map_err(io::Error::other)?;
            if at_once || source.over && !source.dirty {
                source.reader.flush(&mut new);
                source.over &= source.dirty;
            }
            if let Some(lost) = source.reader.lost() {
                let path = self.state.path.display();
                (self.note)(format!("{lost} to go to {path}"));
            }
            lines.extend(new.into_iter().map(|line| (number, line)));
        }
        self.pending = self.styled(lines);
        Ok(())
    }

    /// What lies between the offsets of the record and `after`, as it was to be appended.
    fn read_again(&self, after: &BTreeMap<String, u64>) -> io::Result<Vec<u8>> {
        let mut lines = Vec::new();
        for (number, source) in self.sources.iter().enumerate() {
            let Some(end) = after.get(&source.key) else {
                continue;
            };
            let start = self.state.offsets.get(&source.key).copied().unwrap_or(0);
            let dir = self.dir.service(&source.service);
            let mut reader = Stream::new(&source.service, &dir, source.stream, Some(start));
            let mut new = Vec::new();
            reader
                .read(end.saturating_sub(start), &mut new)
                .map_err(io::Error::other)?;
            reader.flush(&mut new);
            lines.extend(new.into_iter().map(|line| (number, line)));
        }
        let lines = self.styled(lines).into_iter();
        Ok(lines.flat_map(|(text, ..)| text).collect())
    }

    /// Lines of several sources in order of time.
    fn styled(&self, mut lines: Vec<(usize, Line)>) -> Vec<Pending> {
        // stable: the order within a stream stays
        lines.sort_by_key(|(_, line)| line.time);
        let styled = |(number, line): (usize, Line)| {
            let mut text = Vec::new();
            self.plan.style.write(&line, &mut text);
            (text, number, line.end)
        };
        lines.into_iter().map(styled).collect()
    }

    fn keep(&self) -> io::Result<()> {
        record::put(&self.dir.sink(self.number), &self.state).map_err(io::Error::other)
    }

    /// Once, not every second while a disk stays full.
    fn tell(&mut self, text: Option<String>) {
        if text == self.state.error {
            return;
        }
        let path = self.state.path.display();
        match &text {
            Some(why) => (self.note)(format!("write {path}: {why}; trying again")),
            None => (self.note)(format!("{path} is written again")),
        }
        self.state.error = text;
        // for `ps`; the event is told anyway
        let _ = self.keep();
    }
}

#[cfg(test)]
mod tests;
