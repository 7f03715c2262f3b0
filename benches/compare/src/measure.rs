//! Starts the server and the client processes, and reads their counts.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::contender::Name;
use crate::layer::Serving;
use crate::load::{Say, Scenario};
use crate::wire::{Ports, Wire};

/// The server's process. Dropping this value ends it.
pub struct Server {
    process: Child,
    ports: Ports,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _gone = self.process.wait();
    }
}

impl Server {
    pub fn start() -> Self {
        let mut process =
            Command::new(std::env::current_exe().unwrap()).arg("serve").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut words = line.split_whitespace();
        let ports = std::array::from_fn(|_| words.next().unwrap().parse().unwrap());
        Self { process, ports: Ports { ports, certificate: words.next().unwrap().into() } }
    }

    /// Runs a client process, and returns the numbers that it prints.
    pub fn say(&self, run: Run, operations: usize, say: Say) -> Vec<f64> {
        let exe = std::env::current_exe().unwrap();
        let output = self.load(Command::new(exe), run, operations, say).output().unwrap();
        assert!(output.status.success(), "{}: {}", run.contender, String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect()
    }

    /// Returns the instructions of one operation: a long run minus a short one, so that start-up
    /// cancels.
    pub fn instructions(&self, run: Run) -> f64 {
        let (short, long) = match run.scenario {
            Scenario::Get64 => (640, 6400),
            Scenario::Persist => (150, 600),
            _ => (300, 1500),
        };
        let count = |operations| self.count(run, operations);
        (count(long) - count(short)) / (long - short) as f64
    }

    pub fn allocations(&self, run: Run) -> f64 {
        self.say(run, 0, Say::Allocations)[0]
    }

    /// Returns the bytes of one operation in flight. Only the second half of many operations
    /// counts, which leaves out the client's fixed memory.
    pub fn held_by_one(&self, contender: Name) -> f64 {
        let hold = |operations: usize| {
            self.say(Run::new(contender, Scenario::Hold), operations, Say::Bytes)[0] * operations as f64
        };
        (hold(400) - hold(200)) / 200.0
    }

    fn count(&self, run: Run, operations: usize) -> f64 {
        callgrind(&format!("{}.{operations}", run.contender), |valgrind| {
            self.load(valgrind, run, operations, Say::Nothing)
        })
    }

    fn load(&self, mut command: Command, run: Run, operations: usize, say: Say) -> Command {
        let site = self.ports.site(run.wire);
        command.arg("load").arg(spelled(&run.wire)).arg(site.port.to_string()).arg(site.certificate());
        command.arg(run.contender.to_string()).arg(spelled(&run.scenario));
        command.arg(operations.to_string()).arg(spelled(&say));
        command
    }
}

/// What a client process does: which client, which scenario, over which wire.
#[derive(Clone, Copy)]
pub struct Run {
    pub contender: Name,
    pub scenario: Scenario,
    pub wire: Wire,
}

impl Run {
    /// Makes a run in the clear, to an IP address.
    pub fn new(contender: Name, scenario: Scenario) -> Self {
        Self { contender, scenario, wire: Wire::Address }
    }

    pub fn over(self, wire: Wire) -> Self {
        Self { wire, ..self }
    }
}

/// Returns the instructions of one request on the server's side.
pub fn serving(what: Serving) -> f64 {
    const SHORT: usize = 1500;
    const LONG: usize = 6000;
    let count = |requests: usize| {
        callgrind(&format!("{}.{requests}", spelled(&what)), |mut valgrind| {
            valgrind.arg("serving").arg(spelled(&what)).arg(requests.to_string());
            valgrind
        })
    };
    (count(LONG) - count(SHORT)) / (LONG - SHORT) as f64
}

fn spelled(value: &impl clap::ValueEnum) -> String {
    value.to_possible_value().unwrap().get_name().to_owned()
}

/// Returns the instructions of this program, run with the added arguments.
fn callgrind(name: &str, arguments: impl FnOnce(Command) -> Command) -> f64 {
    // `COMPARE_KEEP` keeps the output for callgrind_annotate.
    let kept = std::env::var("COMPARE_KEEP").ok();
    let folder = tempfile::tempdir().unwrap();
    let file = kept.map_or_else(|| folder.path().join("out"), |folder| format!("{folder}/{name}").into());
    let mut valgrind = Command::new("valgrind");
    // Always in the same environment: the client reads it, and the parts that it keeps shift the
    // heap.
    valgrind.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    valgrind.args(["--tool=callgrind", "-q"]).arg(format!("--callgrind-out-file={}", file.display()));
    valgrind.arg(std::env::current_exe().unwrap());
    let output = arguments(valgrind).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    let counts = std::fs::read_to_string(file).unwrap();
    let total = counts.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
    total.and_then(|total| total.trim().parse().ok()).unwrap()
}
