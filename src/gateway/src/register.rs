//! Where recorders say whose address this is, before any user code exists.
//!
//! One line of JSON comes, one goes back; the connection stays open, and the recorder is told when its certificate
//! changes, its binding ends or a budget of its run is used up. It then registers again, or ends the run. In between it
//! may ask for steps to be charged.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agentsandbox_api::gateway::{AUDIENCE, BudgetExhausted, REGISTER_MAX_BYTES, Registered};
use agentsandbox_egress::identity::Run;
use agentsandbox_egress::registration;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tracing::warn;

use crate::accept::accept;
use crate::charges::Charges;
use crate::jwks::TokenError;
use crate::state::{Gateway, unbound};

/// What was answered or refused last still reaches the sandbox before its run is ended.
const LAST_ANSWER: Duration = Duration::from_millis(300);
/// Most connections of one address: a recorder has one, and may be replacing it.
const PER_ADDRESS: usize = 4;
/// Most connections at all. Each waits for a line, or costs a few hundred bytes.
const MAX_CONNECTIONS: usize = 4_096;

/// Serves until the gateway stops.
pub async fn serve(gateway: Arc<Gateway>, listener: TcpListener) {
    let places = Arc::new(Mutex::new(HashMap::new()));
    while let Some((stream, peer)) = accept(&listener, &gateway.stopping).await {
        let Some(place) = Place::take(&places, peer) else {
            gateway.stranger("register", peer);
            continue;
        };
        let gateway = gateway.clone();
        tokio::spawn(async move {
            let _place = place;
            converse(&gateway, stream, peer).await;
        });
    }
}

async fn converse(gateway: &Arc<Gateway>, mut stream: TcpStream, peer: IpAddr) {
    let patience = gateway.limits.head_timeout();
    let Ok(Some(line)) = tokio::time::timeout(patience, read_line(&mut stream)).await else {
        return;
    };
    let mut changed = gateway.changed.subscribe();
    let run = match register(gateway, peer, &line).await {
        Ok(run) => run,
        Err(refused) => {
            say(&mut stream, &refused, patience).await;
            return;
        }
    };
    let (mut from, mut to) = stream.split();
    let Some(session) = gateway.session_of_run(&run) else {
        say(&mut to, &gateway.standing(&run), patience).await;
        return;
    };
    let mut charges = Charges::new(session.clone());
    let mut over = pin!(async {
        let exhausted = session.account.exhaustion().await;
        tokio::time::sleep(LAST_ANSWER).await;
        BudgetExhausted { exhausted }
    });
    let (mut said, mut is_told) = (None, false);
    loop {
        changed.borrow_and_update();
        let standing = gateway.standing(&run);
        if said.as_ref() != Some(&standing) {
            if !say(&mut to, &standing, patience).await || !standing.bound {
                return;
            }
            said = Some(standing);
        }
        tokio::select! {
            answer = charges.next(&mut from) => match answer {
                Some(answer) => if !say(&mut to, &answer, patience).await { return },
                None => return,
            },
            exhausted = &mut over, if !is_told => {
                is_told = true;
                if !say(&mut to, &exhausted, patience).await { return }
            },
            news = changed.changed() => if news.is_err() { return },
        }
    }
}

async fn register(gateway: &Arc<Gateway>, peer: IpAddr, line: &[u8]) -> Result<Arc<Run>, Registered> {
    let claim = registration::parse(line).map_err(|message| unbound(false, message))?;
    let now = (gateway.clock)();
    let pod = match gateway.keys.verify(&claim.token, AUDIENCE, now) {
        Ok(pod) => pod,
        Err(error) => {
            gateway.registration_refused(|| warn!(%peer, %error, "registration refused"));
            if error == TokenError::UnknownKey {
                gateway.stale_keys.notify_one();
            }
            return Err(unbound(error == TokenError::UnknownKey, &error.to_string()));
        }
    };
    if pod.namespace != gateway.namespace || pod.pod_uid != claim.pod_uid {
        gateway.registration_refused(
            || warn!(%peer, pod_uid = pod.pod_uid, namespace = pod.namespace, "a token of another pod"),
        );
        return Err(unbound(false, "the token is another pod's"));
    }
    gateway.register(peer, &pod.pod_uid, claim.run_token).await
}

async fn read_line(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    let mut piece = [0; 2 << 10];
    loop {
        let read = stream.read(&mut piece).await.ok().filter(|read| *read > 0)?;
        line.extend_from_slice(&piece[..read]);
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            // It says nothing more before it is answered.
            return (end + 1 == line.len()).then(|| {
                line.truncate(end);
                line
            });
        }
        if line.len() > REGISTER_MAX_BYTES {
            return None;
        }
    }
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), answer: &impl Serialize, patience: Duration) -> bool {
    let Ok(mut line) = serde_json::to_vec(answer) else {
        return false;
    };
    line.push(b'\n');
    matches!(
        tokio::time::timeout(patience, stream.write_all(&line)).await,
        Ok(Ok(()))
    )
}

/// One address's place among the connections, until it is dropped.
struct Place {
    places: Arc<Mutex<HashMap<IpAddr, usize>>>,
    peer: IpAddr,
}

impl Place {
    fn take(places: &Arc<Mutex<HashMap<IpAddr, usize>>>, peer: IpAddr) -> Option<Self> {
        let mut held = places.lock().unwrap_or_else(PoisonError::into_inner);
        if held.values().sum::<usize>() >= MAX_CONNECTIONS {
            return None;
        }
        let of_peer = held.entry(peer).or_insert(0);
        if *of_peer >= PER_ADDRESS {
            return None;
        }
        *of_peer += 1;
        Some(Self {
            places: places.clone(),
            peer,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_peer) = held.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                held.remove(&self.peer);
            }
        }
    }
}
