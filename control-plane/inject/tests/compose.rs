//! Compose files of many kinds are injected as it is written down beside them, and come back as they were.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use signet_inject::compose::{
    Fault, Injected, Input, Options, Outcome, Severity, Source, inject, is_injected, restore,
};

const FIXTURES: [&str; 9] =
    ["agent", "anchors", "defaults", "flow", "host", "networks", "profiles", "small", "windows"];

fn options() -> Options {
    Options {
        class: "app".to_owned(),
        device: "box".to_owned(),
        directory: "./signet".to_owned(),
        docker_socket: Some("/var/run/docker.sock".to_owned()),
        force: false,
        host_address: Some([192, 0, 2, 1].into()),
        host_ports: 15100,
        image_prefix: String::new(),
        mesh: "box".to_owned(),
        strict: false,
        tag: "test".to_owned(),
        trust_domain: "box.signet.internal".to_owned(),
    }
}

/// Stands for a digest: two texts of one length and sum are not met here.
fn digest(bytes: &[u8]) -> String {
    format!("sum:{}:{}", bytes.len(), bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>())
}

fn injected_with(text: &str, options: &Options) -> Result<Injected, Fault> {
    let read = |_: &str| Err("there are no other files".to_owned());
    inject(&Input { digest: &digest, file: "compose.yml", options, over: &[], read: &read, text })
}

fn injected(text: &str) -> Result<Injected, Fault> {
    injected_with(text, &options())
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/compose")
}

