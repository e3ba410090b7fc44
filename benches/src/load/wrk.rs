//! `wrk`: the closed loop of the throughput measure.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use signet_cli::lab::Program;

/// What it printed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Requests that were answered.
    pub requests: u64,
    /// Answers with another status, and failed connections.
    pub errors: u64,
    /// Per second.
    pub per_second: f64,
    /// Latency percentiles 50 and 99, microseconds.
    pub latency_us: [f64; 2],
}

/// One thread, so many connections, for so long; whole seconds, at least one.
pub fn program(wrk: &Path, to: SocketAddr, path: &str, connections: usize, length: Duration) -> Program {
    let seconds = length.as_secs().max(1);
    let flags = ["-t1", "--latency"].map(str::to_owned);
    let sized = [format!("-c{connections}"), format!("-d{seconds}s"), format!("http://{to}{path}")];
    Program::new(wrk).args(flags).args(sized)
}

/// Reads what it printed.
pub fn parse(text: &str) -> Option<Outcome> {
    let mut outcome = Outcome::default();
    let (mut has_requests, mut has_rate) = (false, false);
    for line in text.lines().map(str::trim) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match &words[..] {
            ["Requests/sec:", rate] => {
                outcome.per_second = rate.parse().ok()?;
                has_rate = true;
            }
            [requests, "requests", "in", ..] => {
                outcome.requests = requests.parse().ok()?;
                has_requests = true;
            }
            ["50%", latency] => outcome.latency_us[0] = micros(latency)?,
            ["99%", latency] => outcome.latency_us[1] = micros(latency)?,
            ["Socket", "errors:", counts @ ..] => outcome.errors += numbers(counts),
            ["Non-2xx", "or", "3xx", "responses:", count] => outcome.errors += numbers(&[*count]),
            _ => {}
        }
    }
    (has_requests && has_rate).then_some(outcome)
}

fn numbers(words: &[&str]) -> u64 {
    words.iter().filter_map(|word| word.trim_end_matches(',').parse::<u64>().ok()).sum()
}

fn micros(text: &str) -> Option<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 60e6)];
    let (number, factor) =
        units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    number.parse::<f64>().ok().map(|number| number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "Running 3s test @ http://10.0.0.3:8080/small
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   426.36us   59.27us   1.86ms   85.07%
    Req/Sec    75.39k     1.31k   77.39k    80.00%
  Latency Distribution
     50%  417.00us
     75%  441.00us
     90%  475.00us
     99%    1.25ms
  225046 requests in 3.00s, 278.59MB read
  Socket errors: connect 0, read 2, write 0, timeout 1
  Non-2xx or 3xx responses: 4
Requests/sec:  75014.51
Transfer/sec:     92.86MB
";

    #[test]
    fn what_wrk_prints_is_read() {
        let outcome = parse(PRINTED).unwrap();
        let latency_us = [417.0, 1250.0];
        assert_eq!(outcome, Outcome { requests: 225_046, errors: 7, per_second: 75_014.51, latency_us });
    }

    #[test]
    fn what_is_no_report_is_none() {
        assert_eq!(parse("unable to connect to 10.0.0.3:8080 Connection refused\n"), None);
        assert_eq!(parse(""), None);
        assert_eq!(parse("99% x"), None);
    }
}
