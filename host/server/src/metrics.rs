//! Every metric there is. Names and labels are a contract with dashboards: they are changed here and nowhere else.

use crate::models::{BaseModel, ModelTable};
use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use realm_engine::{Observer, StepReport};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// From a fast step to a slow answer, in seconds.
const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0,
];
/// Rows of a step: powers of two up to the largest step anybody configures.
const ROWS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
];

/// All metrics of one server.
pub struct Metrics {
    registry: Registry,
    /// Answers by route and HTTP status; a stream counts when it begins.
    pub requests: IntCounterVec,
    /// From the first byte of a request to the last of its answer.
    pub request_seconds: HistogramVec,
    /// Requests being answered.
    pub in_flight: IntGaugeVec,
    /// Prompt tokens. Those of base models are read from their engines, those of embeddings are added here.
    pub tokens_prompt: IntCounterVec,
    tokens_cached: IntCounterVec,
    tokens_completion: IntCounterVec,
    /// From the request to the first piece of its answer.
    pub first_token_seconds: HistogramVec,
    /// Between two tokens of an answer.
    pub inter_token_seconds: HistogramVec,
    /// Calls of components that ended in an error.
    pub guest_errors: IntCounterVec,
    /// Uploads by what became of them.
    pub uploads: IntCounterVec,
    batch_rows: Histogram,
    step_seconds: Histogram,
    sampled: Vec<(IntGauge, Sample)>,
    /// Locked for as long as a scrape moves them on.
    totals: Mutex<Vec<(IntCounter, Sample)>>,
}

/// One number of an engine's statistics.
type Sample = fn(&realm_engine::Stats) -> u64;

/// Gauges, read from the engines at every scrape.
const SAMPLED: [(&str, &str, Sample); 7] = [
    (
        "realm_queue_depth",
        "Commands waiting for the engine.",
        |stats| stats.queue_depth,
    ),
    (
        "realm_sequences_running",
        "Sequences in the batch.",
        |stats| stats.sequences_running,
    ),
    (
        "realm_sequences_waiting",
        "Sequences waiting for a place in the batch or for KV blocks.",
        |stats| stats.sequences_waiting,
    ),
    ("realm_kv_blocks_total", "All KV blocks.", |stats| {
        stats.blocks_total
    }),
    ("realm_kv_blocks_free", "Free KV blocks.", |stats| {
        stats.blocks_free
    }),
    (
        "realm_kv_blocks_held",
        "KV blocks held by sequences.",
        |stats| stats.blocks_held,
    ),
    (
        "realm_kv_blocks_cached",
        "KV blocks held by the prefix cache only.",
        |stats| stats.blocks_cached,
    ),
];

/// Counters, read in the same way: the engines count, and they live as long as the server.
const TOTALS: [(&str, &str, Sample); 2] = [
    ("realm_steps_total", "Forward passes.", |stats| {
        stats.steps_total
    }),
    (
        "realm_preemptions_total",
        "Sequences that were preempted: they lost their KV blocks before they were done.",
        |stats| stats.preemptions_total,
    ),
];

/// Name, help and labels of a metric that has a series for each tenant, route or the like.
type Labelled = (&'static str, &'static str, &'static [&'static str]);

const REQUESTS: Labelled = (
    "realm_requests_total",
    "Responses by tenant, route and HTTP status.",
    &["tenant", "route", "status"],
);
const REQUEST_SECONDS: Labelled = (
    "realm_request_seconds",
    "Time from the start of a request to the end of its response.",
    &["route"],
);
const IN_FLIGHT: Labelled = (
    "realm_requests_in_flight",
    "Requests in progress.",
    &["tenant"],
);
const TOKENS_PROMPT: Labelled = (
    "realm_tokens_prompt_total",
    "Prompt tokens, counted as they are given to the engine.",
    &["tenant", "model"],
);
const TOKENS_CACHED: Labelled = (
    "realm_tokens_cached_total",
    "Prompt tokens that came from the prefix cache.",
    &["tenant", "model"],
);
const TOKENS_COMPLETION: Labelled = (
    "realm_tokens_completion_total",
    "Generated tokens, counted as they are sampled.",
    &["tenant", "model"],
);
const FIRST_TOKEN_SECONDS: Labelled = (
    "realm_time_to_first_token_seconds",
    "Time from a request to the first piece of its answer.",
    &["tenant"],
);
const INTER_TOKEN_SECONDS: Labelled = (
    "realm_inter_token_seconds",
    "Time between two tokens of an answer.",
    &["tenant"],
);
const GUEST_ERRORS: Labelled = (
    "realm_guest_errors_total",
    "Calls of components that ended in an error.",
    &["tenant", "code"],
);
const UPLOADS: Labelled = (
    "realm_upload_total",
    "Uploads of components by result.",
    &["tenant", "result"],
);

/// Makes a metric part of what is scraped.
fn register<M: Collector + Clone + 'static>(
    registry: &Registry,
    metric: M,
) -> Result<M, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

