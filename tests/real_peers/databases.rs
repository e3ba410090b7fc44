//! Servers with protocols of their own, carried as signed records: MariaDB, which speaks first, PostgreSQL, Redis and
//! Mosquitto.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use signet_cli::lab::Program;
use signet_cli::lab::runner::TestResult;

use crate::pair::{Failure, LIMIT, Pair, run};
use crate::programs::{app, program};

/// Any operation: these ports carry no requests that could be told apart.
const ANY: &str = "";
/// Connections whose times are compared.
const ROUNDS: usize = 10;
/// What a detection that waits for a silent client would cost at least.
const SHORTEST_DETECTION: Duration = Duration::from_millis(50);

/// MariaDB greets its client, which stays silent until then: nothing may wait for the client here.
pub(crate) fn mariadb_greets_without_delay() -> TestResult {
    const PORT: u16 = 3306;
    let pair = Pair::new()?;
    let data = pair.path("data");
    let install = app("mariadb-install-db")?
        .args(["--no-defaults", "--user=root", "--skip-test-db", "--auth-root-authentication-method=normal"])
        .args([format!("--datadir={data}")]);
    run(&pair.server, install)?;
    fs::write(
        pair.path("init.sql"),
        "CREATE USER app@'%' IDENTIFIED BY 'word';\nGRANT ALL ON *.* TO app@'%';\n",
    )?;
    let server = app("mariadbd")?
        .args(["--no-defaults", "--user=root", "--bind-address=*", "--skip-name-resolve"])
        .args([format!("--datadir={data}"), format!("--init-file={}", pair.path("init.sql"))])
        .args([format!("--port={PORT}"), format!("--socket={}", pair.path("mariadb.sock"))]);
    let _server = pair.serve(server, PORT)?;
    let host = pair.place(PORT).ip().to_string();
    let query = |sql: &str| {
        let client = app("mariadb")?.args([
            "--no-defaults",
            "-h",
            &host,
            "-P",
            &PORT.to_string(),
            "-u",
            "app",
            "-pword",
            "-N",
            "-e",
            sql,
        ]);
        pair.call(client)
    };
    let fastest = || {
        let times = (0..ROUNDS).map(|_| {
            let started = Instant::now();
            query("SELECT 1").map(|_| started.elapsed())
        });
        times.collect::<Result<Vec<_>, _>>().map(|times| times.into_iter().min().unwrap_or_default())
    };

    const LARGE: &str = "SELECT REPEAT(SHA2('seed', 256), 14000)";
    let (direct, direct_time) = (query(LARGE)?, fastest()?);
    let mesh = pair.mesh(PORT, ANY)?;
    assert_eq!(
        query("CREATE DATABASE d; CREATE TABLE d.t (a INT); INSERT INTO d.t VALUES (42); SELECT a FROM d.t")?,
        "42\n"
    );
    assert!(query(LARGE)? == direct, "a large result differs");
    let meshed_time = fastest()?;
    println!("connect and query, the fastest of {ROUNDS}: direct {direct_time:?}, meshed {meshed_time:?}");
    assert!(meshed_time < direct_time + SHORTEST_DETECTION, "{direct_time:?} became {meshed_time:?}");
    mesh.check("signet_streams_total", 2)
}

/// PostgreSQL's client asks for TLS first and goes on without.
pub(crate) fn postgresql_answers_queries() -> TestResult {
    const PORT: u16 = 5432;
    let pair = Pair::new()?;
    let data = pair.path("data");
    let initdb = ["-D", &data, "-U", "app", "-A", "trust", "--no-sync", "--locale=C.UTF-8"];
    run(&pair.server, as_postgres("initdb")?.args(initdb))?;
    fs::write(pair.path("data/pg_hba.conf"), "host all all all trust\n")?;
    let server =
        as_postgres("postgres")?.args(["-D", &data, "-p", &PORT.to_string(), "-k", "", "-h", "*", "-F"]);
    let _server = pair.serve(server, PORT)?;
    let place = format!("host={} port={PORT} user=app dbname=postgres", pair.place(PORT).ip());
    let query = |sql: &str| pair.call(app("psql")?.args(["-X", "-q", "-A", "-t", "-d", &place, "-c", sql]));

    const LARGE: &str = "COPY (SELECT n, md5(n::text) FROM generate_series(1, 20000) n) TO STDOUT";
    let direct = query(LARGE)?;
    let mesh = pair.mesh(PORT, ANY)?;
    assert_eq!(query("SELECT 6 * 7")?, "42\n");
    assert!(query(LARGE)? == direct, "a large result differs");
    let refused = query("SELECT nonsense").err().map(|error| error.to_string()).unwrap_or_default();
    assert!(refused.contains("column \"nonsense\" does not exist"), "{refused}");
    mesh.check("signet_streams_total", 3)
}

