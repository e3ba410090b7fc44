//! The lab and the capture rules, on real kernels: every test runs in network namespaces of its own.

#![expect(clippy::unwrap_used, reason = "a test that unwraps in vain fails and says where")]

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use signet_cli::lab::runner::{self, Test, TestResult};
use signet_cli::lab::{
    Capabilities, Capability, HostPlan, Lab, Namespace, Opening, Program, Tap, enter, helper,
};
use signet_proxy::capture::expression::{Verdict, tcp};
use signet_proxy::capture::{self, Backend, CaptureError, Exempt, MARK, Other, Rules, TABLE, Way, nftables};
use socket2::{Domain, SockRef, Socket, Type};

const TESTS: &[Test] = &[
    ("loopback_is_up_with_both_addresses", loopback_is_up_with_both_addresses),
    ("hosts_with_the_same_container_subnet_meet_at_published_ports", published_ports),
    ("published_port_is_reached_from_its_own_host_and_containers", published_port_from_inside),
    ("cut_host_is_unreachable_until_it_is_healed", cut_and_heal),
    ("tap_sees_what_passes_in_clear", tap_sees_what_passes_in_clear),
    ("app_without_capabilities_opens_no_raw_socket_and_sets_no_mark", app_without_capabilities),
    ("app_with_one_capability_has_no_other", app_with_one_capability),
    ("programs_die_with_the_process_that_started_them", programs_die_with_their_starter),
    ("missing_program_is_told", missing_program_is_told),
    ("lab_can_be_entered_inside_a_lab", lab_inside_a_lab),
    ("setting_that_forbids_namespaces_is_named", forbidding_setting_is_named),
    ("outbound_connections_are_redirected_with_their_destination", outbound),
    ("inbound_connections_are_redirected_with_their_destination", inbound),
    ("connection_is_refused_when_the_proxy_is_down", proxy_down),
    ("marked_sockets_are_exempt", marked_sockets_are_exempt),
    ("sockets_of_the_exempt_user_are_exempt", exempt_user),
    ("loopback_and_own_addresses_are_exempt", loopback_is_exempt),
    ("excluded_ports_and_networks_are_left_alone", exclusions),
    ("udp_is_refused_except_dns_and_egress", udp_is_refused),
    ("installing_twice_is_idempotent", installing_twice),
    ("replacing_the_rules_leaks_no_connection", replacing_leaks_nothing),
    ("connection_opened_before_the_rules_lives_on", older_connection),
    ("injected_rule_is_told", injected_rule_is_told),
    ("dormant_table_is_told", dormant_table_is_told),
    ("drained_capture_keeps_redirected_connections", drained),
    ("removed_capture_restores_direct_connections", removed),
    ("capture_without_the_capability_names_it", capture_without_capability),
];

fn main() -> ExitCode {
    helper();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["probe"] => probe(),
        ["enter"] => enter_and_tell(),
        ["capture"] => capture_here(),
        ["hold", path] => hold(path),
        ["start-and-abort", path] => start_and_abort(path),
        _ => runner::main(TESTS),
    }
}

const LIMIT: Duration = Duration::from_secs(20);
const HERE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const THERE: [&str; 2] = ["192.0.2.2", "2001:db8::2"];

/// Two machines on one cable.
fn pair() -> Result<(Namespace, Namespace), Box<dyn Error>> {
    let (here, there) = (Namespace::new("here")?, Namespace::new("there")?);
    here.add_veth("eth0", &there, "eth0")?;
    for (namespace, [ipv4, ipv6]) in [(&here, HERE), (&there, THERE)] {
        namespace.add_address("eth0", format!("{ipv4}/24").parse()?)?;
        namespace.add_address("eth0", format!("{ipv6}/64").parse()?)?;
    }
    Ok((here, there))
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

fn listen(namespace: &Namespace, port: u16) -> Result<TcpListener, Box<dyn Error>> {
    Ok(namespace.run(move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))??)
}

fn connect(namespace: &Namespace, to: SocketAddr) -> Result<io::Result<TcpStream>, Box<dyn Error>> {
    Ok(namespace.run(move || TcpStream::connect_timeout(&to, LIMIT))?)
}

