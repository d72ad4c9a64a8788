//! Checks and the states of tasks.
//!
//! Owns the fields, their numbers and defaults, which are those of `include/mesos/v1/*.proto`; their meaning is there.
//!
//! *Invariants:* names and numbers are never changed; a required field is written also when it is zero.
//!
//! Leaves to others: the text form (`json`), and every decision.

use super::*;

message! {
    /// `HealthCheck`: a check that ends the task after so many failures.
    HealthCheck {
        #[prost(message, optional, tag = 1)] http: Option<health_check::HttpCheckInfo>,
        #[prost(double, optional, tag = 2, default = "15.0")] delay_seconds: Option<f64>,
        #[prost(double, optional, tag = 3, default = "10.0")] interval_seconds: Option<f64>,
        #[prost(double, optional, tag = 4, default = "20.0")] timeout_seconds: Option<f64>,
        #[prost(uint32, optional, tag = 5, default = "3")] consecutive_failures: Option<u32>,
        #[prost(double, optional, tag = 6, default = "10.0")] grace_period_seconds: Option<f64>,
        #[prost(message, optional, tag = 7)] command: Option<CommandInfo>,
        #[prost(enumeration(health_check::Type), optional, tag = 8)] r#type: Option<i32>,
        #[prost(message, optional, tag = 9)] tcp: Option<health_check::TcpCheckInfo>,
    }
    /// `CheckInfo`: a check whose result is only told.
    CheckInfo {
        #[prost(enumeration(check_info::Type), optional, tag = 1)] r#type: Option<i32>,
        #[prost(message, optional, tag = 2)] command: Option<check_info::Command>,
        #[prost(message, optional, tag = 3)] http: Option<check_info::Http>,
        #[prost(double, optional, tag = 4, default = "15.0")] delay_seconds: Option<f64>,
        #[prost(double, optional, tag = 5, default = "10.0")] interval_seconds: Option<f64>,
        #[prost(double, optional, tag = 6, default = "20.0")] timeout_seconds: Option<f64>,
        #[prost(message, optional, tag = 7)] tcp: Option<check_info::Tcp>,
    }
    /// `CheckStatusInfo`.
    CheckStatusInfo {
        #[prost(enumeration(check_info::Type), optional, tag = 1)] r#type: Option<i32>,
        #[prost(message, optional, tag = 2)] command: Option<check_status_info::Command>,
        #[prost(message, optional, tag = 3)] http: Option<check_status_info::Http>,
        #[prost(message, optional, tag = 4)] tcp: Option<check_status_info::Tcp>,
    }
    /// `TaskStatus`: a state of a task, and why.
    TaskStatus {
        #[prost(message, required, tag = 1)] task_id: TaskId,
        #[prost(enumeration(TaskState), required, tag = 2)] state: i32,
        #[prost(bytes = "vec", optional, tag = 3)] data: Option<Vec<u8>>,
        #[prost(string, optional, tag = 4)] message: Option<String>,
        #[prost(message, optional, tag = 5)] agent_id: Option<AgentId>,
        #[prost(double, optional, tag = 6)] timestamp: Option<f64>,
        #[prost(message, optional, tag = 7)] executor_id: Option<ExecutorId>,
        #[prost(bool, optional, tag = 8)] healthy: Option<bool>,
        #[prost(enumeration(task_status::Source), optional, tag = 9)] source: Option<i32>,
        #[prost(enumeration(task_status::Reason), optional, tag = 10)] reason: Option<i32>,
        #[prost(bytes = "vec", optional, tag = 11)] uuid: Option<Vec<u8>>,
        #[prost(message, optional, tag = 12)] labels: Option<Labels>,
        #[prost(message, optional, tag = 13)] container_status: Option<ContainerStatus>,
        #[prost(message, optional, tag = 14)] unreachable_time: Option<TimeInfo>,
        #[prost(message, optional, tag = 15)] check_status: Option<CheckStatusInfo>,
        #[prost(message, optional, tag = 16)] limitation: Option<TaskResourceLimitation>,
    }
    /// `TaskResourceLimitation`: the resources whose limit ended the task.
    TaskResourceLimitation {
        #[prost(message, repeated, tag = 1)] resources: Vec<Resource>,
    }
    /// `ContainerStatus`.
    ContainerStatus {
        #[prost(message, repeated, tag = 1)] network_infos: Vec<NetworkInfo>,
        #[prost(message, optional, tag = 2)] cgroup_info: Option<CgroupInfo>,
        #[prost(uint32, optional, tag = 3)] executor_pid: Option<u32>,
        #[prost(message, optional, tag = 4)] container_id: Option<ContainerId>,
    }
    /// `CgroupInfo`.
    CgroupInfo {
        #[prost(message, optional, tag = 1)] net_cls: Option<cgroup_info::NetCls>,
    }
}
enumeration! {
    /// `TaskState`.
    TaskState {
        Starting = 0, "TASK_STARTING";
        Running = 1, "TASK_RUNNING";
        Finished = 2, "TASK_FINISHED";
        Failed = 3, "TASK_FAILED";
        Killed = 4, "TASK_KILLED";
        Lost = 5, "TASK_LOST";
        Staging = 6, "TASK_STAGING";
        Error = 7, "TASK_ERROR";
        Killing = 8, "TASK_KILLING";
        Dropped = 9, "TASK_DROPPED";
        Unreachable = 10, "TASK_UNREACHABLE";
        Gone = 11, "TASK_GONE";
        GoneByOperator = 12, "TASK_GONE_BY_OPERATOR";
        Unknown = 13, "TASK_UNKNOWN";
    }
}

