//! What the kernel tells of a process in `/proc/PID/stat`, by the fields of proc_pid_stat(5).

use std::fs::File;
use std::io::Read;

/// Longer than the kernel ever makes it.
const LENGTH_MAX: usize = 2048;

/// A process, as it was at one moment.
#[derive(Debug, PartialEq, Eq)]
pub struct Stat {
    /// 0 if it is outside of this pid namespace.
    pub parent: u32,
    pub group: u32,
    pub session: u32,
    pub layout: Layout,
}

/// Where the parts of a program lie in the memory of its process. The kernel chooses these places anew with each exec.
/// Zeros if it does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Where its code begins and ends.
    code: (u64, u64),
    stack: u64,
    /// Where its arguments begin and end.
    pub arguments: (u64, u64),
}

/// Numbers of all processes of this pid namespace that there are just now.
pub fn processes() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

impl Stat {
    /// Of a process, if there is such a one.
    pub fn of(pid: u32) -> Option<Self> {
        // The kernel gives it all at once.
        let mut bytes = [0; LENGTH_MAX];
        let length = File::open(format!("/proc/{pid}/stat"))
            .ok()?
            .read(&mut bytes)
            .ok()?;
        Self::parse(&bytes[..length])
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        // The program's name is in parentheses and may hold anything.
        let name_end = bytes.iter().rposition(|byte| *byte == b')')?;
        // The first of the others is the third of all.
        let mut fields = std::str::from_utf8(&bytes[name_end + 1..])
            .ok()?
            .split_ascii_whitespace()
            .skip(1);
        let mut number = || fields.next()?.parse().ok();
        let (parent, group, session) = (number()?, number()?, number()?);
        let mut address = |skipped| {
            fields
                .nth(skipped)
                .and_then(|field| field.parse().ok())
                .unwrap_or(0)
        };
        Some(Self {
            parent,
            group,
            session,
            // The fields 26 to 28, 48 and 49, after the sixth.
            layout: Layout {
                code: (address(19), address(0)),
                stack: address(0),
                arguments: (address(19), address(0)),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let text = |name: &str| format!("7 ({name}) S 3 4 5 {0}10 20 30 {0}100 164 0", "0 ".repeat(19));
        for name in ["sh", "a) S 1 2 3 (b", "", ") "] {
            let found = Stat {
                parent: 3,
                group: 4,
                session: 5,
                layout: Layout {
                    code: (10, 20),
                    stack: 30,
                    arguments: (100, 164),
                },
            };
            assert_eq!(Stat::parse(text(name).as_bytes()), Some(found), "{name}");
        }
    }

    #[test]
    fn what_is_missing_is_not_made_up() {
        assert_eq!(Stat::parse(b""), None);
        assert_eq!(Stat::parse(b"7 no parentheses"), None);
        assert_eq!(Stat::parse(b"7 (sh) S 3"), None);
        assert_eq!(Stat::parse(b"7 (sh) S 3 7 7").unwrap().layout, Layout::default());
    }

    #[test]
    fn a_process_finds_itself() {
        let parent = std::os::unix::process::parent_id();
        assert_eq!(Stat::of(std::process::id()).unwrap().parent, parent);
    }
}