fn connect_marked(namespace: &Namespace, to: SocketAddr) -> Result<io::Result<()>, Box<dyn Error>> {
    Ok(namespace.run(move || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_mark(MARK)?;
        socket.connect_timeout(&to.into(), LIMIT)
    })?)
}

/// Where an accepted connection was going; of a wildcard listener, so IPv4 comes mapped.
fn original_destination(accepted: &TcpStream) -> Result<SocketAddr, Box<dyn Error>> {
    let socket = SockRef::from(accepted);
    let ipv4 = accepted.peer_addr()?.ip().to_canonical().is_ipv4();
    let found = if ipv4 { socket.original_dst_v4()? } else { socket.original_dst_v6()? };
    found.as_socket().ok_or_else(|| "no address".into())
}

fn install(namespace: &Namespace, rules: &Rules) -> TestResult {
    let rules = rules.clone();
    assert_eq!(namespace.run(move || capture::install(&rules, Way::Any))??, Backend::NfTables);
    Ok(())
}

fn verify(namespace: &Namespace, rules: &Rules) -> Result<Result<Backend, CaptureError>, Box<dyn Error>> {
    let rules = rules.clone();
    Ok(namespace.run(move || capture::verify(&rules, Way::Any))?)
}

fn loopback_is_up_with_both_addresses() -> TestResult {
    let namespace = Namespace::new("alone")?;
    for address in ["127.0.0.1", "::1"] {
        let listener = namespace.run(move || TcpListener::bind((address, 0)))??;
        connect(&namespace, listener.local_addr()?)??;
    }
    let host_name = namespace.run(|| std::fs::read_to_string("/proc/sys/kernel/hostname"))??;
    assert_eq!(host_name, "alone\n");
    Ok(())
}

fn published_ports() -> TestResult {
    let lab = Lab::new()?;
    let (cloud, fog) = (lab.host("cloud", HostPlan::numbered(1))?, lab.host("fog", HostPlan::numbered(2))?);
    let (server, client) = (cloud.container("server")?, fog.container("client")?);
    assert_eq!(
        (server.ipv4(), server.ipv6()),
        (client.ipv4(), client.ipv6()),
        "the same subnet on both hosts"
    );
    cloud.publish(8080, &server, 80)?;
    let listener = listen(server.namespace(), 80)?;
    let hosts: [(IpAddr, IpAddr); 2] =
        [(cloud.ipv4().into(), fog.ipv4().into()), (cloud.ipv6().into(), fog.ipv6().into())];
    for (to, seen_as) in hosts {
        connect(client.namespace(), SocketAddr::new(to, 8080))??;
        let (_, peer) = listener.accept()?;
        assert_eq!(peer.ip().to_canonical(), seen_as, "the client is masqueraded by its host");
    }
    Ok(())
}

fn published_port_from_inside() -> TestResult {
    let lab = Lab::new()?;
    let cloud = lab.host("cloud", HostPlan::numbered(1))?;
    let (server, neighbour) = (cloud.container("server")?, cloud.container("neighbour")?);
    cloud.publish(8080, &server, 80)?;
    let listener = listen(server.namespace(), 80)?;
    for to in [IpAddr::from(cloud.ipv4()), cloud.ipv6().into()] {
        for from in [cloud.namespace(), neighbour.namespace()] {
            connect(from, SocketAddr::new(to, 8080))??;
            listener.accept()?;
        }
    }
    connect(neighbour.namespace(), SocketAddr::new(server.ipv4().into(), 80))??;
    let (_, peer) = listener.accept()?;
    assert_eq!(peer.ip().to_canonical(), IpAddr::from(neighbour.ipv4()), "neighbours are not translated");
    Ok(())
}

fn cut_and_heal() -> TestResult {
    let (here, there) = pair()?;
    let _listener = listen(&there, 80)?;
    connect(&here, at(THERE[0], 80))??;
    there.cut()?;
    let cut = here.run(|| TcpStream::connect_timeout(&at(THERE[0], 80), Duration::from_millis(200)))?;
    assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::TimedOut);
    there.heal()?;
    connect(&here, at(THERE[0], 80))??;
    Ok(())
}

