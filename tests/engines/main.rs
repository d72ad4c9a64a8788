//! Container engines with `sampan-oci` as their runtime, driven as their users drive them.
//!
//! Each test has an engine of its own on a [`machine::Machine`] of its own. Where the outcome is not ours to choose, the
//! same is done with Debian's runc and must come out the same. Needs root and Debian's `containerd`, `conmon`,
//! `catatonit`, `podman`, `runc`, `skopeo`, `bsdutils`, `iproute2`, `util-linux`.

mod argv;
mod containerd;
mod machine;
#[path = "../pod_support/mod.rs"]
mod pod_support;
mod podman;

/// Debian's runc, what the engines run on otherwise.
const RUNC: &str = "/usr/sbin/runc";

/// Prints, one a line, what the runtime makes of a container: all of it must be the same under any runtime.
const INSIDE: &str = r#"
    grep -E '^(Uid|Gid|Groups|Umask|Cap|NoNewPrivs|Seccomp:)' /proc/self/status
    sed 's/^/limit /' /proc/self/limits
    # overlays name the engine's folders; which order mounts of one level have is nobody's concern
    awk '{ if ($3 == "overlay") $4 = "…"; print "mount", $2, $3, $4 }' /proc/self/mounts | sort
    awk '{ print "propagation", $5, ($7 == "-" ? "private" : $7) }' /proc/self/mountinfo | sed 's/:[0-9]*$//' | sort
    ls -lnR /dev | awk '/^[bcdl]/ { print "dev", $1, $3, $4, ($1 ~ /^[bc]/ ? $5 $6 : ""), $NF }' | sort
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