pub(crate) fn redis_keeps_what_it_is_given() -> TestResult {
    const PORT: u16 = 6379;
    let pair = Pair::new()?;
    let server = app("redis-server")?
        .args(["--port", &PORT.to_string(), "--bind", "*", "-::*", "--protected-mode", "no", "--save", ""])
        .args(["--dir", &pair.path("")]);
    let _server = pair.serve(server, PORT)?;
    let mesh = pair.mesh(PORT, ANY)?;
    let host = pair.place(PORT).ip().to_string();
    let redis = |arguments: &[&str]| {
        pair.call(app("redis-cli")?.args(["-h", &host, "-p", &PORT.to_string()]).args(arguments))
    };
    assert_eq!(redis(&["SET", "key", "a value"])?, "OK\n");
    assert_eq!(redis(&["GET", "key"])?, "a value\n");
    let large = redis(&["EVAL", "return string.rep('0123456789abcdef', 60000)", "0"])?;
    assert!(
        large.trim_end() == "0123456789abcdef".repeat(60_000),
        "a large value differs: {} bytes",
        large.len()
    );
    // Many connections at once, and many commands in flight on each.
    let benchmark = app("redis-benchmark")?.args([
        "-h",
        &host,
        "-p",
        &PORT.to_string(),
        "-q",
        "-n",
        "4000",
        "-c",
        "20",
        "-P",
        "8",
        "-t",
        "set,get",
    ]);
    let figures = pair.call(benchmark)?;
    assert!(figures.contains("SET:") && figures.contains("GET:"), "{figures}");
    mesh.check("signet_streams_total", 40)
}

/// A subscriber waits for as long as nobody publishes; the broker sends on its own.
pub(crate) fn mosquitto_delivers_to_subscribers() -> TestResult {
    const PORT: u16 = 1883;
    let pair = Pair::new()?;
    let configuration = format!(
        "listener {PORT}\nallow_anonymous true\nuser root\npersistence false\nlog_dest stderr\nlog_type all\n"
    );
    fs::write(pair.path("mosquitto.conf"), configuration)?;
    let server = pair.serve(app("mosquitto")?.args(["-c", &pair.path("mosquitto.conf")]), PORT)?;
    let mesh = pair.mesh(PORT, ANY)?;
    let host = pair.place(PORT).ip().to_string();
    let client = |name: &str, arguments: &[&str]| -> Result<Program, Failure> {
        Ok(app(name)?.args(["-h", &host, "-p", &PORT.to_string(), "-t", "topic", "-q", "2"]).args(arguments))
    };
    let subscriber = pair.client.namespace().start(client("mosquitto_sub", &["-C", "3"])?)?;
    server.wait_for_line("Sending SUBACK", LIMIT)?;
    for message in ["one", "two", "three"] {
        pair.call(client("mosquitto_pub", &["-m", message])?)?;
    }
    assert!(subscriber.wait(LIMIT)?.success());
    assert_eq!(subscriber.output(), "one\ntwo\nthree\n");
    mesh.check("signet_streams_total", 4)
}

/// PostgreSQL refuses to run as root, which everybody is in the lab: it gets a user namespace in which the same user
/// has the number of Debian's `postgres`. Whoever makes one may map root into it only with a capability; what is started
/// inside, not being root there, has none.
fn as_postgres(name: &str) -> Result<Program, Failure> {
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    versions.sort();
    let newest = versions.pop().ok_or("postgresql is not installed: .ci/run installs it from Debian")?;
    let map = ["--user", "--map-user=postgres", "--map-group=postgres", "--"];
    Ok(Program::new(program("unshare")?).args(map).args([newest.join("bin").join(name)]))
}
