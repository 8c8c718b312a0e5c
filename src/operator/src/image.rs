//! Which images a policy allows: patterns are matched by parsed components, never as text.

/// An image reference, split as container runtimes do.
#[derive(Debug, PartialEq, Eq)]
struct Reference<'a> {
    registry: &'a str,
    path: Vec<&'a str>,
    digest: Option<&'a str>,
}

/// Whether `image` lies in one of the repositories of `allow`; every image does if `allow` is empty.
#[must_use]
pub fn is_allowed(image: &str, allow: &[String]) -> bool {
    if allow.is_empty() {
        return true;
    }
    let Some(image) = parse(image) else { return false };
    allow.iter().filter_map(|pattern| parse(pattern)).any(|pattern| {
        pattern.digest.is_none()
            && pattern.registry == image.registry
            && image.path.len() >= pattern.path.len()
            && image
                .path
                .iter()
                .zip(&pattern.path)
                .all(|(have, want)| have == want)
    })
}

/// Whether `pattern` can match anything at all.
#[must_use]
pub fn is_pattern(pattern: &str) -> bool {
    parse(pattern).is_some_and(|reference| reference.digest.is_none()) && !pattern.contains('*')
}

/// Whether `image` is named by digest, so that its content can't change.
#[must_use]
pub fn has_digest(image: &str) -> bool {
    parse(image).is_some_and(|reference| reference.digest.is_some())
}

fn parse(text: &str) -> Option<Reference<'_>> {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => {
            let hex = digest.strip_prefix("sha256:")?;
            if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            (name, Some(digest))
        }
        None => (text, None),
    };
    // The first component is a registry if it could not be a path of the default registry's (a dot, a port or
    // localhost): the rule of the reference grammar of github.com/distribution/reference.
    let (registry, rest) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => ("docker.io", name),
    };
    // A colon after the last slash starts a tag; a pattern's tag, if any, is not compared.
    let repository = match rest.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => rest,
    };
    let mut path: Vec<&str> = repository.trim_end_matches('/').split('/').collect();
    if registry == "docker.io" && path.len() == 1 && !name.contains('/') {
        path.insert(0, "library");
    }
    path.iter().all(|part| !part.is_empty()).then_some(Reference {
        registry,
        path,
        digest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_its_repository_and_what_lies_below_and_nothing_else() {
        let allow = vec!["reg.io/org".to_owned()];
        for (image, allowed) in [
            ("reg.io/org/app:1", true),
            ("reg.io/org/team/app", true),
            ("reg.io/org:1", true),
            ("reg.io/org-evil/app", false),
            ("reg.io.evil/org/app", false),
            ("reg.io:5000/org/app", false),
            ("org/app", false),
            ("evil.io/reg.io/org/app", false),
            ("reg.io/other", false),
            ("reg.io//org", false),
        ] {
            assert_eq!(is_allowed(image, &allow), allowed, "{image}");
        }
    }

    #[test]
    fn short_names_belong_to_the_default_registry() {
        assert!(is_allowed("python:3.12", &["docker.io/library".to_owned()]));
        assert!(is_allowed("python", &["python".to_owned()]));
        assert!(!is_allowed("org/python", &["docker.io/library".to_owned()]));
    }

    #[test]
    fn a_digest_is_whole_or_none() {
        let digest = format!("reg.io/app@sha256:{}", "a".repeat(64));
        assert!(has_digest(&digest));
        assert!(!has_digest("reg.io/app@sha256:abc"));
        assert!(!has_digest("reg.io/app:1"));
    }
}