fn tap_sees_what_passes_in_clear() -> TestResult {
    let (here, there) = pair()?;
    let pcap = std::env::temp_dir().join(format!("signet-tap-{}.pcap", std::process::id()));
    let tap = Tap::start(&there, "eth0", &[b"open secret", b"never said"], Some(&pcap))?;
    let listener = listen(&there, 80)?;
    let mut stream = connect(&here, at(THERE[1], 80))??;
    stream.set_nodelay(true)?;
    let (mut accepted, _) = listener.accept()?;
    let mut greeting = [0; 5];
    for part in ["an op", "en se", "cret!"] {
        stream.write_all(part.as_bytes())?;
        accepted.read_exact(&mut greeting)?;
    }
    let report = tap.report()?;
    let recorded = std::fs::metadata(&pcap)?.len();
    std::fs::remove_file(&pcap)?;
    assert_eq!(report.sightings.len(), 1, "{report:?}");
    assert_eq!(report.sightings[0].canary, b"open secret");
    let clear = report.in_clear();
    assert_eq!(clear.len(), 1, "{report:?}");
    assert_eq!((clear[0].destination, clear[0].bytes), (at(THERE[1], 80), 15));
    assert_eq!(clear[0].opening, Opening::Other(b"an open secret!".to_vec()));
    assert_eq!(report.lost, 0);
    assert_eq!(recorded, 24 + report.frames * 16 + report.bytes);
    Ok(())
}

/// What an app tries that would take it past capture.
fn probe() -> ExitCode {
    let told = |attempt: io::Result<()>| {
        attempt.map_or_else(|error| format!("{:?}", error.kind()), |()| "ok".into())
    };
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(socket2::Protocol::ICMPV4)).map(drop);
    let packet = Socket::new(Domain::PACKET, Type::RAW, None).map(drop);
    let mark = Socket::new(Domain::IPV4, Type::STREAM, None).and_then(|socket| socket.set_mark(MARK));
    println!("raw {}, packet {}, mark {}", told(raw), told(packet), told(mark));
    ExitCode::SUCCESS
}

fn probed(capabilities: Capabilities) -> Result<String, Box<dyn Error>> {
    let namespace = Namespace::new("app")?;
    let program = namespace.start(Program::this().args(["probe"]).capabilities(capabilities))?;
    program.wait(LIMIT)?;
    Ok(program.output())
}

fn app_without_capabilities() -> TestResult {
    assert_eq!(probed(Capabilities::Keep)?, "raw ok, packet ok, mark ok\n");
    let denied = "raw PermissionDenied, packet PermissionDenied, mark PermissionDenied\n";
    assert_eq!(probed(Capabilities::None)?, denied);
    Ok(())
}

fn app_with_one_capability() -> TestResult {
    let only = Capabilities::Only(vec![Capability::CAP_NET_ADMIN]);
    assert_eq!(probed(only)?, "raw PermissionDenied, packet PermissionDenied, mark ok\n");
    Ok(())
}

fn programs_die_with_their_starter() -> TestResult {
    let path = std::env::temp_dir().join(format!("signet-lab-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&path)?;
    let starter = Namespace::new("outer")?
        .start(Program::this().args(["start-and-abort".as_ref(), path.as_os_str()]))?;
    let status = starter.wait(LIMIT)?;
    std::fs::remove_file(&path)?;
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32), "{}", starter.output());
    let (mut held, _) = listener.accept()?;
    held.set_read_timeout(Some(LIMIT))?;
    assert_eq!(held.read(&mut [0])?, 0, "the program that held the connection is gone");
    Ok(())
}

/// Starts a program that connects to the path and waits there, then dies without a chance to clean up.
fn start_and_abort(path: &str) -> ExitCode {
    let inner = Namespace::new("inner").unwrap();
    let program = inner.start(Program::this().args(["hold", path])).unwrap();
    program.wait_for_line("holding", LIMIT).unwrap();
    std::process::abort()
}

fn hold(path: &str) -> ExitCode {
    let mut stream = UnixStream::connect(path).unwrap();
    println!("holding");
    stream.read_exact(&mut [0]).unwrap();
    ExitCode::SUCCESS
}

