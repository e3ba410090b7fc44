use super::*;

fn policy(forms: &[Form]) -> NormalizationPolicyModel {
    let paths = ["/public/**", "/secret/**"].map(|path| crate::PathPattern::parse(path).unwrap()).to_vec();
    NormalizationPolicyModel {
        name: "n".into(),
        target: Target::Everything,
        ports: Vec::new(),
        rules: vec![NormalizationRuleModel {
            to: vec![Route { methods: Vec::new(), paths }],
            forms: forms.iter().copied().collect(),
        }],
    }
}

fn path_of(forms: &[Form], path: &str) -> Option<String> {
    let received = ReceivedTarget { method: "GET", target: path, authority: None, hosts: &["cimi"] };
    read_target(std::iter::once(&policy(forms)), &received).ok().map(|read| read.path.into_owned())
}

#[test]
fn each_form_is_a_switch_of_its_own() {
    use Form::{Backslash, DotSegments, EscapedSlash, Escapes, Parameters, Slashes};
    let table: &[(&[Form], &str, &str)] = &[
        (&[Slashes], "/public//a", "/public/a"),
        (&[Slashes], "//public/a", "/public/a"),
        (&[Slashes], "/public/a//", "/public/a/"),
        (&[DotSegments], "/public/./a", "/public/a"),
        (&[DotSegments], "/public/x/../a", "/public/a"),
        (&[DotSegments], "/public/x/%2E%2e/a", "/public/a"),
        (&[DotSegments], "/public/a/.", "/public/a/"),
        (&[DotSegments], "/public/a/..", "/public/"),
        (&[EscapedSlash], "/public%2Fa", "/public/a"),
        (&[EscapedSlash], "/public%2fa", "/public/a"),
        (&[Backslash], "/public\\a", "/public/a"),
        (&[Backslash], "/public%5Ca", "/public/a"),
        (&[Parameters], "/public;v=1/a;jsessionid=7", "/public/a"),
        (&[DotSegments, EscapedSlash], "/public/x%2f..%2fa", "/public/a"),
        (&[DotSegments, Parameters], "/public/x/..;y/a", "/public/a"),
        (&[DotSegments, Slashes], "/public//../a", "/a"),
    ];
    for &(forms, path, expected) in table {
        let read = path_of(forms, path);
        if expected == "/a" {
            assert_eq!(read, None, "{path}: in its normal form it is no route of the policy");
        } else {
            assert_eq!(read.as_deref(), Some(expected), "{path}");
        }
        for missing in forms {
            let others: Vec<Form> = Form::ALL.into_iter().filter(|form| form != missing).collect();
            assert_eq!(path_of(&others, path), None, "{path} without {missing:?}");
        }
    }
    // Escapes that need not be there are no reason to refuse; the switch makes them normal.
    assert_eq!(path_of(&[], "/public/%61%c3%a9").as_deref(), Some("/public/%61%c3%a9"));
    assert_eq!(path_of(&[Escapes], "/public/%61%c3%a9").as_deref(), Some("/public/a%C3%A9"));
    assert_eq!(path_of(&[Slashes], "/public//%61").as_deref(), Some("/public/%61"));
}

#[test]
fn what_no_reading_is_right_for_is_refused_with_every_form() {
    for path in [
        "/public/%00",
        "/public/%",
        "/public/%zz",
        "/public/%c0%af",
        "/public/%252e",
        "/public/%252f",
        "/../public/a",
        "/public/../../public/a",
        "/public/a#b",
        "/public/\u{e9}",
        "/public/%0d%0a",
        "public/a",
        "/public/ a",
        "/other//a",
        "/public/..%2f..%2fpublic/a",
    ] {
        assert_eq!(path_of(&Form::ALL, path), None, "{path}");
    }
}

#[test]
fn hosts_that_differ_in_an_accepted_form_only_are_one() {
    let host_of = |forms: &[Form], authority: Option<&str>, hosts: &[&str]| {
        let received = ReceivedTarget { method: "GET", target: "/public/a", authority, hosts };
        read_target(std::iter::once(&policy(forms)), &received).ok().map(|read| read.authority.into_owned())
    };
    use Form::{HostCase, HostDefaultPort, HostTrailingDot};
    assert_eq!(host_of(&[], None, &["Cimi.:80"]).as_deref(), Some("Cimi.:80"));
    assert_eq!(host_of(&[HostCase], None, &["Cimi.:80"]).as_deref(), Some("cimi.:80"));
    assert_eq!(host_of(&[HostTrailingDot], None, &["Cimi.:80"]).as_deref(), Some("Cimi:80"));
    assert_eq!(host_of(&[HostDefaultPort], None, &["Cimi.:80"]).as_deref(), Some("Cimi."));
    for (form, other) in [(HostCase, "CIMI"), (HostTrailingDot, "cimi."), (HostDefaultPort, "cimi:80")] {
        assert_eq!(host_of(&[form], Some("cimi"), &[other]).as_deref(), Some("cimi"));
        let others: Vec<Form> = Form::ALL.into_iter().filter(|known| *known != form).collect();
        assert_eq!(host_of(&others, Some("cimi"), &[other]), None, "{other}");
    }
    assert_eq!(host_of(&Form::ALL, None, &["cimi", "cimi"]), None);
    assert_eq!(host_of(&Form::ALL, Some("cimi"), &["other"]), None);
    assert_eq!(host_of(&Form::ALL, None, &[]), None);
    assert_eq!(host_of(&Form::ALL, None, &["[::1]:80"]).as_deref(), Some("[::1]"));
}

#[test]
fn a_normal_form_is_its_own_normal_form() {
    for path in ["/public/a", "/public/", "/public", "/public/a%2Cb", "/public/~a-b_c.d", "/public/%25"] {
        assert_eq!(path_of(&Form::ALL, path).as_deref(), Some(path));
    }
    let parts = [
        "public", "secret", "..", ".", "", "%2e%2e", "x;y", "..;z", "%2f", "%5c", "a%2Fb", "%61", "%C3%a9",
        "\\",
    ];
    let mut state = 7_u64;
    let mut next = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % bound
    };
    let mut read = 0;
    for _ in 0..20_000 {
        let count = 1 + next(6);
        let path: String = (0..count).map(|_| format!("/{}", parts[next(parts.len())])).collect();
        for forms in
            [&Form::ALL[..], &[Form::DotSegments, Form::EscapedSlash, Form::Slashes, Form::Parameters]]
        {
            let Some(normal) = path_of(forms, &path) else { continue };
            read += 1;
            assert!(check_path(&normal).is_ok(), "{path}: {normal}");
            let is_routed = normal.starts_with("/public") || normal.starts_with("/secret");
            assert!(is_routed || normal == path, "{path}: {normal} is no route of the policy");
            assert_eq!(path_of(forms, &normal), Some(normal), "{path}");
        }
    }
    assert!(read > 5_000, "{read}");
}
