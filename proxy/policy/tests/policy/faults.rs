//! Every fault stands where it is, says what it is, and says what to write instead.

use signet_policy::{MAX_DIAGNOSTICS, MAX_TEXT_BYTES, parse_manifests};

use crate::{MESH, faults_of, manifest, model_of};

/// The one fault of a text.
#[track_caller]
fn assert_fault(text: &str, expected: &str) {
    let faults = faults_of(text);
    assert_eq!(faults, [format!("test.yaml:{expected}")]);
}

#[track_caller]
fn assert_workload_fault(spec: &str, expected: &str) {
    assert_fault(&format!("{MESH}{}", manifest("Workload", "w", spec)), expected);
}

/// A policy for a workload with a port of unknown protocol, an opaque one and one where the server speaks first.
fn policy_text(spec: &str) -> String {
    let workload = "class: app\ndevice: d\nnetwork: n1\nports:\n- {port: 80}\n- {port: 81, protocol: opaque}\n- {port: 82, speaksFirst: server}";
    format!("{MESH}{}{}", manifest("Workload", "web", workload), manifest("AccessPolicy", "p", spec))
}

#[test]
fn shape_faults_have_a_place_and_a_fix() {
    let head = "apiVersion: signet.mf2c-project.eu/v1alpha1\nkind: Mesh\nmetadata: {name: m}\n";
    let table = [
        ("spec: {trustDomain: td, mtl: {mode: strict}}", "4:25: unknown field `mtl`; fix: write `mtls`"),
        (
            "spec: {trustDomain: td}\nextra: 1",
            "5:1: unknown field `extra`; fix: use one of `apiVersion`, `kind`, `metadata`, `spec`",
        ),
        ("spec: {}", "4:7: the field `trustDomain` is missing; fix: add `trustDomain:`"),
        (
            "spec: {trustDomain: td, trustDomain: td}",
            "4:25: `trustDomain` is given twice; fix: keep one of the two",
        ),
        (
            "spec: {trustDomain: td, <<: {a: 1}}",
            "4:25: merge keys (`<<`) are not accepted; fix: write the fields out",
        ),
        (
            "spec: {trustDomain: td, egress: [{cidr: 10.0.0.0/8, protocol: tcp, ports: [http]}]}",
            "4:76: expected a whole number, found `http]}]}`; fix: write digits",
        ),
        ("spec: {trustDomain: td, networks: }", "4:"),
        ("spec: {trustDomain: [td]}", "4:21: "),
        ("spec: [", "4:"),
        ("spec: {trustDomain: \"td", "4:"),
        ("spec:\n\ttrustDomain: td", "5:"),
        ("spec: {trustDomain: td}\n...\nkind: Mesh", "6:1: text follows"),
        ("spec: {trustDomain: !secret td}", "4:"),
        ("spec: {trustDomain: *nothing}", "4:"),
    ];
    for (rest, expected) in table {
        let faults = faults_of(&format!("{head}{rest}"));
        assert!(
            faults.len() == 1 && faults[0].starts_with(&format!("test.yaml:{expected}")),
            "{rest}: {faults:?}"
        );
        assert!(faults[0].contains("; fix: "), "{faults:?}");
    }
}

