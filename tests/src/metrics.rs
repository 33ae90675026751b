//! One scrape of `/metrics`, read as a list of samples.

use anyhow::{Context, Result};

/// A scrape: every sample line of the Prometheus text format.
#[derive(Clone, Debug)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: String, // as written, between the braces
    value: f64,
}

impl Metrics {
    /// Reads the text format; comment lines are passed over. Errors name the line that is no sample.
    pub fn parse(text: &str) -> Result<Metrics> {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        Ok(Metrics {
            samples: lines.map(sample).collect::<Result<_>>()?,
        })
    }

    /// The sum over every sample of this name; `None` when there is none, so that a metric that is not exported is not
    /// taken for one that is zero.
    pub fn sum(&self, name: &str) -> Option<f64> {
        self.sum_where(name, &[])
    }

    /// The same over the samples that carry all these labels.
    pub fn sum_where(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let matching = self.samples.iter().filter(|sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.contains(&format!("{key}=\"{value}\"")))
        });
        matching.map(|sample| sample.value).reduce(|a, b| a + b)
    }

    /// KV blocks held by live sequences.
    pub fn kv_blocks_held(&self) -> Result<f64> {
        self.sum("realm_kv_blocks_held")
            .context("realm_kv_blocks_held is not exported")
    }

    /// Engine steps made since the start.
    pub fn steps(&self) -> Result<f64> {
        self.sum("realm_step_seconds_count")
            .context("realm_step_seconds is not exported")
    }
}

fn sample(line: &str) -> Result<Sample> {
    let (series, value) = line
        .rsplit_once(' ')
        .with_context(|| format!("no value in metrics line {line:?}"))?;
    let value = value
        .parse()
        .with_context(|| format!("no number in metrics line {line:?}"))?;
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    Ok(Sample {
        name: name.to_owned(),
        labels: labels.trim_end_matches('}').to_owned(),
        value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_name_and_label() {
        let text =
            "# HELP a b\na{tenant=\"x\",code=\"1\"} 2\na{tenant=\"y\",code=\"1\"} 3\nb 0.5\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.sum("a"), Some(5.0));
        assert_eq!(metrics.sum_where("a", &[("tenant", "y")]), Some(3.0));
        assert_eq!(metrics.sum("b"), Some(0.5));
        assert_eq!(metrics.sum("c"), None);
        assert!(Metrics::parse("a b\n").is_err());
    }
}
