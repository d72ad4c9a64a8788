//! Container engines with `sampan-oci` as their runtime, driven as their users drive them.
//!
//! Each test has an engine of its own on a [`machine::Machine`] of its own. Where the outcome is not ours to choose, the
//! same is done with Debian's runc and must come out the same. Needs root and Debian's `containerd`, `conmon`,
//! `catatonit`, `munge`, `podman`, `runc`, `skopeo`, `slurm-wlm`, `umoci`, `bsdutils`, `iproute2`, `util-linux`.

mod argv;
mod conformance;
mod containerd;
mod machine;
#[path = "../pod_support/mod.rs"]
mod pod_support;

mod podman;
mod podman_networks;
mod services;
mod slurm;
#[path = "../typed/mod.rs"]
mod typed;

use pod_support::Ended;

/// Debian's runc, what the engines run on otherwise.
const RUNC: &str = "/usr/sbin/runc";

/// Prints, one a line, what the runtime makes of a container: all of it must be the same under any runtime.
const INSIDE: &str = r#"
    grep -E '^(Uid|Gid|Groups|Umask|Cap|NoNewPrivs|Seccomp:)' /proc/self/status
    sed 's/^/limit /' /proc/self/limits
    # overlays name the engine's folders; which order mounts of one level have is nobody's concern
    # what masks a path is the runtime's choice; of v1 runc leaves the unified hierarchy out and the folder above writable
    awk '
        $2 == "/sys/fs/cgroup" || $2 == "/sys/fs/cgroup/unified" { next }
        $3 == "overlay" { $4 = "…" }
        $2 ~ "^/(proc|sys)/(keys|kcore|timer_list|latency_stats|timer_stats|sched_debug|scsi|acpi|firmware|dev/block|fs/selinux)" {
            $3 = "mask"; $4 = ""
        }
        { print "mount", $2, $3, $4 }
    ' /proc/self/mounts | sort
    grep -v ' /sys/fs/cgroup/unified ' /proc/self/mountinfo |
        awk '{ print "propagation", $5, ($7 == "-" ? "private" : $7) }' | sed 's/:[0-9]*$//' | sort
    # /dev/mqueue belongs to who made the namespace
    ls -lnR /dev | awk '/^[bcdl]/ && $NF != "mqueue" { print "dev", $1, $3, $4, ($1 ~ /^[bc]/ ? $5 $6 : ""), $NF }' | sort
    env | grep -v '^HOSTNAME=' | sort | sed 's/^/env /'
    for file in /proc/kcore /proc/keys /proc/timer_list /proc/acpi /proc/scsi /sys/firmware; do
        [ ! -e $file ] || stat -c 'masked %n %F %t %T' $file
    done
    for file in /proc/sys/kernel/hostname /proc/sysrq-trigger /proc/bus /proc/fs /proc/irq; do
        [ ! -e $file ] || { [ -w $file ] && echo "writable $file" || echo "read-only $file"; }
    done
    echo "oom $(cat /proc/self/oom_score_adj) ping $(cat /proc/sys/net/ipv4/ping_group_range) cwd $PWD"
    for kind in cgroup ipc mnt net pid user uts; do
        [ "$(readlink /proc/self/ns/$kind)" = "$(readlink /proc/1/ns/$kind)" ] || echo "foreign $kind"
    done
    sed 's/[0-9a-f]\{64\}/ID/g; s/^/cgroup /' /proc/self/cgroup
    ls /proc/self/fd | sed 's/^/descriptor /'
    tty || true
"#;

/// What our runtime and runc made differently, unless it is nothing.
fn difference(ours: &Ended, theirs: &Ended) -> Option<String> {
    if (ours.code, theirs.code) != (0, 0) {
        let said = |ended: &Ended| format!("{} {}", ended.code, ended.stderr);
        return Some(format!("ours {}, runc's {}", said(ours), said(theirs)));
    }
    let (ours, theirs) = (ours.out(), theirs.out());
    let only = |all: &str, without: &str| -> Vec<String> {
        let without: Vec<&str> = without.lines().collect();
        let all = all.lines().filter(|line| !without.contains(line));
        all.map(str::to_owned).collect()
    };
    let (more, less) = (only(&ours, &theirs), only(&theirs, &ours));
    (!more.is_empty() || !less.is_empty())
        .then(|| format!("only ours {more:#?}, only runc's {less:#?}"))
}
