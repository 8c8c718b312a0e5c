//! Tables and laws of [`super`].

use proptest::prelude::*;

use super::*;

fn argv(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|argument| (*argument).to_owned()).collect()
}

/// Keys are put together here, so that no scanner of this repository takes them for real ones.
fn key(beginning: &str, length: usize) -> String {
    format!("{beginning}{}", "a1B2".repeat(length.div_ceil(4)))
}

#[test]
fn secrets_that_a_name_gives_away() {
    for (text, expected) in [
        ("PASSWORD=hunter2", "PASSWORD=[redacted]"),
        ("DB_PASSWORD='two words' run", "DB_PASSWORD='[redacted]' run"),
        (
            "AWS_SECRET_ACCESS_KEY=abc/def+x; ls -l",
            "AWS_SECRET_ACCESS_KEY=[redacted]; ls -l",
        ),
        (
            "OPENAI_API_KEY=x python a.py",
            "OPENAI_API_KEY=[redacted] python a.py",
        ),
        ("STRIPE_KEY=x", "STRIPE_KEY=[redacted]"),
        ("clientSecret=x&scope=all", "clientSecret=[redacted]&scope=all"),
        (
            "curl https://h/?access_token=x&page=2",
            "curl https://h/?access_token=[redacted]&page=2",
        ),
        (
            "login --password hunter2 --verbose",
            "login --password [redacted] --verbose",
        ),
        ("login --token=x", "login --token=[redacted]"),
        (
            "{\"token\": \"a b\", \"n\": 1}",
            "{\"token\": \"[redacted]\", \"n\": 1}",
        ),
        (
            "{\\\"api_key\\\":\\\"abc\\\",\\\"n\\\":1}",
            "{\\\"api_key\\\":\\\"[redacted]\\\",\\\"n\\\":1}",
        ),
        ("password = \"x\"", "password = \"[redacted]\""),
        ("a_token=\"with \\\" quote\" b", "a_token=\"[redacted]\" b"),
        ("Authorization: Basic dTpw", "Authorization: [redacted]"),
        (
            "curl -H 'Authorization: token abc' https://h/",
            "curl -H 'Authorization: [redacted]' https://h/",
        ),
        (
            "curl -H \"X-Api-Key: abc\" h",
            "curl -H \"X-Api-Key: [redacted]\" h",
        ),
        ("PRIVATE-TOKEN:abc", "PRIVATE-TOKEN:[redacted]"),
        ("cookie: a=b; c=d\nnext", "cookie: [redacted]\nnext"),
        ("echo Bearer abc123", "echo Bearer [redacted]"),
        (
            "{\"authorization\":\"bearer aaaaaaaaaaaaaaaaaaaaaaaa\"}",
            "{\"authorization\":\"[redacted]\"}",
        ),
    ] {
        assert_eq!(redact(text), expected, "{text}");
    }
}

#[test]
fn secrets_in_urls_and_pem_keys() {
    for (text, expected) in [
        (
            "git clone https://user:pw@h/r.git",
            "git clone https://[redacted]@h/r.git",
        ),
        ("https://abcdef@h/r", "https://[redacted]@h/r"),
        ("postgres://u:p@ss@db:5432/x", "postgres://[redacted]@db:5432/x"),
        ("ssh://git:pw@h/r", "ssh://[redacted]@h/r"),
        (
            "x -----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- y",
            "x [redacted] y",
        ),
        ("-----BEGIN PRIVATE KEY-----\ncut off", "[redacted]"),
    ] {
        assert_eq!(redact(text), expected, "{text}");
    }
}

#[test]
fn well_known_keys_by_their_shape() {
    let web_token = format!("eyJ{}.eyJ{}.{}", "a".repeat(20), "b".repeat(20), "c-_".repeat(10));
    for key in [
        key("AKIA", 16),
        key("ghp_", 36),
        key("github_pat_", 60),
        key("glpat-", 20),
        key("xoxb-", 40),
        key("sk-", 48),
        key("sk-proj-", 80),
        key("sk-ant-api03-", 90),
        key("AIza", 35),
        key("npm_", 36),
        key("hf_", 34),
        web_token,
        // Cut off by a bound.
        "ghp_a1B2c3".to_owned(),
    ] {
        assert_eq!(redact(&key), REDACTED, "{key}");
        if key.len() > 15 {
            assert_eq!(redact(&format!("echo {key}; ls")), "echo [redacted]; ls");
            assert_eq!(redact(&format!("/tmp/{key}/x")), "/tmp/[redacted]/x");
        }
    }
}