fn missing_program_is_told() -> TestResult {
    let program = Namespace::new("empty")?.start(Program::new("/nowhere/app"))?;
    assert_eq!(program.wait(LIMIT)?.code(), Some(127));
    assert!(program.output().contains("cannot run /nowhere/app"), "{}", program.output());
    Ok(())
}

fn enter_and_tell() -> ExitCode {
    println!("{}", enter().map_or_else(|error| error.to_string(), |()| "entered".into()));
    ExitCode::SUCCESS
}

fn entered(namespace: &Namespace, capabilities: Capabilities) -> Result<String, Box<dyn Error>> {
    let program = namespace.start(Program::this().args(["enter"]).capabilities(capabilities))?;
    program.wait(LIMIT)?;
    Ok(program.output())
}

fn lab_inside_a_lab() -> TestResult {
    assert_eq!(entered(&Namespace::new("outer")?, Capabilities::Keep)?, "entered\n");
    Ok(())
}

fn forbidding_setting_is_named() -> TestResult {
    let namespace = Namespace::new("outer")?;
    namespace.set_parameter("user/max_user_namespaces", "0")?;
    let told = entered(&namespace, Capabilities::None)?;
    assert!(told.contains("forbids user namespaces (ENOSPC"), "{told}");
    assert!(told.contains("/proc/sys/user/max_user_namespaces is 0"), "{told}");
    Ok(())
}

fn outbound() -> TestResult {
    let (here, _there) = pair()?;
    install(&here, &Rules::default())?;
    let proxy = listen(&here, 15001)?;
    for address in THERE {
        let stream = connect(&here, at(address, 80))??;
        let (accepted, _) = proxy.accept()?;
        assert_eq!(original_destination(&accepted)?, at(address, 80));
        assert_eq!(stream.peer_addr()?, at(address, 80), "the app sees whom it called");
    }
    Ok(())
}

fn inbound() -> TestResult {
    let (here, there) = pair()?;
    install(&here, &Rules::default())?;
    let proxy = listen(&here, 15006)?;
    for (address, peer) in HERE.into_iter().zip(THERE) {
        connect(&there, at(address, 80))??;
        let (accepted, from) = proxy.accept()?;
        assert_eq!(original_destination(&accepted)?, at(address, 80));
        assert_eq!(from.ip().to_canonical(), peer.parse::<IpAddr>()?);
    }
    Ok(())
}

