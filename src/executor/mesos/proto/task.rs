//! Tasks, executors, frameworks, agents, and what describes them.
//!
//! Owns the fields, their numbers and defaults, which are those of `include/mesos/v1/*.proto`; their meaning is there.
//!
//! *Invariants:* names and numbers are never changed; a required field is written also when it is zero.
//!
//! Leaves to others: the text form (`json`), and every decision.

use super::*;

message! {
    /// `FrameworkID`.
    FrameworkId {
        #[prost(string, required, tag = 1)] value: String,
    }
    /// `ExecutorID`.
    ExecutorId {
        #[prost(string, required, tag = 1)] value: String,
    }
    /// `TaskID`.
    TaskId {
        #[prost(string, required, tag = 1)] value: String,
    }
    /// `AgentID`.
    AgentId {
        #[prost(string, required, tag = 1)] value: String,
    }
    /// `ContainerID`.
    ContainerId {
        #[prost(string, required, tag = 1)] value: String,
        #[prost(message, optional, boxed, tag = 2)] parent: Option<Box<ContainerId>>,
    }
    /// `TaskInfo`: a task as the scheduler described it.
    TaskInfo {
        #[prost(string, required, tag = 1)] name: String,
        #[prost(message, required, tag = 2)] task_id: TaskId,
        #[prost(message, required, tag = 3)] agent_id: AgentId,
        #[prost(message, repeated, tag = 4)] resources: Vec<Resource>,
        #[prost(message, optional, tag = 5)] executor: Option<ExecutorInfo>,
        #[prost(bytes = "vec", optional, tag = 6)] data: Option<Vec<u8>>,
        #[prost(message, optional, tag = 7)] command: Option<CommandInfo>,
        #[prost(message, optional, tag = 8)] health_check: Option<HealthCheck>,
        #[prost(message, optional, tag = 9)] container: Option<ContainerInfo>,
        #[prost(message, optional, tag = 10)] labels: Option<Labels>,
        #[prost(message, optional, tag = 11)] discovery: Option<DiscoveryInfo>,
        #[prost(message, optional, tag = 12)] kill_policy: Option<KillPolicy>,
        #[prost(message, optional, tag = 13)] check: Option<CheckInfo>,
        #[prost(message, optional, tag = 14)] max_completion_time: Option<DurationInfo>,
        #[prost(btree_map = "string, message", tag = 15)] limits: BTreeMap<String, value::Scalar>,
    }
    /// `TaskGroupInfo`: tasks that start all or none, and share network and volumes.
    TaskGroupInfo {
        #[prost(message, repeated, tag = 1)] tasks: Vec<TaskInfo>,
    }
    /// `ExecutorInfo`: the executor as the scheduler described it.
    ExecutorInfo {
        #[prost(message, required, tag = 1)] executor_id: ExecutorId,
        #[prost(bytes = "vec", optional, tag = 4)] data: Option<Vec<u8>>,
        #[prost(message, repeated, tag = 5)] resources: Vec<Resource>,
        #[prost(message, optional, tag = 7)] command: Option<CommandInfo>,
        #[prost(message, optional, tag = 8)] framework_id: Option<FrameworkId>,
        #[prost(string, optional, tag = 9)] name: Option<String>,
        #[prost(string, optional, tag = 10)] source: Option<String>,
        #[prost(message, optional, tag = 11)] container: Option<ContainerInfo>,
        #[prost(message, optional, tag = 12)] discovery: Option<DiscoveryInfo>,
        #[prost(message, optional, tag = 13)] shutdown_grace_period: Option<DurationInfo>,
        #[prost(message, optional, tag = 14)] labels: Option<Labels>,
        #[prost(enumeration(executor_info::Type), optional, tag = 15)] r#type: Option<i32>,
    }
    /// `FrameworkInfo`: the framework, and what it understands (`capabilities`).
    FrameworkInfo {
        #[prost(string, required, tag = 1)] user: String,
        #[prost(string, required, tag = 2)] name: String,
        #[prost(message, optional, tag = 3)] id: Option<FrameworkId>,
        #[prost(double, optional, tag = 4, default = "0.0")] failover_timeout: Option<f64>,
        #[prost(bool, optional, tag = 5, default = "false")] checkpoint: Option<bool>,
        #[prost(string, optional, tag = 6, default = "*")] role: Option<String>,
        #[prost(string, optional, tag = 7)] hostname: Option<String>,
        #[prost(string, optional, tag = 8)] principal: Option<String>,
        #[prost(string, optional, tag = 9)] webui_url: Option<String>,
        #[prost(message, repeated, tag = 10)] capabilities: Vec<framework_info::Capability>,
        #[prost(message, optional, tag = 11)] labels: Option<Labels>,
        #[prost(string, repeated, tag = 12)] roles: Vec<String>,
        #[prost(btree_map = "string, message", tag = 13)] offer_filters: BTreeMap<String, OfferFilters>,
    }
    /// `OfferFilters`.
    OfferFilters {
        #[prost(message, optional, tag = 1)] min_allocatable_resources: Option<offer_filters::MinAllocatableResources>,
    }
    /// `AgentInfo`: the agent and its machine.
    AgentInfo {
        #[prost(string, required, tag = 1)] hostname: String,
        #[prost(message, repeated, tag = 3)] resources: Vec<Resource>,
        #[prost(message, repeated, tag = 5)] attributes: Vec<Attribute>,
        #[prost(message, optional, tag = 6)] id: Option<AgentId>,
        #[prost(int32, optional, tag = 8, default = "5051")] port: Option<i32>,
        #[prost(message, optional, tag = 10)] domain: Option<DomainInfo>,
    }
    /// `DomainInfo`.
    DomainInfo {
        #[prost(message, optional, tag = 1)] fault_domain: Option<domain_info::FaultDomain>,
    }
    /// `Attribute`.
    Attribute {
        #[prost(string, required, tag = 1)] name: String,
        #[prost(enumeration(value::Type), required, tag = 2)] r#type: i32,
        #[prost(message, optional, tag = 3)] scalar: Option<value::Scalar>,
        #[prost(message, optional, tag = 4)] ranges: Option<value::Ranges>,
        #[prost(message, optional, tag = 5)] text: Option<value::Text>,
        #[prost(message, optional, tag = 6)] set: Option<value::Set>,
    }
    /// `CommandInfo`: what runs: a line for the shell (`shell`, the default) or a program with `arguments`.
    CommandInfo {
        #[prost(message, repeated, tag = 1)] uris: Vec<command_info::Uri>,
        #[prost(message, optional, tag = 2)] environment: Option<Environment>,
        #[prost(string, optional, tag = 3)] value: Option<String>,
        #[prost(string, optional, tag = 5)] user: Option<String>,
        #[prost(bool, optional, tag = 6, default = "true")] shell: Option<bool>,
        #[prost(string, repeated, tag = 7)] arguments: Vec<String>,
    }
    /// `Environment`.
    Environment {
        #[prost(message, repeated, tag = 1)] variables: Vec<environment::Variable>,
    }
    /// `Secret`: a secret, or where it is.
    Secret {
        #[prost(enumeration(secret::Type), optional, tag = 1)] r#type: Option<i32>,
        #[prost(message, optional, tag = 2)] reference: Option<secret::Reference>,
        #[prost(message, optional, tag = 3)] value: Option<secret::Value>,
    }
    /// `Credential`.
    Credential {
        #[prost(string, required, tag = 1)] principal: String,
        #[prost(string, optional, tag = 2)] secret: Option<String>,
    }
    /// `Parameter`.
    Parameter {
        #[prost(string, required, tag = 1)] key: String,
        #[prost(string, required, tag = 2)] value: String,
    }
    /// `Parameters`.
    Parameters {
        #[prost(message, repeated, tag = 1)] parameter: Vec<Parameter>,
    }
    /// `KillPolicy`: how long a task may take to end.
    KillPolicy {
        #[prost(message, optional, tag = 1)] grace_period: Option<DurationInfo>,
    }
    /// `DurationInfo`: a duration, in nanoseconds.
    DurationInfo {
        #[prost(int64, required, tag = 1)] nanoseconds: i64,
    }
    /// `TimeInfo`: a time, in nanoseconds since the epoch.
    TimeInfo {
        #[prost(int64, required, tag = 1)] nanoseconds: i64,
    }
    /// `Labels`.
    Labels {
        #[prost(message, repeated, tag = 1)] labels: Vec<Label>,
    }
    /// `Label`.
    Label {
        #[prost(string, required, tag = 1)] key: String,
        #[prost(string, optional, tag = 2)] value: Option<String>,
    }
    /// `DiscoveryInfo`.
    DiscoveryInfo {
        #[prost(enumeration(discovery_info::Visibility), required, tag = 1)] visibility: i32,
        #[prost(string, optional, tag = 2)] name: Option<String>,
        #[prost(string, optional, tag = 3)] environment: Option<String>,
        #[prost(string, optional, tag = 4)] location: Option<String>,
        #[prost(string, optional, tag = 5)] version: Option<String>,
        #[prost(message, optional, tag = 6)] ports: Option<Ports>,
        #[prost(message, optional, tag = 7)] labels: Option<Labels>,
    }
    /// `Ports`.
    Ports {
        #[prost(message, repeated, tag = 1)] ports: Vec<Port>,
    }
    /// `Port`.
    Port {
        #[prost(uint32, required, tag = 1)] number: u32,
        #[prost(string, optional, tag = 2)] name: Option<String>,
        #[prost(string, optional, tag = 3)] protocol: Option<String>,
        #[prost(enumeration(discovery_info::Visibility), optional, tag = 4)] visibility: Option<i32>,
        #[prost(message, optional, tag = 5)] labels: Option<Labels>,
    }
    /// `ResourceProviderID`.
    ResourceProviderId {
        #[prost(string, required, tag = 1)] value: String,
    }
    /// `Resource`: a piece of a resource. The same name may come several times: add them up.
    Resource {
        #[prost(string, required, tag = 1)] name: String,
        #[prost(enumeration(value::Type), required, tag = 2)] r#type: i32,
        #[prost(message, optional, tag = 3)] scalar: Option<value::Scalar>,
        #[prost(message, optional, tag = 4)] ranges: Option<value::Ranges>,
        #[prost(message, optional, tag = 5)] set: Option<value::Set>,
        #[prost(string, optional, tag = 6, default = "*")] role: Option<String>,
        #[prost(message, optional, tag = 7)] disk: Option<resource::DiskInfo>,
        #[prost(message, optional, tag = 8)] reservation: Option<resource::ReservationInfo>,
        #[prost(message, optional, tag = 9)] revocable: Option<resource::RevocableInfo>,
        #[prost(message, optional, tag = 10)] shared: Option<resource::SharedInfo>,
        #[prost(message, optional, tag = 11)] allocation_info: Option<resource::AllocationInfo>,
        #[prost(message, optional, tag = 12)] provider_id: Option<ResourceProviderId>,
        #[prost(message, repeated, tag = 13)] reservations: Vec<resource::ReservationInfo>,
    }
    /// `Value`.
    Value {
        #[prost(enumeration(value::Type), required, tag = 1)] r#type: i32,
        #[prost(message, optional, tag = 2)] scalar: Option<value::Scalar>,
        #[prost(message, optional, tag = 3)] ranges: Option<value::Ranges>,
        #[prost(message, optional, tag = 4)] set: Option<value::Set>,
        #[prost(message, optional, tag = 5)] text: Option<value::Text>,
    }
}

