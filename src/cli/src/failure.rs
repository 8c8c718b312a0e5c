//! Why a command could not be carried out, and what to do next.

use agentsandbox_client::Error;

use crate::term::shown;

/// The answer is no.
pub const NO: u8 = 1;
/// The command could not be carried out.
pub const FAILED: u8 = 2;
/// What was waited for did not come in time, as of `timeout`.
pub const TIMED_OUT: u8 = 124;
/// Ctrl-C, or a run that was stopped: 128 + SIGINT.
pub const INTERRUPTED: u8 = 130;
/// Nobody reads standard output any more: 128 + SIGPIPE.
pub const UNREAD: u8 = 141;
/// There is no exit code of a command to pass on: it never started, or its sandbox was lost.
pub const NO_EXIT_CODE: u8 = 125;

/// Why a command could not be carried out, and what to do next.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong.
    pub message: String,
    /// What to do.
    pub next: Option<String>,
    /// The exit code.
    pub code: u8,
}

impl Failure {
    /// A failure that says all by itself.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            next: None,
            code: FAILED,
        }
    }

    /// With what to do next.
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// With another exit code.
    pub fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// Of a command that passes on the exit code of another.
    pub fn without_exit_code(self) -> Self {
        match self.code {
            FAILED => self.code(NO_EXIT_CODE),
            _ => self,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        match &self.next {
            Some(next) => write!(f, "\nnext:  {next}"),
            None => Ok(()),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // An error may quote what a sandbox said.
        let message = match &error {
            Error::Kube(kube::Error::Api(status)) => status.message.clone(),
            other => other.to_string(),
        };
        let failure = Self::new(shown(&message));
        match &error {
            Error::NotFound { namespace, .. } => {
                failure.next(format!("kubectl sandbox list -n {namespace}"))
            }
            Error::NoPod { name, .. } => failure.next(format!("kubectl sandbox get {name}")),
            Error::RunEnded { name, .. } => failure.next(format!(
                "kubectl sandbox get {name}; kubectl sandbox rerun {name} begins anew"
            )),
            Error::Timeout { name, .. } => failure
                .next(format!("kubectl sandbox get {name}"))
                .code(TIMED_OUT),
            Error::Ended { name, .. } => failure.next(format!("kubectl sandbox get {name}")).code(NO),
            Error::Kube(kube::Error::Api(status)) => match status.code {
                401 => failure.next("log in to the cluster again; kubectl auth whoami says who you are to it"),
                403 => failure.next("kubectl auth can-i --list says what you may do; the ClusterRole edit has what sandboxes need"),
                404 if status.message.contains("page not found") || status.message.contains("requested resource") => {
                    failure.next("the operator is not installed here, it seems: kubectl sandbox doctor")
                }
                404 if status.message.starts_with("pods ") => {
                    failure.next("the run's pod was removed; its verdict stays: kubectl sandbox get NAME")
                }
                _ => failure,
            },
            Error::Config(_) => failure.next("set KUBECONFIG, or use --kubeconfig"),
            Error::Kube(kube::Error::Service(_) | kube::Error::HyperError(_)) => {
                failure.next("is the cluster up? kubectl cluster-info")
            }
            _ => failure,
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        let failure = Self::new(error.to_string());
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => failure.code(UNREAD),
            _ => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_the_api_server_lead_on() {
        let failure = |code: u16, message: &str| {
            let status =
                serde_json::json!({"status": "Failure", "code": code, "reason": "r", "message": message});
            let status = serde_json::from_value(status).unwrap();
            Failure::from(Error::Kube(kube::Error::Api(Box::new(status)))).to_string()
        };
        for (code, message, next) in [
            (401, "Unauthorized", "log in"),
            (403, "agentsandboxes is forbidden", "can-i"),
            (404, "404 page not found", "doctor"),
            (404, "pods \"job-sb00000000\" not found", "verdict stays"),
        ] {
            let told = failure(code, message);
            assert!(
                told.starts_with(message) && told.contains("\nnext:  ") && told.contains(next),
                "{told}"
            );
        }
    }

    #[test]
    fn a_failure_ends_with_what_to_do_and_shows_nothing_that_a_terminal_acts_on() {
        let failure = Failure::from(Error::NotFound {
            name: "a\u{1b}[2J".to_owned(),
            namespace: "b".to_owned(),
        });
        assert_eq!(
            failure.to_string(),
            "no sandbox named a\\u{1b}[2J in namespace b\nnext:  kubectl sandbox list -n b"
        );
        assert_eq!(failure.code, FAILED);
    }

    #[test]
    fn a_reader_that_is_gone_is_no_lost_exit_code() {
        let unread = Failure::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(unread.without_exit_code().code, UNREAD);
        assert_eq!(
            Failure::new("the step was refused").without_exit_code().code,
            NO_EXIT_CODE
        );
    }
}