fn fixture(name: &str) -> String {
    fs::read_to_string(folder().join(format!("{name}.yml"))).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The files beside are written anew with `SIGNET_BLESS=1`; read the difference before it is taken.
#[test]
fn fixtures_are_injected_as_written_down() {
    for name in FIXTURES {
        let injected = injected(&fixture(name)).unwrap_or_else(|fault| panic!("{name}: {fault}"));
        for (ending, text) in [("injected", &injected.text), ("mesh", &injected.manifests)] {
            let path = folder().join(format!("{name}.{ending}.yml"));
            if std::env::var_os("SIGNET_BLESS").is_some() {
                fs::write(&path, text).unwrap();
            }
            assert_eq!(*text, fs::read_to_string(&path).unwrap(), "{name}.{ending}");
        }
    }
}

#[test]
fn fixtures_come_back_byte_for_byte_and_injecting_again_changes_nothing() {
    for name in FIXTURES {
        let text = fixture(name);
        let once = injected(&text).unwrap().text;
        assert_eq!(injected(&once).unwrap().text, once, "{name}");
        let restored = restore("f", &once).unwrap();
        assert_eq!(restored.text, text, "{name}");
        assert_eq!(restored.digest, digest(text.as_bytes()), "{name}");
    }
}

#[test]
fn manifests_of_fixtures_compile_both_permissive_and_strict() {
    for name in FIXTURES {
        for strict in [false, true] {
            let manifests =
                injected_with(&fixture(name), &Options { strict, ..options() }).unwrap().manifests;
            let parsed =
                signet_policy::parse_manifests(name, &manifests).unwrap_or_else(|wrong| panic!("{wrong:?}"));
            signet_policy::compile(&parsed).unwrap_or_else(|wrong| panic!("{name}: {wrong:?}"));
        }
    }
}

#[test]
fn folders_called_like_numbers_and_truth_values_give_a_mesh_of_that_name() {
    for mesh in ["2024", "on", "null", "1e5"] {
        let options = Options { mesh: mesh.to_owned(), device: mesh.to_owned(), ..options() };
        let manifests = injected_with(&fixture("small"), &options).unwrap().manifests;
        let parsed =
            signet_policy::parse_manifests(mesh, &manifests).unwrap_or_else(|wrong| panic!("{wrong:?}"));
        signet_policy::compile(&parsed).unwrap_or_else(|wrong| panic!("{mesh}: {wrong:?}"));
    }
}

#[test]
fn services_are_meshed_shared_or_left_with_the_reason() {
    let injected = injected(&fixture("networks")).unwrap();
    let of = |name: &str| injected.services.iter().find(|(known, _)| known == name).unwrap().1.clone();
    assert_eq!(of("web"), Outcome::Meshed);
    assert_eq!(of("side"), Outcome::Shares { with: "web".to_owned() });
    assert_eq!(of("top"), Outcome::Shares { with: "web".to_owned() });
    for (name, reason) in [("hosted", "host network"), ("lonely", "no network"), ("plain", "bridge")] {
        let Outcome::Left { reason: told } = of(name) else { panic!("{name} is left") };
        assert!(told.contains(reason), "{told}");
    }
}

#[test]
fn services_of_the_hosts_network_are_guarded_at_the_ports_they_tell() {
    let injected = injected(&fixture("host")).unwrap();
    let of = |name: &str| injected.services.iter().find(|(known, _)| known == name).unwrap().1.clone();
    for name in ["discovery", "agent", "exporter"] {
        assert_eq!(of(name), Outcome::Guarded, "{name}");
    }
    assert_eq!(of("helper"), Outcome::Shares { with: "agent".to_owned() });
    assert!(matches!(of("silent"), Outcome::Left { reason } if reason.contains("x-signet")));
    assert_eq!(of("web"), Outcome::Meshed);
    let told = |service: &str| {
        let of = injected.findings.iter().filter(move |found| found.service == service);
        of.map(|found| (found.line, found.severity, found.text.as_str())).collect::<Vec<_>>()
    };
    assert!(
        told("discovery").iter().any(|(line, how, text)| {
            (*line, *how) == (8, Severity::Note) && text.contains("runs as user 1001")
        }),
        "{:?}",
        told("discovery")
    );
    // Two that cannot be told apart: one speaks for everybody, the other does not speak.
    assert!(
        told("agent")
            .iter()
            .any(|(_, how, text)| *how == Severity::Warning && text.contains("every program"))
    );
    assert!(
        told("exporter").iter().any(|(_, how, text)| *how == Severity::Warning && text.contains("earlier"))
    );
    let text = &injected.text;
    for said in ["SIGNET_USERS: \"1001\"", "SIGNET_PORTS: \"9100,9200,9201\"", "SIGNET_NO_OUTBOUND: \"true\""]
    {
        assert_eq!(text.matches(said).count(), 1, "{said} in {text}");
    }
    assert_eq!(injected.enrolments.len(), 4);
}

#[test]
fn guards_that_would_fight_and_ports_that_are_none_are_refused() {
    let two = |one: &str, other: &str| {
        format!(
            "services:\n  a:\n    image: a\n    network_mode: host\n    {one}\n  b:\n    image: b\n    \
             network_mode: host\n    {other}\n"
        )
    };
    for (text, line, said) in [
        (
            two("expose: ['80']", "x-signet: {ports: [79-81]}"),
            8,
            "port 80 of the host is that of `a` and of `b`",
        ),
        (two("expose: ['80']", "expose: ['15106']"), 8, "15106"),
        (two("expose: ['80']", "expose: ['99999']"), 9, "no port"),
        (two("expose: ['80']", "x-signet: {port: [81]}"), 9, "knows `ports` alone"),
        (two("expose: ['80']", "x-signet: 81"), 9, "knows `ports` alone"),
        (two("expose: ['80']", "labels: [signet.mf2c-project.eu/ports=x]"), 9, "no port"),
        (two("expose: ['80']", "expose: ['1-65535']"), 6, "more than 64 ports"),
        (two("expose: ['80']", "expose: ['81']").replace("  b:", "  a-guard:"), 6, "a name that is added"),
        (two("expose: ['80']", "expose: ['81']").replace("  b:", "  A:"), 8, "would both be"),
    ] {
        let fault = injected(&text).expect_err(&text);
        assert!(fault.message.contains(said) && fault.line == line, "{fault} for {text}");
    }
}

/// A project of two files: what each says of a service, and services of their own.
const BASE: &str = "\
version: '3.7'
services:
  # The shop.
  web:
    image: web
    ports: ['8080:80']
    depends_on: [db]
  db: {image: db, networks: [back]}
networks:
  back:
";
const OVER: &str = "\
version: '3.7'
services:
  web:
    ports:
      - '8443:443' # TLS
    networks: [default, back]
    environment: {DEBUG: '1'}
  db:
    hostname: data
  cache:
    image: cache
    expose: ['6379']
";
const PLAIN: &str = "version: '3.7'\nservices:\n  cache:\n    restart: always\n";

fn laid_over(base: &str, over: &[(&str, &str)]) -> Result<Injected, Fault> {
    let over: Vec<Source<'_>> = over.iter().map(|(file, text)| Source { file, text }).collect();
    let read = |_: &str| Err("there are no other files".to_owned());
    let options = options();
    inject(&Input {
        digest: &digest,
        file: "base.yml",
        options: &options,
        over: &over,
        read: &read,
        text: base,
    })
}

#[test]
fn several_files_are_injected_each_by_itself_and_come_back_each_as_it_was() {
    let injected = laid_over(BASE, &[("over.yml", OVER), ("plain.yml", PLAIN)]).unwrap();
    let [over, plain] = &injected.over[..] else { panic!("one text for each file") };
    assert_eq!(plain, PLAIN, "nothing of it changes, so it is no injected file");
    assert!(!is_injected(plain));
    for (before, after) in [(BASE, &injected.text), (OVER, over)] {
        let restored = restore("f", after).unwrap();
        assert_eq!((restored.text.as_str(), restored.digest), (before, digest(before.as_bytes())));
    }
    let again = laid_over(&injected.text, &[("over.yml", over), ("plain.yml", plain)]).unwrap();
    assert_eq!((again.text, again.over), (injected.text.clone(), injected.over.clone()));

    // The holder has what both files say, and stands in the first that has the service.
    let holder = &injected.text
        [injected.text.find("\n  web-holder:").unwrap()..injected.text.find("\n  web-sidecar:").unwrap()];
    for said in ["8080:80", "8443:443", "back:", "default:"] {
        assert!(holder.contains(said), "{said} in {holder}");
    }
    assert!(over.contains("#signet-     networks: [default, back]\n"), "{over}");
    assert!(over.contains("#signet-       - '8443:443' # TLS\n"), "{over}");
    assert!(over.contains("    environment: {DEBUG: '1'}\n"), "{over}");
    // Of `db` nothing is left there but its name.
    assert!(over.contains("  db: {}\n"), "{over}");
    assert!(over.contains("  cache-holder:") && !injected.text.contains("cache-holder"), "{over}");
    assert_eq!(over.matches("network_mode").count(), 2, "the cache, its sidecar and nobody else: {over}");
    assert!(
        injected.text.contains("\n  signet-control-plane:") && !over.contains("\n  signet-control-plane:")
    );
    let manifests = signet_policy::parse_manifests("mesh", &injected.manifests).unwrap();
    signet_policy::compile(&manifests).unwrap();
}

#[test]
fn faults_and_findings_of_several_files_name_the_file_and_its_line() {
    let fault = |base: &str, over: &str| laid_over(base, &[("over.yml", over)]).unwrap_err();
    let at = |fault: Fault| (fault.file, fault.line, fault.message);
    let (file, line, message) =
        at(fault(BASE, "services:\n  cache:\n    image: c\n    ports: ['8080:6379']\n"));
    assert_eq!((file.as_str(), line), ("over.yml", 4), "{message}");
    assert!(message.contains("8080"), "{message}");
    let (file, line, _) = at(fault(BASE, "services:\n  cache:\n    scale: 2\n    image: c\n"));
    assert_eq!((file.as_str(), line), ("over.yml", 3));
    let (file, line, _) = at(fault(BASE, "services:\n  lost:\n    restart: always\n"));
    assert_eq!((file.as_str(), line), ("over.yml", 2), "no image in any file");
    let (file, line, _) = at(fault("services:\n  a: b\n", OVER));
    assert_eq!((file.as_str(), line), ("base.yml", 2));
    let (file, _, message) = at(laid_over(BASE, &[("base.yml", BASE)]).unwrap_err());
    assert!(file == "base.yml" && message.contains("twice"));
    let injected =
        laid_over(BASE, &[("over.yml", "services:\n  vpn:\n    image: v\n    network_mode: host\n")])
            .unwrap();
    let vpn = injected.findings.iter().find(|found| found.service == "vpn").unwrap();
    assert_eq!((vpn.file.as_str(), vpn.line), ("over.yml", 4));
}

#[test]
fn edit_between_the_marks_is_refused_unless_it_may_be_lost() {
    let once = injected(&fixture("small")).unwrap().text;
    let edited =
        once.replacen("SIGNET_TRUST_DOMAIN: box.signet.internal", "SIGNET_TRUST_DOMAIN: mine.example", 1);
    assert_ne!(edited, once);
    assert!(restore("f", &edited).unwrap().is_added_changed(&digest));
    let fault = injected(&edited).unwrap_err();
    assert!(fault.message.contains("between the marks") && fault.fix.contains("--force"), "{fault}");
    let forced = injected_with(&edited, &Options { force: true, ..options() }).unwrap();
    assert_eq!(forced.text, once);
    // Outside of the marks is the owner's place, and editors may take spaces off the ends of lines.
    let outside = format!("# mine\n{once}");
    assert!(!restore("f", &outside).unwrap().is_added_changed(&digest));
    // A file of an earlier version has no digest to compare with.
    let earlier: String =
        edited.split_inclusive('\n').filter(|line| !line.contains("# signet-added:")).collect();
    assert!(!restore("f", &earlier).unwrap().is_added_changed(&digest));
}

#[test]
fn what_gets_round_the_sidecar_is_told() {
    let injected = injected(&fixture("profiles")).unwrap();
    let told: Vec<_> =
        injected.findings.iter().map(|found| (found.service.as_str(), found.line, &*found.text)).collect();
    assert!(told.contains(&("debug", 9, "egress not enforceable: NET_ADMIN")), "{told:?}");
    assert!(told.contains(&("web", 20, "egress not enforceable: privileged")), "{told:?}");
    assert!(
        told.iter().any(|(service, line, text)| (*service, *line) == ("debug", 10) && text.contains("1337"))
    );
}

#[test]
fn bad_input_is_refused_with_its_line() {
    let service = "services:\n  web:\n    image: a\n";
    for (text, line, said) in [
        ("- a\n".to_owned(), 1, "no Compose file"),
        ("a: b\n".to_owned(), 1, "no `services`"),
        ("services: {}\n".to_owned(), 1, "no service"),
        ("services:\n  web: a: b\n".to_owned(), 2, "no YAML"),
        (format!("version: '4'\n{service}"), 1, "version 4"),
        (format!("version: '1'\n{service}"), 1, "version 1"),
        ("services:\n  web:\n    ports: ['80']\n".to_owned(), 2, "no `image`"),
        ("services:\n  web:\n".to_owned(), 2, "no mapping"),
        ("services:\n  'a b':\n    image: a\n".to_owned(), 2, "no name"),
        (
            format!("{service}    ports: ['80:80']\n  b:\n    image: b\n    ports:\n      - '80:81'\n"),
            8,
            "by `b` and, at line 4, by `web`",
        ),
        (format!("{service}    ports: ['80:80', '80:81']\n"), 4, "port 80"),
        (format!("{service}    ports: [x]\n"), 4, "`x` is no port"),
        (format!("{service}    ports: 80\n"), 4, "no list"),
        (format!("{service}    ports: ['1:15001']\n"), 4, "the sidecar's"),
        (format!("{service}    image: b\n"), 4, "`image` stands here again, after line 3"),
        (format!("{service}    scale: 2\n"), 4, "more than once"),
        (format!("{service}    deploy:\n      replicas: 3\n"), 5, "more than once"),
        (format!("{service}    network_mode: service:db\n"), 4, "no service `db`"),
        (format!("{service}    network_mode: service:web\n"), 4, "circle"),
        (format!("{service}    network_mode: host\n"), 1, "no service of it can be meshed"),
        (format!("{service}    network_mode: host\n    networks: [a]\n"), 4, "`networks`"),
        (format!("{service}    extends: web\n"), 4, "circle"),
        (format!("{service}    extends: {{file: other.yml, service: a}}\n"), 4, "no other files"),
        (format!("{service}  web-sidecar:\n    image: b\n"), 4, "added here"),
        (format!("{service}  signet:\n    image: b\n"), 4, "added here"),
        (format!("{service}volumes:\n  signet-web: {{}}\n"), 5, "added here"),
        (format!("{service}---\na: b\n"), 4, "second document"),
        (format!("{service}#signet- a\n"), 1, "was not written by"),
        (format!("{service}    ports: &p ['80:80']\nx-ports: *p\n"), 5, "changed by injection"),
        (String::new(), 1, "empty"),
    ] {
        let fault = injected(&text).expect_err(&text);
        assert!(fault.message.contains(said), "{text}: {fault}");
        assert_eq!(fault.line, line, "{text}: {fault}");
    }
}

#[test]
fn section_without_a_value_gets_one() {
    let text = "services:\n  web: {image: a}\nvolumes:\n\nsecrets: ~\n";
    let once = injected(text).unwrap().text;
    assert!(
        once.contains("#signet- volumes:\n") && once.contains("\nvolumes:\n  signet-web: {}\n"),
        "{once}"
    );
    assert!(once.contains("\nsecrets:\n  signet-web-token:\n"), "{once}");
    assert_eq!(restore("f", &once).unwrap().text, text);
}

#[test]
fn what_is_edited_beside_the_marks_is_kept() {
    let text = fixture("small");
    let edited = injected(&text).unwrap().text.replace("# the end", "# the very end");
    assert_eq!(restore("f", &edited).unwrap().text, text.replace("# the end", "# the very end"));
}

/// A Compose file put together from parts that stand in each other's way.
fn project() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        Just("image: \"a:1\" # comment\n".to_owned()),
        Just("ports:\n- 80\n\n- \"81\"\n".to_owned()),
        Just("ports: [8000, \"8001/udp\"]\n".to_owned()),
        Just("networks: [front, default]\n".to_owned()),
        Just("networks:\n  front:\n    aliases:\n    - x\n".to_owned()),
        Just("depends_on: [s0]\n".to_owned()),
        Just("command: |\n  a\n  # b\n\n".to_owned()),
        Just("command: >+\n  a\n\n\n".to_owned()),
        Just("environment: &e0\n  A: 'b\n    c'\n".to_owned()),
        Just("hostname: \u{e4}\n".to_owned()),
        Just("cap_drop: [ALL]\n".to_owned()),
        Just("<<: *x\n".to_owned()),
        Just("network_mode: service:s0\n".to_owned()),
        Just("extends: s0\n".to_owned()),
        Just("# only a comment\n".to_owned()),
    ];
    let service = (prop::collection::vec(key, 1..5), 1..5_usize, any::<bool>());
    let services = prop::collection::vec(service, 1..5);
    (services, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(services, windows, mark, volumes, open_end)| {
            let mut text = "x-x: &x {restart: always, expose: [9]}\nservices:\n".to_owned();
            for (number, (keys, indent, flow)) in services.into_iter().enumerate() {
                if flow {
                    text += &format!("  s{number}: {{image: a,\n    ports: [7{number}00]}} # flow\n");
                    continue;
                }
                text += &format!("  s{number}:\n");
                for line in keys.concat().split_inclusive('\n') {
                    let margin = if line == "\n" { 0 } else { indent + 2 };
                    text += &format!("{:margin$}{line}", "");
                }
            }
            if volumes {
                text += "\nvolumes:\n  v: {}\n";
            }
            if open_end {
                text.truncate(text.trim_end().len());
            }
            if windows {
                text = text.replace('\n', "\r\n");
            }
            if mark { format!("\u{feff}{text}") } else { text }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_injected_comes_back_and_is_stable(text in project()) {
        // What is refused, such as a key that stands twice, is left alone.
        if let Ok(once) = injected(&text) {
            prop_assert_eq!(&restore("f", &once.text).unwrap().text, &text);
            prop_assert_eq!(&injected(&once.text).unwrap().text, &once.text);
            // The result is YAML, and a Compose file once the marks are gone.
            let unmarked = once.text.replace("#signet", "#other");
            let again = injected(&unmarked);
            prop_assert!(again.as_ref().is_err_and(|fault| fault.message.contains("added here")), "{:?}\n{}", again, unmarked);
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "[a-z:\\-\\[\\]{}&*#!|>'\" \t\r\n<,0-9]{0,200}") {
        let _ = injected(&text);
        let _ = injected(&format!("services:\n  a:\n    image: b\n    {text}"));
        let _ = restore("f", &format!("#signet+ begin\n{text}"));
    }
}

#[test]
fn generated_projects_are_mostly_taken() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let taken =
        (0..500).filter(|_| injected(&project().new_tree(&mut runner).unwrap().current()).is_ok()).count();
    assert!(taken > 100, "{taken} of 500");
}

/// As much as is read, in the forms in which everything is compared with everything.
#[test]
fn large_files_are_answered() {
    let many = |line: fn(usize) -> String| (0..20_000).map(line).collect::<String>();
    let head = "services:\n  web:\n    image: a\n";
    let keys = format!("{head}x-keys:\n{}", many(|number| format!("  k{number}: 1\n")));
    let ports = format!("{head}    ports:\n{}", many(|number| format!("    - \"{}:80\"\n", number + 1)));
    let names = many(|number| format!("        - n{number}\n"));
    let aliases = format!("{head}    networks:\n      a:\n        aliases:\n{names}");
    assert!(injected(&ports).is_err_and(|fault| fault.message.contains("ports are published")));
    for text in [keys, aliases] {
        let injected = injected(&text).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(restore("f", &injected.text).map(|restored| restored.text), Ok(text));
    }
}

#[test]
fn whatever_reaches_the_keys_or_the_engine_is_told() {
    let told = |said: &str, directory: &str| {
        let text = format!("services:\n  web:\n    image: a\n    {said}\n");
        let options = Options { directory: directory.to_owned(), ..options() };
        let findings = injected_with(&text, &options).unwrap().findings;
        let about = |words: &str| findings.iter().any(|finding| finding.text.contains(words));
        (about("authority's keys"), about("engine's socket"))
    };
    for said in [
        "volumes: [\".:/app\"]",
        "volumes: [\"./:/app:ro\"]",
        "volumes: [\"..:/app\"]",
        "volumes: [\"./signet:/x\"]",
        "volumes: [\"./signet/tokens:/x\"]",
        "volumes: [{type: bind, source: ./signet/bootstrap/.., target: /x}, {type: bind, source: ., target: /y}]",
        "build: .",
        "build: {context: ./, dockerfile: x}",
    ] {
        assert_eq!(told(said, "./signet"), (true, false), "{said}");
    }
    for said in ["volumes: [\"./src:/app\", \"data:/d\"]", "build: ./web", "build: https://x.example/y.git"] {
        assert_eq!(told(said, "./signet"), (false, false), "{said}");
    }
    assert_eq!(told("volumes: [\".:/app\"]", "/srv/signet"), (false, false));
    assert_eq!(told("volumes: [\"/srv:/app\"]", "/srv/signet"), (true, false));
    assert_eq!(told("volumes: [\".:/app\"]", "../signet"), (false, false));
    assert_eq!(told("volumes: [\"..:/app\"]", "../signet"), (true, false));
    assert_eq!(told("volumes: [\"/:/host\"]", "./signet"), (true, true));
    for source in ["/var/run/docker.sock", "/run/", "//var/run/.", "/var", "/run/podman/podman.sock"] {
        assert_eq!(told(&format!("volumes: [\"{source}:/x\"]"), "./signet"), (false, true), "{source}");
    }
}

/// Each is YAML that edits by lines could tear.
const ODD: [&str; 24] = [
    "services:\n  web:\n    image: a\n    command: |+\n      x\n\n    ports: [\"80:80\"]\n\n  db: {image: b}\n",
    "services:\n  web:\n    image: a\n    ports: [\"80:80\"]\n    command: |+\n      x\n\n\n",
    "services:\n  web:\n    image: a\n    environment:\n      A: \"x\n\n        ports: y\"\n    expose: [80]\n",
    "services:\n  ? web\n  : image: a\n    ports: [\"80:80\"]\n",
    "services:\n  \"we\\x62\":\n    image: a\n    \"po\\x72ts\": [\"80:80\"]\n",
    "services:\n  web: !!map\n    image: a\n    ports: [\"80:80\"]\n",
    "services:\n  web: &w\n    image: a\n    ports: [\"80:80\"]\nx-w: *w\n",
    "services:\n  web:\n    image: a\n    depends_on: &d [db]\n  db: {image: b}\nx-d: *d\n",
    "%YAML 1.2\n---\nservices:\n  web: {image: a}\n",
    "--- !!map\nservices:\n  web:\n    image: a\n...\n",
    "services: # c\n  web: # d\n    # e\n    image: a # f\n    ports: # g\n    # h\n    - \"80:80\" # i\n    # j\n",
    "\"services\":\n  web:\n    image: a\n    !!str ports: [\"80:80\"]\n",
    "services:\n  web:\n    image: a\n    ports: !reset []\n    networks: !override\n      default: {}\n",
    "x-n: &n web\nservices:\n  *n :\n    image: a\n    dns: 1.1.1.1\n",
    "services:\n  &k web:\n    image: a\n    hostname: *k\n",
    "x-a: &a\n  image: a\n  ports: [\"80:80\"]\nx-b: &b {dns: 1.1.1.1}\nservices:\n  web:\n    <<: [*a, *b]\n",
    "services:\n  web:\n    image: a\n    command: x\n\n      - services\n    <<: {dns: 1.1.1.1}\n",
    "services:\n    web:\n            image: a\n            dns:\n            - 1.1.1.1\nvolumes:\n    d:\n",
    "{services: {web: {image: a, ports: [\"80:80\"], environment: [\"A=#b\", C: d]}}}\n",
    "services:\n  web: {image: a, command: [x, -y, \"- z\", 'on', on, 012, ~, \"\"]}\n",
    "services:\n  web:\n    image: a\n    environment: {A: $B, C: $$D, E: \"${F:-g: h}\", H: '#i'}\n    dns: [1.1.1.1]\n",
    "services:\n  web:\n    image: >-\n      a\n    labels: [\"x=services:\\n  y:\"]\n    extra_hosts: [\"a:1.1.1.1\"]\n",
    "services:\n  web:\n    image: a\n    secrets: [s]\nsecrets: &s\n  s: {file: ./s}\nvolumes: {v: }\nx-s: *s\n",
    "services:\n  web:\n    image: a\n    sysctls: [net.core.somaxconn=1, kernel.msgmax=2]\n    links: [\"db:d\"]\n  db:\n    image: b",
];

/// [`inject`] looks itself whether what it wrote says what it planned; here, whether it comes back.
#[test]
fn odd_layouts_are_injected_as_planned_or_refused() {
    let mut refused = Vec::new();
    for (at, text) in ODD.into_iter().enumerate() {
        match injected(text) {
            Ok(injected) => assert_eq!(restore("f", &injected.text).unwrap().text, text),
            Err(fault) => refused.push((at, fault.line)),
        }
    }
    // A service's key on a line of its own; anchors on what changes.
    assert_eq!(refused, [(3, 3), (6, 5), (7, 6), (22, 6)]);
}
