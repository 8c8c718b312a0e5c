//! Registration at the egress gateway: says whose address this is, by a token that only the recorder holds, and keeps
//! saying it for as long as the run lives.
//!
//! The run's own token is made here, from the kernel's randomness, and leaves the recorder twice: as a hash to the
//! gateway, and in the environment of the command. It stands in no pod spec.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentsandbox_api::gateway::{
    BudgetExhausted, GatewayAccess, PATH_TOKEN, PORT_REGISTER, REGISTER_MAX_BYTES, Register, Registered,
    StepCharge, StepCharged, TOKEN_FILE,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::sys;

/// Between two attempts. The gateway's own watch sees a pod's address a second or two after the recorder's start.
const RETRY: Duration = Duration::from_millis(100);
/// So many attempts are made in this rhythm, about 20 s; a gateway that is gone for longer is asked once a second.
const QUICK_ATTEMPTS: u32 = 200;
/// Between two attempts after that, and after a refusal for good.
const SLOW_RETRY: Duration = Duration::from_secs(1);
/// For the connection, and for the gateway's first answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A projected token weighs 1 to 2 KB.
const TOKEN_MAX_BYTES: u64 = 16 << 10;
/// Bytes of the run's token.
const RUN_TOKEN_BYTES: usize = 32;
/// Stack of the registering thread, in bytes.
const STACK: usize = 128 << 10;

/// Where the registration stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whether the gateway has bound this pod's address to it.
    pub bound: bool,
    /// Certificate of the gateway's authority, of the last answer that bound.
    pub certificate: Option<String>,
    /// Why it is not bound.
    pub trouble: String,
}

/// A registration that renews itself in the background until the process ends.
pub struct Registration {
    run_token: String,
    shared: Arc<Shared>,
    woken: UnixStream,
}

/// What the registering thread and the recorder share.
#[derive(Default)]
struct Shared {
    standing: Mutex<Standing>,
    /// The connection, while it is bound.
    connection: Mutex<Option<TcpStream>>,
    /// Answers to charges that nobody has taken yet.
    charged: Mutex<Vec<StepCharged>>,
    exhausted: Mutex<Option<BudgetExhausted>>,
}

/// A line of the gateway.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Charged(StepCharged),
    Registered(Registered),
    Exhausted(BudgetExhausted),
}

/// What one attempt needs.
struct Claim {
    address: SocketAddr,
    token_file: PathBuf,
    pod_uid: String,
    run_token_sha256: String,
}

impl Registration {
    /// Begins to register.
    pub fn start(access: &GatewayAccess, pod_uid: &str) -> Result<Self, String> {
        let address = access
            .address
            .parse()
            .map_err(|_| format!("{} is no address of a gateway", access.address))?;
        Self::at(
            SocketAddr::new(address, PORT_REGISTER),
            &Path::new(PATH_TOKEN).join(TOKEN_FILE),
            pod_uid,
        )
        .map_err(|error| format!("no registration can be begun: {error}"))
    }

    fn at(address: SocketAddr, token_file: &Path, pod_uid: &str) -> io::Result<Self> {
        let run_token = hex(&sys::random_bytes::<RUN_TOKEN_BYTES>()?);
        let claim = Claim {
            address,
            token_file: token_file.to_owned(),
            pod_uid: pod_uid.to_owned(),
            run_token_sha256: hex(&Sha256::digest(run_token.as_bytes())),
        };
        let shared = Arc::new(Shared::default());
        let (woken, wake) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        wake.set_nonblocking(true)?;
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .stack_size(STACK)
            .spawn(move || register_for_ever(&claim, &of_thread, &wake))?;
        Ok(Self {
            run_token,
            shared,
            woken,
        })
    }

    /// The run's token, which the sandbox presents to the gateway.
    pub fn run_token(&self) -> &str {
        &self.run_token
    }

    /// Where it stands now.
    pub fn standing(&self) -> Standing {
        let mut heard = [0; 64];
        while matches!((&self.woken).read(&mut heard), Ok(length) if length > 0) {}
        lock(&self.shared.standing).clone()
    }

    /// Asks the gateway to charge one step; [`Registration::charged`] has the answer once it comes.
    pub fn charge(&self, number: u64) -> io::Result<()> {
        let mut connection = lock(&self.shared.connection);
        let stream = connection.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let mut line = serde_json::to_vec(&StepCharge { charge: number })?;
        line.push(b'\n');
        stream.write_all(&line)
    }