#[test]
fn envelope_faults_have_a_place_and_a_fix() {
    let table = [
        (
            "apiVersion: signet.mf2c-project.eu/v1\nkind: Mesh\nmetadata: {name: m}\nspec: {trustDomain: td}",
            "1:13: `signet.mf2c-project.eu/v1` is no version of manifests; fix: write `signet.mf2c-project.eu/v1alpha1`",
        ),
        (
            "apiVersion: signet.mf2c-project.eu/v1alpha1\nkind: Mash\nmetadata: {name: m}\nspec: {a: [b]}",
            "2:7: `Mash` is no kind of manifest; fix: write `Mesh`",
        ),
        (
            "kind: Mesh\nmetadata: {name: m}\nspec: {trustDomain: td}",
            "1:1: the field `apiVersion` is missing; fix: add `apiVersion:`",
        ),
        (
            "apiVersion: signet.mf2c-project.eu/v1alpha1\nspec: {trustDomain: td}\nkind: Mesh\nmetadata: {name: m}",
            "2:7: `spec` comes before `kind`, which says what it means; fix: move `kind` up",
        ),
        (
            "apiVersion: signet.mf2c-project.eu/v1alpha1\nspec: {trustDomain: td}",
            "1:1: the field `kind` is missing; fix: add `kind:`",
        ),
        (
            "apiVersion: signet.mf2c-project.eu/v1alpha1\nkind: Mesh\nspec: {trustDomain: td}",
            "1:1: the field `metadata` is missing; fix: add `metadata:`",
        ),
        ("- a list", "1:1: "),
        ("just words", "1:1: "),
        ("key: \u{0}", "1:"),
    ];
    for (text, expected) in table {
        let faults = faults_of(text);
        assert!(
            faults.len() == 1 && faults[0].starts_with(&format!("test.yaml:{expected}")),
            "{text}: {faults:?}"
        );
    }
}

#[test]
fn lines_count_from_the_start_of_the_file() {
    let text = format!("# comment\n---\n# nothing here\n---\n{MESH}---\nkind: Mesh\nbad: 1\n");
    assert_eq!(
        faults_of(&text)[0],
        "test.yaml:13:1: unknown field `bad`; fix: use one of `apiVersion`, `kind`, `metadata`, `spec`"
    );
}

#[test]
fn all_documents_report_their_faults() {
    let bad = manifest("Workload", "w", "colour: red");
    let faults = faults_of(&format!("{bad}{bad}{MESH}{bad}"));
    let lines: Vec<&str> = faults.iter().map(|fault| fault.split(':').nth(1).unwrap()).collect();
    assert_eq!(lines, ["6", "12", "24"]);
}

#[test]
fn all_values_report_their_faults() {
    let spec = "class: robot\ndevice: a/b\nnetwork: n3\nnames: [ok, 'not ok']\nports: [{port: 0}, {port: 70000}, {port: 80, protocol: htp}]";
    let faults = faults_of(&format!("{MESH}{}", manifest("Workload", "W!", spec)));
    assert_eq!(
        faults,
        [
            "test.yaml:10:18: `W!` is no name for a Workload; fix: use lower-case letters, digits, `-` and `.`, with a letter or digit at both ends",
            "test.yaml:12:10: `robot` is no class; fix: use one of `agent`, `app`, `external`, `platform`",
            "test.yaml:13:11: `a/b` cannot be the device in a SPIFFE ID; fix: use letters, digits, `.`, `-` and `_`",
            "test.yaml:14:12: network `n3` is not declared in the Mesh; fix: write `n1`",
            "test.yaml:15:15: `not ok` is no host name; fix: write the name alone, without scheme, port or wildcard",
            "test.yaml:16:18: `0` is no port; fix: use a number from 1 to 65535",
            "test.yaml:16:29: `70000` is no port; fix: use a number from 1 to 65535",
            "test.yaml:16:58: `htp` is no protocol; fix: write `http`",
        ]
    );
}

