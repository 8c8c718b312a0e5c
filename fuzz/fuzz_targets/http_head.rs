//! Requests on a connection, before and as the HTTP library reads them.
#![no_main]

use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::strict::{MAX_HEAD_BYTES, MAX_HEADERS, Strict};
use agentsandbox_fuzz::{bounded, pieces};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut strict = Strict::default();
    let whole = bounded(data, 8 << 10, 64, || strict.advance(data));
    let in_head = strict.in_head();

    // The cut of the bytes changes nothing.
    let (mut cut, mut pending, mut passed) = (Strict::default(), Vec::new(), 0);
    let verdict: Result<(), Deny> = pieces(data).into_iter().try_for_each(|piece| {
        pending.extend_from_slice(piece);
        let step = cut.advance(&pending)?;
        pending.drain(..step);
        passed += step;
        Ok(())
    });
    match whole {
        Ok(count) => {
            assert_eq!(verdict, Ok(()));
            assert_eq!((passed, cut.in_head()), (count, in_head));
        }
        Err(_) => assert!(verdict.is_err()),
    }

    // A first head that passes is one for the HTTP library as well, and ends where it thinks.
    let Ok(count) = whole else { return };
    let mut strict = Strict::default();
    let Some(end) = data[..count]
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .map(|at| at + 4)
    else {
        return;
    };
    assert!(end <= MAX_HEAD_BYTES);
    assert_eq!(strict.advance(&data[..end]), Ok(end));
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS + 1];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(&data[..end]) {
        Ok(status) => assert_eq!(status, httparse::Status::Complete(end)),
        // It knows fewer characters of a target, and refuses more.
        Err(_) => return,
    }
    let named = |name: &str| {
        request
            .headers
            .iter()
            .filter(|field| field.name.eq_ignore_ascii_case(name))
            .count()
    };
    assert!(named("host") <= 1 && named("content-length") <= 1 && named("transfer-encoding") <= 1);
    assert!(named("content-length") + named("transfer-encoding") <= 1);
    if strict.in_head() {
        let has_body = request.headers.iter().any(|field| {
            field.name.eq_ignore_ascii_case("transfer-encoding")
                || (field.name.eq_ignore_ascii_case("content-length")
                    && field.value.iter().any(|digit| *digit != b'0'))
        });
        assert!(!has_body, "what follows would be read as a request");
    }
});