/// Inside `CgroupInfo`.
pub mod cgroup_info {
    use super::*;

    message! {
        /// `CgroupInfo.NetCls`.
        NetCls {
            #[prost(uint32, optional, tag = 1)] classid: Option<u32>,
        }
    }
}

/// Inside `CheckInfo`.
pub mod check_info {
    use super::*;

    message! {
        /// `CheckInfo.Command`.
        Command {
            #[prost(message, required, tag = 1)] command: CommandInfo,
        }
        /// `CheckInfo.Http`.
        Http {
            #[prost(uint32, required, tag = 1)] port: u32,
            #[prost(string, optional, tag = 2)] path: Option<String>,
        }
        /// `CheckInfo.Tcp`.
        Tcp {
            #[prost(uint32, required, tag = 1)] port: u32,
        }
    }
    enumeration! {
        /// `CheckInfo.Type`.
        Type {
            Unknown = 0, "UNKNOWN";
            Command = 1, "COMMAND";
            Http = 2, "HTTP";
            Tcp = 3, "TCP";
        }
    }
}

/// Inside `CheckStatusInfo`.
pub mod check_status_info {
    use super::*;

    message! {
        /// `CheckStatusInfo.Command`.
        Command {
            #[prost(int32, optional, tag = 1)] exit_code: Option<i32>,
        }
        /// `CheckStatusInfo.Http`.
        Http {
            #[prost(uint32, optional, tag = 1)] status_code: Option<u32>,
        }
        /// `CheckStatusInfo.Tcp`.
        Tcp {
            #[prost(bool, optional, tag = 1)] succeeded: Option<bool>,
        }
    }
}

/// Inside `HealthCheck`.
pub mod health_check {
    use super::*;

    message! {
        /// `HealthCheck.HTTPCheckInfo`.
        HttpCheckInfo {
            #[prost(uint32, required, tag = 1)] port: u32,
            #[prost(string, optional, tag = 2)] path: Option<String>,
            #[prost(string, optional, tag = 3)] scheme: Option<String>,
            #[prost(uint32, repeated, packed = false, tag = 4)] statuses: Vec<u32>,
            #[prost(enumeration(network_info::Protocol), optional, tag = 5, default = "Ipv4")] protocol: Option<i32>,
        }
        /// `HealthCheck.TCPCheckInfo`.
        TcpCheckInfo {
            #[prost(uint32, required, tag = 1)] port: u32,
            #[prost(enumeration(network_info::Protocol), optional, tag = 2, default = "Ipv4")] protocol: Option<i32>,
        }
    }
    enumeration! {
        /// `HealthCheck.Type`.
        Type {
            Unknown = 0, "UNKNOWN";
            Command = 1, "COMMAND";
            Http = 2, "HTTP";
            Tcp = 3, "TCP";
        }
    }
}

