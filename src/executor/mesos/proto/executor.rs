//! The calls and events of the executor API (package `mesos.v1.executor`).
//!
//! Owns the fields, their numbers and defaults, which are those of `include/mesos/v1/*.proto`; their meaning is there.
//!
//! *Invariants:* names and numbers are never changed; a required field is written also when it is zero.
//!
//! Leaves to others: the text form (`json`), and every decision.

use super::*;

message! {
    /// `Call`: what the executor tells the agent.
    Call {
        #[prost(message, required, tag = 1)] executor_id: ExecutorId,
        #[prost(message, required, tag = 2)] framework_id: FrameworkId,
        #[prost(enumeration(call::Type), optional, tag = 3)] r#type: Option<i32>,
        #[prost(message, optional, tag = 4)] subscribe: Option<call::Subscribe>,
        #[prost(message, optional, tag = 5)] update: Option<call::Update>,
        #[prost(message, optional, tag = 6)] message: Option<call::Message>,
    }
    /// `Event`: what the agent tells the executor.
    Event {
        #[prost(enumeration(event::Type), optional, tag = 1)] r#type: Option<i32>,
        #[prost(message, optional, tag = 2)] subscribed: Option<event::Subscribed>,
        #[prost(message, optional, tag = 3)] acknowledged: Option<event::Acknowledged>,
        #[prost(message, optional, tag = 4)] launch: Option<event::Launch>,
        #[prost(message, optional, tag = 5)] kill: Option<event::Kill>,
        #[prost(message, optional, tag = 6)] message: Option<event::Message>,
        #[prost(message, optional, tag = 7)] error: Option<event::Error>,
        #[prost(message, optional, tag = 8)] launch_group: Option<event::LaunchGroup>,
    }
}

/// Inside `Call`.
pub mod call {
    use super::*;

    message! {
        /// `Call.Subscribe`: registers the executor, with all that no acknowledgement came for.
        Subscribe {
            #[prost(message, repeated, tag = 1)] unacknowledged_tasks: Vec<TaskInfo>,
            #[prost(message, repeated, tag = 2)] unacknowledged_updates: Vec<Update>,
        }
        /// `Call.Update`: one state of one task.
        Update {
            #[prost(message, required, tag = 1)] status: TaskStatus,
        }
        /// `Call.Message`: bytes for the scheduler. The number is 2 here and 1 in [`event::Message`](super::event::Message).
        Message {
            #[prost(bytes = "vec", required, tag = 2)] data: Vec<u8>,
        }
    }
    enumeration! {
        /// `Call.Type`.
        Type {
            Unknown = 0, "UNKNOWN";
            Subscribe = 1, "SUBSCRIBE";
            Update = 2, "UPDATE";
            Message = 3, "MESSAGE";
            Heartbeat = 4, "HEARTBEAT";
        }
    }
}

/// Inside `Event`.
pub mod event {
    use super::*;

    message! {
        /// `Event.Subscribed`: the first event of a good stream, usually.
        Subscribed {
            #[prost(message, required, tag = 1)] executor_info: ExecutorInfo,
            #[prost(message, required, tag = 2)] framework_info: FrameworkInfo,
            #[prost(message, required, tag = 3)] agent_info: AgentInfo,
            #[prost(message, optional, tag = 4)] container_id: Option<ContainerId>,
        }
        /// `Event.Launch`: starts one task.
        Launch {
            #[prost(message, required, tag = 1)] task: TaskInfo,
        }
        /// `Event.LaunchGroup`: starts all tasks or none.
        LaunchGroup {
            #[prost(message, required, tag = 1)] task_group: TaskGroupInfo,
        }
        /// `Event.Kill`: ends one task; a policy here wins over the task's own.
        Kill {
            #[prost(message, required, tag = 1)] task_id: TaskId,
            #[prost(message, optional, tag = 2)] kill_policy: Option<KillPolicy>,
        }
        /// `Event.Acknowledged`: the agent has stored the update.
        Acknowledged {
            #[prost(message, required, tag = 1)] task_id: TaskId,
            #[prost(bytes = "vec", required, tag = 2)] uuid: Vec<u8>,
        }
        /// `Event.Message`: bytes from the scheduler.
        Message {
            #[prost(bytes = "vec", required, tag = 1)] data: Vec<u8>,
        }
        /// `Event.Error`: the agent has given the executor up.
        Error {
            #[prost(string, required, tag = 1)] message: String,
        }
    }
    enumeration! {
        /// `Event.Type`.
        Type {
            Unknown = 0, "UNKNOWN";
            Subscribed = 1, "SUBSCRIBED";
            Launch = 2, "LAUNCH";
            Kill = 3, "KILL";
            Acknowledged = 4, "ACKNOWLEDGED";
            Message = 5, "MESSAGE";
            Error = 6, "ERROR";
            Shutdown = 7, "SHUTDOWN";
            LaunchGroup = 8, "LAUNCH_GROUP";
            Heartbeat = 9, "HEARTBEAT";
        }
    }
}
