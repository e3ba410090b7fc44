//! What a request asks for, as the engine's own router reads it.

/// A request that is more than passed on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Route {
    Connect {
        network: String,
    },
    Create {
        version: String,
        name: Option<String>,
    },
    Disconnect {
        network: String,
    },
    /// The details of a container.
    Inspect {
        container: String,
    },
    /// Nothing to do with the mesh.
    Pass,
    Remove {
        container: String,
    },
    Rename {
        container: String,
        name: String,
    },
    Restart {
        container: String,
    },
    Start {
        container: String,
    },
    /// Stopped or killed.
    Stop {
        container: String,
    },
}

/// Reads method and target.
///
/// # Errors
/// A target that the engine may read otherwise than it is read here.
pub(super) fn route(method: &str, target: &str) -> Result<Route, String> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = decode(path, false).ok_or("the path is no text in UTF-8")?;
    // The engine's router takes absolute targets too, and cleans paths.
    let clean = path.strip_prefix('/').is_some_and(|rest| {
        rest.split('/').all(|part| !matches!(part, "." | ".."))
            && !path.contains("//")
            && !path.contains('\0')
    });
    // `GET /_ping` and `OPTIONS *` are sent by clients; only the first is a path.
    if !clean {
        return Err("the path does not begin with a slash, or has `//`, `.` or `..` in it".to_owned());
    }
    let (version, path) = unversioned(&path);
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let owned = |text: &&str| (*text).to_owned();
    Ok(match (method, parts.as_slice()) {
        ("POST", ["containers", "create"]) => {
            Route::Create { version: version.to_owned(), name: value(query, "name") }
        }
        ("POST", ["containers", container, "start"]) => Route::Start { container: owned(container) },
        ("POST", ["containers", container, "stop" | "kill"]) => Route::Stop { container: owned(container) },
        ("POST", ["containers", container, "restart"]) => Route::Restart { container: owned(container) },
        ("POST", ["containers", container, "rename"]) => match value(query, "name") {
            Some(name) => Route::Rename { container: owned(container), name },
            None => Route::Pass,
        },
        ("DELETE", ["containers", container]) => Route::Remove { container: owned(container) },
        ("GET", ["containers", container, "json"]) => Route::Inspect { container: owned(container) },
        ("POST", ["networks", network, "connect"]) => Route::Connect { network: owned(network) },
        ("POST", ["networks", network, "disconnect"]) => Route::Disconnect { network: owned(network) },
        _ => Route::Pass,
    })
}

/// `/v1.41/info` is `/v1.41` and `/info`.
fn unversioned(path: &str) -> (&str, &str) {
    let number =
        |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let rest = path.strip_prefix("/v").and_then(|rest| rest.split_once('/'));
    match rest {
        Some((version, rest)) if number(version) => {
            path.split_at_checked(path.len() - rest.len() - 1).unwrap_or(("", path))
        }
        _ => ("", path),
    }
}

/// The first value that a query has for a name; `None` where it is empty too.
fn value(query: &str, name: &str) -> Option<String> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut values = pairs.filter(|(known, _)| decode(known, true).as_deref() == Some(name));
    values.next().and_then(|(_, value)| decode(value, true)).filter(|value| !value.is_empty())
}

/// Takes percent-encoding back; in a query a plus is a blank.
fn decode(text: &str, query: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                let digit = |byte: u8| char::from(byte).to_digit(16);
                u8::try_from(digit(digits[0])? * 16 + digit(digits[1])?).ok()?
            }
            b'+' if query => b' ',
            byte => byte,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(version: &str, name: Option<&str>) -> Route {
        Route::Create { version: version.to_owned(), name: name.map(str::to_owned) }
    }

    #[test]
    fn containers_are_created_with_and_without_version_and_name() {
        for (target, expected) in [
            ("/containers/create", create("", None)),
            ("/v1.41/containers/create", create("/v1.41", None)),
            ("/v1.41/containers/create?platform=&name=shop_web_1", create("/v1.41", Some("shop_web_1"))),
            ("/v1.41/containers/%63reate?n%61me=a%2Db&name=c", create("/v1.41", Some("a-b"))),
            ("/containers/create?name=", create("", None)),
        ] {
            assert_eq!(route("POST", target), Ok(expected), "{target}");
        }
    }

    #[test]
    fn what_is_done_to_a_container_is_known_by_its_path() {
        let container = || "web".to_owned();
        for (method, target, expected) in [
            ("POST", "/v1.24/containers/web/start", Route::Start { container: container() }),
            ("POST", "/containers/web/stop?t=1", Route::Stop { container: container() }),
            ("POST", "/containers/web/kill", Route::Stop { container: container() }),
            ("POST", "/containers/web/restart", Route::Restart { container: container() }),
            ("DELETE", "/containers/web?v=1", Route::Remove { container: container() }),
            ("GET", "/containers/web/json", Route::Inspect { container: container() }),
            ("POST", "/networks/fog/connect", Route::Connect { network: "fog".to_owned() }),
            ("POST", "/networks/fog/disconnect", Route::Disconnect { network: "fog".to_owned() }),
            (
                "POST",
                "/containers/web/rename?name=old",
                Route::Rename { container: container(), name: "old".to_owned() },
            ),
        ] {
            assert_eq!(route(method, target), Ok(expected), "{target}");
        }
    }

    #[test]
    fn everything_else_passes() {
        for (method, target) in [
            ("GET", "/_ping"),
            ("HEAD", "/_ping"),
            ("GET", "/containers/json?all=1"),
            ("GET", "/containers/create"),
            ("POST", "/containers/web/attach?stream=1"),
            ("POST", "/v1.41/exec/4f/start"),
            ("POST", "/build?t=a%2Fb"),
            ("GET", "/images/shop/web:1/json"),
            ("POST", "/vnext/containers/create"),
            ("POST", "/containers/prune"),
        ] {
            assert_eq!(route(method, target), Ok(Route::Pass), "{target}");
        }
    }

    #[test]
    fn a_path_that_the_engine_would_clean_is_refused() {
        for target in [
            "http://docker/containers/create",
            "containers/create",
            "*",
            "//containers/create",
            "/v1.41//containers/create",
            "/containers/./create",
            "/images/../containers/create",
            "/images/%2e%2e/containers/create",
            "/%2fcontainers/create",
            "/%ff",
            "/%zz",
            "/%4",
        ] {
            assert!(route("POST", target).is_err(), "{target}");
        }
    }
}
