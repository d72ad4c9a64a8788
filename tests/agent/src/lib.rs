//! A Mesos agent for tests: it speaks the v1 executor API to the letter, starts executors as an agent does, and has
//! every fault that a test may ask for.
//!
//! Owns one framework with one executor at a time on an agent without a master: the test is the scheduler.
//! *Invariants*: independent of the program under test, its codec included; every answer has the code and the text of
//! the real agent; whatever an executor does that a real agent would take silently, but that loses or falsifies
//! something, is a *violation* ([`Agent::violations`]). Leaves: the operator API, several executors at a time, offers.
//!
//! ```no_run
//! use test_agent::{Agent, Settings, task};
//! let agent = Agent::new(Settings::default());
//! agent.launch(task("a", serde_json::json!({"command": {"value": "sleep 1"}})));
//! agent.start_executor(&["sampan", "executor", "mesos"]);
//! agent.wait_for("a", "TASK_FINISHED");
//! assert_eq!(agent.states("a"), ["TASK_STARTING", "TASK_RUNNING", "TASK_FINISHED"]);
//! ```

mod calls;
pub mod codec;
mod container;
mod http;
mod ids;
mod model;
mod rules;
mod schema;
mod serve;
mod settings;
mod stream;

mod agent;

pub use agent::{Agent, task};
pub use container::Exit;
pub use model::{Acks, Answer, Calls, Phase, Recorded};
pub use settings::{Launcher, Settings, Transport};
