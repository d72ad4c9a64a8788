//! Specifications that nobody would write: whatever they hold, the answer is a plan or an error, never a panic or a long wait.

use super::*;
use crate::container::{parse_process, parse_spec};
use serde_json::{Value, json};

/// xorshift64*: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit.max(1)
    }
}

/// Says something of every part.
fn whole() -> Value {
    json!({
        "ociVersion": "1.3.0",
        "process": {
            "terminal": true, "consoleSize": {"height": 25, "width": 80},
            "user": {"uid": 1, "gid": 1, "umask": 63, "additionalGids": [5, 5]},
            "args": ["sh", "-c", "true"], "env": ["PATH=/bin", "HOME=/"], "cwd": "/",
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"],
                "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true, "oomScoreAdj": 100, "apparmorProfile": "unconfined",
            "scheduler": {"policy": "SCHED_OTHER", "nice": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
            "execCPUAffinity": {"initial": "0-1", "final": "0"},
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "h", "domainname": "d",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "rro", "idmap", "rprivate"],
                "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}], "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}]},
            {"destination": "/tmp", "type": "tmpfs", "options": ["tmpcopyup", "size=1m", "mode=1777"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro"]},
        ],
        "hooks": {"poststop": [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 5}]},
        "annotations": {"a": "b", "io.sampan.init": "true"},
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "network"}, {"type": "uts"}, {"type": "ipc"}, {"type": "user"},
                {"type": "cgroup"}, {"type": "time"}],
            "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 65536}],
            "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 65536}],
            "timeOffsets": {"monotonic": {"secs": 1, "nanosecs": 2}},
            "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0}],
            "netDevices": {"eth9": {"name": "eth0"}},
            "cgroupsPath": "/a/b",
            "resources": {
                "memory": {"limit": 1048576, "swap": 2097152, "reservation": 1048576, "swappiness": 10},
                "cpu": {"shares": 1024, "quota": 50000, "period": 100000, "cpus": "0-1", "mems": "0", "idle": 0, "burst": 10},
                "pids": {"limit": 10}, "blockIO": {"weight": 100, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 10}]},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 4096}], "network": {"classID": 1},
                "rdma": {"mlx5_1": {"hcaHandles": 3}}, "unified": {"memory.high": "max"},
                "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"}],
            },
            "rootfsPropagation": "rslave", "sysctl": {"net.ipv4.ip_forward": "1", "kernel.msgmax": "1"},
            "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"],
            "personality": {"domain": "LINUX32", "flags": []},
            "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG"], "syscalls": [{"names": ["read", "nosuch"], "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}]}]},
        },
    })
}

/// Values that reach far.
fn odd(random: &mut Random) -> Value {
    let all = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(1e300),
        json!(""),
        json!("/"),
        json!("../../.."),
        json!("a\0b"),
        json!("0-4294967295"),
        json!("9".repeat(40)),
        json!("x".repeat(5000)),
        json!("ü,:=;\n"),
        json!([]),
        json!({}),
        json!([[[]]]),
    ];
    all[random.below(all.len())].clone()
}

/// Changes one place of a tree.
fn change(value: &mut Value, random: &mut Random) {
    let deeper = random.below(8) != 0;
    match value {
        Value::Object(map) if deeper && !map.is_empty() => {
            let Some(key) = map.keys().nth(random.below(map.len())).cloned() else {
                return;
            };
            match random.below(12) {
                0 => drop(map.remove(&key)),
                1 => drop(map.insert("x".to_owned(), odd(random))),
                _ => change(&mut map[&key], random),
            }
        }
        Value::Array(list) if deeper && !list.is_empty() => {
            let index = random.below(list.len());
            match random.below(8) {
                0 => drop(list.remove(index)),
                1 => list.push(list[index].clone()),
                _ => change(&mut list[index], random),
            }
        }
        other => *other = odd(random),
    }
}

#[test]
fn any_specification_has_an_answer() {
    let whole = whole();
    let request = super::tests::request();
    let (mut plans, mut errors) = (0, 0);
    for seed in 1..=4000 {
        let random = &mut Random(seed);
        let mut value = whole.clone();
        for _ in 0..=random.below(3) {
            change(&mut value, random);
        }
        let mut text = serde_json::to_vec(&value).unwrap();
        if seed % 4 == 0 {
            let at = random.below(text.len());
            text[at] = random.below(256) as u8;
        }
        let host = Host {
            user_namespace: seed % 3 == 0,
            selinux: false,
            shared: 0,
        };
        let _ = parse_process(&text);
        match parse_spec(&text).and_then(|spec| container(&spec, &request, host)) {
            Ok(plan) => {
                serde_json::to_string(&plan).unwrap();
                plans += 1;
            }
            Err(error) => {
                assert!(!error.is_empty(), "seed {seed}");
                errors += 1;
            }
        }
    }
    // otherwise nothing behind the first check was reached
    assert!(
        plans > 300 && errors > 300,
        "{plans} plans, {errors} errors"
    );
}