fn proxy_down() -> TestResult {
    let (here, there) = pair()?;
    let _app = listen(&there, 80)?;
    install(&here, &Rules::default())?;
    for address in THERE {
        assert_eq!(connect(&here, at(address, 80))?.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
    for address in HERE {
        assert_eq!(connect(&there, at(address, 80))?.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
    Ok(())
}

fn marked_sockets_are_exempt() -> TestResult {
    let (here, there) = pair()?;
    install(&here, &Rules::default())?;
    let app = listen(&there, 80)?;
    for address in THERE {
        connect_marked(&here, at(address, 80))??;
        app.accept()?;
    }
    Ok(())
}

fn exempt_user() -> TestResult {
    let (here, there) = pair()?;
    let app = listen(&there, 80)?;
    // This namespace knows one user, root: exempt, everyone is; with any other, nobody.
    install(&here, &Rules { exempt: Exempt::Uid(0), ..Rules::default() })?;
    for address in THERE {
        connect(&here, at(address, 80))??;
        app.accept()?;
    }
    install(&here, &Rules { exempt: Exempt::Uid(1337), ..Rules::default() })?;
    for address in THERE {
        assert!(connect_marked(&here, at(address, 80))?.is_err(), "the mark is nothing in this mode");
    }
    Ok(())
}

fn loopback_is_exempt() -> TestResult {
    let (here, _there) = pair()?;
    let refuse = Other::Refuse { egress: Vec::new() };
    install(&here, &Rules { other: refuse, ..Rules::default() })?;
    let app = listen(&here, 80)?;
    for address in ["127.0.0.1", "::1"].into_iter().chain(HERE) {
        connect(&here, at(address, 80))??;
        app.accept()?;
        let sent = here.run(move || UdpSocket::bind((address, 0))?.send_to(b"x", at(address, 9)))?;
        assert_eq!(sent?, 1);
    }
    Ok(())
}

fn exclusions() -> TestResult {
    let (here, there) = pair()?;
    let rules = Rules {
        excluded_outbound_ports: vec![81],
        excluded_outbound_networks: vec!["192.0.2.2/32".parse()?, "2001:db8::2/127".parse()?],
        excluded_inbound_ports: vec![15020, 82],
        ..Rules::default()
    };
    install(&here, &rules)?;
    let by_network = listen(&there, 80)?;
    for address in THERE {
        connect(&here, at(address, 80))??;
        by_network.accept()?;
    }
    let by_inbound_port = listen(&here, 82)?;
    for address in HERE {
        connect(&there, at(address, 82))??;
        by_inbound_port.accept()?;
    }
    install(&here, &Rules { excluded_outbound_networks: Vec::new(), ..rules })?;
    for port in [81, 53] {
        let by_port = listen(&there, port)?;
        for address in THERE {
            connect(&here, at(address, port))??;
            by_port.accept()?;
        }
    }
    for address in THERE {
        assert!(connect(&here, at(address, 80))?.is_err(), "what is not excluded is captured");
    }
    Ok(())
}

fn udp_is_refused() -> TestResult {
    let (here, there) = pair()?;
    let egress = vec!["192.0.2.0/24:123".parse()?, "2001:db8::/32:123".parse()?];
    install(&here, &Rules { other: Other::Refuse { egress }, ..Rules::default() })?;
    let send = |address: &'static str, port: u16, mark: bool| {
        here.run(move || {
            let socket = Socket::new(Domain::for_address(at(address, port)), Type::DGRAM, None)?;
            if mark {
                socket.set_mark(MARK)?;
            }
            socket.send_to(b"x", &at(address, port).into())
        })
    };
    for address in THERE {
        let refused = send(address, 9, false)?.unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::EPERM as i32), "the sender is told at once");
        for (port, mark) in [(53, false), (123, false), (9, true)] {
            let receiver = there.run(move || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)))??;
            receiver.set_read_timeout(Some(LIMIT))?;
            assert_eq!(send(address, port, mark)?.map_err(|error| format!("{address} {port}: {error}"))?, 1);
            receiver.recv(&mut [0; 8])?;
        }
    }
    let ping = here.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(socket2::Protocol::ICMPV4))?;
        socket.send_to(&[8, 0, 0xf7, 0xff, 0, 0, 0, 0], &at(THERE[0], 0).into())
    })?;
    assert_eq!(ping.unwrap_err().raw_os_error(), Some(Errno::EPERM as i32), "echo requests carry data out");
    let unreachable = there.run(|| {
        let socket = UdpSocket::bind((THERE[0], 0))?;
        socket.connect(at(HERE[0], 9))?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.send(b"x")?;
        socket.recv(&mut [0; 8])
    })?;
    assert_eq!(unreachable.unwrap_err().kind(), io::ErrorKind::ConnectionRefused, "errors of IP itself pass");
    Ok(())
}

fn installing_twice() -> TestResult {
    let (here, _there) = pair()?;
    let rules = Rules::default();
    let proxy = listen(&here, 15001)?;
    install(&here, &rules)?;
    let mut stream = connect(&here, at(THERE[0], 80))??;
    let (mut accepted, _) = proxy.accept()?;
    install(&here, &rules)?;
    verify(&here, &rules)??;
    stream.write_all(b"still here")?;
    let mut read = [0; 10];
    accepted.read_exact(&mut read)?;
    assert_eq!(&read, b"still here");
    Ok(())
}

fn replacing_leaks_nothing() -> TestResult {
    const REPLACEMENTS: usize = 50;
    let (here, there) = pair()?;
    let (app, proxy) = (listen(&there, 80)?, listen(&here, 15001)?);
    install(&here, &Rules::default())?;
    let replaced = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&replaced);
    let replacing = here.thread("replacing", move || {
        for _ in 0..REPLACEMENTS {
            capture::install(&Rules::default(), Way::Any).unwrap();
            counter.fetch_add(1, Ordering::Relaxed);
        }
    })?;
    while replaced.load(Ordering::Relaxed) < REPLACEMENTS && !replacing.is_finished() {
        connect(&here, at(THERE[0], 80))??;
        proxy.accept()?;
    }
    replacing.join().unwrap();
    app.set_nonblocking(true)?;
    assert_eq!(
        app.accept().unwrap_err().kind(),
        io::ErrorKind::WouldBlock,
        "no connection reached the other side"
    );
    Ok(())
}