/// Inside `AgentInfo`.
pub mod agent_info {
    use super::*;

    message! {
        /// `AgentInfo.Capability`.
        Capability {
            #[prost(enumeration(capability::Type), optional, tag = 1)] r#type: Option<i32>,
        }
    }

    /// Inside `AgentInfo.Capability`.
    pub mod capability {
        use super::*;

        enumeration! {
            /// `AgentInfo.Capability.Type`.
            Type {
                Unknown = 0, "UNKNOWN";
                MultiRole = 1, "MULTI_ROLE";
                HierarchicalRole = 2, "HIERARCHICAL_ROLE";
                ReservationRefinement = 3, "RESERVATION_REFINEMENT";
                ResourceProvider = 4, "RESOURCE_PROVIDER";
                ResizeVolume = 5, "RESIZE_VOLUME";
                AgentOperationFeedback = 6, "AGENT_OPERATION_FEEDBACK";
                AgentDraining = 7, "AGENT_DRAINING";
                TaskResourceLimits = 8, "TASK_RESOURCE_LIMITS";
            }
        }
    }
}

/// Inside `CommandInfo`.
pub mod command_info {
    use super::*;

    message! {
        /// `CommandInfo.URI`: what is fetched into the sandbox before the start.
        Uri {
            #[prost(string, required, tag = 1)] value: String,
            #[prost(bool, optional, tag = 2)] executable: Option<bool>,
            #[prost(bool, optional, tag = 3, default = "true")] extract: Option<bool>,
            #[prost(bool, optional, tag = 4)] cache: Option<bool>,
            #[prost(string, optional, tag = 5)] output_file: Option<String>,
        }
    }
}

