//! Tables and laws of [`super::parse`].

use proptest::prelude::*;

use super::*;

/// What OpenSSL 3 sends for `api.example.org`, with `h2` and `http/1.1` offered.
const OPENSSL: &[u8] = include_bytes!("../tests/data/openssl_3_client_hello.bin");

/// A ClientHello to be written.
#[derive(Clone, Debug, Default)]
struct Sketch {
    extensions: Vec<(u16, Vec<u8>)>,
}

fn vec16(data: &[u8]) -> Vec<u8> {
    [&u16::try_from(data.len()).unwrap().to_be_bytes()[..], data].concat()
}

fn vec8(data: &[u8]) -> Vec<u8> {
    [&[u8::try_from(data.len()).unwrap()][..], data].concat()
}

fn server_name(name: &[u8]) -> (u16, Vec<u8>) {
    (SERVER_NAME, vec16(&[&[0][..], &vec16(name)].concat()))
}

fn alpn(protocols: &[&[u8]]) -> (u16, Vec<u8>) {
    let list: Vec<u8> = protocols.iter().flat_map(|protocol| vec8(protocol)).collect();
    (ALPN, vec16(&list))
}

impl Sketch {
    fn of(extensions: impl IntoIterator<Item = (u16, Vec<u8>)>) -> Self {
        Self {
            extensions: extensions.into_iter().collect(),
        }
    }

    fn body(&self) -> Vec<u8> {
        let extensions: Vec<u8> = self
            .extensions
            .iter()
            .flat_map(|(kind, data)| [&kind.to_be_bytes()[..], &vec16(data)].concat())
            .collect();
        [
            &[3, 3][..],
            &[7; 32],
            &vec8(&[9; 32]),
            &vec16(&[0x13, 1]),
            &vec8(&[0]),
            &vec16(&extensions),
        ]
        .concat()
    }

    fn message(&self) -> Vec<u8> {
        message_of(&self.body())
    }

    /// In records of at most `size` bytes.
    fn records(&self, size: usize) -> Vec<u8> {
        self.message().chunks(size).flat_map(record).collect()
    }
}

fn message_of(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[CLIENT_HELLO][..], &length[1..], body].concat()
}

fn record(fragment: &[u8]) -> Vec<u8> {
    [&[HANDSHAKE, 3, 1][..], &vec16(fragment)].concat()
}

fn named(name: &str) -> Hello {
    Hello::Complete {
        server_name: Some(name.to_owned()),
        encrypted: false,
        alpn_h2: false,
    }
}

#[test]
fn what_openssl_sends_is_read() {
    let hello = Hello::Complete {
        server_name: Some("api.example.org".to_owned()),
        encrypted: false,
        alpn_h2: true,
    };
    assert_eq!(parse(OPENSSL), hello);
    for end in 0..OPENSSL.len() {
        assert_eq!(parse(&OPENSSL[..end]), Hello::Partial, "{end}");
    }
    // What a client sends without waiting for an answer is not looked at.
    assert_eq!(parse(&[OPENSSL, b"anything"].concat()), hello);
}

#[test]
fn a_hello_is_read_from_any_number_of_records() {
    let sketch = Sketch::of([server_name(b"a.example"), alpn(&[b"http/1.1"])]);
    for size in [1, 2, 3, 4, 5, 7, 50, 1 << 14] {
        assert_eq!(parse(&sketch.records(size)), named("a.example"), "{size}");
    }
}

#[test]
fn a_hello_without_a_name_or_extensions_is_one() {
    let nameless = Hello::Complete {
        server_name: None,
        encrypted: false,
        alpn_h2: false,
    };
    assert_eq!(parse(&Sketch::default().records(1000)), nameless);
    let mut old = Sketch::default().body();
    old.truncate(old.len() - 2);
    assert_eq!(parse(&record(&message_of(&old))), nameless);
    // A name that is no text is none: no rule could match it.
    for name in [&b"a\0.example"[..], b"\xc3\xa4.example", b"a b", &[b'a'; 256]] {
        assert_eq!(parse(&Sketch::of([server_name(name)]).records(1000)), nameless);
    }
}

#[test]
fn encrypted_hellos_are_told() {
    for kind in ENCRYPTED {
        let sketch = Sketch::of([server_name(b"public.example"), (kind, vec![0; 40])]);
        assert_eq!(
            parse(&sketch.records(1000)),
            Hello::Complete {
                server_name: Some("public.example".to_owned()),
                encrypted: true,
                alpn_h2: false,
            }
        );
    }
}

