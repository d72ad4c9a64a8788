//! The connection to the agent: made, kept, made again.
//!
//! *Invariants:* calls go out one at a time and in order; what was not sent when a connection ends is dropped here, for the next SUBSCRIBE
//! carries all that is not acknowledged; when to try again and when to give up is decided by [`Patience`], which knows no clock. An agent
//! that has sent SHUTDOWN is not subscribed to again, for it would only say so once more: it is told the rest, and its taking it in is all
//! the answer there will be.
//!
//! Leaves to others: bytes and status codes ([`super::connection`]), what is sent ([`super::machine`]).

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::connection::{self, Agent, Calls, Events, Kind};
use super::machine::Input;
use super::proto::{Call, event};

/// How long the first connection may take where nothing is said.
const FIRST: Duration = Duration::from_secs(30);
/// Pause when the agent is there but not ready yet.
const BUSY: Duration = Duration::from_secs(1);
/// Between two calls that say nothing, so that nobody in between cuts the second connection.
const HEARTBEAT: Duration = Duration::from_secs(30 * 60);

/// When to try again, and when to give up.
#[derive(Debug, Clone)]
pub struct Patience {
    /// How long tasks go on without a connection (`MESOS_RECOVERY_TIMEOUT`); `None`: not at all.
    pub recovery: Option<Duration>,
    /// Longest pause between two attempts (`MESOS_SUBSCRIPTION_BACKOFF_MAX`).
    pub backoff: Duration,
    /// There was a connection once, perhaps an earlier process's.
    pub ever: bool,
}

/// What an attempt, or the end of a connection, was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setback {
    /// A connection that was good ended.
    Broken,
    /// Nobody answers.
    Unreachable,
    /// The agent answers, but is not ready.
    Busy,
    /// Trying again cannot help.
    Final,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Try again after so long.
    Again(Duration),
    /// Give up.
    GiveUp,
}

impl Patience {
    /// What follows a setback, `without` a connection for so long; `chance` in 0..1 spreads the attempts of many executors.
    pub fn next(&self, setback: Setback, without: Duration, chance: f64) -> Next {
        let most = match (self.ever, self.recovery) {
            (true, recovery) => recovery.unwrap_or(FIRST),
            (false, recovery) => recovery.map_or(FIRST, |recovery| recovery.min(FIRST)),
        };
        let pause = match setback {
            Setback::Final => return Next::GiveUp,
            Setback::Broken if self.recovery.is_none() => return Next::GiveUp,
            // at once: the agent may have restarted long ago
            Setback::Broken => Duration::ZERO,
            Setback::Busy => BUSY.min(self.backoff.max(Duration::from_millis(100))),
            Setback::Unreachable if self.ever && self.recovery.is_none() => return Next::GiveUp,
            Setback::Unreachable => self.backoff.mul_f64(chance),
        };
        match setback {
            Setback::Busy => Next::Again(pause),
            _ if without >= most => Next::GiveUp,
            // the last attempt is at the end, not behind it
            _ => Next::Again(pause.min(most - without)),
        }
    }
}

/// Keeps a connection until it is given up, and tells the machine. `subscription` is asked for the SUBSCRIBE of each attempt.
pub async fn run(
    agent: &Agent,
    patience: Patience,
    link: Link<'_>,
    mut calls: mpsc::UnboundedReceiver<Call>,
    inputs: mpsc::Sender<Input>,
) {
    let mut patience = patience;
    let mut without = Instant::now();
    loop {
        // they belong to a connection that is over
        while calls.try_recv().is_ok() {}
        let (setback, error) = match agent.subscribe(&(link.subscription)()).await {
            Ok((events, mut sender)) => {
                let end = talk(events, &mut sender, &link, &mut calls, &inputs).await;
                match end {
                    End::Broken(error) => {
                        patience.ever = true;
                        without = Instant::now();
                        if inputs.send(Input::Lost).await.is_err() {
                            return;
                        }
                        (Setback::Broken, error)
                    }
                    End::NotSubscribed(error) => (Setback::Unreachable, error),
                    End::ShutDown => {
                        let error = last_words(&sender, &mut calls, &inputs).await;
                        drop(inputs.send(Input::Abandoned(error.to_string())).await);
                        return;
                    }
                }
            }
            Err(error) => {
                let setback = setback(&error);
                if setback == Setback::Busy {
                    without = Instant::now();
                }
                (setback, error.to_string())
            }
        };
        let next = patience.next(setback, without.elapsed(), fastrand::f64());
        let told = match next {
            Next::Again(_) => {
                inputs
                    .send(Input::Note(format!("{error}; trying again")))
                    .await
            }
            Next::GiveUp => inputs.send(Input::Abandoned(error)).await,
        };
        match next {
            Next::Again(pause) if told.is_ok() => sleep(pause).await,
            _ => return,
        }
    }
}