impl Metrics {
    /// All of them, at zero.
    ///
    /// # Errors
    /// When two have the same name or a name is not allowed: a mistake in this file.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        let counter = |(name, help, labels): Labelled| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            register(&registry, counter)
        };
        let seconds = |(name, help, labels): Labelled| {
            let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
            register(&registry, HistogramVec::new(options, labels)?)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            register(&registry, Histogram::with_opts(options)?)
        };
        let (name, help, labels) = IN_FLIGHT;
        let in_flight = register(&registry, IntGaugeVec::new(Opts::new(name, help), labels)?)?;
        let sampled = SAMPLED.map(|(name, help, sample)| -> Result<_, prometheus::Error> {
            let gauge = register(&registry, IntGauge::new(name, help)?)?;
            Ok((gauge, sample))
        });
        let totals = TOTALS.map(|(name, help, sample)| -> Result<_, prometheus::Error> {
            let counter = register(&registry, IntCounter::new(name, help)?)?;
            Ok((counter, sample))
        });
        Ok(Metrics {
            requests: counter(REQUESTS)?,
            request_seconds: seconds(REQUEST_SECONDS)?,
            in_flight,
            tokens_prompt: counter(TOKENS_PROMPT)?,
            tokens_cached: counter(TOKENS_CACHED)?,
            tokens_completion: counter(TOKENS_COMPLETION)?,
            first_token_seconds: seconds(FIRST_TOKEN_SECONDS)?,
            inter_token_seconds: seconds(INTER_TOKEN_SECONDS)?,
            guest_errors: counter(GUEST_ERRORS)?,
            uploads: counter(UPLOADS)?,
            batch_rows: histogram("realm_batch_rows", "Tokens computed in one step.", ROWS)?,
            step_seconds: histogram("realm_step_seconds", "Duration of one step.", SECONDS)?,
            sampled: sampled
                .into_iter()
                .collect::<Result<_, prometheus::Error>>()?,
            totals: Mutex::new(
                totals
                    .into_iter()
                    .collect::<Result<_, prometheus::Error>>()?,
            ),
            registry,
        })
    }

    /// The text format, with the engines' numbers as of now. `names` are the tenants' by number.
    ///
    /// # Errors
    /// When a metric cannot be written as text: a mistake in this file.
    pub fn scrape(
        &self,
        models: &ModelTable,
        names: &HashMap<u32, String>,
    ) -> Result<String, prometheus::Error> {
        let stats: Vec<_> = models
            .base()
            .iter()
            .map(|model| model.client.stats())
            .collect();
        for (gauge, sample) in &self.sampled {
            let sum: u64 = stats.iter().map(sample).sum();
            gauge.set(i64::try_from(sum).unwrap_or(i64::MAX));
        }
        let totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        for (counter, sample) in totals.iter() {
            let sum: u64 = stats.iter().map(sample).sum();
            raise(counter, sum);
        }
        for model in models.base() {
            self.read_usage(model, names);
        }
        drop(totals);
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

impl Metrics {
    /// What tenants have used of a model, as its engine counts it: no component can make it more or less.
    fn read_usage(&self, model: &BaseModel, names: &HashMap<u32, String>) {
        for usage in model.client.usage_by_tenant() {
            // A tenant that is gone has had its last numbers in the scrapes before; one of the same name starts anew.
            let Some(name) = names.get(&usage.tenant) else {
                continue;
            };
            let labels = [name.as_str(), model.name.as_str()];
            for (counters, total) in [
                (&self.tokens_prompt, usage.prompt),
                (&self.tokens_cached, usage.cached),
                (&self.tokens_completion, usage.completion),
            ] {
                raise(&counters.with_label_values(&labels), total);
            }
        }
    }
}

/// Brings a counter to a total that is counted elsewhere. Another scrape may have read later and come first.
fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

impl Observer for Metrics {
    fn step(&self, report: &StepReport) {
        self.batch_rows.observe(f64::from(report.rows));
        self.step_seconds.observe(report.seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_allowed_and_there_only_once() {
        let text = Metrics::new()
            .unwrap()
            .scrape(&ModelTable::default(), &HashMap::new())
            .unwrap();
        assert!(text.contains("realm_kv_blocks_held 0"));
        assert!(text.contains("realm_step_seconds_count 0"));
        assert!(text.contains("# TYPE realm_steps_total counter"));
    }

    #[test]
    fn the_page_lists_every_metric() {
        let page = include_str!("../../../docs/metrics.md");
        let metrics = Metrics::new().unwrap();
        // A labelled metric is not gathered before it has a label, but it describes itself.
        let labelled: [&dyn Collector; 10] = [
            &metrics.requests,
            &metrics.request_seconds,
            &metrics.in_flight,
            &metrics.tokens_prompt,
            &metrics.tokens_cached,
            &metrics.tokens_completion,
            &metrics.first_token_seconds,
            &metrics.inter_token_seconds,
            &metrics.guest_errors,
            &metrics.uploads,
        ];
        let labelled = labelled.map(|metric| metric.desc()[0].fq_name.clone());
        let plain = metrics.registry.gather();
        let plain = plain.iter().map(|family| family.name().to_owned());
        for name in plain.chain(labelled) {
            assert!(page.contains(&format!("| `{name}` |")), "{name}");
        }
    }
}
