//! The checks of a service: its `healthcheck`, or its image's, as one of them, and those of `x-sampan.checks`. Pure.

use std::time::Duration;

use super::record::ImageConfig;
use crate::compose::project::{
    Check, CheckKind, CheckTest, HEALTHCHECK, HealthTest, Healthcheck, Service,
};

/// All checks, every default applied; the health check of compose comes first and is called [`HEALTHCHECK`]. A check of that
/// name below `x-sampan` replaces the image's.
pub fn of(service: &Service, image: &ImageConfig) -> Vec<Check> {
    let named = service.checks.iter().any(|check| check.name == HEALTHCHECK);
    let own = healthcheck(service, image).filter(|_| !named);
    own.into_iter().chain(service.checks.clone()).collect()
}

/// The service's health check over the image's (Docker: each value by itself).
fn healthcheck(service: &Service, image: &ImageConfig) -> Option<Check> {
    let own = service.healthcheck.as_ref();
    if own.is_some_and(|h| h.disabled) {
        return None;
    }
    let inherited = image.healthcheck.clone().unwrap_or_default();
    let test = match own.and_then(|h| h.test.clone()) {
        Some(test) => test,
        None => match inherited.test.as_deref()? {
            [kind, command @ ..] if kind == "CMD" => HealthTest::Exec(command.to_vec()),
            [kind, text] if kind == "CMD-SHELL" => HealthTest::Shell(text.clone()),
            _ => return None,
        },
    };
    if command(&test).is_empty() {
        return None;
    }
    let time = |pick: fn(&Healthcheck) -> Option<Duration>, image: u64, default: u64| {
        // as in Docker, zero is no value
        own.and_then(pick)
            .filter(|time| !time.is_zero())
            .or((image > 0).then(|| Duration::from_nanos(image)))
            .unwrap_or(Duration::from_secs(default))
    };
    let retries = own.and_then(|h| h.retries.filter(|count| *count > 0));
    Some(Check {
        name: HEALTHCHECK.to_string(),
        kind: CheckKind::Health,
        test: CheckTest::Command(test),
        delay: None,
        interval: time(|h| h.interval, inherited.interval, 30),
        start_interval: Some(time(|h| h.start_interval, inherited.start_interval, 5)),
        timeout: time(|h| h.timeout, inherited.timeout, 30),
        grace_period: time(|h| h.start_period, inherited.start_period, 0),
        consecutive_failures: retries
            .or((inherited.retries > 0).then_some(inherited.retries))
            .unwrap_or(3),
        success_threshold: 1,
        snooze: None,
    })
}

/// Program and arguments of a test in a container.
pub fn command(test: &HealthTest) -> Vec<String> {
    match test {
        HealthTest::Exec(words) => words.clone(),
        HealthTest::Shell(text) => ["/bin/sh", "-c", text].map(String::from).to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::plan::tests::service;

    fn checks(healthcheck: Value, image: Value) -> Vec<Check> {
        let text = json!({"image": "x", "healthcheck": healthcheck}).to_string();
        let image = serde_json::from_value(json!({"Healthcheck": image})).unwrap();
        of(&service(&text), &image)
    }

    #[test]
    fn a_health_check_is_the_services_over_the_images() {
        let image =
            json!({"Test": ["CMD", "a"], "Interval": 5_000_000_000u64, "Retries": 7, "Timeout": 0});
        // command, interval, timeout, grace period, start interval, failures
        type Row = (Vec<&'static str>, u64, u64, u64, u64, u32);
        let table: [(Value, Value, Option<Row>); 9] = [
            (json!(null), json!(null), None),
            (
                json!(null),
                image.clone(),
                Some((vec!["a"], 5, 30, 0, 5, 7)),
            ),
            (json!({"disable": true}), image.clone(), None),
            (json!({"test": ["NONE"]}), image.clone(), None),
            (
                json!({"retries": 2, "start_period": "9s"}),
                image.clone(),
                Some((vec!["a"], 5, 30, 9, 5, 2)),
            ),
            (
                json!({"test": "b", "interval": "0s", "timeout": "0s", "retries": 0}),
                json!(null),
                Some((vec!["/bin/sh", "-c", "b"], 30, 30, 0, 5, 3)),
            ),
            (
                json!({"test": ["CMD", "b", "c"], "start_interval": "1s"}),
                image,
                Some((vec!["b", "c"], 5, 30, 0, 1, 7)),
            ),
            (json!(null), json!({"Test": ["CMD"]}), None),
            (json!({"retries": 2}), json!({"Test": ["NONE"]}), None),
        ];
        for (own, image, expected) in table {
            let found = checks(own.clone(), image.clone());
            let seconds = |time: Duration| time.as_secs();
            let rows: Vec<_> = found
                .iter()
                .map(|c| {
                    let CheckTest::Command(test) = &c.test else {
                        panic!("{c:?}")
                    };
                    assert_eq!((c.name.as_str(), c.delay), (HEALTHCHECK, None));
                    (
                        command(test),
                        seconds(c.interval),
                        seconds(c.timeout),
                        seconds(c.grace_period),
                        seconds(c.start_interval.unwrap()),
                        c.consecutive_failures,
                    )
                })
                .collect();
            let expected: Vec<_> = expected
                .into_iter()
                .map(|(words, a, b, c, d, e)| {
                    let words: Vec<String> = words.into_iter().map(String::from).collect();
                    (words, a, b, c, d, e)
                })
                .collect();
            assert_eq!(rows, expected, "{own} {image}");
        }
    }

    #[test]
    fn a_check_may_take_the_place_of_the_images() {
        let image: ImageConfig =
            serde_json::from_value(json!({"Healthcheck": {"Test": ["CMD", "a"]}})).unwrap();
        for (name, names) in [
            ("healthcheck", &["healthcheck"][..]),
            ("other", &["healthcheck", "other"]),
        ] {
            let text = json!({"image": "x", "x-sampan": {"checks": {name: {"tcp": {"port": 1}}}}});
            let found = of(&service(&text.to_string()), &image);
            let all: Vec<&str> = found.iter().map(|check| check.name.as_str()).collect();
            assert_eq!(all, names);
            assert!(matches!(&found.last().unwrap().test, CheckTest::Tcp(_)));
        }
    }
}