/// Where the session gets the calls that it makes by itself.
pub struct Link<'a> {
    /// SUBSCRIBE, as it has to be now.
    pub subscription: &'a dyn Fn() -> Call,
    /// HEARTBEAT.
    pub heartbeat: Call,
}

fn setback(error: &connection::Error) -> Setback {
    match error {
        connection::Error::Refused(refused) if refused.kind == Kind::NotReady => Setback::Busy,
        error if error.is_passing() => Setback::Unreachable,
        _ => Setback::Final,
    }
}

/// How the use of a connection ended.
enum End {
    /// It is lost: complete text.
    Broken(String),
    /// It is lost before the agent sent anything that makes it one: complete text.
    NotSubscribed(String),
    /// The agent has sent SHUTDOWN, and nothing more will come.
    ShutDown,
}

/// Uses a connection to its end.
async fn talk(
    mut events: Events,
    sender: &mut Calls,
    link: &Link<'_>,
    calls: &mut mpsc::UnboundedReceiver<Call>,
    inputs: &mpsc::Sender<Input>,
) -> End {
    let (mut subscribed, mut shut) = (false, false);
    let write = async {
        loop {
            let call = match timeout(HEARTBEAT, calls.recv()).await {
                Ok(Some(call)) => call,
                Ok(None) => std::future::pending().await,
                Err(_) => link.heartbeat.clone(),
            };
            if let Err(error) = send(sender, &call, inputs).await {
                return error.to_string();
            }
        }
    };
    tokio::pin!(write);
    let why = loop {
        // what has come counts, and is passed on, even if calls cannot be sent any more
        let event = tokio::select! {
            biased;
            event = events.next() => match event {
                Ok(Some(event)) => event,
                Ok(None) => break "the agent closed the connection".to_string(),
                Err(error) => break error.to_string(),
            },
            why = &mut write => break why,
        };
        match event.r#type() {
            event::Type::Subscribed => subscribed = true,
            event::Type::Shutdown => shut = true,
            _ => {}
        }
        // the loop is gone only when the process ends
        drop(inputs.send(Input::Agent(Box::new(event))).await);
        // instead of SUBSCRIBED: it keeps no stream for us
        if shut && !subscribed {
            break String::new();
        }
    };
    match (shut, subscribed) {
        (true, _) => End::ShutDown,
        (false, true) => End::Broken(why),
        (false, false) => End::NotSubscribed(why),
    }
}

/// Tells an agent that has shut us down the rest, over a connection of its own; why that ended.
async fn last_words(
    sender: &Calls,
    calls: &mut mpsc::UnboundedReceiver<Call>,
    inputs: &mpsc::Sender<Input>,
) -> connection::Error {
    let mut sender = match sender.again().await {
        Ok(sender) => sender,
        Err(error) => return error,
    };
    drop(inputs.send(Input::Deaf).await);
    loop {
        let Some(call) = calls.recv().await else {
            std::future::pending().await
        };
        if let Err(error) = send(&mut sender, &call, inputs).await {
            return error;
        }
        if let Some(uuid) = uuid(&call) {
            drop(inputs.send(Input::Taken(uuid)).await);
        }
    }
}

/// The update that a call is.
fn uuid(call: &Call) -> Option<Vec<u8>> {
    call.update.as_ref()?.status.uuid.clone()
}

