//! The page: what was tried, the plots, the tables, and what one sees in them.

use crate::experiments::{Findings, Size};
use crate::plots::Plot;
use crate::tables::{self, Cells};

const STYLE: &str = "
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1000px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.7em; } h2 { font-size: 1.25em; margin-top: 2em; }
figure { margin: 1em 0; } svg { width: 100%; height: auto; }
figcaption { font-size: .9em; color: #444; }
table { border-collapse: collapse; font-size: .9em; margin: 1em 0; }
th, td { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 2px solid #888; }
code { background: #f3f3f3; padding: 0 .2em; }
";

struct Section<'a> {
    heading: &'a str,
    says: &'a str,
    /// The name of the plot, and its caption.
    plot: Option<(&'a str, &'a str)>,
    table: Cells,
}

pub(crate) fn html(findings: &Findings, plots: &[Plot], seed: u64) -> String {
    let sections: String = sections(findings).iter().map(|section| section.html(plots)).collect();
    let Size { clients, share_clients, contention_runs, .. } = findings.size;
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>steadfast: simulation</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>Simulation: what retries do to a server in trouble</h1>\n\
         <p>A simulation that drives the real policy code of the client; the model is described at \
         <code>steadfast_sim</code>. Unless it says otherwise: {clients} clients that start 10 operations a second each, \
         three retries (<code>max_attempts(4)</code>, 100 ms doubled, at most 5 s, full jitter), an attempt timeout of 1 s; a \
         server that can do 1.05 times what is asked for, and lets 3 s of work wait. Where a share of the requests fails there are {share_clients} clients, and \
         contention is the mean of {contention_runs} runs. Seed {seed}; the same seed gives the same \
         page.</p>\n{sections}</body>\n</html>\n"
    )
}

fn sections(findings: &Findings) -> [Section<'_>; 9] {
    [
        Section {
            heading: "After an outage",
            says: "The cause is gone after 30 s. Whether the service is back depends on what its clients do, and on what it \
                   comes back with.",
            plot: Some((
                "recovery",
                "The trouble lasts while the ground is grey. Above: the requests that are sent, as multiples of the operations \
                 (which would be 1). Below: the operations that are answered with success. On the left a hung server that is \
                 restarted and comes back with an empty queue: without a budget the clients overrun it again at once, and it \
                 works for those who have given up. (With reqwest's budget, which leaves each client ten free retries a \
                 second, it is on the edge, and depends on the seed.) On the right a server that goes on with the 3 s of requests that \
                 it had accepted: now any steady share of retries that is more than the 5 % it has to spare keeps the queue \
                 full. A budget that runs empty lets it drain.",
            )),
            table: tables::outages(findings),
        },
        Section {
            heading: "After an overload",
            says: "The server is well; the clients start twice as many operations for ten seconds, and then the usual number.",
            plot: None,
            table: tables::overloads(findings),
        },
        Section {
            heading: "When a share of the requests fails",
            says: "A minute, and a server that no load can hurt, so that only the share counts.",
            plot: Some((
                "share",
                "Jitter (broken) changes nothing here: it spreads the load and does not lessen it. The buckets hide failures \
                 as long as they are rare, and give up when retries would be most of the load. A bucket of five tokens that gets a tenth \
                 for each operation begins to give up at 10 %, the standard one a little above 20 %.",
            )),
            table: tables::shares(findings),
        },
        Section {
            heading: "When clients contend",
            says: "All want to change the same row, and of those that read the same version one wins. AWS's study: waits of \
                   10 ms doubled, at most 2 s, without a budget.",
            plot: Some((
                "contention",
                "Without jitter those who lost together meet again. Full jitter needs the fewest calls and the least time.",
            )),
            table: tables::contention(findings),
        },
        Section {
            heading: "A thundering herd",
            says: "A thousand clients lose their connection together, while a server of 1,000 requests a second is down for half \
                   a second (grey). Up to seven retries, 100 ms doubled.",
            plot: Some((
                "herd",
                "Without jitter the whole crowd is back in one tenth of a second, in which the server can do 100 requests.",
            )),
            table: tables::herds(findings),
        },
        Section {
            heading: "Busy clients and quiet ones",
            says: "The standard bucket of 500 tokens is 35 retries. For a busy client that is nothing, and for one that makes 30 \
                   calls in the whole outage it is more than it asks for.",
            plot: None,
            table: tables::mixed(findings),
        },
        Section {
            heading: "Retries upon retries",
            says: "Each service retries what the one below it has given up on.",
            plot: None,
            table: tables::layers(findings),
        },
        Section {
            heading: "Overload protection in an outage",
            says: "Each mechanism alone, and all of them. The breaker keeps an outage nearly silent and is late when it is over. A \
                   cooldown is quieter still where the answers say when to come back, and then lets all that has waited loose \
                   within a second. A server that is told deadlines drops what nobody waits for, and is back at once.",
            plot: None,
            table: tables::mechanisms_in_outages(findings),
        },
        Section {
            heading: "Overload protection in a brownout",
            says: "A share of the requests fails, or half a second is added to a share of the answers; or the clients start twice \
                   as many operations. Hedging needs room: with 5 % to spare it is itself the overload.",
            plot: None,
            table: tables::mechanisms_in_brownouts(findings),
        },
    ]
}

impl Section<'_> {
    fn html(&self, plots: &[Plot]) -> String {
        let figure = self.plot.and_then(|(name, caption)| {
            let plot = plots.iter().find(|plot| plot.name == name)?;
            Some(format!("<figure id=\"{name}\">\n{}\n<figcaption>{caption}</figcaption>\n</figure>\n", plot.svg))
        });
        let Self { heading, says, table, .. } = self;
        format!("<h2>{heading}</h2>\n<p>{says}</p>\n{}{}", figure.unwrap_or_default(), table.as_html())
    }
}
