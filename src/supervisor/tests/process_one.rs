//! The program itself, where it must not work.
#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn who_is_not_process_one_neither_records_nor_runs() {
    for part in ["record", "run"] {
        let refused = Command::new(env!("CARGO_BIN_EXE_sandbox-supervisor"))
            .arg(part)
            .output()
            .unwrap();
        assert_eq!(refused.status.code(), Some(1), "{part}");
        let error = String::from_utf8(refused.stderr).unwrap();
        assert!(error.contains("must be process 1"), "{part}: {error}");
    }
}
