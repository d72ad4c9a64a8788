//! Files of services that share them: who has to wait for whom, and what a successor finds.

use std::fs;

use super::*;
use crate::compose::project::LogFormat;

/// A pod's folders with logs as its pumps write them, and a file that both services go to.
struct Files {
    folder: tempfile::TempDir,
    dir: PodDir,
}

impl Files {
    fn new() -> Files {
        let folder = tempfile::tempdir().unwrap();
        let dir = PodDir::open(&folder.path().join("pod"), &folder.path().join("root"));
        fs::create_dir_all(dir.sinks()).unwrap();
        for service in ["a", "b"] {
            fs::create_dir_all(dir.service(service).data).unwrap();
        }
        Files { folder, dir }
    }

    fn print(&self, service: &str, text: &str) {
        let service = self.dir.service(service);
        let append = |path, text: &str| {
            let mut file = fs::File::options();
            let mut file = file.append(true).create(true).open(path).unwrap();
            io::Write::write_all(&mut file, text.as_bytes()).unwrap();
            file.metadata().unwrap().len()
        };
        let end = append(service.log_at("stdout", 0), text);
        append(service.index_at("stdout", 0), &format!("{end} {end}\n"));
    }

    fn out(&self) -> std::path::PathBuf {
        self.folder.path().join("out")
    }

    fn written(&self) -> String {
        fs::read_to_string(self.out()).unwrap()
    }

    /// As a supervisor opens it.
    fn sink(&self) -> Sink {
        let services = ["a", "b"];
        let plan = Plan {
            target: Target {
                file: LogFile {
                    folder: self.folder.path().to_owned(),
                    name: "out".into(),
                },
                max_size: None,
                max_file: 1,
            },
            style: Style {
                format: LogFormat::Text,
                shared: true,
                pod: "pod".to_owned(),
                labels: BTreeMap::new(),
            },
            sources: services.map(|s| (s.to_owned(), "stdout")).to_vec(),
        };
        Sink::open(&self.dir, 0, plan, |text| panic!("{text}")).unwrap()
    }

    fn sinks(&self) -> (Sinks, Rc<RefCell<Sink>>) {
        let sink = Rc::new(RefCell::new(self.sink()));
        let services = ["a", "b"];
        let sinks = Sinks {
            all: vec![(sink.clone(), Rc::default())],
            by_service: services.map(|s| (s.to_owned(), vec![0])).into(),
        };
        (sinks, sink)
    }
}

#[tokio::test]
async fn a_run_ends_while_another_service_goes_on_printing() {
    let files = Files::new();
    let (sinks, _) = files.sinks();
    files.print("a", "last");
    let other = async {
        for _ in 0..1000 {
            files.print("b", "more\n");
            sinks.wake("b", "stdout");
            tokio::task::yield_now().await;
        }
    };
    // in turns, so that there is something new of the other one whenever the file is looked at
    tokio::select! {
        biased;
        () = sinks.finish("a") => {}
        () = other => panic!("it waited for the other service's end"),
    }
    let written = files.written();
    assert!(written.contains("a | last\n"), "{written}");
}

#[test]
fn who_reads_along_is_waited_for_in_portions_and_for_one_service() {
    let files = Files::new();
    let (sinks, sink) = files.sinks();
    let line = format!("{}\n", "x".repeat(63));
    let batches = |count: usize| line.repeat(count * BATCH as usize / line.len());
    files.print("b", &batches(2 * PASSES));
    files.print("a", "one\n");
    assert!(sinks.catch_up("a"));
    assert!(sink.borrow().owes("b"));
    files.print("a", &batches(2 * PASSES));
    assert!(!sinks.catch_up("a"));
    assert!(sinks.catch_up("a") || sinks.catch_up("a"));
    let written = files.written();
    let of_a = written.lines().filter(|line| line.starts_with("a | "));
    assert_eq!(of_a.count(), 1 + batches(2 * PASSES).len() / line.len());
}

/// As far as there is anything to write.
fn write_all(sink: &mut Sink) {
    while sink.pass().unwrap() {}
}

#[test]
fn a_successor_leaves_what_others_have_appended() {
    let first = "a | one\n";
    let others = "other | two\n";
    // how much of the second batch is in the file, and what others wrote behind it
    for (part, others) in [(0, ""), (0, others), (7, ""), (1000, ""), (1000, others)] {
        let files = Files::new();
        let mut sink = files.sink();
        files.print("a", "one\n");
        write_all(&mut sink);
        assert_eq!(files.written(), first);
        files.print("b", "three\nfour");
        files.print("a", "five\nsix");
        sink.mark("a", None, true);
        sink.mark("b", None, true);
        assert!(sink.pass().unwrap());
        drop(sink);
        let second = files.written()[first.len()..].to_owned();
        assert_eq!(second.lines().count(), 4, "{second}");
        let part = &second[..part.min(second.len())];
        fs::write(files.out(), format!("{first}{part}{others}")).unwrap();
        write_all(&mut files.sink());
        let expected = match part == second {
            true => format!("{first}{second}{others}"),
            // what had no end has none again, as far as the next supervisor knows
            false => format!("{first}{others}{}", whole_lines(&second)),
        };
        assert_eq!(files.written(), expected, "{part:?} {others:?}");
    }
}

fn whole_lines(text: &str) -> String {
    let ended = |line: &&str| ["b | three", "a | five"].contains(line);
    let lines = text.lines().filter(ended);
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn what_was_written_is_not_written_again_once_the_file_is_moved_away() {
    let files = Files::new();
    let mut sink = files.sink();
    files.print("a", "one\n");
    write_all(&mut sink);
    drop(sink);
    fs::rename(files.out(), files.folder.path().join("old")).unwrap();
    let mut sink = files.sink();
    write_all(&mut sink);
    assert!(!files.out().exists());
    files.print("a", "two\n");
    sink.mark("a", None, false);
    write_all(&mut sink);
    assert_eq!(files.written(), "a | two\n");
}