    /// The gateway's answers since the last call.
    pub fn charged(&self) -> Vec<StepCharged> {
        std::mem::take(&mut *lock(&self.shared.charged))
    }

    /// The budget that the run has used up, if the gateway says so.
    pub fn exhausted(&self) -> Option<BudgetExhausted> {
        *lock(&self.shared.exhausted)
    }
}

impl AsFd for Registration {
    /// Becomes readable when the gateway has answered; [`Registration::standing`] takes that back.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.woken.as_fd()
    }
}

fn register_for_ever(claim: &Claim, shared: &Shared, wake: &UnixStream) {
    let mut attempts = 0_u32;
    loop {
        let pause = match attempt(claim, shared, wake) {
            // The connection broke after it had bound: the gateway may have been replaced.
            Ok(Outcome::Broken) => {
                attempts = 0;
                RETRY
            }
            Ok(Outcome::Refused { retry: true }) | Err(_) if attempts < QUICK_ATTEMPTS => RETRY,
            Ok(Outcome::Refused { .. }) | Err(_) => SLOW_RETRY,
        };
        attempts = attempts.saturating_add(1);
        std::thread::sleep(pause);
    }
}

/// How an attempt ended.
enum Outcome {
    /// It bound, and the connection broke later.
    Broken,
    /// The gateway refused.
    Refused { retry: bool },
}

/// Registers once, and stays connected while that holds.
fn attempt(claim: &Claim, shared: &Shared, wake: &UnixStream) -> io::Result<Outcome> {
    let mut bound = false;
    // Nobody listens any more once the run has ended; a full pipe wakes as well as a fuller one.
    let told = || drop((&*wake).write(&[1]));
    let result = converse(claim, shared, |line| {
        let answer = match line {
            Line::Registered(answer) => answer,
            Line::Charged(charged) => {
                lock(&shared.charged).push(charged);
                return told();
            }
            Line::Exhausted(exhausted) => {
                *lock(&shared.exhausted) = Some(exhausted);
                return told();
            }
        };
        let mut standing = lock(&shared.standing);
        standing.bound = answer.bound;
        if answer.bound {
            bound = true;
            standing.certificate.clone_from(&answer.ca);
            standing.trouble.clear();
        } else {
            standing.trouble.clone_from(&answer.message);
        }
        told();
    });
    *lock(&shared.connection) = None;
    let mut standing = lock(&shared.standing);
    standing.bound = false;
    if bound {
        return Ok(Outcome::Broken);
    }
    if let Err(error) = &result {
        standing.trouble = format!("{}: {error}", claim.address);
    }
    result
}

/// Sends the registration and passes on each answer, until the connection ends.
fn converse(claim: &Claim, shared: &Shared, mut heard: impl FnMut(Line)) -> io::Result<Outcome> {
    // Read anew each time: the kubelet renews it.
    let token = read_token(&claim.token_file)?;
    let mut stream = TcpStream::connect_timeout(&claim.address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut line = serde_json::to_vec(&Register {
        pod_uid: claim.pod_uid.clone(),
        token,
        run_token_sha256: claim.run_token_sha256.clone(),
    })?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut buffer = Vec::new();
    let Line::Registered(answer) = next_line(&mut stream, &mut buffer)? else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let (mut bound, mut retry) = (answer.bound, answer.retry);
    heard(Line::Registered(answer));
    // From here on silence is the usual thing. A gateway whose node is gone says nothing either; keep-alive tells.
    stream.set_read_timeout(None)?;
    sys::keep_alive(&stream)?;
    if bound {
        *lock(&shared.connection) = Some(stream.try_clone()?);
    }
    while bound {
        let line = next_line(&mut stream, &mut buffer)?;
        if let Line::Registered(answer) = &line {
            (bound, retry) = (answer.bound, answer.retry);
        }
        heard(line);
    }
    Ok(Outcome::Refused { retry })
}

fn read_token(file: &Path) -> io::Result<String> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", file.display()));
    let mut token = String::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(TOKEN_MAX_BYTES).read_to_string(&mut token))
        .map_err(named)?;
    Ok(token.trim().to_owned())
}