/// Inside `TaskStatus`.
pub mod task_status {
    use super::*;

    enumeration! {
        /// `TaskStatus.Source`.
        Source {
            Master = 0, "SOURCE_MASTER";
            Agent = 1, "SOURCE_AGENT";
            Executor = 2, "SOURCE_EXECUTOR";
        }
        /// `TaskStatus.Reason`.
        Reason {
            CommandExecutorFailed = 0, "REASON_COMMAND_EXECUTOR_FAILED";
            ExecutorTerminated = 1, "REASON_EXECUTOR_TERMINATED";
            ExecutorUnregistered = 2, "REASON_EXECUTOR_UNREGISTERED";
            FrameworkRemoved = 3, "REASON_FRAMEWORK_REMOVED";
            GcError = 4, "REASON_GC_ERROR";
            InvalidFrameworkid = 5, "REASON_INVALID_FRAMEWORKID";
            InvalidOffers = 6, "REASON_INVALID_OFFERS";
            MasterDisconnected = 7, "REASON_MASTER_DISCONNECTED";
            ContainerLimitationMemory = 8, "REASON_CONTAINER_LIMITATION_MEMORY";
            Reconciliation = 9, "REASON_RECONCILIATION";
            AgentDisconnected = 10, "REASON_AGENT_DISCONNECTED";
            AgentRemoved = 11, "REASON_AGENT_REMOVED";
            AgentRestarted = 12, "REASON_AGENT_RESTARTED";
            AgentUnknown = 13, "REASON_AGENT_UNKNOWN";
            TaskInvalid = 14, "REASON_TASK_INVALID";
            TaskUnauthorized = 15, "REASON_TASK_UNAUTHORIZED";
            TaskUnknown = 16, "REASON_TASK_UNKNOWN";
            ContainerPreempted = 17, "REASON_CONTAINER_PREEMPTED";
            ResourcesUnknown = 18, "REASON_RESOURCES_UNKNOWN";
            ContainerLimitation = 19, "REASON_CONTAINER_LIMITATION";
            ContainerLimitationDisk = 20, "REASON_CONTAINER_LIMITATION_DISK";
            ContainerLaunchFailed = 21, "REASON_CONTAINER_LAUNCH_FAILED";
            ContainerUpdateFailed = 22, "REASON_CONTAINER_UPDATE_FAILED";
            ExecutorRegistrationTimeout = 23, "REASON_EXECUTOR_REGISTRATION_TIMEOUT";
            ExecutorReregistrationTimeout = 24, "REASON_EXECUTOR_REREGISTRATION_TIMEOUT";
            TaskGroupInvalid = 25, "REASON_TASK_GROUP_INVALID";
            TaskGroupUnauthorized = 26, "REASON_TASK_GROUP_UNAUTHORIZED";
            IoSwitchboardExited = 27, "REASON_IO_SWITCHBOARD_EXITED";
            TaskCheckStatusUpdated = 28, "REASON_TASK_CHECK_STATUS_UPDATED";
            TaskHealthCheckStatusUpdated = 29, "REASON_TASK_HEALTH_CHECK_STATUS_UPDATED";
            TaskKilledDuringLaunch = 30, "REASON_TASK_KILLED_DURING_LAUNCH";
            AgentRemovedByOperator = 31, "REASON_AGENT_REMOVED_BY_OPERATOR";
            AgentReregistered = 32, "REASON_AGENT_REREGISTERED";
            MaxCompletionTimeReached = 33, "REASON_MAX_COMPLETION_TIME_REACHED";
            AgentDraining = 34, "REASON_AGENT_DRAINING";
        }
    }
}