/// Inside `DiscoveryInfo`.
pub mod discovery_info {
    use super::*;

    enumeration! {
        /// `DiscoveryInfo.Visibility`.
        Visibility {
            Framework = 0, "FRAMEWORK";
            Cluster = 1, "CLUSTER";
            External = 2, "EXTERNAL";
        }
    }
}

/// Inside `DomainInfo`.
pub mod domain_info {
    use super::*;

    message! {
        /// `DomainInfo.FaultDomain`.
        FaultDomain {
            #[prost(message, required, tag = 1)] region: fault_domain::RegionInfo,
            #[prost(message, required, tag = 2)] zone: fault_domain::ZoneInfo,
        }
    }

    /// Inside `DomainInfo.FaultDomain`.
    pub mod fault_domain {
        use super::*;

        message! {
            /// `DomainInfo.FaultDomain.RegionInfo`.
            RegionInfo {
                #[prost(string, required, tag = 1)] name: String,
            }
            /// `DomainInfo.FaultDomain.ZoneInfo`.
            ZoneInfo {
                #[prost(string, required, tag = 1)] name: String,
            }
        }
    }
}

/// Inside `Environment`.
pub mod environment {
    use super::*;

    message! {
        /// `Environment.Variable`.
        Variable {
            #[prost(string, required, tag = 1)] name: String,
            #[prost(string, optional, tag = 2)] value: Option<String>,
            #[prost(enumeration(variable::Type), optional, tag = 3, default = "Value")] r#type: Option<i32>,
            #[prost(message, optional, tag = 4)] secret: Option<Secret>,
        }
    }