/// Sends a call until the agent takes it, or says that it never will.
async fn send(
    sender: &mut Calls,
    call: &Call,
    inputs: &mpsc::Sender<Input>,
) -> Result<(), connection::Error> {
    loop {
        let error = match sender.send(call).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        match &error {
            connection::Error::Refused(refused) => match refused.kind {
                Kind::NotReady => sleep(BUSY).await,
                Kind::Malformed | Kind::Defect => {
                    let input = match uuid(call) {
                        Some(uuid) => Input::Refused {
                            uuid,
                            why: error.to_string(),
                        },
                        None => Input::Note(error.to_string()),
                    };
                    drop(inputs.send(input).await);
                    return Ok(());
                }
                Kind::Orphan | Kind::NotSubscribed | Kind::Forbidden => return Err(error),
            },
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::super::connection::tests::{STREAM, call, chunk, json, listener, request};
    use super::super::proto::call;
    use super::*;

    const EAGER: Patience = Patience {
        recovery: Some(Duration::from_secs(1)),
        backoff: Duration::from_millis(50),
        ever: true,
    };

    /// An agent, or what stands before it, that takes SUBSCRIBE and hangs up: as good as none.
    #[tokio::test]
    async fn a_stream_without_a_word_is_no_connection() {
        let (listener, address) = listener().await;
        let serve = async {
            loop {
                let (mut first, _) = listener.accept().await.unwrap();
                let (_second, _) = listener.accept().await.unwrap();
                if request(&mut first).await.is_some() {
                    first.write_all(STREAM.as_bytes()).await.unwrap();
                }
            }
        };
        let (_calls, outbox) = mpsc::unbounded_channel();
        let (inputs, mut inbox) = mpsc::channel(1024);
        let link = Link {
            subscription: &|| call(call::Type::Subscribe),
            heartbeat: call(call::Type::Heartbeat),
        };
        let agent = json(&address, None);
        tokio::select! {
            () = serve => {}
            () = run(&agent, EAGER, link, outbox, inputs) => {}
        }
        let mut told = Vec::new();
        while let Some(input) = inbox.recv().await {
            told.push(input);
        }
        assert!(matches!(told.pop(), Some(Input::Abandoned(_))));
        assert!(told.iter().all(|input| matches!(input, Input::Note(_))));
    }

    /// Though calls cannot be sent any more while the executor is too busy to hear of it.
    #[tokio::test]
    async fn shutdown_is_not_lost() {
        let (listener, address) = listener().await;
        let subscribed = r#"{"type":"SUBSCRIBED","subscribed":{"executor_info":{"executor_id":{"value":"e"}},"framework_info":{"user":"u","name":"n"},"agent_info":{"hostname":"h"}}}"#;
        let events = [subscribed, r#"{"type":"SHUTDOWN"}"#];
        let events = events.map(|event| format!("{}\n{event}", event.len()));
        let stream = format!("{STREAM}{}", chunk(&events.concat()));
        let broken = tokio::sync::Notify::new();
        let serve = async {
            let (mut first, _) = listener.accept().await.unwrap();
            let (mut second, _) = listener.accept().await.unwrap();
            request(&mut first).await.unwrap();
            first.write_all(stream.as_bytes()).await.unwrap();
            request(&mut second).await;
            drop(second);
            // for the last words of one that has passed SHUTDOWN over
            let _third = listener.accept().await.unwrap();
            broken.notify_one();
            std::future::pending::<()>().await;
        };
        let (calls, outbox) = mpsc::unbounded_channel();
        // SUBSCRIBED fills it
        let (inputs, mut inbox) = mpsc::channel(1);
        let link = Link {
            subscription: &|| {
                calls.send(call(call::Type::Heartbeat)).unwrap();
                call(call::Type::Subscribe)
            },
            heartbeat: call(call::Type::Heartbeat),
        };
        let agent = json(&address, None);
        let told = async {
            // one that passes it on first has no last words yet
            drop(timeout(Duration::from_millis(500), broken.notified()).await);
            let mut told = Vec::new();
            for _ in 0..2 {
                if let Some(Input::Agent(event)) = inbox.recv().await {
                    told.push(event.r#type());
                }
            }
            told
        };
        let told = tokio::select! {
            told = told => told,
            () = serve => Vec::new(),
            () = run(&agent, EAGER, link, outbox, inputs) => Vec::new(),
        };
        assert_eq!(told, [event::Type::Subscribed, event::Type::Shutdown]);
    }

    #[test]
    fn patience() {
        const SECOND: Duration = Duration::from_secs(1);
        let checkpoint = Some(15 * 60 * SECOND);
        let again = |milliseconds| Next::Again(Duration::from_millis(milliseconds));
        use Setback::{Broken, Busy, Final, Unreachable};
        for (recovery, ever, setback, without, expected) in [
            // tasks without checkpoints end with the connection
            (None, true, Broken, 0, Next::GiveUp),
            (None, true, Unreachable, 0, Next::GiveUp),
            (None, true, Busy, 0, again(1000)),
            // the first connection may take a while
            (None, false, Unreachable, 0, again(500)),
            (None, false, Unreachable, 29_900, again(100)),
            (None, false, Unreachable, 30_000, Next::GiveUp),
            (checkpoint, false, Unreachable, 30_000, Next::GiveUp),
            (Some(10 * SECOND), false, Unreachable, 9_999, again(1)),
            (Some(10 * SECOND), false, Unreachable, 10_000, Next::GiveUp),
            // at once, then at random; the last attempt is at the very end
            (checkpoint, true, Broken, 0, again(0)),
            (checkpoint, true, Unreachable, 0, again(500)),
            (checkpoint, true, Unreachable, 899_900, again(100)),
            (checkpoint, true, Unreachable, 900_000, Next::GiveUp),
            // an agent that is there is waited for
            (checkpoint, true, Busy, 900_000, again(1000)),
            (checkpoint, false, Final, 0, Next::GiveUp),
        ] {
            let patience = Patience {
                recovery,
                backoff: 2 * SECOND,
                ever,
            };
            let next = patience.next(setback, Duration::from_millis(without), 0.25);
            assert_eq!(next, expected, "{recovery:?} {ever} {setback:?} {without}");
        }
        // a short window is not slept over
        let patience = Patience {
            recovery: checkpoint,
            backoff: Duration::from_millis(300),
            ever: true,
        };
        assert_eq!(patience.next(Busy, Duration::ZERO, 0.9), again(300));
    }
}
