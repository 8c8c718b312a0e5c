//! What the supervisor sees of its own confinement.

use agentsandbox_api::run::Evidence;

use crate::sys;

/// Writable places that every runtime provides: memory counted as the container's, or the kubelet's own small file.
const KNOWN_WRITABLE: [&str; 3] = ["/dev/shm", "/dev/mqueue", "/dev/termination-log"];
/// Files that the kubelet or the runtime mounts one by one.
const KNOWN_FILES: [&str; 3] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// Gathers the evidence.
pub fn gather() -> Evidence {
    let status = read("/proc/self/status");
    let capabilities = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
        .iter()
        .filter_map(|name| u64::from_str_radix(field(&status, name)?, 16).ok())
        .fold(0, |all, set| all | set);
    Evidence {
        kernel_release: sys::kernel_release(),
        boot_id: read("/proc/sys/kernel/random/boot_id").trim().to_owned(),
        uid: sys::uid(),
        capabilities,
        no_new_privs: field(&status, "NoNewPrivs") == Some("1"),
        seccomp: field(&status, "Seccomp").and_then(|mode| mode.parse().ok()),
        writable_mounts: mounts(&read("/proc/self/mountinfo"))
            .into_iter()
            .filter(|path| !is_known(path) && sys::may_write(path))
            .collect(),
        service_account_token: std::path::Path::new("/var/run/secrets/kubernetes.io/serviceaccount/token")
            .exists(),
    }
}

fn is_known(path: &str) -> bool {
    KNOWN_WRITABLE.contains(&path)
        || KNOWN_FILES.contains(&path)
        || path == "/dev"
        || ["/proc", "/sys", "/dev/pts"].iter().any(|folder| {
            path == *folder
                || path
                    .strip_prefix(folder)
                    .is_some_and(|rest| rest.starts_with('/'))
        })
}

/// Mount points that are not read-only, from the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
fn mounts(mountinfo: &str) -> Vec<String> {
    let mut writable = Vec::new();
    for line in mountinfo.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (Some(path), Some(options)) = (fields.get(4), fields.get(5)) else {
            continue;
        };
        let super_options = line
            .split_once(" - ")
            .and_then(|(_, rest)| rest.split(' ').nth(2))
            .unwrap_or_default();
        let read_only = |options: &str| options.split(',').any(|option| option == "ro");
        if !read_only(options) && !read_only(super_options) {
            writable.push(unescape(path));
        }
    }
    writable
}

/// Mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(path: &str) -> String {
    let mut plain = String::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let escaped = after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(byte) = escaped {
            plain.push(char::from(byte));
            rest = &after[3..];
        } else {
            plain.push('\\');
            rest = after;
        }
    }
    plain + rest
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_only_mounts_of_both_kinds_are_told_from_writable_ones() {
        let text = "\
100 99 0:1 / / ro,relatime - overlay overlay rw,lowerdir=/a
101 100 0:2 / /workspace rw,relatime - ext4 /dev/vda rw
102 100 0:3 / /.sandbox ro,relatime - ext4 /dev/vda rw
103 100 0:4 / /with\\040space rw - tmpfs tmpfs ro,size=1k
104 100 0:4 / /data\\040x rw shared:1 - tmpfs tmpfs rw";
        assert_eq!(mounts(text), ["/workspace", "/data x"]);
    }

    #[test]
    fn only_the_runtimes_own_places_are_known() {
        for path in ["/proc/sys", "/dev/shm", "/etc/hosts", "/sys/fs/cgroup/memory"] {
            assert!(is_known(path), "{path}");
        }
        for path in ["/", "/data", "/procx", "/etc", "/var/lib/x"] {
            assert!(!is_known(path), "{path}");
        }
    }
}