    /// Inside `Environment.Variable`.
    pub mod variable {
        use super::*;

        enumeration! {
            /// `Environment.Variable.Type`.
            Type {
                Unknown = 0, "UNKNOWN";
                Value = 1, "VALUE";
                Secret = 2, "SECRET";
            }
        }
    }
}

/// Inside `ExecutorInfo`.
pub mod executor_info {
    use super::*;

    enumeration! {
        /// `ExecutorInfo.Type`.
        Type {
            Unknown = 0, "UNKNOWN";
            Default = 1, "DEFAULT";
            Custom = 2, "CUSTOM";
        }
    }
}

/// Inside `FrameworkInfo`.
pub mod framework_info {
    use super::*;

    message! {
        /// `FrameworkInfo.Capability`.
        Capability {
            #[prost(enumeration(capability::Type), optional, tag = 1)] r#type: Option<i32>,
        }
    }

    /// Inside `FrameworkInfo.Capability`.
    pub mod capability {
        use super::*;

        enumeration! {
            /// `FrameworkInfo.Capability.Type`.
            Type {
                Unknown = 0, "UNKNOWN";
                RevocableResources = 1, "REVOCABLE_RESOURCES";
                TaskKillingState = 2, "TASK_KILLING_STATE";
                GpuResources = 3, "GPU_RESOURCES";
                SharedResources = 4, "SHARED_RESOURCES";
                PartitionAware = 5, "PARTITION_AWARE";
                MultiRole = 6, "MULTI_ROLE";
                ReservationRefinement = 7, "RESERVATION_REFINEMENT";
                RegionAware = 8, "REGION_AWARE";
            }
        }
    }
}

/// Inside `OfferFilters`.
pub mod offer_filters {
    use super::*;

    message! {
        /// `OfferFilters.MinAllocatableResources`.
        MinAllocatableResources {
            #[prost(message, repeated, tag = 1)] quantities: Vec<ResourceQuantities>,
        }
        /// `OfferFilters.ResourceQuantities`.
        ResourceQuantities {
            #[prost(btree_map = "string, message", tag = 1)] quantities: BTreeMap<String, value::Scalar>,
        }
    }
}

/// Inside `Resource`.
pub mod resource {
    use super::*;

