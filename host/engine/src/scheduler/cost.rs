//! What rows cost, as measured: how many rows of prompts a step may take so that the others' next token is not late.

/// How much of a new measurement is believed.
const WEIGHT: f64 = 0.2;
/// Rows of prompts that a step takes in any case: with fewer, reading the weights costs more than computing.
const ROWS_MIN: u32 = 16;
/// A step in which nobody decodes may take this many times its target: it delays only who comes.
const PATIENCE: f64 = 4.0;

/// The measured cost of steps, in seconds.
#[derive(Debug, Default)]
pub(crate) struct StepCost {
    target: f64,               // 0 is none
    decode: [Option<f64>; 17], // steps of up to 2^i decoding rows and nothing else
    prefill_row: Option<f64>,  // beside the decoding rows
}

impl StepCost {
    pub(crate) fn new(target: std::time::Duration) -> StepCost {
        StepCost {
            target: target.as_secs_f64(),
            ..StepCost::default()
        }
    }

    /// A step was computed.
    pub(crate) fn observe(&mut self, decode_rows: u32, prefill_rows: u32, seconds: f64) {
        let believe = |known: &mut Option<f64>, seen: f64| {
            *known = Some(known.map_or(seen, |known| known + WEIGHT * (seen - known)));
        };
        if prefill_rows == 0 {
            believe(&mut self.decode[bucket(decode_rows)], seconds);
            return;
        }
        // A few rows of prompts are hidden by the reading of the weights, and say nothing about many.
        let beside = self.decode_seconds(decode_rows).min(seconds);
        if prefill_rows >= ROWS_MIN {
            let row = (seconds - beside) / f64::from(prefill_rows);
            believe(&mut self.prefill_row, row);
        }
    }

    /// Seconds of a step that decodes this many rows, as far as is known.
    fn decode_seconds(&self, rows: u32) -> f64 {
        if rows == 0 {
            return 0.0;
        }
        let bucket = bucket(rows);
        let near = (0..self.decode.len())
            .filter_map(|index| Some((index.abs_diff(bucket), self.decode[index]?)));
        near.min_by_key(|&(distance, _)| distance)
            .map_or(0.0, |(_, seconds)| seconds)
    }

    /// Seconds of one row of a prompt; 0 when nothing is known.
    pub(crate) fn row_seconds(&self) -> f64 {
        self.prefill_row.unwrap_or(0.0).max(0.0)
    }

    /// Rows of prompts beside `decode_rows` that keep the step within its target, of `rows_max` at most.
    ///
    /// Where decoding alone takes most of the target prompts get half as long again, so that they go on.
    pub(crate) fn prefill_rows_max(&self, decode_rows: u32, rows_max: u32) -> u32 {
        let row = self.row_seconds();
        if self.target == 0.0 || row == 0.0 {
            return rows_max;
        }
        let seconds = if decode_rows == 0 {
            self.target * PATIENCE
        } else {
            let decode = self.decode_seconds(decode_rows);
            (self.target - decode).max(decode / 2.0)
        };
        // In whole tiles of rows, which a kernel computes at once.
        let rows = (seconds / row) as u32 / ROWS_MIN * ROWS_MIN;
        rows.clamp(ROWS_MIN, rows_max.max(ROWS_MIN)).min(rows_max)
    }
}

/// Buckets of rows: 1, 2, 3 to 4, 5 to 8 and so on.
fn bucket(rows: u32) -> usize {
    (rows.max(1).next_power_of_two().trailing_zeros() as usize).min(16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn cost(target_ms: u64) -> StepCost {
        let mut cost = StepCost::new(Duration::from_millis(target_ms));
        for _ in 0..20 {
            cost.observe(16, 0, 0.020);
            cost.observe(16, 60, 0.020 + 60.0 * 0.001);
        }
        cost
    }

    #[test]
    fn prompts_get_what_decoding_leaves_of_the_target() {
        assert_eq!(cost(84).prefill_rows_max(16, 1000), 64);
        assert_eq!(cost(84).prefill_rows_max(16, 40), 40);
        assert_eq!(cost(84).prefill_rows_max(0, 1000), 336 / 16 * 16);
    }

    #[test]
    fn prompts_go_on_where_decoding_takes_all_of_it() {
        assert_eq!(cost(10).prefill_rows_max(16, 1000), ROWS_MIN);
        let mut slow = cost(10);
        for _ in 0..50 {
            slow.observe(64, 0, 0.100);
        }
        assert_eq!(slow.prefill_rows_max(64, 1000), 48, "half of 100 ms");
    }

    #[test]
    fn without_a_target_or_a_measurement_there_is_no_limit() {
        assert_eq!(cost(0).prefill_rows_max(16, 240), 240);
        let unknown = StepCost::new(Duration::from_millis(50));
        assert_eq!(unknown.prefill_rows_max(16, 240), 240);
    }
}
