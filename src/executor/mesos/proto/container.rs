//! Containers, volumes, networks, Linux settings.
//!
//! Owns the fields, their numbers and defaults, which are those of `include/mesos/v1/*.proto`; their meaning is there.
//!
//! *Invariants:* names and numbers are never changed; a required field is written also when it is zero.
//!
//! Leaves to others: the text form (`json`), and every decision.

use super::*;

message! {
    /// `ContainerInfo`.
    ContainerInfo {
        #[prost(enumeration(container_info::Type), required, tag = 1)] r#type: i32,
        #[prost(message, repeated, tag = 2)] volumes: Vec<Volume>,
        #[prost(message, optional, tag = 3)] docker: Option<container_info::DockerInfo>,
        #[prost(string, optional, tag = 4)] hostname: Option<String>,
        #[prost(message, optional, tag = 5)] mesos: Option<container_info::MesosInfo>,
        #[prost(message, repeated, tag = 7)] network_infos: Vec<NetworkInfo>,
        #[prost(message, optional, tag = 8)] linux_info: Option<LinuxInfo>,
        #[prost(message, optional, tag = 9)] rlimit_info: Option<RLimitInfo>,
        #[prost(message, optional, tag = 10)] tty_info: Option<TtyInfo>,
    }
    /// `Image`.
    Image {
        #[prost(enumeration(image::Type), required, tag = 1)] r#type: i32,
        #[prost(message, optional, tag = 2)] appc: Option<image::Appc>,
        #[prost(message, optional, tag = 3)] docker: Option<image::Docker>,
        #[prost(bool, optional, tag = 4, default = "true")] cached: Option<bool>,
    }
    /// `Volume`.
    Volume {
        #[prost(string, required, tag = 1)] container_path: String,
        #[prost(string, optional, tag = 2)] host_path: Option<String>,
        #[prost(enumeration(volume::Mode), required, tag = 3)] mode: i32,
        #[prost(message, optional, tag = 4)] image: Option<Image>,
        #[prost(message, optional, tag = 5)] source: Option<volume::Source>,
    }
    /// `MountPropagation`.
    MountPropagation {
        #[prost(enumeration(mount_propagation::Mode), optional, tag = 1)] mode: Option<i32>,
    }
    /// `NetworkInfo`: a network to join, or one that was joined.
    NetworkInfo {
        #[prost(string, repeated, tag = 3)] groups: Vec<String>,
        #[prost(message, optional, tag = 4)] labels: Option<Labels>,
        #[prost(message, repeated, tag = 5)] ip_addresses: Vec<network_info::IpAddress>,
        #[prost(string, optional, tag = 6)] name: Option<String>,
        #[prost(message, repeated, tag = 7)] port_mappings: Vec<network_info::PortMapping>,
    }
    /// `LinuxInfo`: linux settings of a container. `shm_size` is in MiB.
    LinuxInfo {
        #[prost(message, optional, tag = 1)] capability_info: Option<CapabilityInfo>,
        #[prost(message, optional, tag = 2)] bounding_capabilities: Option<CapabilityInfo>,
        #[prost(message, optional, tag = 3)] effective_capabilities: Option<CapabilityInfo>,
        #[prost(bool, optional, tag = 4)] share_pid_namespace: Option<bool>,
        #[prost(message, optional, tag = 5)] seccomp: Option<SeccompInfo>,
        #[prost(enumeration(linux_info::IpcMode), optional, tag = 6)] ipc_mode: Option<i32>,
        #[prost(uint32, optional, tag = 7)] shm_size: Option<u32>,
        #[prost(bool, optional, tag = 8, default = "true")] share_cgroups: Option<bool>,
    }
    /// `CapabilityInfo`.
    CapabilityInfo {
        #[prost(enumeration(capability_info::Capability), repeated, packed = false, tag = 1)] capabilities: Vec<i32>,
    }
    /// `SeccompInfo`.
    SeccompInfo {
        #[prost(string, optional, tag = 1)] profile_name: Option<String>,
        #[prost(bool, optional, tag = 2)] unconfined: Option<bool>,
    }
    /// `RLimitInfo`.
    RLimitInfo {
        #[prost(message, repeated, tag = 1)] rlimits: Vec<r_limit_info::RLimit>,
    }
    /// `TTYInfo`.
    TtyInfo {
        #[prost(message, optional, tag = 1)] window_size: Option<tty_info::WindowSize>,
    }
}

/// Inside `CapabilityInfo`.
pub mod capability_info {
    use super::*;

