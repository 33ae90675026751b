//! Tries what WASI would give a program outside: files, sockets, environment, clocks, randomness. Reports what it saw.

use realm_guest::json::json;
use realm_guest::{Description, Error, Reply, Request, Workflow};
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Instant;

struct Guest;

impl Workflow for Guest {
    fn describe() -> Description {
        Description::new().function(
            "probe",
            "Reports what the outside looks like.",
            json!({"type": "object"}),
        )
    }

    fn handle(_request: Request, reply: Reply) -> Result<(), Error> {
        println!("a line on stdout");
        eprintln!("a line on stderr");
        let refused = |result: std::io::Result<()>| result.err().map(|error| error.to_string());
        // How fine the clock is: the smallest step seen.
        let start = Instant::now();
        let mut step = std::time::Duration::MAX;
        let mut last = start;
        for _ in 0..20_000 {
            let now = Instant::now();
            if now > last {
                step = step.min(now - last);
                last = now;
            }
        }
        reply.json(&json!({
            "read_file": refused(std::fs::read("/etc/passwd").map(drop)),
            "write_file": refused(std::fs::write("/tmp/realm-probe", "x")),
            "list_root": refused(std::fs::read_dir("/").map(drop)),
            "connect": refused(std::net::TcpStream::connect("127.0.0.1:80").map(drop)),
            "listen": refused(std::net::TcpListener::bind("127.0.0.1:0").map(drop)),
            "udp": refused(std::net::UdpSocket::bind("127.0.0.1:0").map(drop)),
            "resolve": refused(std::net::ToSocketAddrs::to_socket_addrs("localhost:80").map(drop)),
            "variables": std::env::vars().count(),
            "arguments": std::env::args().count(),
            "stdin": std::io::stdin().lines().count(),
            "clock_step_us": u64::try_from(step.as_micros()).unwrap_or(u64::MAX),
            "random": RandomState::new().build_hasher().finish(),
        }))
    }
}

realm_guest::workflow!(Guest);
