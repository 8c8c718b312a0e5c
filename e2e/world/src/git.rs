//! A git server with one repository, `/git/demo.git`, by git's own CGI program (git-http-backend(1)). It takes pushes,
//! so that a refused one is the gateway's doing.

use std::path::Path;
use std::process::Stdio;

use hyper::Request;
use hyper::body::Incoming;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::World;
use crate::body::{Response, answer, full, text, with_header};
use crate::server::collect;

/// Why the repository could not be made.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What the repository holds.
const FILES: [(&str, &str); 2] = [
    ("README.md", "# demo\n\nA repository of the outside world.\n"),
    ("hello.py", "print('hello from a clone')\n"),
];

/// Makes the repository anew.
pub fn create(folder: &Path) -> Result<(), Error> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    let (work, bare) = (folder.join("work"), folder.join("demo.git"));
    std::fs::create_dir_all(&work)?;
    for (name, content) in FILES {
        std::fs::write(work.join(name), content)?;
    }
    let (work, bare) = (work.to_string_lossy(), bare.to_string_lossy());
    git(&["-C", &work, "init", "-q", "-b", "main"])?;
    git(&["-C", &work, "add", "."])?;
    git(&["-C", &work, "commit", "-q", "-m", "first"])?;
    git(&["clone", "-q", "--bare", &work, &bare])?;
    git(&["-C", &bare, "config", "http.receivepack", "true"])
}

fn git(arguments: &[&str]) -> Result<(), Error> {
    let output = std::process::Command::new("git")
        .args(arguments)
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .envs([
            ("GIT_AUTHOR_NAME", "Outside"),
            ("GIT_AUTHOR_EMAIL", "outside@example.test"),
        ])
        .envs([
            ("GIT_COMMITTER_NAME", "Outside"),
            ("GIT_COMMITTER_EMAIL", "outside@example.test"),
        ])
        .envs([
            ("GIT_AUTHOR_DATE", "2026-01-01T00:00:00Z"),
            ("GIT_COMMITTER_DATE", "2026-01-01T00:00:00Z"),
        ])
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "git {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    )
    .into())
}

/// Answers one request by the CGI program.
pub async fn serve(world: &World, request: Request<Incoming>) -> Response {
    let (parts, body) = request.into_parts();
    let Some(body) = collect(body).await else {
        return text(413, "too large");
    };
    let header = |name: &str| {
        let value = parts.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let path = parts.uri.path().strip_prefix("/git").unwrap_or_default();
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &world.git)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("PATH_INFO", path)
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("REMOTE_USER", "outside")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let Ok(mut child) = command.spawn() else {
        return text(500, "git is missing");
    };
    let Some(mut input) = child.stdin.take() else {
        return text(500, "git takes no input");
    };
    let feeding = async move {
        let _ = input.write_all(&body).await;
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), feeding);
    output.map_or_else(|_| text(500, "git failed"), |output| response(&output.stdout))
}

/// Turns what a CGI program printed (RFC 3875) into an answer.
fn response(printed: &[u8]) -> Response {
    let Some(end) = printed.windows(4).position(|window| window == b"\r\n\r\n") else {
        return text(502, "git answered without headers");
    };
    let head = String::from_utf8_lossy(&printed[..end]);
    let (mut status, mut content_type) = (200, "application/octet-stream".to_owned());
    for line in head.lines() {
        match line.split_once(": ") {
            Some(("Status", value)) => {
                status = value.get(..3).and_then(|code| code.parse().ok()).unwrap_or(500);
            }
            Some(("Content-Type", value)) => value.clone_into(&mut content_type),
            _ => {}
        }
    }
    let body = printed[end + 4..].to_vec();
    with_header(
        answer(status, &content_type, full(body)),
        "cache-control",
        "no-cache",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cgi_program_printed_becomes_an_answer() {
        let found = response(b"Status: 403 Forbidden\r\nContent-Type: text/x\r\n\r\nno");
        assert_eq!(found.status(), 403);
        assert_eq!(found.headers()["content-type"], "text/x");
        assert_eq!(response(b"nothing").status(), 502);
    }
}