#[test]
fn mesh_values_are_checked() {
    let table = [
        ("trustDomain: TD", "5:16: `TD` is no trust domain: "),
        (
            "trustDomain: td\nmtls: {mode: off}",
            "6:16: `off` is no mTLS mode; fix: use one of `permissive`, `strict`",
        ),
        (
            "trustDomain: td\nprotection: {level: secret}",
            "6:23: `secret` is no protection level; fix: use one of `private`, `protected`, `public`",
        ),
        (
            "trustDomain: td\nprotection: {mode: ed25519-bach}",
            "6:22: `ed25519-bach` is no signature mode; fix: write `ed25519-batch`",
        ),
        (
            "trustDomain: td\nprotection: {recordHash: sha256}",
            "6:28: `sha256` is no record hash; fix: write `sha-256`",
        ),
        (
            "trustDomain: td\nprotection: {sealedHeaders: []}",
            "6:31: `sealedHeaders` is empty; fix: leave it out to seal the usual ones",
        ),
        (
            "trustDomain: td\nprotection: {sealedHeaders: [X-Own, Host]}",
            "6:39: `Host` cannot be sealed; fix: remove it: it is needed to carry the message",
        ),
        (
            "trustDomain: td\nprotection: {sealedHeaders: ['cookie: a']}",
            "6:32: `cookie: a` is no header name; fix: write the name alone, without colon or value",
        ),
        ("trustDomain: td\nprotection: {mode: hmca}", "6:22: `hmca` is no signature mode; fix: write `hmac`"),
        (
            "trustDomain: td\nprotection: {verify: afterwards}",
            "6:24: `afterwards` is no verification; fix: use one of `async`, `gate`",
        ),
        ("trustDomain: td\nclockSkew: 300", "6:14: `300` is no duration; fix: add the unit: `300s`"),
        ("trustDomain: td\nclockSkew: 2h", "6:14: `2h` is out of range; fix: use 1s to 1h"),
        (
            "trustDomain: td\nclockSkew: 1h30m",
            "6:14: `1h30m` is no duration; fix: write one number and one unit of s, m, h, d, such as `90s` or `30d`",
        ),
        ("trustDomain: td\nclockSkew: -5s", "6:14: `-5s` is no duration; fix: write one number"),
        ("trustDomain: td\nclockSkew: 99999999999999999999s", "6:14: `99999999999999999999s` is no duration"),
        (
            "trustDomain: td\ncertificates: {app: {lifetime: 91d}}",
            "6:34: `91d` is out of range; fix: use 1s to 90d",
        ),
        (
            "trustDomain: td\ncertificates: {app: {lifetime: 18446744073709551615d}}",
            "6:34: `18446744073709551615d` is out of range",
        ),
        ("trustDomain: td\ncertificates: {app: {lifetime: 0s}}", "6:34: `0s` is out of range"),
        ("trustDomain: td\ncertificates: {robot: {lifetime: 1h}}", "6:18: unknown field `robot`"),
        (
            "trustDomain: td\negress: [{cidr: 10.0.0.1/8, protocol: tcp}]",
            "6:19: `10.0.0.1/8` is no address range; fix: write `10.0.0.0/8`, or a longer prefix",
        ),
        (
            "trustDomain: td\negress: [{cidr: 10.0.0.1, protocol: tcp}]",
            "6:19: `10.0.0.1` is no address range; fix: write `10.0.0.1/32` for this one address",
        ),
        ("trustDomain: td\negress: [{cidr: all, protocol: tcp}]", "6:19: `all` is no address range"),
        (
            "trustDomain: td\negress: [{cidr: '::/0', protocol: sctp}]",
            "6:37: `sctp` is no transport protocol; fix: use one of `tcp`, `udp`",
        ),
        ("trustDomain: td\negress: []", "6:11: `egress` is empty; fix: leave it out to permit none"),
        (
            "trustDomain: td\nnetworks: [{name: a}, {name: a}]",
            "6:32: network `a` is declared twice; fix: rename or remove one of the two",
        ),
        (
            "trustDomain: td\nnetworks: [{name: a, gateways: [10.0.0.0/8]}]",
            "6:35: `10.0.0.0/8` is no IP address",
        ),
    ];
    for (spec, expected) in table {
        let text = manifest("Mesh", "m", spec).replacen("---\n", "", 1);
        let faults = faults_of(&text);
        assert!(
            faults.len() == 1 && faults[0].starts_with(&format!("test.yaml:{expected}")),
            "{spec}: {faults:?}"
        );
    }
}

