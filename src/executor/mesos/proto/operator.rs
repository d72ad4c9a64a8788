//! The calls of an agent's operator API for sessions, attaching and waiting (package `mesos.v1.agent`), and what their streams carry.
//!
//! Owns the fields and their numbers. *Invariants:* as in the messages of executors. Leaves to others: who answers, and what it means.

use super::*;

message! {
    /// `Call`: what an agent is asked for, as far as it is about processes in containers.
    Call {
        #[prost(enumeration(call::Type), optional, tag = 1)] r#type: Option<i32>,
        #[prost(message, optional, tag = 9)] launch_nested_container_session: Option<call::LaunchNestedContainerSession>,
        #[prost(message, optional, tag = 10)] attach_container_input: Option<call::AttachContainerInput>,
        #[prost(message, optional, tag = 11)] attach_container_output: Option<call::AttachContainerOutput>,
        #[prost(message, optional, tag = 14)] wait_container: Option<call::WaitContainer>,
        #[prost(message, optional, tag = 15)] kill_container: Option<call::KillContainer>,
    }
    /// `Response`: the answer to `WAIT_CONTAINER`.
    Response {
        #[prost(enumeration(response::Type), optional, tag = 1)] r#type: Option<i32>,
        #[prost(message, optional, tag = 16)] wait_container: Option<response::WaitContainer>,
    }
    /// `ProcessIO`: a piece of a process's input or output, or what is to be done with its terminal.
    ProcessIo {
        #[prost(enumeration(process_io::Type), optional, tag = 1)] r#type: Option<i32>,
        #[prost(message, optional, tag = 2)] data: Option<process_io::Data>,
        #[prost(message, optional, tag = 3)] control: Option<process_io::Control>,
    }
}

/// Inside `Call`.
pub mod call {
    use super::*;

    message! {
        /// `Call.LaunchNestedContainerSession`.
        LaunchNestedContainerSession {
            #[prost(message, required, tag = 1)] container_id: ContainerId,
            #[prost(message, optional, tag = 2)] command: Option<CommandInfo>,
            #[prost(message, optional, tag = 3)] container: Option<ContainerInfo>,
        }
        /// `Call.AttachContainerInput`: the first record has the id, all others a piece each.
        AttachContainerInput {
            #[prost(enumeration(attach_container_input::Type), optional, tag = 1)] r#type: Option<i32>,
            #[prost(message, optional, tag = 2)] container_id: Option<ContainerId>,
            #[prost(message, optional, tag = 3)] process_io: Option<ProcessIo>,
        }
        /// `Call.AttachContainerOutput`.
        AttachContainerOutput {
            #[prost(message, required, tag = 1)] container_id: ContainerId,
        }
        /// `Call.WaitContainer`.
        WaitContainer {
            #[prost(message, required, tag = 1)] container_id: ContainerId,
        }
        /// `Call.KillContainer`.
        KillContainer {
            #[prost(message, required, tag = 1)] container_id: ContainerId,
            #[prost(int32, optional, tag = 2)] signal: Option<i32>,
        }
    }
    enumeration! {
        /// `Call.Type`, as far as we answer.
        Type {
            Unknown = 0, "UNKNOWN";
            LaunchNestedContainerSession = 17, "LAUNCH_NESTED_CONTAINER_SESSION";
            AttachContainerInput = 18, "ATTACH_CONTAINER_INPUT";
            AttachContainerOutput = 19, "ATTACH_CONTAINER_OUTPUT";
            WaitContainer = 23, "WAIT_CONTAINER";
            KillContainer = 24, "KILL_CONTAINER";
        }
    }

    /// Inside `Call.AttachContainerInput`.
    pub mod attach_container_input {
        use super::*;

        enumeration! {
            /// `Call.AttachContainerInput.Type`.
            Type {
                Unknown = 0, "UNKNOWN";
                ContainerId = 1, "CONTAINER_ID";
                ProcessIo = 2, "PROCESS_IO";
            }
        }
    }
}