fn older_connection() -> TestResult {
    let (here, there) = pair()?;
    let app = listen(&there, 80)?;
    let mut stream = connect(&here, at(THERE[0], 80))??;
    let (mut accepted, _) = app.accept()?;
    install(&here, &Rules::default())?;
    stream.write_all(b"x")?;
    accepted.read_exact(&mut [0])?;
    accepted.write_all(b"y")?;
    stream.read_exact(&mut [0])?;
    Ok(())
}

fn injected_rule_is_told() -> TestResult {
    let (here, _there) = pair()?;
    let rules = Rules::default();
    install(&here, &rules)?;
    verify(&here, &rules)??;
    here.run(|| -> Result<(), String> {
        let mut table = nftables::read(TABLE).map_err(|error| error.to_string())?.ok_or("no table")?;
        let mut injected = table.chains[0].clone();
        injected.rules.clear();
        injected.decide("", tcp(), Verdict::Accept);
        table.chains[0].rules.splice(0..0, injected.rules);
        nftables::apply(&table).map_err(|error| error.to_string())
    })??;
    let told = verify(&here, &rules)?.unwrap_err().to_string();
    assert!(
        told.contains("chain output, rule 1, is \"\": meta l4proto == 0x06 accept, not \"loopback\""),
        "{told}"
    );
    let other = Rules { inbound_port: 16006, ..Rules::default() };
    install(&here, &rules)?;
    let told = verify(&here, &other)?.unwrap_err().to_string();
    assert!(told.contains("chain prerouting, rule 2"), "{told}");
    Ok(())
}

fn dormant_table_is_told() -> TestResult {
    let (here, _there) = pair()?;
    let missing = verify(&here, &Rules::default())?.unwrap_err().to_string();
    assert_eq!(missing, "capture is not as installed: table signet is missing");
    install(&here, &Rules::default())?;
    here.run(|| {
        let mut table = nftables::read(TABLE)?.expect("it was installed");
        table.flags = 1;
        nftables::apply(&table)
    })??;
    let told = verify(&here, &Rules::default())?.unwrap_err().to_string();
    assert_eq!(told, "capture is not as installed: table signet has flags 0x1, not 0x0");
    Ok(())
}

fn drained() -> TestResult {
    let (here, there) = pair()?;
    let (proxy, app) = (listen(&here, 15001)?, listen(&there, 80)?);
    install(&here, &Rules::default())?;
    let mut stream = connect(&here, at(THERE[0], 80))??;
    let (mut accepted, _) = proxy.accept()?;
    here.run(capture::drain)??;
    stream.write_all(b"x")?;
    accepted.read_exact(&mut [0])?;
    connect(&here, at(THERE[0], 80))??;
    app.accept()?;
    Ok(())
}

fn removed() -> TestResult {
    let (here, there) = pair()?;
    let app = listen(&there, 80)?;
    install(&here, &Rules::default())?;
    assert!(connect(&here, at(THERE[0], 80))?.is_err());
    for _ in 0..2 {
        here.run(capture::remove)??;
    }
    for address in THERE {
        connect(&here, at(address, 80))??;
        app.accept()?;
    }
    assert_eq!(here.run(|| nftables::read(TABLE))??, None);
    Ok(())
}

fn capture_here() -> ExitCode {
    match capture::install(&Rules::default(), Way::Any) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn capture_without_capability() -> TestResult {
    let namespace = Namespace::new("app")?;
    let program = namespace.start(Program::this().args(["capture"]).capabilities(Capabilities::None))?;
    assert_eq!(program.wait(LIMIT)?.code(), Some(1));
    assert!(
        program.output().contains("EPERM") && program.output().contains("CAP_NET_ADMIN"),
        "{}",
        program.output()
    );
    Ok(())
}
