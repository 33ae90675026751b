//! Which layers see only a window of positions, as files and architectures say it.

use realm_weights::Value;

use super::LoadError;
use super::keys::Keys;

/// The layers with a window. Not a list where a rule says it: how many layers there are is the file's word.
pub(super) enum WindowedLayers {
    /// All but the last of so many, again and again.
    Period(u32),
    /// As the file lists them.
    Listed(Vec<bool>),
}

impl WindowedLayers {
    /// No layer has one.
    pub(super) const NONE: WindowedLayers = WindowedLayers::Period(1);

    /// Whether layer `index` has it.
    pub(super) fn contains(&self, index: u32) -> bool {
        match self {
            WindowedLayers::Period(period) => !(index + 1).is_multiple_of(*period),
            WindowedLayers::Listed(layers) => layers[index as usize],
        }
    }
}

impl Keys<'_> {
    /// How many positions a row sees, its own among them; `None` is all of them.
    pub(super) fn window(&self) -> Result<Option<u32>, LoadError> {
        let window = self.metadata().u32(&self.key("attention.sliding_window"))?;
        Ok(window.filter(|window| *window > 0))
    }

    /// The layers that have the window. The file may list them or state a period; most leave it to the architecture,
    /// whose `period` counts then.
    pub(super) fn windowed_layers(
        &self,
        layers: u32,
        period: u32,
    ) -> Result<WindowedLayers, LoadError> {
        let key = self.key("attention.sliding_window_pattern");
        match self.metadata().get(&key) {
            None => Ok(WindowedLayers::Period(period)),
            Some(Value::Array(_)) => {
                let listed = self.metadata().bools(&key)?.unwrap_or_default();
                let wanted = format!("one for each of {layers} layers");
                let fits = listed.len() == layers as usize;
                self.check(&key, format!("{} values", listed.len()), fits, &wanted)?;
                Ok(WindowedLayers::Listed(listed))
            }
            Some(_) => self
                .count("attention.sliding_window_pattern")
                .map(WindowedLayers::Period),
        }
    }
}
