//! The arguments of a call as Python binds them: each by its place or by its name.

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};

/// The arguments of one call, one per name of its signature.
pub(super) struct Arguments<const N: usize> {
    names: [&'static str; N],
    values: [Option<Value>; N],
}

impl<const N: usize> Arguments<N> {
    /// Binds `args` to `names`.
    pub(super) fn bind(args: &[Value], names: [&'static str; N]) -> Result<Arguments<N>, Error> {
        let (by_place, by_name) = match args.split_last() {
            Some((last, rest)) if last.is_kwargs() => (rest, Some(Kwargs::try_from(last.clone())?)),
            _ => (args, None),
        };
        if by_place.len() > N {
            return Err(Error::new(
                ErrorKind::TooManyArguments,
                format!("at most {N} are taken"),
            ));
        }
        let mut values = [const { None }; N];
        for (slot, value) in values.iter_mut().zip(by_place) {
            *slot = Some(value.clone());
        }
        if let Some(by_name) = by_name {
            for (name, slot) in names.iter().zip(&mut values) {
                if slot.is_none() && by_name.has(name) {
                    *slot = Some(by_name.get(name)?);
                }
            }
            by_name.assert_all_used()?;
        }
        Ok(Arguments { names, values })
    }

    /// The argument, if it was given.
    pub(super) fn given(&self, at: usize) -> Option<&Value> {
        self.values[at].as_ref()
    }

    /// The argument, if it was given and is not none.
    pub(super) fn some(&self, at: usize) -> Option<&Value> {
        self.given(at).filter(|value| !value.is_none())
    }

    /// The argument, which must have been given.
    pub(super) fn required(&self, at: usize) -> Result<&Value, Error> {
        self.given(at).ok_or_else(|| {
            let name = self.names[at];
            Error::new(ErrorKind::MissingArgument, format!("'{name}' is missing"))
        })
    }

    /// The text, which must have been given.
    pub(super) fn text(&self, at: usize) -> Result<&str, Error> {
        as_text(self.required(at)?, self.names[at])
    }

    /// The text, or `default`.
    pub(super) fn text_or<'a>(&'a self, at: usize, default: &'a str) -> Result<&'a str, Error> {
        self.some(at)
            .map_or(Ok(default), |value| as_text(value, self.names[at]))
    }

    /// The whole number, if there is one.
    pub(super) fn number(&self, at: usize) -> Result<Option<i64>, Error> {
        let Some(value) = self.some(at) else {
            return Ok(None);
        };
        let number = value.as_i64().filter(|_| value.is_integer());
        let truth = || (value.kind() == minijinja::value::ValueKind::Bool).then(|| value.is_true());
        match number.or_else(|| truth().map(i64::from)) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(self.names[at], "a whole number", value)),
        }
    }

    /// The truth of the argument, or `default`.
    pub(super) fn truth(&self, at: usize, default: bool) -> bool {
        self.given(at).map_or(default, Value::is_true)
    }
}

fn as_text<'v>(value: &'v Value, name: &str) -> Result<&'v str, Error> {
    value.as_str().ok_or_else(|| wrong(name, "a text", value))
}

fn wrong(name: &str, wanted: &str, value: &Value) -> Error {
    invalid(format!("'{name}' must be {wanted}, not {}", value.kind()))
}

/// The error of a call that cannot be made.
pub(super) fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
