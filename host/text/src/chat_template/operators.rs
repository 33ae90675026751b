//! The operators that [`source`](super::source) puts a call in the place of, as Python's Jinja has them.

use super::arguments::invalid;
use super::python_filters::escaped;
use super::python_format::{as_float, percent, whole};
use super::python_repr::text;
use minijinja::value::{Rest, Tuple, Value, ValueKind};
use minijinja::{Error, State, filters};
use std::borrow::Cow;

/// Values in a value that is compared, at most: a list in a list in a list can have more than there are atoms.
const COMPARED_MAX: usize = 1 << 18;

/// Pays for comparing a value with another, which takes at most as long as going through all of it.
pub(super) fn sized(state: &State, value: &Value) -> Result<(), Error> {
    let is_container = |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::Iterable | ValueKind::Map
        )
    };
    let mut left = vec![value.clone()];
    let mut count = 0;
    while let Some(value) = left.pop().filter(|value| is_container(value)) {
        let items = value.as_object().and_then(|object| object.try_iter_pairs());
        for (name, item) in items.into_iter().flatten() {
            count += 1;
            if count > COMPARED_MAX {
                return Err(invalid("a value is too large to be compared"));
            }
            left.extend([name, item].into_iter().filter(is_container));
        }
    }
    state.consume_fuel(count as u64 / 4)
}

/// What is compared, as it is.
pub(super) fn compared(state: &State, value: Value) -> Result<Value, Error> {
    sized(state, &value)?;
    Ok(value)
}

/// `a ~ b ~ c`.
pub(super) fn concat(state: &State, parts: Rest<Value>) -> Result<Value, Error> {
    let texts = parts.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    joined(state, &texts).map(Value::from)
}

fn joined(state: &State, texts: &[Cow<'_, str>]) -> Result<String, Error> {
    let bytes = texts.iter().map(|text| text.len()).sum::<usize>();
    // Before the room is taken.
    state.consume_fuel(bytes as u64 / 64)?;
    Ok(texts.concat())
}

/// `a + b + c`.
pub(super) fn sum(state: &State, parts: Rest<Value>) -> Result<Value, Error> {
    let mut parts = parts.0.into_iter();
    let first = parts.next().unwrap_or_default();
    parts.try_fold(first, |left, right| add(state, left, right))
}

fn add(state: &State, left: Value, right: Value) -> Result<Value, Error> {
    let is_list = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    if left.as_str().is_some() && right.as_str().is_some() {
        return add_texts(state, &left, &right);
    }
    if is_list(&left) && is_list(&right) && left.is_tuple() == right.is_tuple() {
        let is_tuple = left.is_tuple();
        let mut items = Vec::new();
        for list in [left, right] {
            let list = filters::list(state, list)?;
            items.extend(list.try_iter()?);
        }
        return Ok(match is_tuple {
            true => Tuple::from(items).into(),
            false => items.into(),
        });
    }
    if !is_number(&left) || !is_number(&right) {
        return Err(unsupported("+", &left, &right));
    }
    match (whole(&left, false), whole(&right, false)) {
        (Ok(left), Ok(right)) => {
            let sum = left.checked_add(right);
            sum.map(integer)
                .ok_or_else(|| invalid("a number is too large"))
        }
        _ => Ok((as_float(&left)? + as_float(&right)?).into()),
    }
}

/// Two texts in one. Beside one that is marked as safe the other is escaped.
fn add_texts(state: &State, left: &Value, right: &Value) -> Result<Value, Error> {
    let is_safe = left.is_safe() || right.is_safe();
    let whole = joined(
        state,
        &[text_beside(left, is_safe)?, text_beside(right, is_safe)?],
    )?;
    Ok(match is_safe {
        true => Value::from_safe_string(whole),
        false => whole.into(),
    })
}

/// The text of a value, escaped if it stands beside a safe one and is none.
fn text_beside(value: &Value, beside_safe: bool) -> Result<Cow<'_, str>, Error> {
    match beside_safe && !value.is_safe() {
        true => Ok(escaped(&text(value)?)?.to_string().into()),
        false => text(value),
    }
}

/// `left % right`: of numbers what a division leaves, of a text the text with the values filled in.
pub(super) fn remainder(state: &State, left: Value, right: Value) -> Result<Value, Error> {
    match left.as_str() {
        Some(format) => Ok(percent(state, format, &right)?.into()),
        None => modulo(&left, &right),
    }
}

/// What a division leaves, with the sign of the divisor.
fn modulo(left: &Value, right: &Value) -> Result<Value, Error> {
    if !is_number(left) || !is_number(right) {
        return Err(unsupported("%", left, right));
    }
    let by_zero = || invalid("modulo by zero");
    if let (Ok(left), Ok(right)) = (whole(left, false), whole(right, false)) {
        if right == 0 {
            return Err(by_zero());
        }
        let left = left.wrapping_rem_euclid(right);
        return Ok(integer(if left != 0 && right < 0 {
            left + right
        } else {
            left
        }));
    }
    let (left, right) = (as_float(left)?, as_float(right)?);
    let rest = left % right;
    match right == 0.0 {
        true => Err(by_zero()),
        false if rest == 0.0 => Ok(0.0_f64.copysign(right).into()),
        false if (rest < 0.0) != (right < 0.0) => Ok((rest + right).into()),
        false => Ok(rest.into()),
    }
}

fn is_number(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
}

fn integer(number: i128) -> Value {
    i64::try_from(number).map_or_else(|_| number.into(), Value::from)
}

fn unsupported(operator: &str, left: &Value, right: &Value) -> Error {
    let (left, right) = (left.kind(), right.kind());
    invalid(format!(
        "tried to use {operator} operator on unsupported types {left} and {right}"
    ))
}