/// One answer, of at most [`REGISTER_MAX_BYTES`].
fn next_line(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Line> {
    let mut piece = [0; 4 << 10];
    loop {
        if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            return Ok(serde_json::from_slice(&line)?);
        }
        if buffer.len() > REGISTER_MAX_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "an answer without an end",
            ));
        }
        match stream.read(&mut piece) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => buffer.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds the lock, and each value stands alone.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    use agentsandbox_api::reason::Reason;

    use super::*;

    /// A gateway on loopback that speaks as the test says.
    struct Gateway {
        listener: TcpListener,
        token_file: PathBuf,
    }

    impl Gateway {
        fn new(test: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("register-{test}-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            let token_file = folder.join("token");
            std::fs::write(&token_file, "first.token.x\n").unwrap();
            Self {
                listener: TcpListener::bind("127.0.0.1:0").unwrap(),
                token_file,
            }
        }

        fn register(&self) -> Registration {
            Registration::at(self.listener.local_addr().unwrap(), &self.token_file, "pod").unwrap()
        }

        /// Takes one registration.
        fn accept(&self) -> (BufReader<TcpStream>, Register) {
            let (stream, _) = self.listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut reader = BufReader::new(stream);
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            (reader, serde_json::from_str(&line).unwrap())
        }
    }

    impl Drop for Gateway {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(self.token_file.parent().unwrap());
        }
    }

    fn answer(connection: &mut BufReader<TcpStream>, text: &str) {
        let stream = connection.get_mut();
        stream.write_all(text.as_bytes()).unwrap();
        stream.write_all(b"\n").unwrap();
    }

    /// Waits for the registration to say so.
    fn eventually(registration: &Registration, wanted: impl Fn(&Standing) -> bool) -> Standing {
        for _ in 0..1_000 {
            let standing = registration.standing();
            if wanted(&standing) {
                return standing;
            }
            sys::wait_readable(&[registration.as_fd()], Duration::from_millis(10));
        }
        panic!("last seen: {:?}", registration.standing());
    }

    #[test]
    fn a_recorder_registers_by_its_token_and_the_hash_of_the_runs() {
        let gateway = Gateway::new("once");
        let registration = gateway.register();
        let (mut connection, register) = gateway.accept();
        assert_eq!(registration.run_token().len(), 64);
        let hash = hex(&Sha256::digest(registration.run_token().as_bytes()));
        assert_eq!(
            register,
            Register {
                pod_uid: "pod".into(),
                token: "first.token.x".into(),
                run_token_sha256: hash,
            }
        );
        assert!(!registration.standing().bound);
        answer(&mut connection, r#"{"bound":true,"ca":"PEM"}"#);
        let standing = eventually(&registration, |standing| standing.bound);
        assert_eq!(standing.certificate.as_deref(), Some("PEM"));
        assert_eq!(standing.trouble, "");
    }

    #[test]
    fn two_runs_never_share_a_token() {
        let gateway = Gateway::new("two");
        let (one, other) = (gateway.register(), gateway.register());
        assert_ne!(one.run_token(), other.run_token());
    }

    #[test]
    fn a_gateway_that_has_not_seen_the_pod_yet_is_asked_again() {
        let gateway = Gateway::new("again");
        let registration = gateway.register();
        let (mut connection, first) = gateway.accept();
        answer(
            &mut connection,
            r#"{"bound":false,"retry":true,"message":"not seen yet"}"#,
        );
        let standing = eventually(&registration, |standing| !standing.trouble.is_empty());
        assert_eq!(
            (standing.bound, standing.trouble.as_str()),
            (false, "not seen yet")
        );
        let (mut connection, second) = gateway.accept();
        assert_eq!(first, second);
        answer(&mut connection, r#"{"bound":true}"#);
        let standing = eventually(&registration, |standing| standing.bound);
        assert_eq!((standing.certificate, standing.trouble), (None, String::new()));
    }

    #[test]
    fn a_replaced_gateway_is_told_the_same_run_token_with_the_kubelets_new_one() {
        let gateway = Gateway::new("replaced");
        let registration = gateway.register();
        let (mut connection, first) = gateway.accept();
        answer(&mut connection, r#"{"bound":true,"ca":"one"}"#);
        eventually(&registration, |standing| standing.bound);
        std::fs::write(&gateway.token_file, "second.token.x").unwrap();
        drop(connection);
        let (mut connection, second) = gateway.accept();
        assert!(!registration.standing().bound);
        assert_eq!(second.run_token_sha256, first.run_token_sha256);
        assert_eq!(second.token, "second.token.x");
        answer(&mut connection, r#"{"bound":true,"ca":"two"}"#);
        let standing = eventually(&registration, |standing| standing.bound);
        assert_eq!(standing.certificate.as_deref(), Some("two"));
    }

    #[test]
    fn a_certificate_may_come_later_on_the_same_connection() {
        let gateway = Gateway::new("later");
        let registration = gateway.register();
        let (mut connection, _) = gateway.accept();
        answer(&mut connection, r#"{"bound":true}"#);
        eventually(&registration, |standing| standing.bound);
        answer(&mut connection, r#"{"bound":true,"ca":"new"}"#);
        let standing = eventually(&registration, |standing| standing.certificate.is_some());
        assert_eq!(standing.certificate.as_deref(), Some("new"));
    }

    #[test]
    fn that_a_budget_is_used_up_is_heard() {
        let gateway = Gateway::new("exhausted");
        let registration = gateway.register();
        let (mut connection, _) = gateway.accept();
        answer(&mut connection, r#"{"bound":true}"#);
        answer(&mut connection, r#"{"exhausted":"TokenBudgetExceeded"}"#);
        answer(&mut connection, r#"{"bound":true,"ca":"new"}"#);
        eventually(&registration, |standing| standing.certificate.is_some());
        let told = registration.exhausted().unwrap();
        assert_eq!(told.exhausted, Reason::TokenBudgetExceeded);
        assert!(told.message().unwrap().contains("limits.tokens"));
        let other = BudgetExhausted {
            exhausted: Reason::Completed,
        };
        assert_eq!(other.message(), None);
    }

    #[test]
    fn a_step_is_charged_over_the_connection_that_is_bound() {
        let gateway = Gateway::new("charge");
        let registration = gateway.register();
        let (mut connection, _) = gateway.accept();
        assert!(registration.charge(1).is_err(), "nobody is bound yet");
        answer(&mut connection, r#"{"bound":true}"#);
        eventually(&registration, |standing| standing.bound);
        // The gateway may be known to be bound a moment before its connection is.
        let mut number = 1;
        while registration.charge(number).is_err() {
            assert!(number < 1_000);
            number += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut line = String::new();
        connection.read_line(&mut line).unwrap();
        assert_eq!(line, format!("{{\"charge\":{number}}}\n"));
        let refusal = r#"{"charged":1,"granted":false,"reason":"StepBudgetExceeded","message":"no more"}"#;
        answer(&mut connection, refusal);
        answer(&mut connection, r#"{"bound":true,"ca":"new"}"#);
        let standing = eventually(&registration, |standing| standing.certificate.is_some());
        assert!(standing.bound);
        assert_eq!(registration.charged(), [serde_json::from_str(refusal).unwrap()]);
        drop(connection);
        let (_connection, _) = gateway.accept();
        assert!(registration.charge(number + 1).is_err(), "it has ended");
    }

    #[test]
    fn an_endless_answer_and_nonsense_are_no_registration() {
        let gateway = Gateway::new("nonsense");
        let registration = gateway.register();
        let (mut connection, _) = gateway.accept();
        // The recorder may hang up before all of it is written.
        let _ = connection
            .get_mut()
            .write_all(&vec![b'x'; REGISTER_MAX_BYTES + 8192]);
        let standing = eventually(&registration, |standing| {
            standing.trouble.contains("without an end")
        });
        assert!(!standing.bound);
        let (mut connection, _) = gateway.accept();
        answer(&mut connection, "{nonsense");
        let (_connection, _) = gateway.accept();
        assert!(!registration.standing().bound);
    }

    #[test]
    fn a_missing_token_is_said_with_its_file() {
        let gateway = Gateway::new("missing");
        std::fs::remove_file(&gateway.token_file).unwrap();
        let registration = gateway.register();
        let standing = eventually(&registration, |standing| !standing.trouble.is_empty());
        assert!(
            standing.trouble.contains("token") && !standing.bound,
            "{standing:?}"
        );
    }
}