    enumeration! {
        /// `CapabilityInfo.Capability`.
        Capability {
            Unknown = 0, "UNKNOWN";
            Chown = 1000, "CHOWN";
            DacOverride = 1001, "DAC_OVERRIDE";
            DacReadSearch = 1002, "DAC_READ_SEARCH";
            Fowner = 1003, "FOWNER";
            Fsetid = 1004, "FSETID";
            Kill = 1005, "KILL";
            Setgid = 1006, "SETGID";
            Setuid = 1007, "SETUID";
            Setpcap = 1008, "SETPCAP";
            LinuxImmutable = 1009, "LINUX_IMMUTABLE";
            NetBindService = 1010, "NET_BIND_SERVICE";
            NetBroadcast = 1011, "NET_BROADCAST";
            NetAdmin = 1012, "NET_ADMIN";
            NetRaw = 1013, "NET_RAW";
            IpcLock = 1014, "IPC_LOCK";
            IpcOwner = 1015, "IPC_OWNER";
            SysModule = 1016, "SYS_MODULE";
            SysRawio = 1017, "SYS_RAWIO";
            SysChroot = 1018, "SYS_CHROOT";
            SysPtrace = 1019, "SYS_PTRACE";
            SysPacct = 1020, "SYS_PACCT";
            SysAdmin = 1021, "SYS_ADMIN";
            SysBoot = 1022, "SYS_BOOT";
            SysNice = 1023, "SYS_NICE";
            SysResource = 1024, "SYS_RESOURCE";
            SysTime = 1025, "SYS_TIME";
            SysTtyConfig = 1026, "SYS_TTY_CONFIG";
            Mknod = 1027, "MKNOD";
            Lease = 1028, "LEASE";
            AuditWrite = 1029, "AUDIT_WRITE";
            AuditControl = 1030, "AUDIT_CONTROL";
            Setfcap = 1031, "SETFCAP";
            MacOverride = 1032, "MAC_OVERRIDE";
            MacAdmin = 1033, "MAC_ADMIN";
            Syslog = 1034, "SYSLOG";
            WakeAlarm = 1035, "WAKE_ALARM";
            BlockSuspend = 1036, "BLOCK_SUSPEND";
            AuditRead = 1037, "AUDIT_READ";
            Perfmon = 1038, "PERFMON";
            Bpf = 1039, "BPF";
            CheckpointRestore = 1040, "CHECKPOINT_RESTORE";
        }
    }
}

/// Inside `ContainerInfo`.
pub mod container_info {
    use super::*;

    message! {
        /// `ContainerInfo.DockerInfo`.
        DockerInfo {
            #[prost(string, required, tag = 1)] image: String,
            #[prost(enumeration(docker_info::Network), optional, tag = 2, default = "Host")] network: Option<i32>,
            #[prost(message, repeated, tag = 3)] port_mappings: Vec<docker_info::PortMapping>,
            #[prost(bool, optional, tag = 4, default = "false")] privileged: Option<bool>,
            #[prost(message, repeated, tag = 5)] parameters: Vec<Parameter>,
            #[prost(bool, optional, tag = 6)] force_pull_image: Option<bool>,
            #[prost(string, optional, tag = 7)] volume_driver: Option<String>,
        }
        /// `ContainerInfo.MesosInfo`.
        MesosInfo {
            #[prost(message, optional, tag = 1)] image: Option<Image>,
        }
    }
    enumeration! {
        /// `ContainerInfo.Type`.
        Type {
            Docker = 1, "DOCKER";
            Mesos = 2, "MESOS";
        }
    }

    /// Inside `ContainerInfo.DockerInfo`.
    pub mod docker_info {
        use super::*;

        message! {
            /// `ContainerInfo.DockerInfo.PortMapping`.
            PortMapping {
                #[prost(uint32, required, tag = 1)] host_port: u32,
                #[prost(uint32, required, tag = 2)] container_port: u32,
                #[prost(string, optional, tag = 3)] protocol: Option<String>,
            }
        }
        enumeration! {
            /// `ContainerInfo.DockerInfo.Network`.
            Network {
                Host = 1, "HOST";
                Bridge = 2, "BRIDGE";
                None = 3, "NONE";
                User = 4, "USER";
            }
        }
    }
}

/// Inside `Image`.
pub mod image {
    use super::*;

    message! {
        /// `Image.Appc`.
        Appc {
            #[prost(string, required, tag = 1)] name: String,
            #[prost(string, optional, tag = 2)] id: Option<String>,
            #[prost(message, optional, tag = 3)] labels: Option<Labels>,
        }
        /// `Image.Docker`.
        Docker {
            #[prost(string, required, tag = 1)] name: String,
            #[prost(message, optional, tag = 2)] credential: Option<Credential>,
            #[prost(message, optional, tag = 3)] config: Option<Secret>,
        }
    }
    enumeration! {
        /// `Image.Type`.
        Type {
            Appc = 1, "APPC";
            Docker = 2, "DOCKER";
        }
    }
}

