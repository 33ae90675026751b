//! The functions of Python's Jinja that minijinja and its library for Python lack or have in part.

use super::arguments::{Arguments, invalid};
use minijinja::value::{Kwargs, Object, Rest, Tuple, Value, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, filters};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Adds them to the environment.
pub(super) fn add(environment: &mut Environment<'_>) {
    environment.add_function("cycler", cycler);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_function("dict", |state: &State, args: Rest<ValueOrKwargs>| {
        dict(state, &args.into_values())
    });
    environment.add_function("namespace", |state: &State, args: Rest<ValueOrKwargs>| {
        let values = dict(state, &args.into_values())?;
        let (values,) = from_args(std::slice::from_ref(&values))?;
        minijinja::functions::namespace(values)
    });
}

/// `dict(map or pairs, name=value)`.
fn dict(state: &State, args: &[Value]) -> Result<Value, Error> {
    let (first, named) = match args {
        [] => (None, None),
        [named] if named.is_kwargs() => (None, Some(named)),
        [first] => (Some(first), None),
        [first, named] if named.is_kwargs() => (Some(first), Some(named)),
        _ => return Err(Error::from(ErrorKind::TooManyArguments)),
    };
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    if let Some(first) = first {
        let is_map = first.kind() == ValueKind::Map;
        let items = filters::list(state, first.clone())?;
        for item in items.try_iter()?.checked() {
            let item = item?;
            pairs.push(match is_map {
                true => (item.clone(), first.get_item(&item)?),
                false if item.len() == Some(2) => {
                    (item.get_item_by_index(0)?, item.get_item_by_index(1)?)
                }
                false => return Err(invalid("a map is made of pairs")),
            });
        }
    }
    if let Some(named) = named {
        let named = Kwargs::try_from(named.clone())?;
        for name in named.args() {
            pairs.push((name.into(), named.peek(name)?));
        }
    }
    Ok(Value::from_pairs(pairs))
}

/// Gives its items one after the other, and then again.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

fn cycler(items: Rest<Value>) -> Result<Value, Error> {
    match items.is_empty() {
        true => Err(invalid("at least one item has to be provided")),
        false => Ok(Value::from_object(Cycler {
            items: items.0,
            at: AtomicUsize::new(0),
        })),
    }
}

impl Cycler {
    fn item(&self, at: usize) -> Value {
        self.items[at % self.items.len()].clone()
    }
}

impl Object for Cycler {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let is_current = key.as_str() == Some("current");
        is_current.then(|| self.item(self.at.load(Ordering::Relaxed)))
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        Arguments::bind(args, [])?;
        match method {
            "next" => Ok(self.item(self.at.fetch_add(1, Ordering::Relaxed))),
            "reset" => {
                self.at.store(0, Ordering::Relaxed);
                Ok(().into())
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

/// What a loop goes through: several are a tuple, and what minijinja does not know the length of is a list.
pub(super) fn items(state: &State, values: Rest<Value>) -> Result<Value, Error> {
    let [value] = values.as_slice() else {
        return Ok(Tuple::from(values.0).into());
    };
    let is_unsized = value.kind() == ValueKind::Iterable && value.len().is_none();
    match value.kind() == ValueKind::String || is_unsized {
        true => filters::list(state, value.clone()),
        false => Ok(value.clone()),
    }
}