/// Inside `Response`.
pub mod response {
    use super::*;

    message! {
        /// `Response.WaitContainer`; the status is wait(2)'s.
        WaitContainer {
            #[prost(int32, optional, tag = 1)] exit_status: Option<i32>,
        }
    }
    enumeration! {
        /// `Response.Type`, as far as we answer.
        Type {
            Unknown = 0, "UNKNOWN";
            WaitContainer = 15, "WAIT_CONTAINER";
        }
    }
}

/// Inside `ProcessIO`.
pub mod process_io {
    use super::*;

    message! {
        /// `ProcessIO.Data`: none is the end of the input.
        Data {
            #[prost(enumeration(data::Type), optional, tag = 1)] r#type: Option<i32>,
            #[prost(bytes = "vec", optional, tag = 2)] data: Option<Vec<u8>>,
        }
        /// `ProcessIO.Control`.
        Control {
            #[prost(enumeration(control::Type), optional, tag = 1)] r#type: Option<i32>,
            #[prost(message, optional, tag = 2)] tty_info: Option<TtyInfo>,
            #[prost(message, optional, tag = 3)] heartbeat: Option<control::Heartbeat>,
        }
    }
    enumeration! {
        /// `ProcessIO.Type`.
        Type {
            Unknown = 0, "UNKNOWN";
            Data = 1, "DATA";
            Control = 2, "CONTROL";
        }
    }

    /// Inside `ProcessIO.Data`.
    pub mod data {
        use super::*;

        enumeration! {
            /// `ProcessIO.Data.Type`.
            Type {
                Unknown = 0, "UNKNOWN";
                Stdin = 1, "STDIN";
                Stdout = 2, "STDOUT";
                Stderr = 3, "STDERR";
            }
        }
    }

    /// Inside `ProcessIO.Control`.
    pub mod control {
        use super::*;

        message! {
            /// `ProcessIO.Control.Heartbeat`.
            Heartbeat {
                #[prost(message, optional, tag = 1)] interval: Option<DurationInfo>,
            }
        }
        enumeration! {
            /// `ProcessIO.Control.Type`.
            Type {
                Unknown = 0, "UNKNOWN";
                TtyInfo = 1, "TTY_INFO";
                Heartbeat = 2, "HEARTBEAT";
            }
        }
    }
}

impl ProcessIo {
    /// A piece of a stream.
    pub fn data(kind: process_io::data::Type, bytes: &[u8]) -> ProcessIo {
        ProcessIo {
            r#type: Some(process_io::Type::Data.into()),
            data: Some(process_io::Data {
                r#type: Some(kind.into()),
                data: Some(bytes.to_vec()),
            }),
            control: None,
        }
    }

    /// That the connection is alive.
    pub fn heartbeat(interval: std::time::Duration) -> ProcessIo {
        let nanoseconds = i64::try_from(interval.as_nanos()).unwrap_or(i64::MAX);
        ProcessIo::control(process_io::Control {
            r#type: Some(process_io::control::Type::Heartbeat.into()),
            tty_info: None,
            heartbeat: Some(process_io::control::Heartbeat {
                interval: Some(DurationInfo { nanoseconds }),
            }),
        })
    }

    /// The size of a window.
    pub fn size(rows: u16, columns: u16) -> ProcessIo {
        ProcessIo::control(process_io::Control {
            r#type: Some(process_io::control::Type::TtyInfo.into()),
            tty_info: Some(TtyInfo {
                window_size: Some(tty_info::WindowSize {
                    rows: rows.into(),
                    columns: columns.into(),
                }),
            }),
            heartbeat: None,
        })
    }

    fn control(control: process_io::Control) -> ProcessIo {
        ProcessIo {
            r#type: Some(process_io::Type::Control.into()),
            data: None,
            control: Some(control),
        }
    }
}