/// Inside `LinuxInfo`.
pub mod linux_info {
    use super::*;

    enumeration! {
        /// `LinuxInfo.IpcMode`.
        IpcMode {
            Unknown = 0, "UNKNOWN";
            Private = 1, "PRIVATE";
            ShareParent = 2, "SHARE_PARENT";
        }
    }
}

/// Inside `MountPropagation`.
pub mod mount_propagation {
    use super::*;

    enumeration! {
        /// `MountPropagation.Mode`.
        Mode {
            Unknown = 0, "UNKNOWN";
            HostToContainer = 1, "HOST_TO_CONTAINER";
            Bidirectional = 2, "BIDIRECTIONAL";
        }
    }
}

/// Inside `NetworkInfo`.
pub mod network_info {
    use super::*;

    message! {
        /// `NetworkInfo.IPAddress`.
        IpAddress {
            #[prost(enumeration(Protocol), optional, tag = 1, default = "Ipv4")] protocol: Option<i32>,
            #[prost(string, optional, tag = 2)] ip_address: Option<String>,
        }
        /// `NetworkInfo.PortMapping`.
        PortMapping {
            #[prost(uint32, required, tag = 1)] host_port: u32,
            #[prost(uint32, required, tag = 2)] container_port: u32,
            #[prost(string, optional, tag = 3)] protocol: Option<String>,
        }
    }
    enumeration! {
        /// `NetworkInfo.Protocol`.
        Protocol {
            Ipv4 = 1, "IPv4";
            Ipv6 = 2, "IPv6";
        }
    }
}

/// Inside `RLimitInfo`.
pub mod r_limit_info {
    use super::*;

    message! {
        /// `RLimitInfo.RLimit`.
        RLimit {
            #[prost(enumeration(r_limit::Type), optional, tag = 1)] r#type: Option<i32>,
            #[prost(uint64, optional, tag = 2)] hard: Option<u64>,
            #[prost(uint64, optional, tag = 3)] soft: Option<u64>,
        }
    }

    /// Inside `RLimitInfo.RLimit`.
    pub mod r_limit {
        use super::*;

        enumeration! {
            /// `RLimitInfo.RLimit.Type`.
            Type {
                Unknown = 0, "UNKNOWN";
                As = 1, "RLMT_AS";
                Core = 2, "RLMT_CORE";
                Cpu = 3, "RLMT_CPU";
                Data = 4, "RLMT_DATA";
                Fsize = 5, "RLMT_FSIZE";
                Locks = 6, "RLMT_LOCKS";
                Memlock = 7, "RLMT_MEMLOCK";
                Msgqueue = 8, "RLMT_MSGQUEUE";
                Nice = 9, "RLMT_NICE";
                Nofile = 10, "RLMT_NOFILE";
                Nproc = 11, "RLMT_NPROC";
                Rss = 12, "RLMT_RSS";
                Rtprio = 13, "RLMT_RTPRIO";
                Rttime = 14, "RLMT_RTTIME";
                Sigpending = 15, "RLMT_SIGPENDING";
                Stack = 16, "RLMT_STACK";
            }
        }
    }
}

/// Inside `TTYInfo`.
pub mod tty_info {
    use super::*;

    message! {
        /// `TTYInfo.WindowSize`.
        WindowSize {
            #[prost(uint32, required, tag = 1)] rows: u32,
            #[prost(uint32, required, tag = 2)] columns: u32,
        }
    }
}

/// Inside `Volume`.
pub mod volume {
    use super::*;

    message! {
        /// `Volume.Source`.
        Source {
            #[prost(enumeration(source::Type), optional, tag = 1)] r#type: Option<i32>,
            #[prost(message, optional, tag = 2)] docker_volume: Option<source::DockerVolume>,
            #[prost(message, optional, tag = 3)] sandbox_path: Option<source::SandboxPath>,
            #[prost(message, optional, tag = 4)] secret: Option<Secret>,
            #[prost(message, optional, tag = 5)] host_path: Option<source::HostPath>,
            #[prost(message, optional, tag = 6)] csi_volume: Option<source::CsiVolume>,
        }
    }
    enumeration! {
        /// `Volume.Mode`.
        Mode {
            Rw = 1, "RW";
            Ro = 2, "RO";
        }
    }

