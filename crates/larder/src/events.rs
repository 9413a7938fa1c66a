//! Events of the domain, mapped to what they invalidate.
//!
//! A mapping is known where events are emitted. What they come to travels as invalidations do, so
//! that other processes need not know of events at all.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::Value;

use crate::courier::Receipt;
use crate::error::{Error, Result};
use crate::invalidation::Invalidation;
use crate::larder::Larder;
use crate::template::{Template, shown};

/// The most events that one larder knows.
const MOST_EVENTS: usize = 1_000;
/// The most mappings of one event.
const MOST_MAPPINGS: usize = 64;
/// The longest name of an event, in bytes.
const LONGEST_NAME: usize = 128;
/// The most events that are emitted together, and the most things that they invalidate.
const MOST_TOGETHER: usize = 10_000;
/// How many known events an error names.
const MOST_NAMED: usize = 10;
/// Up to here a float counts every integer.
const LARGEST_EXACT: f64 = 9_007_199_254_740_992.0;

impl Larder {
    /// Says what the event `name` invalidates, by [templates](Template) whose fields are taken from
    /// its payload: `{id}`, or `{address.city}` for a field of an object inside it.
    ///
    /// A further call adds to what the event invalidates. The name is any text of up to 128 bytes.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Cache, Larder};
    /// use serde_json::json;
    ///
    /// let larder = Larder::builder("shop").build()?;
    /// let users: Cache<u64, String> = larder.cache("user").build()?;
    /// larder.on_event(
    ///     "user.updated",
    ///     ["key user:{id}", "tag team:{team.id}", "pattern users:list:*"],
    /// )?;
    ///
    /// let _ = users.set(7, "Ada".to_owned()).await?;
    /// let _ = larder.emit("user.updated", &json!({"id": 7, "team": {"id": 3}})).await?;
    /// assert!(users.get(&7).await?.is_none());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) for a name or a template that cannot work, for no
    /// template at all, and for more than 1,000 events or 64 mappings of one. Nothing is registered
    /// then.
    pub fn on_event<T: AsRef<str>>(
        &self,
        name: &str,
        templates: impl IntoIterator<Item = T>,
    ) -> Result<()> {
        // One more than there may be is enough to refuse them all.
        let templates = templates.into_iter().take(MOST_MAPPINGS + 1);
        let mappings: Result<Vec<Mapping>> = templates
            .map(|template| by_template(name, template.as_ref()))
            .collect();
        let mappings = mappings?;
        if mappings.is_empty() {
            let name = shown(name);
            return Err(Error::config(format!(
                "event `{name}` has no templates; give it one, like `key product:{{id}}`"
            )));
        }
        self.events.add(name, mappings)
    }

    /// Says what the event `name` invalidates, by a function of its payload. A further call adds to
    /// what the event invalidates.
    ///
    /// The larder keeps `map` and so must not be kept by it: a function that holds a larder or a
    /// cache keeps both from ever being dropped. If it panics, so does the call that emits.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::{Invalidation, Larder};
    /// use serde_json::{Value, json};
    ///
    /// let larder = Larder::builder("shop").build()?;
    /// larder.on_event_with("order.paid", |paid: &Value| {
    ///     let lines = paid["lines"].as_array().into_iter().flatten();
    ///     let products = lines.filter_map(|line| line["product"].as_u64());
    ///     products.map(|id| Invalidation::key("stock", [id.to_string()])).collect()
    /// })?;
    ///
    /// let paid = json!({"lines": [{"product": 7}, {"product": 9}]});
    /// assert!(larder.emit("order.paid", &paid).await?.is_acked());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`on_event`](Self::on_event).
    pub fn on_event_with(
        &self,
        name: &str,
        map: impl Fn(&Value) -> Vec<Invalidation> + Send + Sync + 'static,
    ) -> Result<()> {
        self.events
            .add(name, vec![Mapping::Function(Arc::new(map))])
    }

    /// The names of the events that are known here, sorted.
    pub fn events(&self) -> Vec<String> {
        self.events.names()
    }

