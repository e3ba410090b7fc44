//! What a request asks for, as the engine's own router reads it.

/// A request that is more than passed on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Route {
    /// An image is built.
    Build,
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
    /// A way to start containers that is not read here.
    Unread {
        what: &'static str,
    },
    /// Reads, changes or talks to what is within a container.
    Within {
        /// The target up to the container's name.
        before: String,
        container: String,
        /// The target behind it.
        after: String,
    },
}

/// What reads, changes or talks to what is within a container: its files, its processes, its memory.
const WITHIN: [&str; 9] =
    ["archive", "attach", "checkpoint", "checkpoints", "copy", "exec", "export", "mount", "restore"];

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
    if let Some(within) = within(version, &parts, query)? {
        return Ok(within);
    }
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
        ("POST", ["build"] | ["libpod", "build"]) => {
            // Its steps would run in that network, with what it gives.
            if values(query, "networkmode")?
                .iter()
                .any(|mode| ["container:", "ns:"].iter().any(|kind| mode.starts_with(kind)))
            {
                return Err("reserved-container: a build in the network of a container would have its identity; fix: build \
                            in a network"
                    .to_owned());
            }
            Route::Build
        }
        ("POST", ["services", ..]) => Route::Unread { what: "services of a swarm" },
        ("POST", ["swarm", ..]) => Route::Unread { what: "swarms" },
        (_, ["libpod", ..]) => Route::Unread { what: "Podman's own API (/libpod)" },
        ("POST", ["networks", network, "connect"]) => Route::Connect { network: owned(network) },
        ("POST", ["networks", network, "disconnect"]) => Route::Disconnect { network: owned(network) },
        _ => Route::Pass,
    })
}

/// What is done within a container, by path or, for an image of it, by query.
fn within(version: &str, parts: &[&str], query: &str) -> Result<Option<Route>, String> {
    // Podman has the same under a name of its own.
    let (parts, own) = parts.strip_prefix(&["libpod"]).map_or((parts, ""), |rest| (rest, "/libpod"));
    let (container, last) = match parts {
        ["containers", name @ .., "attach", "ws"] => (name, "attach/ws"),
        ["containers", name @ .., last] if WITHIN.contains(last) => (name, *last),
        ["commit"] => {
            let values = values(query, "container")?;
            let [container] = &values[..] else {
                return Err("the query names not one container, but none or several".to_owned());
            };
            let others = query.split('&').filter(|pair| key(pair).as_deref() != Some("container"));
            let others: String = others.map(|pair| format!("{pair}&")).collect();
            return Ok(Some(Route::Within {
                before: format!("{version}{own}/commit?{others}container="),
                container: container.clone(),
                after: String::new(),
            }));
        }
        _ => return Ok(None),
    };
    // A container of that name.
    if container.is_empty() {
        return Ok(None);
    }
    let query = if query.is_empty() { String::new() } else { format!("?{query}") };
    Ok(Some(Route::Within {
        before: format!("{version}{own}/containers/"),
        container: container.join("/"),
        after: format!("/{last}{query}"),
    }))
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

/// Every value that a query has for a name.
///
/// # Errors
/// A query that engines read differently: of old a semicolon was another ampersand.
fn values(query: &str, name: &str) -> Result<Vec<String>, String> {
    if query.contains(';') {
        return Err("the query has a semicolon in it; fix: write it as %3B".to_owned());
    }
    let mut values = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let known = key(pair).ok_or("the query is no text in UTF-8")?;
        if known == name {
            let value = pair.split_once('=').map_or("", |(_, value)| value);
            values.push(decode(value, true).ok_or("the query is no text in UTF-8")?);
        }
    }
    Ok(values)
}

fn key(pair: &str) -> Option<String> {
    decode(pair.split('=').next().unwrap_or(pair), true)
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
            ("POST", "/v1.41/exec/4f/start"),
            ("DELETE", "/containers/attach/x"),
            ("GET", "/services"),
            ("GET", "/images/shop/web:1/json"),
            ("POST", "/vnext/containers/create"),
            ("POST", "/containers/prune"),
        ] {
            assert_eq!(route(method, target), Ok(Route::Pass), "{target}");
        }
    }

    #[test]
    fn what_is_done_within_a_container_names_it_once_and_is_written_anew_by_its_id() {
        for (method, target, before, after) in [
            ("POST", "/v1.41/containers/web/exec", "/v1.41/containers/", "/exec"),
            ("GET", "/containers/%77eb/archive?path=%2Fx", "/containers/", "/archive?path=%2Fx"),
            ("PUT", "/containers/web/archive?path=/", "/containers/", "/archive?path=/"),
            ("GET", "/v1.24/containers/web/export", "/v1.24/containers/", "/export"),
            ("POST", "/containers/web/copy", "/containers/", "/copy"),
            ("POST", "/containers/web/attach?stream=1", "/containers/", "/attach?stream=1"),
            ("GET", "/containers/web/attach/ws?stream=1", "/containers/", "/attach/ws?stream=1"),
            ("POST", "/containers/web/checkpoints", "/containers/", "/checkpoints"),
            ("POST", "/v1.41/commit?repo=a&container=web&tag=1", "/v1.41/commit?repo=a&tag=1&container=", ""),
            ("POST", "/commit?c%6Fntainer=w%65b", "/commit?container=", ""),
            ("POST", "/v4.0.0/libpod/containers/web/exec", "/v4.0.0/libpod/containers/", "/exec"),
        ] {
            let (before, after) = (before.to_owned(), after.to_owned());
            let expected = Route::Within { before, container: "web".to_owned(), after };
            assert_eq!(route(method, target), Ok(expected), "{target}");
        }
        // By the name of a link.
        let Ok(Route::Within { container, .. }) = route("POST", "/containers/other/web/exec") else {
            panic!()
        };
        assert_eq!(container, "other/web");
        for target in ["/commit", "/commit?container=a&container=b", "/commit?x=1;container=a&container=b"] {
            assert!(route("POST", target).is_err(), "{target}");
        }
    }

    #[test]
    fn a_build_in_the_network_of_a_container_is_refused() {
        for query in ["", "?t=a%2Fb", "?networkmode=", "?networkmode=host", "?networkmode=shop_default"] {
            assert_eq!(route("POST", &format!("/v1.41/build{query}")), Ok(Route::Build), "{query}");
        }
        for query in [
            "networkmode=container:web",
            "networkmode=container%3Aweb",
            "networkmode=default&networkm%6Fde=container:web",
            "a=1;networkmode=container:web",
            "networkmode=ns:/proc/1/ns/net",
        ] {
            assert!(route("POST", &format!("/build?{query}")).is_err(), "{query}");
        }
    }

    #[test]
    fn other_ways_to_start_containers_are_known_as_such() {
        for (method, target) in [
            ("POST", "/v1.41/services/create"),
            ("POST", "/services/x/update"),
            ("POST", "/swarm/init"),
            ("POST", "/v4.0.0/libpod/containers/create"),
            ("GET", "/libpod/info"),
        ] {
            assert!(matches!(route(method, target), Ok(Route::Unread { .. })), "{target}");
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