    /// Inside `Volume.Source`.
    pub mod source {
        use super::*;

        message! {
            /// `Volume.Source.DockerVolume`.
            DockerVolume {
                #[prost(string, optional, tag = 1)] driver: Option<String>,
                #[prost(string, required, tag = 2)] name: String,
                #[prost(message, optional, tag = 3)] driver_options: Option<Parameters>,
            }
            /// `Volume.Source.HostPath`.
            HostPath {
                #[prost(string, required, tag = 1)] path: String,
                #[prost(message, optional, tag = 2)] mount_propagation: Option<MountPropagation>,
            }
            /// `Volume.Source.SandboxPath`.
            SandboxPath {
                #[prost(enumeration(sandbox_path::Type), optional, tag = 1)] r#type: Option<i32>,
                #[prost(string, required, tag = 2)] path: String,
            }
            /// `Volume.Source.CSIVolume`.
            CsiVolume {
                #[prost(string, required, tag = 1)] plugin_name: String,
                #[prost(message, optional, tag = 2)] static_provisioning: Option<csi_volume::StaticProvisioning>,
            }
        }
        enumeration! {
            /// `Volume.Source.Type`.
            Type {
                Unknown = 0, "UNKNOWN";
                DockerVolume = 1, "DOCKER_VOLUME";
                SandboxPath = 2, "SANDBOX_PATH";
                Secret = 3, "SECRET";
                HostPath = 4, "HOST_PATH";
                CsiVolume = 5, "CSI_VOLUME";
            }
        }

        /// Inside `Volume.Source.CSIVolume`.
        pub mod csi_volume {
            use super::*;

            message! {
                /// `Volume.Source.CSIVolume.StaticProvisioning`.
                StaticProvisioning {
                    #[prost(string, required, tag = 1)] volume_id: String,
                    #[prost(message, required, tag = 2)] volume_capability: VolumeCapability,
                    #[prost(btree_map = "string, message", tag = 3)] node_stage_secrets: BTreeMap<String, Secret>,
                    #[prost(btree_map = "string, message", tag = 4)] node_publish_secrets: BTreeMap<String, Secret>,
                    #[prost(btree_map = "string, string", tag = 5)] volume_context: BTreeMap<String, String>,
                }
                /// `Volume.Source.CSIVolume.VolumeCapability`.
                VolumeCapability {
                    #[prost(message, optional, tag = 1)] block: Option<volume_capability::BlockVolume>,
                    #[prost(message, optional, tag = 2)] mount: Option<volume_capability::MountVolume>,
                    #[prost(message, required, tag = 3)] access_mode: volume_capability::AccessMode,
                }
            }

            /// Inside `Volume.Source.CSIVolume.VolumeCapability`.
            pub mod volume_capability {
                use super::*;

                message! {
                    /// `Volume.Source.CSIVolume.VolumeCapability.MountVolume`.
                    MountVolume {
                        #[prost(string, optional, tag = 1)] fs_type: Option<String>,
                        #[prost(string, repeated, tag = 2)] mount_flags: Vec<String>,
                    }
                    /// `Volume.Source.CSIVolume.VolumeCapability.AccessMode`.
                    AccessMode {
                        #[prost(enumeration(access_mode::Mode), required, tag = 1)] mode: i32,
                    }
                    /// `Volume.Source.CSIVolume.VolumeCapability.BlockVolume`.
                    BlockVolume {
                    }
                }

                /// Inside `Volume.Source.CSIVolume.VolumeCapability.AccessMode`.
                pub mod access_mode {
                    use super::*;

                    enumeration! {
                        /// `Volume.Source.CSIVolume.VolumeCapability.AccessMode.Mode`.
                        Mode {
                            Unknown = 0, "UNKNOWN";
                            SingleNodeWriter = 1, "SINGLE_NODE_WRITER";
                            SingleNodeReaderOnly = 2, "SINGLE_NODE_READER_ONLY";
                            MultiNodeReaderOnly = 3, "MULTI_NODE_READER_ONLY";
                            MultiNodeSingleWriter = 4, "MULTI_NODE_SINGLE_WRITER";
                            MultiNodeMultiWriter = 5, "MULTI_NODE_MULTI_WRITER";
                        }
                    }
                }
            }
        }

        /// Inside `Volume.Source.SandboxPath`.
        pub mod sandbox_path {
            use super::*;

            enumeration! {
                /// `Volume.Source.SandboxPath.Type`.
                Type {
                    Unknown = 0, "UNKNOWN";
                    Itself = 1, "SELF";
                    Parent = 2, "PARENT";
                }
            }
        }
    }
}
