//! An action as it may be written down: bounded, redacted, every character visible.

use std::borrow::Cow;

use agentsandbox_api::action::Action;

use crate::redact::{redact, redact_argv};
use crate::text::{CUT, visible, weighs};

/// Longest record, in bytes: two paths or a path and arguments at their longest, and the rest.
pub const RECORD_MAX: usize = 8 << 10;
/// Longest path, in bytes in JSON.
pub const PATH_MAX: usize = 2 << 10;
/// All arguments together, in bytes in JSON.
pub const ARGV_MAX: usize = 5 << 10;
/// Longest of the other texts, in bytes in JSON.
pub const TEXT_MAX: usize = 512;
/// What an argument takes besides its text: quotes and comma.
const ARGUMENT_FRAME: usize = 3;

/// The action, safe to write: its record is never longer than [`RECORD_MAX`].
#[must_use]
pub fn prepare(mut action: Action) -> Action {
    match &mut action {
        Action::Begin {
            namespace,
            sandbox,
            pod_uid,
            run_id,
            policy,
            capture: _,
        } => {
            for text in [namespace, sandbox, pod_uid, run_id, policy] {
                *text = visible(text, TEXT_MAX).into_owned();
            }
        }
        Action::Exec { path, argv, cut, .. } => {
            let (short_path, path_cut) = short(path, PATH_MAX);
            let (short_argv, argv_cut) = arguments(argv);
            (*path, *argv) = (short_path, short_argv);
            *cut |= path_cut || argv_cut;
        }
        Action::Foreign { path, argv, .. } => {
            *path = short(path, PATH_MAX).0;
            *argv = arguments(argv).0;
        }
        Action::Open { path, .. }
        | Action::Remove { path, .. }
        | Action::MakeFolder { path, .. }
        | Action::Connect { address: path, .. } => *path = short(path, PATH_MAX).0,
        Action::Rename { path, to, .. } => {
            *path = short(path, PATH_MAX).0;
            *to = short(to, PATH_MAX).0;
        }
        Action::Change { path, sha256, .. } => {
            *path = short(path, PATH_MAX).0;
            *sha256 = sha256.take().map(|sha| visible(&sha, 64).into_owned());
        }
        Action::Changes { incomplete, .. } => {
            *incomplete = incomplete.take().map(|why| visible(&why, TEXT_MAX).into_owned());
        }
        Action::Refused { call, .. } => *call = visible(call, TEXT_MAX).into_owned(),
        Action::Step { argv, .. } => *argv = arguments(argv).0,
        Action::StepRefused { argv, reason } => {
            *argv = arguments(argv).0;
            *reason = visible(reason, TEXT_MAX).into_owned();
        }
        Action::Warning { resource, .. } => *resource = visible(resource, TEXT_MAX).into_owned(),
        Action::End { .. }
        | Action::Exit { .. }
        | Action::StepEnd { .. }
        | Action::Signal { .. }
        | Action::Suppressed { .. } => {}
    }
    action
}

/// A text without secrets, every character visible, and whether it was longer than `max`.
fn short(text: &str, max: usize) -> (String, bool) {
    let redacted = redact(bounded(text, max));
    let shown = visible(&redacted, max);
    let cut = text.len() > bounded(text, max).len() || shown.len() < redacted.len();
    (shown.into_owned(), cut)
}