    /// Invalidates what the event `name` with this payload stands for, in every tier and process.
    ///
    /// The mapping has to be known in this process alone. The payload is a
    /// [`Value`], or what serde can make one from.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) for an event that nothing is known of, for a payload
    /// that lacks a field of a template or has something else there than a number, a string or a
    /// boolean, and for what [`invalidate_each`](Self::invalidate_each) refuses. Nothing is
    /// invalidated then. [`Closed`](crate::ErrorKind::Closed) after shutdown. A tier or bus that
    /// cannot be reached is no error but a receipt that [is queued](Receipt::is_queued).
    pub async fn emit<P: Serialize + ?Sized>(&self, name: &str, payload: &P) -> Result<Receipt> {
        self.emit_all([(name, payload)]).await
    }

    /// The same for many events at once: what they invalidate, each thing once, goes to each tier in
    /// one command and to other processes in one message, [patterns](Invalidation::Pattern) aside.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> larder::Result<()> {
    /// use larder::Larder;
    /// use serde_json::json;
    ///
    /// let larder = Larder::builder("shop").build()?;
    /// larder.on_event("user.updated", ["key user:{id}"])?;
    /// larder.on_event("user.deleted", ["key user:{id}", "tag users"])?;
    /// let _ = larder
    ///     .emit_all([
    ///         ("user.updated", json!({"id": 7})),
    ///         ("user.deleted", json!({"id": 9})),
    ///     ])
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`emit`](Self::emit), and [`Config`](crate::ErrorKind::Config) for more than 10,000
    /// events or things to invalidate. Nothing is invalidated if one event is wrong.
    pub async fn emit_all<N, P>(&self, events: impl IntoIterator<Item = (N, P)>) -> Result<Receipt>
    where
        N: AsRef<str>,
        P: Serialize,
    {
        let what = self.events.expand(events)?;
        self.invalidate_each(what).await
    }
}

/// What one larder knows of events.
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// The slices are shared with those who emit just now: functions run without the lock.
    mappings: Mutex<BTreeMap<Box<str>, Arc<[Mapping]>>>,
}

type Function = dyn Fn(&Value) -> Vec<Invalidation> + Send + Sync;

#[derive(Clone)]
enum Mapping {
    Template(Arc<Template>),
    Function(Arc<Function>),
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Template(template) => write!(f, "`{template}`"),
            Self::Function(_) => f.write_str("a function"),
        }
    }
}

impl Mapping {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Template(one), Self::Template(other)) => one == other,
            _ => false,
        }
    }

    fn apply(&self, payload: &Value) -> Result<Vec<Invalidation>, String> {
        match self {
            Self::Template(template) => template
                .fill(|field| field_of(payload, field))
                .map(|one| vec![one])
                .map_err(|why| format!("template `{}`: {why}", shown(&template.to_string()))),
            Self::Function(map) => Ok(map(payload)),
        }
    }
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Box<str>, Arc<[Mapping]>>> {
        self.mappings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, name: &str, added: Vec<Mapping>) -> Result<()> {
        check_name(name)?;
        let mut known = self.lock();
        if known.len() >= MOST_EVENTS && !known.contains_key(name) {
            return Err(Error::config(format!(
                "{MOST_EVENTS} events are registered, and no more may be; put what varies into \
                 the payload"
            )));
        }
        let before = known.get(name).map_or(&[][..], |mappings| mappings);
        let mut mappings = before.to_vec();
        for mapping in added {
            if !mappings.iter().any(|known| known.is(&mapping)) {
                mappings.push(mapping);
            }
        }
        if mappings.len() > MOST_MAPPINGS {
            let name = shown(name);
            return Err(Error::config(format!(
                "event `{name}` would have more than {MOST_MAPPINGS} mappings; give what belongs \
                 together a tag"
            )));
        }
        known.insert(name.into(), mappings.into());
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        self.lock().keys().map(ToString::to_string).collect()
    }

    fn mappings(&self, name: &str) -> Result<Arc<[Mapping]>> {
        let known = self.lock();
        known
            .get(name)
            .cloned()
            .ok_or_else(|| unknown(name, known.keys().map(AsRef::as_ref)))
    }

    /// What events come to, each thing once, in their order.
    fn expand<N, P>(&self, events: impl IntoIterator<Item = (N, P)>) -> Result<Vec<Invalidation>>
    where
        N: AsRef<str>,
        P: Serialize,
    {
        let (mut all, mut seen) = (Vec::new(), HashSet::new());
        for (at, (name, payload)) in events.into_iter().enumerate() {
            let name = name.as_ref();
            let wrong = |why: String| Error::config(format!("event `{}`: {why}", shown(name)));
            let mappings = self.mappings(name)?;
            let payload = serde_json::to_value(payload)
                .map_err(|why| wrong(format!("its payload cannot be written as JSON: {why}")))?;
            for mapping in mappings.iter() {
                let new = mapping.apply(&payload).map_err(wrong)?.into_iter();
                all.extend(new.filter(|one| seen.insert(one.clone())));
            }
            if at >= MOST_TOGETHER || all.len() > MOST_TOGETHER {
                return Err(Error::config(format!(
                    "these events, or what they invalidate, are more than {MOST_TOGETHER}; emit \
                     them in several calls, or map them to a tag"
                )));
            }
        }
        Ok(all)
    }
}