#[test]
fn workload_values_are_checked() {
    let base = "class: app\ndevice: d\nnetwork: n2\n";
    let table = [
        ("ports: [{port: 80}, {port: 80}]", "15:30: port 80 is declared twice; fix: remove one of the two"),
        ("ports: []", "15:10: `ports` is empty; fix: leave it out when they are not known"),
        (
            "ports: [{port: 80, protocol: http, speaksFirst: server}]",
            "15:51: with protocol http the client speaks first; fix: remove `speaksFirst`, or use `protocol: opaque`",
        ),
        (
            "ports: [{port: 80, speaksFirst: nobody}]",
            "15:35: `nobody` is no side of a connection; fix: use one of `client`, `server`",
        ),
        (
            "addresses: [10.3.0.1]",
            "15:15: 10.3.0.1 is not in the network `n2`; fix: use an address of 10.2.0.0/16",
        ),
        (
            "ports: [{port: 80}]\nadvertise: [{network: n1, address: 10.2.0.1, port: 8080, targetPort: 81}]",
            "16:72: port 81 is not one of the workload's `ports`; fix: declare it there, or correct the number",
        ),
        (
            "workload: ..",
            "15:13: `..` cannot be the workload in a SPIFFE ID; fix: use letters, digits, `.`, `-` and `_`",
        ),
        (
            "names: [http://cimi]",
            "15:11: `http://cimi` is no host name; fix: write the name alone, without scheme, port or wildcard",
        ),
    ];
    for (rest, expected) in table {
        assert_workload_fault(&format!("{base}{rest}"), expected);
    }
    assert_workload_fault(
        "class: platform\ndevice: d\nnetwork: n1\nworkload: control-plane",
        "15:13: spiffe://td/platform/d/control-plane is the control plane's own identity; fix: choose another `workload`",
    );
}