/// No more of a text is looked at than can be written, and a little, so that [`visible`] marks it as cut.
fn bounded(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max + CUT.len_utf8() + 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Arguments without secrets; those for which there is no room are left out, and [`CUT`] stands for them.
fn arguments(argv: &[String]) -> (Vec<String>, bool) {
    let frame = CUT.len_utf8() + ARGUMENT_FRAME;
    let mut room = ARGV_MAX - frame;
    let looked_at: Vec<String> = argv
        .iter()
        .take(ARGV_MAX / ARGUMENT_FRAME)
        .map(|argument| bounded(argument, ARGV_MAX).to_owned())
        .collect();
    let (mut kept, mut cut) = (Vec::new(), looked_at.len() < argv.len());
    for argument in redact_argv(&looked_at) {
        let shown: Cow<'_, str> = visible(&argument, ARGV_MAX);
        let weight = weighs(&shown) + ARGUMENT_FRAME;
        if weight > room {
            // What is left still shows how it begins.
            if room > frame + ARGUMENT_FRAME {
                kept.push(visible(&argument, room - ARGUMENT_FRAME).into_owned());
            }
            cut = true;
            break;
        }
        room -= weight;
        kept.push(shown.into_owned());
    }
    if cut {
        kept.push(CUT.to_string());
    }
    (kept, cut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Chain;
    use crate::time::Time;
    use agentsandbox_api::action::{Basis, Capture, Change};
    use agentsandbox_api::reason::Reason;
    use proptest::prelude::*;

    fn exec(argv: &[&str]) -> Action {
        Action::Exec {
            basis: Basis::Claimed,
            pid: 7,
            parent: Some(1),
            path: "/bin/sh".to_owned(),
            argv: argv.iter().map(|argument| (*argument).to_owned()).collect(),
            cut: false,
        }
    }

    #[test]
    fn what_fits_stays_and_secrets_go() {
        assert_eq!(prepare(exec(&["sh", "-c", "ls"])), exec(&["sh", "-c", "ls"]));
        assert_eq!(
            prepare(exec(&["login", "--password", "x\u{1b}[2J"])),
            exec(&["login", "--password", "[redacted]"])
        );
    }

    #[test]
    fn too_many_and_too_long_arguments_are_marked() {
        let long = "x".repeat(ARGV_MAX);
        let Action::Exec { argv, cut, .. } = prepare(exec(&["a", &long, "b"])) else {
            panic!("another action");
        };
        assert!(cut);
        assert_eq!((argv.len(), argv[2].as_str()), (3, "…"));
        assert!(argv[1].ends_with('…') && argv[1].len() > ARGV_MAX - 100);
        let many = vec!["y"; 10_000];
        let Action::Exec { argv, cut, .. } = prepare(exec(&many)) else {
            panic!("another action");
        };
        assert!(cut && argv.len() > 1000);
    }

    fn actions(text: &str, argv: &[String]) -> Vec<Action> {
        let (path, argv) = (text.to_owned(), argv.to_vec());
        vec![
            Action::Begin {
                namespace: path.clone(),
                sandbox: path.clone(),
                pod_uid: path.clone(),
                run_id: path.clone(),
                policy: path.clone(),
                capture: Capture::default(),
            },
            Action::End {
                reason: Reason::NonZeroExit,
                exit_code: Some(i32::MIN),
            },
            Action::Exec {
                basis: Basis::Observed,
                pid: u32::MAX,
                parent: Some(u32::MAX),
                path: path.clone(),
                argv: argv.clone(),
                cut: false,
            },
            Action::Foreign {
                pid: u32::MAX,
                path: path.clone(),
                argv: argv.clone(),
            },
            Action::Rename {
                pid: u32::MAX,
                path: path.clone(),
                to: path.clone(),
            },
            Action::Change {
                change: Change::Modified,
                path: path.clone(),
                size: Some(u64::MAX),
                mode: Some(u32::MAX),
                sha256: Some(path.clone()),
            },
            Action::Changes {
                files: 1,
                unlisted: 1,
                incomplete: Some(path.clone()),
            },
            Action::Connect {
                pid: 1,
                address: path.clone(),
                port: Some(1),
                transport: None,
            },
            Action::StepRefused { argv, reason: path },
        ]
    }

    proptest! {
        // Each case is every kind of record, with long texts.
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
        #[test]
        fn whatever_the_texts_a_record_is_bounded_and_plain(
            text in any::<String>(), noise in "[\\PC\"\\\\\u{0}-\u{20}\u{202e}]{0,4000}", many in proptest::collection::vec("[\"\\\\\u{1}a\u{fc}]{0,200}", 0..400),
        ) {
            for text in [&text, &noise] {
                for action in actions(text, &many) {
                    let mut chain = Chain::default();
                    let class = action.class();
                    let _ = chain.line(Time(0), class, &());
                    let line = chain.line(Time(u64::MAX), class, &prepare(action));
                    prop_assert!(line.len() <= RECORD_MAX, "{}", line.len());
                    prop_assert!(!line.chars().any(char::is_control));
                    let turned = line.contains('\u{202e}');
                    prop_assert!(!turned);
                    prop_assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok());
                }
            }
        }
    }
}
