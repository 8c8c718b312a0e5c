//! A kernel that can't capture: it refuses what the supervisor captures by, which then starts commands all the same, with
//! everything else that it does for them.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::Error;

/// Becomes the supervisor, without a listener of system calls and without a tracer.
pub fn supervise(supervisor: &Path) -> Result<(), Error> {
    // The flags are the second argument of seccomp(2).
    let listens = SeccompCondition::new(
        1,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(libc::SECCOMP_FILTER_FLAG_NEW_LISTENER),
        libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
    )?;
    let refused = BTreeMap::from([
        (libc::SYS_seccomp, vec![SeccompRule::new(vec![listens])?]),
        (libc::SYS_ptrace, Vec::new()),
    ]);
    let program: BpfProgram = SeccompFilter::new(
        refused,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        std::env::consts::ARCH.try_into()?,
    )?
    .try_into()?;
    seccompiler::apply_filter(&program)?;
    Err(Command::new(supervisor).arg("run").exec().into())
}