#[test]
fn other_protocols_are_told_from_their_first_byte() {
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"G",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x05\x01\x00",                 // SOCKS 5
        b"\x04\x01\x01\xbb\x7f\0\0\x01", // SOCKS 4
        b"\x80\x2e\x01\x00\x02",         // a ClientHello of SSL 2
        b"\x15\x03\x01\x00\x02\x02\x28", // an alert
        b"\x17\x03\x03\x00\x01\x00",     // data
        b"\x16\x02",
        b"\x16\x04\x01",
        b"\x16\x03\x00",
        b"\x16\x03\x05",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x40\x01",
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", // a ServerHello
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", // longer than any
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", // empty
    ] {
        assert_eq!(parse(bytes), Hello::NotTls, "{bytes:?}");
    }
}

#[test]
fn two_names_or_two_of_one_extension_are_refused() {
    for sketch in [
        Sketch::of([server_name(b"a.example"), server_name(b"b.example")]),
        Sketch::of([alpn(&[b"h2"]), alpn(&[b"http/1.1"])]),
        Sketch::of([(99, vec![]), (99, vec![])]),
        Sketch::of([(
            SERVER_NAME,
            vec16(&[&[0][..], &vec16(b"a.example"), &[0], &vec16(b"b.example")].concat()),
        )]),
        Sketch::of([(SERVER_NAME, vec16(&[&[1][..], &vec16(b"a.example")].concat()))]),
        Sketch::of([server_name(b"")]),
        Sketch::of([(SERVER_NAME, vec![])]),
        Sketch::of([(
            SERVER_NAME,
            [vec16(&[&[0][..], &vec16(b"a.example")].concat()), vec![0]].concat(),
        )]),
        Sketch::of([alpn(&[b""])]),
    ] {
        assert_eq!(parse(&sketch.records(1000)), Hello::NotTls, "{sketch:?}");
    }
}

#[test]
fn lengths_that_do_not_add_up_are_refused() {
    let body = Sketch::of([server_name(b"a.example")]).body();
    for end in 0..body.len() {
        // The end after the compressions is a ClientHello without extensions.
        let is_old = end == 2 + 32 + 33 + 4 + 2;
        assert_eq!(
            parse(&record(&message_of(&body[..end]))) == Hello::NotTls,
            !is_old,
            "{end}"
        );
    }
    let longer = [body, vec![0]].concat();
    assert_eq!(parse(&record(&message_of(&longer))), Hello::NotTls);
    let followed = [Sketch::default().message(), vec![1]].concat();
    assert_eq!(parse(&record(&followed)), Hello::NotTls);
}

#[test]
fn a_hello_that_does_not_end_is_refused_at_the_bound() {
    let filler = Sketch::of([(21, vec![0; HELLO_MAX - 200]), server_name(b"a.example")]);
    assert_eq!(parse(&filler.records(1 << 14)), named("a.example"));
    let large = Sketch::of([(21, vec![0; 20_000])]).records(1 << 14);
    assert_eq!(parse(&large), Hello::NotTls);
    // One byte a record: 5 bytes of header each use up the bound.
    let slow = Sketch::of([(21, vec![0; 5_000])]).records(1);
    assert_eq!(parse(&slow[..HELLO_MAX - 1]), Hello::Partial);
    assert_eq!(parse(&slow), Hello::NotTls);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn a_damaged_hello_is_read_or_refused(at in 0..517_usize, byte: u8, end in 0..=517_usize) {
        let mut bytes = OPENSSL.to_vec();
        bytes[at] = byte;
        let _ = parse(&bytes[..end]);
    }

    #[test]
    fn the_borders_of_records_and_the_order_of_extensions_do_not_matter(
        name in "[a-z0-9.-]{1,60}",
        others in proptest::collection::hash_map(100..60_000_u16, proptest::collection::vec(any::<u8>(), 0..40), 0..8),
        at in 0..8_usize,
        size in 1..400_usize,
        http2: bool,
    ) {
        let mut extensions: Vec<_> = others.into_iter().collect();
        extensions.insert(at.min(extensions.len()), server_name(name.as_bytes()));
        if http2 {
            extensions.push(alpn(&[b"h2", b"http/1.1"]));
        }
        let bytes = Sketch { extensions }.records(size);
        let hello = Hello::Complete { server_name: Some(name), encrypted: false, alpn_h2: http2 };
        prop_assert_eq!(parse(&bytes), hello);
    }

    #[test]
    fn a_beginning_is_partial_until_it_is_complete(end in 0..200_usize, size in 1..100_usize) {
        let bytes = Sketch::of([server_name(b"a.example")]).records(size);
        let end = end.min(bytes.len());
        let hello = parse(&bytes[..end]);
        prop_assert_eq!(hello == Hello::Partial, end < bytes.len());
    }
}

#[test]
fn a_record_that_goes_on_behind_the_message_is_refused_before_it_has_come() {
    let message = Sketch::of([server_name(b"api.example.org")]).message();
    let whole = record(&[&message[..], &[0]].concat());
    assert_eq!(parse(&whole), Hello::NotTls);
    assert_eq!(parse(&whole[..whole.len() - 1]), Hello::NotTls);
    assert_eq!(parse(&record(&message)), named("api.example.org"));
}