#[test]
fn secrets_in_the_next_argument() {
    for (arguments, expected) in [
        (
            vec!["mysql", "--password", "two words"],
            vec!["mysql", "--password", "[redacted]"],
        ),
        (vec!["x", "-token", "abc"], vec!["x", "-token", "[redacted]"]),
        (
            vec!["curl", "-u", "me:pw", "h"],
            vec!["curl", "-u", "me:[redacted]", "h"],
        ),
        (
            vec!["curl", "--proxy-user", "me:pw"],
            vec!["curl", "--proxy-user", "me:[redacted]"],
        ),
        (
            vec!["env", "PASSWORD=two words", "ls"],
            vec!["env", "PASSWORD=[redacted]", "ls"],
        ),
        // A script that begins with an assignment is still told.
        (
            vec!["sh", "-c", "TOKEN=x rm -rf /"],
            vec!["sh", "-c", "TOKEN=[redacted] rm -rf /"],
        ),
    ] {
        assert_eq!(redact_argv(&argv(&arguments)), argv(&expected));
    }
}

#[test]
fn what_is_no_secret_stays() {
    let hash = "e83c5163316f89bfbde7d9ab23ca2e25604af290";
    let texts = [
        hash,
        "git show e83c5163316f89bfbde7d9ab23ca2e25604af290:README.md",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "aGVsbG8gd29ybGQ=",
        "echo aGVsbG8gd29ybGQ= | base64 -d",
        "/usr/lib/python3.13/site-packages/token/secret.py",
        "/workspace/src/password-reset/index.ts",
        "max_tokens=4096",
        "--max-tokens 100",
        "TOKEN_LIMIT=5",
        "PWD=/workspace",
        "OLDPWD=/",
        "--password-file /run/x",
        "--password-stdin",
        "sort --key=2 file",
        "primary-key=id",
        "PRIMARY_KEY=id",
        "token: fix the parser",
        "git commit -m 'secret: rename'",
        "the bearer of news",
        "Bearer authentication",
        "--token $TOKEN --x",
        "PASSWORD=$(cat /run/x) ls",
        "curl -H \"Authorization: $AUTH\"",
        "https://h/a@b",
        "ssh://git@h/r",
        "git@github.com:o/r.git",
        "sk-learn-contrib-and-other-long-names-of-packages",
        "task-0123456789012345678901234567890",
        "if token == \"x\"",
        "-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----",
        "tokenizer=fast",
        "keyboard=us",
        "eyJ is not a token",
    ];
    for text in texts {
        assert_eq!(redact(text), text);
    }
    for arguments in [
        vec!["docker", "run", "-u", "1000:1000", "x"],
        vec!["git", "push", "-u", "origin", "main"],
        vec!["sort", "-u", "a"],
        vec!["login", "--token", "--verbose"],
        vec!["git", "log", hash],
    ] {
        assert_eq!(redact_argv(&argv(&arguments)), argv(&arguments));
    }
}

#[test]
fn a_long_hostile_text_takes_no_long() {
    let begun = std::time::Instant::now();
    for piece in [
        "token=\"",
        "://",
        "-----BEGIN ",
        "eyJ.eyJ",
        "bearer b",
        "--token ",
        "a:",
        "ghp_",
        "x=",
    ] {
        let _ = redact(&piece.repeat((64 << 10) / piece.len()));
    }
    assert!(
        begun.elapsed() < std::time::Duration::from_mins(1),
        "{:?}",
        begun.elapsed()
    );
}

proptest! {
    #[test]
    fn any_text_is_taken(text in any::<String>(), marks in "[-a-z=:\"'\\\\ $@/._A-Zü漢]{0,120}") {
        for text in [&text, &marks, &format!("token={text}"), &format!("x://{marks}")] {
            let _ = redact(text);
            let _ = redact_argv(&[text.clone(), marks.clone()]);
        }
    }

    #[test]
    fn the_value_of_a_secret_name_never_stays(value in "[a-zA-Z0-9+/]{4,40}", name in "(api|my|DB|a-b)[_-](token|password|secret|PASSWD)") {
        for text in [format!("{name}={value}"), format!("--{name} {value}"), format!("{{\"{name}\":\"{value}\"}}"), format!("run {name}='{value}' x")] {
            prop_assert!(!redact(&text).contains(&value), "{}", text);
        }
    }
}
