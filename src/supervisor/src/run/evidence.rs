//! What the supervisor sees of its own confinement.

use agentsandbox_api::run::Evidence;

use crate::sys;

/// Folders that every runtime provides, in memory that counts as the container's or in the kernel. An image may
/// declare a volume at the same path: that is a folder of the host, and has another file system.
const RUNTIME_FOLDERS: [&str; 6] = ["/dev", "/dev/shm", "/dev/mqueue", "/dev/pts", "/proc", "/sys"];
/// The file systems of these.
const RUNTIME_FILE_SYSTEMS: [&str; 9] = [
    "tmpfs", "dev", "devtmpfs", "mqueue", "devpts", "proc", "sysfs", "cgroup", "cgroup2",
];
/// Files that the kubelet or the runtime mounts one by one.
const RUNTIME_FILES: [&str; 4] = [
    "/dev/termination-log",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
];

/// A mount that is not read-only.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    path: String,
    file_system: String,
}

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
            .filter(|mount| !mount.is_of_runtime(|path| std::path::Path::new(path).is_file()))
            .map(|mount| mount.path)
            .collect(),
        service_account_token: std::path::Path::new("/var/run/secrets/kubernetes.io/serviceaccount/token")
            .exists(),
    }
}

impl Mount {
    /// Whether every container has it. A folder counts as writable even if only something below it may be written:
    /// its top says nothing about that.
    fn is_of_runtime(&self, is_file: impl Fn(&str) -> bool) -> bool {
        if RUNTIME_FILES.contains(&self.path.as_str()) {
            return is_file(&self.path);
        }
        let at_or_below = |folder: &&str| {
            self.path
                .strip_prefix(*folder)
                .is_some_and(|rest| rest.is_empty() || *folder != "/dev" && rest.starts_with('/'))
        };
        RUNTIME_FOLDERS.iter().any(at_or_below) && RUNTIME_FILE_SYSTEMS.contains(&self.file_system.as_str())
    }
}

/// Mount points that are not read-only, from the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
fn mounts(mountinfo: &str) -> Vec<Mount> {
    let mut writable = Vec::new();
    for line in mountinfo.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (Some(path), Some(options)) = (fields.get(4), fields.get(5)) else {
            continue;
        };
        let mut source = line
            .split_once(" - ")
            .map(|(_, rest)| rest.split(' '))
            .into_iter()
            .flatten();
        let file_system = source.next().unwrap_or_default();
        let super_options = source.nth(1).unwrap_or_default();
        let read_only = |options: &str| options.split(',').any(|option| option == "ro");
        if !read_only(options) && !read_only(super_options) {
            writable.push(Mount {
                path: unescape(path),
                file_system: file_system.to_owned(),
            });
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
        let paths: Vec<String> = mounts(text).into_iter().map(|mount| mount.path).collect();
        assert_eq!(paths, ["/workspace", "/data x"]);
        assert_eq!(mounts(text)[0].file_system, "ext4");
    }

    #[test]
    fn only_the_runtimes_own_places_are_known() {
        let known = |path: &str, file_system: &str, file: bool| {
            let (path, file_system) = (path.to_owned(), file_system.to_owned());
            Mount { path, file_system }.is_of_runtime(|_| file)
        };
        assert!(known("/proc/sys", "proc", false));
        assert!(known("/dev", "tmpfs", false));
        assert!(known("/dev/shm", "tmpfs", false));
        assert!(known("/sys/fs/cgroup/memory", "cgroup", false));
        assert!(known("/etc/hosts", "ext4", true));
        for path in ["/", "/data", "/procx", "/etc", "/var/lib/x", "/dev/x"] {
            assert!(!known(path, "tmpfs", false), "{path}");
        }
        // Volumes of an image, where everybody expects something else.
        for path in [
            "/dev/shm",
            "/dev/mqueue",
            "/etc/hosts",
            "/sys/x",
            "/dev/termination-log",
        ] {
            assert!(!known(path, "ext4", false), "{path}");
        }
    }
}
