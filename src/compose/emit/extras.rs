//! What compose has no word for, and hooks: as entries of the file.

use super::{Dict, Out, units};
use crate::compose::project::{
    Check, CheckTest, HealthTest, Hook, LifecycleHook, LogFile, LogFormat, LogSink, Logging,
    OnFailure,
};

pub(super) fn hook(h: &Hook) -> Dict {
    let mut out = Dict::default();
    out.text("name", &h.name);
    out.text("at", h.at.name());
    out.texts("command", &h.command);
    out.text("timeout", &units::duration_text(h.timeout));
    out.maybe_text(
        "on_failure",
        (h.on_failure == OnFailure::Note).then_some("note"),
    );
    out.texts_by_key("env", &h.env);
    out
}

pub(super) fn lifecycle_hook(h: &LifecycleHook) -> Dict {
    let mut out = Dict::default();
    out.texts("command", &h.command);
    out.maybe_text("user", h.user.as_deref());
    out.flag("privileged", h.privileged);
    out.maybe_text("working_dir", h.working_dir.as_deref());
    out.texts_by_key("environment", &h.environment);
    out
}

pub(super) fn logging(logging: Logging) -> Dict {
    let mut out = Dict::default();
    match logging {
        Logging::None => out.text("driver", "none"),
        Logging::Kept { max_size, max_file } => {
            let mut options = Dict::default();
            options.maybe_text("max-size", max_size.map(|size| size.to_string()).as_deref());
            if max_size.is_some() {
                options.text("max-file", &max_file.to_string());
            }
            out.text("driver", "json-file");
            out.dict("options", options.0.into_iter());
        }
    }
    out
}

pub(super) fn log_sink(sink: &LogSink) -> Dict {
    let mut out = Dict::default();
    let mut all = sink.stdout.iter().chain(&sink.stderr);
    let beneath = all.find(|file| file.name.components().count() > 1);
    if let Some(file) = beneath {
        out.text("beneath", &file.folder.to_string_lossy());
    }
    let path = |file: &Option<LogFile>| {
        let file = file.as_ref()?;
        let path = match beneath {
            Some(_) => file.name.clone(),
            None => file.path(),
        };
        Some(path.to_string_lossy().into_owned())
    };
    match (path(&sink.stdout), path(&sink.stderr)) {
        (Some(both), Some(other)) if both == other => out.text("file", &both),
        (stdout, stderr) => {
            out.maybe_text("stdout", stdout.as_deref());
            out.maybe_text("stderr", stderr.as_deref());
        }
    }
    out.text(
        "format",
        match sink.format {
            LogFormat::Raw => "raw",
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        },
    );
    out.texts("labels", &sink.labels);
    if let Some(size) = sink.max_size {
        out.bare("max_size", Some(size));
        out.bare("max_file", Some(sink.max_file));
    }
    out
}

pub(super) fn check(c: &Check) -> Dict {
    let mut out = Dict::default();
    out.text("name", &c.name);
    out.text("kind", c.kind.word());
    match &c.test {
        CheckTest::Command(HealthTest::Exec(words)) => out.texts("command", words),
        CheckTest::Command(HealthTest::Shell(text)) => out.text("command", text),
        CheckTest::Http(test) => {
            let mut http = Dict::default();
            http.text("scheme", if test.tls { "https" } else { "http" });
            http.text("host", &test.host.to_string());
            http.bare("port", Some(test.port));
            http.text("path", &test.path);
            let statuses = test.statuses.iter();
            http.list("statuses", statuses.map(|s| Out::Bare(s.to_string())));
            http.texts_by_key("headers", &test.headers);
            out.put("http", Out::Dict(http));
        }
        CheckTest::Tcp(test) => {
            let mut tcp = Dict::default();
            tcp.text("host", &test.host.to_string());
            tcp.bare("port", Some(test.port));
            out.put("tcp", Out::Dict(tcp));
        }
    }
    let times = [
        ("delay", c.delay),
        ("interval", Some(c.interval)),
        ("start_interval", c.start_interval),
        ("timeout", Some(c.timeout)),
        ("grace_period", Some(c.grace_period)),
        ("snooze", c.snooze),
    ];
    for (key, value) in times {
        out.maybe_text(key, value.map(units::duration_text).as_deref());
    }
    out.bare("consecutive_failures", Some(c.consecutive_failures));
    out.bare("success_threshold", Some(c.success_threshold));
    out
}