#[test]
fn policy_values_are_checked() {
    let all = "from: [{any: anyone}]";
    let table = [
        ("target: {workloads: [wep]}\nrules: []", "24:24: no Workload is called `wep`; fix: write `web`"),
        (
            "target: {workloads: []}\nrules: []",
            "24:23: `workloads` is empty; fix: name some, or write `workloads: [\"*\"]` for all",
        ),
        (
            "target: {}\nrules: []",
            "24:11: a target has either `workloads` or `classes`; fix: write `workloads: [\"*\"]` for all",
        ),
        (
            "target: {workloads: ['*', web]}\nrules: []",
            "24:24: `*` stands for all and is not alone; fix: remove `*`, or the others",
        ),
        ("target: {classes: [apps]}\nrules: []", "24:22: `apps` is no class; fix: write `app`"),
        (
            "target: {workloads: [web]}\nports: []\nrules: []",
            "25:10: `ports` is empty; fix: leave it out for all ports",
        ),
        (
            "target: {workloads: [web]}\nports: [80, 80]\nrules: []",
            "25:15: port 80 is listed twice; fix: remove one of the two",
        ),
        (
            "target: {workloads: [web]}\nports: [8080]\nrules: []",
            "25:11: no targeted workload has port 8080; fix: correct the number, or declare the port in the Workload",
        ),
        (
            "target: {workloads: [web]}\nmode: dry-run\nrules: []",
            "25:9: `dry-run` is no policy mode; fix: use one of `enforce`, `observe`",
        ),
        (
            "target: {workloads: [web]}\nrules: [{from: []}]",
            "25:18: `from` is empty; fix: write `- any: authenticated` for every identity, or `- any: anyone` for everybody",
        ),
        (
            "target: {workloads: [web]}\nrules: [{from: [{class: app, any: anyone}]}]",
            "25:19: a source has exactly one of `identity`, `class`, `role`, `trustDomain`, `any`; fix: start a new list entry with `- ` for each",
        ),
        (
            "target: {workloads: [web]}\nrules: [{from: [{any: everyone}]}]",
            "25:25: `any` cannot be `everyone`; fix: use one of `anyone`, `authenticated`",
        ),
        (
            "target: {workloads: [web]}\nrules: [{from: [{identity: 'spiffe://td/app/d*'}]}]",
            "25:30: `spiffe://td/app/d*` is no identity pattern: `d*`: a wildcard stands for a whole segment; fix: use `*` alone between slashes, or list the values",
        ),
        (
            "target: {workloads: [web]}\nrules: [{from: [{trustDomain: '*'}]}]",
            "25:33: `*` is no trust domain: ",
        ),
        (
            "target: {workloads: [web]}\nrules: [{name: a, ALL}, {name: a, ALL}]",
            "25:52: rule `a` is there twice; fix: rename one of the two",
        ),
        (
            "target: {workloads: [web]}\nrules: [{ALL, to: []}]",
            "25:39: `to` is empty; fix: leave it out to allow everything on the policy's ports",
        ),
        (
            "target: {workloads: [web]}\nrules: [{ALL, to: [{}]}]",
            "25:40: an operation without `methods`, `paths`, `headers` and `ports` is everything; fix: leave out `to` if that is meant",
        ),
        (
            "target: {workloads: [web]}\nports: [80]\nrules: [{ALL, to: [{methods: []}]}]",
            "26:50: `methods` is empty; fix: leave it out for all methods",
        ),
        (
            "target: {workloads: [web]}\nports: [80]\nrules: [{ALL, to: [{methods: }]}]",
            "26:48: expected a list, found `: }]}]`; fix: ",
        ),
        (
            "target: {workloads: [web]}\nports: [80]\nrules: [{ALL, to: [{methods: [get]}]}]",
            "26:51: `get` is no method to allow; fix: write `GET`: methods are case-sensitive",
        ),
        (
            "target: {workloads: [web]}\nports: [80]\nrules: [{ALL, to: [{methods: ['*']}]}]",
            "26:51: `*` is no method to allow; fix: leave out `methods` for all methods",
        ),
        (
            "target: {workloads: [web]}\nports: [80]\nrules: [{ALL, to: [{paths: [/a//b]}]}]",
            "26:49: `/a//b` is no path pattern: no request can match it: the path holds an empty segment (`//`); fix: ",
        ),
        (
            "target: {workloads: [web]}\nports: [80]\nrules: [{ALL, to: [{ports: [81]}]}]",
            "26:40: the policy does not select port 81; fix: add 81 to the policy's `ports`, or remove it here",
        ),
        (
            "target: {workloads: [web]}\nrules: [{ALL, to: [{methods: [GET]}]}]",
            "25:40: methods, paths or headers are asked for on port 81 of web, which does not speak plain HTTP; fix: give this operation `ports` that speak HTTP",
        ),
        (
            "target: {workloads: [web]}\nrules: [{ALL, to: [{methods: [GET], ports: [82]}]}]",
            "25:40: methods, paths or headers are asked for on port 82 of web",
        ),
    ];
    let mut wrong = Vec::new();
    for (spec, expected) in table {
        let faults = faults_of(&policy_text(&spec.replace("ALL", all)));
        if faults.len() != 1 || !faults[0].starts_with(&format!("test.yaml:{expected}")) {
            wrong.push(format!("{expected}\n{}\n", faults.join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.concat());
    let escape = policy_text("target: {workloads: [web]}\nrules: [{from: [{class: \"ap\\ep\"}]}]");
    assert_fault(&escape, "25:27: `ap\\u{1b}p` is no class; fix: write `app`");
}

#[test]
fn workloads_that_collide_are_refused() {
    let one = "class: app\ndevice: d\nworkload: x\nnetwork: n1\n";
    let two = "class: app\ndevice: d\nworkload: y\nnetwork: n1\n";
    let place = "advertise: [{network: n1, address: 10.0.0.1, port: 80, targetPort: 80}]";
    let table = [
        ("a", one, "a", two, "Workload `a` is already declared at test.yaml:10"),
        ("a", one, "b", one, "the identity spiffe://td/app/d/x already belongs to a at test.yaml:10"),
    ];
    for (first, first_spec, second, second_spec, expected) in table {
        let text = format!(
            "{MESH}{}{}",
            manifest("Workload", first, first_spec),
            manifest("Workload", second, second_spec)
        );
        let faults = faults_of(&text);
        assert!(faults.iter().any(|fault| fault.contains(expected)), "{faults:?}");
    }
    for (rest, expected) in [
        (place, "port 80 at 10.0.0.1 in `n1` already belongs to a"),
        ("addresses: [10.0.0.1]", "the address 10.0.0.1 in `n1` already belongs to a"),
    ] {
        let text = format!(
            "{MESH}{}{}",
            manifest("Workload", "a", &format!("{one}{rest}")),
            manifest("Workload", "b", &format!("{two}{rest}"))
        );
        let faults = faults_of(&text);
        assert!(faults.len() == 1 && faults[0].contains(expected), "{faults:?}");
    }
}

#[test]
fn workloads_in_one_network_namespace_may_share_an_address() {
    let spec = |name: &str, port| {
        manifest(
            "Workload",
            name,
            &format!("class: app\ndevice: d\nnetwork: n1\naddresses: [10.0.0.1]\nports: [{{port: {port}}}]"),
        )
    };
    crate::model_of(&format!("{MESH}{}{}", spec("a", 80), spec("b", 81)));
}

#[test]
fn exactly_one_mesh_is_needed() {
    assert_eq!(
        faults_of(&manifest("Workload", "w", "class: app\ndevice: d\nnetwork: n1")),
        [
            "test.yaml:1:1: there is no Mesh manifest; fix: add one document of kind Mesh; it names the trust domain"
        ]
    );
    assert_eq!(faults_of("").len(), 1);
    assert_eq!(
        faults_of(&format!("{MESH}---\n{MESH}")),
        ["test.yaml:10:18: there is already a Mesh at test.yaml:3; fix: keep one of the two"]
    );
}

#[test]
fn oversized_and_exploding_texts_are_refused() {
    let large = " ".repeat(MAX_TEXT_BYTES + 1);
    assert!(faults_of(&large)[0].contains("the text has 1048577 bytes"));
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..9 {
        let before = format!("*a{}, ", level - 1).repeat(10);
        bomb += &format!("a{level}: &a{level} [{before}]\n");
    }
    let labels = format!("{}labels:\n{}", MESH, bomb);
    assert_eq!(faults_of(&labels).len(), 1);
    let deep = format!("{MESH}  mtls: {}{}", "[".repeat(5_000), "]".repeat(5_000));
    assert_eq!(faults_of(&deep).len(), 1);
    let many = format!("{MESH}{}", manifest("Workload", "w", "x: 1").repeat(300));
    assert_eq!(faults_of(&many).len(), MAX_DIAGNOSTICS);
    assert!(faults_of(&"---\na: 1\n".repeat(10)).len() == 10);
}

#[test]
fn a_device_of_digits_stays_text() {
    let device = "12345678".repeat(16);
    let model = crate::model_of(&format!(
        "{MESH}{}",
        manifest("Workload", "no", &format!("class: agent\ndevice: {device}\nnetwork: n1"))
    ));
    assert_eq!(model.workloads[0].id.as_str(), format!("spiffe://td/agent/{device}/no"));
}

#[test]
fn every_document_keeps_its_own_text() {
    let second = manifest("Workload", "w", "class: app\ndevice: d\nnetwork: n1");
    let manifests = parse_manifests("test.yaml", &format!("{MESH}{second}")).unwrap();
    assert_eq!(manifests[0].text(), MESH);
    assert_eq!(manifests[1].text(), second);
    assert_eq!(
        (manifests[1].kind().as_str(), manifests[1].name(), manifests[1].line()),
        ("Workload", "w", 10)
    );
}

#[test]
fn more_udp_egress_than_a_sidecar_has_room_for_is_refused_where_it_gets_too_much() {
    let ports = |first: u16, count: u16| {
        (first..first + count).map(|port| port.to_string()).collect::<Vec<_>>().join(", ")
    };
    let mesh = |last: &str| {
        let spec = format!(
            "trustDomain: td\negress:\n- {{cidr: 10.0.0.0/8, protocol: udp, ports: [{}]}}\n\
             - {{cidr: 10.0.0.0/8, protocol: tcp, ports: [{}]}}\n- {{cidr: 10.1.0.0/16, protocol: udp}}\n{last}",
            ports(1, 95),
            ports(1, 200),
        );
        manifest("Mesh", "m", &spec).replacen("---\n", "", 1)
    };
    assert_eq!(model_of(&mesh("")).egress.len(), 3);
    let faults = faults_of(&mesh(
        "- {cidr: 10.2.0.0/16, protocol: udp, ports: [5, 6]}\n- {cidr: 10.3.0.0/16, protocol: udp}",
    ));
    let [fault] = faults.as_slice() else { panic!("{faults:?}") };
    assert!(
        fault.starts_with("test.yaml:10:12: with this entry UDP may go to 98 pairs of range and port"),
        "{fault}"
    );
}