fn check_name(name: &str) -> Result<()> {
    if (1..=LONGEST_NAME).contains(&name.len()) && !name.contains(char::is_control) {
        return Ok(());
    }
    let name = shown(name);
    Err(Error::config(format!(
        "`{name}` cannot be the name of an event: use 1 to {LONGEST_NAME} bytes without control \
         characters, like `user.updated`"
    )))
}

fn unknown<'n>(name: &str, known: impl ExactSizeIterator<Item = &'n str>) -> Error {
    let name = shown(name);
    let more = known.len().saturating_sub(MOST_NAMED);
    let mut named: Vec<String> = known
        .take(MOST_NAMED)
        .map(|name| format!("`{name}`"))
        .collect();
    let known = match named.len() {
        0 => "none is".to_owned(),
        _ => {
            named.extend((more > 0).then(|| format!("{more} more")));
            format!("known are {}", named.join(", "))
        }
    };
    Error::config(format!(
        "event `{name}` is not known in this process, {known}; register it with on_event"
    ))
}

fn by_template(name: &str, text: &str) -> Result<Mapping> {
    let wrong = |why: String| Error::config(format!("event `{}`: {why}", shown(name)));
    let template: Template = text.parse().map_err(|why: Error| wrong(why.to_string()))?;
    let is_path = |field: &str| field.split('.').all(|step| !step.is_empty());
    if let Some(field) = template.fields().find(|field| !is_path(field)) {
        let (text, field) = (shown(text), shown(field));
        return Err(wrong(format!(
            "template `{text}`: `{{{field}}}` has nothing before, between or behind its dots; \
             write it like `{{id}}` or `{{address.city}}`"
        )));
    }
    Ok(Mapping::Template(Arc::new(template)))
}

/// The text of a field of a payload, which is named by the way to it.
fn field_of(payload: &Value, path: &str) -> Result<String, String> {
    let found = path
        .split('.')
        .try_fold(payload, |value, step| value.as_object()?.get(step));
    let shown = shown(path);
    let found = found.ok_or_else(|| {
        format!("the payload has no field `{shown}`; add it, or map the event by a function")
    })?;
    text_of(found).ok_or_else(|| {
        let what = match found {
            Value::Null => "null",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
            _ => "a number that JSON does not keep exactly",
        };
        format!(
            "field `{shown}` of the payload is {what}; give a string, a number or a boolean, or \
             map the event by a function"
        )
    })
}

/// What stands for a value in a key or a tag. JSON knows one kind of number: 7.0 is 7.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(bool) => Some(bool.to_string()),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => {
                (float.abs() < LARGEST_EXACT).then(|| (float + 0.0).to_string())
            }
            _ => Some(number.to_string()),
        },
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn strings_numbers_and_booleans_have_one_text_each_and_nothing_else_has() {
        for (value, text) in [
            (json!("a:b"), Some("a:b")),
            (json!(""), Some("")),
            (json!(true), Some("true")),
            (json!(7), Some("7")),
            (json!(-7), Some("-7")),
            (json!(u64::MAX), Some("18446744073709551615")),
            (json!(7.0), Some("7")),
            (json!(-0.0), Some("0")),
            (json!(1.5), Some("1.5")),
            (json!(1e300), None),
            (json!(null), None),
            (json!([1]), None),
            (json!({"a": 1}), None),
        ] {
            assert_eq!(text_of(&value).as_deref(), text, "{value}");
        }
    }
}
