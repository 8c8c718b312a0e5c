//! Hands the supervisor over to the agent container, through a folder that both containers mount.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use agentsandbox_api::isolation::is_gvisor;

/// Copies this program to `directory/sandbox-supervisor`.
///
/// Mode 0711: the agent's user may execute it and not read it, which makes the kernel mark the process
/// non-dumpable from its first instruction. gVisor refuses to execute what may not be read; there the supervisor
/// becomes non-dumpable by its own first call, still before any user code exists. The copy appears under its name
/// only when it is whole.
pub fn install(directory: &Path) -> io::Result<()> {
    let partial = directory.join(".sandbox-supervisor.partial");
    let mut source = File::open("/proc/self/exe")?;
    let mut target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o700)
        .open(&partial)?;
    io::copy(&mut source, &mut target)?;
    let mode = if is_gvisor(&crate::sys::kernel_release()) {
        0o755
    } else {
        0o711
    };
    target.set_permissions(std::fs::Permissions::from_mode(mode))?;
    target.sync_all()?;
    drop(target);
    std::fs::rename(&partial, directory.join("sandbox-supervisor"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_is_whole_and_only_executable() {
        let directory = std::env::temp_dir().join(format!("install-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        install(&directory).unwrap();
        let copy = directory.join("sandbox-supervisor");
        let meta = std::fs::metadata(&copy).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o711);
        assert_eq!(meta.len(), std::fs::metadata("/proc/self/exe").unwrap().len());
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