    message! {
        /// `Resource.AllocationInfo`.
        AllocationInfo {
            #[prost(string, optional, tag = 1)] role: Option<String>,
        }
        /// `Resource.ReservationInfo`.
        ReservationInfo {
            #[prost(string, optional, tag = 1)] principal: Option<String>,
            #[prost(message, optional, tag = 2)] labels: Option<Labels>,
            #[prost(string, optional, tag = 3)] role: Option<String>,
            #[prost(enumeration(reservation_info::Type), optional, tag = 4)] r#type: Option<i32>,
        }
        /// `Resource.DiskInfo`.
        DiskInfo {
            #[prost(message, optional, tag = 1)] persistence: Option<disk_info::Persistence>,
            #[prost(message, optional, tag = 2)] volume: Option<Volume>,
            #[prost(message, optional, tag = 3)] source: Option<disk_info::Source>,
        }
        /// `Resource.RevocableInfo`.
        RevocableInfo {
        }
        /// `Resource.SharedInfo`.
        SharedInfo {
        }
    }

    /// Inside `Resource.DiskInfo`.
    pub mod disk_info {
        use super::*;

        message! {
            /// `Resource.DiskInfo.Persistence`.
            Persistence {
                #[prost(string, required, tag = 1)] id: String,
                #[prost(string, optional, tag = 2)] principal: Option<String>,
            }
            /// `Resource.DiskInfo.Source`.
            Source {
                #[prost(enumeration(source::Type), required, tag = 1)] r#type: i32,
                #[prost(message, optional, tag = 2)] path: Option<source::Path>,
                #[prost(message, optional, tag = 3)] mount: Option<source::Mount>,
                #[prost(string, optional, tag = 4)] id: Option<String>,
                #[prost(message, optional, tag = 5)] metadata: Option<Labels>,
                #[prost(string, optional, tag = 6)] profile: Option<String>,
                #[prost(string, optional, tag = 7)] vendor: Option<String>,
            }
        }

        /// Inside `Resource.DiskInfo.Source`.
        pub mod source {
            use super::*;

            message! {
                /// `Resource.DiskInfo.Source.Path`.
                Path {
                    #[prost(string, optional, tag = 1)] root: Option<String>,
                }
                /// `Resource.DiskInfo.Source.Mount`.
                Mount {
                    #[prost(string, optional, tag = 1)] root: Option<String>,
                }
            }
            enumeration! {
                /// `Resource.DiskInfo.Source.Type`.
                Type {
                    Unknown = 0, "UNKNOWN";
                    Path = 1, "PATH";
                    Mount = 2, "MOUNT";
                    Block = 3, "BLOCK";
                    Raw = 4, "RAW";
                }
            }
        }
    }

    /// Inside `Resource.ReservationInfo`.
    pub mod reservation_info {
        use super::*;

        enumeration! {
            /// `Resource.ReservationInfo.Type`.
            Type {
                Unknown = 0, "UNKNOWN";
                Static = 1, "STATIC";
                Dynamic = 2, "DYNAMIC";
            }
        }
    }
}

/// Inside `Secret`.
pub mod secret {
    use super::*;

    message! {
        /// `Secret.Reference`.
        Reference {
            #[prost(string, required, tag = 1)] name: String,
            #[prost(string, optional, tag = 2)] key: Option<String>,
        }
        /// `Secret.Value`.
        Value {
            #[prost(bytes = "vec", required, tag = 1)] data: Vec<u8>,
        }
    }
    enumeration! {
        /// `Secret.Type`.
        Type {
            Unknown = 0, "UNKNOWN";
            Reference = 1, "REFERENCE";
            Value = 2, "VALUE";
        }
    }
}

/// Inside `Value`.
pub mod value {
    use super::*;

    message! {
        /// `Value.Scalar`.
        Scalar {
            #[prost(double, required, tag = 1)] value: f64,
        }
        /// `Value.Ranges`.
        Ranges {
            #[prost(message, repeated, tag = 1)] range: Vec<Range>,
        }
        /// `Value.Range`.
        Range {
            #[prost(uint64, required, tag = 1)] begin: u64,
            #[prost(uint64, required, tag = 2)] end: u64,
        }
        /// `Value.Set`.
        Set {
            #[prost(string, repeated, tag = 1)] item: Vec<String>,
        }
        /// `Value.Text`.
        Text {
            #[prost(string, required, tag = 1)] value: String,
        }
    }
    enumeration! {
        /// `Value.Type`.
        Type {
            Scalar = 0, "SCALAR";
            Ranges = 1, "RANGES";
            Set = 2, "SET";
            Text = 3, "TEXT";
        }
    }
}
