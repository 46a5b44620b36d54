//! `WWW-Authenticate`: what a registry wants to see before it answers (RFC 9110, section 11.6.1).

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

#[derive(Debug, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    /// A token, to be had from `realm` for `service`. See
    /// <https://distribution.github.io/distribution/spec/auth/token/>.
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

impl Challenge {
    /// The best of what is offered that we understand.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter();
        let offered = values.filter_map(|value| Self::parse(value.to_str().ok()?));
        offered.max_by_key(|challenge| *challenge != Self::Basic)
    }

    /// `Bearer realm="…",service="…",scope="…"` or `Basic realm="…"`.
    fn parse(header: &str) -> Option<Self> {
        let (scheme, mut rest) = header.split_once(' ').unwrap_or((header, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, None);
        while !rest.trim().is_empty() {
            let (key, value) = rest.split_once('=')?;
            let (value, after) = match value.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => value.split_at(value.find(',').unwrap_or(value.len())),
            };
            match key.trim_matches([' ', ',']).to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value.to_owned()),
                "service" => service = Some(value.to_owned()),
                _ => {}
            }
            rest = after;
        }
        Some(Self::Bearer { realm: realm?, service })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer { realm: realm.into(), service: service.map(str::to_owned) })
    }

    #[test]
    fn one_by_one() {
        for (header, wanted) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a,b:pull""#,
                bearer("https://auth.docker.io/token", Some("registry.docker.io")),
            ),
            ("bearer realm=https://a.io/t, service=s", bearer("https://a.io/t", Some("s"))),
            (r#"Basic realm="x""#, Some(Challenge::Basic)),
            ("Basic", Some(Challenge::Basic)),
            (r#"Bearer realm="x"#, None),
            ("Bearer service=x", None),
            ("Negotiate", None),
        ] {
            assert_eq!(Challenge::parse(header), wanted, "{header}");
        }
    }

    #[test]
    fn a_token_is_better_than_a_password() {
        let mut headers = HeaderMap::new();
        assert_eq!(Challenge::of(&headers), None);
        for value in ["Negotiate", "Bearer realm=\"https://a.io/t\"", "Basic realm=x"] {
            headers.append(WWW_AUTHENTICATE, value.parse().expect("a value"));
        }
        assert_eq!(Challenge::of(&headers), bearer("https://a.io/t", None));
    }
}
