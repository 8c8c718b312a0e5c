//! Writes the run's files, following no symbolic link: a claim may hold what an earlier run left there.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;

use agentsandbox_api::names::{PATH_TMP, PATH_WORKSPACE};
use agentsandbox_api::run::FileSpec;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::sys::Folder;

/// Writes all files; the error names the file.
pub fn write_all(files: &[FileSpec]) -> Result<(), String> {
    files
        .iter()
        .try_for_each(|file| write(file).map_err(|error| format!("file {}: {error}", file.path)))
}

/// Makes a working directory, if it lies in a writable folder.
pub fn make_working_dir(path: &str) -> Result<(), String> {
    let Some((root, parts)) = split(path) else {
        return Ok(());
    };
    descend(root, &parts)
        .map(|_| ())
        .map_err(|error| format!("workingDir {path}: {error}"))
}

fn write(file: &FileSpec) -> io::Result<()> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    let content = BASE64
        .decode(&file.content)
        .map_err(|_| invalid("the content is not base64"))?;
    let (root, mut parts) = split(&file.path).ok_or_else(|| invalid("not below a writable folder"))?;
    let name = parts.pop().ok_or_else(|| invalid("not the name of a file"))?;
    let mut target = descend(root, &parts)?.create(name, file.mode)?;
    target.write_all(&content)?;
    // The mask must not take away what the spec grants.
    target.set_permissions(std::fs::Permissions::from_mode(file.mode & 0o777))
}

fn descend(root: &str, parts: &[&str]) -> io::Result<Folder> {
    parts
        .iter()
        .try_fold(Folder::open(root)?, |folder, part| folder.enter(part))
}

/// The writable folder that a path lies in, and the parts below it; `None` if it leaves it.
fn split(path: &str) -> Option<(&'static str, Vec<&str>)> {
    let below = |root: &'static str| {
        let rest = path.strip_prefix(root)?;
        (rest.is_empty() || rest.starts_with('/')).then_some((root, rest))
    };
    let (root, rest) = if path.starts_with('/') {
        below(PATH_WORKSPACE).or_else(|| below(PATH_TMP))?
    } else {
        (PATH_WORKSPACE, path)
    };
    let parts: Vec<&str> = rest
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    (!parts.contains(&"..")).then_some((root, parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_a_writable_folder() {
        assert_eq!(split("src/main.py"), Some(("/workspace", vec!["src", "main.py"])));
        assert_eq!(split("/tmp/x"), Some(("/tmp", vec!["x"])));
        assert_eq!(split("/workspace"), Some(("/workspace", vec![])));
        for path in ["/etc/x", "../x", "/workspace/../etc/x", "/tmpx", "a/../../b"] {
            assert_eq!(split(path), None, "{path}");
        }
    }
}
